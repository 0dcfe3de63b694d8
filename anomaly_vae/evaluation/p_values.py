"""Whether p-values of normal rows are uniform, as conformal ones are where the promise holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, ranks_within
from anomaly_vae.evaluation.metrics import exchangeable, kept_rates

LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class UniformityPoint:
    """The share of normal rows whose p-value is at most ``level``."""

    level: float
    share: float
    low: float
    high: float
    """between these, chance explains it: a central interval at this level alone"""

    @property
    def outside(self) -> bool:
        """Whether chance does not explain it."""
        return not self.low <= self.share <= self.high

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


def uniformity_points(
    p_values: NDArray[np.float64],
    anomaly: NDArray[np.bool_],
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
) -> list[UniformityPoint]:
    """One for each of `LEVELS` that the calibration sample resolves.

    Args:
        p_values: (N,) of the rows.
        anomaly: (N,) their labels.
        calibration: its n scores are as finite a sample as the rows.
        confidence: of each interval.
        group: (N,) names the exchangeable unit of each row, of which one row is taken; absent: each
            row is one.
    """
    normal = p_values[exchangeable(~anomaly, group)]
    n = len(calibration.scores)
    levels = [level for level in LEVELS if level * (n + 1) >= 1] if len(normal) else []
    return [
        UniformityPoint(
            level, float(np.mean(normal <= level)), *_kept(level, n, len(normal), confidence)
        )
        for level in levels
    ]


def _kept(level: float, n: int, rows: int, confidence: float) -> tuple[float, float]:
    """The beta-binomial interval of `evaluation.highest_kept_rate`, both ends of it."""
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = kept_rates(ranks_within(level, n), n, rows, ends)
    return float(low), float(high)
