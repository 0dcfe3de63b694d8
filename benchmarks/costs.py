"""What a score costs: rows of 30 columns, by the size of the model, and beside PyOD's networks.

The presets, single changes to the default, and PyOD's VAE and AutoEncoder. In turn, seven rounds;
medians of the CPU-microseconds of a row: what a caller waits for, from a matrix of 6,000 rows to
their scores, and, of ours, what the scoring graph has of it, with these rows and with one alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from anomaly_vae.scoring.scorer import Scorer
from benchmarks.common import Ledger, Options, cpu_seconds, environment, markdown
from benchmarks.fitting import PEERS
from benchmarks.sizes import USUAL_COLUMNS, Matrix, World
from benchmarks.tabular import Method, Model, Ours, ours, peer


def _short(name: str, **over: Any) -> Method:
    """Ours after one epoch: its size is what counts."""
    return ours(name, epochs=1, **over)


METHODS = (
    _short("preset: fast", preset="fast"),
    _short("members: 1", members=1),
    _short("components: 128", components=128),
    _short("depth: 1", depth=1),
    _short("VAE (ours)"),
    _short("members: 5", members=5),
    _short("preset: best", preset="best"),
    *(peer(n, lambda seed, of=of: of(epoch_num=1, random_state=seed)) for n, of in PEERS.items()),
)
TRAIN, ROWS, ALONE = 3_000, 6_000, 300
"""Rows to learn from, to score at once, and one after the other."""
ROUNDS = 7
PRICES = ("whole", "together", "alone")


def run(options: Options) -> None:
    """Measure what is not yet measured, and write the table."""
    found = Ledger(options.result("costs.csv"), ("method", "round"))
    world = World(USUAL_COLUMNS, 0)
    train, rows = (world.normal(n, np.random.default_rng(0)) for n in (TRAIN, ROWS))

    @cache
    def fitted(method: Method) -> Model:
        model = method.make(0)
        model.fit(train)
        return model

    for turn in range(1 if options.short else ROUNDS):
        for method in METHODS:
            if options.wants(method.name) and (method.name, turn) not in found:
                found.add((method.name, turn), price(fitted(method), rows))
    text = f"{report(found.rows)}\n{environment()}"
    options.result("costs.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def price(model: Model, rows: Matrix) -> dict[str, float]:
    """CPU-microseconds of a row."""
    model.score(rows)
    _, whole = cpu_seconds(lambda: model.score(rows))
    graph = _of_graph(model.detector.bundle_.scorer, rows) if isinstance(model, Ours) else {}
    return {"whole": 1e6 * whole / len(rows), **graph}


def _of_graph(scorer: Scorer, rows: Matrix) -> dict[str, float]:
    """What of it is the scoring graph's, and what one row alone costs there."""
    columns = dict(zip(scorer.schema.names, rows.T.tolist(), strict=True))
    x = scorer.encoding.encode(scorer.schema.from_columns(columns, len(rows)))
    _, together = cpu_seconds(lambda: scorer.score_encoded(x))
    _, alone = cpu_seconds(lambda: [scorer.score_encoded(row[None]) for row in x[:ALONE]])
    return {"together": 1e6 * together / len(x), "alone": 1e6 * alone / ALONE}


HEADS = (
    "model",
    "whole, µs",
    "its graph, µs",
    "a row alone, µs",
    "million rows per CPU-second",
    "times PyOD's VAE",
)


def report(rows: pd.DataFrame) -> str:
    """Medians over the rounds; rows per CPU-second from the first of them."""
    medians = rows.groupby("method", sort=False)[list(PRICES)].median()
    whole = rows.pivot(index="round", columns="method", values="whole")
    times = whole.rdiv(whole.get("PyOD VAE", np.nan), axis=0).median()
    lines = [
        (
            str(name),
            *(_shown(row[price], digits) for price, digits in zip(PRICES, (2, 2, 0), strict=True)),
            f"{1 / row.whole:.2f}",
            _shown(times[name], 1),
        )
        for name, row in medians.iterrows()
    ]
    return markdown(HEADS, lines)


def _shown(value: float, digits: int) -> str:
    """Nothing where there is none."""
    return "" if np.isnan(value) else f"{value:.{digits}f}"
