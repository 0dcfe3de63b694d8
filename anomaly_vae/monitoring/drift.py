"""Measure how far the columns of scored rows have drifted from the calibration rows.

Each column is counted in `BINS`. The bins of a number are: below the smallest calibration value,
between quantiles, above the largest. The bins of a level are: unseen levels, each of the most
frequent levels, all others. Missing cells are counted separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from anomaly_vae.data.encoding import Categorical, Cyclic, EncodedColumn, Matrix
from anomaly_vae.scoring.modality import Encoding

Counts = NDArray[np.int64]

BINS = 10
CELLS = BINS + 1
"""Number of counts per column: its bins and the missing cells."""
MIN_VALUES = 100
"""Number of values of a column below which its distribution is not compared."""


class ColumnSketch(BaseModel):
    """The histogram of a column of the calibration rows.

    The bin of a number is the number of ``edges`` that it exceeds; the bin of a level is its index
    in ``codes``, or the last bin. A time has neither, because it changes by nature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    edges: tuple[float, ...] = ()
    codes: tuple[int, ...] = ()
    counts: tuple[int, ...] = (0,) * CELLS


@dataclass(frozen=True)
class Drift:
    """The difference between the rows of a window and the calibration rows in one column.

    ``missing`` and ``unseen`` are shares of all rows; ``unseen`` is None for columns without
    levels, and ``psi`` is None for columns with fewer than `MIN_VALUES` values.
    """

    column: str
    psi: float | None
    missing: float
    reference_missing: float
    unseen: float | None
    reference_unseen: float | None


class Sketches:
    """The sketches of the columns of a table, with the tables to count other rows."""

    def __init__(self, encoding: Encoding, columns: Sequence[ColumnSketch]) -> None:
        self.columns = tuple(columns)
        self._at = np.array(
            [encoding.first_positions[column.name] for column in self.columns], np.intp
        )
        self._edges = np.full((len(self.columns), BINS - 1), np.inf, np.float32)
        for row, column in zip(self._edges, self.columns, strict=True):
            row[: len(column.edges)] = column.edges
        self._levels = [(i, _bin_of_code(c)) for i, c in enumerate(self.columns) if c.codes]

    def count(self, x: Matrix) -> Counts:
        """Count encoded rows (N, F) by column and bin: (number of columns · `CELLS`,)."""
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
        """Return the drift of each column, given the sum of the results of `count`."""
        pairs = zip(self.columns, counts.reshape(-1, CELLS), strict=True)
        return tuple(_column_drift(column, current) for column, current in pairs)


def fit_sketches(encoding: Encoding, x: Matrix) -> tuple[ColumnSketch, ...]:
    """Sketch each column of the calibration rows, encoded as (N, F)."""
    columns = {column.name: column for column in encoding.columns}
    cut = [_cut_into_bins(columns[name], x[:, at]) for name, at in encoding.first_positions.items()]
    counts = Sketches(encoding, cut).count(x).reshape(-1, CELLS).tolist()
    return tuple(
        column.model_copy(update={"counts": tuple(found)})
        for column, found in zip(cut, counts, strict=True)
    )


def population_stability_index(reference: Counts, current: Counts) -> float:
    """Return the population stability index Σ (p − q) ln(p / q) of two histograms (B,).

    Two samples of n and N rows from the same distribution have an expected index of (B − 1)(1/n +
    1/N) (Yurdakul 2018); that is subtracted, so that small windows do not look like drift.
    """
    used = int(np.count_nonzero(reference + current))
    shares = [(counts + 0.5) / (counts.sum() + BINS / 2) for counts in (reference, current)]
    index = ((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum()
    chance = (used - 1) * (1 / reference.sum() + 1 / current.sum())
    return max(float(index - chance), 0.0)


def _cut_into_bins(column: EncodedColumn, values: Matrix) -> ColumnSketch:
    present = values[~np.isnan(values)]
    name = column.name
    if isinstance(column, Categorical):
        frequency = np.bincount(present.astype(np.intp), minlength=1)
        frequency[0] = 0  # levels that training did not keep are always counted in the first bin
        frequent = np.argsort(-frequency, kind="stable")[: BINS - 2]
        return ColumnSketch(name=name, codes=(0, *(int(c) for c in frequent if frequency[c])))
    if isinstance(column, Cyclic) or not len(present):
        return ColumnSketch(name=name)
    inner = np.quantile(present, np.arange(1, BINS - 2) / (BINS - 2), method="higher")
    below = np.nextafter(present.min(), np.float32(-np.inf))
    edges = np.unique([below, *inner, present.max()])
    return ColumnSketch(name=name, edges=tuple(edges.tolist()))


def _bin_of_code(column: ColumnSketch) -> NDArray[np.uint8]:
    """Return the bin of each code; the last entry stands for all other codes."""
    table = np.full(max(column.codes) + 2, BINS - 1, np.uint8)
    table[list(column.codes)] = np.arange(len(column.codes))
    return table


def _column_drift(column: ColumnSketch, current: Counts) -> Drift:
    reference = np.array(column.counts)
    bins, then = current[:BINS], reference[:BINS]
    comparable = bool(column.edges or column.codes) and min(bins.sum(), then.sum()) >= MIN_VALUES
    return Drift(
        column.name,
        population_stability_index(then, bins) if comparable else None,
        _share(current, BINS),
        _share(reference, BINS),
        _share(current, 0) if column.codes else None,
        _share(reference, 0) if column.codes else None,
    )


def _share(counts: Counts, cell: int) -> float:
    return float(counts[cell] / max(counts.sum(), 1))
