"""Spans count back from the newest row, are adjacent, and skip a frozen test split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.config.data import Splits
from anomaly_vae.data.spans import DAY, HOUR, Interval, resolve_spans, young_labels
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION, Rows, assign
from anomaly_vae.errors import DataError

HOURLY = np.arange(0, 60 * DAY, HOUR) + 1
"""Times of rows, one an hour, for 60 days."""


def spans(**changes: Any) -> Splits:
    return Splits.model_validate({"train": "28d", "calibration": "7d", "test": "7d", **changes})


def days(interval: Interval) -> tuple[float, float]:
    return interval.start / DAY, interval.stop / DAY


def test_spans_are_adjacent_and_end_with_the_day_of_the_newest_row() -> None:
    for newest in (59 * DAY, 59.5 * DAY, 60 * DAY - 1):
        found = resolve_spans(np.append(HOURLY[HOURLY < 59 * DAY], newest), spans())
        assert found.newest == newest
        assert days(found.intervals["test"]) == (53, 60)
        assert days(found.intervals["calibration"]) == (46, 53)
        assert days(found.intervals["train"]) == (18, 46)
        assert found.notes == ()


def test_a_row_at_the_first_moment_of_a_day_belongs_to_that_day() -> None:
    found = resolve_spans(np.append(HOURLY, 60 * DAY), spans())
    assert days(found.intervals["test"]) == (54, 61)


def test_spans_in_hours_end_with_the_hour_of_the_newest_row() -> None:
    found = resolve_spans(HOURLY[:-5], spans(calibration="36h", test="12h"))
    assert found.stop == HOURLY[-6] - 1 + HOUR
    assert found.intervals["calibration"].stop - found.intervals["calibration"].start == 36 * HOUR


def test_weeks_are_seven_days() -> None:
    assert resolve_spans(HOURLY, spans(train="4w", test="1w")).intervals == (
        resolve_spans(HOURLY, spans()).intervals
    )


def test_a_gap_lies_before_the_test_split_and_shortens_no_span() -> None:
    found = resolve_spans(HOURLY, spans(gap_days=2))
    assert days(found.intervals["calibration"]) == (44, 51)
    assert days(found.intervals["train"]) == (16, 44)


def test_without_a_training_span_everything_earlier_trains() -> None:
    found = resolve_spans(HOURLY, Splits(calibration="7d", test="7d"))
    assert days(found.intervals["train"]) == (0, 46)


def test_rows_without_a_time_are_in_no_split() -> None:
    time = np.append(HOURLY, np.nan)
    found = resolve_spans(time, spans())
    rows = Rows(np.zeros(len(time), bool), np.zeros(len(time), bool), time)
    assert assign(rows, found.splits).unused == {"outside every split": 18 * 24 + 1}
    with pytest.raises(DataError, match="no row has a time"):
        resolve_spans(np.full(3, np.nan), spans())


def test_a_training_span_that_is_only_partly_there_is_a_warning() -> None:
    (note,) = resolve_spans(HOURLY[HOURLY > 20 * DAY], spans()).notes
    assert "data.splits.train (28d) begins at 1970-01-19" in note
    assert "26 of 28 days are there, 2 are missing" in note


@pytest.mark.parametrize(
    ("time", "split"),
    [
        (np.append(HOURLY, 63.5 * DAY), "test"),
        (HOURLY[(HOURLY < 47 * DAY) | (HOURLY >= 49 * DAY)], "calibration"),
    ],
    ids=["a single row days after the others", "rows are lost"],
)
def test_a_gap_before_the_newest_rows_is_a_warning(time: np.ndarray, split: str) -> None:
    (note,) = resolve_spans(time, spans()).notes
    assert note.startswith(f"Warning: data.splits.{split} is ")
    assert "the newest time is right" in note


def test_gaps_that_repeat_or_are_long_past_are_no_warning() -> None:
    weekdays = HOURLY[HOURLY // DAY % 7 < 5]
    past = HOURLY[(HOURLY < 20 * DAY) | (HOURLY >= 23 * DAY)]
    for time in (weekdays, past):
        assert resolve_spans(time, spans()).notes == ()


@pytest.mark.parametrize(
    ("time", "name", "asked"),
    [
        (HOURLY[HOURLY > 46 * DAY], "train", "1970-01-19 to 1970-02-16"),
        (HOURLY[HOURLY > 53 * DAY], "train", "1970-01-19 to 1970-02-16"),
        (np.append(HOURLY, 4e9), "train", "2096-08-22 to 2096-09-19"),
        (np.append(HOURLY, 253_402_214_400.0), "train", "9999-11-20 to 9999-12-18"),
        (np.append(HOURLY[HOURLY < 46 * DAY], 59 * DAY), "calibration", "1970-02-16 to 1970-02-23"),
    ],
)
def test_a_span_without_rows_is_refused_with_its_dates(
    time: np.ndarray[Any, Any], name: str, asked: str
) -> None:
    with pytest.raises(DataError) as caught:
        resolve_spans(time, spans())
    assert str(caught.value).startswith(f"data.splits.{name} (")
    assert asked in str(caught.value)
    assert "the rows are from 1970-0" in str(caught.value)


def test_spans_skip_the_days_of_a_frozen_test_split() -> None:
    """A week later, the calibration span would be just the frozen week."""
    frozen = HOURLY[(HOURLY >= 46 * DAY) & (HOURLY < 53 * DAY)]
    found = resolve_spans(HOURLY, spans(), frozen)
    assert days(found.intervals["test"]) == (53, 60)
    assert days(found.intervals["calibration"]) == (39, 46)
    assert days(found.intervals["train"]) == (11, 39)
    assert "1970-02-16 to 1970-02-23, the frozen test split" in found.notes[0]


@given(first=st.integers(-10, 62), length=st.integers(1, 20), gap=st.integers(0, 3))
def test_spans_keep_their_lengths_beside_a_frozen_test_split(
    first: int, length: int, gap: int
) -> None:
    time = np.arange(-120 * DAY, 60 * DAY, 6 * HOUR)
    frozen = np.arange(first * DAY, (first + length) * DAY, 6 * HOUR)
    found = resolve_spans(time, spans(gap_days=gap), frozen)
    held = np.isin(time, frozen)
    counts = {name: int((one.holds(time) & ~held).sum()) for name, one in found.intervals.items()}
    assert (counts["train"], counts["calibration"]) == (28 * 4, 7 * 4)
    train, calibration, test = found.intervals.values()
    assert train.stop <= calibration.start
    assert calibration.stop <= test.start - gap * DAY


def test_a_frozen_test_split_of_few_rows_a_day_is_not_skipped() -> None:
    assert resolve_spans(HOURLY, spans(), HOURLY[::3]).intervals == (
        resolve_spans(HOURLY, spans()).intervals
    )


def test_groups_are_divided_by_no_span() -> None:
    group = np.random.default_rng(0).integers(0, 50, len(HOURLY)).astype(np.int32)
    rows = Rows(np.zeros(len(HOURLY), bool), np.zeros(len(HOURLY), bool), HOURLY, group)
    found = assign(rows, resolve_spans(HOURLY, spans()).splits)
    of_split = [set(group[found.rows(split)]) for split in (CALIBRATION, TEST)]
    of_split.append({*group[found.rows(TRAIN)], *group[found.rows(VALIDATION)]})
    assert all(of_split)
    assert not of_split[0] & of_split[1] | of_split[0] & of_split[2] | of_split[1] & of_split[2]


def test_intervals_are_recorded_as_texts_and_shown_with_the_days_that_have_rows() -> None:
    found = resolve_spans(HOURLY[(HOURLY < 55 * DAY) | (HOURLY > 56 * DAY)], spans())
    assert found.to_json()["test"] == ["1970-02-23T00:00:00+00:00", "1970-03-02T00:00:00+00:00"]
    assert found.to_json()["newest"] == "1970-03-01T23:00:01+00:00"
    name, start, stop, rows, with_rows = found.table(HOURLY[HOURLY < 55 * DAY])[-1]
    assert (name, start, stop) == ("test", "1970-02-23", "1970-03-02")
    assert (rows, with_rows) == (48, "2 of 7")


def test_labels_are_young_until_their_rows_have_the_age() -> None:
    time = DAY * np.array([0.0, 3.0, 3.1, 10.0, np.nan])
    assert young_labels(time, "7d").tolist() == [False, False, True, True, True]
    assert young_labels(time, "7d", 17 * DAY).tolist() == [False, False, False, False, True]
    assert young_labels(time, "0d").tolist() == [False, False, False, False, True]
