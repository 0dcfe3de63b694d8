"""Hold the scores that a threshold is chosen from, with their weights, amounts and groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly_vae.calibration.conformal import Scores, sort_finite
from anomaly_vae.calibration.daily_alerts import DailyTraffic
from anomaly_vae.data.converters import Levels


@dataclass(frozen=True, eq=False)
class CalibrationSample:
    """The scores of held-out calibration rows: n normal rows and m known anomalies.

    >>> sample = CalibrationSample.from_scores([3.0, 1.0, 2.0], anomalies=[9.0], weight=0.5)
    >>> sample.normal.tolist(), sample.n, sample.rows
    ([1.0, 2.0, 3.0], 3, 3.5)
    """

    normal: Scores
    """Scores (n,) of the normal rows, sorted."""
    anomalies: Scores = field(default_factory=lambda: np.zeros(0))
    """Scores (m,) of the known anomalies, sorted."""
    weight: float = 1.0
    """Number of anomalies that each known anomaly represents, in traffic with n normal rows."""
    amounts: Scores | None = None
    """Amounts (m,) of the anomalies, in the order of their scores."""
    rows_per_day: float | None = None
    """Rows of traffic per day; None without a time column."""
    traffic: DailyTraffic | None = None
    """Rows of the complete days of the calibration period; None without a budget per day."""
    units: str = "normal calibration rows"
    """Name of the normal rows in messages."""
    levels: Levels | None = None
    """Group of each of the n normal rows."""
    weights: Scores | None = None
    """Density ratio (n,) of traffic to calibration rows; None means weight 1."""
    losses: tuple[Scores, Scores] | None = None
    """Sorted part of the scores of the normal rows (n,) and of held-out rows (H,).

    Of tables it is the reconstruction term. Held-out rows are exchangeable with training rows.
    """

    @classmethod
    def from_scores(
        cls,
        normal: ArrayLike,
        anomalies: ArrayLike = (),
        amounts: ArrayLike = (),
        levels: Levels | None = None,
        weights: ArrayLike = (),
        **fields: Any,
    ) -> Self:
        """Build a sample from scores in any order.

        Args:
            normal: (n,) scores of normal rows.
            anomalies: (m,) scores of known anomalies.
            amounts: (m,) amounts, in the order of ``anomalies``.
            levels: (n,) groups, in the order of ``normal``.
            weights: (n,) density ratios, in the order of ``normal``.
            fields: the other fields, by name.

        Raises:
            CalibrationError: a score is not finite.
        """
        normal_order, anomaly_order = (
            np.argsort(np.asarray(kind), kind="stable") for kind in (normal, anomalies)
        )
        return cls(
            sort_finite(normal),
            sort_finite(anomalies),
            amounts=_reorder(amounts, anomaly_order),
            levels=levels and levels.take(normal_order),
            weights=_reorder(weights, normal_order),
            **fields,
        )

    @property
    def n(self) -> int:
        """Number of normal rows."""
        return len(self.normal)

    @property
    def rows(self) -> float:
        """Number of rows of traffic that the sample represents."""
        return self.n + self.weight * len(self.anomalies)

    def trimmed(self, share: float) -> Self:
        """Return the sample without the given share of its highest-scoring normal rows."""
        remaining = self.n - math.floor(share * self.n)
        return self if remaining == self.n else self._select(np.arange(remaining))

    def select_level(self, level: str) -> Self:
        """Return the normal rows of one group."""
        assert self.levels, "the sample has no groups"
        rows = np.flatnonzero(self.levels.codes == self.levels.names.index(level))
        return replace(self._select(rows), levels=None, losses=None)

    def _select(self, rows: NDArray[np.intp]) -> Self:
        """Return the sample with some of its normal rows."""
        return replace(
            self,
            normal=self.normal[rows],
            levels=self.levels and self.levels.take(rows),
            weights=None if self.weights is None else self.weights[rows],
        )

    def resampled(self, rng: np.random.Generator) -> Self:
        """Draw n normal rows and m anomalies with replacement (Efron 1979)."""
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


def _reorder(values: ArrayLike, order: NDArray[np.intp]) -> Scores | None:
    """Return the values in the given order; None if there are none."""
    array = np.asarray(values, np.float64)
    return array[order] if len(array) else None


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold, and the figures its method reports, as plain JSON values."""

    threshold: float
    figures: Mapping[str, Any] = field(default_factory=dict)
