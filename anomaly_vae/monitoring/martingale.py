"""Test counts of scored rows against the counts that the calibration rows lead to expect.

Null hypothesis: the shares of normal rows between given ranks of the calibration scores are
Dirichlet distributed, so that the counts of later rows are those of a Pólya urn (the
Dirichlet-multinomial distribution). Each row may be an anomaly, whose score may be anything, with a
known probability or less.

*The martingale* bets against that urn: it is the likelihood of the counts under shares drawn at
random around the expected ones, divided by their likelihood under the null hypothesis (a conformal
test martingale, Vovk, Nouretdinov & Gammerman 2003, of binned p-values). *The number of flags* is
beta-binomial under the null hypothesis (Vovk 2012, prop. 2a). Before each test, the largest
plausible number of anomalies is removed from the rows: those that contradict the null hypothesis
most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BREACH_LEVEL = 0.001
"""Maximum probability, at any moment, of more flags or anomalies than the limits allow."""
MAX_TESTS = 16
"""Maximum number of windows that are tested together."""
FLAG_LEVEL = 1 - BREACH_LEVEL / (2 * MAX_TESTS)
"""Probability that the number of flags does not exceed its limit."""
CONCENTRATIONS = (10.0, 30.0, 100.0, 300.0, 1000.0)
"""Concentrations of the Dirichlet distributions that the martingale bets on.

A larger concentration means a bet on a smaller shift.
"""
MAX_BET = 0.9
"""Largest concentration that is bet on, relative to that of the null hypothesis."""
COLUMN_CONCENTRATIONS = (10.0, 300.0)
"""Concentrations of the Dirichlet distributions that are bet on for a column."""
MOVED_SHARES = (0.1, 0.4)
"""Shares of the rows that move towards one end of a column's values in a bet."""
MOVED_SLOPES = (-5.0, 5.0)
"""Slopes of the logarithm of the density of moved rows, over all values of a column."""
TREND_LEVEL = 0.0125
"""Probability under the null hypothesis that the bet on a trend wins in any of the columns. Trends
have a quarter of the capital, so that a win alone pays the 20 at which a report is doubtful."""
MIN_TREND_ROWS = 800.0
"""Minimum number of independent rows that a window has to be worth for the bet on a trend."""
NOTICED_ROWS = 1_000
"""Number of independent rows after which the bet on a trend usually wins if a tenth of the rows
moved to one end of a column; 900 to 1,100 were measured on card transactions."""
BISECTION_STEPS = 30
"""Number of bisection steps, each of which halves the interval."""
STIRLING_SHIFT = 8
"""Number of factors by which an argument is raised before Stirling's series applies."""


def log10_martingale(counts: Counts, urn: Floats, anomalies: Floats) -> float:
    """Return log10 of the martingale for the counts (S, B) of S windows.

    The martingale is the mean over S windows and K possible sizes of a shift. Each term is the
    likelihood ratio of two Pólya urns after the possible anomalies were removed. Removing rows
    never raises a ratio, so they are removed only if there is evidence.

    Args:
        counts: rows per bin.
        urn: initial content (B,) or (S, B) of the urn.
        anomalies: largest plausible number (S,) of anomalies.
    """
    urn = np.broadcast_to(urn, counts.shape)
    bets = _wider_bets(urn)
    if not len(bets):
        return 0.0
    evidence = _log10_mean_ratio(counts, urn, bets)
    if evidence <= 0 or not anomalies.any():
        return float(evidence)
    return float(_log10_mean_ratio(without_most_extreme(counts, urn, bets, anomalies), urn, bets))


def log10_martingales_of_columns(
    counts: Counts, urns: Floats, trend_totals: Floats | None = None
) -> Floats:
    """Return log10 of the martingale of each of F columns, for the counts (F, S, B) of S windows.

    The bins of a column are in order, so the bets include that `MOVED_SHARES` of the rows moved
    towards its low or its high values: such a shift is noticed with far fewer rows. Half of the
    capital of a column is bet on a trend (`_trend_p_values`).

    Args:
        counts: rows per bin; the last bin is that of missing values.
        urns: initial content (F, S, B) of the urns.
        trend_totals: total (K, F, S) of the urn that the trend towards each end is compared with,
            those of ``urns`` if None.
    """
    totals = urns.sum(axis=2, keepdims=True)
    shares = urns / totals
    ends = densities(shares)
    smaller = np.array(COLUMN_CONCENTRATIONS)[:, None, None, None]
    wider = np.minimum(smaller, totals) * shares
    moved = [totals * shares * (1 - moved + moved * ends) for moved in MOVED_SHARES]
    ratios = _log10_mean_ratio(counts, urns, np.concatenate([wider, *moved]))
    level = TREND_LEVEL / len(counts)
    if trend_totals is None:
        trend_totals = np.broadcast_to(totals[..., 0], ends.shape[:-1])
    wins = _trend_p_values(counts, shares, ends, trend_totals) < level
    won = np.where(wins, -math.log(level), -np.inf)
    return np.asarray((np.logaddexp(ratios * math.log(10), won) - math.log(2)) / math.log(10))


