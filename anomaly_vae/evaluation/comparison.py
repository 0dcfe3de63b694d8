"""Compare two detectors on the same rows, and tell real changes from chance."""

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
from anomaly_vae.evaluation.bootstrap import Ranking, draws, intervals
from anomaly_vae.evaluation.metrics import bonferroni, rate
from anomaly_vae.evaluation.slices import iter_slices

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]

Figure = Literal["recall", "fpr"]
"""Name of a figure that is compared by slice."""

MIN_ROWS = 6
"""Minimum number of rows of a slice: with 5, no change is significant, as 2 · 0.5⁵ > 0.05."""
TIMING_ROUNDS = 7
"""Number of rounds in which models are timed one after the other."""


@dataclass(frozen=True)
class Change:
    """A figure of both models on the same rows, with the interval of its difference."""

    champion: float
    challenger: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """Difference challenger − champion."""
        return self.challenger - self.champion

    def to_json(self) -> dict[str, float]:
        """Return plain JSON values."""
        return {**asdict(self), "difference": self.value}


@dataclass(frozen=True)
class SliceChange:
    """The change of a figure in one slice: the rows with one level of a column."""

    name: str
    figure: Figure
    rows: int
    change: Change
    alpha: float
    """Alpha of the challenger."""

    def collapsed(self, recall: float) -> bool:
        """Return whether the slice is much worse, and by more than chance explains.

        Recall must fall by more than ``recall``, or the false positive rate must rise by more than
        alpha.
        """
        change = self.change
        if self.figure == "recall":
            return change.value < -recall and change.high < 0
        return change.value > self.alpha and change.low > 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        described = {"slice": self.name, "figure": self.figure, "rows": self.rows}
        return {**described, **self.change.to_json()}

    def __str__(self) -> str:
        """Describe the change in the words of a refusal reason."""
        name = "recall" if self.figure == "recall" else "false positive rate"
        change = self.change
        return (
            f"{name} where {self.name} goes from {change.champion:.4f} to {change.challenger:.4f} "
            f"({self.rows} rows, difference [{change.low:+.4f}, {change.high:+.4f}])"
        )


@dataclass(frozen=True)
class Agreement:
    """The share of rows on which both models agree, with its interval, and their flag rates."""

    source: str
    """Name of the rows in messages, such as ``the traffic``."""
    rows: int
    share: float
    low: float
    high: float
    champion: float
    challenger: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        figures = asdict(self)
        return {"of": figures.pop("source"), **figures}


def metric_change(
    champion: Values,
    challenger: Values,
    anomaly: Mask,
    metric: Literal["average_precision", "auroc"],
    confidence: float,
    unit: NDArray[Any] | None = None,
) -> Change | None:
    """Compare a ranking metric of both models' scores (N,).

    Each draw resamples the same rows for both models. ``unit`` (N,) is the unit of each row; units
    are drawn as a whole. Return None unless there are both normal rows and anomalies.
    """
    if not anomaly.any() or anomaly.all():
        return None
    old, new = (getattr(Ranking(scores, anomaly), metric) for scores in (champion, challenger))
    changes = {"change": lambda counts: new(counts) - old(counts)}
    ends = intervals(changes, draws(anomaly, unit=unit), confidence)["change"]
    assert ends, "each draw has rows of both kinds"
    return Change(float(old()), float(new()), *ends)


def flag_change(
    champion: Mask, challenger: Mask, confidence: float, unit: NDArray[Any] | None = None
) -> Change:
    """Compare the shares of flagged rows, given both models' flags (N,) on the same N > 0 rows.

    If the models flag equally often, the number of newly flagged rows among the rows whose flag
    changed is binomial with probability 1/2 (McNemar 1947). Its exact interval is converted into an
    interval of the difference. ``unit`` (N,) is the unit of each row; the rows of a unit count as
    one change.
    """
    moved = challenger.astype(int) - champion
    if unit is not None:
        moved = np.bincount(np.unique(unit, return_inverse=True)[1], weights=moved)
    up, changed, size = int((moved > 0).sum()), int((moved != 0).sum()), np.abs(moved).sum()
    low = high = 0.0
    if changed:
        share_up = binomtest(up, changed).proportion_ci(confidence, method="exact")
        low, high = ((2 * end - 1) * size / len(champion) for end in (share_up.low, share_up.high))
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
    """Compare recall and false positive rate in each slice of these columns (`iter_slices`).

    All intervals hold simultaneously with the given confidence: the error probability is divided
    equally among them (Bonferroni).

    Args:
        columns: columns of N rows.
        champion: (N,) flags of the champion.
        challenger: (N,) flags of the challenger.
        anomaly: (N,) labels.
        alpha: alpha of the challenger.
        confidence: probability that all intervals hold.
        unit: (N,) exchangeable unit of each row; None means that each row is a unit.
    """
    kinds: tuple[tuple[Figure, Mask], ...] = (("recall", anomaly), ("fpr", ~anomaly))
    slices = [
        (slice_name(column, level), figure, inside & kind)
        for column, level, inside in iter_slices(columns)
        for figure, kind in kinds
        if (inside & kind).sum() >= MIN_ROWS
    ]
    confidence = bonferroni(confidence, len(slices))
    changes = [
        flag_change(
            champion[rows], challenger[rows], confidence, None if unit is None else unit[rows]
        )
        for _, _, rows in slices
    ]
    return [
        SliceChange(name, figure, int(rows.sum()), change, alpha)
        for (name, figure, rows), change in zip(slices, changes, strict=True)
    ]


def agreement(champion: Mask, challenger: Mask, source: str, confidence: float) -> Agreement | None:
    """Compare both models' flags (N,) on the same rows; return None if there are no rows."""
    share = rate(champion == challenger, confidence)
    if share is None:
        return None
    flagged = float(champion.mean()), float(challenger.mean())
    return Agreement(source, share.total, share.value, share.low, share.high, *flagged)


def cpu_seconds(tasks: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median CPU seconds of each task over several rounds; tasks take turns."""
    taken: list[list[float]] = [[] for _ in tasks]
    for _ in range(TIMING_ROUNDS):
        for task, times in zip(tasks, taken, strict=True):
            before = time.process_time()
            task()
            times.append(time.process_time() - before)
    return [median(times) for times in taken]
