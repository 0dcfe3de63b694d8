"""Measure cost and detection on tables of 50 to a million rows and of 1 to 1,500 columns.

The tables are simulated. Normal rows come from a mixture of five clusters in a few latent
dimensions, mapped through a random network, plus noise; the columns are unbounded, log-normal,
integer or bounded. Anomalies are of the four kinds of ADBench (Han et al. 2022): local (around the
same clusters with five times the variance), global (uniform over the range of each column),
dependency (each column from a different row), and clustered (around cluster centers five times as
far out). Our estimator, IsolationForest and nearest neighbours run with default settings. Every
measurement runs in a separate process; memory is the peak that fitting and scoring add to the
libraries and the rows.
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
    Column,
    Ledger,
    Options,
    cpu_seconds,
    environment,
    markdown_table,
    one_thread,
)

Matrix = NDArray[np.float64]
Metrics = dict[str, float]

ROWS = (50, 200, 1_000, 10_000, 100_000, 1_000_000)
COLUMNS = (1, 2, 10, 30, 100, 500, 1_500)
"""Numbers of rows and of columns to measure."""
DEFAULT_ROWS, DEFAULT_COLUMNS = 5_000, 30
"""Number of rows while the columns vary, and number of columns while the rows vary."""
SINGLE_SEED_VALUES = 2_000_000
"""Number of values in a table from which on only the first seed is run."""
SHORT_ROWS, SHORT_COLUMNS = (50, 1_000, 10_000), (1, 100)
TEST_NORMALS, ANOMALIES_PER_KIND = 5_000, 500
"""Numbers of normal test rows, and of anomalies of each kind."""
SCORED_ROWS = 10_000
"""Number of rows that scoring times are reported for."""


# ---------------------------------------------------------------- the rows

CLUSTERS, HIDDEN_UNITS, NOISE = 5, 16, 0.3
"""Number of clusters, hidden units of the network, and standard deviation of the noise."""
BLOCK_VALUES = 1 << 20
"""Number of values drawn at a time, so that drawing adds little memory to that of the rows."""
LOCAL_SPREAD, CLUSTER_DISTANCE, GLOBAL_RANGE = 5**0.5, 5.0, 1.1
"""Factors of a cluster's standard deviation (local anomalies), of the distance of cluster centers
from the origin (clustered), and of the range of a column (global)."""


@dataclass(frozen=True)
class RowSimulator:
    """A distribution of rows with a given number of columns, determined by its seed."""

    columns: int
    seed: int

    @cached_property
    def parameters(self) -> tuple[Matrix, Matrix, Matrix]:
        """Cluster centers (K, R) and the layers (R, H) and (H, D) of the network."""
        generator, rank = np.random.default_rng(self.seed), max(1, min(6, self.columns // 2))
        shapes = (CLUSTERS, rank), (rank, HIDDEN_UNITS), (HIDDEN_UNITS, self.columns)
        centers, first_layer, second_layer = (generator.standard_normal(shape) for shape in shapes)
        return centers, first_layer / rank**0.5, second_layer / HIDDEN_UNITS**0.5

    def normal(self, count: int, generator: np.random.Generator) -> Matrix:
        """Draw normal rows (count, D)."""
        return self._rows(count, generator)

    def anomalies(self, kind: str, count: int, generator: np.random.Generator) -> Matrix:
        """Draw anomalies (count, D) of one of the `KINDS`."""
        match kind:
            case "local":
                return self._rows(count, generator, spread=LOCAL_SPREAD)
            case "clustered":
                return self._rows(count, generator, distance=CLUSTER_DISTANCE)
            case "dependency":
                return np.asarray(generator.permuted(self.normal(count, generator), axis=0))
        rows = self.normal(count, generator)
        center, half_range = (rows.max(0) + rows.min(0)) / 2, np.ptp(rows, 0) / 2
        return np.asarray(center + GLOBAL_RANGE * half_range * generator.uniform(-1, 1, rows.shape))

    def _rows(
        self, count: int, generator: np.random.Generator, spread: float = 1.0, distance: float = 1.0
    ) -> Matrix:
        rows = np.empty((count, self.columns))
        for part in np.array_split(rows, -(-rows.size // BLOCK_VALUES)):
            part[:] = self._block(len(part), generator, spread, distance)
        return rows

    def _block(
        self, count: int, generator: np.random.Generator, spread: float, distance: float
    ) -> Matrix:
        centers, first_layer, second_layer = self.parameters
        latent = distance * centers[generator.integers(CLUSTERS, size=count)]
        latent += 0.5 * spread * generator.standard_normal(latent.shape)
        rows = np.tanh(latent @ first_layer) @ second_layer
        rows += NOISE * generator.standard_normal(rows.shape)
        return _transform_columns(rows)


KINDS = ("local", "global", "dependency", "clustered")


def _transform_columns(rows: Matrix) -> Matrix:
    """Make columns (N, D) unbounded, log-normal, integer and bounded in turn, in place."""
    rows[:, 1::4] = np.exp(rows[:, 1::4])
    rows[:, 2::4] = np.round(3 * rows[:, 2::4])
    rows[:, 3::4] = np.clip(rows[:, 3::4], -1, 1)
    return rows


# ---------------------------------------------------------------- the methods


class Ours:
    """Our estimator with default settings and alpha 0.05."""

    def __init__(self, seed: int) -> None:
        self.detector = TabularVAEDetector(alpha=0.05, random_state=seed)

    def fit(self, x: Matrix) -> None:
        """Train on normal rows (N, D)."""
        self.detector.fit(x)

    def score(self, x: Matrix) -> Matrix:
        """Return scores (N,); higher is more anomalous."""
        return np.asarray(self.detector.anomaly_score(x))


class IsolationForestModel:
    """IsolationForest with default settings."""

    def __init__(self, seed: int) -> None:
        self.model = IsolationForest(random_state=seed)

    def fit(self, x: Matrix) -> None:
        """See `Ours`."""
        self.model.fit(x)

    def score(self, x: Matrix) -> Matrix:
        """See `Ours`."""
        return -np.asarray(self.model.score_samples(x))


class NearestNeighbours:
    """Mean distance to the five nearest training rows, in standard deviations."""

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
    "IsolationForest": IsolationForestModel,
    "kNN, k = 5": NearestNeighbours,
}


# ---------------------------------------------------------------- the measurements


def measure(method: str, rows: int, columns: int, seed: int) -> Metrics:
    """Measure the cost and the AUROC of a method; meant to run in a process of its own."""
    generator, simulator = np.random.default_rng([seed, rows]), RowSimulator(columns, seed)
    train, normal = (simulator.normal(count, generator) for count in (rows, TEST_NORMALS))
    anomalies_by_kind = {
        kind: simulator.anomalies(kind, ANOMALIES_PER_KIND, generator) for kind in KINDS
    }
    test = np.concatenate([normal, *anomalies_by_kind.values()])
    with one_thread():
        METHODS[method](seed).fit(train[:50])  # trigger lazy imports before the measurement
        model, before = METHODS[method](seed), peak_memory()
        _, fit = cpu_seconds(lambda: model.fit(train))
        scores, score = cpu_seconds(lambda: model.score(test))
    scores_by_kind = dict(zip(KINDS, np.split(scores[TEST_NORMALS:], len(KINDS)), strict=True))
    aurocs = {
        kind: _auroc(scores[:TEST_NORMALS], scores_by_kind[kind])
        for kind in detectable_kinds(columns)
    }
    return {
        "auroc": float(np.mean(list(aurocs.values()))),
        "fit_seconds": fit,
        "score_seconds": score * SCORED_ROWS / len(test),
        "peak_mib": peak_memory() - before,
        **aurocs,
    }


def detectable_kinds(columns: int) -> tuple[str, ...]:
    """Return the kinds of anomalies that exist: one column has no dependency to break."""
    return tuple(kind for kind in KINDS if columns > 1 or kind != "dependency")


def _auroc(normal: Matrix, anomalies: Matrix) -> float:
    labels = np.repeat([0, 1], [len(normal), len(anomalies)])
    return float(roc_auc_score(labels, np.concatenate([normal, anomalies])))


def peak_memory() -> float:
    """Return the peak resident memory of this process in MiB.

    ``ru_maxrss`` is not used because a child process inherits the value of its parent.
    """
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert match, "Linux reports VmHWM"
    return int(match[1]) / 1024


# ---------------------------------------------------------------- the run

KEYS = ("method", "rows", "columns", "seed")
RESULT_COLUMNS = {
    "auroc": Column("AUROC"),
    "fit_seconds": Column("fit, CPU-s", ".2f", show_deviation=False),
    "score_seconds": Column(f"score {SCORED_ROWS:,}, CPU-s", ".3f", show_deviation=False),
    "peak_mib": Column("memory, MiB", ".0f", show_deviation=False),
    **{kind: Column(kind, ".2f", show_deviation=False) for kind in KINDS},
}


def run(options: Options) -> None:
    """Run the missing measurements and write the tables; report failures and leave them out."""
    ledger = Ledger(options.result_path("sizes.csv"), KEYS)
    for key in _plan(options):
        if key not in ledger:
            try:
                ledger.add(key, _measure_in_subprocess(*key))
            except Exception as error:  # noqa: BLE001  # other sizes are still measured
                print(*key, f"failed: {error}", file=sys.stderr, flush=True)
    text = f"{report(ledger.rows)}\n{environment()}"
    options.result_path("sizes.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _measure_in_subprocess(*key: str | int) -> Metrics:
    """Run `measure` in a separate process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *key).result()  # type: ignore[arg-type]  # as in KEYS


