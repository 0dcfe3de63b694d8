"""What chance does to a figure: the same figure on resampled rows (Efron 1979).

A draw says how often each row counts. Scores are ranked once, whatever the number of draws, and
two models that are compared see the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

DRAWS, FEWEST_DRAWS = 999, 199
CELLS = 20_000_000
"""Rows times draws that are afforded."""


class Interval(NamedTuple):
    """A central percentile interval."""

    low: float
    high: float


def enough(rows: int) -> int:
    """How many draws of so many rows: `DRAWS`, fewer where there are many rows."""
    return int(np.clip(CELLS // max(rows, 1), FEWEST_DRAWS, DRAWS))


def draws(
    anomaly: Mask, n: int = DRAWS, seed: int = 0, unit: NDArray[Any] | None = None
) -> Iterator[Counts]:
    """How often each row (N,) counts, n times over; as many normal rows and anomalies as there are.

    Args:
        anomaly: (N,) both kinds are drawn apart, so that no draw lacks one.
        n: the number of draws.
        seed: of the generator.
        unit: (N,) names what is drawn as a whole, such as a customer; absent: each row. A unit with
            an anomaly is drawn among those that have one.
    """
    rng = np.random.default_rng(seed)
    of_row = np.arange(len(anomaly)) if unit is None else np.unique(unit, return_inverse=True)[1]
    tainted = np.zeros(of_row.max(initial=-1) + 1, bool)
    tainted[of_row[anomaly]] = True
    strata = [kind for kind in (np.flatnonzero(~tainted), np.flatnonzero(tainted)) if len(kind)]
    for _ in range(n):
        times = np.zeros(len(tainted), np.int64)
        for kind in strata:
            times[kind] = np.bincount(rng.integers(len(kind), size=len(kind)), minlength=len(kind))
        yield times[of_row]


def interval(figures: Iterable[float], confidence: float = 0.95) -> Interval | None:
    """Where the figure lies in ``confidence`` of the draws; NaN, where it has none, is left out."""
    values = np.asarray([figure for figure in figures if not np.isnan(figure)], np.float64)
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


class Ranking:
    """Rows (N,) from the highest score to the lowest, equal ones as one step."""

    def __init__(self, scores: ArrayLike, anomaly: Mask) -> None:
        values = np.asarray(scores, np.float64)
        self._order = np.argsort(-values, kind="stable")
        self._anomaly = anomaly[self._order]
        self._ends = np.flatnonzero(np.diff(values[self._order], append=np.nan) != 0)

    def average_precision(self, counts: Counts | None = None) -> float:
        """Σ (recall gained) · precision over the steps; NaN without an anomaly."""
        hits, flagged = self.curve(counts)
        if not hits[-1]:
            return float("nan")
        precision = hits / np.maximum(flagged, 1)
        return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])

    def auroc(self, counts: Counts | None = None) -> float:
        """P(an anomaly scores higher than a normal row), ties as halves; NaN without either."""
        hits, flagged = self.curve(counts)
        false = flagged - hits
        if not hits[-1] or not false[-1]:
            return float("nan")
        before = np.concatenate([[0], hits[:-1]])
        area = (np.diff(false, prepend=0) * (before + hits) / 2).sum()
        return float(area / hits[-1] / false[-1])

    def precision_at(self, k: int, counts: Counts | None = None) -> float:
        """The share of anomalies among the k highest, those of a tie in proportion."""
        hits, flagged = self.curve(counts)
        caught = np.interp(k, np.append(0, flagged), np.append(0, hits))
        return float(caught / min(k, flagged[-1]))

    def curve(self, counts: Counts | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Anomalies and rows with at least the score of each step."""
        times = np.ones(len(self._order), np.int64) if counts is None else counts[self._order]
        return np.cumsum(times * self._anomaly)[self._ends], np.cumsum(times)[self._ends]


def intervals(
    figures: Mapping[str, Callable[[Counts], float]],
    drawn: Iterable[Counts],
    confidence: float = 0.95,
) -> dict[str, Interval | None]:
    """The interval of each figure, all on the same draws."""
    found = np.array([[figure(counts) for figure in figures.values()] for counts in drawn])
    columns = found.T if len(found) else [()] * len(figures)
    return {
        name: interval(column, confidence) for name, column in zip(figures, columns, strict=True)
    }
