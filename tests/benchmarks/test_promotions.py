"""The simulation behind the table of docs/promotion.md."""

import numpy as np

from anomaly_vae.evaluation.comparison import Change
from benchmarks.promotions import is_refused, simulate_change


def test_a_draw_repeats_and_a_loss_lowers_the_figure() -> None:
    assert simulate_change(20, 0.0, 3) == simulate_change(20, 0.0, 3)
    lost = np.mean([simulate_change(100, 1.0, seed).value for seed in range(2)])
    assert lost < np.mean([simulate_change(100, 0.0, seed).value for seed in range(2)]) - 0.1


def test_each_policy_looks_at_its_own_end_of_the_interval() -> None:
    unsure = Change(0.6, 0.55, -0.15, 0.05)
    assert not is_refused(unsure)
    assert is_refused(unsure, tolerance=0.1, proof="no_worse")
    assert not is_refused(unsure, tolerance=0.2, proof="no_worse")
    assert is_refused(Change(0.6, 0.45, -0.2, -0.1), tolerance=0.05)
