"""Certified thresholds keep their promise, and fitted tails find the tail that was drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.tail_methods import certified_needed, fit_tail
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.errors import CalibrationError
from anomaly_vae.evaluation.metrics import max_fpr_under_guarantee
from tests.support.calibration_samples import SEEDS, chosen, evidence, wish

# ---------------------------------------------------------------- certified


@given(SEEDS, st.floats(0.02, 0.5), st.floats(0.01, 0.9), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_the_certified_rank_is_the_largest_whose_beta_bound_holds(
    seed: int, alpha: float, delta: float, more: int
) -> None:
    n = certified_needed(alpha, delta) + more
    given_ = evidence(seed, n)
    found = chosen("certified", given_, alpha=alpha, delta=delta)
    k = n - int(np.searchsorted(given_.normal, found.threshold))
    held = [stats.beta.cdf(alpha, j, n + 1 - j) >= 1 - delta - 1e-12 for j in (k, k + 1)]
    assert held[0]
    assert k == n or not held[1] or stats.beta.cdf(alpha, k + 1, n - k) < 1 - delta + 1e-12
    assert found.figures["bound"] <= alpha + 1e-9
    # A beta distribution that leans right exceeds its mean with probability 1/e at least.
    assert found.figures["marginal"] <= alpha or delta > 1 / math.e


def test_more_confidence_never_flags_more() -> None:
    deltas = (0.001, 0.05, 0.3)
    found = [chosen("certified", evidence(5), delta=delta) for delta in deltas]
    thresholds = [one.threshold for one in found]
    assert thresholds == sorted(thresholds, reverse=True)
    assert found[1].threshold > found[1].figures["conformal_threshold"]


def test_the_textbook_numbers_of_rows_that_certify() -> None:
    """95/95 takes 59 rows and 95/99 takes 299 (Wilks 1941)."""
    assert certified_needed(0.05, 0.05) == 59
    assert certified_needed(0.01, 0.05) == 299


def test_too_few_rows_to_certify_are_refused_with_all_remedies() -> None:
    with pytest.raises(CalibrationError) as caught:
        chosen("certified", evidence(0, 200), alpha=0.01, delta=0.05)
    assert str(caught.value) == (
        "alpha 0.01 with confidence 0.95 needs 299 normal calibration rows, there are 200; give "
        "more rows, raise calibration.alpha or calibration.delta, or use calibration.method "
        "conformal, whose promise is on average"
    )


@pytest.mark.parametrize(
    ("n", "alpha", "delta"), [(59, 0.05, 0.05), (300, 0.05, 0.1), (2_000, 0.01, 0.05)]
)
def test_the_promise_a_certified_threshold_breaks_at_most_a_share_delta_of_the_time(
    n: int, alpha: float, delta: float
) -> None:
    """4,000 calibrations, the false positive rate of each known exactly; and the conformal
    threshold, which promises the average, breaks it about half of the time."""
    rng = np.random.default_rng(n)
    trials = 4_000
    config = wish("certified", alpha=alpha, delta=delta)
    samples = rng.standard_exponential((trials, n))
    found = [choose_threshold(CalibrationSample.from_scores(sample), config) for sample in samples]
    rates = np.exp([-one.threshold for one in found])
    error = 4 * math.sqrt(delta * (1 - delta) / trials)
    assert np.mean(rates > alpha) <= delta + error
    certainty = found[0].figures["bound"] / alpha
    assert certainty > 0.6, "no looser than it must be"
    average = np.exp([-one.figures["conformal_threshold"] for one in found])
    assert np.mean(average > alpha) > 2 * delta
    assert average.mean() <= alpha + 4 * average.std() / math.sqrt(trials)


def test_the_promise_of_a_certified_threshold_holds_with_ties() -> None:
    rng = np.random.default_rng(0)
    trials, config = 4_000, wish("certified", alpha=0.05, delta=0.1)
    samples = rng.geometric(0.3, (trials, 200)).astype(float)
    thresholds = np.array(
        [
            choose_threshold(CalibrationSample.from_scores(sample), config).threshold
            for sample in samples
        ]
    )
    assert np.mean(0.7**thresholds > 0.05) <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / trials)


# ---------------------------------------------------------------- evt


def test_a_fit_tail_finds_the_tail_that_was_drawn() -> None:
    rng = np.random.default_rng(1)
    for shape in (-0.3, 0.0, 0.4):
        drawn = stats.genpareto.rvs(shape, scale=2, size=20_000, random_state=rng)
        tail = fit_tail(np.sort(drawn), 0.2)
        assert tail.shape == pytest.approx(shape, abs=0.06)
        for alpha in (0.05, 0.001):
            exact = stats.genpareto.isf(alpha, shape, scale=2)
            assert tail.threshold(alpha) == pytest.approx(exact, rel=0.15)


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_a_smaller_alpha_is_farther_out_in_the_tail(seed: int) -> None:
    tail = fit_tail(evidence(seed).normal, 0.2)
    thresholds = [tail.threshold(alpha) for alpha in (0.2, 0.05, 1e-3, 1e-9)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] == tail.start


@given(SEEDS, st.floats(0.01, 100), st.floats(-50, 50))
@settings(max_examples=10, deadline=None)
def test_other_units_of_the_score_move_the_tail_with_them(
    seed: int, scale: float, shift: float
) -> None:
    given_ = evidence(seed, 600)
    one = fit_tail(given_.normal, 0.2)
    other = fit_tail(given_.normal * scale + shift, 0.2)
    assert other.threshold(1e-4) == pytest.approx(scale * one.threshold(1e-4) + shift, rel=1e-2)


@pytest.mark.slow
def test_the_goodness_of_fit_tells_a_tail_from_none() -> None:
    rng = np.random.default_rng(2)
    smooth = choose_threshold(CalibrationSample.from_scores(rng.gumbel(size=500)), wish("evt"))
    two_heaps = np.concatenate([rng.normal(0, 1, 425), rng.normal(30, 0.1, 75)])
    rough = choose_threshold(CalibrationSample.from_scores(two_heaps), wish("evt"))
    assert smooth.figures["fit_p_value"] > 0.05 > rough.figures["fit_p_value"]
    assert smooth.figures["note"].endswith("a model, not a guarantee")
    assert "a poor one" in rough.figures["note"]


def test_scores_without_a_tail_are_refused() -> None:
    with pytest.raises(CalibrationError, match="have 0 different values, a tail needs 50"):
        choose_threshold(CalibrationSample.from_scores([1.0] * 1_000), wish("evt"))


def test_an_alpha_before_the_tail_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"alpha 0.3 lies before the tail, which is 0.2 "):
        chosen("evt", evidence(0, 1_000), alpha=0.3)


def test_a_rate_that_no_sample_resolves_is_judged_by_about_its_own_law() -> None:
    """An alpha of 1 in 10,000 is exceeded by chance in a handful of 4,000 rows at most."""
    found = choose_threshold(evidence(6, 1_000), wish("evt", alpha=1e-4))
    assert 1e-4 < max_fpr_under_guarantee(found, 4_000) < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "law",
    [stats.gumbel_r(), stats.norm(), stats.expon(), stats.t(5)],
    ids=lambda law: law.dist.name,
)
def test_the_model_of_the_tail_is_near_alpha_where_the_sample_resolves_nothing(law: Any) -> None:
    """500 calibrations of 2,000 rows, alpha one in 10,000: the right order of magnitude, the
    median 1.2 to 2 times alpha and nine in ten below ten times. A model claims no bound."""
    rng = np.random.default_rng(3)
    alpha = 1e-4
    samples = np.sort(law.rvs((500, 2_000), random_state=rng))
    rates = law.sf([fit_tail(sample, 0.1).threshold(alpha) for sample in samples])
    assert alpha / 2 < np.median(rates) < 2.5 * alpha
    assert np.quantile(rates, 0.9) < 10 * alpha
