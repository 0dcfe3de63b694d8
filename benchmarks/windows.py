"""Replay a month of card transactions through `/score` and compare each window with batch columns.

A model of July has the windows of docs/windows.md. August is sent in time order, once to a store
that was filled with June and July by `windows load` and once to an empty one; labels follow by
`POST /events`. The batch columns are those of `add_windows`, which training and `score` use, too.
The last rows are sent one by one.

In the part `disorder`, rows arrive up to half a day late, one in ten twice, from a store that was
filled, and all processes of the service are killed in the middle. Each row of a sample is compared
with its windows over what had arrived before it, and the final store with one that was filled in
order. The part `redis` replays to an empty Redis.

The part `cost` measures what windows add to a request, with a million entities in the store, and
`request` the same in one process, request by request in turn with those of a model without
windows.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import validate_config
from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.features import WindowDefinition, WindowInputs
from anomaly_vae.features.inputs import Event
from anomaly_vae.features.offline import add_windows
from anomaly_vae.features.store import StoreOptions, open_store
from anomaly_vae.features.store.redis import RedisBackend
from anomaly_vae.features.store.sqlite import SqliteBackend, row_number
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import Options, environment, free_port, markdown_table
from pipelines.datasets.loading import load_dataset
from pipelines.registry.model_uri import open_model
from pipelines.windows import load_windows
from serving.app import create_app
from serving.models.store import Store
from serving.scoring.loading import load_model
from serving.settings import Settings

TIME, LABEL, ID = "TX_DATETIME", "TX_FRAUD", "TRANSACTION_ID"
RAW = [ID, TIME, "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT"]
WINDOWS: dict[str, Any] = {
    "CUSTOMER_ID": {
        "over": ["1h", "1d", "7d", "30d"],
        "count": True,
        "of": {"TX_AMOUNT": ["sum", "mean", "max", "std"]},
        "distinct": ["TERMINAL_ID"],
        "since_last": True,
    },
    "TERMINAL_ID": {
        "over": ["1d", "7d", "30d"],
        "count": True,
        "risk": {"label": LABEL, "delay": "7d"},
    },
}
DEFINITION = WindowDefinition({n: EntityWindows.model_validate(w) for n, w in WINDOWS.items()})
DAY = 86_400_000_000
ROWS_TOGETHER, ROWS_ALONE = 500, 2_000
"""Number of records in a request of the replay, and of the last rows, which are sent one by one."""
DISORDER_ROWS, SAMPLE = 40_000, 1_000
"""Number of rows that arrive out of order, and of those that are compared."""
DELAY = pd.Timedelta(hours=12)
"""Maximum delay of a row, less than `data.windows_horizon`."""
SPLITS = {
    "train": ["2018-07-01", "2018-07-04"],
    "calibration": ["2018-07-04", "2018-07-05"],
    "test": ["2018-07-05", "2018-07-06"],
}
SHORT_ROWS = 5_000
"""Number of rows of August in the short form."""
ENTITIES, EVENTS_EACH, REQUESTS = 500_000, 20, 3_000
"""Number of entities of each kind in the full store, of events of each, and of timed requests."""
TURN = 100
"""Number of requests of one kind before those of the other."""
QUANTILES = 0.01, 0.1, 0.5
"""Quantiles of the timed requests; the lowest is the least disturbed by other programs."""


# ---------------------------------------------------------------- the model and the service


def batch_columns(rows: pd.DataFrame, history: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return rows with the windows that they have in files, after the rows of history."""
    found: pd.DataFrame = add_windows(rows, WINDOWS, time=TIME, id=ID, history=history)
    return found


def train(rows: pd.DataFrame, folder: Path) -> Path:
    """Train a model on rows of July, with windows that see June, and return its bundle."""
    path = folder / "july.parquet"
    rows[rows[TIME] < SPLITS["test"][1]].to_parquet(path)
    data = {
        "path": str(path), "label": LABEL, "id": ID, "time": TIME, "windows": WINDOWS,
        "features": ["TX_AMOUNT"], "splits": SPLITS,
    }  # fmt: skip
    config = validate_config({"name": "cards", "data": data, "training": {"epochs": 3}})
    table = load_dataset(config.data)
    parts = table.part(TRAIN), table.part(VALIDATION)
    fitted = fit_bundle(config, prepare(config, table.schema, *parts), table.summary())
    scores = fitted.bundle.scorer.score(table.part(CALIBRATION))
    bundle = fitted.bundle.calibrated(calibrate(scores, alpha=0.01), None)
    return bundle.save(folder / "bundle")


