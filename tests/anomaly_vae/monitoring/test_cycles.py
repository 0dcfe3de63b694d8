"""What is learned about times: expected shares by hour and weekday, and the variation of days."""

import numpy as np
import pytest

from anomaly_vae.data.splitting import DAY
from anomaly_vae.monitoring.cycles import (
    HOURS,
    KINDS,
    MAX_AGE,
    USUAL_AGE,
    WEEK_CELLS,
    WEEKDAYS,
    Cycle,
    Timeline,
    describe_span,
    fit_cycle,
    week_cells,
)
from anomaly_vae.monitoring.martingale import log10_martingales_of_columns

MONDAY = 4 * DAY
"""1970-01-05, in seconds."""
BINS = np.array([0.1, 0.3, 0.6])


def times(days, per_day, rng):
    """Draw sorted times, uniform within each of the days."""
    return np.sort(MONDAY + rng.uniform(0, DAY, (days, per_day)).ravel() + DAY * np.repeat(
        np.arange(days), per_day
    ))  # fmt: skip


def drawn(shares, rng):
    """Draw a bin from each row (B,) of shares (N, B)."""
    return (rng.random((len(shares), 1)) > np.cumsum(shares, axis=1)[:, :-1]).sum(axis=1)


def fitted(seconds, bins, is_read=True):
    return fit_cycle(Timeline("at", seconds, is_read), bins[:, None], [3], 250)


def night_and_day(seconds):
    """Return shares (N, 3) that are turned round at night."""
    night = (seconds % DAY < DAY / 3)[:, None]
    return np.where(night, BINS[::-1], BINS)


def test_the_time_of_the_week():
    cells = week_cells(np.array([MONDAY, MONDAY - 1, MONDAY + 3 * DAY + 7260, np.nan, 1e12]))
    assert cells[:4].tolist() == [0, 23 * WEEKDAYS + 6, 2 * WEEKDAYS + 3, WEEK_CELLS - 1]
    assert WEEK_CELLS == HOURS * WEEKDAYS
    assert 0 <= cells[4] < WEEK_CELLS


def test_shares_follow_the_hour():
    rng = np.random.default_rng(0)
    seconds = times(14, 1000, rng)
    shares = fitted(seconds, drawn(night_and_day(seconds), rng)).shares([3])
    week = shares.reshape(HOURS, WEEKDAYS, 3)
    np.testing.assert_allclose(week[2, 1], BINS[::-1], atol=0.05)
    np.testing.assert_allclose(week[12, 5], BINS, atol=0.05)
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_shares_follow_the_weekday():
    rng = np.random.default_rng(1)
    seconds = times(14, 1000, rng)
    weekend = (seconds - MONDAY) % (7 * DAY) >= 5 * DAY
    shares = np.where(weekend[:, None], BINS[::-1], BINS)
    week = fitted(seconds, drawn(shares, rng)).shares([3]).reshape(HOURS, WEEKDAYS, 3)
    np.testing.assert_allclose(week[8, 6], BINS[::-1], atol=0.05)
    np.testing.assert_allclose(week[8, 2], BINS, atol=0.05)


def test_hours_and_weekdays_are_shrunk_as_much_as_fits_each():
    """Three values in a hundred are rare by day and frequent at night; weekdays do not differ."""
    rng = np.random.default_rng(8)
    seconds = times(14, 400, rng)
    rare = np.where(seconds % DAY < DAY / 3, 0.12, 0.01)[:, None]
    shares = np.hstack([rare, (1 - rare) / 2, (1 - rare) / 2])
    cycle = fitted(seconds, drawn(shares, rng))
    week = cycle.shares([3]).reshape(HOURS, WEEKDAYS, 3)
    assert week[:8, :, 0].mean() == pytest.approx(0.12, abs=0.02)
    np.testing.assert_allclose(week[2, :, 0], week[2, 0, 0], rtol=0.1)
    assert cycle.priors[0, 0] < cycle.priors[1, 0]


def test_an_unknown_time_has_the_shares_of_all_rows():
    rng = np.random.default_rng(2)
    seconds = times(14, 1000, rng)
    bins = drawn(night_and_day(seconds), rng)
    shares = fitted(seconds, bins).shares([3])[WEEK_CELLS - 1]
    np.testing.assert_allclose(shares, np.bincount(bins) / len(bins), atol=0.01)


def concentration(cycle, kind=0, age=0.0):
    """Return the concentration of the only stream."""
    (found,) = cycle.concentrations(age)[kind]
    return found


@pytest.mark.parametrize("true", [30.0, 300.0])
def test_the_concentration_of_days_is_found(true):
    rng = np.random.default_rng(3)
    found = []
    for _ in range(8):
        seconds = times(28, 500, rng)
        days = rng.dirichlet(true * BINS, size=28)
        found.append(concentration(fitted(seconds, drawn(np.repeat(days, 500, axis=0), rng))))
    assert true / 2 < np.median(found) < true * 1.3


def test_independent_rows_have_a_large_concentration():
    rng = np.random.default_rng(4)
    seconds = times(14, 1000, rng)
    assert concentration(fitted(seconds, drawn(night_and_day(seconds), rng))) > 1000


