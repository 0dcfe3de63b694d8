"""Test whether calibration rows contain more high scores than chance explains.

An excess suggests unlabelled anomalies. The calibration rows are compared with rows that were held
out of training. Contamination that is the same in both samples cannot be detected: exchangeable
rows have uniform p-values against each other, however many of them are anomalies, and the shape of
the score distribution alone is not evidence (docs/thresholds.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Scores

PERMUTATIONS = 9_999
"""Number of random permutations that the p-value is computed from."""
MAX_THRESHOLDS = 40
"""Maximum number of thresholds tried; most of them have few rows above."""
TAIL_SHARE = 0.25
"""Share of all rows that lie above the lowest threshold."""
REPORT_LEVEL = 0.01
"""Largest p-value at which the result is reported to the user."""


@dataclass(frozen=True)
class ContaminationTest:
    """The result of comparing calibration rows with held-out rows."""

    p_value: float
    """Probability of a difference at least this large if all rows are exchangeable."""
    share: float
    """Estimated share of contaminating rows, at the threshold with the largest difference."""
    above: float
    """Score that ``share`` of the calibration rows reach or exceed."""
    held_out: int
    """Number of held-out rows."""

    @property
    def note(self) -> str:
        """Advice for the user; empty if chance explains the difference."""
        if self.p_value > REPORT_LEVEL:
            return ""
        return (
            f"calibration rows fit worse than held-out training rows (p = {self.p_value:.2g}), "
            f"as if about {self.share:.1%} of them were anomalies. If splits follow time, the data "
            "may have drifted; otherwise there may be unlabelled anomalies, which hide others: "
            f"label the anomalies among the rows that score {self.above:.4g} or more, or leave out "
            "the highest scores with calibration.trim_scores"
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
        normal: (n,) scores of the calibration rows, comparable with ``held_out``.
        held_out: (m,) scores of the held-out rows.
        scores: (n,) anomaly scores of the calibration rows as users see them, for the note.
    """
    thresholds = _thresholds(np.sort(np.concatenate([normal, held_out])))
    calibration, reference = (len(s) - np.searchsorted(s, thresholds) for s in (normal, held_out))
    sizes = (len(normal), len(held_out))
    excess = _excess(calibration, calibration + reference, sizes)
    drawn = _permutation_maxima(tuple((calibration + reference).tolist()), sizes)
    largest_at = int(np.argmax(excess))
    expected = reference[largest_at] / len(held_out)
    share = (calibration[largest_at] / len(normal) - expected) / (1 - expected or 1.0)
    at_least_as_large = int((drawn >= excess.max()).sum())
    p_value = (1 + at_least_as_large) / (1 + PERMUTATIONS)
    share = max(float(share), 0.0)
    above = scores[-max(round(share * len(scores)), 1)]
    return ContaminationTest(p_value, share, float(above), len(held_out))


def _thresholds(pooled: Scores) -> Scores:
    """Return distinct thresholds, descending, taken from the highest pooled scores."""
    above = np.unique(np.geomspace(1, max(TAIL_SHARE * len(pooled), 1), MAX_THRESHOLDS).astype(int))
    return np.unique(pooled[len(pooled) - above])[::-1]


def _excess(calibration: NDArray[Any], above: NDArray[Any], sizes: tuple[int, int]) -> Scores:
    """Return counts as standardised hypergeometric ones, with a standard deviation of 1 or more."""
    total, share = sum(sizes), sizes[0] / sum(sizes)
    variance = above * share * (1 - share) * (total - above) / max(total - 1, 1)
    return np.asarray((calibration - above * share) / np.sqrt(np.maximum(variance, 1.0)))


@lru_cache(maxsize=8)
def _permutation_maxima(above: tuple[int, ...], sizes: tuple[int, int]) -> Scores:
    """Return the statistic (R,) of R random permutations of the rows."""
    rng = np.random.default_rng(0)
    calibration_left, rows_left = np.full(PERMUTATIONS, sizes[0]), sum(sizes)
    largest = np.full(PERMUTATIONS, -np.inf)
    for rows, total in zip(np.diff(above, prepend=0).tolist(), above, strict=True):
        calibration_left, rows_left = (
            calibration_left
            - rng.hypergeometric(calibration_left, rows_left - calibration_left, rows),
            rows_left - rows,
        )
        largest = np.maximum(largest, _excess(sizes[0] - calibration_left, np.array(total), sizes))
    return largest
