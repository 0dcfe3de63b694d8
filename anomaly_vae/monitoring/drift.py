"""What the columns of the calibration rows looked like, in a few counts, and how far others are.

A column is cut into `BINS`: below the smallest calibration value, between its quantiles, above the
largest; or the unseen levels, the most frequent ones, the rest. Missing cells are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from anomaly_vae.data.encoding import Categorical, Cyclic, Matrix, TabularEncoding

Counts = NDArray[np.int64]

BINS = 10
CELLS = BINS + 1
"""Counts of a column: its bins, then the missing cells."""
FEWEST = 100
"""Values of a column below which nothing is said of their distribution."""


class ColumnSketch(BaseModel):
    """One column of the calibration rows.

    A number is in the bin of how many ``edges`` it exceeds, a level in that of its place among
    ``codes``, the last bin for others. A time has neither: it moves on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    edges: tuple[float, ...] = ()
    codes: tuple[int, ...] = ()
    counts: tuple[int, ...] = (0,) * CELLS


@dataclass(frozen=True)
class Drift:
    """How the rows of a window differ from the calibration rows in one column.

    Shares of all rows; ``unseen`` is of levels, ``psi`` of what has `FEWEST` values.
    """

    column: str
    psi: float | None
    missing: float
    reference_missing: float
    unseen: float | None
    reference_unseen: float | None


class Sketches:
    """The sketches of a table, ready to count other rows."""

    def __init__(self, encoding: TabularEncoding, columns: Sequence[ColumnSketch]) -> None:
        self.columns = tuple(columns)
        self._at = np.array([encoding.firsts[column.name] for column in self.columns], np.intp)
        self._edges = np.full((len(self.columns), BINS - 1), np.inf, np.float32)
        for row, column in zip(self._edges, self.columns, strict=True):
            row[: len(column.edges)] = column.edges
        self._levels = [(i, _table(c)) for i, c in enumerate(self.columns) if c.codes]

    def count(self, x: Matrix) -> Counts:
        """Encoded rows (N, F) → (number of columns · `CELLS`,), how many fell where."""
        values = np.ascontiguousarray(x[:, self._at].T)
        bins = np.zeros(values.shape, np.uint8)
        for edge in self._edges.T:
            bins += values > edge[:, None]
        for index, table in self._levels:
            codes = np.nan_to_num(values[index]).astype(np.intp)
            bins[index] = table[np.minimum(codes, len(table) - 1)]
        bins[np.isnan(values)] = BINS
        counts = [np.bincount(column, minlength=CELLS) for column in bins]
        return np.array(counts, np.int64).ravel()

    def drift(self, counts: Counts) -> tuple[Drift, ...]:
        """What `count` gave, summed over the rows of a window → how each column differs."""
        pairs = zip(self.columns, counts.reshape(-1, CELLS), strict=True)
        return tuple(_drift(column, now) for column, now in pairs)


def fit_sketches(encoding: TabularEncoding, x: Matrix) -> tuple[ColumnSketch, ...]:
    """Sketch each column of the calibration rows, encoded (N, F)."""
    kinds = {column.name: column for column in encoding.columns}
    cut = [_cut(kinds[name], name, x[:, at]) for name, at in encoding.firsts.items()]
    counts = Sketches(encoding, cut).count(x).reshape(-1, CELLS).tolist()
    return tuple(
        column.model_copy(update={"counts": tuple(found)})
        for column, found in zip(cut, counts, strict=True)
    )


def stability(reference: Counts, now: Counts) -> float:
    """The population stability index Σ (p − q) ln(p / q) of two histograms (B,), chance left out.

    Samples of n and N from one distribution have (B − 1)(1/n + 1/N) on average (Yurdakul 2018);
    that is taken off, so that few rows do not look like drift.
    """
    used = int(np.count_nonzero(reference + now))
    shares = [(counts + 0.5) / (counts.sum() + BINS / 2) for counts in (reference, now)]
    index = ((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum()
    chance = (used - 1) * (1 / reference.sum() + 1 / now.sum())
    return max(float(index - chance), 0.0)


def _cut(kind: object, name: str, values: Matrix) -> ColumnSketch:
    present = values[~np.isnan(values)]
    if isinstance(kind, Categorical):
        frequency = np.bincount(present.astype(np.intp), minlength=1)
        frequency[0] = 0  # what training did not keep has the first bin whatever it is
        most = np.argsort(-frequency, kind="stable")[: BINS - 2]
        return ColumnSketch(name=name, codes=(0, *(int(c) for c in most if frequency[c])))
    if isinstance(kind, Cyclic) or not len(present):
        return ColumnSketch(name=name)
    inner = np.quantile(present, np.arange(1, BINS - 2) / (BINS - 2), method="higher")
    below = np.nextafter(present.min(), np.float32(-np.inf))
    edges = np.unique([below, *inner, present.max()])
    return ColumnSketch(name=name, edges=tuple(edges.tolist()))


def _table(column: ColumnSketch) -> NDArray[np.uint8]:
    """The bin of each code; the one after the last stands for all others."""
    table = np.full(max(column.codes) + 2, BINS - 1, np.uint8)
    table[list(column.codes)] = np.arange(len(column.codes))
    return table


def _drift(column: ColumnSketch, now: Counts) -> Drift:
    reference = np.array(column.counts)
    bins, then = now[:BINS], reference[:BINS]
    watched = bool(column.edges or column.codes) and min(bins.sum(), then.sum()) >= FEWEST
    return Drift(
        column.name,
        stability(then, bins) if watched else None,
        _share(now, BINS),
        _share(reference, BINS),
        _share(now, 0) if column.codes else None,
        _share(reference, 0) if column.codes else None,
    )


def _share(counts: Counts, cell: int) -> float:
    return float(counts[cell] / max(counts.sum(), 1))
