"""Conformal calibration: ranks, properties of any sample, and the guarantee by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from anomaly_vae.calibration.conformal import (
    Calibration,
    calibrate,
    conformal_threshold,
    discovery_level,
    scores_needed,
)
from anomaly_vae.data.splitting import one_row_per_group
from anomaly_vae.errors import CalibrationError
from tests.support import naive

FINITE = st.floats(-1e9, 1e9, allow_nan=False)
TIED = st.integers(-3, 3).map(float)
SAMPLES = st.one_of(
    st.lists(FINITE, min_size=1, max_size=60),
    st.lists(TIED, min_size=1, max_size=60),
    st.tuples(FINITE, st.integers(1, 60)).map(lambda pair: [pair[0]] * pair[1]),
)
RANKS = st.tuples(st.integers(2, 61), st.integers(1, 60)).map(lambda pair: min(pair) / max(pair))
"""Rates m / (n + 1), which are sensitive to rounding, and their neighbours."""
ALPHAS = st.one_of(
    st.floats(1e-3, 1, exclude_max=True),
    RANKS,
    RANKS.map(lambda alpha: math.nextafter(alpha, 0)),
    RANKS.map(lambda alpha: math.nextafter(alpha, 1)),
).filter(lambda alpha: alpha < 1)


def calibrated(sample: list[float], alpha: float) -> Calibration:
    """Draw samples that can resolve alpha."""
    assume(len(sample) >= scores_needed(alpha))
    return calibrate(sample, alpha)


def around(sample: list[float]) -> list[float]:
    """Return every calibration score, its neighbours on both sides, and both infinities."""
    steps = [math.nextafter(s, side) for s in sample for side in (-math.inf, math.inf)]
    return [*sample, *steps, -math.inf, math.inf, math.nan]


# ---------------------------------------------------------------- properties


@given(SAMPLES, ALPHAS)
@example([1.0, 1.0, 1.0], 0.5)
@example([0.0] * 9, 0.1)
@example([float(i) for i in range(48)], 1 / 49)
@example([float(i) for i in range(10)], math.nextafter(9 / 11, 0))
def test_a_row_is_flagged_exactly_when_its_p_value_reaches_alpha(
    sample: list[float], alpha: float
) -> None:
    """Both decisions agree at, just below and just above every score, for any alpha."""
    calibration = calibrated(sample, alpha)
    scores = around(sample)
    reached = calibration.p_values(scores) <= alpha
    np.testing.assert_array_equal(calibration.flags(scores), reached)


@given(SAMPLES, ALPHAS)
def test_p_values_and_threshold_are_what_counting_finds(sample: list[float], alpha: float) -> None:
    calibration = calibrated(sample, alpha)
    scores = around(sample)
    counted = [naive.p_value(score, sample) for score in scores]
    assert calibration.p_values(scores).tolist() == counted
    assert calibration.threshold == naive.threshold(sample, alpha)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_order_of_the_calibration_rows_does_not_matter(
    sample: list[float], random: object
) -> None:
    alpha = 0.5
    shuffled = list(sample)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = calibrated(sample, alpha), calibrated(shuffled, alpha)
    assert one.threshold == other.threshold
    np.testing.assert_array_equal(one.scores, other.scores)


@given(SAMPLES, st.lists(FINITE, min_size=2, max_size=30))
def test_a_higher_score_never_has_a_higher_p_value(
    sample: list[float], scores: list[float]
) -> None:
    p = calibrated(sample, 0.5).p_values(sorted(scores))
    assert np.all(np.diff(p) <= 0)
    assert np.all((p >= 1 / (len(sample) + 1)) & (p <= 1))


@given(SAMPLES, ALPHAS, ALPHAS)
def test_a_smaller_alpha_never_flags_more(sample: list[float], a: float, b: float) -> None:
    strict, lax = calibrated(sample, min(a, b)), calibrated(sample, max(a, b))
    assert strict.threshold >= lax.threshold


@given(SAMPLES, FINITE)
def test_a_more_anomalous_calibration_row_never_lowers_a_p_value(
    sample: list[float], score: float
) -> None:
    before = calibrated(sample, 0.5).p_values(score)
    raised = [max(sample) + 1.0, *sample[1:]]
    assert calibrated(raised, 0.5).p_values(score) >= before


@given(st.floats(5e-324, 1, exclude_max=True).filter(lambda alpha: 1 / alpha < math.inf))
@example(1 / 3)
@example(1 / 49)
@example(3e-30)
@settings(max_examples=300)
def test_the_rows_needed_are_the_fewest_whose_smallest_p_value_reaches_alpha(alpha: float) -> None:
    n = scores_needed(alpha)
    assert n >= 1
    assert n == 1 or 1 / n > alpha or n > 2**52
    assert 1 / (n + 1) <= alpha or n > 2**52


def test_p_values_keep_the_shape_of_the_scores() -> None:
    calibration = calibrate(np.arange(99.0), 0.01)
    assert calibration.p_values(np.zeros((2, 3))).shape == (2, 3)
    assert calibration.p_values(98.5).shape == ()
    assert calibration.p_values([]).shape == calibration.flags([]).shape == (0,)


# ---------------------------------------------------------------- worked examples


def test_ninety_nine_rows_resolve_one_percent() -> None:
    """With alpha 0.01 and 99 scores, only a score above all of them is flagged."""
    calibration = calibrate(np.arange(99.0), 0.01)
    assert calibration.threshold == 98
    assert calibration.p_values([98, 98.5, -1, 0]).tolist() == [0.02, 0.01, 1, 1]
    assert calibration.flags([98, 98.5]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [(99, 0.05, 5), (100, 0.05, 5), (118, 0.05, 5), (119, 0.05, 6), (999, 0.001, 1)],
)
def test_the_threshold_is_the_mth_largest_score(n: int, alpha: float, rank: int) -> None:
    assert conformal_threshold(np.arange(float(n)), alpha) == n - rank


def test_a_constant_sample_flags_nothing_like_itself_and_all_above() -> None:
    calibration = calibrate([2.5] * 200, 0.05)
    assert calibration.p_values([2.5, 2.4, 2.6]).tolist() == [1, 1, 1 / 201]
    assert calibration.flags([2.5, 2.4, 2.6]).tolist() == [False, False, True]


def test_a_score_that_is_no_number_is_the_worst() -> None:
    calibration = calibrate(np.arange(99.0), 0.01)
    assert calibration.p_values([math.nan, math.inf, -math.inf]).tolist() == [0.01, 0.01, 1]
    assert calibration.flags([math.nan, math.inf, -math.inf]).tolist() == [True, True, False]


def test_the_scores_given_are_left_as_they_are() -> None:
    given_scores = np.array([3.0, 1.0, 2.0])
    assert calibrate(given_scores, 0.5).scores.tolist() == [1, 2, 3]
    assert given_scores.tolist() == [3, 1, 2]


def test_the_quantile_method_is_the_plain_quantile() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=399)
    calibration = calibrate(scores, 0.05, "quantile")
    assert calibration.method == "quantile"
    assert calibration.threshold == np.quantile(scores, 0.95, method="higher")
    assert np.mean(calibration.flags(scores)) <= 0.05
    conformal = calibrate(scores, 0.05)
    assert conformal.threshold >= calibration.threshold
    np.testing.assert_array_equal(conformal.p_values(scores), calibration.p_values(scores))


# ---------------------------------------------------------------- refusals


def test_a_rate_finer_than_the_sample_is_refused_with_both_remedies() -> None:
    with pytest.raises(CalibrationError) as caught:
        calibrate(np.arange(400.0), 0.001)
    assert str(caught.value) == (
        "alpha 0.001 needs 999 normal calibration rows, there are 400; "
        "give more rows or raise alpha to 0.0025"
    )


@given(st.integers(1, 2_000))
def test_what_a_refusal_advises_is_accepted(n: int) -> None:
    with pytest.raises(CalibrationError) as caught:
        calibrate(np.arange(float(n)), 1e-5)
    advised = float(str(caught.value).rpartition(" ")[2])
    assert calibrate(np.arange(float(n)), advised).alpha == advised


@pytest.mark.parametrize("method", ["conformal", "quantile"])
def test_no_rows_are_refused(method: str) -> None:
    with pytest.raises(CalibrationError, match="needs 19 normal calibration rows, there are 0"):
        calibrate([], 0.05, method)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_an_alpha_outside_zero_to_one_is_refused(alpha: float) -> None:
    with pytest.raises(CalibrationError, match="alpha must lie between 0 and 1, got"):
        calibrate(np.arange(100.0), alpha)


def test_scores_that_are_not_finite_are_refused_and_counted() -> None:
    with pytest.raises(CalibrationError, match="2 of 100 calibration scores are not finite"):
        calibrate([math.nan, math.inf, *range(98)], 0.05)


# ---------------------------------------------------------------- the promise


@pytest.mark.parametrize(("n", "alpha"), [(99, 0.01), (150, 0.05), (400, 0.1), (40, 0.3)])
def test_the_promise_the_false_positive_rate_is_at_most_alpha(n: int, alpha: float) -> None:
    """10,000 calibrations, each with one new normal row: P(p ≤ α) ≤ α, and without ties no less
    than α − 1/(n + 1), for scores that are anything but normal."""
    rng = np.random.default_rng(n)
    trials = 10_000
    scores = rng.standard_cauchy((trials, n + 1)) ** 3
    flagged = np.mean([calibrate(row[:-1], alpha).flags(row[-1]) for row in scores])
    error = 4 * math.sqrt(alpha * (1 - alpha) / trials)
    assert alpha - 1 / (n + 1) - error <= flagged <= alpha + error
    exact = math.floor(alpha * (n + 1) + 1e-9) / (n + 1)
    assert flagged == pytest.approx(exact, abs=error)


def test_the_promise_holds_with_ties() -> None:
    """Discrete scores are flagged less often than alpha, never more."""
    rng = np.random.default_rng(0)
    trials, n, alpha = 10_000, 99, 0.05
    scores = rng.geometric(0.4, (trials, n + 1)).astype(float)
    flagged = np.mean([calibrate(row[:-1], alpha).flags(row[-1]) for row in scores])
    assert flagged <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / trials)
    assert flagged > 0


def test_p_values_of_normal_rows_are_uniform() -> None:
    """Each of the n + 1 ranks is equally likely."""
    rng = np.random.default_rng(1)
    trials, n = 10_000, 19
    scores = rng.normal(size=(trials, n + 1))
    p = np.array([calibrate(row[:-1], 0.5).p_values(row[-1]) for row in scores])
    counts = np.bincount(np.rint(p * (n + 1)).astype(int), minlength=n + 2)[1:]
    np.testing.assert_allclose(
        counts / trials, 1 / (n + 1), atol=4 * math.sqrt(0.05 * 0.95 / trials)
    )


def test_the_quantile_method_keeps_no_such_promise() -> None:
    """Without finite-sample correction 3 in 42 rows are flagged, so it is not the default."""
    rng = np.random.default_rng(2)
    trials, n, alpha = 10_000, 41, 0.05
    scores = rng.normal(size=(trials, n + 1))
    flagged = np.mean([calibrate(row[:-1], alpha, "quantile").flags(row[-1]) for row in scores])
    assert flagged > alpha + 4 * math.sqrt(alpha * (1 - alpha) / trials)


def test_one_row_of_each_group_keeps_the_promise_for_new_groups() -> None:
    """Rows share their group's shift, so calibrating on all of them would break the guarantee."""
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(40), 25).astype(np.int32)
    kept, broken = [], []
    for _ in range(600):
        calibrating = np.repeat(rng.normal(size=40), 25) + 0.2 * rng.normal(size=1_000)
        fresh = rng.normal(size=200) + 0.2 * rng.normal(size=200)
        chosen = calibrating[one_row_per_group(np.arange(1_000), group)]
        kept.append(calibrate(chosen, 0.05).flags(fresh).mean())
        broken.append(calibrate(calibrating, 0.05).flags(fresh).mean())
    assert np.mean(kept) <= 0.05 + 3 * np.std(kept) / math.sqrt(len(kept))
    assert np.mean(broken) > np.mean(kept)


