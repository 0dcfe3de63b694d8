"""More high scores among the calibration rows than chance explains: anomalies nobody labelled.

They are compared with rows that were held out of training. What both have in common cannot be
seen: exchangeable rows, however many anomalies are among them, have uniform p-values against each
other, and the shape of the scores alone tells nothing (docs/thresholds.md).
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
"""So many thresholds are tried, dense where few rows are above."""
TAIL = 0.25
"""The share of all rows that the lowest of them leaves above."""
LEVEL = 0.01
"""A smaller p-value is told."""


@dataclass(frozen=True)
class ContaminationTest:
    """How the calibration rows compare with held-out ones, where they differ most."""

    p_value: float
    """of so much of a difference, were they exchangeable"""
    share: float
    """of the calibration rows that is too many"""
    above: float
    """so many of them score this or more"""
    held_out: int
    """rows compared with"""

    @property
    def note(self) -> str:
        """What to do about it; empty where chance explains it."""
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
        """Plain values."""
        return asdict(self)


def contamination_test(normal: Scores, held_out: Scores, scores: Scores) -> ContaminationTest:
    """Compare the upper tails of two samples (n,) and (m,), both sorted.

    ``scores`` (n,), sorted, are what the first are called by when it comes to naming some.

    The statistic is the largest standardised excess over several thresholds: higher criticism
    (Donoho & Jin 2004) with the counts of a permutation, which are hypergeometric, in place of
    uniform p-values. Its p-value is that among permutations, and so exact (Phipson & Smyth 2010).
    """
    cuts = _cuts(np.sort(np.concatenate([normal, held_out])))
    ours, theirs = (len(s) - np.searchsorted(s, cuts) for s in (normal, held_out))
    sizes = (len(normal), len(held_out))
    found = _excess(ours, ours + theirs, sizes)
    drawn = _largest_by_chance(tuple((ours + theirs).tolist()), sizes)
    worst = int(np.argmax(found))
    expected = theirs[worst] / len(held_out)
    share = (ours[worst] / len(normal) - expected) / (1 - expected or 1.0)
    reached = int((drawn >= found.max()).sum())
    p_value = (1 + reached) / (1 + PERMUTATIONS)
    share = max(float(share), 0.0)
    above = scores[-max(round(share * len(scores)), 1)]
    return ContaminationTest(p_value, share, float(above), len(held_out))


def _cuts(pooled: Scores) -> Scores:
    """Different thresholds, falling; each has some of the highest scores at it or above."""
    above = np.unique(np.geomspace(1, max(TAIL * len(pooled), 1), CUTS).astype(int))
    return np.unique(pooled[len(pooled) - above])[::-1]


def _excess(ours: NDArray[Any], above: NDArray[Any], sizes: tuple[int, int]) -> Scores:
    """Standardised hypergeometric counts; one row is the least that a deviation may be."""
    total, share = sum(sizes), sizes[0] / sum(sizes)
    variance = above * share * (1 - share) * (total - above) / max(total - 1, 1)
    return np.asarray((ours - above * share) / np.sqrt(np.maximum(variance, 1.0)))


@lru_cache(maxsize=8)
def _largest_by_chance(above: tuple[int, ...], sizes: tuple[int, int]) -> Scores:
    """(R,) the statistic where chance says which of those above each cut are calibration rows."""
    rng = np.random.default_rng(0)
    ours, rest = np.full(PERMUTATIONS, sizes[0]), sum(sizes)
    largest = np.full(PERMUTATIONS, -np.inf)
    for rows, total in zip(np.diff(above, prepend=0).tolist(), above, strict=True):
        ours, rest = ours - rng.hypergeometric(ours, rest - ours, rows), rest - rows
        largest = np.maximum(largest, _excess(sizes[0] - ours, np.array(total), sizes))
    return largest
