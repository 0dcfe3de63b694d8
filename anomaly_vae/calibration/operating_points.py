"""Thresholds from traffic or labels: every score seen is tried on the calibration rows.

Anomalies count by `CalibrationSample.weight`. What is best on the calibration rows looks better
there than it is on others; intervals are of the threshold chosen, over resampled rows (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from anomaly_vae.calibration.conformal import Scores, scores_needed
from anomaly_vae.calibration.sample import CalibrationSample, ThresholdChoice
from anomaly_vae.config import CalibrationConfig, CostConfig
from anomaly_vae.errors import CalibrationError

RESAMPLES = 200
CURVE_POINTS = 50
PER = 1_000
"""Rows that alerts and costs are told per."""


def budget(evidence: CalibrationSample, wish: CalibrationConfig) -> ThresholdChoice:
    """The lowest threshold that flags at most K of 1,000 rows of traffic, or K a day, on average.

    New traffic that is exchangeable with the calibration rows is flagged with probability
    (1 + #{calibration > threshold}) / (rows + 1), as by a conformal threshold (Vovk et al. 2005).
    Rows that `check_budget` lets pass have such a threshold.
    """
    rate, t = alert_rate(evidence, wish), _candidates(evidence)
    share = (1 + _flagged(evidence, t)) / (evidence.rows + 1)
    first = int(np.argmax(share <= rate))
    expected = float(share[first])
    per_day = evidence.rows_per_day and expected * evidence.rows_per_day
    return ThresholdChoice(float(t[first]), {"per_1000": expected * PER, "per_day": per_day})


def alert_rate(evidence: CalibrationSample, wish: CalibrationConfig) -> float:
    """The share of traffic that may be flagged; the stricter of two wishes.

    Raises:
        CalibrationError: a budget per day without a time column.
    """
    rates = [wish.per_1000 / PER] if wish.per_1000 else []
    if wish.per_day:
        if evidence.rows_per_day is None:
            raise CalibrationError(
                "calibration.per_day needs a time column; name it in data.time, or give "
                "calibration.per_1000"
            )
        rates.append(wish.per_day / evidence.rows_per_day)
    return min(rates)


def check_budget(evidence: CalibrationSample, wish: CalibrationConfig) -> None:
    """Whether so few alerts can be told from so few rows.

    Raises:
        CalibrationError: they cannot, or the budget is no limit.
    """
    rate = alert_rate(evidence, wish)
    if rate >= 1:
        raise CalibrationError(
            f"a budget of {rate * PER:g} alerts per 1,000 rows is no limit; lower "
            f"{'calibration.per_day' if wish.per_day else 'calibration.per_1000'}"
        )
    if evidence.rows < scores_needed(rate):
        raise CalibrationError(
            f"{rate * PER:g} alerts per 1,000 rows take {scores_needed(rate)} calibration rows, "
            f"there are {evidence.rows:g}; give more rows or a larger budget"
        )


def cost(evidence: CalibrationSample, wish: CalibrationConfig) -> ThresholdChoice:
    """The threshold of least expected cost (Elkan 2001), told per 1,000 rows of traffic.

    ``apparent_cost`` is that on the calibration rows themselves; ``cost`` and its interval are
    corrected for the optimism of choosing on them (Efron & Tibshirani 1993, sec. 17.6).
    """
    t, costs = _candidates(evidence), wish.costs
    expected = expected_cost(evidence, t, costs)
    best, rng = _best(-expected), np.random.default_rng(0)
    again = [expected_cost(evidence.resampled(rng), t, costs) for _ in range(RESAMPLES)]
    theirs = [_best(-one) for one in again]
    optimism = np.mean([expected[i] - one[i] for i, one in zip(theirs, again, strict=True)])
    figures = {
        "cost": float(expected[best] + optimism),
        "cost_interval": _interval([one[best] + optimism for one in again]),
        "apparent_cost": float(expected[best]),
        "threshold_interval": _interval([t[i] for i in theirs]),
        "cost_of_flagging_nothing": float(expected_cost(evidence, np.array([np.inf]), costs)[0]),
        "curve": _curve(evidence, t, expected),
    }
    return ThresholdChoice(float(t[best]), _counted(evidence, figures))


def expected_cost(evidence: CalibrationSample, t: Scores, costs: CostConfig) -> Scores:
    """(T,) missed anomalies, reviewed rows and blocked good rows, per 1,000 rows of traffic."""
    sizes = np.ones(len(evidence.anomalies)) if evidence.amounts is None else evidence.amounts
    caught = costs.missed * evidence.weight * _above(evidence.anomalies, t, sizes)
    missed = costs.missed * evidence.weight * sizes.sum() - caught
    blocked = costs.blocked * _above(evidence.normal, t)
    total = missed + costs.review * _flagged(evidence, t) + blocked
    return np.asarray(total * PER / evidence.rows)


def fbeta(evidence: CalibrationSample, wish: CalibrationConfig) -> ThresholdChoice:
    """The threshold of the largest F-beta, whose recall counts beta-fold (van Rijsbergen 1979)."""
    t = _candidates(evidence)
    best = _best(f_score(evidence, t, wish.f_beta))
    return _judged(evidence, t[best : best + 1], lambda e, at: f_score(e, at, wish.f_beta), "fbeta")


def f_score(evidence: CalibrationSample, t: Scores, beta: float) -> Scores:
    """(T,) (1 + beta²) caught / (flagged + beta² anomalies)."""
    caught, flagged = _caught(evidence, t), _flagged(evidence, t)
    anomalies = evidence.weight * len(evidence.anomalies)
    return np.asarray((1 + beta**2) * caught / (flagged + beta**2 * anomalies))


def recall_at_precision(evidence: CalibrationSample, wish: CalibrationConfig) -> ThresholdChoice:
    """The threshold of most recall among those whose flags are anomalies often enough.

    Raises:
        CalibrationError: none is, with the best there is.
    """
    t = _candidates(evidence)
    reached = precision(evidence, t)
    if reached.max() < wish.min_precision:
        raise CalibrationError(
            f"precision {wish.min_precision:g} is reached by no threshold on the calibration rows, "
            f"at most {reached.max():.3f}; lower calibration.min_precision"
        )
    best = _best(np.where(reached >= wish.min_precision, _caught(evidence, t), -1))
    return _judged(evidence, t[best : best + 1], precision, "precision")


def precision(evidence: CalibrationSample, t: Scores) -> Scores:
    """(T,) the share of the flagged rows that are anomalies; 0 where none is flagged."""
    flagged = _flagged(evidence, t)
    return np.asarray(_caught(evidence, t) / np.where(flagged > 0, flagged, 1))


def check_labels(evidence: CalibrationSample, wish: CalibrationConfig) -> None:
    """Whether there are anomalies to choose by, and their amounts where those count.

    Raises:
        CalibrationError: there are none, with the keys that bring some.
    """
    if not len(evidence.anomalies):
        raise CalibrationError(
            f"calibration.method {wish.method} needs known anomalies among the calibration rows, "
            "there are none; name their column in data.label and, where there is no time column, "
            "set data.splits.anomalies to a share such as 0.5"
        )


def _candidates(evidence: CalibrationSample) -> Scores:
    """(T,) every score seen, rising; none below all normal rows, which would flag them all."""
    seen = np.unique(np.concatenate([evidence.normal, evidence.anomalies]))
    return np.asarray(seen[seen >= evidence.normal[0]])


def _best(worth: Scores) -> int:
    """Where it is largest; the highest threshold of equals."""
    return len(worth) - 1 - int(np.argmax(worth[::-1]))


def _above(scores: Scores, t: Scores, weights: Scores | None = None) -> Scores:
    """(T,) how many of the sorted scores exceed each threshold, or their weights' sum."""
    each = np.ones(len(scores)) if weights is None else weights
    rest = np.append(np.cumsum(each[::-1])[::-1], 0.0)
    return np.asarray(rest[np.searchsorted(scores, t, side="right")])


def _caught(evidence: CalibrationSample, t: Scores) -> Scores:
    return evidence.weight * _above(evidence.anomalies, t)


def _flagged(evidence: CalibrationSample, t: Scores) -> Scores:
    return _above(evidence.normal, t) + _caught(evidence, t)


def _judged(
    evidence: CalibrationSample,
    at: Scores,
    figure: Callable[[CalibrationSample, Scores], Scores],
    name: str,
) -> ThresholdChoice:
    """The threshold ``at`` (1,), a figure with its interval, precision and recall."""
    rng = np.random.default_rng(0)
    again = [figure(evidence.resampled(rng), at)[0] for _ in range(RESAMPLES)]
    recall = _caught(evidence, at)[0] / (evidence.weight * len(evidence.anomalies))
    figures = {
        "precision": float(precision(evidence, at)[0]),
        "recall": float(recall),
        name: float(figure(evidence, at)[0]),
        f"{name}_interval": _interval(again),
    }
    return ThresholdChoice(float(at[0]), _counted(evidence, figures))


def _counted(evidence: CalibrationSample, figures: dict[str, Any]) -> dict[str, Any]:
    return {"anomalies": len(evidence.anomalies), "anomaly_weight": evidence.weight, **figures}


def _curve(evidence: CalibrationSample, t: Scores, expected: Scores) -> list[dict[str, float]]:
    """Points that are dense where few rows are flagged."""
    spread = np.unique(np.geomspace(1, len(t), CURVE_POINTS).astype(int))
    some = len(t) - spread[::-1]
    flagged = _flagged(evidence, t[some]) * PER / evidence.rows
    return [
        {"threshold": float(a), "cost": float(b), "flagged": float(c)}
        for a, b, c in zip(t[some], expected[some], flagged, strict=True)
    ]


def _interval(figures: list[float]) -> list[float]:
    """The central 95%."""
    return [float(bound) for bound in np.quantile(figures, (0.025, 0.975))]
