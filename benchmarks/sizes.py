"""From 50 rows to a million, and from 1 column to 1,500: what a fit costs, and what it finds.

Rows are drawn: a mixture of five clusters in a few dimensions, seen through a random network,
noise, and columns that are plain, log-normal, whole numbers or bounded. Anomalies are of the four
kinds of ADBench (Han et al. 2022): local (a cluster's own, twice as wide), global (uniform over the
range of each column), dependency (each column from another row), and clustered (further out than
any normal cluster). No method has an argument. Each is measured in a process of its own; memory is
what the fit and the scores add at their peak to the libraries and the rows.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from anomaly_vae import TabularVAEDetector
from benchmarks.common import (
    Figure,
    Ledger,
    Options,
    cpu_seconds,
    environment,
    markdown,
    one_thread,
)

Matrix = NDArray[np.float64]
Figures = dict[str, float]

ROWS = (50, 200, 1_000, 10_000, 100_000, 1_000_000)
COLUMNS = (1, 2, 10, 30, 100, 500, 1_500)
USUAL_ROWS, USUAL_COLUMNS = 5_000, 30
"""Of the tables whose other side is looked at."""
MANY = 2_000_000
"""Numbers in a table, of which the first seed will do."""
SHORT_ROWS, SHORT_COLUMNS = (50, 1_000, 10_000), (1, 100)
NORMALS, EACH_KIND = 5_000, 500
"""Rows to test on."""
PER = 10_000
"""Rows that the seconds of a score are of."""


# ---------------------------------------------------------------- the rows

CLUSTERS, UNITS, NOISE = 5, 16, 0.3
BLOCK = 1 << 20
"""Numbers drawn at a time, so that memory is that of the rows."""
WIDER, FURTHER, BEYOND = 5**0.5, 5.0, 1.1


@dataclass(frozen=True)
class World:
    """Where rows of so many columns come from; all of it follows from the seed."""

    columns: int
    seed: int

    @cached_property
    def parameters(self) -> tuple[Matrix, Matrix, Matrix]:
        """Centers (K, R), and the two layers (R, H) and (H, D) of the network."""
        generator, rank = np.random.default_rng(self.seed), max(1, min(6, self.columns // 2))
        shapes = (CLUSTERS, rank), (rank, UNITS), (UNITS, self.columns)
        centers, inner, outer = (generator.standard_normal(shape) for shape in shapes)
        return centers, inner / rank**0.5, outer / UNITS**0.5

    def normal(self, count: int, generator: np.random.Generator) -> Matrix:
        """(count, D) rows."""
        return self._rows(count, generator)

    def anomalies(self, kind: str, count: int, generator: np.random.Generator) -> Matrix:
        """(count, D) rows of a kind of `KINDS`."""
        match kind:
            case "local":
                return self._rows(count, generator, wider=WIDER)
            case "clustered":
                return self._rows(count, generator, further=FURTHER)
            case "dependency":
                return np.asarray(generator.permuted(self.normal(count, generator), axis=0))
        rows = self.normal(count, generator)
        middle, half = (rows.max(0) + rows.min(0)) / 2, np.ptp(rows, 0) / 2
        return np.asarray(middle + BEYOND * half * generator.uniform(-1, 1, rows.shape))

    def _rows(
        self, count: int, generator: np.random.Generator, wider: float = 1.0, further: float = 1.0
    ) -> Matrix:
        rows = np.empty((count, self.columns))
        for part in np.array_split(rows, -(-rows.size // BLOCK)):
            part[:] = self._block(len(part), generator, wider, further)
        return rows

    def _block(
        self, count: int, generator: np.random.Generator, wider: float, further: float
    ) -> Matrix:
        centers, inner, outer = self.parameters
        latent = further * centers[generator.integers(CLUSTERS, size=count)]
        latent += 0.5 * wider * generator.standard_normal(latent.shape)
        rows = np.tanh(latent @ inner) @ outer
        rows += NOISE * generator.standard_normal(rows.shape)
        return _warped(rows)


KINDS = ("local", "global", "dependency", "clustered")


def _warped(rows: Matrix) -> Matrix:
    """(N, D): columns in turn as they are, log-normal, whole numbers and bounded."""
    rows[:, 1::4] = np.exp(rows[:, 1::4])
    rows[:, 2::4] = np.round(3 * rows[:, 2::4])
    rows[:, 3::4] = np.clip(rows[:, 3::4], -1, 1)
    return rows


# ---------------------------------------------------------------- the methods


class Ours:
    """The default estimator at alpha 0.05."""

    def __init__(self, seed: int) -> None:
        self.detector = TabularVAEDetector(alpha=0.05, random_state=seed)

    def fit(self, x: Matrix) -> None:
        """Learn from normal rows (N, D)."""
        self.detector.fit(x)

    def score(self, x: Matrix) -> Matrix:
        """(N,), higher is more anomalous."""
        return np.asarray(self.detector.anomaly_score(x))


class Forest:
    """IsolationForest."""

    def __init__(self, seed: int) -> None:
        self.model = IsolationForest(random_state=seed)

    def fit(self, x: Matrix) -> None:
        """See `Ours`."""
        self.model.fit(x)

    def score(self, x: Matrix) -> Matrix:
        """See `Ours`."""
        return -np.asarray(self.model.score_samples(x))


class Neighbours:
    """Mean distance to five neighbours, in standard deviations."""

    def __init__(self, seed: int) -> None:
        del seed
        self.scaler, self.index = StandardScaler(), NearestNeighbors(n_neighbors=5)

    def fit(self, x: Matrix) -> None:
        """See `Ours`."""
        self.index.fit(self.scaler.fit_transform(x))

    def score(self, x: Matrix) -> Matrix:
        """See `Ours`."""
        return np.asarray(self.index.kneighbors(self.scaler.transform(x))[0].mean(1))


METHODS: dict[str, Callable[[int], Any]] = {
    "VAE (ours)": Ours,
    "IsolationForest": Forest,
    "kNN, k = 5": Neighbours,
}


# ---------------------------------------------------------------- the figures


def measure(method: str, rows: int, columns: int, seed: int) -> Figures:
    """What the method costs and finds; alone in its process."""
    generator, world = np.random.default_rng([seed, rows]), World(columns, seed)
    train, normal = world.normal(rows, generator), world.normal(NORMALS, generator)
    odd = {kind: world.anomalies(kind, EACH_KIND, generator) for kind in KINDS}
    test = np.concatenate([normal, *odd.values()])
    with one_thread():
        METHODS[method](seed).fit(train[:50])  # whatever is loaded late, is now
        model, before = METHODS[method](seed), peak()
        _, fit = cpu_seconds(lambda: model.fit(train))
        scores, score = cpu_seconds(lambda: model.score(test))
    ranked = dict(zip(KINDS, np.split(scores[NORMALS:], len(KINDS)), strict=True))
    aurocs = {k: _auroc(scores[:NORMALS], s) for k, s in ranked.items() if k in kinds(columns)}
    return {
        "auroc": float(np.mean(list(aurocs.values()))),
        "fit_seconds": fit,
        "score_seconds": score * PER / len(test),
        "peak_mib": peak() - before,
        **aurocs,
    }


def kinds(columns: int) -> tuple[str, ...]:
    """What can be found: a single column depends on nothing."""
    return tuple(kind for kind in KINDS if columns > 1 or kind != "dependency")


def _auroc(normal: Matrix, odd: Matrix) -> float:
    labels = np.repeat([0, 1], [len(normal), len(odd)])
    return float(roc_auc_score(labels, np.concatenate([normal, odd])))


def peak() -> float:
    """Most memory that this process has held, MiB; ru_maxrss would begin at its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found, "Linux says so"
    return int(found[1]) / 1024


