"""What the protocols share: CPU-seconds, results that resume, tables, and where it all ran."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import pandas as pd
from threadpoolctl import threadpool_limits

from anomaly_vae import __version__
from anomaly_vae.files import atomic_path
from anomaly_vae.training import cpu_threads

T = TypeVar("T")
Key = tuple[str | int, ...]

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
        """The folder of all data; ends the program with one line where none is named."""
        root = self.data or os.environ.get(DATA_VARIABLE)
        if not root:
            sys.exit(f"no data: give --data DIR or set {DATA_VARIABLE}")
        return Path(root)

    def folder(self, name: str) -> Path:
        """A folder of the data; ends the program with one line where there is none."""
        folder = self.root() / name
        if not folder.is_dir():
            sys.exit(f"no data: '{folder}' is not a folder; correct --data or {DATA_VARIABLE}")
        return folder

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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
