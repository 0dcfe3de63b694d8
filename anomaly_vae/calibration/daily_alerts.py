"""Count alerts per day, and predict their number on future days.

The number of alerts varies from day to day by more than chance: weekdays, campaigns and frauds that
come in series. The interval of a future day is therefore learned from the days themselves. Counts
are transformed by 2 √(count + 3/8), after which those of independent rows have a variance of about
1, whatever their mean (Anscombe 1948). With mean m and standard deviation s over D days, a further
day lies within m ± t · s · √(1 + 1/D), where t is the quantile of Student's distribution with D − 1
degrees of freedom (Hahn & Meeker 1991, sec. 4.2). s is taken to be at least 1, since counts never
vary less than by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

from anomaly_vae.data.days import Days, Floats

MIN_DAYS = 2
"""Minimum number of complete days from which the variation between days can be learned."""
WEEK = 7
"""Number of days below which no weekday is seen twice, and most but once or never."""
CONFIDENCE = 0.95
"""Probability that an interval holds the number of alerts of a future day."""
OFFSET = 3 / 8
"""Constant of Anscombe's transformations, by which the variance hardly depends on the mean."""
HALF = 0.5
"""Number of rows by which an interval of whole numbers of rows is wider (Yates 1934)."""


@dataclass(frozen=True, eq=False)
class DailyTraffic:
    """The scores (N,) of all rows of complete days, and what is counted on each day."""

    scores: Floats
    days: Days
    entity: NDArray[np.int32] | None = None
    """Entity (N,) of each row, such as a customer, which counts once a day; None counts rows."""
    column: str | None = None
    """Column of the entities."""

    @property
    def alert(self) -> str:
        """Unit of an alert."""
        return f"distinct {self.column}" if self.column else "rows"

    def expected(self, thresholds: Floats) -> Floats:
        """Return the expected number (T,) of alerts a day at each threshold.

        One is added to the alerts of all days, as to the rows in a p-value, so that the number of
        a future day is at most this on average.
        """
        highest = self._highest()
        above = len(highest) - np.searchsorted(highest, thresholds, side="right")
        return np.asarray((1 + above) * self.days.scale / len(self.days))

    def counts(self, threshold: float) -> Floats:
        """Return the number (D,) of alerts on each day."""
        flagged = self.scores > threshold
        return np.asarray(self.days.scale * self.days.counts(flagged, self.entity), np.float64)

    @property
    def per_day(self) -> float:
        """Number of rows, or of their entities, a day: the alerts if all rows were flagged."""
        return float(self.counts(-math.inf).mean())

    def _highest(self) -> Floats:
        """Return the highest score of each entity on each day, or of each row, in order."""
        rows = np.flatnonzero(self.days.index >= 0)
        scores, day = self.scores[rows], self.days.index[rows]
        if self.entity is None:
            return np.sort(scores)
        entity = self.entity[rows]
        order = np.lexsort((scores, entity, day))
        last = np.ones(len(order), bool)
        last[:-1] = (np.diff(day[order]) != 0) | (np.diff(entity[order]) != 0)
        return np.sort(scores[order][last])


def future_day(counts: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Return the interval of the number of alerts on a future day; None for fewer than two days.

    It holds for a day that is like a random one of these days. It foresees no trend, and no weekday
    that is missing among them.

    Args:
        counts: (D,) number of alerts on each day.
        confidence: probability that the future number lies within the interval.

    >>> future_day([9, 12, 7, 11, 14, 8, 10])
    (3.0, 21.0)
    >>> future_day([0] * 30)
    (0.0, 3.0)
    """
    transformed = 2 * np.sqrt(np.asarray(counts, np.float64) + OFFSET)
    if len(transformed) < MIN_DAYS:
        return None
    low, high = _further(transformed, max(float(transformed.std(ddof=1)), 1.0), confidence)
    fewest = math.floor(max(low, 0.0) ** 2 / 4 - OFFSET)
    return max(0.0, float(fewest)), float(math.ceil(high**2 / 4 - OFFSET))


def future_sum(sums: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Return the interval of a sum on a future day, such as a cost; None for fewer than two days.

    Args:
        sums: (D,) sum on each day, not negative.
        confidence: probability that the future sum lies within the interval.
    """
    values = np.asarray(sums, np.float64)
    if len(values) < MIN_DAYS:
        return None
    low, high = _further(values, float(values.std(ddof=1)), confidence)
    return max(0.0, low), high


def future_share(
    hits: ArrayLike, totals: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return the interval of a share on a future day, such as precision; None without two days.

    Shares are transformed by arcsin √((hits + 3/8) / (total + 3/4)), after which the variance due
    to chance is about 1 / (4 total + 2) (Anscombe 1948). Days vary by at least that.

    Args:
        hits: (D,) number of hits on each day.
        totals: (D,) number of rows on each day; days without any are left out.
        confidence: probability that the future share lies within the interval.

    >>> low, high = future_share([3, 5, 2, 4, 4, 6], [10, 10, 8, 9, 11, 12])
    >>> round(low, 2), round(high, 2)
    (0.0, 0.88)
    """
    x, n = np.asarray(hits, np.float64), np.asarray(totals, np.float64)
    x, n = x[n > 0], n[n > 0]
    if len(n) < MIN_DAYS:
        return None
    angles = np.arcsin(np.sqrt((x + OFFSET) / (n + 2 * OFFSET)))
    chance = math.sqrt((1 / (4 * n + 2)).mean())
    low, high = _further(angles, max(float(angles.std(ddof=1)), chance), confidence)
    mean = float(n.mean())
    fewest = math.sin(max(low, 0.0)) ** 2 * (mean + 2 * OFFSET) - OFFSET - HALF
    most = math.sin(min(high, math.pi / 2)) ** 2 * (mean + 2 * OFFSET) - OFFSET + HALF
    return max(0.0, fewest / mean), min(1.0, most / mean)


def _further(values: Floats, deviation: float, confidence: float) -> tuple[float, float]:
    """Return Student's prediction interval of a further value."""
    n = len(values)
    reach = t.ppf((1 + confidence) / 2, n - 1) * deviation * math.sqrt(1 + 1 / n)
    return float(values.mean() - reach), float(values.mean() + reach)
