"""A data set's calibration split → what a threshold is chosen from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.arrow import numbers_from_arrow
from anomaly_vae.calibration import Scores
from anomaly_vae.config import CalibrationConfig
from anomaly_vae.errors import DataError
from anomaly_vae.evidence import Evidence
from anomaly_vae.schema import listed
from anomaly_vae.splits import CALIBRATION, DAY
from pipelines.data import Dataset

Positions = NDArray[np.intp]


def evidence_of(
    data: Dataset, wish: CalibrationConfig, score: Callable[[Positions], Scores]
) -> Evidence:
    """The scores of the rows that calibrate, and of known anomalies where the method counts them.

    Raises:
        DataError: amounts that cannot be read.
        CalibrationError: a score is not finite.
    """
    normal = data.calibration_rows
    if wish.promises_alpha:
        return Evidence.of(score(normal), units=data.units)
    known = data.assignment.known
    return Evidence.of(
        score(normal),
        score(known),
        _amounts(data, wish.costs.amount, known) if wish.costs.amount else (),
        weight=_weight(data, len(normal), len(known)),
        rows_per_day=_rows_per_day(data),
        units=data.units,
    )


def unscored(rows: Positions) -> Scores:
    """Stands for scores, to check before there are any."""
    return np.zeros(len(rows))


def _weight(data: Dataset, n: int, m: int) -> float:
    """So that n normal rows and m anomalies are mixed as in traffic.

    With a time column traffic is what lies between the calibration rows, else all rows.
    """
    if not m:
        return 1.0
    if data.rows.time is not None:
        share = m / data.assignment.counts["calibration"]
    else:
        share = data.rows.anomaly.mean() / (1 - data.rows.anomaly.mean())
    return float(share * n / m)


def _rows_per_day(data: Dataset) -> float | None:
    """All rows between the first of the calibration split and the last, by their days."""
    time = data.rows.time
    if time is None:
        return None
    split = time[np.concatenate([data.assignment.rows(CALIBRATION), data.assignment.known])]
    inside = (time >= split.min()) & (time <= split.max())
    return float(inside.sum() / (np.ptp(split) / DAY or 1.0))


def _amounts(data: Dataset, column: str, rows: Positions) -> Scores:
    key = f"calibration.costs.amount names the column '{column}'"
    if column not in data.table.column_names:
        raise DataError(f"{key}; found {listed(data.table.column_names)}", column=column)
    try:
        values, _ = numbers_from_arrow(data.table.column(column))
    except DataError as error:
        raise DataError(f"{key}: {error}", column=column) from None
    amounts = values[rows]
    wrong = np.flatnonzero(~(amounts >= 0))
    if len(wrong):
        raise DataError(
            f"{key}: {len(wrong)} known anomalies have no amount of 0 or more, row "
            f"{rows[wrong[0]]} for one; mend or remove them",
            column=column,
        )
    return amounts
