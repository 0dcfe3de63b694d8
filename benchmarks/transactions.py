"""Measure fraud detection on card transactions, and the false positive rate of thresholds.

The data are the simulated transactions of the Fraud Detection Handbook (Le Borgne et al. 2022) with
its features: amount, weekend, night, and aggregates over customer and terminal windows. The fraud
rate of the terminal (``TERMINAL_ID_RISK_*``) requires past labels, so every method runs with and
without it.

Detection: train on the normal rows of the seven days from 2018-07-25 and test on the seven days
from 2018-08-08, one week later. The metrics are AUROC, average precision, and card precision at 100
cards per day.

Promise: train on the first six of those days, calibrate on the seventh, and compare the false
positive rate on the test rows with alpha.

Peers read standardised columns. They also train on the rows that our models hold out for early
stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.ecod import ECOD
from pyod.models.vae import VAE
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import Config, validate_config
from anomaly_vae.config.detector import merged
from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION
from anomaly_vae.evaluation.cost_sensitive import CardPrecision
from anomaly_vae.evaluation.metrics import evaluate
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import (
    Column,
    Ledger,
    Options,
    cpu_seconds,
    environment,
    expected_rate_range,
    markdown_table,
    summary_table,
)
from benchmarks.handbook import BASE_COLUMNS, DATA_FILES, WINDOWS
from pipelines.datasets.loading import load_dataset

Scores = NDArray[np.float64]
Metrics = dict[str, float]

TERMINAL_RISK = tuple(f"TERMINAL_ID_RISK_{window}" for window in WINDOWS)
COLUMNS = {"with terminal risk": BASE_COLUMNS + TERMINAL_RISK, "without": BASE_COLUMNS}

TEST_WEEK = ("2018-08-08", "2018-08-15")
SPLITS = {
    "detection": {
        "train": ("2018-07-25", "2018-08-01"),
        "calibration": (
            "2018-08-01",
            "2018-08-02",
        ),  # required by the configuration; detection does not read it
        "test": TEST_WEEK,
    },
    "promise": {
        "train": ("2018-07-25", "2018-07-31"),
        "calibration": ("2018-07-31", "2018-08-01"),
        "test": TEST_WEEK,
    },
}
ALPHAS = (0.05, 0.01, 0.001)
CARDS_PER_DAY = 100
"""Number of cards that can be investigated per day."""
SHORT_STRIDE, SHORT_EPOCHS = 5, 10
"""Stride of the subsample, and number of training epochs of our models, in the short form."""


# ---------------------------------------------------------------- the task


@dataclass(frozen=True, eq=False)
class Task:
    """Rows for training, validation, calibration and testing."""

    config: Config
    schema: TabularSchema
    train: RawBatch
    validation: RawBatch
    calibration: RawBatch
    test: RawBatch
    truth: pd.DataFrame
    """Fraud label, card and time (seconds) of the test rows, (N,)."""

    @property
    def fraud(self) -> NDArray[np.bool_]:
        """Fraud labels of the test rows, (N,)."""
        return np.asarray(self.truth["fraud"])

    def training_matrix(self) -> Scores:
        """Return training and validation rows (N, D), for methods that hold out none."""
        return np.concatenate([matrix(self.train), matrix(self.validation)])


def load_task(folder: Path, columns: Sequence[str], splits: Mapping[str, Any], short: bool) -> Task:
    """Load the data and split them by date."""
    config = configuration(folder, columns, splits, short)
    data = load_dataset(config.data)
    stride = SHORT_STRIDE if short else 1
    train, validation, calibration, test = (
        data.assignment.rows(split)[::stride] for split in (TRAIN, VALIDATION, CALIBRATION, TEST)
    )
    assert data.rows.time is not None
    truth = pd.DataFrame(
        {
            "fraud": data.rows.anomaly[test],
            "card": data.table.column("CUSTOMER_ID").to_numpy()[test],
            "seconds": data.rows.time[test],
        }
    )
    take = data.batch.take
    parts = (take(train), take(validation), take(calibration), take(test))
    return Task(config, data.schema, *parts, truth)


def configuration(
    folder: Path, columns: Sequence[str], splits: Mapping[str, Any], short: bool
) -> Config:
    """Return the default configuration for these columns and splits."""
    data = {
        "path": [str(folder / name) for name in DATA_FILES],
        "label": "TX_FRAUD",
        "time": "TX_DATETIME",
        "features": list(columns),
        "splits": splits,
    }
    training = {"epochs": SHORT_EPOCHS} if short else {}
    return validate_config({"name": "fraud", "data": data, "training": training})


def matrix(batch: RawBatch) -> Scores:
    """Return the unchanged columns as a matrix (N, D)."""
    return np.column_stack([np.asarray(values, np.float64) for values in batch.values.values()])


# ---------------------------------------------------------------- the methods


class Model(Protocol):
    """A detector to measure."""

    def fit(self, task: Task) -> None:
        """Train on the training rows."""

    def score(self, batch: RawBatch) -> Scores:
        """Return scores (N,); higher is more anomalous."""


@dataclass
class Ours:
    """Our library, with overrides of the default configuration."""

    overrides: Mapping[str, Any]
    seed: int
    bundle: Bundle | None = None

    def fit(self, task: Task) -> None:
        """See `Model`."""
        seeds = {"training": {"seed": self.seed}, "score": {"seed": self.seed}}
        config = validate_config(merged(merged(task.config.model_dump(), seeds), self.overrides))
        prepared = prepare(config, task.schema, task.train, task.validation)
        self.bundle = fit_bundle(config, prepared, data={}).bundle

    def score(self, batch: RawBatch) -> Scores:
        """See `Model`."""
        assert self.bundle
        return self.bundle.scorer.score(batch)


@dataclass
class Peer:
    """A detector of another library, which reads a standardised matrix."""

    estimator: Any
    scaler: Any = None

    def fit(self, task: Task) -> None:
        """See `Model`."""
        self.scaler = StandardScaler()
        self.estimator.fit(self.scaler.fit_transform(task.training_matrix()))

    def score(self, batch: RawBatch) -> Scores:
        """See `Model`. PyOD scores anomalies high, scikit-learn's ``score_samples`` low."""
        x = self.scaler.transform(matrix(batch))
        if hasattr(self.estimator, "score_samples"):
            return -np.asarray(self.estimator.score_samples(x))
        return np.asarray(self.estimator.decision_function(x))


