"""Report how many labels are final, where labels take time to arrive."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.spans import iso_time


@dataclass(frozen=True)
class LabelMaturity:
    """The share of labelled rows whose labels are final, because the rows are old enough."""

    delay: str
    """Age from which labels are final, such as ``7d``."""
    rows: int
    """Number of rows that have a label."""
    young: int
    """Number of these rows that are younger and left out of all figures."""
    mature: float | None
    """Share of these rows that are older; None without rows."""
    youngest_mature_day: str | None
    """Day (UTC) of the youngest row whose label is final; None if there is none."""

    @classmethod
    def of(
        cls,
        delay: str,
        young: NDArray[np.bool_],
        labelled: NDArray[np.bool_],
        seconds: NDArray[np.float64],
    ) -> Self:
        """Count the labelled rows among N rows by age.

        Args:
            delay: age from which labels are final.
            young: mask (N,) of the rows that are younger.
            labelled: mask (N,) of the rows that have a label.
            seconds: (N,) times, in seconds since 1970.
        """
        rows, final = int(labelled.sum()), labelled & ~young
        count = int(final.sum())
        return cls(
            delay,
            rows,
            rows - count,
            count / rows if rows else None,
            iso_time(float(seconds[final].max()))[:10] if count else None,
        )

    def __str__(self) -> str:
        share = "no" if self.mature is None else f"{self.mature:.1%} of the"
        until = (
            f", those of rows up to {self.youngest_mature_day}" if self.rows > self.young else ""
        )
        return (
            f"{share} labels are final ({self.delay} old){until}; {self.young:,} younger rows are "
            "left out of the figures"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)
