"""From scores to decisions: conformal p-values and the threshold that keeps alpha.

If the calibration scores and a normal row's score are exchangeable, its p-value is
super-uniform: P(p ≤ alpha) ≤ alpha (Vovk et al. 2005; Bates et al. 2023).
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
    """A threshold and the sorted scores (n,) of the normal rows behind it.

    Where there are groups, this is what decides the rows of none of them.
    """

    method: Method
    alpha: float
    threshold: float
    scores: Scores
    figures: Mapping[str, Any] = field(default_factory=dict)
    """what the method says of its choice: plain JSON"""
    weights: Scores | None = None
    """(n,) how much denser than here traffic is around each row; absent: it is as dense"""
    groups: Groups | None = None

    def p_values(self, scores: ArrayLike) -> Scores:
        """(1 + #{calibration ≥ score}) / (n + 1), shape of ``scores``; NaN counts as +∞.

        With weights each row counts by its own, see `weighted_p_values`.
        """
        below = np.searchsorted(self.scores, _worst(scores), side="left")
        if self.weights is not None:
            return self._by_rank[below]
        return np.asarray((1.0 + len(self.scores) - below) / (len(self.scores) + 1.0), np.float64)

    def flags(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """score > threshold; for the conformal method the same as p_value ≤ alpha."""
        return np.asarray(_worst(scores) > self.threshold)

    @cached_property
    def _by_rank(self) -> Scores:
        assert self.weights is not None, "only weighted ones ask"
        return weighted_p_values(self.weights)


@dataclass(frozen=True, eq=False)
class Groups:
    """Calibrations of their own for the levels of a column (Vovk et al. 2003, Mondrian).

    Within a level normal rows are exchangeable with those it was calibrated on, so P(p ≤ alpha) ≤
    alpha holds for each level that is here.
    """

    column: str
    own: Mapping[str, Calibration]


def calibrate(
    scores: ArrayLike, alpha: float, method: Literal["conformal", "quantile"] = "conformal"
) -> Calibration:
    """Choose the threshold from the scores (n,) of normal rows that trained nothing.

    Raises:
        CalibrationError: alpha outside (0, 1), a score that is not finite, or fewer than
            1/alpha − 1 scores, which cannot resolve alpha.
    """
    sample = finite(scores)
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha must lie between 0 and 1, got {alpha:g}")
    check_resolvable(len(sample), alpha)
    choose = {"conformal": conformal_threshold, "quantile": quantile_threshold}[method]
    return Calibration(method, alpha, choose(sample, alpha), sample)


def finite(scores: ArrayLike) -> Scores:
    """The scores of calibration rows, sorted (n,).

    Raises:
        CalibrationError: one is not finite.
    """
    sample = np.sort(np.asarray(scores, np.float64).ravel())
    if not np.isfinite(sample).all():
        bad = int((~np.isfinite(sample)).sum())
        raise CalibrationError(f"{bad} of {len(sample)} calibration scores are not finite")
    return sample


def check_resolvable(n: int, alpha: float, units: str = "normal calibration rows") -> None:
    """Whether ``n`` exchangeable units can resolve alpha.

    Raises:
        CalibrationError: they cannot, with the number that could.
    """
    needed = scores_needed(alpha)
    if n < needed:
        raise CalibrationError(
            f"alpha {alpha:g} needs {needed} {units}, there are {n}; give more rows{_or_raise(n)}"
        )


def scores_needed(alpha: float) -> int:
    """The fewest calibration scores whose smallest p-value, 1 / (n + 1), reaches alpha."""
    n = max(math.floor(1 / alpha) - 1, 1)
    return n + (1 / (n + 1) > alpha)


def conformal_threshold(sample: Scores, alpha: float) -> float:
    """The score above which p_value ≤ alpha, for a sorted sample (n,).

    p ≤ alpha exactly when fewer than m = `ranks_within` calibration scores reach the score: when it
    exceeds the m-th largest.
    """
    n = len(sample)
    return float(sample[n - ranks_within(alpha, n)])


def ranks_within(alpha: float, n: int) -> int:
    """How many of the p-values that n scores resolve are ≤ alpha: the largest m / (n + 1) that is.

    By the very quotients that p-values are, not by a product that rounds otherwise.
    """
    m = math.floor(alpha * (n + 1))
    m += (m + 1) / (n + 1) <= alpha
    m -= m / (n + 1) > alpha
    return m


def quantile_threshold(sample: Scores, alpha: float) -> float:
    """The empirical (1 − alpha) quantile, without the finite-sample correction."""
    return float(np.quantile(sample, 1 - alpha, method="higher"))


def weighted_p_values(weights: Scores) -> Scores:
    """(n + 1,) of rows that have 0 to n of the calibration scores below them.

    (Σ w_i 1{calibration_i ≥ score} + w) / (Σ w_i + w) is super-uniform where w is the new row's own
    weight (Tibshirani et al. 2019), and rises with w; a row comes without one, so it is given the
    largest. For equal weights this is the plain p-value.

    Args:
        weights: (n,) density of traffic over that of the calibration rows, in the scores' order.
    """
    reaching = np.append(np.cumsum(_of_largest(weights)[::-1])[::-1], 0.0)
    return np.asarray((1.0 + reaching) / (1.0 + reaching[0]))


def weighted_threshold(sample: Scores, weights: Scores, alpha: float) -> float:
    """The score above which `weighted_p_values` are ≤ alpha, for a sorted sample (n,).

    Raises:
        CalibrationError: not even those above all scores are.
    """
    check_weights(weights, alpha)
    above = weighted_p_values(weights)[np.searchsorted(sample, sample, side="right")]
    return float(sample[np.argmax(above <= alpha)])


def check_weights(weights: Scores, alpha: float, units: str = "normal calibration rows") -> None:
    """Whether rows of these weights can resolve alpha.

    Raises:
        CalibrationError: they cannot, with what would.
    """
    finest = float(weighted_p_values(weights)[-1])
    if finest > alpha:
        raise CalibrationError(
            f"alpha {alpha:g} needs weights that add up to {1 / alpha - 1:g} times the largest; "
            f"those of the {len(weights)} {units} add up to {1 / finest - 1:.4g} times theirs, and "
            f"are worth {effective_rows(weights):.4g} rows; give more rows"
            f"{_or_raise(1 / finest - 1)}"
        )


def effective_rows(weights: Scores) -> float:
    """How many rows of equal weight estimate as well: (Σ w)² / Σ w² (Kish 1965)."""
    unit = _of_largest(weights)
    return float(unit.sum() ** 2 / max((unit**2).sum(), 1.0))


def _of_largest(weights: Scores) -> Scores:
    """In units of the largest, unless all are 0."""
    return np.asarray(weights / (weights.max() or 1.0))


def discovery_level(p_values: Scores, counts: ArrayLike, q: float) -> float:
    """The p-value up to which Benjamini & Hochberg (1995) flag at level q; 0 where they flag none.

    Conformal p-values that share a calibration sample are positively dependent, so among the
    flagged rows of one batch at most a share q · (normal rows / rows) is normal on average (Bates
    et al. 2023; Benjamini & Yekutieli 2001).

    Args:
        p_values: (K,) rising, all different.
        counts: (K,) rows of the batch that have each.
        q: the false discovery rate that may be.
    """
    reached = np.cumsum(np.asarray(counts))
    held = p_values * reached[-1] <= q * reached
    return float(p_values[held].max(initial=0.0))


def scores_reaching(calibration: Calibration) -> int:
    """How many ranks, of n + 1, a normal row may take and be flagged: n·FPR is about this.

    The conformal threshold is the k-th largest score, so k − 1 calibration scores lie above it
    and a new row takes one of the k ranks above it with probability k / (n + 1) ≤ alpha.
    """
    return int((calibration.scores > calibration.threshold).sum()) + 1


def promised_ranks(calibration: Calibration) -> float:
    """The ranks, of n + 1, that a kept promise lets a normal row take and be flagged.

    What is promised is alpha, so another threshold than the conformal one is held to the same. An
    alpha finer than the scores resolve, read off a fitted tail, is alpha (n + 1), which is no rank.
    """
    scores, alpha = calibration.scores, calibration.alpha
    if len(scores) < scores_needed(alpha) or alpha >= 1:
        return min(alpha * (len(scores) + 1), len(scores))
    return scores_reaching(replace(calibration, threshold=conformal_threshold(scores, alpha)))


def _or_raise(n: float) -> str:
    resolvable = math.ceil(1e4 / (n + 1)) / 1e4
    return f" or raise alpha to {resolvable:g}" if resolvable < 1 else ""


def _worst(scores: ArrayLike) -> Scores:
    values = np.asarray(scores, np.float64)
    return np.where(np.isnan(values), np.inf, values)
