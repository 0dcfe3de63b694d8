"""The tables of `tabular`, made harder: categories, missing values, anomalies to learn from.

Ten of the sets. Mixed: every second column is cut into at most five categories at quantiles of the
training rows, and a share of all cells, of training and of test rows, is missing at random. Dirty:
a share of the training rows are anomalies, which are then not in the test. Peers get medians for
what is missing, a category as zeros and ones, and standardised numbers; ours reads the data frame.
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
from benchmarks.common import Figure, Ledger, Options, cpu_seconds, environment, markdown
from benchmarks.tabular import Neighbours, Task, load_task

Scores = NDArray[np.float64]
SETS = (
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
UNKNOWN = "(missing)"


@dataclass(frozen=True)
class Condition:
    """What is done to a set."""

    name: str
    mixed: bool = False
    missing: float = 0.0
    dirty: float = 0.0


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
class Frames:
    """Rows to learn from and to test on, and which of these are anomalies."""

    train: pd.DataFrame
    test: pd.DataFrame
    anomaly: NDArray[np.bool_]


def degrade(task: Task, condition: Condition, seed: int) -> Frames:
    """A set as the condition has it."""
    generator = np.random.default_rng(seed)
    task = soiled(task, condition.dirty, generator)
    names = [f"x{i}" for i in range(task.train.shape[1])]
    train, test = (pd.DataFrame(part, columns=names) for part in (task.train, task.test))
    if condition.mixed:
        for name in names[::2]:
            edges = np.unique(np.quantile(train[name], np.linspace(0, 1, CATEGORIES + 1)[1:-1]))
            for part in (train, test):
                part[name] = [f"c{i}" for i in np.searchsorted(edges, part[name])]
    for part in (train, test) if condition.missing else ():
        part[generator.random(part.shape) < condition.missing] = None
    return Frames(train, test, task.anomaly)


def soiled(task: Task, share: float, generator: np.random.Generator) -> Task:
    """Anomalies take the place of so many training rows, at most half of all there are."""
    odd = np.flatnonzero(task.anomaly)
    count = min(round(share * len(task.train)), len(odd) // 2)
    moved = generator.choice(odd, count, replace=False)
    train = task.train.copy()
    train[generator.choice(len(train), count, replace=False)] = task.test[moved]
    kept = np.setdiff1d(np.arange(len(task.test)), moved)
    return Task(train, task.test[kept], task.anomaly[kept])


# ---------------------------------------------------------------- the methods

Fit = Callable[[pd.DataFrame, int], Callable[[pd.DataFrame], Scores]]
"""Rows and a seed → what scores rows, higher is more anomalous."""


def fit_ours(
    train: pd.DataFrame, seed: int, trim: float | None = None
) -> Callable[[pd.DataFrame], Scores]:
    """The default estimator, or one that leaves out a share of its rows."""
    detector = TabularVAEDetector(alpha=0.05, random_state=seed, trim=trim).fit(train)
    return lambda rows: np.asarray(detector.anomaly_score(rows))


def fit_neighbours(train: pd.DataFrame, seed: int) -> Callable[[pd.DataFrame], Scores]:
    """Mean distance to five neighbours."""
    del seed
    columns, model = prepared(train), Neighbours(5)
    model.fit(columns.fit_transform(train))
    return lambda rows: model.decision_function(columns.transform(rows))


def fit_forest(train: pd.DataFrame, seed: int) -> Callable[[pd.DataFrame], Scores]:
    """IsolationForest."""
    columns, model = prepared(train), IsolationForest(random_state=seed)
    model.fit(columns.fit_transform(train))
    return lambda rows: -np.asarray(model.score_samples(columns.transform(rows)))


def prepared(train: pd.DataFrame) -> Any:
    """Medians, zeros and ones, standard deviations."""
    numeric = list(train.select_dtypes("number").columns)
    others = [name for name in train.columns if name not in numeric]
    hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    unknown = FunctionTransformer(lambda rows: rows.fillna(UNKNOWN))
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return make_column_transformer((numbers, numeric), (make_pipeline(unknown, hot), others))


METHODS: dict[str, Fit] = {
    "VAE (ours)": fit_ours,
    "ours, trim: 0.1": partial(fit_ours, trim=0.1),
    "kNN, k = 5, imputed, one-hot": fit_neighbours,
    "IsolationForest, imputed, one-hot": fit_forest,
}


# ---------------------------------------------------------------- the run

KEYS = ("method", "condition", "set", "seed")
FIGURES = {"auroc": Figure("AUROC"), "average_precision": Figure("average precision")}


def measure(fit: Fit, frames: Frames, seed: int) -> dict[str, float]:
    """How well the test rows are ranked, and what the fit costs."""
    score, seconds = cpu_seconds(lambda: fit(frames.train, seed))
    scores = score(frames.test)
    return {
        "auroc": float(roc_auc_score(frames.anomaly, scores)),
        "average_precision": float(average_precision_score(frames.anomaly, scores)),
        "fit_seconds": seconds,
    }


def run(options: Options) -> None:
    """Measure what is not yet measured, and write the tables."""
    folder = options.folder("adbench")
    found = Ledger(options.result("degraded.csv"), KEYS)
    for method, condition, path, seed in _plan(options, folder):
        key = (method, condition.name, path.stem, seed)
        if key not in found:
            frames = degrade(load_task(path, seed), condition, seed)
            found.add(key, measure(METHODS[method], frames, seed))
    text = f"{report(found.rows)}\n{environment()}"
    options.result("degraded.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _plan(options: Options, folder: Path) -> Iterator[tuple[str, Condition, Path, int]]:
    sets = SETS[:3] if options.short else SETS
    for seed in range(1 if options.short else options.seeds):
        for method in filter(options.wants, METHODS):
            for condition in CONDITIONS:
                yield from ((method, condition, folder / f"{name}.npz", seed) for name in sets)


def report(rows: pd.DataFrame) -> str:
    """For each figure a table: methods down, conditions across, means over sets and seeds."""
    names = [condition.name for condition in CONDITIONS]
    parts = []
    for column, figure in FIGURES.items():
        means = 100 * rows.groupby(["method", "condition"])[column].mean().unstack()
        lines = [
            (method, *(f"{means.loc[method, name]:.1f}" for name in names if name in means))
            for method in METHODS
            if method in means.index
        ]
        heads = (figure.head, *(name for name in names if name in means))
        parts.append(markdown(heads, lines))
    return "\n".join(parts)
