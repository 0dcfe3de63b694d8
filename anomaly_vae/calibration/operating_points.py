"""Choose thresholds by an alert budget, by costs or by labels: try every observed score.

Each known anomaly represents `CalibrationSample.weight` anomalies of traffic. Figures at the chosen
threshold are optimistic, because the threshold was chosen on the same rows. Intervals are computed
at the chosen threshold over resampled rows (Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from anomaly_vae.calibration.conformal import Scores, scores_needed
from anomaly_vae.calibration.daily_alerts import MIN_DAYS, WEEK, DailyTraffic, future_day
from anomaly_vae.calibration.sample import CalibrationSample, ThresholdChoice
from anomaly_vae.config.calibration import CalibrationConfig, CostConfig
from anomaly_vae.errors import CalibrationError

RESAMPLES = 200
"""Number of resampled calibration samples per interval."""
CURVE_POINTS = 50
"""Maximum number of points of the cost curve."""
RATE_ROWS = 1_000
"""Number of rows of traffic that alert and cost rates refer to."""


def budget(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the lowest threshold within an alert budget of K per 1,000 rows or K per day.

    A row of traffic that is exchangeable with the calibration rows is flagged with probability (1 +
    #{calibration > threshold}) / (rows + 1), as with a conformal threshold (Vovk et al. 2005), so
    the expected number of flags is within the budget. A budget per day counts the alerts of the
    complete days of the calibration period, if it has `MIN_DAYS` of them. Such a threshold exists
    for samples that pass `check_budget`.
    """
    thresholds = _candidates(sample)
    share = (1 + _flagged(sample, thresholds)) / (sample.rows + 1)
    per_day = _per_day(sample, thresholds, share)
    within = share <= (config.per_1000 or np.inf) / RATE_ROWS
    if per_day is not None:
        within &= per_day <= (config.per_day or np.inf)
    first = int(np.argmax(within))
    threshold = float(thresholds[first])
    figures = {
        "per_1000": float(share[first]) * RATE_ROWS,
        "per_day": None if per_day is None else float(per_day[first]),
    }
    return ThresholdChoice(threshold, {**figures, **_daily_figures(sample, threshold)})


def _per_day(sample: CalibrationSample, thresholds: Scores, share: Scores) -> Scores | None:
    """Return the expected number of alerts a day at each threshold (T,), None without times."""
    if sample.traffic and len(sample.traffic.days) >= MIN_DAYS:
        return sample.traffic.expected(thresholds)
    return None if sample.rows_per_day is None else share * sample.rows_per_day


def _daily_figures(sample: CalibrationSample, threshold: float) -> dict[str, Any]:
    """Return the figures of alerts on a future day, with a note; none without complete days."""
    if sample.traffic is None:
        return {}
    traffic, counts = sample.traffic, sample.traffic.counts(threshold)
    if (interval := future_day(counts)) is None:
        return {}
    few = "; less than a week does not show how weekdays differ" if len(counts) < WEEK else ""
    mean = float(traffic.expected(np.array([threshold]))[0])
    note = (
        f"about {mean:.3g} alerts a day ({traffic.alert}); {interval[0]:g} to "
        f"{interval[1]:g} on 95 of 100 future days, if they are like the {len(counts)} complete "
        f"days of the calibration period{few}"
    )
    days = {"days": len(counts), "days_left_out": traffic.days.left_out}
    entity = {"entity": traffic.column} if traffic.column else {}
    return {"per_day_interval": list(interval), **days, **entity, "note": note}


def check_budget(sample: CalibrationSample, config: CalibrationConfig) -> None:
    """Check that the sample resolves the budget.

    Raises:
        CalibrationError: there are too few rows or days, or the budget allows every row to be
            flagged.
    """
    if config.per_1000:
        _check_share(sample, config.per_1000 / RATE_ROWS, "calibration.per_1000")
    if config.per_day:
        _check_per_day(sample, config.per_day, config.entity)


def _check_per_day(sample: CalibrationSample, per_day: float, entity: str | None) -> None:
    """Check that the sample resolves a budget per day."""
    if sample.rows_per_day is None:
        raise CalibrationError(
            "calibration.per_day needs a time column; name it in data.time, or give "
            "calibration.per_1000"
        )
    days = len(sample.traffic.days) if sample.traffic else 0
    if sample.traffic and days >= MIN_DAYS:
        _check_daily(sample.traffic, per_day)
    elif entity:
        raise CalibrationError(
            f"calibration.entity counts the distinct {entity} of complete days, of which the "
            f"calibration split has {days}, not {MIN_DAYS}; give it more days in "
            "data.splits.calibration, or leave calibration.entity out"
        )
    else:
        _check_share(sample, per_day / sample.rows_per_day, "calibration.per_day")


