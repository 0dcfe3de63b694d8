"""P-values of normal rows stay within their limits if, and only if, the guarantee holds."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.evaluation.metrics import max_fpr_under_guarantee
from anomaly_vae.evaluation.p_values import LEVELS, Exchangeability, uniformity_points


def test_shares_are_counted_and_levels_that_the_sample_cannot_resolve_are_left_out() -> None:
    promise = calibrate(np.arange(199.0), alpha=0.05)
    scores = np.random.default_rng(0).uniform(0, 200, 300)
    found = uniformity_points(promise.p_values(scores), np.arange(300) < 100, promise)
    assert [one.level for one in found] == [level for level in LEVELS if level >= 0.005]
    normal = promise.p_values(scores[100:])
    assert [one.share for one in found] == [np.mean(normal <= one.level) for one in found]


def test_the_upper_end_is_the_limit_of_the_false_positive_rate() -> None:
    promise = calibrate(np.arange(999.0), alpha=0.05)
    found = uniformity_points(promise.p_values(np.zeros(400)), np.zeros(400, bool), promise)
    (at_alpha,) = [one for one in found if one.level == 0.05]
    assert at_alpha.high == max_fpr_under_guarantee(promise, 400)


def test_chance_is_seldom_outside_and_a_shift_always_is() -> None:
    """300 exchangeable samples leave the interval of one level in some cases, 5% at most."""
    rng, outside = np.random.default_rng(0), 0
    for _ in range(300):
        promise = calibrate(rng.normal(size=200), alpha=0.1)
        p_values = promise.p_values(rng.normal(size=300))
        (one,) = [
            s for s in uniformity_points(p_values, np.zeros(300, bool), promise) if s.level == 0.1
        ]
        outside += one.outside
    assert 0 < outside / 300 <= 0.05 + 3 * np.sqrt(0.05 / 300)
    shifted = promise.p_values(rng.normal(1, 1, 300))
    assert any(one.outside for one in uniformity_points(shifted, np.zeros(300, bool), promise))


@pytest.mark.parametrize("rows", [0, 40])
def test_groups_give_one_row_each(rows: int) -> None:
    promise = calibrate(np.arange(99.0), alpha=0.05)
    found = uniformity_points(
        promise.p_values(np.zeros(rows)), np.zeros(rows, bool), promise, group=np.arange(rows) // 8
    )
    assert {round(one.high * 5, 9).is_integer() for one in found} <= {True}
    assert bool(found) == bool(rows)


def test_only_a_distance_that_is_large_and_not_chance_is_a_warning() -> None:
    assert Exchangeability(0.2, 1e-7).warning is None, "chance explains it"
    assert Exchangeability(0.02, 1e-28).warning is None, "it is small"
    assert "up to 0.200 (KS p-value 1.0e-28)" in (Exchangeability(0.2, 1e-28).warning or "")
    assert Exchangeability(0.2, 1e-7, 0.1, 1e-5).refuted
