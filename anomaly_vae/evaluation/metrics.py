"""Measure a detector on labelled rows, with confidence intervals, and over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, betabinom, ks_2samp, t

from anomaly_vae.calibration.conformal import Calibration, guaranteed_ranks
from anomaly_vae.data.days import day_numbers
from anomaly_vae.data.splitting import one_row_per_group, thin_by_ratio
from anomaly_vae.evaluation.bootstrap import (
    Counts,
    Figures,
    Ranking,
    choose_draws,
    draws,
    intervals,
)
from anomaly_vae.scoring.detector import Detections

Mask = NDArray[np.bool_]
Figure = Callable[[Counts | None], Figures]
"""A figure as a function of draw counts (N,); None means that each row counts once."""
MAX_TIME_SLICES = 60
"""Maximum number of time slices that are reported."""
DEFAULT_TOP = 100
"""Default number of rows, or of cards per day, that reviewers look at."""
MAX_EXACT_PAIRS = 10_000
"""Maximum number of pairs of rows for an exact Kolmogorov–Smirnov p-value."""


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

    A figure is None if there are no rows to compute it from, or if the evaluation comes from an
    older version that did not compute it. Ranking figures need normal rows and anomalies. Intervals
    have a confidence of 95% by default; docs/evaluation.md describes how each is computed.
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
    """Number of rows left out because they have no label."""
    auroc_interval: tuple[float, float] | None = None
    average_precision_interval: tuple[float, float] | None = None
    recall_interval: tuple[float, float] | None = None
    precision_interval: tuple[float, float] | None = None
    top: int | None = None
    """Number k of reviewed rows, at most the number of anomalies."""
    precision_at_top: float | None = None
    """Share of anomalies among the ``top`` highest scores."""
    precision_at_top_interval: tuple[float, float] | None = None
    card_precision: float | None = None
    """Precision among the reviewed cards of a day, see `cost_sensitive.CardPrecision`."""
    card_precision_interval: tuple[float, float] | None = None
    cost_saved: float | None = None
    """Cost saved per 1,000 rows of traffic, see `cost_sensitive.Savings`."""
    cost_saved_interval: tuple[float, float] | None = None
    ks: float | None = None
    """Largest distance between the p-value distribution of normal rows and the uniform one."""
    ks_p_value: float | None = None
    """Probability, under the guarantee, of a distance at least as large as ``ks``."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def metrics(self) -> dict[str, Any]:
        """Return plain numbers; the ends of an interval get the suffixes ``_low`` and ``_high``."""
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
        names = {field.name for field in fields(cls)} & set(content)
        return cls(**{name: _as_tuple(content[name]) for name in names})


def _as_tuple(value: Any) -> Any:
    """Convert a list, as JSON has it, into a tuple."""
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Slice:
    """The false positive rate in one time slice."""

    name: str
    fpr: Rate
    limit: float

    @property
    def drifted(self) -> bool:
        """Whether the rate exceeds what chance explains."""
        return self.fpr.value > self.limit


def evaluate(
    detections: Detections,
    anomaly: Mask,
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
    top: int = DEFAULT_TOP,
) -> Evaluation:
    """Evaluate decisions on N rows by their labels (N,), True for an anomaly.

    Args:
        detections: the decisions.
        anomaly: (N,) labels.
        calibration: the calibration that decided, whose guarantee is checked.
        confidence: confidence of all intervals.
        group: (N,) exchangeable unit of each row; None means that each row is a unit.
        top: number of highest scores that are reviewed; reduced to the number of anomalies.

    >>> import numpy as np
    >>> from anomaly_vae.calibration import calibrate
    >>> from anomaly_vae.scoring import Detections
    >>> calibration = calibrate(range(100), alpha=0.05)
    >>> scores = np.array([10.0, 60.0, 99.5, 120.0])
    >>> detections = Detections(scores, calibration.p_values(scores), calibration.flags(scores))
    >>> figures = evaluate(detections, np.array([False, False, False, True]), calibration)
    >>> figures.auroc, figures.recall, round(figures.fpr, 3), figures.precision
    (1.0, 1.0, 0.333, 0.5)
    """
    normal, anomalies = ~anomaly, int(anomaly.sum())
    shares = {
        "fpr": _rate_within(normal, detections.is_anomaly, confidence, group),
        "recall": _rate_within(anomaly, detections.is_anomaly, confidence, group),
        "precision": _rate_within(
            detections.is_anomaly & anomaly.any(), anomaly, confidence, group
        ),
    }
    k, units = min(top, anomalies), len(exchangeable_rows(normal, group))
    ranked = _ranking_figures(detections.score, anomaly, k)
    drawn = draws(anomaly, choose_draws(len(anomaly)), unit=group) if ranked else ()
    ends = intervals(ranked, drawn, confidence)
    figures: dict[str, Any] = {name: float(figure(None)) for name, figure in ranked.items()}
    figures |= {f"{name}_interval": ends[name] for name in ranked}
    figures |= {name: share.value for name, share in shares.items() if share}
    figures |= {f"{name}_interval": (s.low, s.high) for name, s in shares.items() if s}
    return Evaluation(
        rows=len(anomaly),
        anomalies=anomalies,
        alpha=calibration.alpha,
        threshold=calibration.threshold,
        flagged=int(detections.is_anomaly.sum()),
        fpr_limit=max_fpr_under_guarantee(calibration, units, confidence) if units else None,
        top=k if ranked else None,
        **{**figures, **_uniformity(detections.score, normal, calibration, group)},
    )


