"""Choose thresholds by traffic or labels: every observed score is tried on the calibration rows.

Anomalies count by `CalibrationSample.weight`. The best threshold on the calibration rows looks
better there than on other rows. Intervals are those of the chosen threshold over resampled rows
(Efron 1979).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from anomaly_vae.calibration.conformal import Scores, scores_needed
from anomaly_vae.calibration.sample import CalibrationSample, ThresholdChoice
from anomaly_vae.config.calibration import CalibrationConfig, CostConfig
from anomaly_vae.errors import CalibrationError

RESAMPLES = 200
CURVE_POINTS = 50
PER = 1_000
"""Number of rows that alerts and costs are stated for."""


def budget(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the lowest threshold that keeps an alert budget: K per 1,000 rows, or K per day.

    New traffic that is exchangeable with the calibration rows is flagged with probability (1 +
    #{calibration > threshold}) / (rows + 1), as with a conformal threshold (Vovk et al. 2005). The
    expected number of flags is within the budget. Such a threshold exists for samples that pass
    `check_budget`.
    """
    rate, t = alert_rate(sample, config), _candidates(sample)
    share = (1 + _flagged(sample, t)) / (sample.rows + 1)
    first = int(np.argmax(share <= rate))
    expected = float(share[first])
    per_day = sample.rows_per_day and expected * sample.rows_per_day
    return ThresholdChoice(float(t[first]), {"per_1000": expected * PER, "per_day": per_day})


def alert_rate(sample: CalibrationSample, config: CalibrationConfig) -> float:
    """Return the share of traffic that may be flagged, by the stricter of two budgets.

    Raises:
        CalibrationError: a budget per day without a time column.
    """
    rates = [config.per_1000 / PER] if config.per_1000 else []
    if config.per_day:
        if sample.rows_per_day is None:
            raise CalibrationError(
                "calibration.per_day needs a time column; name it in data.time, or give "
                "calibration.per_1000"
            )
        rates.append(config.per_day / sample.rows_per_day)
    return min(rates)


def check_budget(sample: CalibrationSample, config: CalibrationConfig) -> None:
    """Check that the sample resolves the budget.

    Raises:
        CalibrationError: there are too few rows, or the budget is no limit.
    """
    rate = alert_rate(sample, config)
    if rate >= 1:
        raise CalibrationError(
            f"a budget of {rate * PER:g} alerts per 1,000 rows is no limit; lower "
            f"{'calibration.per_day' if config.per_day else 'calibration.per_1000'}"
        )
    if sample.rows < scores_needed(rate):
        raise CalibrationError(
            f"{rate * PER:g} alerts per 1,000 rows take {scores_needed(rate)} calibration rows, "
            f"there are {sample.rows:g}; give more rows or a larger budget"
        )