def densities(shares: Floats) -> Floats:
    """Return the density (K, …, B) of rows that moved towards each end, for shares (…, B).

    It is relative to that of all rows, and 1 on average.
    """
    ranks = np.cumsum(shares, axis=-1) - shares / 2 - 0.5
    ranks[..., -1] = 0
    ends = np.exp(np.multiply.outer(np.array(MOVED_SLOPES), ranks))
    ends[..., -1] = 1
    return np.asarray(ends / (shares * ends).sum(axis=-1, keepdims=True))


def _trend_p_values(counts: Counts, shares: Floats, ends: Floats, totals: Floats) -> Floats:
    """Return the p-value (F,) of the hypothesis that no rows of a column moved to either end.

    The sum of the densities ``ends`` (K, F, S, B) over all rows is compared with its distribution
    under urns with the expected shares (F, S, B) and these totals (K, F, S): normal, corrected for
    its skewness (Cornish & Fisher 1938). Bonferroni's correction is for K directions and S windows.
    Windows that are worth few rows are not tested.
    """
    n = np.maximum(counts.sum(axis=2), 1)  # a window without rows is not tested
    away = ends - 1
    variance = (shares * away**2).sum(axis=3)
    skewness = (shares * away**3).sum(axis=3) / np.maximum(variance, 1e-12) ** 1.5
    worth = n * (totals + 1) / (totals + n)
    sums = (away * counts).sum(axis=3) / np.maximum(n * np.sqrt(variance / worth), 1e-12)
    skewness *= (totals + 2 * n) / ((totals + 2) * np.sqrt(n * (totals + n) / (totals + 1)))
    z = sums - skewness * (sums**2 - 1) / 6
    told = worth >= MIN_TREND_ROWS
    smallest = np.where(told, z, -np.inf).max(axis=(0, 2))
    return np.asarray(np.maximum(told.sum(axis=(0, 2)), 1) * _upper_tail(smallest))


def _upper_tail(z: Floats) -> Floats:
    """Return the probability (…,) of larger values of the standard normal distribution."""
    return np.array([math.erfc(value / math.sqrt(2)) / 2 for value in z.ravel()]).reshape(z.shape)


def rows_until_noticed(concentration: float) -> int | None:
    """Return how many rows are worth `NOTICED_ROWS` independent ones; None if no number is.

    >>> rows_until_noticed(1e6), rows_until_noticed(2_000.0), rows_until_noticed(900.0)
    (1001, 1999, None)
    """
    spare = concentration + 1 - NOTICED_ROWS
    return math.ceil(NOTICED_ROWS * concentration / spare) if spare > 0 else None


def _wider_bets(urn: Floats) -> Floats:
    """Return the urns (K, S, B) with the same expected shares as ``urn``, but smaller totals."""
    totals = urn.sum(axis=1, keepdims=True)
    smaller = np.array([size for size in CONCENTRATIONS if size < totals.max()])
    return np.asarray(np.minimum(smaller[:, None, None], MAX_BET * totals) * urn / totals)


def _log10_mean_ratio(counts: NDArray[Any], urn: Floats, bets: Floats) -> Floats:
    """Return log10 of the mean likelihood ratio over K bets and S windows.

    Args:
        counts: (…, S, B), or (K, …, S, B).
        urn: (…, S, B).
        bets: (K, …, S, B).
    """
    n, total, bet_total = counts.sum(axis=-1), urn.sum(axis=-1), bets.sum(axis=-1)
    logs = (_log_rising(bets, counts) - _log_rising(urn, counts)).sum(axis=-1)
    logs += _log_rising(total, n) - _log_rising(bet_total, n)
    axes = (0, logs.ndim - 1)
    highest = logs.max(axis=axes, keepdims=True)
    mean = np.exp(logs - highest).mean(axis=axes)
    return np.asarray((highest.squeeze(axes) + np.log(mean)) / math.log(10))