def _rate_within(
    within: Mask, hit: Mask, confidence: float, group: NDArray[Any] | None
) -> Rate | None:
    """Return the share of ``hit`` (N,) among the rows where ``within`` (N,) is true."""
    return rate(hit[within], confidence, None if group is None else group[within])


def _ranking_figures(scores: NDArray[np.float64], anomaly: Mask, k: int) -> Mapping[str, Figure]:
    """Return the ranking figures; none unless there are normal rows and anomalies."""
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
    """Apply the Kolmogorov–Smirnov test to the scores of normal rows and calibration rows.

    The two-sample test accounts for the finite number of calibration rows. Calibration rows with
    weights are thinned to the density of traffic.
    """
    rows = exchangeable_rows(normal, group)
    if not len(rows):
        return {}
    sample = calibration.scores
    if calibration.weights is not None:
        sample = sample[thin_by_ratio(calibration.weights)]
    exact = len(rows) * len(sample) <= MAX_EXACT_PAIRS
    test = ks_2samp(sample, scores[rows], method="exact" if exact else "asymp")
    return {"ks": float(test.statistic), "ks_p_value": float(test.pvalue)}


def exchangeable_rows(rows: Mask, group: NDArray[Any] | None) -> NDArray[np.intp]:
    """Return the positions of the rows in a mask (N,), one row per group if there are groups."""
    return one_row_per_group(np.flatnonzero(rows), group)


def rate(flags: Mask, confidence: float = 0.95, group: NDArray[Any] | None = None) -> Rate | None:
    """Return the share of true flags (N,) with its interval; None without rows.

    ``group`` (N,) is the exchangeable unit of each row. Rows of the same group are less informative
    than rows of different groups, so the interval is that of a smaller number of independent rows
    (Korn & Graubard 1998).
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
    """Return the number of independent rows that would determine the share of true flags as well.

    The number follows from the variance of a ratio of sums over groups and from the degrees of
    freedom given the number of groups, and is at most the number of rows. If all flags are equal,
    each group counts as one row.
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
    """Return the confidence that each of ``count`` statements needs for all to hold together."""
    return 1 - (1 - confidence) / max(count, 1)


def max_fpr_under_guarantee(
    calibration: Calibration, total: int, confidence: float = 0.95
) -> float:
    """Return the largest false positive rate on ``total`` normal rows that chance explains.

    The threshold and the rate are both estimated from finite samples. If alpha allows flags at the
    k highest of n + 1 ranks, the number of flags among ``total`` exchangeable rows is beta-binomial
    (k, n + 1 − k) (Vovk 2012, prop. 2a; Bates et al. 2023, sec. 2). The result is the upper end of
    its central interval, divided by ``total``. A binomial interval around the observed rate would
    ignore that the threshold was estimated.
    """
    n, k = len(calibration.scores), guaranteed_ranks(calibration)
    return float(flag_rate_quantiles(k, n, total, ((1 + confidence) / 2,))[0])


def flag_rate_quantiles(
    ranks: float, n: int, total: int, levels: Sequence[float]
) -> NDArray[np.float64]:
    """Return quantiles of the share of ``total`` normal rows that fall on the highest ranks.

    Args:
        ranks: number of highest ranks, out of n + 1; see `max_fpr_under_guarantee`.
        n: number of calibration rows.
        total: number of normal rows.
        levels: probabilities of the quantiles.
    """
    return np.array(_flag_quantiles(total, ranks, n + 1 - ranks, tuple(levels))) / total


@lru_cache(maxsize=1024)
def _flag_quantiles(total: int, a: float, b: float, levels: tuple[float, ...]) -> tuple[float, ...]:
    """Return quantiles of the beta-binomial distribution, which take long to find."""
    return tuple(betabinom(total, a, b).ppf(levels))


def time_slices(
    flags: Mask,
    anomaly: Mask,
    seconds: NDArray[np.float64],
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
) -> list[Slice]:
    """Return the false positive rate by day, or by periods of several days for long time spans.

    Args:
        flags: (N,) decisions.
        anomaly: (N,) labels.
        seconds: (N,) times, in seconds since 1970.
        calibration: the calibration whose guarantee is checked.
        confidence: confidence of each rate, and of all limits together (Bonferroni).
        group: (N,) exchangeable unit of each row; None means that each row is a unit.
    """
    normal = ~anomaly & ~np.isnan(seconds)
    if not normal.any():
        return []
    day = day_numbers(seconds[normal])
    step = max(1, -(-(int(np.ptp(day)) + 1) // MAX_TIME_SLICES))
    first = day.min() + (day - day.min()) // step * step
    unit = np.arange(len(day)) if group is None else group[normal]
    suffix = "" if step == 1 else f" (+{step} d)"
    slices, starts = [], np.unique(first)
    each = bonferroni(confidence, len(starts))
    for start in starts:
        inside = first == start
        if fpr := rate(flags[normal][inside], confidence):
            units = len(np.unique(unit[inside]))
            name = f"{np.datetime64(int(start), 'D')}{suffix}"
            slices.append(Slice(name, fpr, max_fpr_under_guarantee(calibration, units, each)))
    return slices
