"""Replay a month of card transactions through the scoring service and record its guarantee status.

A model of July's transactions, calibrated on its last 15 days but one, scores August in time order
over HTTP. Streams without a change measure how often an answer is ``doubtful`` or ``broken``;
streams with a change put in measure how many rows and hours pass until the status says so. Streams
of fewer rows a day are random subsets of the month. In a further part, a model is trained and
calibrated on all transactions of a few customers or terminals, and scores those of the same ones.

The replay is faster than real time. The service assesses the status every second, so it is asked
for a fresh one every `STATUS_ROWS` rows. With ``--only counted`` rows are scored and counted
without the service and HTTP, which takes a tenth of the time.
"""

from __future__ import annotations

import http.client
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.config import Config, validate_config
from benchmarks.common import Ledger, Options, environment, markdown_table
from benchmarks.handbook import BASE_COLUMNS
from benchmarks.serving import RegisteredModels, Server, running
from pipelines.training.calibrate import calibrate
from pipelines.training.train import train
from serving.observability.guarantee import GuaranteeTracker

TIME, LABEL, CUSTOMER, TERMINAL = "TX_DATETIME", "TX_FRAUD", "CUSTOMER_ID", "TERMINAL_ID"
DAILY_ROWS = 9_567
"""Number of transactions a day."""
STATUS_ROWS = 125
"""Maximum number of rows between two assessments of the status."""
ROWS_BEFORE, DAYS_AFTER = 4_500, 6
"""Number of rows before a change, and of days after it."""
FIRST_CHANGE_DAY = 7
"""Day of the month, from 0, of the change in the first stream; each further one is a day later."""
CHANGE_RATES, CHANGE_STREAMS = (DAILY_ROWS, 2_000, 500), 7
"""Rows a day, and number of streams, with a change put in."""
MOVED_SHARE, BUSIEST = 0.1, 0.1
"""Share of rows moved to other terminals, and share of the terminals they are moved to."""
AMOUNT_FACTOR = 1.5
"""Factor of amounts that are too large."""
ENTITIES = {CUSTOMER: 5_000, TERMINAL: 10_000}
"""Number of customers and of terminals, which are numbered from 0."""
ALARMS = ("doubtful", "broken")
Change = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


@dataclass(frozen=True)
class Months:
    """A month whose payments train and calibrate a model, and the next one, which is replayed."""

    trained: str
    replayed: str
    last: int
    """Last day of the first month, which is its test split."""

    @property
    def splits(self) -> dict[str, tuple[str, str]]:
        """Days that train, those that calibrate, and the day that tests."""
        middle, test, end = f"{self.trained}-16", f"{self.trained}-{self.last}", self.replayed
        return {
            "train": (f"{self.trained}-01", middle),
            "calibration": (middle, test),
            "test": (test, f"{end}-01"),
        }

    def file(self, options: Options, month: str) -> Path:
        """Return the file with the payments of a month."""
        return options.data_folder("fraud") / f"transactions-{month}.parquet"


JULY, AUGUST = Months("2018-06", "2018-07", 30), Months("2018-07", "2018-08", 31)
"""The months that the monitor is developed on, and those of the protocol."""


@dataclass(frozen=True)
class Replay:
    """A stream without a change."""

    daily_rows: int
    request_rows: int
    days: int = 31


REPLAYS = (
    Replay(DAILY_ROWS, 5_000),
    Replay(DAILY_ROWS, 250),
    Replay(DAILY_ROWS, 1, days=3),
    Replay(2_000, 50),
    Replay(500, 50),
    Replay(100, 10),
)


@dataclass(frozen=True)
class Population:
    """Randomly chosen customers or terminals, all of whose transactions are replayed."""

    column: str
    entities: int
    request_rows: int

    @property
    def title(self) -> str:
        """Name in tables and files, such as ``500 customers``."""
        return f"{self.entities} {self.column.removesuffix('_ID').lower()}s"

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the transactions of these entities, which are the same ones in each month."""
        chosen = np.random.default_rng(0).permutation(ENTITIES[self.column])[: self.entities]
        return table[table[self.column].isin(chosen)].reset_index(drop=True)


POPULATIONS = (Population(CUSTOMER, 500, 50), Population(TERMINAL, 300, 25))


# ---------------------------------------------------------------- the model and the month


def model_folder(options: Options, population: Population | None = None) -> Path:
    """Return the folder of the calibrated bundle of July; train it if necessary."""
    name = f"watch-model-{population.title.replace(' ', '-')}" if population else "watch-model"
    folder, july = options.result_path(name).resolve(), AUGUST.file(options, AUGUST.trained)
    if not population:
        return trained(folder, july.resolve(), AUGUST, options.short)
    table = population.of(pd.read_parquet(july))
    return trained(folder, written(table, folder / july.name), AUGUST, options.short)


def written(table: pd.DataFrame, path: Path) -> Path:
    """Write the table and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def trained(
    folder: Path, data: Path, months: Months, short: bool, grouped_alpha: float | None = None
) -> Path:
    """Return the folder of the bundle that was trained and calibrated on data, if necessary now.

    With ``grouped_alpha``, customers are `data.group`, and this is alpha.
    """
    if not (folder / "bundle").exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = _configuration(data, folder, months, short, grouped_alpha)
        with chdir(folder):
            calibrate(config, train(config).model_uri).bundle.save(folder / "bundle")
    return folder / "bundle"


