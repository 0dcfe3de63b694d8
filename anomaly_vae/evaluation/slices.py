"""Evaluate a detector on slices. A slice is the set of rows with one level of a column."""

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
"""Maximum number of columns, and of levels per column, that are reported."""
MIN_ROWS = 50
"""Minimum number of rows of a slice that is reported."""


@dataclass(frozen=True)
class ColumnSlice:
    """Figures on the rows with one level of a column; None for a figure without rows."""

    column: str
    level: str | None
    """Level of the column; None for rows where the value is missing."""
    rows: int
    anomalies: int
    fpr: Rate | None
    limit: float | None
    """Largest false positive rate that chance explains if the slice is like all other rows.

    The limits of all slices hold together (Bonferroni); see `max_fpr_under_guarantee`.
    """
    recall: Rate | None
    average_precision: float | None

    @property
    def name(self) -> str:
        """Name of the slice, for display."""
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
    detections: Detections,
    anomaly: Mask,
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
) -> list[ColumnSlice]:
    """Evaluate all slices of at least `MIN_ROWS` rows, the largest of each column first.

    Args:
        columns: columns of N rows.
        detections: decisions on the same rows.
        anomaly: (N,) labels.
        calibration: the calibration whose guarantee is checked.
        confidence: probability that all limits hold.
        group: (N,) exchangeable unit of each row; None means that each row is a unit.
    """
    slices = list(iter_slices(columns))
    confidence = bonferroni(confidence, len(slices))
    unit = np.arange(len(anomaly)) if group is None else group
    return [
        _slice(
            column, level, detections.part(rows), anomaly[rows], calibration, confidence, unit[rows]
        )
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
    detections: Detections,
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
        fpr=rate(detections.is_anomaly[normal], group=unit[normal]),
        limit=max_fpr_under_guarantee(calibration, units, confidence) if units else None,
        recall=rate(detections.is_anomaly[anomaly], group=unit[anomaly]),
        average_precision=float(Ranking(detections.score, anomaly).average_precision())
        if both
        else None,
    )
