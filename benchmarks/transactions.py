"""Card transactions: detection against its peers, and whether the promised rate holds.

The simulated transactions of the Fraud Detection Handbook (Le Borgne et al. 2022) with its
features: amount, weekend, night, customer and terminal windows. The terminal's fraud rate
(``TERMINAL_ID_RISK_*``) needs past labels, so every method runs with and without it.

Detection: train on the normal rows of the seven days from 2018-07-25, test on the seven days
from 2018-08-08, a week later. AUROC, average precision, and card precision at 100 a day.

Promise: train on the first six of those days, calibrate on the seventh, and compare the false
positive rate on the test rows with alpha.

Peers see standardised columns, and the rows that ours holds out to stop early as well.
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
from anomaly_vae.config import Config, merged, validate_config
from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION
from anomaly_vae.evaluation.cost_sensitive import CardPrecision
from anomaly_vae.evaluation.metrics import evaluate
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import (
    Figure,
    Ledger,
    Options,
    cpu_seconds,
    environment,
    kept_range,
    markdown,
    table,
)
from pipelines.datasets.loading import load_dataset

Scores = NDArray[np.float64]
Figures = dict[str, float]

WINDOWS = ("1DAY_WINDOW", "7DAY_WINDOW", "30DAY_WINDOW")
COUNTED = ("CUSTOMER_ID_NB_TX", "CUSTOMER_ID_AVG_AMOUNT", "TERMINAL_ID_NB_TX")
BASE = (
    *("TX_AMOUNT", "TX_DURING_WEEKEND", "TX_DURING_NIGHT"),
    *(f"{what}_{window}" for what in COUNTED for window in WINDOWS),
)
RISK = tuple(f"TERMINAL_ID_RISK_{window}" for window in WINDOWS)
COLUMNS = {"with terminal risk": BASE + RISK, "without": BASE}
FILES = ("transactions-2018-07.parquet", "transactions-2018-08.parquet")

WEEK = ("2018-08-08", "2018-08-15")
SPLITS = {
    "detection": {
        "train": ("2018-07-25", "2018-08-01"),
        "calibration": ("2018-08-01", "2018-08-02"),  # there must be one; detection reads none
        "test": WEEK,
    },
    "promise": {
        "train": ("2018-07-25", "2018-07-31"),
        "calibration": ("2018-07-31", "2018-08-01"),
        "test": WEEK,
    },
}
ALPHAS = (0.05, 0.01, 0.001)
CARDS = 100
"""Cards that can be looked into in a day."""
SHORT_THIN, SHORT_EPOCHS = 5, 10
"""The short form reads every fifth row, and trains ours for so many epochs."""


# ---------------------------------------------------------------- the task


@dataclass(frozen=True, eq=False)
class Task:
    """Rows to learn from, to calibrate on and to test on; what the test knows of each row."""

    config: Config
    schema: TabularSchema
    train: RawBatch
    validation: RawBatch
    calibration: RawBatch
    test: RawBatch
    truth: pd.DataFrame
    """(N,) of the test rows: fraud, card, seconds"""

    @property
    def fraud(self) -> NDArray[np.bool_]:
        """(N,) of the test rows."""
        return np.asarray(self.truth["fraud"])

    def normals(self) -> Scores:
        """(N, D): all rows to learn from, for methods that hold none out."""
        return np.concatenate([matrix(self.train), matrix(self.validation)])


def load_task(folder: Path, columns: Sequence[str], splits: Mapping[str, Any], short: bool) -> Task:
    """Read the files as a user's configuration would."""
    config = _configuration(folder, columns, splits, short)
    data = load_dataset(config.data)
    thin = SHORT_THIN if short else 1
    train, validation, calibration, test = (
        data.assignment.rows(split)[::thin] for split in (TRAIN, VALIDATION, CALIBRATION, TEST)
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


def _configuration(
    folder: Path, columns: Sequence[str], splits: Mapping[str, Any], short: bool
) -> Config:
    data = {
        "path": [str(folder / name) for name in FILES],
        "label": "TX_FRAUD",
        "time": "TX_DATETIME",
        "features": list(columns),
        "splits": splits,
    }
    training = {"epochs": SHORT_EPOCHS} if short else {}
    return validate_config({"name": "fraud", "data": data, "training": training})


def matrix(batch: RawBatch) -> Scores:
    """(N, D): the columns as they are."""
    return np.column_stack([np.asarray(values, np.float64) for values in batch.values.values()])


# ---------------------------------------------------------------- the methods


class Model(Protocol):
    """What is measured."""

    def fit(self, task: Task) -> None:
        """Learn from the training rows."""

    def score(self, batch: RawBatch) -> Scores:
        """(N,), higher is more anomalous."""


@dataclass
class Ours:
    """The library as a user drives it; ``over`` is laid upon the default configuration."""

    over: Mapping[str, Any]
    seed: int
    bundle: Bundle | None = None

    def fit(self, task: Task) -> None:
        """See `Model`."""
        seeds = {"training": {"seed": self.seed}, "score": {"seed": self.seed}}
        config = validate_config(merged(merged(task.config.model_dump(), seeds), self.over))
        prepared = prepare(config, task.schema, task.train, task.validation)
        self.bundle = fit_bundle(config, prepared, data={}).bundle

    def score(self, batch: RawBatch) -> Scores:
        """See `Model`."""
        assert self.bundle
        return self.bundle.scorer.score(batch)


@dataclass
class Peer:
    """A detector that reads a standardised matrix."""

    estimator: Any
    scaler: Any = None

    def fit(self, task: Task) -> None:
        """See `Model`."""
        self.scaler = StandardScaler()
        self.estimator.fit(self.scaler.fit_transform(task.normals()))

    def score(self, batch: RawBatch) -> Scores:
        """See `Model`. PyOD's decisions and scikit-learn's densities point in opposite ways."""
        x = self.scaler.transform(matrix(batch))
        if hasattr(self.estimator, "score_samples"):
            return -np.asarray(self.estimator.score_samples(x))
        return np.asarray(self.estimator.decision_function(x))


class Neighbours:
    """Mean distance to the k nearest of 20,000 training rows."""

    ROWS = 20_000

    def __init__(self, k: int, seed: int) -> None:
        self.index, self.seed = NearestNeighbors(n_neighbors=k), seed

    def fit(self, x: Scores) -> None:
        """Keep a random subset of the rows (N, D)."""
        rows = np.random.default_rng(self.seed).permutation(len(x))[: self.ROWS]
        self.index.fit(x[rows])

    def decision_function(self, x: Scores) -> Scores:
        """(N,), in standard deviations."""
        return np.asarray(self.index.kneighbors(x)[0].mean(1))


@dataclass(frozen=True)
class Method:
    """A name, and how to make it from a seed; ``once``: its first seed will do."""

    name: str
    make: Callable[[int], Model]
    once: bool = False


def ours(name: str, **over: Any) -> Method:
    """A configuration of this project."""
    return Method(name, lambda seed: Ours(over, seed))


def peer(name: str, make: Callable[[int], Any], once: bool = False) -> Method:
    """A detector of others."""
    return Method(name, lambda seed: Peer(make(seed)), once)


BRIEF: Mapping[str, int] = {"epoch_num": 3, "batch_size": 256, "verbose": 0}
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
    peer("ECOD", lambda _: ECOD(), once=True),
    peer("PyOD AutoEncoder, 3 epochs of 256", lambda seed: AutoEncoder(random_state=seed, **BRIEF)),
    peer("PyOD VAE, 3 epochs of 256", lambda seed: VAE(random_state=seed, **BRIEF)),
)
LONG = (
    peer("PyOD AutoEncoder", lambda seed: AutoEncoder(random_state=seed, verbose=0)),
    peer("PyOD VAE", lambda seed: VAE(random_state=seed, verbose=0), once=True),
)
METHODS = (*OURS, *PEERS, *LONG)


