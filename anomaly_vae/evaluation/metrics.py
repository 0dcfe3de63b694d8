"""How good a detector is on labelled rows, with intervals; and when it went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, betabinom, ks_2samp, t

from anomaly_vae.calibration.conformal import Calibration, guaranteed_ranks
from anomaly_vae.data.splitting import DAY, one_row_per_group
from anomaly_vae.evaluation.bootstrap import Counts, Ranking, draws, enough, intervals
from anomaly_vae.scoring.detector import Detections

Mask = NDArray[np.bool_]
Figure = Callable[[Counts | None], float]
"""Of rows that count so often; None: once each."""
MOST_SLICES = 60
TOP = 100
"""Rows, or cards of a day, that somebody looks into, unless another number is given."""
EXACT = 10_000
"""Pairs of rows up to which the law of Kolmogorov and Smirnov is taken exactly."""


@dataclass(frozen=True)
class Rate:
    """A share with its exact binomial interval (Clopper & Pearson 1934), see `rate`."""

    value: float
    low: float
    high: float
    hits: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """Figures on a test split; None where there are no such rows, or an older version had none.

    Ranking figures need both kinds of rows. Intervals hold 95% unless another confidence was asked
    for; docs/evaluation.md says how each is made.
    """

    rows: int
    anomalies: int
    alpha: float
    threshold: float
    flagged: int
    auroc: float | None = None
    average_precision: float | None = None
    fpr: float | None = None
    fpr_interval: tuple[float, float] | None = None
    fpr_limit: float | None = None
    """the highest rate that chance explains under the guarantee: `max_fpr_under_guarantee`"""
    recall: float | None = None
    precision: float | None = None
    rejected: int = 0
    """rows that could not be scored"""
    unlabelled: int = 0
    """rows left out because nobody knows"""
    auroc_interval: tuple[float, float] | None = None
    average_precision_interval: tuple[float, float] | None = None
    recall_interval: tuple[float, float] | None = None
    precision_interval: tuple[float, float] | None = None
    top: int | None = None
    """rows looked into: as many as asked for, but no more than there are anomalies"""
    precision_at_top: float | None = None
    """share of anomalies among the ``top`` highest scores"""
    precision_at_top_interval: tuple[float, float] | None = None
    card_precision: float | None = None
    """see `worth.Cards`"""
    card_precision_interval: tuple[float, float] | None = None
    cost_saved: float | None = None
    """per 1,000 rows, against flagging nothing; see `worth.Savings`"""
    cost_saved_interval: tuple[float, float] | None = None
    ks: float | None = None
    """largest distance of the p-values of normal rows from uniform ones, see `uniformity`"""
    ks_p_value: float | None = None
    """how often chance alone makes it as large"""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def metrics(self) -> dict[str, Any]:
        """Plain numbers: the ends of an interval by names of their own."""
        ends = {
            f"{key.removesuffix('_interval')}_{end}": value
            for key, pair in self.to_json().items()
            if isinstance(pair, list)
            for end, value in zip(("low", "high"), pair, strict=True)
        }
        return {**self.to_json(), **ends}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`; older versions had fewer figures."""
        known = {one.name for one in fields(cls)} & set(content)
        return cls(**{k: _paired(content[k]) for k in known})


