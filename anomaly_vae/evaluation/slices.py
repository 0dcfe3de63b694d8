"""Evaluate a detector on slices: the rows with one level of a column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.data.converters import Levels, slice_name
from anomaly_vae.evaluation.bootstrap import Ranking
from anomaly_vae.evaluation.metrics import Rate, bonferroni, max_fpr_under_guarantee, rate
from anomaly_vae.scoring.detector import Detections

Mask = NDArray[np.bool_]

MAX_COLUMNS, MAX_LEVELS = 20, 10
"""Maximum numbers of columns, and of levels per column, that are reported."""
MIN_ROWS = 50
"""Minimum number of rows of a slice."""


@dataclass(frozen=True)
class ColumnSlice:
    """Figures on the rows with one level of a column; None if there are no such rows."""

    column: str
    level: str | None
    """The level; None for the rows in which it is missing."""
    rows: int
    anomalies: int
    fpr: Rate | None
    limit: float | None
    """Largest false positive rate that chance explains if these rows are like all others.

    All limits hold together (Bonferroni); see `max_fpr_under_guarantee`.
    """
    recall: Rate | None
    average_precision: float | None

    @property
    def name(self) -> str:
        """Name of the slice, for people."""
        return slice_name(self.column, self.level)

    @property
    def drifted(self) -> bool:
        """Whether more normal rows are flagged than chance explains."""
        return self.fpr is not None and self.limit is not None and self.fpr.value > self.limit

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Restore a slice from the result of `to_json`."""
        rates = {key: Rate(**content[key]) if content[key] else None for key in ("fpr", "recall")}
        return cls(**{**content, **rates})


def column_slices(
    columns: Mapping[str, Levels],
    found: Detections,
    anomaly: Mask,
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
) -> list[ColumnSlice]:
    """Evaluate the slices of these columns that have `MIN_ROWS`, the largest of each column first.

    Args:
        columns: columns of N rows.
        found: decisions on them.
        anomaly: (N,) labels.
        calibration: the calibration whose guarantee is checked.
        confidence: probability that all limits hold.
        group: (N,) names the exchangeable unit of each row; None means each row.
    """
    slices = list(iter_slices(columns))
    confidence = bonferroni(confidence, len(slices))
    unit = np.arange(len(anomaly)) if group is None else group
    return [
        _slice(column, level, found.part(rows), anomaly[rows], calibration, confidence, unit[rows])
        for column, level, rows in slices
    ]


def iter_slices(columns: Mapping[str, Levels]) -> Iterator[tuple[str, str | None, Mask]]:
    """Yield column, level and mask (N,) of each slice."""
    for column, levels in list(columns.items())[:MAX_COLUMNS]:
        codes, counts = np.unique(levels.codes, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:MAX_LEVELS]
        for code in codes[order][counts[order] >= MIN_ROWS]:
            yield column, None if code < 0 else levels.names[code], levels.codes == code


def _slice(
    column: str,
    level: str | None,
    found: Detections,
    anomaly: Mask,
    calibration: Calibration,
    confidence: float,
    unit: NDArray[Any],
) -> ColumnSlice:
    normal, both = ~anomaly, anomaly.any() and not anomaly.all()
    units = len(np.unique(unit[normal]))
    return ColumnSlice(
        column=column,
        level=level,
        rows=len(anomaly),
        anomalies=int(anomaly.sum()),
        fpr=rate(found.is_anomaly[normal], group=unit[normal]),
        limit=max_fpr_under_guarantee(calibration, units, confidence) if units else None,
        recall=rate(found.is_anomaly[anomaly], group=unit[anomaly]),
        average_precision=Ranking(found.score, anomaly).average_precision() if both else None,
    )
