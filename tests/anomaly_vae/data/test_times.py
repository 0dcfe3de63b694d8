"""Times are read where their text leaves no doubt, and the format of a column is recognised."""

import datetime as dt

import numpy as np
import pytest

from anomaly_vae.data.times import Period, TimeColumn, format_time, parse_time, recognise_times

DAY = 86_400.0
NEW_YEAR = dt.datetime(2024, 1, 1, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-01-01", 0.0),
        ("2024-01-01 00:00:00+00", 0.0),
        ("2024-01-01 00:00:00 UTC", 0.0),
        ("2024-01-01 00:00:00.5 GMT", 0.5),
        ("2024-01-01T09", 9 * 3600.0),
        ("2024-01-01T00:00:00Z", 0.0),
        ("2024-01-01T00:00:00z", 0.0),
        ("2024-01-01T05:30:00+0530", 0.0),
        ("2024-01-01 02:00:00 +0200", 0.0),
        ("2024-01-01T00:00:00.1", 0.1),
        ("2024-01-01T00:00:00,25", 0.25),
        ("2024-01-01T00:00:00.123456789Z", 0.123456),
        (" 2024/01/01 ", 0.0),
        ("2024/1/1 9:05", 9 * 3600 + 300.0),
        ("01.01.2024", 0.0),
        ("1.1.2024 00:14", 840.0),
        ("01.01.2024 00:14:05", 845.0),
        ("2024/01/01 12:30 AM", 1800.0),
        ("2024/01/01 12:30:00 PM", 12.5 * 3600),
    ],
)
def test_text_is_read_where_it_leaves_no_doubt(text: str, seconds: float) -> None:
    assert parse_time(text) - NEW_YEAR == pytest.approx(seconds, abs=1e-5)


@pytest.mark.parametrize(
    "value",
    ["01/02/2024", "32.01.2024", "2024-13-01", "1.2.3", "10.0.0.1", "noon", "13.01.2024 25:00",
     "2024/01/01 13:00 PM", 5, 1.5, True, [], "1530403200"],
)  # fmt: skip
def test_other_values_are_refused_and_shown(value: object) -> None:
    with pytest.raises(ValueError, match="expected an ISO 8601 date or time, got"):
        parse_time(value)


@pytest.mark.parametrize(
    ("value", "time_format", "seconds"),
    [
        ("02/01/1970", "%d/%m/%Y", DAY),
        ("02/01/1970 01:00", "%d/%m/%Y", DAY + 3600),
        ("01/02/1970 1:00:00 PM", "%m/%d/%Y", DAY + 13 * 3600),
        ("02/01/1970 01:00", "%d/%m/%Y %H:%M", DAY + 3600),
        (19700102, "%Y%m%d", DAY),
        (86400, "epoch_s", DAY),
        ("86400000", "epoch_ms", DAY),
        (86400e6, "epoch_us", DAY),
        (86400 * 10**9, "epoch_ns", DAY),
        ("1970-01-02T00:00:00Z", "epoch_ms", DAY),
        ("1970-01-02", "%d/%m/%Y", DAY),
        (dt.datetime(1970, 1, 2), "epoch_ms", DAY),  # noqa: DTZ001
    ],
)
def test_a_format_adds_to_what_is_read(value: object, time_format: str, seconds: float) -> None:
    assert parse_time(value, time_format) == seconds


def test_a_value_that_does_not_fit_its_format_names_the_format() -> None:
    with pytest.raises(ValueError, match=r"expected a time of the form %d/%m/%Y, got '13/13/2024'"):
        parse_time("13/13/2024", "%d/%m/%Y")
    with pytest.raises(ValueError, match=r"expected a time as a number \(epoch_ms\), got true"):
        parse_time(True, "epoch_ms")


