"""Measure how far the columns of scored rows have drifted from the calibration rows.

Each column has a histogram of `BINS` bins. Numbers have one bin below the smallest calibration
value, bins between quantiles, and one bin above the largest value. Levels have one bin for unseen
levels, one for each of the most frequent levels, and one for all others. Missing cells are counted
separately.
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
"""Number of bins per column."""
CELLS = BINS + 1
"""Number of counts per column: one per bin, and one for missing cells."""
MIN_VALUES = 100
"""Minimum number of values of a column for a comparison of distributions."""


class ColumnSketch(BaseModel):
    """The histogram of a column of the calibration rows.

    The bin of a number is the number of ``edges`` that it exceeds. The bin of a level is the index
    of its code in ``codes``, or the last bin if the code is not there. A time column has neither
    edges nor codes, because times are expected to change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    edges: tuple[float, ...] = ()
    codes: tuple[int, ...] = ()
    counts: tuple[int, ...] = (0,) * CELLS


@dataclass(frozen=True)
class Drift:
    """The difference between a window's rows and the calibration rows in one column.

    ``missing`` and ``unseen`` are shares of all rows; ``unseen`` is None for columns without
    levels. ``psi`` is the population stability index; it is None for columns with fewer than
    `MIN_VALUES` values.
    """

    column: str
    psi: float | None
    missing: float
    reference_missing: float
    unseen: float | None
    reference_unseen: float | None
    martingale_log10: float | None = None
    """Evidence that the values differ from those of calibration rows; None if it was not tested."""
    noticed_after: int | None = None
    """Number of rows after which it is usually noticed that a tenth of them moved to one end of the
    column; None if no number of rows suffices, or the column is not tested."""


class Sketches:
    """The sketches of a table's columns, prepared for counting other rows."""

    def __init__(self, encoding: Encoding, columns: Sequence[ColumnSketch]) -> None:
        self.columns = tuple(columns)
        self._positions = np.array(
            [encoding.first_positions[column.name] for column in self.columns], np.intp
        )
        self._edges = np.full((len(self.columns), BINS - 1), np.inf, np.float32)
        for row, column in zip(self._edges, self.columns, strict=True):
            row[: len(column.edges)] = column.edges
        self._levels = [(i, _bin_of_code(c)) for i, c in enumerate(self.columns) if c.codes]

    def count(self, x: Matrix) -> Counts:
        """Return counts (columns · `CELLS`,) of encoded rows (N, F) by column and bin."""
        counts = [np.bincount(column, minlength=CELLS) for column in self.bins(x)]
        return np.array(counts, np.int64).ravel()

    def bins(self, x: Matrix) -> NDArray[np.uint8]:
        """Return the bin (columns, N) of each column of encoded rows (N, F)."""
        values = np.ascontiguousarray(x[:, self._positions].T)
        bins = np.zeros(values.shape, np.uint8)
        for edge in self._edges.T:
            bins += values > edge[:, None]
        for index, table in self._levels:
            codes = np.nan_to_num(values[index]).astype(np.intp)
            bins[index] = table[np.minimum(codes, len(table) - 1)]
        bins[np.isnan(values)] = BINS
        return bins

    def drift(self, counts: Counts) -> tuple[Drift, ...]:
        """Return the drift of each column, given counts or a sum of counts from `count`."""
        pairs = zip(self.columns, counts.reshape(-1, CELLS), strict=True)
        return tuple(_column_drift(column, current) for column, current in pairs)


def fit_sketches(encoding: Encoding, x: Matrix) -> tuple[ColumnSketch, ...]:
    """Sketch each column of the calibration rows, encoded as (N, F)."""
    columns = {column.name: column for column in encoding.columns}
    cut = [
        _cut_into_bins(columns[name], x[:, position])
        for name, position in encoding.first_positions.items()
    ]
    counts = Sketches(encoding, cut).count(x).reshape(-1, CELLS).tolist()
    return tuple(
        column.model_copy(update={"counts": tuple(column_counts)})
        for column, column_counts in zip(cut, counts, strict=True)
    )


def population_stability_index(reference: Counts, current: Counts) -> float:
    """Return the population stability index Σ (p − q) ln(p / q) of two histograms (B,).

    Two samples of n and N rows from the same distribution have an expected index of (B − 1)(1/n +
    1/N) (Yurdakul 2018). This expectation is subtracted, so that small windows do not look like
    drift.
    """
    occupied = int(np.count_nonzero(reference + current))
    shares = [(counts + 0.5) / (counts.sum() + BINS / 2) for counts in (reference, current)]
    index = ((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum()
    chance = (occupied - 1) * (1 / reference.sum() + 1 / current.sum())
    return max(float(index - chance), 0.0)


def _cut_into_bins(column: EncodedColumn, values: Matrix) -> ColumnSketch:
    """Return a sketch with bins chosen from the values (N,) of a column, and without counts."""
    present = values[~np.isnan(values)]
    name = column.name
    if isinstance(column, Categorical):
        frequency = np.bincount(present.astype(np.intp), minlength=1)
        frequency[0] = 0  # code 0, levels that training did not keep, always has the first bin
        frequent = np.argsort(-frequency, kind="stable")[: BINS - 2]
        return ColumnSketch(name=name, codes=(0, *(int(c) for c in frequent if frequency[c])))
    if isinstance(column, Cyclic) or not len(present):
        return ColumnSketch(name=name)
    inner = np.quantile(present, np.arange(1, BINS - 2) / (BINS - 2), method="higher")
    below = np.nextafter(present.min(), np.float32(-np.inf))
    edges = np.unique([below, *inner, present.max()])
    return ColumnSketch(name=name, edges=tuple(edges.tolist()))


def _bin_of_code(column: ColumnSketch) -> NDArray[np.uint8]:
    """Return the bin of each code; the last entry is the bin of all higher codes."""
    table = np.full(max(column.codes) + 2, BINS - 1, np.uint8)
    table[list(column.codes)] = np.arange(len(column.codes))
    return table


def _column_drift(column: ColumnSketch, current: Counts) -> Drift:
    """Compare the counts (`CELLS`,) of a column with those of the calibration rows."""
    reference = np.array(column.counts)
    now, before = current[:BINS], reference[:BINS]
    comparable = bool(column.edges or column.codes) and min(now.sum(), before.sum()) >= MIN_VALUES
    return Drift(
        column.name,
        population_stability_index(before, now) if comparable else None,
        _share(current, BINS),
        _share(reference, BINS),
        _share(current, 0) if column.codes else None,
        _share(reference, 0) if column.codes else None,
    )


def _share(counts: Counts, cell: int) -> float:
    """Return the share of one cell among the counts of a column; 0 without rows."""
    return float(counts[cell] / max(counts.sum(), 1))