def without_windows(bundle: Path, folder: Path) -> Path:
    """Save the same model without the definition, so that clients send the columns."""
    loaded = load_bundle(bundle)
    data = {k: v for k, v in loaded.manifest["config"]["data"].items() if k != "windows"}
    config = {**loaded.manifest["config"], "data": data}
    plain = replace(loaded, manifest={**loaded.manifest, "config": config}, manifest_file=None)
    return plain.save(folder / "plain")


class Service(http.client.HTTPConnection):
    """A connection to a service, whose first process has the id ``pid``."""

    def __init__(self, host: str, port: int, pid: int) -> None:
        super().__init__(host, port, timeout=60)
        self.pid = pid

    def cpu_seconds(self) -> float:
        """Return the processor time that the service and its worker processes have used."""
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in self._processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Return the resident memory of the service and its worker processes, in MB."""
        return sum(int(fields[21]) for fields in self._processes()) * resource.getpagesize() / 1e6

    def _processes(self) -> Iterator[list[str]]:
        """Yield the fields of the service and its children in /proc/PID/stat, from the third on."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
                if str(self.pid) in (path.parent.name, fields[1]):
                    yield fields


@contextmanager
def service(bundle: Path, url: str, workers: int = 1) -> Iterator[Service]:
    """Start a service and yield a connection to it."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--model", str(bundle)]
    command += ["--port", "0", "--workers", str(workers)]
    variables = {**os.environ, "ANOMALY_VAE_WINDOWS": url, "ANOMALY_VAE_LOG_LEVEL": "warning"}
    with subprocess.Popen(
        command, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            found = None
            while found is None:
                found = re.search(r"on http://([\d.]+):(\d+) ", process.stderr.readline())
            _wait_for(found[1], int(found[2]))
            yield Service(found[1], int(found[2]), process.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def _wait_for(host: str, port: int) -> None:
    """Wait until the service is ready."""
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError), closing(http.client.HTTPConnection(host, port)) as connection:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        assert time.monotonic() < deadline, "the service is not ready"
        time.sleep(0.1)


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
    """Send JSON and return the decoded answer."""
    content = json.dumps(body)
    connection.request("POST", path, content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    return answer


# ---------------------------------------------------------------- equality


def replay(connection: http.client.HTTPConnection, rows: pd.DataFrame) -> pd.DataFrame:
    """Send rows in turn, and the labels of each request after it; return the answers."""
    sent = rows[RAW].assign(**{TIME: rows[TIME].astype(str)}).to_dict("records")
    due = (rows[TIME] + pd.Timedelta(days=7)).astype(str).tolist()
    frauds, results = rows[LABEL].to_numpy(), list[dict[str, Any]]()
    for start in range(0, len(sent), ROWS_TOGETHER):
        part = slice(start, start + ROWS_TOGETHER)
        results += post(connection, "/score", {"records": sent[part]})["results"]
        labels = [
            {"id": record[ID], "label": "anomaly", "at": at}
            for record, at, fraud in zip(sent[part], due[part], frauds[part], strict=True)
            if fraud
        ]
        if labels:
            assert post(connection, "/events", {"labels": labels})["labels"]["unknown"] == 0
    return _answers(results, rows.index)


def replay_alone(connection: http.client.HTTPConnection, rows: pd.DataFrame) -> pd.DataFrame:
    """Send rows one by one, without their labels; return the answers."""
    sent = rows[RAW].assign(**{TIME: rows[TIME].astype(str)}).to_dict("records")
    results = [post(connection, "/score", {"records": [one]})["results"][0] for one in sent]
    return _answers(results, rows.index)


def _answers(results: Sequence[Any], index: Any) -> pd.DataFrame:
    found = pd.DataFrame([one["windows"] for one in results], dtype=float, index=index)
    return found.assign(score=[one["score"] for one in results], id=[one["id"] for one in results])


def compare(found: pd.DataFrame, rows: pd.DataFrame, bundle: Path) -> dict[str, float]:
    """Compare answers with the batch columns of the same rows, and with their scores."""
    names = list(DEFINITION.names)
    ours, theirs = found[names].to_numpy(), rows[names].to_numpy(float)
    missing = int((np.isnan(ours) != np.isnan(theirs)).sum())
    size = np.maximum(np.abs(theirs), 1.0)
    exact = [i for i, f in enumerate(DEFINITION.features) if f.kind in ("count", "distinct", "max")]
    batch = load_bundle(bundle).scorer.schema.from_arrow(pa.Table.from_pandas(rows))
    scores = load_bundle(bundle).scorer.score(batch)
    return {
        "rows": len(rows),
        "rows lost": len(rows) - len(found),
        "windows missing on one side": missing,
        "largest relative difference of a window": float(np.nanmax(np.abs(ours - theirs) / size)),
        "counts, distinct and max that differ": float(np.nansum(ours[:, exact] != theirs[:, exact]))
        - float((np.isnan(ours[:, exact]) & np.isnan(theirs[:, exact])).sum()),
        "largest relative difference of a score": float(
            np.max(np.abs(found["score"] - scores) / np.abs(scores))
        ),
    }


# ---------------------------------------------------------------- disorder


def disorder(bundle: Path, filled: Path, past: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Send rows out of order, some twice, and kill the service in the middle; compare."""
    draw = np.random.default_rng(7)
    late = rows[TIME] + pd.to_timedelta(draw.random(len(rows)) * DELAY.total_seconds(), unit="s")
    arriving = rows.iloc[np.argsort(late.to_numpy(), kind="stable")].reset_index(drop=True)
    live, in_order = filled.with_name("disorder.db"), filled.with_name("in-order.db")
    for path in (live, in_order):
        copy_store(filled, path)
    url, start = f"sqlite:///{live}", time.perf_counter()
    middle = len(arriving) // 2 // ROWS_TOGETHER * ROWS_TOGETHER
    found = []
    for part in (arriving[:middle], arriving[middle:]):
        with service(bundle, url, workers=2) as connection:
            found.append(replay(connection, part))
            replay(connection, part.sample(frac=0.1, random_state=1))
            os.killpg(connection.pid, signal.SIGKILL)
    rate = 1.1 * len(arriving) / (time.perf_counter() - start)
    chosen = np.sort(draw.choice(len(arriving), min(SAMPLE, len(arriving)), replace=False))
    expected = _over_what_had_arrived(past, arriving, chosen)
    print(
        f"disorder, {rate:,.0f} rows/s: {compare(pd.concat(found).iloc[chosen], expected, bundle)}"
    )
    source = arriving.sort_values(TIME, kind="stable").drop(columns=LABEL)
    source.to_parquet(filled.with_name("in-order.parquet"))
    paths = [str(filled.with_name("in-order.parquet"))]
    load_windows(open_model(str(bundle)), paths, StoreOptions(f"sqlite:///{in_order}"))
    print(
        "entities whose events differ from a store that was filled in order: "
        f"{_unlike(bundle, live, in_order, arriving)}",
        flush=True,
    )


