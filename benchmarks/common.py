"""What the protocols share: CPU-seconds, results that resume, tables, and where it all ran."""

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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

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
PACKAGES = ("numpy", "onnxruntime", "pyod", "scikit-learn", "torch")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    data: Path | None
    out: Path
    seeds: int
    only: str
    short: bool

    def root(self) -> Path:
        """The folder of all data."""
        return Path(self.data or os.environ[DATA_VARIABLE])

    def folder(self, name: str) -> Path:
        """A folder of the data."""
        return self.root() / name

    def absent(self, names: Sequence[str]) -> str:
        """What of these the data lack, in one line with the remedy; empty: nothing."""
        if not names:
            return ""
        if not (self.data or os.environ.get(DATA_VARIABLE)):
            return f"no data: give --data DIR or set {DATA_VARIABLE}"
        gone = [str(self.root() / name) for name in names if not (self.root() / name).exists()]
        if not gone:
            return ""
        return f"no data: {', '.join(gone)} not found; correct --data or {DATA_VARIABLE}"

    def result(self, name: str) -> Path:
        """A file of results; the short form keeps its own."""
        return self.out / "short" / name if self.short else self.out / name

    def wants(self, method: str) -> bool:
        """Whether ``--only`` names the method."""
        return fnmatch(method, self.only)


class Ledger:
    """Finished measurements in a CSV, one row per key; what is there need not be done again."""

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, list(keys)
        self.rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=self.keys)

    def __contains__(self, key: Key) -> bool:
        known = self.rows[self.keys].astype(str).itertuples(index=False, name=None)
        return tuple(map(str, key)) in set(known)

    def add(self, key: Key, figures: Mapping[str, float]) -> None:
        """Keep the figures of one measurement, at once."""
        row = pd.DataFrame([dict(zip(self.keys, key, strict=True)) | dict(figures)])
        self.rows = pd.concat([self.rows, row], ignore_index=True) if len(self.rows) else row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as whole:
            self.rows.to_csv(whole, index=False)
        print(*key, *(f"{name}={value:.4g}" for name, value in figures.items()), flush=True)


@dataclass(frozen=True)
class Figure:
    """How a column of results is shown."""

    head: str
    form: str = ".3f"
    deviation: bool = True

    def over_seeds(self, values: pd.Series[float]) -> str:
        """Mean ± standard deviation; the mean alone of a single one."""
        values = values.dropna()
        if not len(values):
            return ""
        mean = format(values.mean(), self.form)
        if len(values) < 2 or not self.deviation:
            return mean
        return f"{mean} ± {format(values.std(), self.form)}"


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread in BLAS, OpenMP and torch, so that CPU-seconds compare."""
    with threadpool_limits(1), cpu_threads(1):
        yield


def cpu_seconds(work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and the CPU time of this process that it took."""
    before = time.process_time()
    result = work()
    return result, time.process_time() - before


def kept_range(alpha: float, n: int, normals: int, fits: int = 1) -> tuple[float, float]:
    """95% range of the rate on exchangeable ``normals`` after calibrating on ``n`` rows.

    Both samples are finite: with m = ⌊α (n + 1)⌋, the count is beta-binomial (m, n + 1 − m)
    (Bates et al. 2023, sec. 2). Of several ``fits``, each on a split of its own, the range is that
    of their mean.
    """
    m = ranks_within(alpha, n)
    count = betabinom(normals, m, n + 1 - m).pmf(np.arange(normals + 1))
    most = fits * normals
    total = np.fft.irfft(np.fft.rfft(count, most + 1) ** fits, most + 1).cumsum()
    low, high = np.searchsorted(total, (0.025, 0.975))
    return float(low / most), float(high / most)


def table(rows: pd.DataFrame, by: str, figures: Mapping[str, Figure]) -> str:
    """A Markdown table: for each value of ``by``, in order of appearance, mean ± deviation."""
    lines = [
        (str(name), *(figure.over_seeds(group[column]) for column, figure in figures.items()))
        for name, group in rows.groupby(by, sort=False)
    ]
    return markdown((by, *(figure.head for figure in figures.values())), lines)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(heads)
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rule, *lines))


def environment() -> str:
    """When, where, with what and how this was measured."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {cores} cores of {platform.machine()}, one thread; "
        f"anomaly-vae {__version__}, Python {platform.python_version()}, {versions}.\n"
        f"`python -m benchmarks {shlex.join(sys.argv[1:])}`\n"
    )


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
