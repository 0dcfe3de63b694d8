"""Bootstrap figures: compute each figure repeatedly on resampled rows (Efron 1979).

A draw states how many times each row counts. Scores are ranked once for all draws, and two models
are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

DRAWS, MIN_DRAWS = 999, 199
"""Default number of draws, and the minimum number for many rows."""
MAX_CELLS = 20_000_000
"""Maximum number of rows times draws, unless `MIN_DRAWS` needs more; it limits the run time."""


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
    values = np.asarray([figure for figure in figures if not np.isnan(figure)], np.float64)
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


class Ranking:
    """N rows in descending order of their scores; rows with equal scores form one step."""

    def __init__(self, scores: ArrayLike, anomaly: Mask) -> None:
        values = np.asarray(scores, np.float64)
        self._order = np.argsort(-values, kind="stable")
        self._anomaly = anomaly[self._order]
        self._ends = np.flatnonzero(np.diff(values[self._order], append=np.nan) != 0)

    def average_precision(self, counts: Counts | None = None) -> float:
        """Return Σ (gain in recall) · precision over the steps; NaN without an anomaly."""
        hits, flagged = self.curve(counts)
        if not hits[-1]:
            return float("nan")
        precision = hits / np.maximum(flagged, 1)
        return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])

    def auroc(self, counts: Counts | None = None) -> float:
        """Return P(anomaly scores above normal row), ties count half; NaN unless there are both."""
        hits, flagged = self.curve(counts)
        false = flagged - hits
        if not hits[-1] or not false[-1]:
            return float("nan")
        before = np.concatenate([[0], hits[:-1]])
        area = (np.diff(false, prepend=0) * (before + hits) / 2).sum()
        return float(area / hits[-1] / false[-1])

    def precision_at(self, k: int, counts: Counts | None = None) -> float:
        """Return the share of anomalies among the k highest scores; ties count in part."""
        hits, flagged = self.curve(counts)
        caught = np.interp(k, np.append(0, flagged), np.append(0, hits))
        return float(caught / min(k, flagged[-1]))

    def curve(self, counts: Counts | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of anomalies and of rows that score as high as each step or higher."""
        times = np.ones(len(self._order), np.int64) if counts is None else counts[self._order]
        return np.cumsum(times * self._anomaly)[self._ends], np.cumsum(times)[self._ends]


def intervals(
    figures: Mapping[str, Callable[[Counts], float]],
    drawn: Iterable[Counts],
    confidence: float = 0.95,
) -> dict[str, Interval | None]:
    """Return the interval of each figure, with all figures computed on the same draws."""
    values_by_draw = np.array([[figure(counts) for figure in figures.values()] for counts in drawn])
    columns = values_by_draw.T if len(values_by_draw) else [()] * len(figures)
    return {
        name: interval(column, confidence) for name, column in zip(figures, columns, strict=True)
    }
