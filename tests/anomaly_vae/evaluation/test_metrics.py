"""Figures on labelled rows equal their definitions."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, calibrate
from anomaly_vae.data.splitting import DAY
from anomaly_vae.evaluation.metrics import (
    MAX_TIME_SLICES,
    Evaluation,
    evaluate,
    max_fpr_under_guarantee,
    rate,
    time_slices,
)
from anomaly_vae.scoring.detector import Detections

MONDAY = 19_723 * DAY
"""2024-01-01"""
PROMISE = calibrate(np.arange(999.0), alpha=0.01)
"""A calibration of 999 scores with alpha 0.01."""


def promise(alpha: float, threshold: float) -> Calibration:
    """Return a calibration with this threshold."""
    return Calibration("conformal", alpha, threshold, np.arange(999.0))


def detections(score: list[float], threshold: float) -> Detections:
    scores = np.array(score)
    return Detections(scores, np.ones(len(scores)), scores > threshold)


def mask(*labels: int) -> NDArray[np.bool_]:
    return np.array(labels, bool)


def test_every_figure_is_its_definition() -> None:
    found = detections([1.0, 5.0, 2.0, 7.0, 6.0, 3.0], threshold=4.5)
    anomaly = mask(0, 0, 0, 1, 1, 1)
    figures = evaluate(found, anomaly, promise(0.1, 4.5))
    assert (figures.rows, figures.anomalies, figures.flagged) == (6, 3, 3)
    assert (figures.alpha, figures.threshold) == (0.1, 4.5)
    assert figures.fpr == pytest.approx(1 / 3)
    assert figures.recall == pytest.approx(2 / 3)
    assert figures.precision == pytest.approx(2 / 3)
    above = [a > n for a in (7.0, 6.0, 3.0) for n in (1.0, 5.0, 2.0)]
    assert figures.auroc == pytest.approx(np.mean(above))
    precision_at_hits = (1 / 1, 2 / 2, 3 / 4)  # ranks 1, 2 and 4 are anomalies
    assert figures.average_precision == pytest.approx(np.mean(precision_at_hits))


def test_without_anomalies_there_is_a_rate_and_no_ranking() -> None:
    figures = evaluate(detections([1, 2, 3], 2.5), mask(0, 0, 0), promise(0.1, 2.5))
    assert figures.fpr == pytest.approx(1 / 3)
    assert figures.auroc is None
    assert figures.average_precision is None
    assert figures.recall is None
    assert figures.precision is None


def test_without_normal_rows_there_is_a_recall_and_no_rate() -> None:
    figures = evaluate(detections([1, 2, 3], 2.5), mask(1, 1, 1), promise(0.1, 2.5))
    assert figures.recall == pytest.approx(1 / 3)
    assert figures.precision == 1
    assert figures.fpr is None
    assert figures.fpr_interval is None
    assert figures.auroc is None


def test_no_flag_means_no_precision() -> None:
    figures = evaluate(detections([1, 2], 5), mask(0, 1), promise(0.1, 5))
    assert figures.precision is None
    assert figures.recall == 0


def tail(n: int, p: float, at_least: int) -> float:
    """Return P(X ≥ at_least) for a binomial X."""
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(at_least, n + 1))


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_the_interval_is_the_exact_binomial_one(counts: tuple[int, int]) -> None:
    """At either end, the observed or a more extreme count has probability 2.5%."""
    n, hits = counts
    found = rate(np.arange(n) < hits)
    assert found is not None
    assert (found.hits, found.total, found.value) == (hits, n, hits / n)
    assert found.low <= found.value <= found.high
    assert found.low == 0 if hits == 0 else tail(n, found.low, hits) == pytest.approx(0.025)
    above = 1 - tail(n, found.high, hits + 1)
    assert found.high == 1 if hits == n else above == pytest.approx(0.025)


def clustered(rng: np.random.Generator, groups: int, size: int, share: float) -> np.ndarray:
    """Return flags (groups * size,) that are nearly equal within groups."""
    inclined = rng.beta(0.3 * share, 0.3 * (1 - share), groups)
    return np.asarray(rng.random((groups, size)) < inclined[:, None]).ravel()


def test_the_interval_of_grouped_rows_holds_the_rate_where_that_of_rows_does_not() -> None:
    """Both intervals cover about 95% of 300 samples of 60 groups of 10 rows."""
    rng, group = np.random.default_rng(0), np.arange(600) // 10
    by_row = by_group = 0
    for _ in range(300):
        flags = clustered(rng, 60, 10, 0.1)
        row, unit = rate(flags), rate(flags, group=group)
        assert row
        assert unit
        by_row += row.low <= 0.1 <= row.high
        by_group += unit.low <= 0.1 <= unit.high
    assert by_row < 200
    assert by_group >= 276


def test_groups_of_one_row_are_rows() -> None:
    flags = np.arange(50) % 7 == 0
    by_group = rate(flags, group=np.arange(50))
    by_row = rate(flags)
    assert by_group
    assert by_row
    assert (by_group.low, by_group.high) == pytest.approx((by_row.low, by_row.high), rel=0.02)


@pytest.mark.parametrize("flagged", [True, False])
def test_where_all_rows_are_alike_the_groups_are_counted(flagged: bool) -> None:
    flags, group = np.full(40, flagged), np.arange(40) // 10
    assert rate(flags, group=group) == replace(
        rate(flags[:4]) or pytest.fail("there are rows"), hits=int(flags.sum()), total=40
    )


def test_the_rate_of_no_rows_is_unknown() -> None:
    assert rate(np.zeros(0, bool)) is None


# ---------------------------------------------------------------- intervals


def sample(seed: int, n: int) -> tuple[Detections, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    anomaly = rng.random(n) < 0.2
    scores = rng.normal(500, 300, n) + 400 * anomaly
    return Detections(scores, PROMISE.p_values(scores), PROMISE.flags(scores)), anomaly


def test_every_figure_lies_in_its_interval_and_the_same_seed_gives_the_same() -> None:
    found, anomaly = sample(0, 300)
    figures = evaluate(found, anomaly, PROMISE, top=20)
    assert figures == evaluate(found, anomaly, PROMISE, top=20)
    assert figures.top == 20
    for name in ("auroc", "average_precision", "fpr", "recall", "precision", "precision_at_top"):
        low, high = getattr(figures, f"{name}_interval")
        assert low < getattr(figures, name) < high


def test_rankings_of_few_groups_are_less_certain() -> None:
    found, anomaly = sample(1, 300)
    by_row = evaluate(found, anomaly, PROMISE)
    doubled = Detections(
        *(np.repeat(x, 10) for x in (found.score, found.p_value, found.is_anomaly))
    )
    group = np.repeat(np.arange(300), 10)
    by_group = evaluate(doubled, np.repeat(anomaly, 10), PROMISE, group=group)
    assert by_group.auroc_interval == pytest.approx(by_row.auroc_interval, abs=0.02)
    assert by_group.fpr_interval == pytest.approx(by_row.fpr_interval, abs=0.002)


def test_the_top_is_no_more_than_there_are_anomalies() -> None:
    found = detections([1.0, 5.0, 2.0, 7.0, 6.0, 3.0], threshold=4.5)
    figures = evaluate(found, mask(0, 0, 0, 1, 1, 1), PROMISE, top=100)
    assert (figures.top, figures.precision_at_top) == (3, pytest.approx(2 / 3))


def test_rows_like_the_calibration_rows_pass_the_test_of_uniformity_and_others_do_not() -> None:
    rng, p_values = np.random.default_rng(0), []
    for _ in range(200):
        promise = calibrate(rng.normal(size=60), 0.05)
        scores = rng.normal(size=80)
        found = Detections(scores, promise.p_values(scores), promise.flags(scores))
        p_values.append(evaluate(found, np.zeros(80, bool), promise).ks_p_value)
        assert p_values[-1] is not None
    assert 0.01 < np.mean(np.array(p_values) <= 0.1) < 0.16
    shifted = Detections(scores + 1, promise.p_values(scores + 1), promise.flags(scores + 1))
    assert (evaluate(shifted, np.zeros(80, bool), promise).ks_p_value or 0) < 0.001


def test_of_each_group_one_row_is_tested_for_uniformity() -> None:
    scores = np.repeat(np.random.default_rng(0).uniform(0, 1_000, 10), 50)
    found = Detections(scores, PROMISE.p_values(scores), PROMISE.flags(scores))
    by_row = evaluate(found, np.zeros(500, bool), PROMISE)
    by_group = evaluate(found, np.zeros(500, bool), PROMISE, group=np.arange(500) // 50)
    assert (by_row.ks_p_value or 0) < 0.001
    assert (by_group.ks_p_value or 0) > 0.05


def test_json_and_back_and_what_older_versions_kept() -> None:
    found, anomaly = sample(2, 200)
    figures = evaluate(found, anomaly, PROMISE)
    content = json.loads(json.dumps(figures.to_json(), allow_nan=False))
    assert Evaluation.from_json({**content, "slices": []}) == figures
    first = (
        "rows", "anomalies", "alpha", "threshold", "auroc", "average_precision", "fpr",
        "fpr_interval", "fpr_limit", "recall", "precision", "flagged", "rejected", "unlabelled",
    )  # fmt: skip
    older = Evaluation.from_json({key: content[key] for key in first})
    assert older.fpr_interval == figures.fpr_interval
    assert older.auroc_interval is older.ks is older.precision_at_top is None


def test_metrics_are_numbers_with_the_ends_of_intervals() -> None:
    found, anomaly = sample(3, 200)
    figures = evaluate(found, anomaly, PROMISE)
    metrics = figures.metrics()
    assert (metrics["auroc_low"], metrics["auroc_high"]) == figures.auroc_interval
    assert metrics["auroc"] == figures.auroc


# ---------------------------------------------------------------- stretches of time


def test_slices_are_days_and_count_normal_rows_only() -> None:
    seconds = MONDAY + np.array([0.0, 0.5, 0.9, 1.0, 1.5, 3.2]) * DAY
    flags, anomaly = mask(1, 0, 1, 0, 0, 1), mask(0, 0, 1, 0, 0, 0)
    slices = time_slices(flags, anomaly, seconds, PROMISE)
    named = [(s.name, s.fpr.hits, s.fpr.total) for s in slices]
    assert named == [("2024-01-01", 1, 2), ("2024-01-02", 0, 2), ("2024-01-04", 1, 1)]


def test_rows_of_unknown_time_are_in_no_slice() -> None:
    seconds = np.array([MONDAY, np.nan])
    (only,) = time_slices(mask(0, 1), mask(0, 0), seconds, PROMISE)
    assert (only.fpr.hits, only.fpr.total) == (0, 1)
    assert time_slices(mask(0), mask(0), np.array([np.nan]), PROMISE) == []
    assert time_slices(mask(1), mask(1), np.array([MONDAY]), PROMISE) == []


def test_many_days_are_grouped_and_say_so() -> None:
    seconds = MONDAY + np.arange(365) * DAY
    slices = time_slices(np.zeros(365, bool), np.zeros(365, bool), seconds, PROMISE)
    assert len(slices) <= MAX_TIME_SLICES
    assert slices[0].name == "2024-01-01 (+7 d)"
    assert sum(s.fpr.total for s in slices) == 365


def test_times_before_1970_have_their_own_days() -> None:
    slices = time_slices(mask(0, 0), mask(0, 0), np.array([-1.0, 1.0]), PROMISE)
    assert [s.name for s in slices] == ["1969-12-31", "1970-01-01"]


def test_a_slice_drifts_when_its_rate_is_above_alpha_beyond_chance() -> None:
    seconds = np.full(200, MONDAY)
    (calm,) = time_slices(np.arange(200) < 4, np.zeros(200, bool), seconds, PROMISE)
    (drifted,) = time_slices(np.arange(200) < 40, np.zeros(200, bool), seconds, PROMISE)
    assert not calm.drifted
    assert drifted.drifted


def test_a_slice_of_few_groups_may_vary_more() -> None:
    """Forty payments of one customer count as one unit."""
    seconds, flags, normal = np.full(200, MONDAY), np.arange(200) < 8, np.zeros(200, bool)
    (by_row,) = time_slices(flags, normal, seconds, PROMISE)
    (by_group,) = time_slices(flags, normal, seconds, PROMISE, group=np.arange(200) // 20)
    assert by_row.drifted
    assert not by_group.drifted
    assert by_group.limit == max_fpr_under_guarantee(PROMISE, 10)


def test_in_few_calm_months_does_any_day_drift() -> None:
    """Separate limits of 95% for each day would report a day in a third of the months."""
    generator, days, rows = np.random.default_rng(0), 28, 300
    seconds, normal = MONDAY + np.arange(days * rows) // rows * DAY, np.zeros(days * rows, bool)
    alarms = 0
    for _ in range(100):
        kept = calibrate(generator.random(999), alpha=0.05)
        flags = generator.random(days * rows) > kept.threshold
        alarms += any(one.drifted for one in time_slices(flags, normal, seconds, kept))
    assert alarms <= 10


# ---------------------------------------------------------------- what chance explains


def kept_tail(k: int, n: int, total: int, at_least: int) -> float:
    """P(flags ≥ at_least) of ``total`` rows, k of n + 1 ranks flagged, by counting orders.

    Of all orders of n calibration and ``total`` test scores: j of the test scores lie above the
    k-th largest calibration score.
    """
    ways = comb(n + total, n)
    exactly = (
        comb(j + k - 1, j) * comb(n - k + total - j, total - j) for j in range(at_least, total + 1)
    )
    return sum(exactly) / ways


@pytest.mark.parametrize(("n", "alpha", "total"), [(99, 0.05, 40), (19, 0.05, 7), (60, 0.2, 100)])
def test_the_highest_kept_rate_counted_by_hand(n: int, alpha: float, total: int) -> None:
    k = int(alpha * (n + 1) + 1e-9)
    hits = round(max_fpr_under_guarantee(calibrate(np.arange(float(n)), alpha), total) * total)
    assert kept_tail(k, n, total, hits + 1) <= 0.025
    assert kept_tail(k, n, total, hits) > 0.025


@pytest.mark.parametrize(
    ("n", "alpha", "total", "confidence"),
    [
        (99, 0.05, 300, 0.95),
        (400, 0.01, 1_000, 0.8),
        pytest.param(99, 0.05, 300, 0.8, marks=pytest.mark.slow),
        pytest.param(400, 0.01, 1_000, 0.95, marks=pytest.mark.slow),
    ],
)
def test_a_kept_promise_is_seldom_above_the_highest_kept_rate(
    n: int, alpha: float, total: int, confidence: float
) -> None:
    """Calibrate and test repeatedly on scores of one distribution."""
    rng, trials, above = np.random.default_rng(0), 2_000, 0
    for _ in range(trials):
        calibration = calibrate(rng.normal(size=n), alpha)
        flags = calibration.flags(rng.normal(size=total))
        above += flags.mean() > max_fpr_under_guarantee(calibration, total, confidence)
    share = (1 - confidence) / 2
    assert above / trials <= share + 3 * np.sqrt(share / trials)
    assert above, "a limit that is never reached would refuse nothing"


def test_another_threshold_is_held_to_the_same_alpha() -> None:
    loose = promise(0.01, threshold=600.0)
    assert max_fpr_under_guarantee(loose, 500) == max_fpr_under_guarantee(PROMISE, 500)


def test_groups_are_the_units_of_the_limit() -> None:
    found, normal = detections([1.0] * 100, 2.0), np.zeros(100, bool)
    by_group = evaluate(found, normal, PROMISE, group=np.arange(100) // 5)
    assert by_group.fpr_limit == max_fpr_under_guarantee(PROMISE, 20)
    assert evaluate(found, normal, PROMISE).fpr_limit == max_fpr_under_guarantee(PROMISE, 100)
