"""Test whether the p-values of normal rows are uniform, as the guarantee implies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, ranks_within
from anomaly_vae.evaluation.metrics import exchangeable_rows, flag_rate_quantiles

LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
"""p-values at which the distribution is compared with the uniform one."""


KS_DISTANCE, KS_P_VALUE = 0.03, 1e-15
"""Distance from the uniform distribution above which, and p-value of the Kolmogorov–Smirnov test
below which, rows are plainly not exchangeable with the calibration rows."""


@dataclass(frozen=True)
class Exchangeability:
    """The distance of p-values of normal rows from the uniform distribution, and its limits."""

    distance: float
    p_value: float
    """Probability of a distance as large if the rows were exchangeable and independent."""
    distance_limit: float = KS_DISTANCE
    p_value_limit: float = KS_P_VALUE

    @property
    def refuted(self) -> bool:
        """Whether the distance is too large, and larger than chance explains."""
        return self.distance > self.distance_limit and self.p_value < self.p_value_limit

    def __str__(self) -> str:
        return (
            f"the p-values of normal rows differ from the uniform distribution by up to "
            f"{self.distance:.3f} (KS p-value {self.p_value:.1e})"
        )

    @property
    def warning(self) -> str | None:
        """Warning for the user; None if the rows may be exchangeable."""
        if not self.refuted:
            return None
        return f"calibration and test rows are not exchangeable: {self}; {EXCHANGEABILITY_ADVICE}"


EXCHANGEABILITY_ADVICE = (
    "the rate of false alarms is not what alpha says; calibrate on rows of whole weeks shortly "
    "before the test rows, or look for columns whose values changed"
)


@dataclass(frozen=True)
class UniformityPoint:
    """The share of normal rows whose p-value is at most ``level``."""

    level: float
    share: float
    low: float
    high: float
    """Upper end of the interval that the share has under the guarantee; ``low`` is the lower."""

    @property
    def outside(self) -> bool:
        """Whether the share lies outside the interval from ``low`` to ``high``."""
        return not self.low <= self.share <= self.high

    def to_json(self) -> dict[str, float]:
        """Return plain JSON values."""
        return asdict(self)


def uniformity_points(
    p_values: NDArray[np.float64],
    anomaly: NDArray[np.bool_],
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
) -> list[UniformityPoint]:
    """Return a point for each of `LEVELS` that the calibration sample resolves.

    Args:
        p_values: (N,) p-values of the rows.
        anomaly: (N,) labels.
        calibration: the calibration that gave the p-values; intervals allow for its finite size.
        confidence: confidence of each interval.
        group: (N,) exchangeable unit of each row; one row per unit is used. None means that each
            row is a unit.
    """
    normal = p_values[exchangeable_rows(~anomaly, group)]
    n = len(calibration.scores)
    levels = [level for level in LEVELS if level * (n + 1) >= 1] if len(normal) else []
    return [
        UniformityPoint(
            level,
            float(np.mean(normal <= level)),
            *_interval_under_guarantee(level, n, len(normal), confidence),
        )
        for level in levels
    ]


def _interval_under_guarantee(
    level: float, n: int, rows: int, confidence: float
) -> tuple[float, float]:
    """Return the interval of the share of p-values ≤ level; see `max_fpr_under_guarantee`."""
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = flag_rate_quantiles(ranks_within(level, n), n, rows, ends)
    return float(low), float(high)
