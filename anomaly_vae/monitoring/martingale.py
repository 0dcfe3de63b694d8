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


def log10_martingales_of_columns(counts: Counts, urns: Floats) -> Floats:
    """Return log10 of the martingale of each of F columns, for the counts (F, S, B) of S windows.

    The bins of a column are in order, so the bets include that `MOVED_SHARES` of the rows moved
    towards its low or its high values: such a shift is noticed with far fewer rows.

    Args:
        counts: rows per bin; the last bin is that of missing values.
        urns: initial content (F, S, B) of the urns.
    """
    totals = urns.sum(axis=2, keepdims=True)
    shares = urns / totals
    smaller = np.array(COLUMN_CONCENTRATIONS)[:, None, None, None]
    wider = np.minimum(smaller, totals) * shares
    return _log10_mean_ratio(counts, urns, np.concatenate([wider, totals * _moved(shares)]))


def _moved(shares: Floats) -> Floats:
    """Return the shares (K, F, S, B) of bins after each possible move, for shares (F, S, B)."""
    ranks = np.cumsum(shares, axis=2) - shares / 2 - 0.5
    ranks[..., -1] = 0
    ends = shares * np.exp(np.array(MOVED_SLOPES)[:, None, None, None] * ranks)
    ends /= ends.sum(axis=3, keepdims=True)
    return np.concatenate([(1 - moved) * shares + moved * ends for moved in MOVED_SHARES])


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
def max_flags(rows: int, flagged: float, ranks: float) -> int:
    """Return the largest number of flags among ``rows`` normal rows under the guarantee.

    The number is beta-binomial (flagged, ranks − flagged), as in `max_fpr_under_guarantee`; it
    exceeds the limit with probability `BREACH_LEVEL` / (2 · `MAX_TESTS`).
    """
    rest, level = ranks - flagged, 1 - BREACH_LEVEL / (2 * MAX_TESTS)
    none = math.lgamma(rows + rest) - math.lgamma(rest) + math.lgamma(ranks)
    logs, reached = np.array([none - math.lgamma(rows + ranks)]), np.zeros(1)
    while reached[-1] < level and len(logs) <= rows:
        j = np.arange(min(4 * len(logs) + 60, rows))
        steps = np.log((rows - j) * (j + flagged) / ((j + 1.0) * (rows - j - 1 + rest)))
        logs = logs[0] + np.concatenate([[0.0], np.cumsum(steps)])
        reached = np.cumsum(np.exp(logs))
    return int(np.searchsorted(reached, level))
