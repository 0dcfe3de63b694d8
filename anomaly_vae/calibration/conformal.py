"""Compute conformal p-values, and the threshold that keeps the false positive rate below alpha.

If a normal row's score is exchangeable with the calibration scores, its p-value is super-uniform:
P(p ≤ alpha) ≤ alpha (Vovk et al. 2005; Bates et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly_vae.errors import CalibrationError
from anomaly_vae.types import Method

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A threshold, and the sorted scores (n,) of the normal rows it was chosen from.

    If there are ``groups``, this calibration applies to the rows outside all of them.

    >>> calibration = calibrate([4.0, 1.0, 3.0, 2.0], alpha=0.25)
    >>> calibration.threshold, calibration.scores.tolist()
    (4.0, [1.0, 2.0, 3.0, 4.0])
    >>> calibration.p_values([2.5, 4.5]).tolist(), calibration.flags([2.5, 4.5]).tolist()
    ([0.6, 0.2], [False, True])
    """

    method: Method
    alpha: float
    threshold: float
    scores: Scores
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Figures that the method reports about its choice, as plain JSON values."""
    weights: Scores | None = None
    """Density ratio (n,) of scored traffic to calibration rows; None means weight 1."""
    groups: Groups | None = None

    def p_values(self, scores: ArrayLike) -> Scores:
        """Return (1 + #{calibration ≥ score}) / (n + 1), in the shape of ``scores``.

        A NaN score is treated as +∞. If the calibration rows have weights, the p-values are those
        of `weighted_p_values`.
        """
        below = np.searchsorted(self.scores, _nan_to_infinity(scores), side="left")
        if self.weights is not None:
            return self._p_value_by_rank[below]
        return np.asarray((1.0 + len(self.scores) - below) / (len(self.scores) + 1.0), np.float64)

    def flags(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Return whether score > threshold; a NaN score is treated as +∞.

        For the conformal method this is the same as p_value ≤ alpha.
        """
        return np.asarray(_nan_to_infinity(scores) > self.threshold)

    def decide_one(self, score: float) -> tuple[float, bool]:
        """Return the p-value and the flag of one score, as `p_values` and `flags` find them."""
        n, below = len(self.scores), int(self.scores.searchsorted(score))  # NaN is the largest
        is_anomaly = bool(score > self.threshold or math.isnan(score))
        if self.weights is not None:
            return float(self._p_value_by_rank[below]), is_anomaly
        return (1.0 + n - below) / (n + 1.0), is_anomaly

    @cached_property
    def _p_value_by_rank(self) -> Scores:
        assert self.weights is not None, "p_values() checks this"
        return weighted_p_values(self.weights)


@dataclass(frozen=True, eq=False)
class Groups:
    """Separate calibrations for levels of a column (Mondrian prediction, Vovk et al. 2003).

    If the normal rows of a level are exchangeable with its calibration rows, P(p ≤ alpha) ≤ alpha
    holds within that level.
    """

    column: str
    by_level: Mapping[str, Calibration]
    """Calibration of each level that has enough rows."""


def calibrate(
    scores: ArrayLike, alpha: float, method: Literal["conformal", "quantile"] = "conformal"
) -> Calibration:
    """Choose a threshold from the scores (n,) of normal rows held out of training.

    Raises:
        CalibrationError: alpha outside (0, 1), a score that is not finite, or fewer than
            1/alpha − 1 scores, which cannot resolve alpha.

    >>> calibrate(range(1, 100), alpha=0.05).threshold
    95.0
    >>> calibrate([1.0, 2.0], alpha=0.05)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    anomaly_vae.errors.CalibrationError: alpha 0.05 needs 19 normal calibration rows, ...
    """
    sample = sort_finite(scores)
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha must lie between 0 and 1, got {alpha:g}")
    check_resolvable(len(sample), alpha)
    choose = {"conformal": conformal_threshold, "quantile": quantile_threshold}[method]
    return Calibration(method, alpha, choose(sample, alpha), sample)


def sort_finite(scores: ArrayLike) -> Scores:
    """Return calibration scores (n,) in ascending order.

    Raises:
        CalibrationError: a score is not finite.
    """
    sample = np.sort(np.asarray(scores, np.float64).ravel())
    if not np.isfinite(sample).all():
        bad = int((~np.isfinite(sample)).sum())
        raise CalibrationError(f"{bad} of {len(sample)} calibration scores are not finite")
    return sample


def check_resolvable(n: int, alpha: float, units: str = "normal calibration rows") -> None:
    """Check that ``n`` exchangeable units can resolve alpha.

    Raises:
        CalibrationError: there are too few; the message says how many are needed.
    """
    needed = scores_needed(alpha)
    if n < needed:
        raise CalibrationError(
            f"alpha {alpha:g} needs {needed} {units}, there are {n}; give more rows"
            f"{_alpha_advice(n)}"
        )


def scores_needed(alpha: float) -> int:
    """Return the fewest calibration scores whose smallest p-value, 1 / (n + 1), is ≤ alpha."""
    n = max(math.floor(1 / alpha) - 1, 1)
    return n + (1 / (n + 1) > alpha)


def conformal_threshold(sample: Scores, alpha: float) -> float:
    """Return the threshold above which p_value ≤ alpha, for a sorted sample (n,).

    Let m be the result of `ranks_within`. A row has p ≤ alpha if and only if fewer than m
    calibration scores are as high as its score or higher, that is, if its score exceeds the m-th
    largest calibration score.
    """
    n = len(sample)
    return float(sample[n - ranks_within(alpha, n)])


def ranks_within(alpha: float, n: int) -> int:
    """Return the largest m with m / (n + 1) ≤ alpha: the number of possible p-values up to alpha.

    The function compares quotients, as they occur in p-values, because products would round
    differently.
    """
    m = math.floor(alpha * (n + 1))
    m += (m + 1) / (n + 1) <= alpha
    m -= m / (n + 1) > alpha
    return m


def quantile_threshold(sample: Scores, alpha: float) -> float:
    """Return the empirical (1 − alpha) quantile, without finite-sample correction."""
    return float(np.quantile(sample, 1 - alpha, method="higher"))


def weighted_p_values(weights: Scores) -> Scores:
    """Return p-values (n + 1,): entry i belongs to a row with i calibration scores below it.

    (Σ w_i 1{calibration_i ≥ score} + w) / (Σ w_i + w) is super-uniform if w is the weight of the
    new row (Tibshirani et al. 2019), and increases with w. That weight is unknown, so the largest
    weight is used. With equal weights this is the plain p-value.

    Args:
        weights: (n,) density ratios of traffic to calibration rows, in the order of their scores.
    """
    reaching = np.append(np.cumsum(_relative_to_largest(weights)[::-1])[::-1], 0.0)
    return np.asarray((1.0 + reaching) / (1.0 + reaching[0]))


def weighted_threshold(sample: Scores, weights: Scores, alpha: float) -> float:
    """Return the threshold above which `weighted_p_values` are ≤ alpha, for a sorted sample (n,).

    Raises:
        CalibrationError: even a row above all calibration scores has a p-value larger than alpha.
    """
    check_weights(weights, alpha)
    above = weighted_p_values(weights)[np.searchsorted(sample, sample, side="right")]
    return float(sample[np.argmax(above <= alpha)])


def check_weights(weights: Scores, alpha: float, units: str = "normal calibration rows") -> None:
    """Check that calibration rows with these weights can resolve alpha.

    Raises:
        CalibrationError: they cannot; the message says what is needed.
    """
    smallest = float(weighted_p_values(weights)[-1])  # the p-value of a row above all scores
    if smallest > alpha:
        raise CalibrationError(
            f"alpha {alpha:g} needs weights that add up to {1 / alpha - 1:g} times the largest; "
            f"those of the {len(weights)} {units} add up to {1 / smallest - 1:.4g} times theirs, "
            f"and are worth {effective_rows(weights):.4g} rows; give more rows"
            f"{_alpha_advice(1 / smallest - 1)}"
        )


def effective_rows(weights: Scores) -> float:
    """Return the effective number of rows, (Σ w)² / Σ w² (Kish 1965)."""
    relative = _relative_to_largest(weights)
    return float(relative.sum() ** 2 / max((relative**2).sum(), 1.0))


def _relative_to_largest(weights: Scores) -> Scores:
    """Divide weights by the largest one, unless all are 0."""
    return np.asarray(weights / (weights.max() or 1.0))


def discovery_level(p_values: Scores, counts: ArrayLike, q: float) -> float:
    """Return the largest p-value that the Benjamini–Hochberg procedure flags at level q, else 0.

    Conformal p-values that share a calibration sample are positively dependent, so the expected
    share of normal rows among the flagged rows of a batch is at most q · (normal rows / rows)
    (Benjamini & Hochberg 1995; Benjamini & Yekutieli 2001; Bates et al. 2023).

    Args:
        p_values: (K,) distinct p-values, ascending.
        counts: (K,) number of rows of the batch with each p-value.
        q: false discovery rate.
    """
    cumulative = np.cumsum(np.asarray(counts))
    significant = p_values * cumulative[-1] <= q * cumulative
    return float(p_values[significant].max(initial=0.0))


def flagged_ranks(calibration: Calibration) -> int:
    """Return the number of ranks, out of n + 1, at which a normal row is flagged: about n · FPR.

    If the threshold is the k-th largest score, k − 1 calibration scores lie above it, and a new row
    takes one of the k ranks above it with probability k / (n + 1).
    """
    return int((calibration.scores > calibration.threshold).sum()) + 1


def guaranteed_ranks(calibration: Calibration) -> float:
    """Return the number of ranks, out of n + 1, at which a normal row may be flagged.

    The number follows from alpha alone, whichever method chose the threshold. If n scores are too
    few to resolve alpha (the threshold was extrapolated from a fitted tail), the result is alpha ·
    (n + 1), which need not be an integer.
    """
    scores, alpha = calibration.scores, calibration.alpha
    if len(scores) < scores_needed(alpha) or alpha >= 1:
        return min(alpha * (len(scores) + 1), len(scores))
    return flagged_ranks(replace(calibration, threshold=conformal_threshold(scores, alpha)))


def _alpha_advice(n: float) -> str:
    """Return advice on the smallest alpha that n rows resolve; empty if they resolve none."""
    resolvable = math.ceil(1e4 / (n + 1)) / 1e4
    return f" or raise alpha to {resolvable:g}" if resolvable < 1 else ""


def _nan_to_infinity(scores: ArrayLike) -> Scores:
    values = np.asarray(scores, np.float64)
    return np.where(np.isnan(values), np.inf, values)
