"""Figures on labelled rows against their definitions, counted by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly_vae.calibration import Calibration, calibrate
from anomaly_vae.detector import Detections
from anomaly_vae.evaluation import (
    DAY,
    MOST_SLICES,
    evaluate,
    highest_kept_rate,
    rate,
    time_slices,
)

MONDAY = 19_723 * DAY
"""2024-01-01"""
PROMISE = calibrate(np.arange(999.0), alpha=0.01)
"""An alpha of 0.01, of 999 calibration scores."""


def promise(alpha: float, threshold: float) -> Calibration:
    """Alpha, as if the threshold for it had been this."""
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
    """P(X ≥ at_least) for a binomial X."""
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(at_least, n + 1))


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_the_interval_is_the_exact_binomial_one(counts: tuple[int, int]) -> None:
    """Clopper & Pearson: at either end, what was seen or more extreme has probability 2.5%."""
    n, hits = counts
    found = rate(np.arange(n) < hits)
    assert found is not None
    assert (found.hits, found.total, found.value) == (hits, n, hits / n)
    assert found.low <= found.value <= found.high
    assert found.low == 0 if hits == 0 else tail(n, found.low, hits) == pytest.approx(0.025)
    above = 1 - tail(n, found.high, hits + 1)
    assert found.high == 1 if hits == n else above == pytest.approx(0.025)


def test_the_rate_of_no_rows_is_unknown() -> None:
    assert rate(np.zeros(0, bool)) is None


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
    assert len(slices) <= MOST_SLICES
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
    """Forty payments of one customer are one piece of evidence."""
    seconds, flags, normal = np.full(200, MONDAY), np.arange(200) < 8, np.zeros(200, bool)
    (by_row,) = time_slices(flags, normal, seconds, PROMISE)
    (by_group,) = time_slices(flags, normal, seconds, PROMISE, group=np.arange(200) // 20)
    assert by_row.drifted
    assert not by_group.drifted
    assert by_group.limit == highest_kept_rate(PROMISE, 10)


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
    hits = round(highest_kept_rate(calibrate(np.arange(float(n)), alpha), total) * total)
    assert kept_tail(k, n, total, hits + 1) <= 0.025
    assert kept_tail(k, n, total, hits) > 0.025


@pytest.mark.parametrize(("n", "alpha", "total"), [(99, 0.05, 300), (400, 0.01, 1_000)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_a_kept_promise_is_seldom_above_the_highest_kept_rate(
    n: int, alpha: float, total: int, confidence: float
) -> None:
    """Calibrate and test anew each time, on scores of one distribution."""
    rng, trials, above = np.random.default_rng(0), 2_000, 0
    for _ in range(trials):
        calibration = calibrate(rng.normal(size=n), alpha)
        flags = calibration.flags(rng.normal(size=total))
        above += flags.mean() > highest_kept_rate(calibration, total, confidence)
    share = (1 - confidence) / 2
    assert above / trials <= share + 3 * np.sqrt(share / trials)
    assert above, "a limit that is never reached would refuse nothing"


def test_another_threshold_is_held_to_the_same_alpha() -> None:
    loose = promise(0.01, threshold=600.0)
    assert highest_kept_rate(loose, 500) == highest_kept_rate(PROMISE, 500)


def test_groups_are_the_units_of_the_limit() -> None:
    found, normal = detections([1.0] * 100, 2.0), np.zeros(100, bool)
    assert evaluate(found, normal, PROMISE, units=20).fpr_limit == highest_kept_rate(PROMISE, 20)
    assert evaluate(found, normal, PROMISE).fpr_limit == highest_kept_rate(PROMISE, 100)
