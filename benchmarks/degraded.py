"""Measure detection on degraded tables: categories, missing values, contaminated training rows.

The protocol uses ten of the data sets of `tabular`. "Mixed" bins every second column into at most
five categories, at quantiles of the training rows, and removes a fraction of all cells of training
and test rows at random. "Dirty" replaces a fraction of the training rows with anomalies, which are
removed from the test rows. Peers (nearest neighbours, IsolationForest) read median-imputed,
standardised numbers and one-hot categories; our estimator reads the data frame itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from anomaly_vae import TabularVAEDetector
from benchmarks.common import Column, Ledger, Options, cpu_seconds, environment, markdown_table
from benchmarks.tabular import Neighbours, Task, load_task

Scores = NDArray[np.float64]
SET_NAMES = (
    "2_annthyroid",
    "5_campaign",
    "6_cardio",
    "10_cover",
    "12_fault",
    "19_landsat",
    "22_magic.gamma",
    "27_PageBlocks",
    "32_shuttle",
    "40_vowels",
)
CATEGORIES = 5
"""Maximum number of categories of a binned column."""
MISSING_CATEGORY = "(missing)"
"""Category that peers see in place of a missing one."""


@dataclass(frozen=True)
class Condition:
    """A way to degrade a data set."""

    name: str
    mixed: bool = False
    """Whether every second column is binned into categories."""
    missing: float = 0.0
    """Fraction of cells removed at random."""
    dirty: float = 0.0
    """Fraction of training rows replaced with anomalies."""


CONDITIONS = (
    Condition("as it is"),
    Condition("mixed", mixed=True),
    Condition("mixed, 10% missing", mixed=True, missing=0.1),
    Condition("mixed, 30% missing", mixed=True, missing=0.3),
    Condition("1% dirty", dirty=0.01),
    Condition("5% dirty", dirty=0.05),
    Condition("10% dirty", dirty=0.1),
)


@dataclass(frozen=True, eq=False)
class DataFrameTask:
    """Training rows, test rows, and which of the test rows are anomalies."""

    train: pd.DataFrame
    test: pd.DataFrame
    anomaly: NDArray[np.bool_]


def degrade(task: Task, condition: Condition, seed: int) -> DataFrameTask:
    """Apply a condition to a data set."""
    generator = np.random.default_rng(seed)
    task = contaminate_training(task, condition.dirty, generator)
    names = [f"x{i}" for i in range(task.train.shape[1])]
    train, test = (pd.DataFrame(part, columns=names) for part in (task.train, task.test))
    if condition.mixed:
        for name in names[::2]:
            edges = np.unique(np.quantile(train[name], np.linspace(0, 1, CATEGORIES + 1)[1:-1]))
            for part in (train, test):
                part[name] = [f"c{i}" for i in np.searchsorted(edges, part[name])]
    for part in (train, test) if condition.missing else ():
        part[generator.random(part.shape) < condition.missing] = None
    return DataFrameTask(train, test, task.anomaly)


def contaminate_training(task: Task, share: float, generator: np.random.Generator) -> Task:
    """Replace a fraction of the training rows with anomalies, at most half of all anomalies."""
    anomaly_rows = np.flatnonzero(task.anomaly)
    count = min(round(share * len(task.train)), len(anomaly_rows) // 2)
    moved = generator.choice(anomaly_rows, count, replace=False)
    train = task.train.copy()
    train[generator.choice(len(train), count, replace=False)] = task.test[moved]
    kept = np.setdiff1d(np.arange(len(task.test)), moved)
    return Task(train, task.test[kept], task.anomaly[kept])


# ---------------------------------------------------------------- the methods

FitFunction = Callable[[pd.DataFrame, int], Callable[[pd.DataFrame], Scores]]
"""Function of training rows and a seed that returns a scoring function; anomalies score higher."""


def fit_ours(
    train: pd.DataFrame, seed: int, trim: float | None = None
) -> Callable[[pd.DataFrame], Scores]:
    """Fit our default estimator, optionally with a trimmed fraction of training rows."""
    detector = TabularVAEDetector(alpha=0.05, random_state=seed, trim=trim).fit(train)
    return lambda rows: np.asarray(detector.anomaly_score(rows))


def fit_neighbours(train: pd.DataFrame, seed: int) -> Callable[[pd.DataFrame], Scores]:
    """Fit a detector that scores by the mean distance to the five nearest training rows."""
    del seed
    columns, model = preprocessor(train), Neighbours(5)
    model.fit(columns.fit_transform(train))
    return lambda rows: model.decision_function(columns.transform(rows))


def fit_forest(train: pd.DataFrame, seed: int) -> Callable[[pd.DataFrame], Scores]:
    """Fit an IsolationForest."""
    columns, model = preprocessor(train), IsolationForest(random_state=seed)
    model.fit(columns.fit_transform(train))
    return lambda rows: -np.asarray(model.score_samples(columns.transform(rows)))


def preprocessor(train: pd.DataFrame) -> Any:
    """Build the transformer that imputes, standardises and one-hot encodes rows for peers."""
    numeric = list(train.select_dtypes("number").columns)
    others = [name for name in train.columns if name not in numeric]
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    fill_missing = FunctionTransformer(lambda rows: rows.fillna(MISSING_CATEGORY))
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return make_column_transformer(
        (numbers, numeric), (make_pipeline(fill_missing, one_hot), others)
    )


METHODS: dict[str, FitFunction] = {
    "VAE (ours)": fit_ours,
    "ours, trim: 0.1": partial(fit_ours, trim=0.1),
    "kNN, k = 5, imputed, one-hot": fit_neighbours,
    "IsolationForest, imputed, one-hot": fit_forest,
}


# ---------------------------------------------------------------- the run

KEYS = ("method", "condition", "set", "seed")
RESULT_COLUMNS = {"auroc": Column("AUROC"), "average_precision": Column("average precision")}


def measure(fit: FitFunction, task: DataFrameTask, seed: int) -> dict[str, float]:
    """Measure the ranking of the test rows and the CPU-seconds of the fit."""
    score, seconds = cpu_seconds(lambda: fit(task.train, seed))
    scores = score(task.test)
    return {
        "auroc": float(roc_auc_score(task.anomaly, scores)),
        "average_precision": float(average_precision_score(task.anomaly, scores)),
        "fit_seconds": seconds,
    }


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    folder = options.data_folder("adbench")
    ledger = Ledger(options.result_path("degraded.csv"), KEYS)
    for method, condition, path, seed in _plan(options, folder):
        key = (method, condition.name, path.stem, seed)
        if key not in ledger:
            task = degrade(load_task(path, seed), condition, seed)
            ledger.add(key, measure(METHODS[method], task, seed))
    text = f"{report(ledger.rows)}\n{environment()}"
    options.result_path("degraded.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _plan(options: Options, folder: Path) -> Iterator[tuple[str, Condition, Path, int]]:
    set_names = SET_NAMES[:3] if options.short else SET_NAMES
    for seed in range(1 if options.short else options.seeds):
        for method in filter(options.wants, METHODS):
            for condition in CONDITIONS:
                yield from ((method, condition, folder / f"{name}.npz", seed) for name in set_names)


def report(rows: pd.DataFrame) -> str:
    """Tabulate each metric by method and condition, in percent, averaged over sets and seeds."""
    names = [condition.name for condition in CONDITIONS]
    parts = []
    for column, column_format in RESULT_COLUMNS.items():
        means = 100 * rows.groupby(["method", "condition"])[column].mean().unstack()
        lines = [
            (method, *(f"{means.loc[method, name]:.1f}" for name in names if name in means))
            for method in METHODS
            if method in means.index
        ]
        headings = (column_format.heading, *(name for name in names if name in means))
        parts.append(markdown_table(headings, lines))
    return "\n".join(parts)
