"""Measure the CPU time of scoring a row of 30 columns, by model size and against PyOD's networks.

The models are the presets, variants of the default that differ in one argument, and PyOD's VAE and
AutoEncoder. Seven rounds go over all models in turn; the table has medians over the rounds, in
CPU-microseconds per row. The total is the time from a matrix of 6,000 rows to their scores. For our
models, the time inside the scoring graph is measured as well, including the KL term: for the same
batch, for the same batch with a twentieth of its values missing, row by row, and with explanations.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from anomaly_vae.scoring.scorer import Scorer
from benchmarks.common import Ledger, Options, cpu_seconds, environment, markdown_table
from benchmarks.fitting import PEERS
from benchmarks.sizes import DEFAULT_COLUMNS, Matrix, RowSimulator
from benchmarks.tabular import Method, Model, Ours, ours, peer


def after_one_epoch(name: str, **overrides: Any) -> Method:
    """Return our estimator trained for one epoch; scoring time depends only on its size."""
    return ours(name, epochs=1, **overrides)


METHODS = (
    after_one_epoch("preset: fast", preset="fast"),
    after_one_epoch("members: 1", members=1),
    after_one_epoch("exemplars: 0", exemplars=0),
    after_one_epoch("exemplars: 1024", exemplars=1024),
    after_one_epoch("exemplars: 2048", exemplars=2048),
    after_one_epoch("components: 256", components=256),
    after_one_epoch("depth: 1", depth=1),
    after_one_epoch("VAE (ours)"),
    after_one_epoch("members: 5", members=5),
    after_one_epoch("preset: best", preset="best"),
    *(
        peer(name, lambda seed, peer_type=peer_type: peer_type(epoch_num=1, random_state=seed))
        for name, peer_type in PEERS.items()
    ),
)
TRAIN_ROWS, BATCH_ROWS, SINGLE_ROWS = 3_000, 6_000, 300
"""Numbers of rows to train on, to score in one batch, and to score one by one."""
ROUNDS = 7
MISSING_SHARE = 0.05
"""Fraction of the values that are missing."""
COSTS = ("total_us", "graph_us", "graph_missing_us", "graph_single_us", "graph_explained_us")
"""Measured costs, in CPU-microseconds per row."""


def run(options: Options) -> None:
    """Run the missing measurements and write the table."""
    ledger = Ledger(options.result_path("costs.csv"), ("method", "round"))
    simulator = RowSimulator(DEFAULT_COLUMNS, 0)
    train, rows = (simulator.normal(n, np.random.default_rng(0)) for n in (TRAIN_ROWS, BATCH_ROWS))

    @cache
    def fitted(method: Method) -> Model:
        model = method.make(0)
        model.fit(train)
        return model

    for round_number in range(1 if options.short else ROUNDS):
        for method in METHODS:
            if options.wants(method.name) and (method.name, round_number) not in ledger:
                ledger.add((method.name, round_number), measure_costs(fitted(method), rows))
    text = f"{report(ledger.rows)}\n{environment()}"
    options.result_path("costs.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def measure_costs(model: Model, rows: Matrix) -> dict[str, float]:
    """Measure the CPU-microseconds per row of scoring a batch."""
    model.score(rows)
    _, seconds = cpu_seconds(lambda: model.score(rows))
    graph = _graph_costs(model.detector.bundle_.scorer, rows) if isinstance(model, Ours) else {}
    return {"total_us": 1e6 * seconds / len(rows), **graph}


def _graph_costs(scorer: Scorer, rows: Matrix) -> dict[str, float]:
    """Measure the CPU-microseconds per row in the scoring graph; see `COSTS`."""
    columns = dict(zip(scorer.schema.names, rows.T.tolist(), strict=True))
    x = scorer.encoding.encode(scorer.schema.from_columns(columns, len(rows)))
    gaps = np.random.default_rng(0).random(x.shape) < MISSING_SHARE
    incomplete = np.where(gaps, np.float32(np.nan), x)
    single = x[:SINGLE_ROWS]
    runs = {
        "graph_us": (x, lambda: scorer.scores_and_terms(x)),
        "graph_missing_us": (x, lambda: scorer.scores_and_terms(incomplete)),
        "graph_single_us": (single, lambda: [scorer.scores_and_terms(row[None]) for row in single]),
        "graph_explained_us": (x, lambda: scorer.explain_encoded(x)),
    }
    return {
        name: 1e6 * cpu_seconds(score)[1] / len(scored) for name, (scored, score) in runs.items()
    }


HEADINGS = (
    "model",
    "total, µs per row",
    "graph, µs per row",
    "graph, missing values, µs per row",
    "graph, one row at a time, µs",
    "graph, explained, µs per row",
    "million rows per CPU-second",
    "time relative to PyOD's VAE",
)


def report(rows: pd.DataFrame) -> str:
    """Tabulate medians over the rounds; rows per CPU-second derive from the total cost."""
    medians = rows.groupby("method", sort=False)[list(COSTS)].median()
    totals = rows.pivot(index="round", columns="method", values="total_us")
    slowdown = totals.rdiv(totals.get("PyOD VAE", np.nan), axis=0).median()
    lines = [
        (
            str(name),
            *(
                _format_or_blank(row[cost], digits)
                for cost, digits in zip(COSTS, (2, 2, 2, 0, 2), strict=True)
            ),
            f"{1 / row.total_us:.2f}",
            _format_or_blank(slowdown[name], 1),
        )
        for name, row in medians.iterrows()
    ]
    return markdown_table(HEADINGS, lines)


def _format_or_blank(value: float, digits: int) -> str:
    """Format a number; NaN becomes an empty cell."""
    return "" if np.isnan(value) else f"{value:.{digits}f}"