def _configuration(
    data: Path, folder: Path, months: Months, short: bool, grouped_alpha: float | None
) -> Config:
    content: dict[str, Any] = {
        "name": "fraud",
        "data": {
            "path": [str(data)],
            "label": LABEL,
            "time": TIME,
            "group": CUSTOMER if grouped_alpha else None,
            "features": [TIME, *BASE_COLUMNS],
            "splits": months.splits,
        },
        "mlflow": {"tracking_uri": f"sqlite:///{folder / 'mlflow.db'}"},
        "calibration": {"alpha": grouped_alpha} if grouped_alpha else {},
        "training": {"epochs": 10} if short else {},
    }
    return validate_config(content)


def load_month(options: Options, months: Months = AUGUST) -> pd.DataFrame:
    """Return the transactions of the month that is replayed, in time order."""
    table = pd.read_parquet(months.file(options, months.replayed))
    return table.sort_values(TIME, kind="stable").reset_index(drop=True)


def thinned(month: pd.DataFrame, daily_rows: int, seed: int) -> pd.DataFrame:
    """Return a random subset of the month with about this many rows a day."""
    rng = np.random.default_rng(seed)
    return month[rng.random(len(month)) < daily_rows / DAILY_ROWS].reset_index(drop=True)


def changes(month: pd.DataFrame) -> Mapping[str, Change]:
    """Return the changes to put in, by name."""
    columns = [name for name in BASE_COLUMNS if name.startswith(TERMINAL)]
    counts = month[TERMINAL].value_counts()
    pool = month[month[TERMINAL].isin(counts.index[: int(BUSIEST * len(counts))])]

    def move(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        moved = np.flatnonzero(rng.random(len(table)) < MOVED_SHARE)
        table.loc[moved, columns] = pool[columns].to_numpy()[rng.integers(0, len(pool), len(moved))]
        return table

    def drop(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        return table.assign(**{str(rng.choice(BASE_COLUMNS)): np.nan})

    def enlarge(table: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
        return table.assign(TX_AMOUNT=AMOUNT_FACTOR * table["TX_AMOUNT"])

    return {
        f"amounts × {AMOUNT_FACTOR:g}": enlarge,
        f"{MOVED_SHARE:.0%} of the rows at the busiest terminals": move,
        "a column missing": drop,
    }


# ---------------------------------------------------------------- the service


class Scored(Protocol):
    """Scores rows and tells the status."""

    def score(self, table: pd.DataFrame) -> Any:
        """Score rows in one request and return the answer."""

    def assess(self) -> str:
        """Assess the guarantee now, and return the status."""


class Client:
    """A connection to the service that sends rows and reads statuses."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def score(self, table: pd.DataFrame) -> Any:
        """Send rows in one request and return the answer."""
        records = table[[TIME, *BASE_COLUMNS]].to_json(orient="records", date_format="iso")
        return self._ask("POST", "/score", f'{{"records":{records}}}')

    def assess(self) -> str:
        """Have the service assess the guarantee now, and return the status."""
        return str(self._ask("GET", "/models")["models"][0]["guarantee_status"])

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {content!r}")
        return json.loads(content)


class Counted:
    """A model and the service's tracker of its guarantee, in place of the service."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = load_bundle(bundle)
        self._tracker = GuaranteeTracker(self._bundle.monitor)

    def score(self, table: pd.DataFrame) -> Any:
        """Score and count rows, and return what an answer of the service has."""
        scorer = self._bundle.scorer
        rows = pa.Table.from_pandas(table[[TIME, *BASE_COLUMNS]], preserve_index=False)
        batch = scorer.schema.from_arrow(rows)
        x = scorer.encoding.encode(batch)
        found = self._bundle.detector.detect_encoded(x)
        self._tracker.observe(found, x, batch)
        results = [{"is_anomaly": flag} for flag in found.is_anomaly.tolist()]
        return {"guarantee_status": self._tracker.status, "results": results}

    def assess(self) -> str:
        """Assess the guarantee, and return the status."""
        return self._tracker.report().status


@contextmanager
def counted(bundle: Path) -> Iterator[Scored]:
    """Begin a window that has seen no rows yet."""
    yield Counted(bundle)


@contextmanager
def service(bundle: Path) -> Iterator[Scored]:
    """Start the service, whose monitor has seen no rows yet."""
    command = (sys.executable, "-c", "from pipelines.cli import main; main()", "serve")
    example = json.dumps({"records": [load_bundle(bundle).example]}).encode()
    arguments = ("--model", str(bundle), "--port", "{port}")
    server = Server("watch", (*command, *arguments), "/score", example)
    with running(server, RegisteredModels(bundle.parent)) as process:
        yield Client(process.port)


def replay(
    client: Scored, table: pd.DataFrame, request_rows: int
) -> Iterator[tuple[int, Any, str]]:
    """Send rows in order; yield the rows so far, the answer and the status of each request."""
    status, assessed = client.assess(), 0
    for start in range(0, len(table), request_rows):
        answer = client.score(table.iloc[start : start + request_rows])
        rows = min(start + request_rows, len(table))
        if rows - assessed >= min(STATUS_ROWS, request_rows * 25):
            status, assessed = client.assess(), rows
        yield rows, answer, status


# ---------------------------------------------------------------- the measurements


def measure_replay(client: Scored, month: pd.DataFrame, plan: Replay) -> dict[str, float]:
    """Return the shares of answers with each status, and of normal rows that are flagged."""
    return measure_statuses(client, thinned(month, plan.daily_rows, seed=0), plan)


def measure_population(client: Scored, month: pd.DataFrame, plan: Population) -> dict[str, float]:
    """Return the same as `measure_replay` for the transactions of a few entities."""
    table = plan.of(month)
    found = measure_statuses(client, table, Replay(0, plan.request_rows))
    return {"daily_rows": len(table) / 31, **found}


def measure_statuses(client: Scored, table: pd.DataFrame, plan: Replay) -> dict[str, float]:
    """Return the shares of answers with each status, and of normal rows that are flagged."""
    days = (table[TIME] - table[TIME].iloc[0].normalize()).dt.days.to_numpy()
    table, days = table[days < plan.days], days[days < plan.days]
    statuses, flags = [], []
    for rows, answer, _ in replay(client, table, plan.request_rows):
        statuses.append((int(days[rows - 1]), answer["guarantee_status"]))
        flags += [result["is_anomaly"] for result in answer["results"]]
    counts = Counter(status for _, status in statuses)
    later = [status for day, status in statuses if day >= 1]
    return {
        "answers": len(statuses),
        **{status: counts[status] / len(statuses) for status in (*ALARMS, "unknown")},
        "holding_later": later.count("holding") / max(len(later), 1),
        "fpr": float(np.mean(np.array(flags)[table[LABEL].to_numpy() == 0])),
    }


def measure_change(
    client: Scored, month: pd.DataFrame, change: Change, daily_rows: int, seed: int
) -> dict[str, float]:
    """Return the number of rows and of hours after a change until the status says so."""
    return measure_delay(client, thinned(month, daily_rows, seed), change, daily_rows, seed)


def measure_delay(
    client: Scored, table: pd.DataFrame, change: Change, daily_rows: int, seed: int
) -> dict[str, float]:
    """Return the number of rows and of hours after a change until the status says so."""
    rng = np.random.default_rng(seed)
    start = table[TIME].iloc[0].normalize() + pd.Timedelta(days=FIRST_CHANGE_DAY + seed)
    before = table[table[TIME] < start].tail(ROWS_BEFORE)
    inside = (table[TIME] >= start) & (table[TIME] < start + pd.Timedelta(days=DAYS_AFTER))
    after = change(table[inside].reset_index(drop=True), rng)
    for _ in replay(client, before, 250):
        pass
    for rows, _, status in replay(client, after, min(STATUS_ROWS, daily_rows // 16)):
        if status in ALARMS:
            hours = (after[TIME].iloc[rows - 1] - start).total_seconds() / 3600
            return {"rows": rows, "hours": hours}
    return {"rows": np.inf, "hours": np.inf}


# ---------------------------------------------------------------- the run

REPLAY_KEYS = ("daily_rows", "request_rows", "days")
CHANGE_KEYS = ("change", "daily_rows", "seed")
POPULATION_KEYS = ("entities", "request_rows")


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    served = options.wants("service")
    name, opened = ("watch", service) if served else ("watch-counted", counted)
    bundle, month = model_folder(options), load_month(options)
    replays = Ledger(options.result_path(f"{name}-replays.csv"), REPLAY_KEYS)
    delays = Ledger(options.result_path(f"{name}-changes.csv"), CHANGE_KEYS)
    whole = Streams(opened, month, 1 if options.short else CHANGE_STREAMS)
    whole.run_replays(replays, bundle, REPLAYS[1:2] if options.short else REPLAYS)
    whole.run_changes(delays, bundle)
    few = Ledger(options.result_path(f"{name}-entities.csv"), POPULATION_KEYS)
    few_delays = Ledger(options.result_path(f"{name}-entity-changes.csv"), CHANGE_KEYS)
    for population in POPULATIONS[:1] if options.short else POPULATIONS:
        whole.run_population(few, few_delays, model_folder(options, population), population)
    tables = report(replays.rows, delays.rows), report_entities(few.rows, few_delays.rows)
    text = "\n".join((*tables, environment()))
    options.result_path(f"{name}.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


@dataclass(frozen=True)
class Streams:
    """Measurements of one month."""

    opened: Callable[[Path], AbstractContextManager[Scored]]
    """Opens what scores a stream."""
    month: pd.DataFrame
    count: int
    """Number of streams with each change."""

    def run_replays(self, ledger: Ledger, bundle: Path, plans: Sequence[Replay]) -> None:
        """Measure the missing streams without a change."""
        for plan in plans:
            key = (plan.daily_rows, plan.request_rows, plan.days)
            if key not in ledger:
                with self.opened(bundle) as client:
                    ledger.add(key, measure_replay(client, self.month, plan))

    def run_changes(self, ledger: Ledger, bundle: Path) -> None:
        """Measure the missing streams with a change."""
        put_in = changes(self.month)
        for name, daily_rows, seed in product(put_in, CHANGE_RATES, range(self.count)):
            if (name, daily_rows, seed) not in ledger:
                with self.opened(bundle) as client:
                    found = measure_change(client, self.month, put_in[name], daily_rows, seed)
                ledger.add((name, daily_rows, seed), found)

    def run_population(
        self, replays: Ledger, delays: Ledger, bundle: Path, population: Population
    ) -> None:
        """Measure what is missing for few entities, by a model of theirs alone."""
        key = (population.title, population.request_rows)
        if key not in replays:
            with self.opened(bundle) as client:
                replays.add(key, measure_population(client, self.month, population))
        table, put_in = population.of(self.month), changes(self.month)
        for name, seed in product(put_in, range(self.count)):
            if (name, population.title, seed) not in delays:
                with self.opened(bundle) as client:
                    found = measure_delay(client, table, put_in[name], len(table) // 31, seed)
                delays.add((name, population.title, seed), found)


def report(replays: pd.DataFrame, delays: pd.DataFrame) -> str:
    """Tabulate the streams without a change and those with one."""
    quiet = [_replay_row(REPLAY_KEYS, row) for row in replays.to_dict("records")]
    headings = ("rows a day", "rows a request", "days")
    return _tables(headings, quiet, "rows a day", delays)


def report_entities(replays: pd.DataFrame, delays: pd.DataFrame) -> str:
    """Tabulate the streams of a few entities without a change and those with one."""
    keys = ("daily_rows", "request_rows")
    rows = replays.to_dict("records")
    quiet = [[str(row["entities"]), *_replay_row(keys, row)] for row in rows]
    return _tables(("entities", "rows a day", "rows a request"), quiet, "entities", delays)


def _tables(
    headings: Sequence[str], quiet: list[list[str]], rate: str, delays: pd.DataFrame
) -> str:
    shares = ("answers", *ALARMS, "unknown", "holding from day 2 on", "normal rows flagged")
    groups = delays.groupby(["change", "daily_rows"], sort=False)
    changed = [_change_row(key, rows) for key, rows in groups]
    columns = ("change", rate, "rows until said", "hours, median", "hours, 9 in 10")
    table = markdown_table((*columns, "within a day"), changed)
    return f"{markdown_table((*headings, *shares), quiet)}\n{table}"


def _replay_row(keys: Sequence[str], row: Mapping[Any, Any]) -> list[str]:
    counts = [f"{row[name]:,.0f}" for name in (*keys, "answers")]
    shares = [f"{row[name]:.2%}" for name in (*ALARMS, "unknown", "holding_later", "fpr")]
    return counts + shares


def _change_row(key: Any, rows: pd.DataFrame) -> list[str]:
    change, rate = key
    name = rate if isinstance(rate, str) else f"{rate:,}"
    hours = rows["hours"].to_numpy()
    typical, late = (np.quantile(hours, q, method="higher") for q in (0.5, 0.9))
    median_rows = np.quantile(rows["rows"], 0.5, method="higher")
    figures = (_number(median_rows, ",.0f"), _number(typical, ".1f"), _number(late, ".1f"))
    return [change, name, *figures, f"{(hours <= 24).sum()} of {len(hours)}"]


def _number(value: float, spec: str) -> str:
    return format(value, spec) if np.isfinite(value) else "–"