def copy_store(source: Path, target: Path) -> None:
    """Copy a store in one moment; its file alone lacks what is still in the log."""
    with closing(sqlite3.connect(source)) as db:
        db.execute("VACUUM INTO ?", (str(target),))


def _over_what_had_arrived(
    past: pd.DataFrame, arriving: pd.DataFrame, chosen: Sequence[int]
) -> pd.DataFrame:
    """Return some rows with their batch columns over the past and the rows before them.

    Each has copies of the events of its entities that no other row sees.
    """
    history, rows = [], []
    entities = ["CUSTOMER_ID", "TERMINAL_ID"]
    events = pd.concat([past, arriving], ignore_index=True)
    groups = {name: events.groupby(name).indices for name in entities}
    for number in chosen:
        row = arriving.iloc[[number]]
        at = np.union1d(*(groups[name][row[name].iloc[0]] for name in entities))
        seen = events.iloc[at[at < len(past) + number]]
        seen = seen[seen[TIME] > row[TIME].iloc[0] - pd.Timedelta(days=38)]
        for part, into in ((seen, history), (row, rows)):
            marked = {name: part[name].astype(str) + f"/{number}" for name in (*entities, ID)}
            into.append(part.assign(**marked))
    frames = pd.concat(rows, ignore_index=True), pd.concat(history, ignore_index=True)
    return batch_columns(*frames).set_axis(arriving.index[chosen])