# ---------------------------------------------------------------- the run

KEYS = ("method", "rows", "columns", "seed")
FIGURES = {
    "auroc": Figure("AUROC"),
    "fit_seconds": Figure("fit, CPU-s", ".2f", deviation=False),
    "score_seconds": Figure(f"score {PER:,}, CPU-s", ".3f", deviation=False),
    "peak_mib": Figure("memory, MiB", ".0f", deviation=False),
    **{kind: Figure(kind, ".2f", deviation=False) for kind in KINDS},
}


def run(options: Options) -> None:
    """Measure what is not yet measured, and write the table; what fails is told and left out."""
    found = Ledger(options.result("sizes.csv"), KEYS)
    for key in _plan(options):
        if key not in found:
            try:
                found.add(key, _apart(*key))
            except Exception as error:  # noqa: BLE001  # the other sizes are to be seen all the same
                print(*key, f"failed: {error}", file=sys.stderr, flush=True)
    text = f"{report(found.rows)}\n{environment()}"
    options.result("sizes.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _apart(*key: str | int) -> Figures:
    """`measure` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *key).result()  # type: ignore[arg-type]  # as in KEYS


def _plan(options: Options) -> Iterator[tuple[str, int, int, int]]:
    rows, columns = (SHORT_ROWS, SHORT_COLUMNS) if options.short else (ROWS, COLUMNS)
    sizes = [(n, USUAL_COLUMNS) for n in rows] + [(USUAL_ROWS, d) for d in columns]
    for seed in range(1 if options.short else options.seeds):
        for n, d in sizes:
            if seed == 0 or n * d < MANY:
                yield from ((m, n, d, seed) for m in METHODS if options.wants(m))


def report(rows: pd.DataFrame) -> str:
    """A table over the rows, and one over the columns."""
    tall = rows[rows["columns"] == USUAL_COLUMNS].sort_values("rows", kind="stable")
    wide = rows[rows["rows"] == USUAL_ROWS].sort_values("columns", kind="stable")
    return (
        f"{USUAL_COLUMNS} columns\n\n{_table(tall[tall['rows'] != USUAL_ROWS], 'rows')}\n"
        f"{USUAL_ROWS:,} rows\n\n{_table(wide, 'columns')}"
    )


def _table(rows: pd.DataFrame, by: str) -> str:
    lines = [
        (f"{size:,}", str(method), *(FIGURES[f].over_seeds(group[f]) for f in FIGURES))
        for (size, method), group in rows.groupby([by, "method"], sort=False)
    ]
    return markdown((by, "method", *(figure.head for figure in FIGURES.values())), lines)
