"""All methods of choosing a threshold: common properties, and guarantees by simulation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import fbeta_score

from anomaly_vae.calibration.conformal import Calibration, Scores, calibrate
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.tail_methods import certified_needed, fit_tail
from anomaly_vae.calibration.thresholds import METHODS, choose_threshold, rows_needed
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.errors import CalibrationError
from anomaly_vae.evaluation.metrics import max_fpr_under_guarantee

SEEDS = st.integers(0, 2**32 - 1)
WISHES: dict[str, dict[str, Any]] = {
    "conformal": {"alpha": 0.05},
    "certified": {"alpha": 0.05, "delta": 0.1},
    "evt": {"alpha": 0.002, "tail": 0.2},
    "quantile": {"alpha": 0.05},
    "budget": {"per_1000": 20},
    "cost": {"costs": {"missed": 100, "review": 3, "blocked": 5}},
    "fbeta": {"f_beta": 2.0},
    "recall_at_precision": {"min_precision": 0.6},
}
"""A configuration of each method."""
RANKS = [name for name in WISHES if name != "evt"]
"""Methods that use only the order of the scores."""
ALPHA = [name for name in RANKS if "alpha" in WISHES[name]]
SWEEPS = ["budget", "cost", "fbeta", "recall_at_precision"]


def wish(method: str, **keys: Any) -> CalibrationConfig:
    return CalibrationConfig(method=method, **{**WISHES[method], **keys})  # type: ignore[arg-type]


def evidence(seed: int, n: int = 300, tied: bool = False, m: int = 40) -> CalibrationSample:
    """Return normal rows, anomalies with mostly higher scores, and their weight."""
    rng = np.random.default_rng(seed)
    normal, anomalies = rng.gumbel(size=n), 4 + 2 * rng.normal(size=m)
    digits = 1 if tied else 15
    return CalibrationSample.from_scores(
        np.round(normal, digits),
        np.round(anomalies, digits),
        rng.exponential(size=m),
        weight=0.7,
        rows_per_day=100,
    )


def changed(given_: CalibrationSample, change: Any) -> CalibrationSample:
    """Return the same sample with transformed scores."""
    return replace(
        given_,
        normal=np.sort(change(given_.normal)),
        anomalies=np.sort(change(given_.anomalies)),
    )


def chosen(method: str, given_: CalibrationSample, **keys: Any) -> Calibration:
    return choose_threshold(given_, wish(method, **keys))


def monotone(scores: Scores) -> Scores:
    return np.asarray(np.arcsinh(scores) * 3 - 7)


# ---------------------------------------------------------------- what holds for all


def test_each_method_is_tried_here_and_can_be_configured() -> None:
    assert set(WISHES) == set(METHODS) == set(CalibrationConfig.KEYS)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_flagged_exactly_when_its_score_exceeds_the_threshold(method: str) -> None:
    found = chosen(method, evidence(0))
    t = found.threshold
    assert math.isfinite(t)
    around = [t, math.nextafter(t, -math.inf), math.nextafter(t, math.inf), math.nan]
    assert found.flags(around).tolist() == [False, False, True, True]


@pytest.mark.parametrize("method", METHODS)
def test_p_values_are_counted_on_the_normal_scores_whatever_the_method(method: str) -> None:
    given_ = evidence(1)
    around = np.linspace(-5, 9, 50)
    expected = calibrate(given_.normal, 0.05).p_values(around)
    np.testing.assert_array_equal(chosen(method, given_).p_values(around), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_figures_are_plain_json_without_a_nan(method: str) -> None:
    figures = chosen(method, evidence(2)).figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS)
@settings(max_examples=2, deadline=None)
def test_the_order_of_the_rows_does_not_matter(method: str, seed: int) -> None:
    given_, rng = evidence(seed), np.random.default_rng(seed)
    order = rng.permutation(len(given_.anomalies))
    assert given_.amounts is not None
    shuffled = CalibrationSample.from_scores(
        rng.permutation(given_.normal),
        given_.anomalies[order],
        given_.amounts[order],
        weight=given_.weight,
        rows_per_day=given_.rows_per_day,
    )
    one, other = chosen(method, given_), chosen(method, shuffled)
    assert one.threshold == other.threshold
    assert one.figures == other.figures


@pytest.mark.parametrize("method", RANKS)
@given(seed=SEEDS, tied=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_monotone_change_of_the_scores_changes_no_decision(
    method: str, seed: int, tied: bool
) -> None:
    given_ = evidence(seed, tied=tied)
    one, other = chosen(method, given_), chosen(method, changed(given_, monotone))
    assert other.threshold == monotone(np.array(one.threshold))


@pytest.mark.parametrize("method", ALPHA)
@given(seed=SEEDS, tied=st.booleans())
@settings(max_examples=10, deadline=None)
def test_a_smaller_alpha_never_flags_more(method: str, seed: int, tied: bool) -> None:
    given_, alphas = evidence(seed, tied=tied), (0.02, 0.05, 0.3)
    thresholds = [chosen(method, given_, alpha=alpha).threshold for alpha in alphas]
    assert thresholds == sorted(thresholds, reverse=True)


@pytest.mark.parametrize("method", ALPHA)
def test_the_fewest_rows_that_a_method_takes_are_what_it_says(method: str) -> None:
    needed = rows_needed(wish(method))
    assert choose_threshold(evidence(3, needed), wish(method)).threshold
    with pytest.raises(CalibrationError, match=f" {needed}[ ,].*there are {needed - 1}"):
        choose_threshold(evidence(3, needed - 1), wish(method))


@pytest.mark.parametrize("method", METHODS)
def test_a_score_that_is_not_finite_is_refused(method: str) -> None:
    with pytest.raises(CalibrationError, match="1 of 300 calibration scores are not finite"):
        chosen(method, CalibrationSample.from_scores([math.inf, *evidence(4).normal[1:]], [1.0]))


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


def test_a_fitted_tail_finds_the_tail_that_was_drawn() -> None:
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


# ---------------------------------------------------------------- traffic and labels


@pytest.mark.parametrize("method", SWEEPS)
@given(seed=SEEDS, tied=st.booleans())
@settings(max_examples=10, deadline=None)
def test_alpha_is_what_the_threshold_comes_to(method: str, seed: int, tied: bool) -> None:
    """Alpha is the p-value of a row just above the threshold, which evaluation checks."""
    found = chosen(method, evidence(seed, tied=tied))
    assert found.alpha == found.p_values(math.nextafter(found.threshold, math.inf))
    assert 0 < found.alpha < 1
    assert max_fpr_under_guarantee(found, 1_000) > found.alpha


@given(SEEDS, st.floats(1, 900), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_budget_is_kept_on_its_own_rows_and_used_up(
    seed: int, per_1000: float, tied: bool
) -> None:
    given_ = evidence(seed, 1_200, tied)
    found = chosen("budget", given_, per_1000=per_1000)
    above = naive_flags(given_, found.threshold)
    assert 1_000 * (1 + above) / (given_.rows + 1) <= per_1000 + 1e-9
    lower = [t for t in np.concatenate([given_.normal, given_.anomalies]) if t < found.threshold]
    if lower and max(lower) >= given_.normal[0]:
        assert 1_000 * (1 + naive_flags(given_, max(lower))) / (given_.rows + 1) > per_1000


def naive_flags(given_: CalibrationSample, threshold: float) -> float:
    return float(
        sum(s > threshold for s in given_.normal)
        + given_.weight * sum(s > threshold for s in given_.anomalies)
    )


@given(SEEDS, st.lists(st.floats(1, 900), min_size=2, max_size=5))
@settings(max_examples=20, deadline=None)
def test_a_smaller_budget_never_flags_more(seed: int, budgets: list[float]) -> None:
    given_ = evidence(seed, 1_200)
    found = [chosen("budget", given_, per_1000=one).threshold for one in sorted(budgets)]
    assert found == sorted(found, reverse=True)


def test_a_budget_without_anomalies_is_the_conformal_threshold() -> None:
    given_ = evidence(1, 500, m=0)
    found = chosen("budget", given_, per_1000=20)
    assert found.threshold == calibrate(given_.normal, 0.02).threshold
    assert found.alpha == 10 / 501


def test_a_budget_per_day_counts_on_the_pace_of_the_traffic() -> None:
    given_ = evidence(2)
    by_day = chosen("budget", given_, per_1000=None, per_day=2)
    assert by_day.threshold == chosen("budget", given_).threshold
    assert by_day.figures["per_day"] <= 2
    both = chosen("budget", given_, per_1000=10, per_day=50)
    assert both.threshold == chosen("budget", given_, per_1000=10).threshold


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"per_1000": 0.5}, "0.5 alerts per 1,000 rows take 1999 calibration rows, there are 328"),
        ({"per_1000": None, "per_day": 100}, "is no limit; lower calibration.per_day"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        chosen("budget", evidence(0), **keys)


def test_a_budget_per_day_without_time_names_both_remedies() -> None:
    with pytest.raises(CalibrationError, match=r"name it in data.time, or give calibration.per_10"):
        chosen("budget", replace(evidence(0), rows_per_day=None), per_1000=None, per_day=3)


@given(SEEDS, st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_cost_is_the_least_there_is(seed: int, tied: bool, sized: bool) -> None:
    """The threshold equals that of a loop over every score and row."""
    given_ = evidence(seed, 60, tied, m=15)
    given_ = given_ if sized else replace(given_, amounts=None)
    config = wish("cost")
    found = choose_threshold(given_, config)
    sizes = np.ones(15) if given_.amounts is None else given_.amounts
    costs = [
        naive_cost(given_, sizes, t, config)
        for t in [*given_.normal, *given_.anomalies]
        if t >= given_.normal[0]
    ]
    assert found.figures["apparent_cost"] == pytest.approx(min(costs))
    at = naive_cost(given_, sizes, found.threshold, config)
    assert at == pytest.approx(min(costs))


def naive_cost(
    given_: CalibrationSample, sizes: Scores, t: float, config: CalibrationConfig
) -> float:
    costs, total = config.costs, 0.0
    for score in given_.normal:
        total += (costs.review + costs.blocked) * (score > t)
    for score, size in zip(given_.anomalies, sizes, strict=True):
        total += given_.weight * (costs.review if score > t else costs.missed * size)
    return total * 1_000 / given_.rows


def test_the_curve_and_the_intervals_surround_the_choice() -> None:
    found = chosen("cost", evidence(3, 2_000, m=100))
    figures = found.figures
    assert figures["cost_interval"][0] <= figures["cost"] <= figures["cost_interval"][1]
    low, high = figures["threshold_interval"]
    assert low <= found.threshold <= high
    assert figures["cost"] < figures["cost_of_flagging_nothing"]
    curve = figures["curve"]
    assert min(point["cost"] for point in curve) >= figures["apparent_cost"] <= figures["cost"]
    assert [point["flagged"] for point in curve] == sorted(
        (point["flagged"] for point in curve), reverse=True
    )


def test_dearer_misses_never_flag_less() -> None:
    found = [
        chosen("cost", evidence(4), costs={"missed": missed, "review": 1}).threshold
        for missed in (1, 10, 100, 1_000)
    ]
    assert found == sorted(found, reverse=True)


@given(SEEDS, st.booleans(), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=20, deadline=None)
def test_the_f_score_is_the_largest_there_is(seed: int, tied: bool, beta: float) -> None:
    """The figures equal scikit-learn's."""
    given_ = evidence(seed, 60, tied, m=15)
    found = chosen("fbeta", given_, f_beta=beta)
    scores = np.concatenate([given_.normal, given_.anomalies])
    truth = np.repeat([False, True], [60, 15])
    weights = np.where(truth, given_.weight, 1.0)
    each = [
        fbeta_score(truth, scores > t, beta=beta, sample_weight=weights, zero_division=0)
        for t in scores
        if t >= given_.normal[0]
    ]
    assert found.figures["fbeta"] == pytest.approx(max(each))


