"""What a threshold is chosen from: the scores of the calibration split, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly_vae.calibration.conformal import Scores, finite
from anomaly_vae.data.converters import Levels


@dataclass(frozen=True, eq=False)
class CalibrationSample:
    """Scores of calibration rows that trained nothing: n normal ones, m known anomalies."""

    normal: Scores
    """(n,) sorted"""
    anomalies: Scores = field(default_factory=lambda: np.zeros(0))
    """(m,) sorted"""
    weight: float = 1.0
    """how many anomalies, for these n normal rows, each of the m stands for in traffic"""
    amounts: Scores | None = None
    """(m,) of the anomalies, in their order"""
    rows_per_day: float | None = None
    """of traffic, where there is a time"""
    units: str = "normal calibration rows"
    """what the normal rows are called"""
    levels: Levels | None = None
    """(n,) the group of each normal row"""
    weights: Scores | None = None
    """(n,) how much denser than here traffic is around each normal row"""
    losses: tuple[Scores, Scores] | None = None
    """(n,) and (H,) sorted: what normal rows lose by their columns alone, and held-out rows that
    are like the training rows"""

    @classmethod
    def of(
        cls,
        normal: ArrayLike,
        anomalies: ArrayLike = (),
        amounts: ArrayLike = (),
        levels: Levels | None = None,
        weights: ArrayLike = (),
        **known: Any,
    ) -> Self:
        """Of scores in any order.

        ``amounts`` are in that of ``anomalies``, ``levels`` and ``weights`` in that of ``normal``.

        Raises:
            CalibrationError: a score is not finite.
        """
        rows, odd = (np.argsort(np.asarray(kind), kind="stable") for kind in (normal, anomalies))
        return cls(
            finite(normal),
            finite(anomalies),
            amounts=_sorted(amounts, odd),
            levels=levels and levels.take(rows),
            weights=_sorted(weights, rows),
            **known,
        )

    @property
    def n(self) -> int:
        """How many normal rows."""
        return len(self.normal)

    @property
    def rows(self) -> float:
        """How many rows of traffic they are."""
        return self.n + self.weight * len(self.anomalies)

    def trimmed(self, share: float) -> Self:
        """Without this share of the normal rows, the highest."""
        kept = self.n - math.floor(share * self.n)
        return self if kept == self.n else self._only(np.arange(kept))

    def of_level(self, level: str) -> Self:
        """The normal rows of one group."""
        assert self.levels, "there are groups"
        rows = np.flatnonzero(self.levels.codes == self.levels.names.index(level))
        return replace(self._only(rows), levels=None, losses=None)

    def _only(self, rows: NDArray[np.intp]) -> Self:
        """These of the normal rows, in their order."""
        return replace(
            self,
            normal=self.normal[rows],
            levels=self.levels and self.levels.take(rows),
            weights=None if self.weights is None else self.weights[rows],
        )

    def resampled(self, rng: np.random.Generator) -> Self:
        """As many rows of each kind, drawn with replacement (Efron 1979)."""
        normal, anomalies = (
            np.sort(rng.integers(len(kind), size=len(kind)))
            for kind in (self.normal, self.anomalies)
        )
        return replace(
            self,
            normal=self.normal[normal],
            anomalies=self.anomalies[anomalies],
            amounts=None if self.amounts is None else self.amounts[anomalies],
        )


def _sorted(values: ArrayLike, order: NDArray[np.intp]) -> Scores | None:
    """The values in this order; none where there are none."""
    given = np.asarray(values, np.float64)
    return given[order] if len(given) else None


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and what its method says of it, in plain JSON."""

    threshold: float
    figures: Mapping[str, Any] = field(default_factory=dict)
