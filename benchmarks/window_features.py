"""Measure entity windows: what they add to detection, and what computing them offline costs.

Detection: the transactions of the Fraud Detection Handbook and our simulated ones, with raw columns
alone, with 24 window features, and with the data's ready-made windows, which
include the row itself. The Handbook's model trains on the normal rows of the seven days from
2018-07-25 and is tested on the seven days from 2018-08-08; events are known from June on. On
simulated rows the last fifth is the test, and training begins after 38 days, when windows are full.

Cost: CPU-seconds and peak memory for random events of a million entities, in one thread.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_vae.config import Config, validate_config
from anomaly_vae.config.windows import EntityWindows, Risk
from anomaly_vae.data.splitting import TEST, TRAIN, VALIDATION
from anomaly_vae.features import WindowDefinition
from anomaly_vae.features.events import EventReader
from anomaly_vae.features.offline import OfflineWindows
from anomaly_vae.simulation import simulate_transactions
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import Options, environment, markdown_table
from benchmarks.handbook import BASE_COLUMNS, WINDOWS
from pipelines.datasets.loading import load_dataset

MEASURED: dict[str, Any] = {
    "CUSTOMER_ID": {
        "over": ["1h", "1d", "7d", "30d"],
        "count": True,
        "of": {"TX_AMOUNT": ["mean", "max"]},
        "distinct": ["TERMINAL_ID"],
        "since_last": True,
    },
    "TERMINAL_ID": {
        "over": ["1d", "7d", "30d"],
        "count": True,
        "risk": {"label": "TX_FRAUD", "delay": "7d"},
    },
}
"""Windows whose worth is measured."""
MONTHS = [f"transactions-2018-0{month}.parquet" for month in (6, 7, 8)]
HANDBOOK_SPLITS = {
    "train": ["2018-07-25", "2018-08-01"],
    "calibration": ["2018-08-01", "2018-08-08"],
    "test": ["2018-08-08", "2018-08-15"],
}
SIMULATED_SPLITS = {
    "train": ["2024-03-28", "2024-04-08"],
    "calibration": ["2024-04-08", "2024-04-10"],
    "test": ["2024-04-10", "2024-04-22"],
}
RAW = ("TX_AMOUNT", "TX_DURING_WEEKEND", "TX_DURING_NIGHT")
READY = (*BASE_COLUMNS, *(f"TERMINAL_ID_RISK_{window}" for window in WINDOWS))
SPAN_DAYS, ENTITIES_PER_SHOP = 90, 50


def run(options: Options) -> None:
    """Print the tables; the short form has fewer rows, epochs and seeds."""
    print(f"{environment()}\n")
    rows = 100_000 if options.short else 1_000_000
    print(_cost_table([rows] if options.short else [rows, 10 * rows]))
    with tempfile.TemporaryDirectory() as folder:
        simulated = Path(folder) / "simulated.parquet"
        pq.write_table(
            simulate_transactions(50_000 if options.short else 100_000, seed=0), simulated
        )
        handbook = [str(options.data / "fraud" / name) for name in MONTHS]
        lines = [
            *_detection("simulated", [str(simulated)], SIMULATED_SPLITS, options),
            *_detection("Handbook", handbook, HANDBOOK_SPLITS, options),
        ]
    print(markdown_table(("data", "columns", "AUROC", "average precision"), lines))


def _detection(
    name: str, paths: list[str], splits: dict[str, Any], options: Options
) -> Iterator[tuple[str, ...]]:
    variants: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "raw": (RAW, {}),
        "raw and windows": (RAW, MEASURED),
        "ready-made": (READY, {}),
    }
    for variant, (features, definition) in variants.items():
        data = {"path": paths, "features": features, "windows": definition, "splits": splits}
        data |= {"label": "TX_FRAUD", "id": "TRANSACTION_ID", "time": "TX_DATETIME"}
        training = {"epochs": 20} if options.short else {}
        config = validate_config({"name": "windows", "data": data, "training": training})
        figures = np.array([_figures(config, seed) for seed in range(options.seeds)])
        yield (name, variant, *(f"{f.mean():.3f} ± {f.std():.3f}" for f in figures.T))


def _figures(config: Config, seed: int) -> tuple[float, float]:
    """Return the AUROC and the average precision on the test rows."""
    config = config.model_copy(
        update={"training": config.training.model_copy(update={"seed": seed})}
    )
    data = load_dataset(config.data)
    prepared = prepare(config, data.schema, data.part(TRAIN), data.part(VALIDATION))
    bundle = fit_bundle(config, prepared, data.summary()).bundle
    score, anomaly = (
        bundle.scorer.score(data.part(TEST)),
        data.rows.anomaly[data.assignment.rows(TEST)],
    )
    return float(roc_auc_score(anomaly, score)), float(average_precision_score(anomaly, score))


def _cost_table(sizes: list[int]) -> str:
    shop = EntityWindows(over=("1d", "7d", "30d"), count=True, risk=Risk(label="fraud", delay="7d"))
    card = EntityWindows(
        over=("1h", "1d", "7d", "30d"),
        count=True,
        of={"amount": ("mean", "std", "max")},
        distinct=("shop",),
        since_last=True,
    )
    definition = WindowDefinition({"card": card, "shop": shop})
    lines = [(f"{rows:,}", str(len(definition.names)), *_cost(definition, rows)) for rows in sizes]
    return markdown_table(("rows", "features", "CPU-s", "s", "peak memory, MB"), lines)


def _cost(definition: WindowDefinition, rows: int) -> tuple[str, ...]:
    """Compute all features of random events; return the CPU-seconds, seconds and peak memory."""
    reader = EventReader(definition, "at", "id", "epoch_s", positive=True)
    rng, cards = np.random.default_rng(0), rows // 10
    cpu, wall = time.process_time(), time.perf_counter()
    with OfflineWindows(reader) as windows:
        for start in range(0, rows, 65_536):
            numbers = np.arange(start, min(start + 65_536, rows))
            at = np.sort(rng.random(len(numbers)) * 65_536 + start) / rows * SPAN_DAYS * 86_400
            columns = {
                "id": numbers,
                "at": at,
                "card": rng.integers(cards, size=len(numbers)),
                "shop": rng.integers(max(cards // ENTITIES_PER_SHOP, 1), size=len(numbers)),
                "amount": rng.lognormal(4, 1, size=len(numbers)),
                "fraud": rng.random(len(numbers)) < 0.01,
            }
            windows.add(reader.read(pa.table(columns)), numbers)
        features = windows.compute()
        for start in range(0, rows, 65_536):
            features.read(np.arange(start, min(start + 65_536, rows)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{time.process_time() - cpu:.0f}",
        f"{time.perf_counter() - wall:.0f}",
        f"{peak:,.0f}",
    )