@given(SEEDS, st.booleans(), st.floats(0.05, 0.9))
@settings(max_examples=20, deadline=None)
def test_no_threshold_of_that_precision_has_more_recall(
    seed: int, tied: bool, least: float
) -> None:
    given_ = evidence(seed, 60, tied, m=15)
    try:
        found = chosen("recall_at_precision", given_, min_precision=least)
    except CalibrationError:
        return  # tested below
    assert found.figures["precision"] >= least
    for t in np.concatenate([given_.normal, given_.anomalies]):
        caught = given_.weight * np.sum(given_.anomalies > t)
        flagged = caught + np.sum(given_.normal > t)
        if t >= given_.normal[0] and flagged and caught / flagged >= least:
            assert np.mean(given_.anomalies > t) <= found.figures["recall"] + 1e-9


def test_a_precision_that_no_threshold_reaches_says_the_best() -> None:
    given_ = CalibrationSample.from_scores(np.arange(100.0), np.arange(50.0))
    with pytest.raises(CalibrationError) as caught:
        chosen("recall_at_precision", given_, min_precision=0.9)
    assert str(caught.value) == (
        "precision 0.9 is reached by no threshold on the calibration rows, at most 0.331; "
        "lower calibration.min_precision"
    )


@pytest.mark.parametrize("method", CalibrationConfig.BY_LABEL)
def test_methods_by_label_say_where_labels_come_from(method: str) -> None:
    with pytest.raises(CalibrationError, match=r"data.label and, .* set data.splits.anomalies"):
        chosen(method, evidence(0, m=0))


