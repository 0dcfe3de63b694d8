"""Estimate shares of reviewed rows with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Share"]

Z = 1.959963984540054
"""Quantile of the normal distribution for an interval of 95%."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of ``found`` among ``reviewed`` rows, with the interval of Wilson (1927) at 95%.

    >>> share = Share(found=9, reviewed=12)
    >>> share.value, round(share.lower, 3), round(share.upper, 3)
    (0.75, 0.468, 0.911)
    >>> Share(0, 0).value is None, Share(0, 0).lower, Share(0, 0).upper
    (True, 0.0, 1.0)
    """

    found: int
    reviewed: int

    @property
    def value(self) -> float | None:
        """Share from 0 to 1; None if nothing was reviewed."""
        return self.found / self.reviewed if self.reviewed else None

    @property
    def lower(self) -> float:
        """Lower end of the interval."""
        return self._interval()[0]

    @property
    def upper(self) -> float:
        """Upper end of the interval."""
        return self._interval()[1]

    def _interval(self) -> tuple[float, float]:
        if not self.reviewed:
            return 0.0, 1.0
        n, share = self.reviewed, self.found / self.reviewed
        scale = 1 + Z * Z / n
        middle = (share + Z * Z / (2 * n)) / scale
        half = Z / scale * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
        lower, upper = max(middle - half, 0.0), min(middle + half, 1.0)
        return (0.0 if self.found == 0 else lower), (1.0 if self.found == n else upper)