def _unlike(bundle: Path, live: Path, in_order: Path, rows: pd.DataFrame) -> int:
    """Count the entities whose events differ between two stores, apart from labels."""
    inputs = WindowInputs.from_manifest(load_bundle(bundle).manifest)
    assert inputs is not None
    stores = [open_store(StoreOptions(f"sqlite:///{path}"), inputs) for path in (live, in_order)]
    count = 0
    for entity in inputs.definition.entities:
        texts = rows[entity].astype(str).unique().tolist()
        found = [store.histories(entity, texts) for store in stores]
        layout = stores[0].layout(entity)
        columns = [i for i in range(layout.width) if not layout.label or i != 2]
        count += sum(
            sorted(map(tuple, found[0][text][:, columns].tolist()))
            != sorted(map(tuple, found[1][text][:, columns].tolist()))
            for text in texts
        )
    return count


# ---------------------------------------------------------------- cost


def fill(url: str, inputs: WindowInputs, now: int, entities: int) -> None:
    """Put entities with events of the last 30 days straight into a store, past its interface."""
    store = open_store(StoreOptions(url), inputs)
    keys = dict.fromkeys(inputs.definition.keys, "-1")
    numbers = dict.fromkeys(inputs.definition.numbers, 1.0)
    store.load([Event(None, now - age * DAY, keys, numbers) for age in (90, 0)])
    rng = np.random.default_rng(0)
    for entity, history in store._histories.items():
        words = np.zeros((EVENTS_EACH, history.width), np.int64)
        words[:, 0] = np.sort(now - rng.integers(DAY, 30 * DAY, EVENTS_EACH))
        words[:, 1] = rng.integers(1, 1 << 62, EVENTS_EACH)
        words[:, 2:] = rng.integers(1 << 60, 1 << 61, (EVENTS_EACH, history.width - 2))
        if history.numbers:
            words[:, 2] = (rng.random(EVENTS_EACH) * 100).view(np.int64)
        packed, keys = words.tobytes(), partial(store._hasher.key, entity)
        texts = map(str, range(entities))
        _insert(store.backend, entity, packed, history.width * 8, map(keys, texts))


def _insert(backend: Any, entity: str, packed: bytes, width: int, keys: Iterator[bytes]) -> None:
    if isinstance(backend, RedisBackend):
        pipe = backend._client.pipeline(transaction=False)
        for number, key in enumerate(keys):
            pipe.set(b"anomaly-vae:windows:e:" + key, packed)
            if number % 20_000 == 19_999:
                pipe.execute()
        pipe.execute()
        return
    assert isinstance(backend, SqliteBackend)
    with backend._writing() as db:
        (space,) = db.execute("SELECT id FROM spaces").fetchone()
        rows = sorted((row_number(key), space, entity, width, packed) for key in keys)
        db.executemany("INSERT INTO entities VALUES (?, ?, ?, ?, ?)", rows)
    backend._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Latency(NamedTuple):
    """Microseconds of requests with one record each, and processor time of the service for one."""

    median: float
    high: float
    """95th percentile."""
    cpu: float

    @classmethod
    def of(cls, connection: Service, records: Sequence[Any]) -> Latency:
        """Send the records, the first tenth of them to warm up."""
        out, cpu = list[float](), 0.0
        for number, record in enumerate(records):
            if number == len(records) // 10:
                out, cpu = [], connection.cpu_seconds()
            start = time.perf_counter()
            post(connection, "/score", {"records": [record]})
            out.append((time.perf_counter() - start) * 1e6)
        used = (connection.cpu_seconds() - cpu) * 1e6 / len(out)
        return cls(float(np.median(out)), float(np.quantile(out, 0.95)), used)

    def __str__(self) -> str:
        wall = f"median {self.median:.0f} us, 95th percentile {self.high:.0f} us"
        return f"{wall}, processor time {self.cpu:.0f} us"