@pytest.mark.parametrize("value", [1e17, -1e300, float("nan"), float("inf"), 10**400])
def test_numbers_outside_the_years_1_to_9999_are_no_times(value: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        parse_time(value, "epoch_ms")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2024-01-01", "01.02.2024", "2024/03/01 10:00"], None),
        (["01/02/2024", "13/02/2024"], "%d/%m/%Y"),
        (["01/02/2024 10:00", "01/13/2024 11:30 PM"], "%m/%d/%Y"),
        (["1-2-2024", "1-31-2024"], "%m-%d-%Y"),
        ([1530403200, 1530403201], "epoch_s"),
        ([1530403200.25], "epoch_s"),
        (["1530403200000"], "epoch_ms"),
        ([1530403200000000], "epoch_us"),
        ([1530403200000000000], "epoch_ns"),
        ([20180701, 20181231], "%Y%m%d"),
    ],
)
def test_the_format_of_a_column_is_recognised(values: list[object], expected: str | None) -> None:
    assert recognise_times(values) == TimeColumn(expected)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["01/02/2024", "03/04/2024"], "'01/02/2024' may be %d/%m/%Y or %m/%d/%Y"),
        (["13/01/2024", "01/13/2024"], "expected an ISO 8601 date or time, got '13/01/2024'"),
        (["2024-01-01", "soon"], "expected an ISO 8601 date or time, got 'soon'"),
        ([12, 13], "expected an ISO 8601 date or time, got 12"),
        ([20181301], "expected an ISO 8601 date or time, got 20181301"),
    ],
)
def test_a_column_in_doubt_is_not_read(values: list[object], problem: str) -> None:
    assert recognise_times(values) == TimeColumn(problem=problem)


def test_a_configured_format_decides_doubt_and_needs_no_plausible_year() -> None:
    assert recognise_times(["01/02/2024"], "%m/%d/%Y").format == "%m/%d/%Y"
    assert recognise_times([0, 172_792], "epoch_s").format == "epoch_s"
    assert recognise_times(["2024-01-01"], "%m/%d/%Y").format == "%m/%d/%Y"


def test_a_format_is_said() -> None:
    assert TimeColumn("epoch_ms").note == "read as times of the form epoch_ms"
    assert TimeColumn().note is None


@pytest.mark.parametrize(
    "time_format", ["epoch_s", "epoch_ms", "epoch_ns", "%Y%m%d", "%d/%m/%Y %H"]
)
def test_a_time_is_written_in_the_form_that_is_read(time_format: str) -> None:
    moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    assert parse_time(format_time(moment, time_format), time_format) == NEW_YEAR


# ---------------------------------------------------------------- periods


def period(*times: str) -> Period:
    found = Period.of(np.array([*map(parse_time, times), np.nan]))
    assert found
    return found


@pytest.mark.parametrize(
    ("first", "last", "text", "days"),
    [
        ("2018-07-24T00:00:00.7", "2018-07-30T23:59:59.9", "24 to 30 July 2018", 7.0),
        ("2018-07-24", "2018-07-30", "24 to 30 July 2018", 7.0),
        ("2018-06-28", "2018-07-03", "28 June to 3 July 2018", 6.0),
        ("2018-12-28T12:00", "2019-01-03T12:00", "28 December 2018 to 3 January 2019", 6.0),
        ("2018-07-24T08:00", "2018-07-24T20:00", "24 July 2018", 0.5),
        ("0001-01-01", "9999-12-31", "1 January 1 to 31 December 9999", 3_652_059.0),
    ],
)
def test_a_period_has_dates_and_days(first: str, last: str, text: str, days: float) -> None:
    found = period(last, first)
    assert str(found) == text
    assert found.days == pytest.approx(days, abs=1e-4)
    assert Period.from_json(found.to_json()) == found


@pytest.mark.parametrize("seconds", [None, [np.nan, np.nan], [0.0, 1e15], [-1e15, np.nan], []])
def test_no_time_with_a_date_is_no_period(seconds: list[float] | None) -> None:
    assert Period.of(None if seconds is None else np.array(seconds)) is None
