"""What a score costs: the scoring graph over rows of 30 columns, by the size of the model.

The presets, and single changes to the default. In turn, seven rounds; medians of the
CPU-microseconds of a row, among 6,000 of them and alone. Reading and encoding come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from anomaly_vae import TabularVAEDetector
from anomaly_vae.scoring import Scorer
from benchmarks.common import Ledger, Options, cpu_seconds, environment, markdown
from benchmarks.sizes import USUAL_COLUMNS, Matrix, World

SIZES: Mapping[str, Mapping[str, Any]] = {
    "preset: fast": {"preset": "fast"},
    "members: 1": {"members": 1},
    "components: 128": {"components": 128},
    "depth: 1": {"depth": 1},
    "VAE (ours)": {},
    "members: 5": {"members": 5},
    "preset: best": {"preset": "best"},
}
TRAIN, ROWS, ALONE = 3_000, 6_000, 300
"""Rows to learn from, to score at once, and one after the other."""
ROUNDS = 7


def run(options: Options) -> None:
    """Measure what is not yet measured, and write the table."""
    found = Ledger(options.result("costs.csv"), ("method", "round"))
    world = World(USUAL_COLUMNS, 0)
    train, rows = (world.normal(n, np.random.default_rng(0)) for n in (TRAIN, ROWS))

    @cache
    def scorer(name: str) -> Scorer:
        return TabularVAEDetector(epochs=1, **SIZES[name]).fit(train).bundle_.scorer

    for turn in range(1 if options.short else ROUNDS):
        for name in filter(options.wants, SIZES):
            if (name, turn) not in found:
                found.add((name, turn), price(scorer(name), rows))
    text = f"{report(found.rows)}\n{environment()}"
    options.result("costs.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def price(scorer: Scorer, rows: Matrix) -> dict[str, float]:
    """CPU-microseconds of a row."""
    columns = dict(zip(scorer.schema.names, rows.T.tolist(), strict=True))
    x = scorer.encoding.encode(scorer.schema.from_columns(columns, len(rows)))
    scorer.score_encoded(x)
    _, together = cpu_seconds(lambda: scorer.score_encoded(x))
    _, alone = cpu_seconds(lambda: [scorer.score_encoded(row[None]) for row in x[:ALONE]])
    return {"together": 1e6 * together / len(x), "alone": 1e6 * alone / ALONE}


def report(rows: pd.DataFrame) -> str:
    """Medians over the rounds; rows per CPU-second from the first of them."""
    medians = rows.groupby("method", sort=False)[["together", "alone"]].median()
    lines = [
        (str(name), f"{row.together:.2f}", f"{row.alone:.0f}", f"{1 / row.together:.2f}")
        for name, row in medians.iterrows()
    ]
    return markdown(("model", "among 6,000, µs", "alone, µs", "million rows per CPU-second"), lines)