def _redis() -> str | None:
    """Return the path of the Redis or Valkey server; None if there is none."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start Redis on loopback and yield its URL."""
    port = free_port()
    command = [str(_redis()), "--port", str(port), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(1)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()


class InProcess:
    """An application that is called without HTTP."""

    def __init__(self, bundle: Path, url: str) -> None:
        model = load_model(BundleRef(str(bundle)))
        self._app = create_app(Store([model]), Settings(windows=url))
        self._loop = asyncio.new_event_loop()

    def seconds(self, record: Any) -> tuple[float, float]:
        """Score a record; return the processor time and the time that it took."""
        body = json.dumps({"records": [record]}).encode()
        start, used = time.perf_counter(), time.process_time()
        status = self._loop.run_until_complete(self._post(body))
        taken = time.process_time() - used, time.perf_counter() - start
        assert status == 200
        return taken

    async def _post(self, body: bytes) -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))
        ]  # fmt: skip
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/score", "raw_path": b"/score", "query_string": b"", "root_path": "",
            "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await self._app(scope, receive, send)
        status: int = sent[0]["status"]
        return status


def in_turn(
    bundle: Path, plain: Path, url: str, raw: Sequence[Any], columns: Sequence[Any]
) -> NDArray[np.float64]:
    """Score records with windows and with columns, `TURN` requests of one kind after another.

    A service answers requests of one kind, so that each kind has the caches of the processor to
    itself; the kinds take turns, so that both see the same disturbances.

    Returns:
        The microseconds (N, 2, 2) of N requests to both, each of processor time and of time.
    """
    kinds = (InProcess(bundle, url), raw), (InProcess(plain, url), columns)
    taken: tuple[list[Any], list[Any]] = [], []
    for start in range(0, len(raw), TURN):
        for (app, records), times in zip(kinds, taken, strict=True):
            times += [app.seconds(record) for record in records[start : start + TURN]]
    return np.array(taken).swapaxes(0, 1)[len(raw) // 10 :] * 1e6


def added_table(taken: Mapping[str, NDArray[np.float64]]) -> str:
    """Return a table of what windows add to a request, by store and quantile."""
    headings = [
        "Store", "Quantile", "With windows, us of processor time", "Without", "Added",
        "With windows, us of time", "Without", "Added",
    ]  # fmt: skip
    lines = []
    for name, micros in taken.items():
        for share in QUANTILES:
            ours, theirs = np.quantile(micros, share, axis=0)
            cells = np.stack([ours, theirs, ours - theirs], axis=1).ravel()
            lines.append([name, f"{share:.0%}", *(f"{cell:.0f}" for cell in cells)])
    return markdown_table(headings, lines)


def cost(bundle: Path, plain: Path, rows: pd.DataFrame, folder: Path, options: Options) -> None:
    """Measure what windows add to a request with full stores, and print it."""
    entities, requests = (20_000, 300) if options.short else (ENTITIES, REQUESTS)
    inputs = WindowInputs.from_manifest(load_bundle(bundle).manifest)
    assert inputs is not None
    last = rows.iloc[-requests:].reset_index(drop=True)
    now = int(last[TIME].iloc[0].timestamp() * 1e6)
    draw = np.random.default_rng(1)
    drawn = last[RAW].assign(
        TX_DATETIME=last[TIME].astype(str),
        CUSTOMER_ID=draw.integers(0, entities, requests),
        TERMINAL_ID=draw.integers(0, entities, requests),
    )
    raw = drawn.to_dict("records")
    columns = last[["TX_AMOUNT", *DEFINITION.names]].to_dict("records")
    sent = [{n: None if v != v else v for n, v in record.items()} for record in columns]  # noqa: PLR0124
    with ExitStack() as stack:
        urls = {"SQLite": f"sqlite:///{folder / 'full.db'}"}
        if _redis():
            urls["Redis"] = stack.enter_context(redis_server(folder))
        for url in urls.values():
            fill(url, inputs, now, entities)
        if options.wants("request"):
            taken = {name: in_turn(bundle, plain, url, raw, sent) for name, url in urls.items()}
            print(f"{requests:,} requests of a record, {2 * entities:,} entities, in one process:")
            print(added_table(taken), flush=True)
        if not options.wants("cost"):
            return
        with service(plain, urls["SQLite"]) as connection:
            base = Latency.of(connection, sent)
        print(f"columns sent, no store: {base}", flush=True)
        for name, url in urls.items():
            with service(bundle, url) as connection:
                found = Latency.of(connection, raw)
            print(
                f"{name}, {2 * entities:,} entities of {EVENTS_EACH} events: {found}; added "
                f"{found.median - base.median:.0f} us at the median, {found.cpu - base.cpu:.0f} us "
                f"of processor time; {_size(name, url, folder)}",
                flush=True,
            )


def _size(name: str, url: str, folder: Path) -> str:
    if name == "SQLite":
        return f"{(folder / 'full.db').stat().st_size / 1e6:.0f} MB on disk"
    backend = RedisBackend(url, 5)
    used: int = backend._client.info("memory")["used_memory"]
    return f"{used / 1e6:.0f} MB in memory"


# ---------------------------------------------------------------- the protocol


def run(options: Options) -> None:
    """Run both parts and print their figures."""
    files = [
        options.data_folder("fraud") / f"transactions-2018-0{month}.parquet" for month in (6, 7, 8)
    ]
    months = [pd.read_parquet(file, columns=[*RAW, LABEL]) for file in files]
    rows = pd.concat(months, ignore_index=True).sort_values(TIME, kind="stable", ignore_index=True)
    past, august = (part for _, part in rows.groupby(rows[TIME].dt.month == 8))
    past, august = past.reset_index(drop=True), august.reset_index(drop=True)
    if options.short:
        august = august[:SHORT_ROWS]
    print(environment(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = train(past, folder)
        if options.wants("cost") or options.wants("request"):
            plain = without_windows(bundle, folder)
            last = batch_columns(august[-REQUESTS:], pd.concat([past, august[:-REQUESTS]]))
            cost(bundle, plain, last, folder, options)
        if options.wants("filled") or options.wants("disorder"):
            filled = fill_from_files(bundle, files[:2], folder / "filled.db")
        if options.wants("disorder"):
            disorder(bundle, filled, past, august[:DISORDER_ROWS])
        if options.wants("filled"):
            equality("filled", f"sqlite:///{filled}", bundle, batch_columns(august, past))
        if options.wants("empty"):
            url = f"sqlite:///{folder / 'empty.db'}"
            equality("empty", url, bundle, batch_columns(august[:DISORDER_ROWS]))
        if options.wants("redis") and _redis():
            with redis_server(folder) as url:
                equality("Redis", url, bundle, batch_columns(august[:DISORDER_ROWS]))


def fill_from_files(bundle: Path, history: Sequence[Path], file: Path) -> Path:
    """Fill a store from files, print how long it took, and return the store."""
    start = time.perf_counter()
    options = StoreOptions(f"sqlite:///{file}")
    loaded = load_windows(open_model(str(bundle)), [str(path) for path in history], options)
    rate = loaded["rows"] / (time.perf_counter() - start)
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    print(f"load: {rate:,.0f} rows/s, {file.stat().st_size / 1e6:.0f} MB, {loaded}", flush=True)
    return file


def equality(name: str, url: str, bundle: Path, expected: pd.DataFrame) -> None:
    """Replay rows to a store, and print how the answers compare with the batch columns."""
    together, alone = expected[:-ROWS_ALONE], expected[-ROWS_ALONE:]
    with service(bundle, url, workers=2) as connection:
        found, rates = [], []
        for part, send in ((together, replay), (alone, replay_alone)):
            start, used = time.perf_counter(), connection.cpu_seconds()
            found.append(send(connection, part))
            used = (connection.cpu_seconds() - used) * 1e6 / max(len(part), 1)
            rates.append(f"{len(part) / (time.perf_counter() - start):,.0f} rows/s, {used:.0f} us")
        memory = connection.memory()
    print(
        f"{name} store, {ROWS_TOGETHER} rows together: {rates[0]} of processor time a row; one by "
        f"one: {rates[1]}; {memory:.0f} MB of memory: "
        f"{compare(pd.concat(found), expected, bundle)}",
        flush=True,
    )
