"""Compute what other alphas would come to: alerts a day, precision, recall and cost.

Alerts, costs and rates of a future day have the prediction intervals of `daily_alerts`. Rates of
all days together have the confidence interval of `metrics.rate`, by days or by groups of rows,
whichever is wider: rows of one day, or of one customer, resemble each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import (
    Calibration,
    Groups,
    conformal_threshold,
    flagged_ranks,
    guaranteed_ranks,
    weighted_threshold,
)
from anomaly_vae.calibration.daily_alerts import (
    CONFIDENCE,
    MIN_DAYS,
    future_day,
    future_share,
    future_sum,
)
from anomaly_vae.calibration.operating_points import RATE_ROWS
from anomaly_vae.config.calibration import CostConfig
from anomaly_vae.data.days import Days
from anomaly_vae.evaluation.metrics import Rate, flag_rate_quantiles, rate
from anomaly_vae.scoring.detector import Detections

Mask = NDArray[np.bool_]
Pair = tuple[float, float]

ALPHAS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Alphas that are tried, besides the model's own."""


@dataclass(frozen=True)
class WhatIf:
    """Figures that an alpha leads to; None for what the rows cannot tell, or if there are no rows.

    Intervals whose names contain ``day`` are those of a future day, others are about all days.
    """

    alpha: float
    threshold: float
    current: bool
    """Whether this is the model's own threshold."""
    alerts_per_1000: float | None = None
    """Alerts per 1,000 rows; without labelled data, per 1,000 normal rows."""
    alerts_per_1000_interval: Pair | None = None
    alerts_per_day: float | None = None
    alerts_per_day_interval: Pair | None = None
    entities_per_day: float | None = None
    entities_per_day_interval: Pair | None = None
    fpr: float | None = None
    fpr_interval: Pair | None = None
    fpr_day_interval: Pair | None = None
    precision: float | None = None
    precision_interval: Pair | None = None
    precision_day_interval: Pair | None = None
    recall: float | None = None
    recall_interval: Pair | None = None
    recall_day_interval: Pair | None = None
    cost_per_day: float | None = None
    cost_per_day_interval: Pair | None = None
    cost_per_1000: float | None = None
    cost_per_1000_interval: Pair | None = None

    def interval(self, key: str) -> Pair | None:
        """Return the interval of a figure: that of a future day if it is known."""
        found: Pair | None = getattr(self, f"{key}_day_interval", None)
        return found or getattr(self, f"{key}_interval")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Observed:
    """Scored rows (N,) that alphas are tried on."""

    detections: Detections
    anomaly: Mask
    """Labels (N,)."""
    labelled: Mask
    """Rows (N,) with a label."""
    clusters: tuple[NDArray[Any], ...] = ()
    """Units (N,) whose rows resemble each other, such as days and customers."""
    days: Days | None = None
    """Complete days of the rows; None if their times are unknown."""
    entity: NDArray[np.int32] | None = None
    """Entity (N,) of each row, such as a customer."""
    costs: CostConfig | None = None
    amounts: NDArray[np.float64] | None = None
    """Factors (N,) of the cost of a missed anomaly; None means 1."""

    def at(self, calibration: Calibration, current: bool) -> WhatIf:
        """Return what a calibration comes to on these rows."""
        flags = flags_at(self.detections, calibration)
        return WhatIf(
            calibration.alpha,
            calibration.threshold,
            current,
            **self._alerts(flags),
            **self._rates(flags),
            **self._costs(flags),
        )

    def alerts(self, calibration: Calibration) -> NDArray[np.int64]:
        """Return the number (D,) of alerts on each complete day: of entities if there are any."""
        assert self.days is not None, "the rows have times"
        return self.days.counts(flags_at(self.detections, calibration), self.entity)

    def _alerts(self, flags: Mask) -> dict[str, Any]:
        share, days = self._rate(flags, np.ones(len(flags), bool)), self._known_days
        found: dict[str, Any] = {}
        if share:
            interval = share.low * RATE_ROWS, share.high * RATE_ROWS
            found = {"alerts_per_1000": share.value * RATE_ROWS}
            found["alerts_per_1000_interval"] = interval
        if days is None:
            return found
        counted = {"alerts_per_day": days.counts(flags)}
        if self.entity is not None:
            counted["entities_per_day"] = days.counts(flags, self.entity)
        for name, counts in counted.items():
            found |= {name: float(counts.mean()), f"{name}_interval": future_day(counts)}
        return found

    def _rates(self, flags: Mask) -> dict[str, Any]:
        known, anomaly = self.labelled, self.anomaly
        found = self._share("fpr", flags, known & ~anomaly)
        if anomaly[known].any():
            found |= self._share("precision", anomaly, known & flags)
            found |= self._share("recall", flags, known & anomaly)
        return found

    def _share(self, name: str, hit: Mask, within: Mask) -> dict[str, Any]:
        """Return a share among the rows within a mask (N,), with its intervals."""
        share, days = self._rate(hit, within), self._known_days
        if share is None:
            return {}
        day = days and future_share(days.counts(hit & within), days.counts(within))
        intervals = {f"{name}_interval": (share.low, share.high), f"{name}_day_interval": day}
        return {name: share.value, **intervals}

    def _rate(self, hit: Mask, within: Mask) -> Rate | None:
        """Return a share among the rows within a mask (N,), with its widest interval."""
        rates = [rate(hit[within], CONFIDENCE, unit[within]) for unit in self.clusters]
        found = [one for one in rates or [rate(hit[within], CONFIDENCE)] if one]
        return max(found, key=lambda one: one.high - one.low, default=None)

    @property
    def _known_days(self) -> Days | None:
        """Complete days, if there are enough of them to learn how days vary."""
        return self.days if self.days is not None and len(self.days) >= MIN_DAYS else None

    def _costs(self, flags: Mask) -> dict[str, Any]:
        """Return the cost of errors and reviews, as `operating_points.expected_cost` counts it."""
        costs, known, anomaly = self.costs, self.labelled, self.anomaly
        if costs is None or not anomaly[known].any():
            return {}
        missed = costs.missed * (np.ones(len(flags)) if self.amounts is None else self.amounts)
        flagged = costs.review + np.where(anomaly, 0.0, costs.blocked)
        cost = np.where(flags, flagged, np.where(anomaly, missed, 0.0)) * known
        found: dict[str, Any] = {"cost_per_1000": float(cost.sum() * RATE_ROWS / known.sum())}
        if (days := self._known_days) is None:
            return found
        within, total = days.counts(known), days.counts(np.ones(len(known), bool))
        sums = (days.sums(cost) * total / np.maximum(within, 1))[within > 0]
        if len(sums) < MIN_DAYS:
            return found
        per_day = {"cost_per_day": float(sums.mean()), "cost_per_day_interval": future_sum(sums)}
        return found | per_day


