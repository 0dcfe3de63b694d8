"""Thresholds chosen by traffic or labels are the best there are, and keep their budget."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import fbeta_score, precision_recall_curve

from anomaly_vae.calibration.conformal import Scores, calibrate
from anomaly_vae.calibration.daily_alerts import DailyTraffic, future_day
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.days import Days
from anomaly_vae.errors import CalibrationError
from anomaly_vae.evaluation.metrics import max_fpr_under_guarantee
from tests.support.calibration_samples import SEEDS, chosen, evidence, wish

SWEEPS = ["budget", "cost", "fbeta", "recall_at_precision"]


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
    precision, recall, at_least = precision_recall_curve(truth, scores, sample_weight=weights)
    above = at_least > given_.normal[0]
    precision, recall = precision[:-1][above], recall[:-1][above]
    each = (1 + beta**2) * precision * recall / (beta**2 * precision + recall).clip(1e-300)
    assert found.figures["fbeta"] == pytest.approx(max(each, default=0))
    flags = scores > found.threshold
    figure = fbeta_score(truth, flags, beta=beta, sample_weight=weights, zero_division=0)
    assert found.figures["fbeta"] == pytest.approx(figure)


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


@pytest.mark.parametrize("method", ["cost", "fbeta", "recall_at_precision"])
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


# ---------------------------------------------------------------- budgets of complete days


def daily(
    seed: int, days: int = 20, per_day: int = 100, entities: int = 0, scale: float = 1.0
) -> CalibrationSample:
    """Rows of complete days, whose entities have a score of their own in common."""
    rng = np.random.default_rng(seed)
    n = days * per_day
    entity = rng.integers(0, entities or n, n).astype(np.int32)
    scores = rng.gumbel(size=n) + rng.gumbel(size=n)[entity]
    index = np.repeat(np.arange(days), per_day)
    traffic = DailyTraffic(
        scores,
        Days(index, np.arange(days), 1, scale),
        entity if entities else None,
        "CUSTOMER_ID" if entities else None,
    )
    return replace(
        CalibrationSample.from_scores(scores, rows_per_day=per_day * scale), traffic=traffic
    )


@pytest.mark.parametrize("entities", [0, 60])
@pytest.mark.parametrize("scale", [1.0, 5.0])
@given(seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_a_budget_per_day_is_used_up_on_complete_days(
    entities: int, scale: float, seed: int
) -> None:
    given_ = daily(seed, entities=entities, scale=scale)
    keys = {"per_1000": None, "per_day": 10 * scale}
    found = chosen("budget", given_, **keys, entity="CUSTOMER_ID" if entities else None)
    assert given_.traffic
    counts = given_.traffic.counts(found.threshold)
    assert 9.4 * scale < counts.mean() < 10 * scale
    assert counts.mean() < found.figures["per_day"] <= 10 * scale
    assert found.figures["per_day_interval"] == list(future_day(counts) or ())
    assert (found.figures["days"], found.figures["days_left_out"]) == (20, 1)
    assert found.figures.get("entity") == ("CUSTOMER_ID" if entities else None)
    assert "on 95 of 100 future days" in found.figures["note"]


def test_entities_need_a_lower_threshold_than_rows_for_as_many_alerts() -> None:
    given_ = daily(3, entities=60)
    assert given_.traffic
    rows = replace(given_, traffic=replace(given_.traffic, entity=None, column=None))
    by_row = chosen("budget", rows, per_1000=None, per_day=10)
    by_entity = chosen("budget", given_, per_1000=None, per_day=10, entity="CUSTOMER_ID")
    assert by_entity.threshold < by_row.threshold


def test_the_stricter_of_a_daily_and_another_budget_counts() -> None:
    given_ = daily(4)
    daily_alone = chosen("budget", given_, per_1000=None, per_day=10).threshold
    assert chosen("budget", given_, per_1000=500, per_day=10).threshold == daily_alone
    share_alone = chosen("budget", given_, per_1000=20).threshold
    assert chosen("budget", given_, per_1000=20, per_day=10).threshold == share_alone > daily_alone


def test_as_many_come_on_future_days_as_asked_and_within_the_interval() -> None:
    """Simulated months with busy and quiet days: asked 20 a day, on average and per day."""
    inside, came = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = rng.poisson(rng.gamma(20, 15, 41))
        day = np.repeat(np.arange(41), rows)
        scores = rng.gumbel(size=len(day))
        calibrating = day < 28
        traffic = DailyTraffic(scores[calibrating], Days(day[calibrating], np.arange(28)))
        given_ = replace(CalibrationSample.from_scores(scores[calibrating]), traffic=traffic)
        given_ = replace(given_, rows_per_day=300)
        found = chosen("budget", given_, per_1000=None, per_day=20)
        later = np.bincount(day[scores > found.threshold], minlength=41)[28:]
        low, high = found.figures["per_day_interval"]
        inside.append(np.mean((later >= low) & (later <= high)))
        came.append(later.mean())
    assert np.mean(came) == pytest.approx(20, abs=0.8)
    assert np.mean(inside) > 0.93


@pytest.mark.parametrize(
    ("keys", "days", "message"),
    [
        ({"per_day": 100}, 20, r"no limit: a day has about 100 rows; lower calibration.per_day"),
        ({"per_day": 0.01}, 20, "0.01 alerts a day take 100 complete calibration days, there are"),
        ({"per_day": 3, "entity": "CUSTOMER_ID"}, 1, "complete days, of which .* has 1, not 2"),
    ],
)
def test_a_daily_budget_that_days_cannot_keep_is_refused(
    keys: dict[str, Any], days: int, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        chosen("budget", daily(0, days), per_1000=None, **keys)


def test_rows_of_less_than_two_days_are_budgeted_by_their_rate_without_an_interval() -> None:
    found = chosen("budget", daily(0, 1), per_1000=None, per_day=10)
    assert found.figures["per_day"] <= 10
    assert "per_day_interval" not in found.figures


def test_a_note_says_when_weekdays_were_not_seen() -> None:
    found = chosen("budget", daily(0, 5), per_1000=None, per_day=10)
    assert "less than a week does not show how weekdays differ" in found.figures["note"]