def _paired(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Slice:
    """The false positive rate over one stretch of time."""

    name: str
    fpr: Rate
    limit: float

    @property
    def drifted(self) -> bool:
        """Whether the rate is above what chance explains."""
        return self.fpr.value > self.limit


def evaluate(
    found: Detections,
    anomaly: Mask,
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
    top: int = TOP,
) -> Evaluation:
    """Compare decisions on N rows with their labels (N,), True for an anomaly.

    Args:
        found: the decisions.
        anomaly: (N,) the labels.
        calibration: what was promised.
        confidence: of all intervals.
        group: (N,) names the exchangeable unit of each row; absent: each row is one.
        top: how many of the highest scores somebody looks into, where so many are anomalies.
    """
    normal, anomalies = ~anomaly, int(anomaly.sum())
    shares = {
        "fpr": _share(normal, found.is_anomaly, confidence, group),
        "recall": _share(anomaly, found.is_anomaly, confidence, group),
        "precision": _share(found.is_anomaly & anomaly.any(), anomaly, confidence, group),
    }
    k, units = min(top, anomalies), len(exchangeable(normal, group))
    ranked = _ranked(found.score, anomaly, k)
    drawn = draws(anomaly, enough(len(anomaly)), unit=group) if ranked else ()
    ends = intervals(ranked, drawn, confidence)
    figures: dict[str, Any] = {name: figure(None) for name, figure in ranked.items()}
    figures |= {f"{name}_interval": ends[name] for name in ranked}
    figures |= {name: one.value for name, one in shares.items() if one}
    figures |= {f"{name}_interval": (one.low, one.high) for name, one in shares.items() if one}
    return Evaluation(
        rows=len(anomaly),
        anomalies=anomalies,
        alpha=calibration.alpha,
        threshold=calibration.threshold,
        flagged=int(found.is_anomaly.sum()),
        fpr_limit=max_fpr_under_guarantee(calibration, units, confidence) if units else None,
        top=k if ranked else None,
        **{**figures, **_uniformity(found.score, normal, calibration, group)},
    )


def _share(within: Mask, hit: Mask, confidence: float, group: NDArray[Any] | None) -> Rate | None:
    """How many of the rows ``within`` (N,) are ``hit`` (N,)."""
    return rate(hit[within], confidence, None if group is None else group[within])


def _ranked(scores: NDArray[np.float64], anomaly: Mask, k: int) -> Mapping[str, Figure]:
    """The figures of a ranking, where there are both kinds of rows."""
    if not anomaly.any() or anomaly.all():
        return {}
    ranking = Ranking(scores, anomaly)
    return {
        "auroc": ranking.auroc,
        "average_precision": ranking.average_precision,
        "precision_at_top": partial(ranking.precision_at, k),
    }


def _uniformity(
    scores: NDArray[np.float64],
    normal: Mask,
    calibration: Calibration,
    group: NDArray[Any] | None,
) -> dict[str, float]:
    """The test of Kolmogorov and Smirnov, that normal rows and calibration rows are alike.

    Of two samples, so that it knows that the calibration rows are finitely many, too.
    """
    rows = exchangeable(normal, group)
    if not len(rows):
        return {}
    few = len(rows) * len(calibration.scores) <= EXACT
    found = ks_2samp(calibration.scores, scores[rows], method="exact" if few else "asymp")
    return {"ks": float(found.statistic), "ks_p_value": float(found.pvalue)}


def exchangeable(rows: Mask, group: NDArray[Any] | None) -> NDArray[np.intp]:
    """Positions of these rows (N,), of one row of each group where there are groups."""
    return one_row_per_group(np.flatnonzero(rows), group)


def rate(flags: Mask, confidence: float = 0.95, group: NDArray[Any] | None = None) -> Rate | None:
    """The share of True, None for no rows at all.

    ``group`` (N,) names the exchangeable unit of each row: rows of one group tell less than as many
    of several, so the interval is that of fewer rows (Korn & Graubard 1998).
    """
    if not len(flags):
        return None
    hits, rows = int(flags.sum()), len(flags)
    n = rows if group is None else _effective_rows(flags, group, confidence)
    x, tail = hits / rows * n, (1 - confidence) / 2
    low = beta.ppf(tail, x, n - x + 1) if hits else 0.0
    high = beta.isf(tail, x + 1, n - x) if hits < rows else 1.0
    return Rate(hits / rows, float(low), float(high), hits, rows)


def _effective_rows(flags: Mask, group: NDArray[Any], confidence: float) -> float:
    """How many independent rows tell as much of the share of True; at most as many as there are.

    By the variance of a ratio of sums over groups, and the degrees of freedom of their number.
    Where all are True, or none, each group counts as one row.
    """
    of_row = np.unique(group, return_inverse=True)[1]
    rows, groups, p = len(flags), of_row.max() + 1, flags.mean()
    if groups == 1 or p in {0.0, 1.0}:
        return float(groups)
    residuals = np.bincount(of_row, flags - p)
    variance = groups / (groups - 1) * (residuals**2).sum() / rows**2
    tail = (1 + confidence) / 2
    freedom = (t.ppf(tail, rows - 1) / t.ppf(tail, groups - 1)) ** 2
    return float(min(rows, p * (1 - p) / variance * freedom)) if variance else float(rows)


def bonferroni(confidence: float, count: int) -> float:
    """The confidence of each of so many statements at which all of them hold with this one."""
    return 1 - (1 - confidence) / max(count, 1)


def max_fpr_under_guarantee(
    calibration: Calibration, total: int, confidence: float = 0.95
) -> float:
    """The highest share of ``total`` exchangeable normal rows that a kept promise flags.

    Both samples are finite. Where alpha lets a row take the k highest of n + 1 ranks and be
    flagged, the number of flags among ``total`` rows is beta-binomial (k, n + 1 − k) (Vovk 2012,
    prop. 2a; Bates et al. 2023, sec. 2). This is the upper end of its central interval: a
    binomial interval around the observed rate would forget that the threshold was estimated.
    """
    n, k = len(calibration.scores), guaranteed_ranks(calibration)
    return float(kept_rates(k, n, total, ((1 + confidence) / 2,))[0])


def kept_rates(ranks: float, n: int, total: int, levels: Sequence[float]) -> NDArray[np.float64]:
    """Quantiles, at these levels, of the share of ``total`` normal rows that take these ranks.

    ``ranks`` are the highest, of n + 1; see `max_fpr_under_guarantee`.
    """
    return np.asarray(betabinom(total, ranks, n + 1 - ranks).ppf(levels) / total)


def time_slices(
    flags: Mask,
    anomaly: Mask,
    seconds: NDArray[np.float64],
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
) -> list[Slice]:
    """The false positive rate by day (by more days where there are many).

    ``confidence`` is that of each rate, and that all limits hold together (Bonferroni). ``group``
    (N,) names the exchangeable unit of each row; absent: each row is one.
    """
    normal = ~anomaly & ~np.isnan(seconds)
    if not normal.any():
        return []
    day = np.floor(seconds[normal] / DAY).astype(int)
    step = max(1, -(-(int(np.ptp(day)) + 1) // MOST_SLICES))
    first = day.min() + (day - day.min()) // step * step
    unit = np.arange(len(day)) if group is None else group[normal]
    suffix = "" if step == 1 else f" (+{step} d)"
    slices, starts = [], np.unique(first)
    each = bonferroni(confidence, len(starts))
    for start in starts:
        inside = first == start
        if found := rate(flags[normal][inside], confidence):
            units = len(np.unique(unit[inside]))
            name = f"{np.datetime64(int(start), 'D')}{suffix}"
            slices.append(Slice(name, found, max_fpr_under_guarantee(calibration, units, each)))
    return slices
