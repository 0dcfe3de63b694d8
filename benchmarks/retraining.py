"""A cold start and a warm one: simulated transactions, first the champion's half, then new rows.

No row is in both halves, so validation rows are new to the champion, too. Frauds of the test split
are few: average precisions that are alike to a few points say no more than that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import validate_config
from anomaly_vae.data.splitting import TEST, TRAIN, VALIDATION
from anomaly_vae.simulation.transactions import simulate_transactions
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import Options, cpu_seconds, environment, markdown
from pipelines.datasets.loading import load_dataset

ROWS = 24_000
ROLES = {"label": "TX_FRAUD", "id": "TRANSACTION_ID", "time": "TX_DATETIME"}
LEFT_OUT = {*ROLES.values(), "TX_FRAUD_SCENARIO", "CUSTOMER_ID", "TERMINAL_ID"}
WARM: dict[str, Any] = {"kl_warmup": 0.0}
FITS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cold", {}),
    ("cold", {"epochs": 4}),
    ("warm", {"epochs": 4, **WARM}),
    ("warm", {"epochs": 10, **WARM}),
)


def run(options: Options) -> None:
    """Print epochs, seconds, the ELBO after the first and the last of them, and what is found."""
    table = simulate_transactions(ROWS, seed=0)
    champion, *_ = fitted(table.slice(0, ROWS // 2), {})
    lines = list(_lines(table.slice(ROWS // 2), champion, options.seeds))
    heads = ["start", "epochs", "CPU s", "first ELBO", "last ELBO", "average precision"]
    print(markdown(heads, lines))
    print(f"\n{environment()}")


def _lines(table: pa.Table, champion: Bundle, seeds: int) -> Iterator[list[str]]:
    for start, keys in FITS:
        begun = champion if start == "warm" else None
        each = [fitted(table, {**keys, "seed": seed}, begun)[1:] for seed in range(seeds)]
        epochs, seconds, first, last, found = np.mean(each, axis=0)
        told = [f"{seconds:.1f}", f"{first:.2f}", f"{last:.2f}", f"{found:.3f}"]
        yield [start, f"{epochs:.0f}", *told]


def fitted(
    table: pa.Table, training: dict[str, Any], start: Bundle | None = None
) -> tuple[Bundle, int, float, float, float, float]:
    """The model, its epochs and seconds, the first and last ELBO, and its average precision."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.parquet"
        pq.write_table(table, path)
        features = [name for name in table.column_names if name not in LEFT_OUT]
        data = {"path": str(path), "features": features, **ROLES}
        config = validate_config({"name": "fraud", "data": data, "training": training})
        rows = load_dataset(config.data)
    parts = rows.part(TRAIN), rows.part(VALIDATION)
    prepared = prepare(config, rows.schema, *parts, start)
    made, seconds = cpu_seconds(lambda: fit_bundle(config, prepared, {}, start=start))
    scores = made.bundle.scorer.score(rows.part(TEST))
    precision = average_precision_score(rows.rows.anomaly[rows.assignment.rows(TEST)], scores)
    epochs = made.history.epochs
    first, last = epochs[0].validation_elbo, made.history.best.validation_elbo
    return made.bundle, len(epochs), seconds, first, last, float(precision)
