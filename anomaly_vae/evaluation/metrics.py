"""Measure a detector on labelled rows, with intervals, and over time."""

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
from anomaly_vae.evaluation.bootstrap import Counts, Ranking, choose_draws, draws, intervals
from anomaly_vae.scoring.detector import Detections

Mask = NDArray[np.bool_]
Figure = Callable[[Counts | None], float]
"""A figure as a function of row weights; None means weight 1."""
MAX_TIME_SLICES = 60
"""Maximum number of stretches of time that are reported."""
TOP = 100
"""Default number of rows, or of cards per day, that are reviewed."""
MAX_EXACT_PAIRS = 10_000
"""Number of pairs of rows up to which the Kolmogorov–Smirnov distribution is computed exactly."""


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
    """Figures on a test split.

    A figure is None if there are no rows to compute it from, or if an older version did not compute
    it. Ranking figures need normal rows and anomalies. Intervals have a confidence of 95% unless
    another is given; docs/evaluation.md describes how each is computed.
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
    """Largest rate that chance explains under the guarantee: `max_fpr_under_guarantee`."""
    recall: float | None = None
    precision: float | None = None
    rejected: int = 0
    """Number of rows that could not be scored."""
    unlabelled: int = 0
    """Number of rows left out because they are unlabelled."""
    auroc_interval: tuple[float, float] | None = None
    average_precision_interval: tuple[float, float] | None = None
    recall_interval: tuple[float, float] | None = None
    precision_interval: tuple[float, float] | None = None
    top: int | None = None
    """Number of rows reviewed, at most the number of anomalies."""
    precision_at_top: float | None = None
    """Share of anomalies among the ``top`` highest scores."""
    precision_at_top_interval: tuple[float, float] | None = None
    card_precision: float | None = None
    """Precision among the reviewed cards of a day, see `cost_sensitive.CardPrecision`."""
    card_precision_interval: tuple[float, float] | None = None
    cost_saved: float | None = None
    """Costs saved per 1,000 rows, see `cost_sensitive.Savings`."""
    cost_saved_interval: tuple[float, float] | None = None
    ks: float | None = None
    """Largest distance between the p-value distribution of normal rows and the uniform one."""
    ks_p_value: float | None = None
    """Probability of such a distance or a larger one under the guarantee."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def metrics(self) -> dict[str, Any]:
        """Return plain numbers, with the ends of intervals under names of their own."""
        ends = {
            f"{key.removesuffix('_interval')}_{end}": value
            for key, pair in self.to_json().items()
            if isinstance(pair, list)
            for end, value in zip(("low", "high"), pair, strict=True)
        }
        return {**self.to_json(), **ends}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """Restore an evaluation from the result of `to_json`, also of older versions."""
        known = {one.name for one in fields(cls)} & set(content)
        return cls(**{k: _as_tuple(content[k]) for k in known})


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Slice:
    """The false positive rate in one stretch of time."""

    name: str
    fpr: Rate
    limit: float

    @property
    def drifted(self) -> bool:
        """Whether the rate exceeds what chance explains."""
        return self.fpr.value > self.limit


def evaluate(
    found: Detections,
    anomaly: Mask,
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
    top: int = TOP,
) -> Evaluation:
    """Evaluate decisions on N rows by their labels (N,), True for an anomaly.

    Args:
        found: the decisions.
        anomaly: (N,) labels.
        calibration: the calibration that decided, whose guarantee is checked.
        confidence: confidence of all intervals.
        group: (N,) names the exchangeable unit of each row; None means each row.
        top: number of the highest scores that are reviewed, at most the number of anomalies.

    >>> import numpy as np
    >>> from anomaly_vae.calibration import calibrate
    >>> from anomaly_vae.scoring import Detections
    >>> calibration = calibrate(range(100), alpha=0.05)
    >>> scores = np.array([10.0, 60.0, 99.5, 120.0])
    >>> found = Detections(scores, calibration.p_values(scores), calibration.flags(scores))
    >>> figures = evaluate(found, np.array([False, False, False, True]), calibration)
    >>> figures.auroc, figures.recall, round(figures.fpr, 3), figures.precision
    (1.0, 1.0, 0.333, 0.5)
    """
    normal, anomalies = ~anomaly, int(anomaly.sum())
    shares = {
        "fpr": _rate_within(normal, found.is_anomaly, confidence, group),
        "recall": _rate_within(anomaly, found.is_anomaly, confidence, group),
        "precision": _rate_within(found.is_anomaly & anomaly.any(), anomaly, confidence, group),
    }
    k, units = min(top, anomalies), len(exchangeable(normal, group))
    ranked = _ranking_figures(found.score, anomaly, k)
    drawn = draws(anomaly, choose_draws(len(anomaly)), unit=group) if ranked else ()
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


