"""Collect the scores of a calibration split, from which a threshold is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import Scores
from anomaly_vae.calibration.daily_alerts import DailyTraffic
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.arrow import numbers_from_arrow
from anomaly_vae.data.converters import Levels, as_levels
from anomaly_vae.data.days import complete_days
from anomaly_vae.data.encoding import Categorical, TabularEncoding
from anomaly_vae.data.splitting import (
    CALIBRATION,
    DAY,
    TEST,
    TRAIN,
    VALIDATION,
    one_row_per_group,
)
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed, nearest
from anomaly_vae.scoring.scorer import ScoredRows
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.labels import column_codes

Positions = NDArray[np.intp]


def sample_of(
    data: Dataset, config: CalibrationConfig, score: Callable[[Positions], Scores]
) -> CalibrationSample:
    """Score the calibration rows, and the known anomalies if the method needs them.

    Args:
        data: the data set.
        config: the calibration method and the columns that it uses.
        score: function that returns the scores (N,) of the rows at N positions.

    Raises:
        DataError: amounts, groups or weights cannot be read.
        CalibrationError: a score is not finite.
    """
    return _sample(data, config, score(data.calibration_rows), score)


def _sample(
    data: Dataset,
    config: CalibrationConfig,
    scores: Scores,
    score: Callable[[Positions], Scores],
) -> CalibrationSample:
    """Build the sample from the ``scores`` of `Dataset.calibration_rows`; see `sample_of`."""
    normal = data.calibration_rows
    if config.promises_alpha:
        levels = _levels(data, config.group_by, normal) if config.group_by else None
        weights = _weights(data, config.density_ratio, normal) if config.density_ratio else ()
        return CalibrationSample.from_scores(
            scores, levels=levels, weights=weights, units=data.units
        )
    anomalies, final = data.assignment.calibration_anomalies, ~data.young[normal]
    anomaly_scores, known = score(anomalies), data.mature(anomalies)
    return CalibrationSample.from_scores(
        scores[final],
        anomaly_scores[~data.young[anomalies]],
        _amounts(data, config.costs.amount, known) if config.costs.amount else (),
        weight=_weight(data, int(final.sum()), len(known)),
        rows_per_day=_rows_per_day(data),
        traffic=_traffic(data, config, np.append(scores, anomaly_scores), score),
        units=data.units,
    )


def check_labels(data: Dataset, config: CalibrationConfig) -> None:
    """Check that rows have final labels where those are needed, and print how many lack them.

    Raises:
        DataError: no test row has a final label, or no calibration row whose label is needed.
    """
    if data.label_delay is None:
        return
    rows = data.assignment.rows
    if not len(data.mature(rows(TEST))):
        raise DataError(_no_final_labels(data, "test"))
    calibration, young = rows(CALIBRATION), int(data.young[rows(CALIBRATION)].sum())
    if young == len(calibration) and not config.promises_alpha:
        raise DataError(_no_final_labels(data, "calibration"))
    if young:
        console.info(
            f"{young:,} of {len(calibration):,} {YOUNG_CALIBRATION[config.promises_alpha]}"
        )
    if trained := int(data.young[np.concatenate([rows(TRAIN), rows(VALIDATION)])].sum()):
        console.info(f"{trained:,} {YOUNG_TRAINING}")


YOUNG_CALIBRATION = {
    True: "calibration rows are younger than data.label_delay and count as normal: anomalies "
    "among them that are not known yet raise the threshold",
    False: "calibration rows are younger than data.label_delay: their labels may change, so the "
    "threshold is chosen without them",
}
"""Notes on young calibration rows, by whether the method needs no labels."""
YOUNG_TRAINING = (
    "training rows are younger than data.label_delay and count as normal: anomalies among them "
    "that are not known yet train the model"
)


def _no_final_labels(data: Dataset, split: str) -> str:
    return (
        f"every {split} row is younger than data.label_delay ({data.label_delay}), counted from "
        f"the newest row, {data.label_policy['newest']}: no label among them is final; make "
        f"data.splits.{split} reach further back than the delay, or the delay shorter"
    )


def model_sample(
    data: Dataset, config: CalibrationConfig, model: Bundle, scored: ScoredRows
) -> CalibrationSample:
    """Build the sample of a trained model, with the losses of calibration and held-out rows.

    The losses are compared to find out whether the calibration rows contain anomalies; see
    `_comparable`. Groups are those that the model distinguishes.

    Args:
        data: the data set.
        config: the calibration method and the columns that it uses.
        model: the model.
        scored: the scored rows of `Dataset.calibration_rows`.

    Raises:
        DataError: see `sample_of`.
        CalibrationError: see `sample_of`.
    """
    take, scorer = data.batch.take, model.scorer
    held_out = scorer.scored(take(_held_out(data)))
    sample = _sample(data, config, scored.scores, lambda rows: scorer.score(take(rows)))
    return replace(
        sample,
        levels=sample.levels and _distinguished(sample.levels, model, str(config.group_by)),
        losses=(_comparable(model, scored), _comparable(model, held_out)),
    )


def _comparable(model: Bundle, scored: ScoredRows) -> Scores:
    """Return the sorted part (N,) of scores that the held-out rows had no influence on.

    The aggregated posterior contains the codes of held-out rows, so that the rate is left out. With
    a backbone, exemplars contain their patches, too, and only the picture level is left.
    """
    return np.sort(scored.terms.loss if model.draws else scored.terms.rate)


def _distinguished(levels: Levels, model: Bundle, column: str) -> Levels:
    """Drop the levels that training merged, as the model cannot tell the groups of their rows."""
    for encoded in TabularEncoding.from_json(model.manifest["encoding"]).columns:
        if encoded.name == column and isinstance(encoded, Categorical):
            index = {name: code for code, name in enumerate(encoded.levels)}
            return Levels(levels.recode(index, unseen=-1), encoded.levels)
    return levels


def _held_out(data: Dataset) -> Positions:
    """Return validation rows that are as exchangeable as the calibration rows."""
    return one_row_per_group(data.assignment.rows(VALIDATION), data.rows.group)


def _levels(data: Dataset, column: str, rows: Positions) -> Levels:
    """Return the group of each of these rows.

    Raises:
        DataError: the model does not read the column, or the column has no levels.
    """
    _check_group(data, column)
    return as_levels(data.batch.take(rows).values[column])


def _check_group(data: Dataset, column: str) -> None:
    types = {feature.name: feature.type for feature in data.schema.columns}
    discrete = [feature.name for feature in data.schema.columns if feature.spec.has_levels]
    if column in discrete:
        return
    reason = (
        f"which is {types[column]} and has no groups; name a categorical or binary one, or declare "
        f"data.features.{column}.type"
        if column in types
        else "which the model does not read: a row to be scored could come without its group; name "
        f"one of {listed(discrete)}, or make it a feature"
    )
    raise DataError(f"calibration.group_by names the column '{column}', {reason}", column=column)


def _weights(data: Dataset, column: str, rows: Positions) -> Scores:
    """Return the density of traffic relative to the calibration split at each of these rows.

    Raises:
        DataError: the column is missing, the model reads it, or a row has no weight.
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


