"""Measure one-class detection on many tables, of the suite that ``--suite`` names.

- ``adbench``: 20 numeric data sets of ADBench (Han et al. 2022). The splits follow Livernoche et
  al. (ICLR 2024): data sets of more than 10,000 rows are subsampled with stratification; a random
  half of the normal rows is for training, the other half and all anomalies are for testing.
- ``oddbench``: 60 real tables of the OddBench kind, with given splits and names of columns.

Every method has one configuration for all data sets. Our estimator holds out a fraction of its
training rows for calibration; peers train on all of them, standardised. No configuration was chosen
with the test labels of a single data set; RESULTS.md says which choices were made on these suites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from anomaly_vae import TabularVAEDetector
from anomaly_vae.data.identifiers import named_like_things
from anomaly_vae.estimators.tabular import array_names
from anomaly_vae.files import atomic_path
from benchmarks.common import Ledger, Options, cpu_seconds, environment, markdown_table, pyod

Matrix = NDArray[np.float64]
Metrics = dict[str, float]

MAX_ROWS = 10_000
"""Maximum number of rows of a data set, including anomalies."""
PEER_CLIP = 1e4
"""Limit to which test rows are clipped for peers, in standard deviations."""
SHORT_SETS = 6
"""Number of data sets in the short form."""
TIE = 5e-4
"""Largest difference of two figures, as a fraction of 1, that counts as a tie."""


# ---------------------------------------------------------------- the task


@dataclass(frozen=True, eq=False)
class Task:
    """Normal training rows (N, D), test rows (M, D), and whether each of these is an anomaly."""

    train: Matrix
    test: Matrix
    anomaly: NDArray[np.bool_]
    types: Mapping[str, str] = field(default_factory=dict)
    """Type of each column, named as the estimator names those of an array."""


def load_task(path: Path, seed: int) -> Task:
    """Load a data set; split it at random unless it has a split."""
    with np.load(path, allow_pickle=False) as file:
        content = dict(file)
    anomaly = content["y"].ravel() == 1
    if "train" in content:
        train, test = (content[part].astype(np.float64) for part in ("train", "test"))
        return Task(train, test, anomaly, column_types(content["columns"], train))
    return _split(content["X"].astype(np.float64), anomaly, seed)


def column_types(names: NDArray[np.str_], train: Matrix) -> dict[str, str]:
    """Return the types of columns: codes are categorical, and all other columns are numeric.

    Codes are whole numbers in a column whose name says that they name things. Columns whose
    values hardly repeat are left numeric.
    """
    columns = zip(array_names(len(names)), names, train.T, strict=True)
    return {
        column: "categorical" if named_like_things(str(name)) and _repeats(values) else "numeric"
        for column, name, values in columns
    }


def _repeats(values: Matrix) -> bool:
    """Return whether values (N,) are whole numbers, each in at least two rows on average."""
    whole = bool((values == np.round(values)).all())
    return whole and 2 < len(np.unique(values)) <= len(values) / 2


def _split(x: Matrix, anomaly: NDArray[np.bool_], seed: int) -> Task:
    generator = np.random.RandomState(seed)
    if len(x) > MAX_ROWS:
        rows = _subsample(anomaly, generator)
        x, anomaly = x[rows], anomaly[rows]
    normal = generator.permutation(np.flatnonzero(~anomaly))
    train, test_normal = np.split(normal, [len(normal) // 2])
    test = np.concatenate([test_normal, np.flatnonzero(anomaly)])
    types = dict.fromkeys(array_names(x.shape[1]), "numeric")
    return Task(x[train], x[test], anomaly[test], types)


def _subsample(anomaly: NDArray[np.bool_], generator: np.random.RandomState) -> NDArray[np.intp]:
    """Sample `MAX_ROWS` row numbers; the fraction of anomalies is preserved."""
    count = max(1, round(MAX_ROWS * anomaly.mean()))
    normal = generator.choice(np.flatnonzero(~anomaly), MAX_ROWS - count, replace=False)
    anomalies = generator.choice(np.flatnonzero(anomaly), count, replace=False)
    return np.concatenate([normal, anomalies])


# ---------------------------------------------------------------- the methods


class Model(Protocol):
    """A detector to measure."""

    def fit(self, x: Matrix) -> None:
        """Train on normal rows (N, D)."""

    def score(self, x: Matrix) -> Matrix:
        """Return scores (N,); higher is more anomalous."""


@dataclass
class Ours:
    """Our estimator, used through its public API."""

    detector: TabularVAEDetector

    def fit(self, x: Matrix) -> None:
        """See `Model`."""
        self.detector.fit(x)

    def score(self, x: Matrix) -> Matrix:
        """See `Model`."""
        return np.asarray(self.detector.anomaly_score(x))


@dataclass
class Peer:
    """A detector of another library, which reads a standardised matrix."""

    estimator: Any
    scaler: Any = None

    def fit(self, x: Matrix) -> None:
        """See `Model`."""
        self.scaler = StandardScaler()
        self.estimator.fit(self.scaler.fit_transform(x))

    def score(self, x: Matrix) -> Matrix:
        """See `Model`. PyOD scores anomalies high, scikit-learn's ``score_samples`` low."""
        x = np.clip(self.scaler.transform(x), -PEER_CLIP, PEER_CLIP)
        if hasattr(self.estimator, "score_samples"):
            return -np.asarray(self.estimator.score_samples(x))
        return np.nan_to_num(np.asarray(self.estimator.decision_function(x)), posinf=1e30)


