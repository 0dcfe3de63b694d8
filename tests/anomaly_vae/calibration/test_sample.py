"""A sample sorts its scores with all that belongs to them, and gives parts of itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.data.converters import Levels
from anomaly_vae.errors import CalibrationError
from tests.support.calibration_samples import SEEDS
from tests.support.levels import names


def sample(seed: int = 0, n: int = 40, m: int = 6) -> CalibrationSample:
    """Return a sample in which weights, levels and amounts are known by their score."""
    rng = np.random.default_rng(seed)
    normal, anomalies = rng.normal(size=n), rng.normal(5, 1, m)
    return CalibrationSample.from_scores(
        normal,
        anomalies,
        amounts=2 * anomalies,
        levels=Levels((normal > 0).astype(np.int32), ("low", "high")),
        weights=np.exp(normal),
        weight=0.5,
        losses=(np.zeros(n), np.ones(3)),
    )


def check_kept_together(found: CalibrationSample) -> None:
    np.testing.assert_array_equal(found.weights, np.exp(found.normal))
    np.testing.assert_array_equal(found.amounts, 2 * found.anomalies)
    if found.levels:
        assert names(found.levels) == ["high" if s > 0 else "low" for s in found.normal]


@given(SEEDS)
def test_what_belongs_to_a_score_is_sorted_with_it(seed: int) -> None:
    found = sample(seed)
    assert np.all(np.diff(found.normal) >= 0)
    assert np.all(np.diff(found.anomalies) >= 0)
    check_kept_together(found)


def test_an_anomaly_counts_by_its_weight() -> None:
    assert (sample().n, sample().rows) == (40, 43.0)
    assert CalibrationSample.from_scores([1.0, 2.0]).rows == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="1 of 2 calibration scores are not finite"):
        CalibrationSample.from_scores([1.0, bad])
    with pytest.raises(CalibrationError, match="not finite"):
        CalibrationSample.from_scores([1.0], [bad])


@given(st.floats(0, 0.9))
def test_trimming_takes_the_highest_scores(share: float) -> None:
    whole = sample()
    kept = whole.trimmed(share)
    assert kept.n == whole.n - math.floor(share * whole.n)
    np.testing.assert_array_equal(kept.normal, whole.normal[: kept.n])
    np.testing.assert_array_equal(kept.anomalies, whole.anomalies)
    check_kept_together(kept)


def test_nothing_is_trimmed_of_less_than_one_row() -> None:
    whole = sample()
    assert whole.trimmed(0.02) is whole


def test_the_groups_share_the_normal_rows_among_them() -> None:
    whole = sample()
    high, low = whole.select_level("high"), whole.select_level("low")
    np.testing.assert_array_equal(np.concatenate([low.normal, high.normal]), whole.normal)
    assert low.normal.max() <= 0 < high.normal.min()
    for part in (high, low):
        assert part.levels is part.losses is None
        check_kept_together(part)


@given(SEEDS)
def test_resampled_rows_are_rows_of_the_sample_with_their_amounts(seed: int) -> None:
    whole = sample()
    drawn = whole.resampled(np.random.default_rng(seed))
    assert (drawn.n, len(drawn.anomalies)) == (whole.n, len(whole.anomalies))
    assert set(drawn.normal) <= set(whole.normal)
    assert np.all(np.diff(drawn.normal) >= 0)
    np.testing.assert_array_equal(drawn.amounts, 2 * drawn.anomalies)


def test_resampling_draws_with_replacement() -> None:
    drawn = sample(n=200).resampled(np.random.default_rng(0))
    assert 0.55 < len(set(drawn.normal)) / 200 < 0.72  # 1 - 1/e on average


def test_levels_without_rows_are_kept_by_name() -> None:
    levels = Levels(np.array([1, 1], np.int32), ("none", "all"))
    found = CalibrationSample.from_scores([2.0, 1.0], levels=levels)
    assert found.select_level("none").n == 0
    assert found.select_level("all").normal.tolist() == [1.0, 2.0]