def without_rows(
    calibration: Calibration, current: bool, evaluation: Mapping[str, Any] | None
) -> WhatIf:
    """Return what a calibration comes to as far as the calibration and test rows tell.

    Args:
        calibration: the calibration.
        current: whether it is the model's own, at which the test rows were evaluated.
        evaluation: figures of the test rows, as in a manifest; None if there are none.
    """
    evaluation = evaluation or {}
    found = WhatIf(calibration.alpha, calibration.threshold, current, **_expected(calibration))
    by_level = {one["level"]: one["share"] for one in evaluation.get("p_values", ())}
    if not current:
        return replace(found, fpr=by_level.get(calibration.alpha))
    names = [f"{name}{end}" for name in ("fpr", "precision", "recall") for end in ("", "_interval")]
    known = {name: _as_pair(evaluation.get(name)) for name in names}
    cost = [calibration.figures.get(name) for name in ("cost", "cost_interval")]
    return replace(found, **known, cost_per_1000=cost[0], cost_per_1000_interval=_as_pair(cost[1]))


def _as_pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _expected(calibration: Calibration) -> dict[str, Any]:
    """Return the expected alerts among 1,000 new normal rows, with the interval of their number.

    The interval is unknown if rows have weights or groups, whose shares of traffic are unknown.
    """
    if calibration.weights is not None or calibration.groups:
        return {"alerts_per_1000": calibration.alpha * RATE_ROWS}
    n = len(calibration.scores)
    ranks = min(flagged_ranks(calibration), guaranteed_ranks(calibration))
    levels = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    low, high = flag_rate_quantiles(ranks, n, RATE_ROWS, levels) * RATE_ROWS
    share = ranks / (n + 1) * RATE_ROWS
    return {"alerts_per_1000": share, "alerts_per_1000_interval": (float(low), float(high))}


# ---------------------------------------------------------------- other alphas


def smallest_alpha(calibration: Calibration) -> float:
    """Return the smallest alpha that the calibration rows resolve: 1 / (n + 1) without weights."""
    return float(calibration.p_values([np.inf])[0])


def calibrations(calibration: Calibration, alphas: Iterable[float]) -> Iterator[Calibration]:
    """Yield the model's own calibration, and that of each other alpha that can be resolved."""
    yield calibration
    for alpha in sorted(set(alphas)):
        own = calibration.alpha == alpha and calibration.method == "conformal"
        if alpha >= smallest_alpha(calibration) and not own:
            yield with_alpha(calibration, alpha)


def with_alpha(calibration: Calibration, alpha: float) -> Calibration:
    """Return the conformal calibration at another alpha by the same scores.

    Groups whose scores do not resolve alpha use the threshold of all rows, as in calibration.
    """
    scores, weights = calibration.scores, calibration.weights
    threshold = (
        conformal_threshold(scores, alpha)
        if weights is None
        else weighted_threshold(scores, weights, alpha)
    )
    groups = calibration.groups and Groups(
        calibration.groups.column,
        {
            level: with_alpha(one, alpha)
            for level, one in calibration.groups.by_level.items()
            if alpha >= smallest_alpha(one)
        },
    )
    return Calibration("conformal", alpha, threshold, scores, {}, weights, groups)


def flags_at(detections: Detections, calibration: Calibration) -> Mask:
    """Return the decisions (N,) that another calibration of the same model makes."""
    flags = calibration.flags(detections.score)
    groups = calibration.groups
    if groups is None or detections.group is None:
        return flags
    for level, one in groups.by_level.items():
        rows = detections.group == level
        flags[rows] = one.flags(detections.score[rows])
    return flags
