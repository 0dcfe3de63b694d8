"""Find the rows whose windows begin before the first event, and keep them out of the splits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.config.data import FULL
from anomaly_vae.config.windows import seconds
from anomaly_vae.data.spans import describe_time
from anomaly_vae.data.splitting import NAMES, Assignment
from anomaly_vae.errors import DataError
from anomaly_vae.features.wording import span


@dataclass(frozen=True)
class Past:
    """The past that the windows of rows need, and the first event that they have."""

    first: float
    """Time of the first event, in seconds since 1970."""
    reach: float
    """Length of time that the windows look back, in seconds."""

    def warm_up(self, time: NDArray[np.float64], length: str | None) -> NDArray[np.bool_] | None:
        """Return a mask (N,) of the rows that only feed windows; None if all may do more.

        Args:
            time: (N,) times of the rows in seconds since 1970, NaN if unknown.
            length: `TabularData.windows_warm_up`.

        Raises:
            DataError: no row is later.
        """
        if length is None:
            return None
        end = self.first + (self.reach if length == FULL else seconds(length))
        if not (time >= end).any():
            raise DataError(
                f"data.windows_warm_up ({length}) lasts from {describe_time(self.first)} to "
                f"{describe_time(end)}, and no row is later; give older rows, shorter windows or a "
                "shorter data.windows_warm_up"
            )
        return np.asarray(time < end)

    def note(self, time: NDArray[np.float64], assignment: Assignment) -> tuple[str, ...]:
        """Return a note on rows of splits whose windows begin before the first event, if any.

        Args:
            time: (N,) times of the rows in seconds since 1970, NaN if unknown.
            assignment: the splits of the rows.
        """
        full = self.first + self.reach
        counts = replace(assignment, codes=assignment.codes[time < full]).counts
        found = [f"{counts[name]:,} rows of {name}" for name in NAMES[1:] if counts[name]]
        if not found:
            return ()
        return (
            f"Warning: windows look back {span(self.reach)}, but the first event is of "
            f"{describe_time(self.first)}: {', '.join(found)} before {describe_time(full)} see "
            "less than later rows, of which more than alpha may be flagged; where there are enough "
            f"rows, set data.windows_warm_up: {FULL}",
        )