@pytest.mark.slow
def test_the_promise_a_budget_is_kept_on_average() -> None:
    """Simulate 2,000 calibrations of 400 rows of traffic, one in fifty an anomaly."""
    rng, share = np.random.default_rng(7), 0.02
    rates = []
    for _ in range(2_000):
        odd = rng.random(400) < share
        scores = rng.gumbel(size=400) + 3 * odd
        found = choose_threshold(
            CalibrationSample.from_scores(scores[~odd], scores[odd]), wish("budget")
        )
        t = found.threshold
        law = stats.gumbel_r()
        rates.append((1 - share) * law.sf(t) + share * law.sf(t - 3))
    assert np.mean(rates) <= 0.02 + 4 * np.std(rates) / math.sqrt(len(rates))
    assert np.mean(rates) > 0.015


@pytest.mark.slow
def test_the_cost_interval_covers_the_cost_of_its_threshold() -> None:
    """200 calibrations: the expected cost on endless traffic lies in the 95% interval in 85% or
    more; a bootstrap over 100 anomalies is no more exact than that."""
    rng, config = np.random.default_rng(8), wish("cost")
    law, covered = stats.gumbel_r(), 0
    for _ in range(200):
        given_ = CalibrationSample.from_scores(rng.gumbel(size=2_000), 3 + rng.gumbel(size=100))
        found = choose_threshold(given_, config)
        good, odd = law.sf(found.threshold), law.sf(found.threshold - 3)
        true = (2_000 * good * 8 + 100 * (odd * 3 + (1 - odd) * 100)) * 1_000 / 2_100
        low, high = found.figures["cost_interval"]
        covered += low <= true <= high
    assert covered >= 170, covered