# ---------------------------------------------------------------- false discoveries


def level_of(p_values: np.ndarray, q: float) -> float:
    return discovery_level(*np.unique(p_values, return_counts=True), q)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=80),
    st.floats(0.01, 0.99).map(lambda q: q + 1e-7 * math.pi),  # no rank over rows, which may round
)
def test_discoveries_are_those_of_scipy(ranks: list[int], q: float) -> None:
    p_values = np.array(ranks) / 50
    found = p_values <= level_of(p_values, q)
    np.testing.assert_array_equal(found, false_discovery_control(p_values) <= q)


def test_where_nothing_is_discovered_the_level_is_nought() -> None:
    assert level_of(np.array([0.5, 0.6, 0.7]), 0.1) == 0
    assert level_of(np.array([0.01, 0.6, 0.7]), 0.1) == 0.01


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_the_promise_of_all_that_is_flagged_at_most_q_is_normal(share: float) -> None:
    """2,000 batches of 200 rows, each with a calibration of its own: the false discovery rate is
    at most q times the share of normal rows."""
    rng, q, trials, n = np.random.default_rng(9), 0.2, 2_000, 999
    odd = round(share * 200)
    false = []
    for _ in range(trials):
        calibration = calibrate(rng.normal(size=n), 0.01)
        scores = rng.normal(size=200)
        scores[:odd] += 3
        p_values = calibration.p_values(scores)
        flags = p_values <= level_of(p_values, q)
        false.append(flags[odd:].sum() / max(flags.sum(), 1))
    error = 4 * np.std(false) / math.sqrt(trials)
    assert np.mean(false) <= q * (1 - share) + error