class Neighbours:
    """Mean distance to the k nearest of 20,000 training rows."""

    ROWS = 20_000
    """Maximum number of training rows."""

    def __init__(self, k: int, seed: int) -> None:
        self.index, self.seed = NearestNeighbors(n_neighbors=k), seed

    def fit(self, x: Scores) -> None:
        """Index a random subset of the rows (N, D)."""
        rows = np.random.default_rng(self.seed).permutation(len(x))[: self.ROWS]
        self.index.fit(x[rows])

    def decision_function(self, x: Scores) -> Scores:
        """Return the mean distances (N,), in standard deviations."""
        return np.asarray(self.index.kneighbors(x)[0].mean(1))


@dataclass(frozen=True)
class Method:
    """A method's label, and a function that makes its model from a seed."""

    name: str
    make: Callable[[int], Model]
    single_seed: bool = False
    """Whether only the first seed is run."""


def ours(name: str, **overrides: Any) -> Method:
    """Return a method: our library with these overrides."""
    return Method(name, lambda seed: Ours(overrides, seed))


def peer(name: str, make: Callable[[int], Any], single_seed: bool = False) -> Method:
    """Return a method: a detector of another library."""
    return Method(name, lambda seed: Peer(make(seed)), single_seed)


THREE_EPOCHS: Mapping[str, int] = {"epoch_num": 3, "batch_size": 256, "verbose": 0}
OURS = (
    ours("VAE (ours)"),
    ours("ours, score: reconstruction", score={"type": "reconstruction"}),
    ours(
        "ours, score: importance_weighted, 16 draws",
        score={"type": "importance_weighted", "draws": 16},
    ),
    ours("ours, likelihood: student_t", model={"likelihood": "student_t"}),
    ours("ours, type: autoencoder", model={"type": "autoencoder"}),
)
PEERS = (
    peer("kNN, k = 5, 20,000 rows", lambda seed: Neighbours(5, seed)),
    peer("kNN, k = 1, 20,000 rows", lambda seed: Neighbours(1, seed)),
    peer("Gaussian mixture, 10", lambda seed: GaussianMixture(10, random_state=seed)),
    peer("IsolationForest", lambda seed: IsolationForest(random_state=seed)),
    peer("ECOD", lambda _: ECOD(), single_seed=True),
    peer(
        "PyOD AutoEncoder, 3 epochs of 256",
        lambda seed: AutoEncoder(random_state=seed, **THREE_EPOCHS),
    ),
    peer("PyOD VAE, 3 epochs of 256", lambda seed: VAE(random_state=seed, **THREE_EPOCHS)),
)
SLOW_PEERS = (
    peer("PyOD AutoEncoder", lambda seed: AutoEncoder(random_state=seed, verbose=0)),
    peer("PyOD VAE", lambda seed: VAE(random_state=seed, verbose=0), single_seed=True),
)
METHODS = (*OURS, *PEERS, *SLOW_PEERS)


# ---------------------------------------------------------------- the measurements


def measure_detection(model: Model, task: Task) -> Metrics:
    """Measure how well a model ranks the test rows, and the CPU-seconds of fitting and scoring."""
    _, fit = cpu_seconds(lambda: model.fit(task))
    scores, score = cpu_seconds(lambda: model.score(task.test))
    return {
        "auroc": float(roc_auc_score(task.fraud, scores)),
        "average_precision": float(average_precision_score(task.fraud, scores)),
        "card_precision": card_precision(task, scores).precision(),
        "fit_seconds": fit,
        "score_seconds": score,
    }


