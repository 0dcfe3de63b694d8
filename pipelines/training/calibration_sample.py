"""A data set's calibration split → what a threshold is chosen from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Scores
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.config import CalibrationConfig
from anomaly_vae.data.arrow import numbers_from_arrow
from anomaly_vae.data.converters import Levels, as_levels
from anomaly_vae.data.encoding import Categorical, TabularEncoding
from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.data.splitting import CALIBRATION, DAY, VALIDATION, one_row_per_group
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from anomaly_vae.scoring.modality import Encoding
from anomaly_vae.scoring.scorer import Scorer
from pipelines.datasets.dataset import Dataset

Positions = NDArray[np.intp]


def evidence_of(
    data: Dataset, wish: CalibrationConfig, score: Callable[[Positions], Scores]
) -> CalibrationSample:
    """The scores of the rows that calibrate, and of known anomalies where the method counts them.

    Raises:
        DataError: amounts, groups or weights that cannot be read.
        CalibrationError: a score is not finite.
    """
    return _evidence(data, wish, score(data.calibration_rows), score)


def _evidence(
    data: Dataset, wish: CalibrationConfig, scores: Scores, score: Callable[[Positions], Scores]
) -> CalibrationSample:
    """The same of ``scores`` that `Dataset.calibration_rows` have."""
    normal = data.calibration_rows
    if wish.promises_alpha:
        levels = _levels(data, wish.group_by, normal) if wish.group_by else None
        weights = _weights(data, wish.density_ratio, normal) if wish.density_ratio else ()
        return CalibrationSample.from_scores(
            scores, levels=levels, weights=weights, units=data.units
        )
    known = data.assignment.calibration_anomalies
    return CalibrationSample.from_scores(
        scores,
        score(known),
        _amounts(data, wish.costs.amount, known) if wish.costs.amount else (),
        weight=_weight(data, len(normal), len(known)),
        rows_per_day=_rows_per_day(data),
        units=data.units,
    )


def scored_evidence(data: Dataset, wish: CalibrationConfig, scorer: Scorer) -> CalibrationSample:
    """The same by a model: with the groups that it tells apart, and rows that it did not learn.

    What these are compared by leaves the rate out: their codes are in the aggregated posterior.
    """
    take = data.batch.take
    scores, losses = scorer.scores_and_losses(take(data.calibration_rows))
    held_out = scorer.losses(take(_held_out(data)))
    found = _evidence(data, wish, scores, lambda rows: scorer.score(take(rows)))
    return replace(
        found,
        levels=found.levels and _kept(found.levels, scorer.encoding, str(wish.group_by)),
        losses=(np.sort(losses), np.sort(held_out)),
    )


def _kept(levels: Levels, encoding: Encoding, column: str) -> Levels:
    """Without those that training did not keep: in a row to be scored nothing tells them apart."""
    for one in encoding.columns if isinstance(encoding, TabularEncoding) else ():
        if one.name == column and isinstance(one, Categorical):
            index = {name: code for code, name in enumerate(one.levels)}
            return Levels(levels.recode(index, unseen=-1), one.levels)
    return levels


def _held_out(data: Dataset) -> Positions:
    """Rows like the training rows, as exchangeable as those that calibrate."""
    return one_row_per_group(data.assignment.rows(VALIDATION), data.rows.group)


def _levels(data: Dataset, column: str, rows: Positions) -> Levels:
    """The group of each of these rows.

    Raises:
        DataError: the model does not read the column, or it has no levels.
    """
    _check_group(data, column)
    return as_levels(data.batch.take(rows).values[column])


def _check_group(data: Dataset, column: str) -> None:
    assert isinstance(data.schema, TabularSchema), "images have no groups"
    types = {one.name: one.type for one in data.schema.columns}
    discrete = [one.name for one in data.schema.columns if one.spec.has_levels]
    if column in discrete:
        return
    why = (
        f"which is {types[column]} and has no groups; name a categorical or binary one, or declare "
        f"data.features.{column}.type"
        if column in types
        else "which the model does not read: a row to be scored could come without its group; name "
        f"one of {listed(discrete)}, or make it a feature"
    )
    raise DataError(f"calibration.group_by names the column '{column}', {why}", column=column)


def _weights(data: Dataset, column: str, rows: Positions) -> Scores:
    """How much denser than here traffic is around each of these rows.

    Raises:
        DataError: no such column, one that the model reads, or a row without a weight.
    """
    key = f"calibration.density_ratio names the column '{column}'"
    if column in data.schema.names:
        raise DataError(f"{key}, which the model reads; add it to data.ignore", column=column)
    weights = _numbers(data, column, key)[rows]
    wrong = rows[~(weights >= 0)]
    if len(wrong):
        raise DataError(
            f"{key}: {len(wrong)} calibration rows have no ratio of 0 or more, row {wrong[0]} for "
            "one; mend or remove them",
            column=column,
        )
    return weights


def unscored(rows: Positions) -> Scores:
    """Stands for scores, to check before there are any."""
    return np.zeros(len(rows))


def _weight(data: Dataset, n: int, m: int) -> float:
    """So that n normal rows and m anomalies are mixed as in traffic.

    With a time column traffic is what lies between the calibration rows, else all rows.
    """
    if not m:
        return 1.0
    timed = data.rows.time is not None
    odds = m / data.assignment.counts["calibration"] if timed else data.anomaly_odds
    return odds * n / m


def _rows_per_day(data: Dataset) -> float | None:
    """All rows between the first of the calibration split and the last, by their days."""
    time = data.rows.time
    if time is None:
        return None
    split = time[
        np.concatenate([data.assignment.rows(CALIBRATION), data.assignment.calibration_anomalies])
    ]
    inside = (time >= split.min()) & (time <= split.max())
    return float(inside.sum() / (np.ptp(split) / DAY or 1.0))


def _amounts(data: Dataset, column: str, rows: Positions) -> Scores:
    key = f"calibration.costs.amount names the column '{column}'"
    amounts = _numbers(data, column, key)[rows]
    wrong = np.flatnonzero(~(amounts >= 0))
    if len(wrong):
        raise DataError(
            f"{key}: {len(wrong)} known anomalies have no amount of 0 or more, row "
            f"{rows[wrong[0]]} for one; mend or remove them",
            column=column,
        )
    return amounts


def _numbers(data: Dataset, column: str, key: str) -> Scores:
    """(N,) a column of the table, whether the model reads it or not."""
    if column not in data.table.column_names:
        raise DataError(f"{key}; found {listed(data.table.column_names)}", column=column)
    try:
        values, _ = numbers_from_arrow(data.table.column(column))
    except DataError as error:
        raise DataError(f"{key}: {error}", column=column) from None
    return values
