"""What a threshold is chosen from: the scores of the calibration split, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from numpy.typing import ArrayLike

from anomaly_vae.calibration import Scores, finite


@dataclass(frozen=True, eq=False)
class Evidence:
    """Scores of calibration rows that trained nothing."""

    normal: Scores
    """(n,) sorted"""
    units: str = "normal calibration rows"
    """what each of them stands for"""

    @classmethod
    def of(cls, normal: ArrayLike, **known: Any) -> Self:
        """Of scores in any order.

        Raises:
            CalibrationError: a score is not finite.
        """
        return cls(finite(normal), **known)

    @property
    def n(self) -> int:
        """How many normal rows."""
        return len(self.normal)


@dataclass(frozen=True)
class Choice:
    """A threshold and what its method says of it, in plain JSON."""

    threshold: float
    figures: Mapping[str, Any] = field(default_factory=dict)