def test_night_and_day_count_as_variation_if_the_model_reads_no_time():
    rng = np.random.default_rng(5)
    seconds = times(14, 1000, rng)
    bins = drawn(night_and_day(seconds), rng)
    assert concentration(fitted(seconds, bins, is_read=False)) < 50


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(6)
    seconds = times(14, 200, rng)
    bins, order = drawn(night_and_day(seconds), rng), rng.permutation(len(seconds))
    ordered, shuffled = fitted(seconds, bins), fitted(seconds[order], bins[order])
    np.testing.assert_array_equal(ordered.hours, shuffled.hours)
    assert concentration(ordered) == concentration(shuffled)


def test_it_comes_back_from_its_tensors():
    rng = np.random.default_rng(7)
    seconds = times(5, 100, rng)
    cycle = fitted(seconds, drawn(night_and_day(seconds), rng))
    again = Cycle.from_tensors("at", cycle.tensors())
    np.testing.assert_array_equal(again.shares([3]), cycle.shares([3]))
    np.testing.assert_array_equal(again.concentrations(9), cycle.concentrations(9))
    assert again.since == cycle.since
    with pytest.raises(KeyError):
        Cycle.from_tensors("at", {})


def test_a_bundle_of_an_earlier_version_has_one_concentration_at_every_age():
    rng = np.random.default_rng(7)
    seconds = times(5, 100, rng)
    tensors = fitted(seconds, drawn(night_and_day(seconds), rng)).tensors()
    del tensors["cycle/dispersions"], tensors["cycle/since"]
    earlier = Cycle.from_tensors("at", {**tensors, "cycle/concentrations": np.array([99.0])})
    for age in (0, 900):
        np.testing.assert_allclose(earlier.concentrations(age), 99, rtol=1e-9)


def test_ages_are_days_since_calibration():
    seconds = times(14, 10, np.random.default_rng(8))
    cycle = fitted(seconds, np.zeros(len(seconds), np.int64))
    later = seconds.mean() + DAY * np.array([-9, 10, 100, 1e6, np.nan])
    assert cycle.ages(later).tolist() == [0, 5, 95, MAX_AGE, USUAL_AGE]


def test_the_score_of_an_end_may_vary_further_than_the_shares():
    """On each day, another part of the rows is at the upper end; the other bins vary by chance."""
    rng = np.random.default_rng(9)
    seconds = times(28, 500, rng)
    upper = rng.uniform(0.05, 0.35, 28)
    shares = np.column_stack([*[(1 - upper) / 5] * 5, upper, 0 * upper])
    bins = drawn(np.repeat(shares, 500, axis=0), rng)
    timeline = Timeline("at", seconds, is_read=True)
    cycle = fit_cycle(timeline, bins[:, None], [7], 500, trends=True)
    assert concentration(cycle, kind=2) < concentration(cycle) / 1.5


def test_a_column_that_is_constant_on_each_day_has_a_concentration():
    """A flag of weekends, on days of which only one is on a weekend: the others tell nothing."""
    seconds = times(3, 200, np.random.default_rng(0)) - 2 * DAY
    cycle = fitted(seconds, np.where(seconds < MONDAY - DAY, 2, 0))
    for rows in (1, 100):
        counts = np.bincount(week_cells(np.full(rows, MONDAY)), minlength=WEEK_CELLS)
        ((total,),) = cycle.totals(counts[None], np.zeros(1), [3])[0].T
        assert 0 < total < 2


@pytest.mark.parametrize(
    ("days", "is_read", "told"),
    [
        (2, True, "fewer than 3"),
        (5, True, "cannot tell what is usual on Sat, Sun from a shift; give calibration 14 days"),
        (9, True, "how weekdays differ is known from one or two days each; give calibration 14"),
        (14, True, "same hour and weekday"),
        (14, False, "the model does not read it"),
    ],
)
def test_what_can_be_checked_is_said(days, is_read, told):
    seconds = MONDAY + np.linspace(0, days * DAY - 1, 50)
    assert told in describe_span(Timeline("at", seconds, is_read))


def test_rows_of_a_window_that_are_all_alike_are_a_small_urn():
    """A column that the day decides, such as that of weekends, and few rows of each hour."""
    widths = (2,)
    cycle = Cycle(
        "at", np.ones((HOURS, 2), np.int64), np.ones((WEEKDAYS, 2), np.int64),
        dispersions=np.tile((1 - 1e-6, 0, 0), (KINDS, 1, 1)), within_hours=1e-6 * np.ones(1),
        priors=0.5 * np.ones((2, 1)),
    )  # fmt: skip
    times = np.zeros((1, WEEK_CELLS), np.int64)
    times[0, 0] = 100
    total = cycle.totals(times, np.zeros(1), widths)[0]
    assert 0 < total[0, 0] < 1
    urns = total[..., None] * np.array([0.3, 0.7])
    found = log10_martingales_of_columns(np.array([[[0, 100]]]), urns)
    assert np.isfinite(found).all()