def _check_share(sample: CalibrationSample, rate: float, key: str) -> None:
    """Check that the sample resolves a share of rows that may be flagged."""
    if rate >= 1:
        raise CalibrationError(
            f"a budget of {rate * RATE_ROWS:g} alerts per 1,000 rows is no limit; lower {key}"
        )
    if sample.rows < scores_needed(rate):
        raise CalibrationError(
            f"{rate * RATE_ROWS:g} alerts per 1,000 rows take {scores_needed(rate)} calibration "
            f"rows, there are {sample.rows:g}; give more rows or a larger budget"
        )


def _check_daily(traffic: DailyTraffic, per_day: float) -> None:
    """Check that the days resolve a number of alerts a day."""
    if per_day >= traffic.per_day:
        raise CalibrationError(
            f"a budget of {per_day:g} alerts a day is no limit: a day has about "
            f"{traffic.per_day:.4g} {traffic.alert}; lower calibration.per_day"
        )
    needed = math.ceil(traffic.days.scale / per_day)
    if needed > len(traffic.days):
        raise CalibrationError(
            f"{per_day:g} alerts a day take {needed} complete calibration days, there are "
            f"{len(traffic.days)}; give more days or a larger calibration.per_day"
        )


def cost(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the threshold with the least expected cost per 1,000 rows of traffic (Elkan 2001).

    ``apparent_cost`` is the cost on the calibration rows themselves; ``cost`` and its interval are
    corrected for the optimism of choosing on the same rows (Efron & Tibshirani 1993, sec. 17.6).
    """
    thresholds, costs = _candidates(sample), config.costs
    expected = expected_cost(sample, thresholds, costs)
    best, rng = _last_argmax(-expected), np.random.default_rng(0)
    resampled = [expected_cost(sample.resampled(rng), thresholds, costs) for _ in range(RESAMPLES)]
    chosen = [_last_argmax(-drawn) for drawn in resampled]
    optimism = np.mean([expected[i] - drawn[i] for i, drawn in zip(chosen, resampled, strict=True)])
    figures = {
        "cost": float(expected[best] + optimism),
        "cost_interval": _interval([drawn[best] + optimism for drawn in resampled]),
        "apparent_cost": float(expected[best]),
        "threshold_interval": _interval([thresholds[i] for i in chosen]),
        "cost_of_flagging_nothing": float(expected_cost(sample, np.array([np.inf]), costs)[0]),
        "curve": _cost_curve(sample, thresholds, expected),
    }
    return ThresholdChoice(float(thresholds[best]), _with_anomaly_counts(sample, figures))


def expected_cost(sample: CalibrationSample, thresholds: Scores, costs: CostConfig) -> Scores:
    """Return the cost of errors and reviews at each threshold (T,), per 1,000 rows of traffic."""
    sizes = np.ones(len(sample.anomalies)) if sample.amounts is None else sample.amounts
    caught = costs.missed * sample.weight * _above(sample.anomalies, thresholds, sizes)
    missed = costs.missed * sample.weight * sizes.sum() - caught
    blocked = costs.blocked * _above(sample.normal, thresholds)
    total = missed + costs.review * _flagged(sample, thresholds) + blocked
    return np.asarray(total * RATE_ROWS / sample.rows)


def fbeta(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the threshold with the largest F-beta; beta weights recall (van Rijsbergen 1979)."""
    thresholds = _candidates(sample)
    best = _last_argmax(f_score(sample, thresholds, config.f_beta))
    return _choice_with_intervals(
        sample,
        thresholds[best : best + 1],
        lambda drawn, threshold: f_score(drawn, threshold, config.f_beta),
        "fbeta",
    )


def f_score(sample: CalibrationSample, thresholds: Scores, beta: float) -> Scores:
    """Return (1 + beta²) caught / (flagged + beta² anomalies) at each threshold (T,)."""
    caught, flagged = _caught(sample, thresholds), _flagged(sample, thresholds)
    anomalies = sample.weight * len(sample.anomalies)
    return np.asarray((1 + beta**2) * caught / (flagged + beta**2 * anomalies))


def recall_at_precision(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the threshold with the highest recall among those of sufficient precision.

    Raises:
        CalibrationError: no threshold reaches ``min_precision``; the message names the highest
            precision.
    """
    thresholds = _candidates(sample)
    reached = precision(sample, thresholds)
    if reached.max() < config.min_precision:
        raise CalibrationError(
            f"precision {config.min_precision:g} is reached by no threshold on the calibration rows"
            f", at most {reached.max():.3f}; lower calibration.min_precision"
        )
    best = _last_argmax(np.where(reached >= config.min_precision, _caught(sample, thresholds), -1))
    return _choice_with_intervals(sample, thresholds[best : best + 1], precision, "precision")


def precision(sample: CalibrationSample, thresholds: Scores) -> Scores:
    """Return the share of anomalies among the rows flagged at each threshold (T,); 0 if none is."""
    flagged = _flagged(sample, thresholds)
    return np.asarray(_caught(sample, thresholds) / np.where(flagged > 0, flagged, 1))


def check_labels(sample: CalibrationSample, config: CalibrationConfig) -> None:
    """Check that the sample has known anomalies.

    Raises:
        CalibrationError: there are none; the message names the keys that provide some.
    """
    if not len(sample.anomalies):
        raise CalibrationError(
            f"calibration.method {config.method} needs known anomalies among the calibration rows, "
            "there are none; name their column in data.label and, where there is no time column, "
            "set data.splits.anomalies to a share such as 0.5"
        )


def _candidates(sample: CalibrationSample) -> Scores:
    """Return the observed scores (T,), ascending, except those that would flag all normal rows."""
    seen = np.unique(np.concatenate([sample.normal, sample.anomalies]))
    return np.asarray(seen[seen >= sample.normal[0]])


def _last_argmax(values: Scores) -> int:
    """Return the index of the largest value; of equal values, the last (highest threshold)."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def _above(scores: Scores, thresholds: Scores, weights: Scores | None = None) -> Scores:
    """Return the number, or the total weight, of sorted scores above each threshold (T,)."""
    weights = np.ones(len(scores)) if weights is None else weights
    tail_sums = np.append(np.cumsum(weights[::-1])[::-1], 0.0)
    return np.asarray(tail_sums[np.searchsorted(scores, thresholds, side="right")])


def _caught(sample: CalibrationSample, thresholds: Scores) -> Scores:
    """Return the weighted number of anomalies above each threshold (T,)."""
    return sample.weight * _above(sample.anomalies, thresholds)


def _flagged(sample: CalibrationSample, thresholds: Scores) -> Scores:
    """Return the weighted number of rows above each threshold (T,)."""
    return _above(sample.normal, thresholds) + _caught(sample, thresholds)


def _choice_with_intervals(
    sample: CalibrationSample,
    threshold: Scores,
    figure: Callable[[CalibrationSample, Scores], Scores],
    name: str,
) -> ThresholdChoice:
    """Return a threshold (1,) with its precision and recall, and a figure with its interval."""
    rng = np.random.default_rng(0)
    resampled = [figure(sample.resampled(rng), threshold)[0] for _ in range(RESAMPLES)]
    recall = _caught(sample, threshold)[0] / (sample.weight * len(sample.anomalies))
    figures = {
        "precision": float(precision(sample, threshold)[0]),
        "recall": float(recall),
        name: float(figure(sample, threshold)[0]),
        f"{name}_interval": _interval(resampled),
    }
    return ThresholdChoice(float(threshold[0]), _with_anomaly_counts(sample, figures))


def _with_anomaly_counts(sample: CalibrationSample, figures: dict[str, Any]) -> dict[str, Any]:
    return {"anomalies": len(sample.anomalies), "anomaly_weight": sample.weight, **figures}


def _cost_curve(
    sample: CalibrationSample, thresholds: Scores, expected: Scores
) -> list[dict[str, float]]:
    """Return points of the cost curve, dense where few rows are flagged."""
    spread = np.unique(np.geomspace(1, len(thresholds), CURVE_POINTS).astype(int))
    points = len(thresholds) - spread[::-1]
    flagged = _flagged(sample, thresholds[points]) * RATE_ROWS / sample.rows
    return [
        {"threshold": float(a), "cost": float(b), "flagged": float(c)}
        for a, b, c in zip(thresholds[points], expected[points], flagged, strict=True)
    ]


def _interval(figures: list[float]) -> list[float]:
    """Return the central 95% interval."""
    return [float(bound) for bound in np.quantile(figures, (0.025, 0.975))]
