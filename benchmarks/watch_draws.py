"""Count the guarantee status of July for many draws of payments, without the service.

July is the month that the monitor is developed on: models are trained on the first half of June and
calibrated on its second half. The status is assessed as often as in `watch`, whose streams, changes
and measurements these are; only HTTP is left out.

Draws of few customers, whose payments train, calibrate and are replayed, are measured with columns
that name customers and terminals, without them, and with customers as `data.group`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import Ledger, Options, environment, markdown_table
from benchmarks.watch import (
    ALARMS,
    CHANGE_RATES,
    CUSTOMER,
    DAILY_ROWS,
    JULY,
    TERMINAL,
    Counted,
    Replay,
    changes,
    load_month,
    measure_delay,
    measure_statuses,
    thinned,
    trained,
    written,
)

DRAWS, STREAMS, THINNED = 6, 7, 8
"""Number of draws, of streams with a change for each draw, and of random parts of all payments."""
GROUPED_ALPHA = 0.05
"""Alpha of models whose calibration has one row of each customer."""
BUSY, BUSY_SHARE = 100, 0.85
"""Number of customers with most of the payments, and their share of them."""
QUIET = tuple(Replay(*pair) for pair in ((DAILY_ROWS, 250), (2_000, 50), (500, 50), (100, 10)))


@dataclass(frozen=True)
class Draw:
    """Payments of randomly chosen entities."""

    column: str
    entities: int
    seed: int
    design: str = "entities"
    """``entities``; ``nothing``: no column names them; ``group``: customers are `data.group`."""
    busy: bool = False
    """Whether `BUSY` customers have `BUSY_SHARE` of the payments; the others are of anyone."""

    @property
    def title(self) -> str:
        """Name of the population."""
        name = f"{self.entities} {self.column.removesuffix('_ID').lower()}s"
        return f"{name} with {BUSY_SHARE:.0%}" if self.busy else name

    @property
    def folder(self) -> str:
        """Name of the folder of the model."""
        return f"watch-draw-{self.title}-{self.design}-{self.seed}".replace(" ", "-")

    def of(self, table: pd.DataFrame, everyone: Any) -> pd.DataFrame:
        """Return the payments of the same entities in any month."""
        rng = np.random.default_rng(1_000 + self.seed)
        chosen = rng.permutation(everyone)[: self.entities]
        inside = table[self.column].isin(chosen).to_numpy()
        if self.busy:
            share = inside.sum() / BUSY_SHARE * (1 - BUSY_SHARE) / (~inside).sum()
            inside = inside | (rng.random(len(table)) < share)
        table = table[inside].reset_index(drop=True)
        return table.drop(columns=[CUSTOMER, TERMINAL]) if self.design == "nothing" else table


def draws() -> Iterator[Draw]:
    """Yield the draws to measure."""
    for seed in range(DRAWS):
        yield Draw(CUSTOMER, 500, seed)
        yield Draw(CUSTOMER, BUSY, seed, busy=True)
        if seed % 2:
            yield Draw(TERMINAL, 300, seed)
            yield Draw(CUSTOMER, 500, seed, "nothing")
        if seed % 4 == 1:
            yield Draw(CUSTOMER, 2_000, seed, "group")


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    month = load_month(options, JULY)
    quiet = Ledger(
        options.result_path("watch-draws-all.csv"), ("daily_rows", "request_rows", "seed")
    )
    delays = Ledger(
        options.result_path("watch-draws-changes.csv"), ("change", "daily_rows", "seed")
    )
    few = Ledger(options.result_path("watch-draws.csv"), ("entities", "design", "seed"))
    _run_all(quiet, delays, options, month)
    for draw in draws():
        if options.short and draw.seed:
            break
        if options.wants(draw.folder) and (draw.title, draw.design, draw.seed) not in few:
            few.add((draw.title, draw.design, draw.seed), _measure_draw(options, month, draw))
    text = "\n".join((report(quiet.rows, delays.rows, few.rows), environment()))
    options.result_path("watch-draws.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _run_all(quiet: Ledger, delays: Ledger, options: Options, month: pd.DataFrame) -> None:
    folder = options.result_path("watch-model-july").resolve()
    data = JULY.file(options, JULY.trained).resolve()
    bundle, put_in = trained(folder, data, JULY, options.short), changes(month)
    for plan, seed in product(QUIET, range(1 if options.short else THINNED)):
        key = (plan.daily_rows, plan.request_rows, seed)
        if key not in quiet and (plan.daily_rows < DAILY_ROWS or not seed):
            table = thinned(month, plan.daily_rows, seed)
            quiet.add(key, measure_statuses(Counted(bundle), table, plan))
    hardest = (list(put_in)[1], 2_000)
    for name, rate, seed in product(put_in, CHANGE_RATES, range(THINNED * STREAMS)):
        few = seed >= (1 if options.short else STREAMS)
        if (name, rate, seed) in delays or (few and (options.short or (name, rate) != hardest)):
            continue
        table = thinned(month, rate, seed)
        delays.add(
            (name, rate, seed),
            measure_delay(Counted(bundle), table, put_in[name], rate, seed % STREAMS),
        )


def _measure_draw(options: Options, month: pd.DataFrame, draw: Draw) -> dict[str, float]:
    folder, before = options.result_path(draw.folder).resolve(), JULY.file(options, JULY.trained)
    june = pd.read_parquet(before)
    everyone = np.unique(june[draw.column])
    data = written(draw.of(june, everyone), folder / before.name)
    alpha = GROUPED_ALPHA if draw.design == "group" else None
    bundle = trained(folder, data, JULY, True, alpha)
    table = draw.of(month, everyone)
    rate = len(table) // 31
    found = measure_statuses(Counted(bundle), table, Replay(rate, 50))
    move = list(changes(month).values())[1]
    hours = [
        measure_delay(Counted(bundle), table, move, rate, seed)["hours"] for seed in range(STREAMS)
    ]
    return {"daily_rows": rate, **found, "hours": float(np.median(hours))}


def report(quiet: pd.DataFrame, delays: pd.DataFrame, few: pd.DataFrame) -> str:
    """Tabulate all payments, the changes, and the draws of few entities."""
    shares = (*ALARMS, "unknown", "holding_later", "fpr")
    by_rate = [
        [f"{key:,}", str(len(rows)), *(_range(rows[name]) for name in shares)]
        for key, rows in quiet.groupby("daily_rows", sort=False)
    ]
    changed = [
        [str(change), f"{rate:,}", f"{rows['hours'].quantile(0.5, 'higher'):.1f}",
         f"{(rows['hours'] <= 24).sum()} of {len(rows)}"]
        for (change, rate), rows in delays.groupby(["change", "daily_rows"], sort=False)
    ]  # fmt: skip
    drawn = [
        [*map(str, key), f"{rows['daily_rows'].mean():.0f}",
         *(_range(rows[name]) for name in shares), f"{rows['hours'].median():.1f}"]
        for key, rows in few.groupby(["entities", "design"], sort=False)
    ]  # fmt: skip
    heads = (*ALARMS, "unknown", "holding from day 2 on", "normal rows flagged")
    return "\n".join(
        (
            markdown_table(("rows a day", "streams", *heads), by_rate),
            markdown_table(("change", "rows a day", "hours, median", "within a day"), changed),
            markdown_table(("entities", "design", "rows a day", *heads, "hours of move"), drawn),
        )
    )


def _range(values: pd.Series[float]) -> str:
    low, high = values.min(), values.max()
    return f"{low:.2%}" if low == high else f"{low:.2%} to {high:.2%}"