def _plan(options: Options) -> Iterator[tuple[str, int, int, int]]:
    rows, columns = (SHORT_ROWS, SHORT_COLUMNS) if options.short else (ROWS, COLUMNS)
    table_sizes = [(n, DEFAULT_COLUMNS) for n in rows] + [(DEFAULT_ROWS, d) for d in columns]
    for seed in range(1 if options.short else options.seeds):
        for n, d in table_sizes:
            if seed == 0 or n * d < SINGLE_SEED_VALUES:
                yield from ((method, n, d, seed) for method in METHODS if options.wants(method))


def report(rows: pd.DataFrame) -> str:
    """Tabulate the results by number of rows, then by number of columns."""
    by_rows = rows[rows["columns"] == DEFAULT_COLUMNS].sort_values("rows", kind="stable")
    by_columns = rows[rows["rows"] == DEFAULT_ROWS].sort_values("columns", kind="stable")
    return (
        f"{DEFAULT_COLUMNS} columns\n\n{_table(by_rows[by_rows['rows'] != DEFAULT_ROWS], 'rows')}\n"
        f"{DEFAULT_ROWS:,} rows\n\n{_table(by_columns, 'columns')}"
    )


def _table(rows: pd.DataFrame, size_column: str) -> str:
    lines = [
        (
            f"{size:,}",
            str(method),
            *(RESULT_COLUMNS[name].summarize(group[name]) for name in RESULT_COLUMNS),
        )
        for (size, method), group in rows.groupby([size_column, "method"], sort=False)
    ]
    return markdown_table(
        (
            size_column,
            "method",
            *(column_format.heading for column_format in RESULT_COLUMNS.values()),
        ),
        lines,
    )