def zero_scores(rows: Positions) -> Scores:
    """Return zeros as scores (N,), to check a configuration before a model exists."""
    return np.zeros(len(rows))


def _weight(data: Dataset, n: int, m: int) -> float:
    """Return the weight of an anomaly that makes n normal rows and m anomalies represent traffic.

    Traffic means the rows in the period of the calibration rows or, without a time column, all
    rows.
    """
    if not m:
        return 1.0
    timed = data.rows.time is not None
    final = len(data.mature(data.assignment.rows(CALIBRATION)))
    odds = m / final if timed else data.anomaly_odds
    return odds * n / m


def _rows_per_day(data: Dataset) -> float | None:
    """Return the number of all rows per day, in the period of the calibration split."""
    time = data.rows.time
    if time is None:
        return None
    split = time[
        np.concatenate([data.assignment.rows(CALIBRATION), data.assignment.calibration_anomalies])
    ]
    inside = (time >= split.min()) & (time <= split.max())
    return float(inside.sum() / (np.ptp(split) / DAY or 1.0))


def _traffic(
    data: Dataset,
    config: CalibrationConfig,
    known: Scores,
    score: Callable[[Positions], Scores],
) -> DailyTraffic | None:
    """Collect all rows of the calibration period; None without a budget per day or without times.

    With groups these are all rows of the calibration split's groups, and not one of each, as in
    `Dataset.calibration_rows`.

    Args:
        data: the data set.
        config: the budget, its entity and its time zone.
        known: scores of the calibration rows and the calibration anomalies.
        score: function that returns the scores (N,) of the rows at N positions.

    Raises:
        DataError: the column of the entity is missing or cannot be read.
    """
    entity = _entities(data, config.entity) if config.entity else None
    time, group, split = data.rows.time, data.rows.group, data.assignment
    if not config.per_day or time is None:
        return None
    rows = np.append(split.rows(CALIBRATION), split.calibration_anomalies)
    inside = np.isin(np.arange(len(time)), rows)
    population = None if group is None else np.isin(group, group[rows])
    seconds = np.where(data.batch.usable, time, np.nan)
    scores = np.full(len(time), np.nan)
    scores[rows] = known if group is None else score(rows)
    days = complete_days(seconds, inside, population, config.time_zone)
    return DailyTraffic(scores, days, entity, config.entity)


def _entities(data: Dataset, column: str) -> NDArray[np.int32]:
    """Return the entity of each row (N,) as a code; each row without a value has its own.

    Raises:
        DataError: see `_traffic`.
    """
    key, available = f"calibration.entity names the column '{column}'", data.table.column_names
    if column not in available:
        near = nearest(column, available)
        hint = f"did you mean '{near}'" if near else "name one of them"
        raise DataError(f"{key}, which is not there; found {listed(available)}; {hint}",
                        column=column)  # fmt: skip
    try:
        return column_codes(data.table, column)
    except DataError as error:
        raise DataError(f"{key}: {error}; name a column of ids", column=column) from None


def _amounts(data: Dataset, column: str, rows: Positions) -> Scores:
    """Return the cost of each of these anomalies.

    Raises:
        DataError: the column is missing, or an anomaly has no amount of 0 or more.
    """
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
    """Read a numeric column (N,), which need not be a feature of the model."""
    if column not in data.table.column_names:
        raise DataError(f"{key}; found {listed(data.table.column_names)}", column=column)
    try:
        values, _ = numbers_from_arrow(data.table.column(column))
    except DataError as error:
        raise DataError(f"{key}: {error}", column=column) from None
    return values