def cost(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the threshold of least expected cost (Elkan 2001), per 1,000 rows of traffic.

    ``apparent_cost`` is the cost on the calibration rows themselves; ``cost`` and its interval are
    corrected for the optimism of choosing on the same rows (Efron & Tibshirani 1993, sec. 17.6).
    """
    t, costs = _candidates(sample), config.costs
    expected = expected_cost(sample, t, costs)
    best, rng = _last_argmax(-expected), np.random.default_rng(0)
    resampled = [expected_cost(sample.resampled(rng), t, costs) for _ in range(RESAMPLES)]
    chosen = [_last_argmax(-one) for one in resampled]
    optimism = np.mean([expected[i] - one[i] for i, one in zip(chosen, resampled, strict=True)])
    figures = {
        "cost": float(expected[best] + optimism),
        "cost_interval": _interval([one[best] + optimism for one in resampled]),
        "apparent_cost": float(expected[best]),
        "threshold_interval": _interval([t[i] for i in chosen]),
        "cost_of_flagging_nothing": float(expected_cost(sample, np.array([np.inf]), costs)[0]),
        "curve": _cost_curve(sample, t, expected),
    }
    return ThresholdChoice(float(t[best]), _with_anomaly_counts(sample, figures))


def expected_cost(sample: CalibrationSample, t: Scores, costs: CostConfig) -> Scores:
    """Return the cost (T,) of missed, reviewed and blocked rows, per 1,000 rows of traffic."""
    sizes = np.ones(len(sample.anomalies)) if sample.amounts is None else sample.amounts
    caught = costs.missed * sample.weight * _above(sample.anomalies, t, sizes)
    missed = costs.missed * sample.weight * sizes.sum() - caught
    blocked = costs.blocked * _above(sample.normal, t)
    total = missed + costs.review * _flagged(sample, t) + blocked
    return np.asarray(total * PER / sample.rows)


def fbeta(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the threshold of the largest F-beta; beta weighs recall (van Rijsbergen 1979)."""
    t = _candidates(sample)
    best = _last_argmax(f_score(sample, t, config.f_beta))
    return _choice_with_intervals(
        sample, t[best : best + 1], lambda e, at: f_score(e, at, config.f_beta), "fbeta"
    )


def f_score(sample: CalibrationSample, t: Scores, beta: float) -> Scores:
    """Return (1 + beta²) caught / (flagged + beta² anomalies), (T,)."""
    caught, flagged = _caught(sample, t), _flagged(sample, t)
    anomalies = sample.weight * len(sample.anomalies)
    return np.asarray((1 + beta**2) * caught / (flagged + beta**2 * anomalies))


def recall_at_precision(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the threshold of highest recall among those that reach the required precision.

    Raises:
        CalibrationError: no threshold reaches it; the message says what is reached.
    """
    t = _candidates(sample)
    reached = precision(sample, t)
    if reached.max() < config.min_precision:
        raise CalibrationError(
            f"precision {config.min_precision:g} is reached by no threshold on the calibration rows"
            f", at most {reached.max():.3f}; lower calibration.min_precision"
        )
    best = _last_argmax(np.where(reached >= config.min_precision, _caught(sample, t), -1))
    return _choice_with_intervals(sample, t[best : best + 1], precision, "precision")


def precision(sample: CalibrationSample, t: Scores) -> Scores:
    """Return the share (T,) of anomalies among the flagged rows; 0 if none is flagged."""
    flagged = _flagged(sample, t)
    return np.asarray(_caught(sample, t) / np.where(flagged > 0, flagged, 1))


def check_labels(sample: CalibrationSample, config: CalibrationConfig) -> None:
    """Check that there are known anomalies to choose by.

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
    """Return the position of the largest value; the last of equals, the highest threshold."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def _above(scores: Scores, t: Scores, weights: Scores | None = None) -> Scores:
    """Return the number (or weight) of sorted scores above each threshold, (T,)."""
    weights = np.ones(len(scores)) if weights is None else weights
    tail_sums = np.append(np.cumsum(weights[::-1])[::-1], 0.0)
    return np.asarray(tail_sums[np.searchsorted(scores, t, side="right")])


def _caught(sample: CalibrationSample, t: Scores) -> Scores:
    return sample.weight * _above(sample.anomalies, t)


def _flagged(sample: CalibrationSample, t: Scores) -> Scores:
    return _above(sample.normal, t) + _caught(sample, t)


def _choice_with_intervals(
    sample: CalibrationSample,
    at: Scores,
    figure: Callable[[CalibrationSample, Scores], Scores],
    name: str,
) -> ThresholdChoice:
    """Return the threshold ``at`` (1,) with precision, recall, and a figure with its interval."""
    rng = np.random.default_rng(0)
    resampled = [figure(sample.resampled(rng), at)[0] for _ in range(RESAMPLES)]
    recall = _caught(sample, at)[0] / (sample.weight * len(sample.anomalies))
    figures = {
        "precision": float(precision(sample, at)[0]),
        "recall": float(recall),
        name: float(figure(sample, at)[0]),
        f"{name}_interval": _interval(resampled),
    }
    return ThresholdChoice(float(at[0]), _with_anomaly_counts(sample, figures))


def _with_anomaly_counts(sample: CalibrationSample, figures: dict[str, Any]) -> dict[str, Any]:
    return {"anomalies": len(sample.anomalies), "anomaly_weight": sample.weight, **figures}


def _cost_curve(sample: CalibrationSample, t: Scores, expected: Scores) -> list[dict[str, float]]:
    """Return points of the cost curve, most of them where few rows are flagged."""
    spread = np.unique(np.geomspace(1, len(t), CURVE_POINTS).astype(int))
    points = len(t) - spread[::-1]
    flagged = _flagged(sample, t[points]) * PER / sample.rows
    return [
        {"threshold": float(a), "cost": float(b), "flagged": float(c)}
        for a, b, c in zip(t[points], expected[points], flagged, strict=True)
    ]


def _interval(figures: list[float]) -> list[float]:
    """Return the central 95% interval."""
    return [float(bound) for bound in np.quantile(figures, (0.025, 0.975))]
