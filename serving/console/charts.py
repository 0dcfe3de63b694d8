"""Compute the geometry of the charts, which templates draw as SVG.

Charts are as wide as their place. Positions along the x axis are therefore shares of the width in
per cent, and heights are pixels; y points down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

HEIGHT = 150
"""Height of a chart."""
BASE = HEIGHT - 22
"""y of the axis, below which the labels are."""
TOP = 34
"""y of the top of the highest bar, above which notes are."""
BINS = 64
"""Number of bars of a histogram."""
WIDEST = 8.0
"""Maximum width of the bar of a day, in per cent of the chart."""
FEW_DAYS = 7
"""Number of days up to which their names are in the middle of their bars."""
REACH = 3.0
"""Length of the axis of scores up to which a score is drawn in its place, as a multiple of the
length that calibration scores and threshold need."""
CHANCE_DEVIATIONS = 3.0
"""Number of standard deviations by which chance alone lets a day exceed what is expected."""


@dataclass(frozen=True)
class Bar:
    """A bar of a chart; ``is_marked`` ones have another colour."""

    x: float
    y: float
    width: float
    height: float
    is_marked: bool = False
    title: str = ""


@dataclass(frozen=True)
class ScoreChart:
    """A score among the calibration scores of its model.

    ``is_beyond`` says that the score lies far beyond the axis, at whose end it is drawn.
    """

    bars: list[Bar]
    threshold: float
    score: float
    is_beyond: bool
    low: float
    high: float
    """Ends of the axis, in the unit of the score."""


@dataclass(frozen=True)
class DayChart:
    """A bar for each day."""

    bars: list[Bar]
    limit: float
    """y of the line of what is expected."""
    first: float
    last: float
    """x of the names of the first and the last day: the middle of the bar if days are few."""


@dataclass(frozen=True)
class Day:
    """A number of flags among the rows of a day."""

    flags: int
    rows: int
    title: str


def score_chart(calibration: ArrayLike, threshold: float, score: float) -> ScoreChart:
    """Return a histogram of calibration scores (n,) with the threshold and one score.

    >>> chart = score_chart([1.0, 2.0, 3.0], threshold=2.5, score=4.0)
    >>> chart.low, chart.high, chart.threshold, sum(bar.height > 0 for bar in chart.bars)
    (1.0, 4.0, 50.0, 3)
    """
    scores = np.asarray(calibration, np.float64)
    low = min(float(scores.min()), score, threshold)
    needed = max(float(scores.max()), threshold) - low or 1.0
    is_beyond = score > low + REACH * needed
    high = low + REACH * needed if is_beyond else max(low + needed, score)
    counts, edges = np.histogram(scores, BINS, (low, high))
    places = _columns(np.sqrt(counts), math.sqrt(counts.max(initial=1)))
    marks = (edges[:-1] >= threshold).tolist()
    bars = [Bar(*place, is_marked) for place, is_marked in zip(places, marks, strict=True)]

    def x(value: float) -> float:
        return round(100 * (min(value, high) - low) / (high - low), 2)

    return ScoreChart(bars, x(threshold), x(score), is_beyond, low, high)


def day_chart(days: Sequence[Day], alpha: float, *, shares: bool = False) -> DayChart:
    """Return a bar for each day, and a line at the mean number of flags if all rows were normal.

    Days with more flags than chance explains are marked.

    Args:
        days: one or more days.
        alpha: share of normal rows that are flagged.
        shares: whether bars are shares of the rows of their day rather than numbers.

    >>> days = [Day(11, 1000, "Monday"), Day(40, 1000, "Tuesday")]
    >>> [bar.is_marked for bar in day_chart(days, alpha=0.01).bars]
    [False, True]
    """
    parts = np.array([max(one.rows, 1) if shares else 1 for one in days], np.float64)
    values = np.array([one.flags for one in days]) / parts
    expected = alpha if shares else alpha * sum(one.rows for one in days) / len(days)
    highest = max(float(values.max()), expected) or 1.0
    bars = [
        Bar(*place, _is_unusual(one, alpha), one.title)
        for place, one in zip(_columns(values, highest, WIDEST), days, strict=True)
    ]
    first, last = (0.0, 100.0) if len(bars) > FEW_DAYS else (_middle(bars[0]), _middle(bars[-1]))
    return DayChart(bars, round(BASE - (BASE - TOP) * expected / highest, 1), first, last)


def _middle(bar: Bar) -> float:
    return round(bar.x + bar.width / 2, 2)


def _is_unusual(day: Day, alpha: float) -> bool:
    """Return whether a day has more flags than chance explains if all of its rows were normal."""
    mean = alpha * day.rows
    return day.flags > mean + CHANCE_DEVIATIONS * math.sqrt(mean * (1 - alpha)) + 1


Place = tuple[float, float, float, float]


def _columns(values: NDArray[np.float64], highest: float, widest: float = 100.0) -> list[Place]:
    """Return x, y, width and height of bars (N,) side by side, at most ``widest`` per cent wide."""
    step = 100 / len(values)
    width = min(0.9 * step, widest)
    indent = (step - width) / 2 if width == widest else 0.0
    heights = (BASE - TOP) * values / highest
    return [
        (round(step * i + indent, 3), round(BASE - height, 1), round(width, 3), round(height, 1))
        for i, height in enumerate(heights.tolist())
    ]
