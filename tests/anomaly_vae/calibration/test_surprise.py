"""Surprises: ranks of held-out scores on a curve that never falls and never ends."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.calibration.surprise import MAX_KNOTS, fit_surprise
from anomaly_vae.errors import CalibrationError

SAMPLES = {
    "normal": np.random.default_rng(0).normal(size=3_000),
    "heavy": np.random.default_rng(0).standard_cauchy(size=500),
    "bounded": np.random.default_rng(0).uniform(-1, 0, 800),
    "tied": np.repeat([-4.0, -4.0, -3.0, 1.5, 1.5], 40),
    "tied at the top": np.append(np.arange(50.0), np.full(50, 50.0)),
    "constant": np.full(30, -7.0),
    "two": np.array([1.0, 2.0]),
    "one": np.array([3.0]),
    "large": 1e9 + np.arange(100.0),
}


def test_the_surprise_of_a_rank_is_minus_its_logarithm():
    curve = fit_surprise(np.arange(1.0, 100.0))
    shares = np.exp(-curve(np.array([1.0, 50.0, 99.0])))
    np.testing.assert_allclose(shares, [0.99, 0.5, 0.01])


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
def test_a_higher_score_has_a_higher_surprise(sample):
    curve = fit_surprise(sample)
    spread = float(np.ptp(sample)) or 1.0
    grid = np.linspace(sample.min() - 2 * spread, sample.max() + 5 * spread, 20_001)
    found = curve(grid)
    assert (np.diff(found) > 0).all()
    assert (found > 0).all()


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
def test_extreme_scores_keep_their_order(sample):
    found = fit_surprise(sample)(np.array([-1e300, -1e12, 1e12, 1e100, 1e300]))
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()


def test_neighbouring_scores_are_never_exchanged():
    rng = np.random.default_rng(1)
    curve = fit_surprise(rng.normal(size=1_000))
    scores = np.concatenate([curve.scores, rng.normal(size=2_000)])
    assert (curve(np.nextafter(scores, np.inf)) >= curve(scores)).all()


def test_a_score_above_all_has_the_highest_rank_even_if_the_highest_are_equal():
    curve = fit_surprise(SAMPLES["tied at the top"])
    assert curve(50.0) == pytest.approx(-np.log(50 / 101))
    assert curve(51.0) > np.log(101)


def test_new_rows_of_the_same_kind_are_as_surprising_as_their_share_says():
    rng = np.random.default_rng(2)
    curve = fit_surprise(rng.normal(size=20_000))
    fresh = curve(rng.normal(size=200_000))
    for share in (0.5, 0.1, 0.01, 0.001):
        assert np.mean(fresh >= -np.log(share)) == pytest.approx(share, rel=0.25)


def test_a_curve_is_small_however_many_rows_it_is_fitted_to():
    rng = np.random.default_rng(3)
    sample = np.sort(rng.normal(size=50_000))
    curve = fit_surprise(sample)
    assert len(curve.scores) <= MAX_KNOTS
    exact = -np.log(np.arange(50_000, 0, -1) / 50_001)
    assert np.abs(curve(sample) - exact).max() < 0.2
    assert np.abs(curve(sample) - exact)[:25_000].max() < 0.01


def test_scores_must_be_finite():
    with pytest.raises(CalibrationError, match="1 of 2 calibration scores are not finite"):
        fit_surprise([1.0, np.inf])
