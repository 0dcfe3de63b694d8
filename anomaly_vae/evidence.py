"""What a threshold is chosen from: the scores of the calibration split, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from anomaly_vae.calibration import Scores, finite


@dataclass(frozen=True, eq=False)
class Evidence:
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

    @classmethod
    def of(
        cls, normal: ArrayLike, anomalies: ArrayLike = (), amounts: ArrayLike = (), **known: Any
    ) -> Self:
        """Of scores in any order; ``amounts`` in that of ``anomalies``.

        Raises:
            CalibrationError: a score is not finite.
        """
        order = np.argsort(np.asarray(anomalies, np.float64), kind="stable")
        sizes = np.asarray(amounts, np.float64)
        return cls(
            finite(normal),
            finite(anomalies),
            amounts=sizes[order] if len(sizes) else None,
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


@dataclass(frozen=True)
class Choice:
    """A threshold and what its method says of it, in plain JSON."""

    threshold: float
    figures: Mapping[str, Any] = field(default_factory=dict)
