"""Measure the distance of calibration rows from test rows that are like them and that are not.

The rule ``exchangeable`` of promotions refuses a Kolmogorov-Smirnov distance above
``promotion.ks_distance`` with a p-value below ``promotion.ks_p_value``. Healthy models are those of
consecutive spans of 28, 7 and 7 days of transactions, ending on several days, and calibrations on a
single one of the seven days. The others have changes in their test rows.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import CALIBRATION, DAY, TEST, TRAIN, VALIDATION
from anomaly_vae.evaluation.p_values import Exchangeability
from anomaly_vae.scoring.scorer import Scorer
from anomaly_vae.simulation.transactions import simulate_transactions
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import Options, environment, markdown_table
from benchmarks.handbook import BASE_COLUMNS, DATA_FILES
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.loading import load_dataset
from pipelines.datasets.tables import SpanContext

ENDS = tuple(dt.datetime(2018, 8, day, tzinfo=dt.UTC) for day in (15, 22, 29))
"""Ends of the test spans."""
ROWS = (2_000, 5_000, 20_000, 60_000)
"""Numbers of simulated transactions; there is one customer per 126."""
AMOUNT, COUNT = "TX_AMOUNT", "TERMINAL_ID_NB_TX_30DAY_WINDOW"
SPANS = {"train": "28d", "calibration": "7d", "test": "7d"}
IGNORED = ("CUSTOMER_ID", "TERMINAL_ID", "TX_FRAUD_SCENARIO", "TX_TIME_SECONDS", "TX_TIME_DAYS")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Test rows of one kind compared with calibration rows."""

    name: str
    calibration: int
    test: int
    found: Exchangeability


def run(options: Options) -> None:
    """Print the range of distances and p-values of each kind of test rows."""
    found = [one for seed in range(options.seeds) for one in measure(options, seed)]
    lines = []
    for name in dict.fromkeys(one.name for one in found):
        same = [one for one in found if one.name == name]
        distances = [one.found.distance for one in same]
        lines.append(
            [
                name,
                f"{np.mean([one.calibration for one in same]):,.0f}",
                f"{np.mean([one.test for one in same]):,.0f}",
                f"{min(distances):.4f} to {max(distances):.4f}",
                f"{min(one.found.p_value for one in same):.1e}",
                f"{sum(one.found.refuted for one in same)} of {len(same)}",
            ]
        )
    header = ["test rows", "calibration", "test", "distance", "lowest p-value", "refused"]
    print(markdown_table(header, lines))
    print(f"\n{environment()}")


def measure(options: Options, seed: int) -> Iterator[Measured]:
    """Measure transactions of the Handbook and simulated ones."""
    folder = options.data_folder("fraud")
    for end in ENDS:
        paths = [str(folder / name) for name in DATA_FILES]
        config = _configuration(paths, seed, options.short, features=list(BASE_COLUMNS))
        data = load_dataset(config.data, SpanContext(until=end.timestamp()))
        yield from _compare(config, data)
    for rows in ROWS[: 2 if options.short else None]:
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "rows.parquet"
            pq.write_table(simulate_transactions(rows, seed), path)
            config = _configuration([str(path)], seed, options.short, ignore=list(IGNORED))
            data = load_dataset(config.data)
        scorer = _fitted(config, data)
        yield _measured(
            f"simulated, {rows:,} rows", _calibration(scorer, data), scorer.score(_normal(data))
        )


def _configuration(paths: list[str], seed: int, short: bool, **data: Any) -> Config:
    roles = {"path": paths, "label": "TX_FRAUD", "time": "TX_DATETIME", "splits": SPANS}
    training = {"seed": seed, **({"epochs": 3} if short else {})}
    content = {"name": "fraud", "preset": "fast", "data": {**roles, **data}, "training": training}
    return validate_config(content)


def _fitted(config: Config, data: Dataset) -> Scorer:
    prepared = prepare(config, data.schema, data.part(TRAIN), data.part(VALIDATION))
    return fit_bundle(config, prepared, data.summary()).bundle.scorer


def _calibration(scorer: Scorer, data: Dataset) -> Scores:
    return scorer.score(data.part(CALIBRATION))


def _normal(data: Dataset) -> RawBatch:
    """Return the normal test rows."""
    rows = data.assignment.rows(TEST)
    return data.batch.take(rows[~data.rows.anomaly[rows]])


def _compare(config: Config, data: Dataset) -> Iterator[Measured]:
    scorer = _fitted(config, data)
    sample, normal = _calibration(scorer, data), _normal(data)
    scores = scorer.score(normal)
    yield _measured("28, 7 and 7 days", sample, scores)
    assert data.rows.time is not None
    day = np.floor(data.rows.time[data.assignment.rows(CALIBRATION)] / DAY)
    for one in np.unique(day):
        yield _measured("calibrated on a single day", sample[day == one], scores)
    amounts, missing = normal.values[AMOUNT], np.full(len(normal), np.nan)
    changes = {
        "amounts × 1.5": {AMOUNT: 1.5 * np.asarray(amounts)},
        f"{COUNT} missing": {COUNT: missing},
    }
    for name, values in changes.items():
        changed = replace(normal, values={**normal.values, **values})
        yield _measured(name, sample, scorer.score(changed))


def _measured(name: str, sample: Scores, scores: Scores) -> Measured:
    test = ks_2samp(sample, scores, method="asymp")
    found = Exchangeability(float(test.statistic), float(test.pvalue))
    return Measured(name, len(sample), len(scores), found)
