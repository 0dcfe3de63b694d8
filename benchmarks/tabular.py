"""Tables: 20 numeric sets of ADBench (Han et al. 2022), one class, one configuration for all.

As in Livernoche et al. (ICLR 2024): of more than 10,000 rows a stratified subsample; a random half
of the normal rows to learn from, the other half and all anomalies to test on. Ours holds a share
of its half out to calibrate; peers learn from all of it, standardised. No configuration was chosen
by the test labels of a single set; what was looked at is said in RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.ocsvm import OCSVM
from pyod.models.pca import PCA
from pyod.models.vae import VAE
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from anomaly_vae import TabularVAEDetector
from anomaly_vae.files import atomic_path
from benchmarks.common import Ledger, Options, cpu_seconds, environment, markdown

Matrix = NDArray[np.float64]
Figures = dict[str, float]

MOST = 10_000
"""Rows of a set, anomalies included."""
EXTREME = 1e4
"""Standard deviations within which peers see the test rows."""
SHORT_SETS = 6


# ---------------------------------------------------------------- the task


@dataclass(frozen=True, eq=False)
class Task:
    """Normal rows (N, D) to learn from, rows (M, D) to test on, and which of these are not."""

    train: Matrix
    test: Matrix
    anomaly: NDArray[np.bool_]


def load_task(path: Path, seed: int) -> Task:
    """One set, split by ``seed``."""
    with np.load(path, allow_pickle=False) as content:
        x, anomaly = content["X"].astype(np.float64), content["y"].ravel() == 1
    generator = np.random.RandomState(seed)
    if len(x) > MOST:
        rows = _subsample(anomaly, generator)
        x, anomaly = x[rows], anomaly[rows]
    normal = generator.permutation(np.flatnonzero(~anomaly))
    train, rest = np.split(normal, [len(normal) // 2])
    test = np.concatenate([rest, np.flatnonzero(anomaly)])
    return Task(x[train], x[test], anomaly[test])


def _subsample(anomaly: NDArray[np.bool_], generator: np.random.RandomState) -> NDArray[np.intp]:
    """`MOST` rows with the anomalies' share as it is."""
    count = max(1, round(MOST * anomaly.mean()))
    normal = generator.choice(np.flatnonzero(~anomaly), MOST - count, replace=False)
    odd = generator.choice(np.flatnonzero(anomaly), count, replace=False)
    return np.concatenate([normal, odd])


# ---------------------------------------------------------------- the methods


class Model(Protocol):
    """What is measured."""

    def fit(self, x: Matrix) -> None:
        """Learn from normal rows (N, D)."""

    def score(self, x: Matrix) -> Matrix:
        """(N,), higher is more anomalous."""


@dataclass
class Ours:
    """The estimator as a user calls it."""

    detector: TabularVAEDetector

    def fit(self, x: Matrix) -> None:
        """See `Model`."""
        self.detector.fit(x)

    def score(self, x: Matrix) -> Matrix:
        """See `Model`."""
        return np.asarray(self.detector.anomaly_score(x))


@dataclass
class Peer:
    """A detector that reads a standardised matrix."""

    estimator: Any
    scaler: Any = None

    def fit(self, x: Matrix) -> None:
        """See `Model`."""
        self.scaler = StandardScaler()
        self.estimator.fit(self.scaler.fit_transform(x))

    def score(self, x: Matrix) -> Matrix:
        """See `Model`. PyOD's decisions and scikit-learn's densities point in opposite ways."""
        x = np.clip(self.scaler.transform(x), -EXTREME, EXTREME)
        if hasattr(self.estimator, "score_samples"):
            return -np.asarray(self.estimator.score_samples(x))
        return np.nan_to_num(np.asarray(self.estimator.decision_function(x)), posinf=1e30)


class Neighbours:
    """Mean distance to the k nearest training rows."""

    def __init__(self, k: int) -> None:
        self.index = NearestNeighbors(n_neighbors=k)

    def fit(self, x: Matrix) -> None:
        """Keep the rows."""
        self.index.fit(x)

    def decision_function(self, x: Matrix) -> Matrix:
        """(N,), in standard deviations."""
        return np.asarray(self.index.kneighbors(x)[0].mean(1))