class Neighbours:
    """Mean distance to the k nearest training rows."""

    def __init__(self, k: int) -> None:
        self.index = NearestNeighbors(n_neighbors=k)

    def fit(self, x: Matrix) -> None:
        """Index the rows (N, D)."""
        self.index.fit(x)

    def decision_function(self, x: Matrix) -> Matrix:
        """Return the mean distances (N,), in standard deviations."""
        return np.asarray(self.index.kneighbors(x)[0].mean(1))


class Mixture:
    """Mixture of ten Gaussians with full covariances, or fewer if there are under 200 rows."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, x: Matrix) -> None:
        """Fit the mixture to rows (N, D) by expectation-maximisation."""
        count = max(1, min(10, len(x) // 20))
        self.model = GaussianMixture(count, reg_covar=1e-3, random_state=self.seed).fit(x)

    def score_samples(self, x: Matrix) -> Matrix:
        """Return log-densities (N,)."""
        return np.asarray(self.model.score_samples(x))


@dataclass(frozen=True)
class Method:
    """A method's label, and a function that makes it from a seed."""

    name: str
    make: Callable[[int], Model]
    typed: bool = False
    """Whether our estimator is told the types of the columns."""


def ours(name: str, typed: bool = False, **overrides: Any) -> Method:
    """Return a method: our estimator with these arguments."""
    return Method(
        name,
        lambda seed: Ours(TabularVAEDetector(alpha=0.05, random_state=seed, **overrides)),
        typed,
    )


