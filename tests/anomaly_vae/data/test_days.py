"""A day counts only if all of it is there."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from anomaly_vae.data.days import Days, Floats, complete_days
from anomaly_vae.data.splitting import DAY

HOUR = 3600.0


def around_the_clock(start: float, stop: float, per_day: int = 480, seed: int = 0) -> Floats:
    """Times between two moments, in days since 1970."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(start * DAY, stop * DAY, round(per_day * (stop - start))))


def everything(seconds: Floats) -> np.ndarray:
    return np.ones(len(seconds), bool)


@pytest.mark.parametrize(
    ("start", "stop", "dates"),
    [
        (17_000, 17_010, range(17_000, 17_010)),
        (17_000.75, 17_010, range(17_001, 17_010)),
        (17_000, 17_009.4, range(17_000, 17_009)),
        (17_000.9, 17_003.1, range(17_001, 17_003)),
        (17_000.75, 17_001.5, ()),
        (17_000.25, 17_000.75, ()),
    ],
)
def test_a_day_that_the_data_begin_or_end_within_does_not_count(
    start: float, stop: float, dates: range
) -> None:
    seconds = around_the_clock(start, stop)
    found = complete_days(seconds, everything(seconds))
    assert found.dates.tolist() == list(dates)
    assert found.left_out == len(np.unique(seconds // DAY)) - len(dates)
    assert (found.index >= 0).sum() == np.isin(seconds // DAY, list(dates)).sum()


@pytest.mark.parametrize("seed", range(5))
def test_few_rows_and_opening_hours_cut_no_day_off(seed: int) -> None:
    """A shop opens from 9 to 17; another has twenty rows a day, at any time."""
    days = np.arange(17_000, 17_020)
    rng = np.random.default_rng(seed)
    shop = np.concatenate([day * DAY + rng.uniform(9, 17, 60) * HOUR for day in days])
    small = around_the_clock(17_000, 17_020, per_day=20, seed=seed)
    for seconds in (shop, small):
        assert len(complete_days(seconds, everything(seconds))) >= 19
    opened = shop[shop > 17_000 * DAY + 13 * HOUR]
    assert complete_days(opened, everything(opened)).dates[0] == 17_001


def test_a_day_of_which_another_split_has_a_part_does_not_count() -> None:
    seconds = around_the_clock(17_000, 17_010)
    inside = (seconds >= 17_002.4 * DAY) & (seconds < 17_007.9 * DAY)
    assert complete_days(seconds, inside).dates.tolist() == [17_003, 17_004, 17_005, 17_006]
    elsewhere = inside & (seconds // DAY != 17_004)
    found = complete_days(seconds, elsewhere)
    assert found.dates.tolist() == [17_003, 17_005, 17_006]
    assert found.left_out == 2
    assert (found.index[~elsewhere] == -1).all()


def test_days_without_rows_do_not_count() -> None:
    seconds = np.concatenate([around_the_clock(17_000, 17_003), around_the_clock(17_005, 17_008)])
    found = complete_days(seconds, everything(seconds))
    assert found.dates.tolist() == [17_000, 17_001, 17_002, 17_005, 17_006, 17_007]
    assert found.left_out == 0


def test_rows_of_some_customers_represent_those_of_all() -> None:
    seconds = around_the_clock(17_000, 17_010)
    customer = np.arange(len(seconds)) % 5
    found = complete_days(seconds, customer == 0, population=customer == 0)
    assert (len(found), found.scale) == (10, pytest.approx(5))


def test_unknown_times_belong_to_no_day() -> None:
    seconds = around_the_clock(17_000, 17_004)
    seconds[::7] = np.nan
    found = complete_days(seconds, everything(seconds))
    assert (found.index[::7] == -1).all()
    assert len(found) == 4
    nothing = complete_days(np.full(3, np.nan), np.ones(3, bool))
    assert (len(nothing), nothing.counts(np.ones(3, bool)).tolist()) == (0, [])


def test_days_are_those_of_the_time_zone() -> None:
    """Berlin changed to summer time on 31 March 2024; that day has 23 hours."""
    zone = ZoneInfo("Europe/Berlin")
    midnights = [dt.datetime(2024, 3, day, tzinfo=zone).timestamp() for day in (29, 30, 31)]
    end = dt.datetime(2024, 4, 1, tzinfo=zone).timestamp()
    seconds = np.arange(midnights[0], end, 600.0)
    found = complete_days(seconds, everything(seconds), zone="Europe/Berlin")
    assert [str(date) for date in found.dates.astype("datetime64[D]")] == [
        "2024-03-29", "2024-03-30", "2024-03-31"
    ]  # fmt: skip
    assert found.counts(everything(seconds)).tolist() == [144, 144, 138]
    in_utc = complete_days(seconds, everything(seconds))
    assert [str(date) for date in in_utc.dates.astype("datetime64[D]")] == [
        "2024-03-29", "2024-03-30"
    ]  # fmt: skip


def test_a_time_zone_holds_for_times_of_all_years() -> None:
    seconds = np.array([-6.2e10, 0.0, 2.5e11])
    assert len(complete_days(seconds, everything(seconds), zone="America/New_York").index) == 3


def test_an_entity_counts_once_a_day() -> None:
    days = Days(np.array([0, 0, 0, 1, 1, -1]), np.array([17_000, 17_001]))
    flags, entity = np.ones(6, bool), np.array([3, 3, 8, 3, 3, 4], np.int32)
    assert days.counts(flags).tolist() == [3, 2]
    assert days.counts(flags, entity).tolist() == [2, 1]
    assert days.counts(~flags, entity).tolist() == [0, 0]
    assert days.sums(np.array([1.0, 2, 3, 4, 5, 6])).tolist() == [6, 9]
    assert days.take(entity == 3).index.tolist() == [0, 0, 1, 1]