class Mixture:
    """Ten Gaussians with full covariances, fewer where rows are few."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, x: Matrix) -> None:
        """By expectation and maximisation."""
        count = max(1, min(10, len(x) // 20))
        self.model = GaussianMixture(count, reg_covar=1e-3, random_state=self.seed).fit(x)

    def score_samples(self, x: Matrix) -> Matrix:
        """(N,), log-densities."""
        return np.asarray(self.model.score_samples(x))


@dataclass(frozen=True)
class Method:
    """A name, and how to make it from a seed."""

    name: str
    make: Callable[[int], Model]


def ours(name: str, **over: Any) -> Method:
    """The estimator with these arguments."""
    return Method(
        name, lambda seed: Ours(TabularVAEDetector(alpha=0.05, random_state=seed, **over))
    )


def peer(name: str, make: Callable[[int], Any]) -> Method:
    """A detector of others."""
    return Method(name, lambda seed: Peer(make(seed)))


OURS = (
    ours("VAE (ours)"),
    ours("ours, preset: fast", preset="fast"),
    ours("ours, preset: best", preset="best"),
)
PEERS = (
    peer("kNN, k = 1", lambda _: Neighbours(1)),
    peer("kNN, k = 5", lambda _: Neighbours(5)),
    peer("Gaussian mixture, 10", Mixture),
    peer("PyOD KNN", lambda _: KNN()),
    peer("PyOD LOF", lambda _: LOF()),
    peer("PyOD IForest", lambda seed: IForest(random_state=seed)),
    peer("PyOD ECOD", lambda _: ECOD()),
    peer("PyOD PCA", lambda seed: PCA(random_state=seed)),
    peer("PyOD OCSVM", lambda _: OCSVM()),
)
LONG = (
    peer("PyOD AutoEncoder", lambda seed: AutoEncoder(random_state=seed, verbose=0)),
    peer("PyOD VAE", lambda seed: VAE(random_state=seed, verbose=0)),
)
ONE_BY_ONE = (
    ours("ours, prior: standard", prior="standard"),
    ours("ours, score: reconstruction", score_type="reconstruction"),
    ours("ours, members: 1", members=1),
    ours("ours, members: 6", members=6),
    ours("ours, components: 64", components=64),
    ours("ours, components: 128", components=128),
    ours("ours, components: 1024", components=1024),
    ours("ours, noise: 0", noise=0.0),
    ours("ours, hide: 0", hide=0.0),
    ours("ours, beta: 0.1", beta=0.1),
    ours("ours, beta: 1", beta=1.0),
    ours("ours, guard: 0", guard=0.0),
    ours("ours, trim: 0.05", trim=0.05),
    ours("ours, depth: 1", depth=1),
    ours("ours, likelihood: student_t", likelihood="student_t"),
    ours("ours, model: autoencoder", model="autoencoder"),
)
METHODS = (*OURS, *PEERS, *LONG, *ONE_BY_ONE)


# ---------------------------------------------------------------- the run

KEYS = ("method", "set", "seed")


def measure(model: Model, task: Task) -> Figures:
    """How well the model ranks the test rows, and what that costs."""
    _, fit = cpu_seconds(lambda: model.fit(task.train))
    scores, score = cpu_seconds(lambda: model.score(task.test))
    return {
        "auroc": float(roc_auc_score(task.anomaly, scores)),
        "average_precision": float(average_precision_score(task.anomaly, scores)),
        "fit_seconds": fit,
        "score_seconds": score * MOST / len(task.test),
    }


def run(options: Options) -> None:
    """Measure what is not yet measured; write the table and the figure of the ranks."""
    files = sorted(options.folder("adbench").glob("*.npz"))
    found = Ledger(options.result("tabular.csv"), KEYS)
    task = cache(load_task)
    for method, path, seed in _plan(options, files):
        key = (method.name, path.stem, seed)
        if key not in found:
            found.add(key, measure(method.make(seed), task(path, seed)))
    text = f"{report(found.rows)}\n{environment()}"
    options.result("tabular.md").write_text(text, encoding="utf-8")
    plot_ranks(found.rows, options.result("tabular-ranks.png"))
    print(f"\n{text}")


def _plan(options: Options, files: list[Path]) -> Iterator[tuple[Method, Path, int]]:
    """Every set of a method, the first seed of all methods first."""
    methods = (*OURS[:1], *PEERS) if options.short else METHODS
    chosen = files[:SHORT_SETS] if options.short else files
    wanted = [method for method in methods if options.wants(method.name)]
    for seed in range(1 if options.short else options.seeds):
        yield from ((method, path, seed) for method in wanted for path in chosen)


def report(rows: pd.DataFrame) -> str:
    """A Markdown table: means over the sets, mean ranks among the detectors that people would use.

    The configurations that differ from the default in one thing have no rank.
    """
    place = mean_ranks(rows)
    lines = []
    for method in METHODS:
        part = rows[rows["method"] == method.name]
        if len(part):
            lines.append((method.name, *_line(part), *(_rank(p, method.name) for p in place)))
    heads = ("AUROC", "average precision", "fit, CPU-s", "score 10,000, CPU-s")
    return markdown(("method", *heads, "rank by AUROC", "rank by precision"), lines)


def _line(rows: pd.DataFrame) -> Iterator[str]:
    for figure in ("auroc", "average_precision"):
        by_seed = 100 * rows.groupby("seed")[figure].mean()
        spread = f" ± {by_seed.std():.1f}" if len(by_seed) > 1 else ""
        yield f"{by_seed.mean():.1f}{spread}"
    yield f"{rows['fit_seconds'].median():.2f}"
    yield f"{rows['score_seconds'].median():.3f}"


def mean_ranks(rows: pd.DataFrame) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The mean rank of each method over the sets, by AUROC and by average precision."""
    ranked = [method.name for method in (*OURS[:1], *PEERS, *LONG)]
    kept = rows[rows["method"].isin(ranked)]
    by_set = kept.groupby(["set", "method"])[["auroc", "average_precision"]].mean()
    ranks = by_set.groupby(level="set").rank(ascending=False).groupby(level="method").mean()
    return ranks["auroc"].to_dict(), ranks["average_precision"].to_dict()


def _rank(place: Mapping[str, float], name: str) -> str:
    return f"{place[name]:.1f}" if name in place else ""


def plot_ranks(rows: pd.DataFrame, path: Path) -> None:
    """Mean ranks as bars, the best at the top."""
    places = mean_ranks(rows)
    order = sorted(places[1], key=lambda name: places[1][name], reverse=True)
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.3 * len(order) + 1.2), sharey=True)
    titles = ("AUROC", "average precision")
    for axis, place, title in zip(axes, places, titles, strict=True):
        colours = ["C1" if name == OURS[0].name else "C0" for name in order]
        axis.barh(order, [place[name] for name in order], color=colours)
        axis.set_xlabel(f"mean rank by {title}, 1 is best")
    figure.tight_layout()
    with atomic_path(path) as whole:
        figure.savefig(whole, format="png", dpi=120)
    plt.close(figure)
