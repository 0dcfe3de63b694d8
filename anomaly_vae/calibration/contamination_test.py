"""Test whether calibration rows contain more high scores than chance explains.

Such an excess suggests anomalies that nobody labelled. The calibration rows are compared with rows
that were held out of training. A contamination that both samples share cannot be detected:
exchangeable rows have uniform p-values against each other, however many of them are anomalies, and
the shape of the scores alone is not evidence (docs/thresholds.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Scores

PERMUTATIONS = 9_999
CUTS = 40
"""Number of thresholds that are tried, most of them where few rows lie above."""
TAIL = 0.25
"""Share of all rows above the lowest threshold."""
LEVEL = 0.01
"""p-value up to which the test is reported to the user."""


@dataclass(frozen=True)
class ContaminationTest:
    """The result of comparing calibration rows with held-out rows."""

    p_value: float
    """Probability of such a difference or a larger one among exchangeable rows."""
    share: float
    """Estimated share of the calibration rows that do not belong, at the largest difference."""
    above: float
    """Score from which on as many calibration rows lie as that share amounts to."""
    held_out: int
    """Number of held-out rows."""

    @property
    def note(self) -> str:
        """Advice for the user; empty if chance explains the difference."""
        if self.p_value > LEVEL:
            return ""
        return (
            f"calibration rows fit worse than held-out training rows (p = {self.p_value:.2g}), "
            f"as if about {self.share:.1%} of them did not belong. Where splits follow time the "
            "data may have drifted; else there may be anomalies that nobody labelled, which hide "
            f"others: label those of the rows from {self.above:.4g} on, or leave the highest out "
            "by calibration.trim_scores"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        return asdict(self)


def contamination_test(normal: Scores, held_out: Scores, scores: Scores) -> ContaminationTest:
    """Compare the upper tails of two sorted samples of scores, (n,) and (m,).

    The statistic is the largest standardised excess over several thresholds: higher criticism
    (Donoho & Jin 2004) with hypergeometric permutation counts in place of uniform p-values. The
    p-value is its rank among permutations, and therefore exact (Phipson & Smyth 2010).

    Args:
        normal: (n,) scores of the calibration rows by which they are compared.
        held_out: (m,) scores of the held-out rows.
        scores: (n,) sorted scores of the calibration rows that users know, for the advice.
    """
    cuts = _thresholds(np.sort(np.concatenate([normal, held_out])))
    calibration, reference = (len(s) - np.searchsorted(s, cuts) for s in (normal, held_out))
    sizes = (len(normal), len(held_out))
    excess = _excess(calibration, calibration + reference, sizes)
    drawn = _permutation_maxima(tuple((calibration + reference).tolist()), sizes)
    worst = int(np.argmax(excess))
    expected = reference[worst] / len(held_out)
    share = (calibration[worst] / len(normal) - expected) / (1 - expected or 1.0)
    reached = int((drawn >= excess.max()).sum())
    p_value = (1 + reached) / (1 + PERMUTATIONS)
    share = max(float(share), 0.0)
    above = scores[-max(round(share * len(scores)), 1)]
    return ContaminationTest(p_value, share, float(above), len(held_out))


def _thresholds(pooled: Scores) -> Scores:
    """Return distinct thresholds, descending, each reached by one of the highest scores."""
    above = np.unique(np.geomspace(1, max(TAIL * len(pooled), 1), CUTS).astype(int))
    return np.unique(pooled[len(pooled) - above])[::-1]


def _excess(calibration: NDArray[Any], above: NDArray[Any], sizes: tuple[int, int]) -> Scores:
    """Return standardised hypergeometric counts; the standard deviation is at least one row."""
    total, share = sum(sizes), sizes[0] / sum(sizes)
    variance = above * share * (1 - share) * (total - above) / max(total - 1, 1)
    return np.asarray((calibration - above * share) / np.sqrt(np.maximum(variance, 1.0)))


@lru_cache(maxsize=8)
def _permutation_maxima(above: tuple[int, ...], sizes: tuple[int, int]) -> Scores:
    """Return the statistic (R,) of R random permutations."""
    rng = np.random.default_rng(0)
    left, rest = np.full(PERMUTATIONS, sizes[0]), sum(sizes)
    largest = np.full(PERMUTATIONS, -np.inf)
    for rows, total in zip(np.diff(above, prepend=0).tolist(), above, strict=True):
        left, rest = left - rng.hypergeometric(left, rest - left, rows), rest - rows
        largest = np.maximum(largest, _excess(sizes[0] - left, np.array(total), sizes))
    return largest