# ---------------------------------------------------------------- the figures


def detection(model: Model, task: Task) -> Figures:
    """How well the model ranks the test rows, and what that costs."""
    _, fit = cpu_seconds(lambda: model.fit(task))
    scores, score = cpu_seconds(lambda: model.score(task.test))
    return {
        "auroc": float(roc_auc_score(task.fraud, scores)),
        "average_precision": float(average_precision_score(task.fraud, scores)),
        "card_precision": cards_caught(task, scores).precision(),
        "fit_seconds": fit,
        "score_seconds": score,
    }


def cards_caught(task: Task, scores: Scores) -> CardPrecision:
    """Unlike in the Handbook, cards known before the first test day stay in the test."""
    card, seconds = (np.asarray(task.truth[name]) for name in ("card", "seconds"))
    return CardPrecision(scores, task.fraud, card, seconds, CARDS)


def promise(model: Ours, task: Task) -> Figures:
    """The false positive rate on the test rows at each alpha, with its 95% interval."""
    model.fit(task)
    assert model.bundle
    scores = model.score(task.calibration)
    figures: Figures = {"n": len(scores), "normals": int((~task.fraud).sum())}
    for alpha in ALPHAS:
        detector = model.bundle.calibrated(calibrate(scores, alpha), None).detector
        found = evaluate(detector.detect(task.test), task.fraud, detector.calibration)
        assert found.fpr_interval, "the test has normal rows"
        low, high = found.fpr_interval
        named = {"fpr": found.fpr, "low": low, "high": high, "recall": found.recall}
        figures |= {f"{name}@{alpha}": value for name, value in named.items() if value is not None}
    return figures


