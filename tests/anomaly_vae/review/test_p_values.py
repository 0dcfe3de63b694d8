"""Counts of p-values agree with counting flags at every two-digit alpha."""

import datetime as dt

import numpy as np

from anomaly_vae.review import PValueCounts
from anomaly_vae.review.p_values import UPPER_ENDS, is_exact

TODAY = dt.date(2024, 1, 31)


def test_counts_are_exact_at_the_ends_of_bins():
    n = 9_999
    p_values = (1 + np.random.default_rng(0).integers(0, n + 1, 20_000)) / (n + 1)
    counts = PValueCounts.of("fraud", "3", TODAY, p_values)
    assert counts.rows == 20_000
    for alpha in (0.0001, 0.001, 0.0025, 0.01, 0.012, 0.05, 0.1, 0.25, 1.0):
        assert is_exact(alpha)
        assert counts.at_most(alpha) == int((p_values <= alpha).sum())


def test_every_p_value_has_a_bin():
    counts = PValueCounts.of("fraud", None, TODAY, [1e-12, 1.0, 1.0 + 1e-15])
    assert counts.bins == {1e-06: 1, 1.0: 2}
    assert sorted({*UPPER_ENDS}) == list(UPPER_ENDS)
