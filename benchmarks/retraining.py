"""Compare cold and warm starts of training on simulated transactions.

The champion is trained on the first half of the rows; the new models are trained on the second
half, from scratch (cold) or from the champion's weights (warm). No row is in both halves, so the
validation rows are new to the champion as well. The test split has few frauds, so differences of a
few points of average precision are not significant.
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
from benchmarks.common import Options, cpu_seconds, environment, markdown_table
from pipelines.datasets.loading import load_dataset

ROWS = 24_000
"""Number of simulated transactions, in both halves together."""
ROLES = {"label": "TX_FRAUD", "id": "TRANSACTION_ID", "time": "TX_DATETIME"}
EXCLUDED_COLUMNS = {*ROLES.values(), "TX_FRAUD_SCENARIO", "CUSTOMER_ID", "TERMINAL_ID"}
NO_KL_WARMUP: dict[str, Any] = {"kl_warmup": 0.0}
FITS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cold", {}),
    ("cold", {"epochs": 4}),
    ("warm", {"epochs": 4, **NO_KL_WARMUP}),
    ("warm", {"epochs": 10, **NO_KL_WARMUP}),
)
"""Kind of start and training settings of each fit."""


def run(options: Options) -> None:
    """Print the epochs, CPU-seconds, first and last ELBO and average precision of each fit."""
    table = simulate_transactions(ROWS, seed=0)
    champion, *_ = fit_and_test(table.slice(0, ROWS // 2), {})
    lines = list(_table_rows(table.slice(ROWS // 2), champion, options.seeds))
    headings = ["start", "epochs", "CPU s", "first ELBO", "last ELBO", "average precision"]
    print(markdown_table(headings, lines))
    print(f"\n{environment()}")


def _table_rows(table: pa.Table, champion: Bundle, seeds: int) -> Iterator[list[str]]:
    for start, keys in FITS:
        initial = champion if start == "warm" else None
        fits = [fit_and_test(table, {**keys, "seed": seed}, initial)[1:] for seed in range(seeds)]
        epochs, seconds, first, last, precision = np.mean(fits, axis=0)
        cells = [f"{seconds:.1f}", f"{first:.2f}", f"{last:.2f}", f"{precision:.3f}"]
        yield [start, f"{epochs:.0f}", *cells]


def fit_and_test(
    table: pa.Table, training: dict[str, Any], start: Bundle | None = None
) -> tuple[Bundle, int, float, float, float, float]:
    """Train a model and test it.

    Returns:
        The model, its number of epochs, CPU-seconds, validation ELBO after the first and the best
        epoch (nats per row), and average precision on the test split.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(table, path)
        features = [name for name in table.column_names if name not in EXCLUDED_COLUMNS]
        data = {"path": str(path), "features": features, **ROLES}
        config = validate_config({"name": "fraud", "data": data, "training": training})
        rows = load_dataset(config.data)
    parts = rows.part(TRAIN), rows.part(VALIDATION)
    prepared = prepare(config, rows.schema, *parts, start)
    result, seconds = cpu_seconds(lambda: fit_bundle(config, prepared, {}, start=start))
    scores = result.bundle.scorer.score(rows.part(TEST))
    precision = average_precision_score(rows.rows.anomaly[rows.assignment.rows(TEST)], scores)
    epochs = result.history.epochs
    first, last = epochs[0].validation_elbo, result.history.best.validation_elbo
    return result.bundle, len(epochs), seconds, first, last, float(precision)
