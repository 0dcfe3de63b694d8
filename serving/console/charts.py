"""Compute the geometry of the charts, which templates draw as SVG.

Coordinates are pixels of the drawing; y points down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 640, 150
"""Size of a chart."""
BASE = HEIGHT - 22
"""y of the axis, below which the labels are."""
TOP = 18
"""y of the top of the highest bar, above which notes are."""
BINS = 64
"""Number of bars of a histogram."""
REACH = 3.0
"""Length of the axis of scores up to which a score is drawn in its place, as a multiple of the
length that calibration scores and threshold need."""


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


def score_chart(calibration: ArrayLike, threshold: float, score: float) -> ScoreChart:
    """Return a histogram of calibration scores (n,) with the threshold and one score.

    >>> chart = score_chart([1.0, 2.0, 3.0], threshold=2.5, score=4.0)
    >>> chart.low, chart.high, chart.score, sum(bar.height > 0 for bar in chart.bars)
    (1.0, 4.0, 640.0, 3)
    """
    scores = np.asarray(calibration, np.float64)
    low = min(float(scores.min()), score, threshold)
    needed = max(float(scores.max()), threshold) - low or 1.0
    is_beyond = score > low + REACH * needed
    high = low + REACH * needed if is_beyond else max(low + needed, score)
    counts, edges = np.histogram(scores, BINS, (low, high))
    bars = [
        _bar(*place, is_marked=float(left) >= threshold)
        for place, left in zip(_columns(np.sqrt(counts)), edges, strict=False)
    ]

    def x(value: float) -> float:
        return round(WIDTH * (min(value, high) - low) / (high - low), 1)

    return ScoreChart(bars, x(threshold), x(score), is_beyond, low, high)


def day_chart(values: Sequence[float], titles: Sequence[str], limit: float | None) -> DayChart:
    """Return a bar for each day, and the height of a limit among them.

    Args:
        values: value of each day.
        titles: what is said about each day.
        limit: value above which bars are marked; None for no limit.

    >>> chart = day_chart([5, 20], ["Monday", "Tuesday"], limit=10)
    >>> [bar.is_marked for bar in chart.bars], chart.highest
    ([False, True], 20)
    """
    highest = max([*values, limit or 0.0, 0.0]) or 1.0
    places = _columns(np.asarray(values, np.float64), highest)
    bars = [
        _bar(*place, is_marked=limit is not None and value > limit, title=title)
        for place, value, title in zip(places, values, titles, strict=True)
    ]
    y = None if limit is None else round(BASE - (BASE - TOP) * limit / highest, 1)
    return DayChart(bars, y, highest)


@dataclass(frozen=True)
class DayChart:
    """A bar for each day; ``limit`` is the y of the limit."""

    bars: list[Bar]
    limit: float | None
    highest: float
    """Value of a bar as high as the chart."""


Place = tuple[float, float, float, float]


def _columns(values: NDArray[np.float64], highest: float | None = None) -> list[Place]:
    """Return x, y, width and height of bars (N,) side by side."""
    step = WIDTH / max(len(values), 1)
    heights = (BASE - TOP) * values / (highest or max(float(values.max(initial=0)), 1.0))
    return [
        (round(step * i, 2), round(BASE - height, 1), round(max(step - 1, 1), 2), round(height, 1))
        for i, height in enumerate(heights.tolist())
    ]


def _bar(x: float, y: float, width: float, height: float, *, is_marked: bool, title: str = "") -> Bar:  # noqa: E501
    return Bar(x, y, width, height, is_marked, title)
