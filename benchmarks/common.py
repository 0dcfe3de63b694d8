"""Provide CPU timing, resumable results and Markdown tables to the benchmark protocols."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from scipy.stats import betabinom
from threadpoolctl import threadpool_limits

from anomaly_vae import __version__
from anomaly_vae.calibration.conformal import ranks_within
from anomaly_vae.files import atomic_path
from anomaly_vae.training.runtime import cpu_threads

T = TypeVar("T")
Key = tuple[str | int | float, ...]

DATA_VARIABLE = "ANOMALY_VAE_DATA"
"""Environment variable that names the data folder."""
PACKAGES = ("numpy", "onnxruntime", "pyod", "scikit-learn", "torch")
"""Packages whose versions are reported with the results."""


@dataclass(frozen=True)
class Options:
    """Command-line options of a benchmark run."""

    data: Path | None
    """Data folder; None means the folder named by ``ANOMALY_VAE_DATA``."""
    out: Path
    """Results folder."""
    seeds: int
    """Number of seeds per random method."""
    only: str
    """Shell-style pattern of the methods to run."""
    short: bool
    """Whether to run the short form, on a subsample."""
    suite: str = "adbench"
    """Data sets of the protocol ``tabular``."""

    def data_root(self) -> Path:
        """Return the folder that contains all data sets."""
        return Path(self.data or os.environ[DATA_VARIABLE])

    def data_folder(self, name: str) -> Path:
        """Return the folder of one data set."""
        return self.data_root() / name

    def missing_data(self, names: Sequence[str]) -> str:
        """Return a one-line message naming missing data and the remedy, or "" if all exist."""
        if not names:
            return ""
        if not (self.data or os.environ.get(DATA_VARIABLE)):
            return f"no data: give --data DIR or set {DATA_VARIABLE}"
        missing = [
            str(self.data_root() / name) for name in names if not (self.data_root() / name).exists()
        ]
        if not missing:
            return ""
        return f"no data: {', '.join(missing)} not found; correct --data or {DATA_VARIABLE}"

    def result_path(self, name: str) -> Path:
        """Return the path of a results file; the short form has its own folder."""
        return self.out / "short" / name if self.short else self.out / name

    def wants(self, method: str) -> bool:
        """Return whether the method matches ``--only``."""
        return fnmatch(method, self.only)


class Ledger:
    """CSV file of finished measurements, one row per key, from which an interrupted run resumes."""

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, list(keys)
        self.rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=self.keys)

    def __contains__(self, key: Key) -> bool:
        known = self.rows[self.keys].astype(str).itertuples(index=False, name=None)
        return tuple(map(str, key)) in set(known)

    def add(self, key: Key, metrics: Mapping[str, float]) -> None:
        """Save the metrics of one measurement to the file and print them."""
        row = pd.DataFrame([dict(zip(self.keys, key, strict=True)) | dict(metrics)])
        self.rows = pd.concat([self.rows, row], ignore_index=True) if len(self.rows) else row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            self.rows.to_csv(temporary, index=False)
        print(*key, *(f"{name}={value:.4g}" for name, value in metrics.items()), flush=True)


@dataclass(frozen=True)
class Column:
    """Format of a column in a results table."""

    heading: str
    format_spec: str = ".3f"
    show_deviation: bool = True
    """Whether the standard deviation over the seeds follows the mean."""

    def summarize(self, values: pd.Series[float]) -> str:
        """Format the mean ± standard deviation over the seeds; omit the deviation of one value."""
        values = values.dropna()
        if not len(values):
            return ""
        mean = format(values.mean(), self.format_spec)
        if len(values) < 2 or not self.show_deviation:
            return mean
        return f"{mean} ± {format(values.std(), self.format_spec)}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS, OpenMP and torch to one thread, so that CPU-seconds are comparable."""
    with threadpool_limits(1), cpu_threads(1):
        yield


def cpu_seconds(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of the call and the CPU time that it took in this process."""
    before = time.process_time()
    result = call()
    return result, time.process_time() - before


def expected_rate_range(alpha: float, n: int, normals: int, fits: int = 1) -> tuple[float, float]:
    """Compute the 95% range of the false positive rate that a conformal threshold should have.

    The number of flags is beta-binomial with parameters m and n + 1 − m, m = ⌊α (n + 1)⌋, because
    both samples are finite (Bates et al. 2023, sec. 2).

    Args:
        alpha: nominal false positive rate of the threshold.
        n: number of calibration rows.
        normals: number of normal test rows, exchangeable with the calibration rows.
        fits: number of independent splits; the range is that of their mean rate.
    """
    m = ranks_within(alpha, n)
    pmf = betabinom(normals, m, n + 1 - m).pmf(np.arange(normals + 1))
    largest_count = fits * normals
    cumulative = np.fft.irfft(
        np.fft.rfft(pmf, largest_count + 1) ** fits, largest_count + 1
    ).cumsum()
    low, high = np.searchsorted(cumulative, (0.025, 0.975))
    return float(low / largest_count), float(high / largest_count)


def summary_table(rows: pd.DataFrame, group_by: str, formats: Mapping[str, Column]) -> str:
    """Build a Markdown table with mean ± deviation for each value of the column ``group_by``."""
    lines = [
        (
            str(name),
            *(column_format.summarize(group[column]) for column, column_format in formats.items()),
        )
        for name, group in rows.groupby(group_by, sort=False)
    ]
    return markdown_table(
        (group_by, *(column_format.heading for column_format in formats.values())), lines
    )


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Build a Markdown table."""
    rule = ["---"] * len(headings)
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, rule, *lines))


def environment() -> str:
    """Describe the date, machine, package versions and command line of this run."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {cores} cores of {platform.machine()}, one thread; "
        f"anomaly-vae {__version__}, Python {platform.python_version()}, {versions}.\n"
        f"`python -m benchmarks {shlex.join(sys.argv[1:])}`\n"
    )


def free_port() -> int:
    """Return a free TCP port on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def pyod(name: str, **arguments: Any) -> Any:
    """Create a detector of PyOD, which only the extra `bench` installs, by module and class."""
    module, _, kind = name.partition(".")
    return getattr(import_module(f"pyod.models.{module}"), kind)(**arguments)