def card_precision(task: Task, scores: Scores) -> CardPrecision:
    """Compute the card precision; unlike the Handbook, keep cards with earlier known frauds."""
    card, seconds = (np.asarray(task.truth[name]) for name in ("card", "seconds"))
    return CardPrecision(scores, task.fraud, card, seconds, CARDS_PER_DAY)


def measure_promise(model: Ours, task: Task) -> Metrics:
    """Measure the false positive rate on the test rows at each alpha, with its 95% interval."""
    model.fit(task)
    assert model.bundle
    scores = model.score(task.calibration)
    metrics: Metrics = {"n": len(scores), "normals": int((~task.fraud).sum())}
    for alpha in ALPHAS:
        detector = model.bundle.calibrated(calibrate(scores, alpha), None).detector
        result = evaluate(detector.detect(task.test), task.fraud, detector.calibration)
        assert result.fpr_interval, "the test has normal rows"
        low, high = result.fpr_interval
        values = {
            "fpr": result.fpr,
            "low": low,
            "high": high,
            "recall": result.recall,
        }
        metrics |= {f"{name}@{alpha}": value for name, value in values.items() if value is not None}
    return metrics


# ---------------------------------------------------------------- the run

KEYS = ("method", "features", "seed")
DETECTION_COLUMNS = {
    "auroc": Column("AUROC"),
    "average_precision": Column("average precision"),
    "card_precision": Column(f"card precision at {CARDS_PER_DAY}"),
    "fit_seconds": Column("fit, CPU-s", ".1f", show_deviation=False),
    "score_seconds": Column("score, CPU-s", ".2f", show_deviation=False),
}


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    folder = options.data_folder("fraud")
    detection_ledger = Ledger(options.result_path("transactions.csv"), KEYS)
    promise_ledger = Ledger(options.result_path("transactions-promise.csv"), KEYS)

    @cache
    def task(features: str, split: str) -> Task:
        return load_task(folder, COLUMNS[features], SPLITS[split], options.short)

    for method, features, seed in _plan(options):
        key, model = (method.name, features, seed), method.make(seed)
        if key not in detection_ledger:
            detection_ledger.add(key, measure_detection(model, task(features, "detection")))
        if isinstance(model, Ours) and key not in promise_ledger:
            promise_ledger.add(key, measure_promise(model, task(features, "promise")))
    tables = _report(detection_ledger.rows, promise_ledger.rows)
    options.result_path("transactions.md").write_text(tables, encoding="utf-8")
    print(f"\n{tables}")


def _plan(options: Options) -> Iterator[tuple[Method, str, int]]:
    """Yield every method and set of columns, one seed after the other."""
    methods = (*OURS, *PEERS) if options.short else METHODS
    wanted = [method for method in methods if options.wants(method.name)]
    for seed in range(1 if options.short else options.seeds):
        for method in wanted:
            if seed == 0 or not method.single_seed:
                yield from ((method, features, seed) for features in COLUMNS)


def _report(detection: pd.DataFrame, promise: pd.DataFrame) -> str:
    parts = []
    for features in COLUMNS:
        parts.append(f"Detection, {features}\n\n")
        parts.append(summary_table(_in_order(detection, features), "method", DETECTION_COLUMNS))
        parts.append(f"\nPromise, {features}\n\n")
        parts += [_promise_table(_in_order(promise, features)), "\n"]
    return "".join([*parts, environment()])


def _in_order(rows: pd.DataFrame, features: str) -> pd.DataFrame:
    """Select the results for one set of columns, in the order of `METHODS`."""
    order = {method.name: index for index, method in enumerate(METHODS)}
    rows = rows[rows["features"] == features]
    return rows.sort_values("method", key=lambda names: names.map(order), kind="stable")


def _promise_table(rows: pd.DataFrame) -> str:
    """Tabulate false positive rates with mean 95% intervals, below their theoretical 95% range."""
    lines = []
    for n, normals in sorted(set(zip(rows["n"], rows["normals"], strict=True))):
        ranges = (expected_rate_range(alpha, n, normals) for alpha in ALPHAS)
        lines.append(("*if kept, 95%*", *(f"{low:.4f} to {high:.4f}" for low, high in ranges)))
    for name, group in rows.groupby("method", sort=False):
        mean = group.mean(numeric_only=True)
        rates = (
            f"{mean[f'fpr@{a}']:.4f} [{mean[f'low@{a}']:.4f}, {mean[f'high@{a}']:.4f}]"
            for a in ALPHAS
        )
        lines.append((str(name), *rates))
    return markdown_table(("method", *(f"α = {alpha:g}" for alpha in ALPHAS)), lines)
