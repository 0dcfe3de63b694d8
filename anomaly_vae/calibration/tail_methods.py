"""Choose thresholds from normal rows alone: at a given confidence, or from a fitted tail."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, binom, genpareto, goodness_of_fit

from anomaly_vae.calibration.conformal import Scores, conformal_threshold, scores_needed
from anomaly_vae.calibration.sample import CalibrationSample, ThresholdChoice
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.errors import CalibrationError

MIN_EXCESSES = 50
"""Minimum number of distinct scores that a tail is fitted to.

The standard error of the tail's shape is then about 0.14.
"""
REFITS = 199
"""Number of samples drawn from the fitted tail to test its fit."""
POOR_FIT = 0.05
"""p-value below which the fit of the tail is reported as poor."""


class Tail(NamedTuple):
    """A generalised Pareto tail.

    P(score > start + y) = share · (1 + shape · y / scale)^(−1/shape) for y ≥ 0.
    """

    start: float
    share: float
    shape: float
    scale: float

    def threshold(self, alpha: float) -> float:
        """Return the score that a share alpha of rows exceeds (Siffer et al. 2017, eq. 1)."""
        return float(self.start + genpareto.isf(alpha / self.share, self.shape, scale=self.scale))


def certified(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the lowest score whose false positive rate is ≤ alpha with confidence 1 − delta.

    Given the sample, the rate above the k-th largest of n scores is Beta(k, n + 1 − k) distributed,
    and lower if scores are tied. k is the largest with P(Beta(k, n + 1 − k) ≤ alpha) ≥ 1 − delta
    (Vovk 2012, prop. 2a; Wilks 1941; Bates et al. 2023 on calibration-conditional p-values). Such a
    k exists for samples that pass `check_certifiable`.
    """
    n, alpha, delta = sample.n, config.alpha, config.delta
    k = max(int(binom.ppf(delta, n, alpha)), 1)  # P(Beta(k, n + 1 − k) ≤ α) = P(Bin(n, α) ≥ k)
    figures = {
        "delta": delta,
        "bound": float(beta.ppf(1 - delta, k, n + 1 - k)),
        "marginal": k / (n + 1),
        "conformal_threshold": conformal_threshold(sample.normal, alpha),
        "needed": certified_needed(alpha, delta),
    }
    return ThresholdChoice(float(sample.normal[n - k]), figures)


def certified_needed(alpha: float, delta: float) -> int:
    """Return the smallest n that can certify alpha: (1 − alpha)ⁿ ≤ delta (Wilks 1941)."""
    return max(math.ceil(math.log(delta) / math.log1p(-alpha)), scores_needed(alpha))


def check_certifiable(n: int, config: CalibrationConfig, units: str) -> None:
    """Check that n rows can certify alpha.

    Raises:
        CalibrationError: there are too few; the message says how many are needed.
    """
    needed = certified_needed(config.alpha, config.delta)
    if n < needed:
        raise CalibrationError(
            f"alpha {config.alpha:g} with confidence {1 - config.delta:g} needs {needed} {units}, "
            f"there are {n}; give more rows, raise calibration.alpha or calibration.delta, or use "
            "calibration.method conformal, whose promise is on average"
        )


def evt(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the 1 − alpha quantile of a fitted generalised Pareto tail.

    The method extrapolates to an alpha that the sample cannot resolve. It is a model, not a
    guarantee: scores beyond the start of the tail must have that distribution (Pickands 1975;
    Siffer et al. 2017). ``fit_p_value`` is the p-value of the Cramér–von Mises
    statistic by parametric bootstrap (Choulakian & Stephens 2001).

    Raises:
        CalibrationError: the tail has too few distinct scores, or alpha exceeds its share.
    """
    tail = fit_tail(sample.normal, config.tail)
    if config.alpha > tail.share:
        raise CalibrationError(
            f"alpha {config.alpha:g} lies before the tail, which is {tail.share:.3g} of the "
            "calibration scores; use calibration.method conformal"
        )
    excesses = sample.normal[sample.normal > tail.start] - tail.start
    fit = goodness_of_fit(
        genpareto,
        excesses / tail.scale,
        known_params={"loc": 0},
        statistic="cvm",
        n_mc_samples=REFITS,
        rng=np.random.default_rng(0),
    )
    poor = "" if fit.pvalue >= POOR_FIT else f", and a poor one here (p = {fit.pvalue:.2g})"
    figures = {
        "shape": tail.shape,
        "scale": tail.scale,
        "tail_start": tail.start,
        "excesses": len(excesses),
        "fit_p_value": float(fit.pvalue),
        "note": f"alpha {config.alpha:g} is read off a generalised Pareto tail: "
        f"a model, not a guarantee{poor}",
    }
    return ThresholdChoice(tail.threshold(config.alpha), figures)


def fit_tail(sample: Scores, share: float) -> Tail:
    """Fit a tail to the highest ``share`` of a sorted sample (n,) by maximum likelihood.

    Raises:
        CalibrationError: the tail has too few distinct scores.
    """
    n = len(sample)
    start = float(sample[n - 1 - math.floor(share * n)])
    excesses = sample[sample > start] - start
    if len(np.unique(excesses)) < MIN_EXCESSES:
        raise CalibrationError(
            f"the {math.floor(share * n)} highest calibration scores have "
            f"{len(np.unique(excesses))} different values, a tail needs {MIN_EXCESSES}; "
            "use calibration.method conformal, or raise calibration.tail"
        )
    mean = float(excesses.mean())
    shape, _, scale = genpareto.fit(excesses / mean, floc=0)
    return Tail(start, len(excesses) / n, float(shape), float(scale) * mean)


def check_tail(n: int, share: float, units: str = "normal calibration rows") -> None:
    """Check that n rows have enough scores in their tail.

    Raises:
        CalibrationError: there are too few rows; the message says how many are needed.
    """
    if math.floor(share * n) < MIN_EXCESSES:
        raise CalibrationError(
            f"method evt fits its tail to the {share:g} highest of the {units}, at least "
            f"{MIN_EXCESSES}: that takes {math.ceil(MIN_EXCESSES / share)}, there are {n}; "
            "give more rows or raise calibration.tail"
        )