def peer(name: str, make: Callable[[int], Any]) -> Method:
    """Return a method: a detector of another library."""
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
    peer("PyOD KNN", lambda _: pyod("knn.KNN")),
    peer("PyOD LOF", lambda _: pyod("lof.LOF")),
    peer("PyOD IForest", lambda seed: pyod("iforest.IForest", random_state=seed)),
    peer("PyOD ECOD", lambda _: pyod("ecod.ECOD")),
    peer("PyOD PCA", lambda seed: pyod("pca.PCA", random_state=seed)),
    peer("PyOD OCSVM", lambda _: pyod("ocsvm.OCSVM")),
)
SLOW_PEERS = (
    peer(
        "PyOD AutoEncoder",
        lambda seed: pyod("auto_encoder.AutoEncoder", random_state=seed, verbose=0),
    ),
    peer("PyOD VAE", lambda seed: pyod("vae.VAE", random_state=seed, verbose=0)),
)
ABLATIONS = (
    ours("ours, prior: standard", prior="standard"),
    ours("ours, score: reconstruction", score_type="reconstruction"),
    ours("ours, members: 1", members=1),
    ours("ours, members: 6", members=6),
    ours("ours, components: 64", components=64),
    ours("ours, components: 256", components=256),
    ours("ours, components: 1024", components=1024),
    ours("ours, exemplars: 0", exemplars=0),
    ours("ours, exemplars: 1024", exemplars=1024),
    ours("ours, exemplars: 2048", exemplars=2048),
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
TYPED = (ours("ours, codes as categories", typed=True),)
METHODS = (*OURS, *TYPED, *PEERS, *SLOW_PEERS, *ABLATIONS)


# ---------------------------------------------------------------- the run

KEYS = ("method", "set", "seed")


def measure(model: Model, task: Task) -> Metrics:
    """Measure how well a model ranks the test rows, and the CPU-seconds of fitting and scoring."""
    _, fit = cpu_seconds(lambda: model.fit(task.train))
    scores, score = cpu_seconds(lambda: model.score(task.test))
    return {
        "auroc": float(roc_auc_score(task.anomaly, scores)),
        "average_precision": float(average_precision_score(task.anomaly, scores)),
        "fit_seconds": fit,
        "score_seconds": score * MAX_ROWS / len(task.test),
    }


def run(options: Options) -> None:
    """Run the missing measurements; write the tables and plot the mean ranks."""
    files = sorted(options.data_folder(options.suite).glob("*.npz"))
    name = "tabular" if options.suite == "adbench" else f"tabular-{options.suite}"
    ledger = Ledger(options.result_path(f"{name}.csv"), KEYS)
    task = cache(load_task)
    for method, path, seed in _plan(options, files):
        key = (method.name, path.stem, seed)
        if key not in ledger and _applies(method, task(path, seed)):
            ledger.add(key, measure(prepared(method, task(path, seed), seed), task(path, seed)))
    text = f"{report(ledger.rows)}\n{duels(ledger.rows)}\n{environment()}"
    options.result_path(f"{name}.md").write_text(text, encoding="utf-8")
    plot_ranks(ledger.rows, options.result_path(f"{name}-ranks.png"))
    print(f"\n{text}")


def prepared(method: Method, task: Task, seed: int) -> Model:
    """Return a model of the method, which knows the types of the columns if it wants them."""
    model = method.make(seed)
    if method.typed and isinstance(model, Ours):
        model.detector.set_params(features=task.types)
    return model


def _applies(method: Method, task: Task) -> bool:
    """Return whether a method differs from the default on a data set."""
    return not method.typed or "categorical" in task.types.values()


def _plan(options: Options, files: list[Path]) -> Iterator[tuple[Method, Path, int]]:
    """Yield every method and data set, one seed after the other."""
    candidates = (*OURS[:1], *PEERS) if options.short else METHODS
    set_files = files[:SHORT_SETS] if options.short else files
    methods = [method for method in candidates if options.wants(method.name)]
    for seed in range(1 if options.short else options.seeds):
        yield from ((method, path, seed) for method in methods for path in set_files)


def report(rows: pd.DataFrame) -> str:
    """Tabulate means over the data sets and mean ranks.

    Ranks are among our default and the peers; presets and ablations have none. The default with
    codes as categories counts as the default on the sets without codes.
    """
    ranks, rows = mean_ranks(rows), _with_untyped(rows)
    lines = []
    for method in METHODS:
        part = rows[rows["method"] == method.name]
        if len(part):
            lines.append(
                (
                    method.name,
                    *_method_cells(part),
                    *(_format_rank(by_metric, method.name) for by_metric in ranks),
                )
            )
    headings = ("AUROC", "average precision", "fit, CPU-s", "score 10,000, CPU-s")
    return markdown_table(("method", *headings, "rank by AUROC", "rank by precision"), lines)


def _with_untyped(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the default's measurements to typed methods on the sets where both are the same."""
    default = rows[rows["method"] == OURS[0].name]
    added = [rows]
    for method in TYPED:
        own = rows[rows["method"] == method.name]
        rest = default[~default["set"].isin(own["set"])]
        added.append(rest.assign(method=method.name) if len(own) else own)
    return pd.concat(added)


def duels(rows: pd.DataFrame) -> str:
    """Tabulate on how many sets the default wins, ties and loses against every other method.

    The last columns are p-values of the two-sided sign test, which leaves out ties (Conover 1999,
    sec. 3.4). Without measurements of the default there are no lines.
    """
    if OURS[0].name not in set(rows["method"]):
        rows = rows[:0]
    means = _with_untyped(rows).groupby(["method", "set"])[["auroc", "average_precision"]].mean()
    lines = [
        (method.name, *_duel(means, method.name))
        for method in METHODS
        if method is not OURS[0] and method.name in means.index
    ]
    headings = ("AUROC", "average precision", "p, AUROC", "p, average precision")
    return markdown_table(("default against", *headings), lines)


def _duel(means: pd.DataFrame, name: str) -> tuple[str, ...]:
    gaps = (means.loc[OURS[0].name] - means.loc[name]).dropna().to_numpy()
    counts = [(int((gap > TIE).sum()), int((gap < -TIE).sum())) for gap in gaps.T]
    texts = [f"{won}, {len(gaps) - won - lost}, {lost}" for won, lost in counts]
    return (*texts, *(f"{sign_test(won, lost):.3f}" for won, lost in counts))


def sign_test(won: int, lost: int) -> float:
    """Return the p-value of the two-sided sign test, 1 without wins and losses."""
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _method_cells(rows: pd.DataFrame) -> Iterator[str]:
    for metric in ("auroc", "average_precision"):
        by_seed = 100 * rows.groupby("seed")[metric].mean()
        spread = f" ± {by_seed.std():.1f}" if len(by_seed) > 1 else ""
        yield f"{by_seed.mean():.1f}{spread}"
    yield f"{rows['fit_seconds'].median():.2f}"
    yield f"{rows['score_seconds'].median():.3f}"


def mean_ranks(rows: pd.DataFrame) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Compute the mean rank of each method over the sets, by AUROC and by average precision."""
    ranked = [method.name for method in (*OURS[:1], *PEERS, *SLOW_PEERS)]
    ranked_rows = rows[rows["method"].isin(ranked)]
    by_set = ranked_rows.groupby(["set", "method"])[["auroc", "average_precision"]].mean()
    mean_rank = by_set.groupby(level="set").rank(ascending=False).groupby(level="method").mean()
    return mean_rank["auroc"].to_dict(), mean_rank["average_precision"].to_dict()


def _format_rank(ranks: Mapping[str, float], name: str) -> str:
    return f"{ranks[name]:.1f}" if name in ranks else ""


def plot_ranks(rows: pd.DataFrame, path: Path) -> None:
    """Plot mean ranks as bars, with the best method at the top."""
    ranks_by_metric = mean_ranks(rows)
    order = sorted(ranks_by_metric[1], key=lambda name: ranks_by_metric[1][name], reverse=True)
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.3 * len(order) + 1.2), sharey=True)
    titles = ("AUROC", "average precision")
    for axis, ranks, title in zip(axes, ranks_by_metric, titles, strict=True):
        colours = ["C1" if name == OURS[0].name else "C0" for name in order]
        axis.barh(order, [ranks[name] for name in order], color=colours)
        axis.set_xlabel(f"mean rank by {title}, 1 is best")
    figure.tight_layout()
    with atomic_path(path) as whole:
        figure.savefig(whole, format="png", dpi=120)
    plt.close(figure)