# ---------------------------------------------------------------- the run

KEYS = ("method", "features", "seed")
DETECTION_FIGURES = {
    "auroc": Figure("AUROC"),
    "average_precision": Figure("average precision"),
    "card_precision": Figure(f"card precision at {CARDS}"),
    "fit_seconds": Figure("fit, CPU-s", ".1f", deviation=False),
    "score_seconds": Figure("score, CPU-s", ".2f", deviation=False),
}


def run(options: Options) -> None:
    """Measure what is not yet measured, and write the tables."""
    folder = options.folder("fraud")
    found = Ledger(options.result("transactions.csv"), KEYS)
    kept = Ledger(options.result("transactions-promise.csv"), KEYS)

    @cache
    def task(features: str, split: str) -> Task:
        return load_task(folder, COLUMNS[features], SPLITS[split], options.short)

    for method, features, seed in _plan(options):
        key, model = (method.name, features, seed), method.make(seed)
        if key not in found:
            found.add(key, detection(model, task(features, "detection")))
        if isinstance(model, Ours) and key not in kept:
            kept.add(key, promise(model, task(features, "promise")))
    tables = _report(found.rows, kept.rows)
    options.result("transactions.md").write_text(tables, encoding="utf-8")
    print(f"\n{tables}")


def _plan(options: Options) -> Iterator[tuple[Method, str, int]]:
    """Every seed of a method and its columns, the first seed of all methods first."""
    methods = (*OURS, *PEERS) if options.short else METHODS
    wanted = [method for method in methods if options.wants(method.name)]
    for seed in range(1 if options.short else options.seeds):
        for method in wanted:
            if seed == 0 or not method.once:
                yield from ((method, features, seed) for features in COLUMNS)


def _report(found: pd.DataFrame, kept: pd.DataFrame) -> str:
    parts = []
    for features in COLUMNS:
        parts.append(f"Detection, {features}\n\n")
        parts.append(table(_in_order(found, features), "method", DETECTION_FIGURES))
        parts.append(f"\nPromise, {features}\n\n")
        parts += [_promise_table(_in_order(kept, features)), "\n"]
    return "".join([*parts, environment()])


def _in_order(rows: pd.DataFrame, features: str) -> pd.DataFrame:
    """The rows of these columns, methods as they are listed above."""
    place = {method.name: index for index, method in enumerate(METHODS)}
    rows = rows[rows["features"] == features]
    return rows.sort_values("method", key=lambda names: names.map(place), kind="stable")


def _promise_table(rows: pd.DataFrame) -> str:
    """False positive rates with the interval of one fit, above them where a kept promise lies."""
    lines = []
    for n, normals in sorted(set(zip(rows["n"], rows["normals"], strict=True))):
        ranges = (kept_range(alpha, n, normals) for alpha in ALPHAS)
        lines.append(("*if kept, 95%*", *(f"{low:.4f} to {high:.4f}" for low, high in ranges)))
    for name, group in rows.groupby("method", sort=False):
        mean = group.mean(numeric_only=True)
        rates = (
            f"{mean[f'fpr@{a}']:.4f} [{mean[f'low@{a}']:.4f}, {mean[f'high@{a}']:.4f}]"
            for a in ALPHAS
        )
        lines.append((str(name), *rates))
    return markdown(("method", *(f"α = {alpha:g}" for alpha in ALPHAS)), lines)
