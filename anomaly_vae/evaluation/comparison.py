"""Two detectors on the same rows: what changes from one to the other, and what chance explains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from anomaly_vae.data.converters import Levels, slice_name
from anomaly_vae.evaluation.bootstrap import Ranking, draws, interval
from anomaly_vae.evaluation.metrics import bonferroni, rate
from anomaly_vae.evaluation.slices import parts

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]

Figure = Literal["recall", "fpr"]

FEWEST = 6
"""Rows of a slice, without which no change is beyond chance: 2 · 0.5⁵ > 0.05."""
ROUNDS = 7
"""In which models take turns being timed."""


@dataclass(frozen=True)
class Change:
    """A figure of both models on the same rows; the interval is that of the difference."""

    champion: float
    challenger: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """challenger − champion."""
        return self.challenger - self.champion

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {**asdict(self), "difference": self.value}


@dataclass(frozen=True)
class SliceChange:
    """What one level of a column gains or loses."""

    name: str
    figure: Figure
    rows: int
    change: Change
    alpha: float
    """the challenger's"""

    def collapsed(self, recall: float) -> bool:
        """Much worse, beyond chance: so much recall lost, or alpha more normal rows flagged."""
        change = self.change
        if self.figure == "recall":
            return change.value < -recall and change.high < 0
        return change.value > self.alpha and change.low > 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        what = {"slice": self.name, "figure": self.figure, "rows": self.rows}
        return {**what, **self.change.to_json()}

    def __str__(self) -> str:
        """As a reason tells it."""
        name = "recall" if self.figure == "recall" else "false positive rate"
        change = self.change
        return (
            f"{name} where {self.name} goes from {change.champion:.4f} to {change.challenger:.4f} "
            f"({self.rows} rows, difference [{change.low:+.4f}, {change.high:+.4f}])"
        )


@dataclass(frozen=True)
class Agreement:
    """The share of rows on which both flag alike, with its exact interval, and what each flags."""

    of: str
    rows: int
    share: float
    low: float
    high: float
    champion: float
    challenger: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def metric_change(
    champion: Values,
    challenger: Values,
    anomaly: Mask,
    metric: Literal["average_precision", "auroc"],
    confidence: float,
    unit: NDArray[Any] | None = None,
) -> Change | None:
    """Scores (N,) of both, ranked; every draw resamples the same rows for both.

    ``unit`` (N,) names what is drawn as a whole; None for rows of one kind alone.
    """
    if not anomaly.any() or anomaly.all():
        return None
    old, new = (getattr(Ranking(scores, anomaly), metric) for scores in (champion, challenger))
    found = interval((new(c) - old(c) for c in draws(anomaly, unit=unit)), confidence)
    assert found, "each draw has rows of both kinds"
    return Change(old(), new(), *found)


def flag_change(
    champion: Mask, challenger: Mask, confidence: float, unit: NDArray[Any] | None = None
) -> Change:
    """The share flagged, of the same rows (N,), N > 0.

    Of those that changed sides, the share that is now flagged is binomial, 1/2 if nothing changed
    (McNemar 1947); its exact interval is carried over to the difference. ``unit`` (N,) names what
    changes as a whole.
    """
    moved = challenger.astype(int) - champion
    if unit is not None:
        moved = np.bincount(np.unique(unit, return_inverse=True)[1], weights=moved)
    up, changed, size = int((moved > 0).sum()), int((moved != 0).sum()), np.abs(moved).sum()
    low = high = 0.0
    if changed:
        found = binomtest(up, changed).proportion_ci(confidence, method="exact")
        low, high = ((2 * end - 1) * size / len(champion) for end in (found.low, found.high))
    return Change(float(champion.mean()), float(challenger.mean()), float(low), float(high))


def slice_changes(
    columns: Mapping[str, Levels],
    champion: Mask,
    challenger: Mask,
    anomaly: Mask,
    alpha: float,
    confidence: float,
    unit: NDArray[Any] | None = None,
) -> list[SliceChange]:
    """Recall and false positive rate of each level of these columns (`slices.parts`).

    The intervals hold together with this confidence: each has an equal part of the error
    (Bonferroni).

    Args:
        columns: each of N rows.
        champion: (N,) its flags.
        challenger: (N,) its flags.
        anomaly: (N,) the labels.
        alpha: the challenger's.
        confidence: that all intervals hold together.
        unit: (N,) names what is exchangeable; absent: each row is one.
    """
    kinds: tuple[tuple[Figure, Mask], ...] = (("recall", anomaly), ("fpr", ~anomaly))
    slices = [
        (slice_name(column, level), figure, inside & kind)
        for column, level, inside in parts(columns)
        for figure, kind in kinds
        if (inside & kind).sum() >= FEWEST
    ]
    each = bonferroni(confidence, len(slices))
    changes = [
        flag_change(champion[rows], challenger[rows], each, None if unit is None else unit[rows])
        for _, _, rows in slices
    ]
    return [
        SliceChange(name, figure, int(rows.sum()), change, alpha)
        for (name, figure, rows), change in zip(slices, changes, strict=True)
    ]


def agreement(champion: Mask, challenger: Mask, of: str, confidence: float) -> Agreement | None:
    """Flags (N,) of both on the same rows; None for no rows."""
    found = rate(champion == challenger, confidence)
    if found is None:
        return None
    flagged = float(champion.mean()), float(challenger.mean())
    return Agreement(of, found.total, found.value, found.low, found.high, *flagged)


def cpu_seconds(works: Sequence[Callable[[], object]]) -> list[float]:
    """What each piece of work takes: the median of several rounds in which they take turns."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, times in zip(works, taken, strict=True):
            before = time.process_time()
            work()
            times.append(time.process_time() - before)
    return [median(times) for times in taken]