def _rate_within(
    within: Mask, hit: Mask, confidence: float, group: NDArray[Any] | None
) -> Rate | None:
    """Return the rate of ``hit`` (N,) among the rows ``within`` (N,)."""
    return rate(hit[within], confidence, None if group is None else group[within])


def _ranking_figures(scores: NDArray[np.float64], anomaly: Mask, k: int) -> Mapping[str, Figure]:
    """Return the ranking figures; nothing unless there are normal rows and anomalies."""
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
    """Test by Kolmogorov and Smirnov that normal rows and calibration rows are alike.

    The two-sample test accounts for the finite number of calibration rows.
    """
    rows = exchangeable(normal, group)
    if not len(rows):
        return {}
    exact = len(rows) * len(calibration.scores) <= MAX_EXACT_PAIRS
    found = ks_2samp(calibration.scores, scores[rows], method="exact" if exact else "asymp")
    return {"ks": float(found.statistic), "ks_p_value": float(found.pvalue)}


def exchangeable(rows: Mask, group: NDArray[Any] | None) -> NDArray[np.intp]:
    """Return the positions of these rows (N,), of one row per group if there are groups."""
    return one_row_per_group(np.flatnonzero(rows), group)


def rate(flags: Mask, confidence: float = 0.95, group: NDArray[Any] | None = None) -> Rate | None:
    """Return the share of True with its interval; None without rows.

    ``group`` (N,) names the exchangeable unit of each row. Rows of the same group are less
    informative than rows of several groups, so the interval is that of fewer rows (Korn & Graubard
    1998).
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
    """Return the number of independent rows with the same information about the share of True.

    It is derived from the variance of a ratio of sums over groups and from the degrees of freedom
    of their number, and is at most the number of rows. If all or none are True, each group counts
    as one row.
    """
    group_of_row = np.unique(group, return_inverse=True)[1]
    rows, groups, p = len(flags), group_of_row.max() + 1, flags.mean()
    if groups == 1 or p in {0.0, 1.0}:
        return float(groups)
    residuals = np.bincount(group_of_row, flags - p)
    variance = groups / (groups - 1) * (residuals**2).sum() / rows**2
    tail = (1 + confidence) / 2
    correction = (t.ppf(tail, rows - 1) / t.ppf(tail, groups - 1)) ** 2
    return float(min(rows, p * (1 - p) / variance * correction)) if variance else float(rows)


def bonferroni(confidence: float, count: int) -> float:
    """Return the confidence of each of ``count`` statements that makes all hold together."""
    return 1 - (1 - confidence) / max(count, 1)


def max_fpr_under_guarantee(
    calibration: Calibration, total: int, confidence: float = 0.95
) -> float:
    """Return the largest false positive rate of ``total`` normal rows under the guarantee.

    Both samples are finite. If alpha lets a row be flagged at the k highest of n + 1 ranks, the
    number of flags among ``total`` exchangeable rows is beta-binomial (k, n + 1 − k) (Vovk 2012,
    prop. 2a; Bates et al. 2023, sec. 2). The result is the upper end of its central interval. A
    binomial interval around the observed rate would ignore that the threshold was estimated.
    """
    n, k = len(calibration.scores), guaranteed_ranks(calibration)
    return float(flag_rate_quantiles(k, n, total, ((1 + confidence) / 2,))[0])


def flag_rate_quantiles(
    ranks: float, n: int, total: int, levels: Sequence[float]
) -> NDArray[np.float64]:
    """Return quantiles of the share of ``total`` normal rows that take the highest ranks.

    Args:
        ranks: number of highest ranks, out of n + 1; see `max_fpr_under_guarantee`.
        n: number of calibration rows.
        total: number of normal rows.
        levels: probabilities of the quantiles.
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
    """Return the false positive rate by day, or by several days if there are many.

    Args:
        flags: (N,) decisions.
        anomaly: (N,) labels.
        seconds: (N,) times, in seconds since 1970.
        calibration: the calibration whose guarantee is checked.
        confidence: confidence of each rate, and of all limits together (Bonferroni).
        group: (N,) names the exchangeable unit of each row; None means each row.
    """
    normal = ~anomaly & ~np.isnan(seconds)
    if not normal.any():
        return []
    day = np.floor(seconds[normal] / DAY).astype(int)
    step = max(1, -(-(int(np.ptp(day)) + 1) // MAX_TIME_SLICES))
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
