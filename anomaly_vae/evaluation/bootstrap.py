"""Bootstrap figures: compute each figure repeatedly on resampled rows (Efron 1979).

A draw states how many times each row counts. Scores are ranked once for all draws, figures are
computed for many draws at a time, and two models are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]
Figures = NDArray[np.float64]
Mask = NDArray[np.bool_]

DRAWS, MIN_DRAWS = 999, 199
"""Default number of draws, and the minimum number for many rows."""
MAX_CELLS = 20_000_000
"""Maximum number of rows times draws, unless `MIN_DRAWS` needs more; it limits the run time."""
BLOCK_CELLS = 100_000
"""Number of rows times draws that are computed at a time, which fit into a processor's cache."""


class Interval(NamedTuple):
    """A central percentile interval."""

    low: float
    high: float


def choose_draws(rows: int) -> int:
    """Return the number of draws for this number of rows: `DRAWS`, or fewer for many rows."""
    return int(np.clip(MAX_CELLS // max(rows, 1), MIN_DRAWS, DRAWS))


def draws(
    anomaly: Mask, n: int = DRAWS, seed: int = 0, unit: NDArray[Any] | None = None
) -> Iterator[Counts]:
    """Yield n draws: the number of times that each row (N,) counts.

    Normal rows and anomalies are resampled separately, so that every draw has as many of each as
    the original rows.

    Args:
        anomaly: (N,) labels.
        n: number of draws.
        seed: seed of the generator.
        unit: (N,) unit of each row, such as a customer; units are drawn as a whole. None means
            that each row is a unit. Units with an anomaly are drawn separately from the others.
    """
    rng = np.random.default_rng(seed)
    unit_of_row = (
        np.arange(len(anomaly)) if unit is None else np.unique(unit, return_inverse=True)[1]
    )
    anomalous = np.zeros(unit_of_row.max(initial=-1) + 1, bool)
    anomalous[unit_of_row[anomaly]] = True
    strata = [
        stratum
        for stratum in (np.flatnonzero(~anomalous), np.flatnonzero(anomalous))
        if len(stratum)
    ]
    for _ in range(n):
        times = np.zeros(len(anomalous), np.int64)
        for stratum in strata:
            size = len(stratum)
            times[stratum] = np.bincount(rng.integers(size, size=size), minlength=size)
        yield times[unit_of_row]


def interval(figures: Iterable[float], confidence: float = 0.95) -> Interval | None:
    """Return the central interval that holds a share ``confidence`` of the figures, NaN aside."""
    values = np.fromiter(figures, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


class Ranking:
    """N rows in descending order of their scores; rows with equal scores form one step.

    The figures take the counts of a draw (N,) or of several (..., N), whose figures are (...); None
    counts each row once.
    """

    def __init__(self, scores: ArrayLike, anomaly: Mask) -> None:
        values = np.asarray(scores, np.float64)
        self._order = np.argsort(-values, kind="stable")
        self._anomaly = anomaly[self._order]
        self._ends = np.flatnonzero(np.diff(values[self._order], append=np.nan) != 0)

    def average_precision(self, counts: Counts | None = None) -> Figures:
        """Return Σ (gain in recall) · precision over the steps; NaN without an anomaly."""
        hits, flagged = self.curve(counts)
        precision = hits / np.maximum(flagged, 1)
        return _ratio((_steps(hits) * precision).sum(-1), hits[..., -1])

    def auroc(self, counts: Counts | None = None) -> Figures:
        """Return P(anomaly scores above normal row), ties count half; NaN unless there are both."""
        hits, flagged = self.curve(counts)
        false = flagged - hits
        area = (_steps(false) * (2 * hits - _steps(hits)) / 2).sum(-1)
        return _ratio(_ratio(area, hits[..., -1]), false[..., -1])

    def precision_at(self, k: int, counts: Counts | None = None) -> Figures:
        """Return the share of anomalies among the k highest scores; ties count in part."""
        hits, flagged = map(_from_zero, self.curve(counts))
        k_drawn = np.minimum(k, flagged[..., -1:])
        step = (flagged <= k_drawn).sum(-1, keepdims=True) - 1  # the last that is caught whole
        following = np.minimum(step + 1, flagged.shape[-1] - 1)
        caught, above = _at(hits, step), _at(flagged, step)
        share = (_at(hits, following) - caught) / np.maximum(_at(flagged, following) - above, 1)
        return _ratio(share * (k_drawn - above) + caught, k_drawn)[..., 0]

    def curve(self, counts: Counts | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of anomalies and of rows that score as high as each step or higher."""
        ones = np.ones(len(self._order), np.int64)
        times = ones if counts is None else np.take(counts, self._order, axis=-1)
        return self._sums(times * self._anomaly), self._sums(times)

    def _sums(self, times: Counts) -> Counts:
        return np.take(np.cumsum(times, axis=-1), self._ends, axis=-1)


def _steps(sums: Counts) -> Counts:
    """Return the terms (..., K) of cumulative sums."""
    terms = sums.copy()
    terms[..., 1:] -= sums[..., :-1]
    return terms


def _from_zero(sums: Counts) -> Counts:
    """Return cumulative sums (..., K) with a zero before them."""
    return np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)


def _at(sums: Counts, step: NDArray[np.intp]) -> Counts:
    """Return the sums (..., 1) at one step (..., 1) of each draw."""
    return np.take_along_axis(sums, step, axis=-1)


def _ratio(figures: Figures, by: Counts) -> Figures:
    """Return the quotient, NaN where the divisor is 0."""
    return np.where(by > 0, figures / np.maximum(by, 1), np.nan)


def intervals(
    figures: Mapping[str, Callable[[Counts], Figures]],
    drawn: Iterable[Counts],
    confidence: float = 0.95,
) -> dict[str, Interval | None]:
    """Return the interval of each figure, with all figures computed on the same draws.

    A figure gets the counts of D draws (D, N) and returns its values (D,).
    """
    blocks = [[figure(counts) for figure in figures.values()] for counts in _blocks(drawn)]
    columns = np.concatenate(blocks, axis=1) if blocks else [()] * len(figures)
    return {
        name: interval(column, confidence) for name, column in zip(figures, columns, strict=True)
    }


def _blocks(drawn: Iterable[Counts]) -> Iterator[Counts]:
    """Yield the draws (N,) in arrays (D, N) of up to `BLOCK_CELLS`."""
    rest = iter(drawn)
    for first in rest:
        size = BLOCK_CELLS // max(len(first), 1)
        yield np.stack([first, *islice(rest, max(size - 1, 0))])