def without_most_extreme(counts: Counts, urn: Floats, bets: Floats, anomalies: Floats) -> Floats:
    """Return counts (K, S, B) without the rows that raise the likelihood ratio most.

    The last of c rows in a bin multiplies the ratio by (bet + c − 1) / (urn + c − 1), which rises
    with c. The counts of all bins are therefore reduced until this factor is at the same level in
    each bin, but no further than removing rows lowers the ratio. About ``anomalies`` (S,) rows are
    removed, possibly one or two more.
    """

    def remaining(level: Floats) -> Floats:
        return np.clip(np.floor(1 + (level * urn - bets) / (1 - level)), 0, counts)

    rows, removable = counts.sum(axis=1, keepdims=True), anomalies[:, None]
    bet_total, total = bets.sum(axis=2, keepdims=True), urn.sum(axis=-1, keepdims=True)
    low = bet_total / total + np.zeros_like(removable)
    high = np.ones((len(bets), len(counts), 1))
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        n = remaining(middle).sum(axis=2, keepdims=True)
        lower = (rows - n <= removable) & (middle >= (bet_total + n) / (total + n))
        low, high = np.where(lower, low, middle), np.where(lower, middle, high)
    return remaining(low)


def _log_rising(start: Floats, count: Floats) -> Floats:
    """Return log(start · (start + 1) ⋯ (start + count − 1)); arguments are broadcast."""
    return log_gamma(start + count) - log_gamma(start)


def log_gamma(x: Floats) -> Floats:
    """Return the logarithm of the gamma function of positive numbers (Stirling's series).

    >>> import numpy as np
    >>> np.exp(log_gamma(np.array([1.0, 5.0]))).round(9).tolist()
    [1.0, 24.0]
    """
    y = x + STIRLING_SHIFT
    series = (y - 0.5) * np.log(y) - y + math.log(2 * math.pi) / 2
    series += (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * y**2)) / y**2) / y**2) / y
    factors = x.copy()
    for step in range(1, STIRLING_SHIFT):
        factors *= x + step
    return np.asarray(series - np.log(factors))


def max_anomalies(rows: Counts, share: float) -> Floats:
    """Return the largest plausible number of anomalies (S,) among ``rows`` (S,).

    All S bounds hold together with probability 1 − `BREACH_LEVEL` / 2 (Bernstein 1924).
    """
    if not share:
        return np.zeros(len(rows))
    level = math.log(2 * MAX_TESTS / BREACH_LEVEL)
    spread = np.sqrt(level**2 / 9 + 2 * level * rows * share * (1 - share))
    return np.asarray(np.minimum(np.floor(rows * share + level / 3 + spread), rows))


@lru_cache(maxsize=1024)
def max_flags(rows: int, flagged: float, ranks: float, anomaly_share: float = 0.0) -> int:
    """Return the largest number of flags among ``rows`` rows under the guarantee.

    The number of flagged normal rows is beta-binomial (flagged, ranks − flagged), as in
    `max_fpr_under_guarantee`, that of anomalies binomial, and each of these may be flagged. The sum
    exceeds the limit with probability `BREACH_LEVEL` / (2 · `MAX_TESTS`).

    >>> max_flags(250, 10.0, 1000.0), max_flags(250, 10.0, 1000.0, anomaly_share=0.01)
    (13, 17)
    """
    rest = ranks - flagged
    none = math.lgamma(rows + rest) - math.lgamma(rest) + math.lgamma(ranks)
    normal = _probabilities(
        rows,
        none - math.lgamma(rows + ranks),
        lambda j: (j + flagged) / (rows - j - 1 + rest),
    )
    if not anomaly_share:
        return _quantile(normal)
    odds = anomaly_share / (1 - anomaly_share)
    anomalies = _probabilities(rows, rows * math.log1p(-anomaly_share), lambda _: odds)
    return min(_quantile(np.convolve(normal, anomalies)), rows)


def _probabilities(rows: int, log_none: float, odds: Callable[[Floats], Floats | float]) -> Floats:
    """Return the probabilities of 0, 1, 2, … of ``rows`` rows, until they exceed `FLAG_LEVEL`.

    The ratio of the probabilities of j + 1 and j is ``odds(j)`` · (rows − j) / (j + 1).
    """
    logs = np.array([log_none])
    while np.exp(logs).sum() < FLAG_LEVEL and len(logs) <= rows:
        j = np.arange(min(4 * len(logs) + 60, rows), dtype=np.float64)
        steps = np.log((rows - j) / (j + 1) * odds(j))
        logs = log_none + np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(np.exp(logs))


def _quantile(probabilities: Floats) -> int:
    return int(np.searchsorted(np.cumsum(probabilities), FLAG_LEVEL))
