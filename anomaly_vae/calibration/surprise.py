"""Turn scores into surprises: −log of the share of normal rows whose score is at least as high.

The share is read off a continuous curve, so that a higher score always has a higher surprise. The
curve interpolates the ranks of held-out normal scores, and a generalised Pareto tail continues it
beyond the highest of them. Sums of surprises of several scores compare rows by all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly_vae.calibration.conformal import Scores, sort_finite

MAX_KNOTS = 256
"""Maximum number of scores that a curve keeps."""
TAIL_SHARE, MIN_TAIL = 0.02, 20
"""Fraction of the scores, and minimum number, that the tail is fitted to."""
SHAPE_BOUNDS = (0.1, 0.9)
"""Bounds of the tail's shape. With a shape above 0 the curve increases without an end, as the
logarithm of the score, so that an extreme score of one kind does not outweigh all others."""
STEP_SHARE = 1e-3
"""Distance at which the curve reaches the highest rank beyond several equal highest scores, as a
fraction of the tail's scale."""


@dataclass(frozen=True, eq=False)
class SurpriseCurve:
    """A continuous, strictly increasing function from a score to its surprise.

    >>> curve = fit_surprise(np.arange(99.0))
    >>> curve(np.array([0.0, 49.0, 98.0])).round(2).tolist()  # −log of 0.99, 0.5 and 0.01
    [0.01, 0.69, 4.61]
    >>> below, above = curve(np.array([-1e9, 1e9]))
    >>> bool(0 < below < 0.01), bool(above > 4.61)
    (True, True)
    """

    scores: NDArray[np.float64]
    """Knots (M,), ascending."""
    surprises: NDArray[np.float64]
    """Surprises (M,) at the knots, ascending and above 0."""
    shape: float
    """Shape of the tail beyond the last knot."""
    scale: float
    """Scale of the tail beyond the last knot, in the unit of the scores."""

    @property
    def slopes(self) -> NDArray[np.float64]:
        """Slopes (M − 1,) between the knots."""
        return np.diff(self.surprises) / np.diff(self.scores)

    @property
    def decay(self) -> float:
        """Rate at which the surprise falls towards 0 below the first knot, per unit of score."""
        slope = float(self.slopes[0]) if len(self.scores) > 1 else 1 / self.scale
        return slope / float(self.surprises[0])

    def __call__(self, scores: ArrayLike) -> Scores:
        """Return the surprises of scores, in their shape."""
        x = np.asarray(scores, np.float64)
        first, last = self.scores[0], self.scores[-1]
        below = self.surprises[0] / (1 + self.decay * np.maximum(first - x, 0))
        excess = self.shape * np.maximum(x - last, 0) / self.scale
        above = self.surprises[-1] + np.log(1 + excess) / self.shape
        inside = np.interp(x, self.scores, self.surprises)
        return np.where(x < first, below, np.where(x >= last, above, inside))


def fit_surprise(scores: ArrayLike) -> SurpriseCurve:
    """Fit the curve to the scores (n,) of normal rows that did not determine them.

    At a score s of the sample, the surprise is −log(#{scores ≥ s} / (n + 1)).

    Raises:
        CalibrationError: a score is not finite.

    >>> fit_surprise([1.0, 2.0, 2.0, 3.0]).surprises.round(2).tolist()
    [0.22, 0.51, 1.61]
    """
    sample = sort_finite(scores)
    n, distinct = len(sample), np.unique(sample)
    reaching = n - np.searchsorted(sample, distinct, side="left")
    surprises = -np.log(reaching / (n + 1))
    shape, scale = _fit_tail(sample)
    if reaching[-1] > 1:  # a score above all others still has the highest rank
        step = max(STEP_SHARE * scale, math.ulp(distinct[-1]))
        distinct = np.append(distinct, distinct[-1] + step)
        surprises = np.append(surprises, math.log(n + 1))
    kept = _thinned(len(distinct))
    return SurpriseCurve(distinct[kept], surprises[kept], shape, scale)


def _fit_tail(sample: Scores) -> tuple[float, float]:
    """Return shape and scale of a generalised Pareto tail beyond the highest score.

    They are estimated from the highest scores by probability-weighted moments (Hosking & Wallis
    1987), and the scale is moved from the start of the tail to the highest score.
    """
    count = min(max(MIN_TAIL, math.ceil(TAIL_SHARE * len(sample))), len(sample) - 1)
    excesses = sample[len(sample) - count :] - sample[len(sample) - count - 1]
    mean = float(excesses.mean()) if count else 0.0
    if not mean > 0:
        return SHAPE_BOUNDS[0], max(1.0, abs(float(sample[-1])))
    weights = np.arange(count)[::-1] / max(count - 1, 1)
    moment = float((weights * excesses).mean())  # of the excess times its chance to be exceeded
    shape = float(np.clip(2 - mean / max(mean - 2 * moment, 1e-9 * mean), *SHAPE_BOUNDS))
    return shape, mean * (1 - shape) + shape * float(excesses[-1])


def _thinned(count: int) -> NDArray[np.intp]:
    """Return at most `MAX_KNOTS` of ``count`` positions: evenly, and closer towards the end."""
    if count <= MAX_KNOTS:
        return np.arange(count)
    even = np.linspace(0, count - 1, MAX_KNOTS // 2)
    from_the_end = count - np.geomspace(1, count, MAX_KNOTS // 2)
    return np.unique(np.concatenate([even, from_the_end]).round().astype(np.intp))
