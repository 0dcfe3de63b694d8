"""Count p-values in bins, so that the number of flags at another alpha can be read off.

The upper ends of the bins are the decimals of two digits from 0.000001 to 0.1, such as 0.012, and
then 0.15, 0.2 … 1. A bin includes its upper end, as a row is flagged if p ≤ alpha. The number of
rows with p ≤ alpha is therefore exact for each alpha that is an upper end, and known up to the rows
of one bin for others.
"""

from __future__ import annotations

import bisect
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["PValueCounts"]

DECADES = range(-6, -1)
"""Powers of ten of the decades with 90 bins each."""
UPPER_ENDS: tuple[float, ...] = (
    *(float(f"{digits / 10:.1f}e{power}") for power in DECADES for digits in range(10, 100)),
    *(step / 20 for step in range(2, 21)),
)
"""Upper ends of the bins; a stored bin keeps its meaning if they change."""
_ENDS = np.array(UPPER_ENDS)


@dataclass(frozen=True, slots=True)
class PValueCounts:
    """Numbers of scored rows of one model, version and day (UTC), by upper end of a bin.

    >>> import datetime as dt
    >>> day = dt.date(2024, 1, 31)
    >>> counts = PValueCounts.of("fraud", "3", day, [0.01, 0.0101, 0.4, 1.0])
    >>> counts.rows, counts.at_most(0.01), counts.at_most(0.011), dict(counts.bins)
    (4, 1, 2, {0.01: 1, 0.011: 1, 0.4: 1, 1.0: 1})
    """

    model: str
    version: str
    day: dt.date
    bins: Mapping[float, int]

    @classmethod
    def of(
        cls,
        model: str,
        version: str | None,
        day: dt.date,
        p_values: Sequence[float] | NDArray[np.float64],
    ) -> Self:
        """Count p-values (N,), each above 0 and at most 1."""
        return cls.of_bins(model, version, day, bin_counts(np.asarray(p_values, np.float64)))

    @classmethod
    def of_bins(
        cls, model: str, version: str | None, day: dt.date, counts: NDArray[np.int64]
    ) -> Self:
        """Name the numbers (B,) of p-values in the bins of `UPPER_ENDS`."""
        used = np.flatnonzero(counts).tolist()
        return cls(model, version or "", day, {UPPER_ENDS[i]: int(counts[i]) for i in used})

    def to_bins(self) -> NDArray[np.int64]:
        """Return the number of rows in each bin of `UPPER_ENDS` (B,)."""
        return np.array([self.bins.get(upper, 0) for upper in UPPER_ENDS], np.int64)

    @property
    def rows(self) -> int:
        """Number of scored rows."""
        return sum(self.bins.values())

    def at_most(self, alpha: float) -> int:
        """Return the number of rows with p ≤ alpha; exact if alpha is the upper end of a bin."""
        return sum(count for upper, count in self.bins.items() if upper <= alpha)


def bin_counts(p_values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of p-values (N,) in each bin of `UPPER_ENDS` (B,)."""
    positions = np.searchsorted(_ENDS, np.minimum(p_values, 1.0))
    return np.bincount(positions, minlength=len(_ENDS))


def is_exact(alpha: float) -> bool:
    """Return whether the number of rows with p ≤ alpha is known exactly.

    >>> is_exact(0.01), is_exact(0.0125)
    (True, False)
    """
    position = bisect.bisect_left(UPPER_ENDS, alpha)
    return position < len(UPPER_ENDS) and UPPER_ENDS[position] == alpha
