"""Another alpha comes to what a calibration at that alpha would have come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomaly_vae.calibration.conformal import Calibration, calibrate
from anomaly_vae.calibration.daily_alerts import future_day, future_share, future_sum
from anomaly_vae.calibration.operating_points import expected_cost
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config.calibration import CalibrationConfig, CostConfig
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.days import Days
from anomaly_vae.evaluation.what_if import (
    ALPHAS,
    Observed,
    calibrations,
    flags_at,
    smallest_alpha,
    with_alpha,
    without_rows,
)
from anomaly_vae.scoring.detector import Detections

RNG = np.random.default_rng(0)
SCORES = RNG.gumbel(size=999)
N = 4_000
ANOMALY = RNG.random(N) < 0.05
ROWS = RNG.gumbel(size=N) + 4 * ANOMALY
DAY = np.arange(N) * 20 // N
OWN = calibrate(SCORES, 0.03)


def decided(calibration: Calibration, group: Any = None) -> Detections:
    return Detections(ROWS, calibration.p_values(ROWS), calibration.flags(ROWS), group)


def observed(**fields: Any) -> Observed:
    return Observed(decided(OWN), ANOMALY, np.ones(N, bool), **fields)


@pytest.mark.parametrize("alpha", [0.001, 0.0125, 0.03, 0.2])
def test_the_threshold_is_that_of_a_calibration_at_that_alpha(alpha: float) -> None:
    assert with_alpha(OWN, alpha).threshold == calibrate(SCORES, alpha).threshold


def test_weighted_rows_keep_their_weights() -> None:
    sample = CalibrationSample.from_scores(SCORES, weights=RNG.uniform(1, 2, len(SCORES)))
    own, other = (choose_threshold(sample, CalibrationConfig(alpha=a)) for a in (0.05, 0.01))
    assert with_alpha(own, 0.01).threshold == other.threshold
    assert smallest_alpha(own) > 1 / 1_000


def test_a_group_too_small_for_an_alpha_has_the_threshold_of_all_rows() -> None:
    codes = (np.arange(999) % 10 == 0).astype(np.int64)
    levels = Levels(codes, ("big", "small"))
    sample = CalibrationSample.from_scores(SCORES + 2 * codes, levels=levels)
    own, other = (
        choose_threshold(sample, CalibrationConfig(alpha=a, group_by="g")) for a in (0.05, 0.005)
    )
    group = np.where(np.arange(N) % 2 == 0, "small", "big").astype(object)
    assert own.groups
    assert other.groups
    assert set(own.groups.by_level) == {"big", "small"} > set(other.groups.by_level)
    tried = flags_at(decided(own, group), with_alpha(own, 0.005))
    big = other.groups.by_level["big"].flags(ROWS)
    assert np.array_equal(tried, np.where(group == "big", big, other.flags(ROWS)))


def test_no_alpha_is_tried_that_the_rows_do_not_resolve() -> None:
    tried = list(calibrations(OWN, ALPHAS))
    assert [one.alpha for one in tried] == [0.03, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
    assert tried[0] is OWN
    assert smallest_alpha(OWN) == 1 / 1_000
    at_own = list(calibrations(OWN, (0.03, 0.1)))
    assert [one.alpha for one in at_own] == [0.03, 0.1]


def test_rates_are_those_of_the_flags() -> None:
    other = with_alpha(OWN, 0.01)
    found, flags = observed().at(other, current=False), other.threshold < ROWS
    assert found.fpr == pytest.approx(flags[~ANOMALY].mean())
    assert found.recall == pytest.approx(flags[ANOMALY].mean())
    assert found.precision == pytest.approx(ANOMALY[flags].mean())
    assert found.alerts_per_1000 == pytest.approx(1_000 * flags.mean())
    for value, interval in (
        (found.fpr, found.fpr_interval),
        (found.recall, found.recall_interval),
        (found.precision, found.precision_interval),
        (found.alerts_per_1000, found.alerts_per_1000_interval),
    ):
        assert value is not None
        assert interval
        assert interval[0] < value < interval[1]
    assert (found.alerts_per_day, found.recall_day_interval, found.cost_per_1000) == (None,) * 3


def test_days_and_customers_are_counted_with_intervals_of_future_days() -> None:
    days = Days(DAY, np.arange(20))
    customer = RNG.integers(0, 50, N).astype(np.int32)
    found = observed(days=days, entity=customer).at(OWN, current=True)
    flags = OWN.threshold < ROWS
    rows = np.bincount(DAY[flags], minlength=20)
    customers = [len(np.unique(customer[flags & (day == DAY)])) for day in range(20)]
    assert (found.alerts_per_day, found.entities_per_day) == (rows.mean(), np.mean(customers))
    assert found.alerts_per_day_interval == future_day(rows)
    assert found.entities_per_day_interval == future_day(customers)
    hits = np.bincount(DAY[flags & ANOMALY], minlength=20)
    assert found.precision_day_interval == future_share(hits, rows)
    assert observed(days=days).alerts(OWN).tolist() == rows.tolist()
    assert observed(days=days, entity=customer).alerts(OWN).tolist() == customers


def test_rows_that_resemble_each_other_widen_intervals() -> None:
    alone = observed().at(OWN, current=True).precision_interval
    units = (np.arange(N), np.argsort(np.argsort(ROWS)) // 400)
    together = observed(clusters=units).at(OWN, current=True).precision_interval
    assert alone
    assert together
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_unlabelled_rows_raise_alerts_but_no_rate() -> None:
    labelled = np.arange(N) % 2 == 0
    rows = Observed(decided(OWN), ANOMALY & labelled, labelled)
    found, flags = rows.at(OWN, current=True), OWN.threshold < ROWS
    assert found.alerts_per_1000 == pytest.approx(1_000 * flags.mean())
    assert found.precision == pytest.approx(ANOMALY[flags & labelled].mean())


def test_without_labels_no_rate_is_known() -> None:
    found = Observed(decided(OWN), np.zeros(N, bool), np.zeros(N, bool)).at(OWN, current=True)
    assert found.alerts_per_1000
    assert (found.fpr, found.precision, found.recall, found.cost_per_1000) == (None,) * 4


@pytest.mark.parametrize("sized", [False, True])
def test_costs_are_counted_as_the_method_cost_counts_them(sized: bool) -> None:
    costs, amounts = CostConfig(missed=9, review=2, blocked=1), RNG.exponential(size=N)
    days = Days(DAY, np.arange(20))
    fields = {"costs": costs, "amounts": amounts if sized else None}
    found = observed(days=days, **fields).at(OWN, current=True)
    sample = CalibrationSample.from_scores(
        ROWS[~ANOMALY], ROWS[ANOMALY], amounts[ANOMALY] if sized else ()
    )
    expected = expected_cost(sample, np.array([OWN.threshold]), costs)[0]
    assert found.cost_per_1000 == pytest.approx(expected)
    assert found.cost_per_day == pytest.approx(expected * N / 20 / 1_000)
    assert found.cost_per_day_interval
    low, high = found.cost_per_day_interval
    assert low < found.cost_per_day < high
    assert future_sum([1.0, 2.0])


def test_without_rows_the_calibration_rows_tell_the_share_of_flags() -> None:
    """The interval holds for 1,000 new rows, whatever the luck of the calibration sample."""
    missed, trials = 0, 400
    rng = np.random.default_rng(1)
    for _ in range(trials):
        found = without_rows(calibrate(rng.gumbel(size=300), 0.05), True, None)
        assert found.alerts_per_1000 == pytest.approx(1_000 * 15 / 301)
        assert found.alerts_per_1000_interval
        low, high = found.alerts_per_1000_interval
        threshold = np.sort(rng.gumbel(size=300))[-15]
        alerts = (rng.gumbel(size=1_000) > threshold).sum()
        missed += not low <= alerts <= high
    assert missed / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_without_rows_the_test_figures_are_those_of_the_own_threshold() -> None:
    evaluation = {
        "recall": 0.4, "recall_interval": [0.3, 0.5], "fpr": 0.02,
        "p_values": [{"level": 0.01, "share": 0.013}],
    }  # fmt: skip
    own, other = (
        without_rows(OWN, True, evaluation),
        without_rows(with_alpha(OWN, 0.01), False, evaluation),
    )
    assert (own.recall, own.recall_interval, own.fpr) == (0.4, (0.3, 0.5), 0.02)
    assert (other.recall, other.fpr) == (None, 0.013)
    assert own.to_json()["recall_interval"] == [0.3, 0.5]


def test_weights_leave_the_interval_of_new_rows_unknown() -> None:
    sample = CalibrationSample.from_scores(SCORES, weights=RNG.uniform(1, 2, len(SCORES)))
    found = without_rows(choose_threshold(sample, CalibrationConfig(alpha=0.05)), True, None)
    assert found.alerts_per_1000 == pytest.approx(50)
    assert found.alerts_per_1000_interval is None
