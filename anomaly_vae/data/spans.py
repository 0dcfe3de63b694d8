"""Turn spans of time before the newest row into intervals, and find rows with young labels.

Spans are relative to the newest row and not to the clock, so that the same file gives the same
splits on any day. They end at the end of that row's day (UTC) or, if a span is given in hours, of
its hour, and are half-open. They skip the days of a frozen test split, whose rows may neither train
nor calibrate, and reach further back instead.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.config.base import UNIT_SECONDS, span_seconds
from anomaly_vae.config.data import Splits
from anomaly_vae.data.splitting import DAY
from anomaly_vae.data.times import EPOCH
from anomaly_vae.errors import DataError

Times = NDArray[np.float64]

HOUR = float(UNIT_SECONDS["h"])
"""Length of an hour, in seconds."""
SPLITS = ("train", "calibration", "test")
"""Names of the splits that are given as spans, in order of time."""
LATE_SPLITS = ("calibration", "test")
"""Splits that lose most if rows are missing or the newest time is wrong."""
FROZEN_SHARE = 0.5
"""Share of a day's rows in a frozen test split above which spans skip the day."""
EARLIEST, LATEST = (
    (dt.datetime(*day, tzinfo=dt.UTC) - EPOCH).total_seconds()
    for day in ((1, 1, 1), (9999, 12, 31))
)
"""Range of `datetime`, in seconds since 1970."""


class Interval(NamedTuple):
    """A half-open interval of time, in seconds since 1970."""

    start: float
    stop: float

    def holds(self, time: Times) -> NDArray[np.bool_]:
        """Return a mask (N,) of the times inside."""
        return np.asarray((time >= self.start) & (time < self.stop))

    def __str__(self) -> str:
        return f"{describe_time(self.start)} to {describe_time(self.stop)}"


@dataclass(frozen=True)
class ResolvedSpans:
    """The intervals that spans before the newest row mean for some rows."""

    splits: Splits
    """The configured splits, given as intervals."""
    intervals: Mapping[str, Interval]
    newest: float
    frozen: Interval | None
    """Days of a frozen test split that the spans skip."""
    notes: tuple[str, ...]
    """What the rows lack, for the user."""

    @property
    def stop(self) -> float:
        """End of the last span, in seconds since 1970; every row is earlier."""
        return self.intervals["test"].stop

    def to_json(self) -> dict[str, Any]:
        """Return the time of the newest row and the intervals as texts in ISO 8601."""
        return {
            "newest": iso_time(self.newest),
            **{name: list(map(iso_time, span)) for name, span in self.intervals.items()},
        }

    def table(self, time: Times) -> list[tuple[str, str, str, int, str]]:
        """Return the name, start, end, rows and days with rows of each split.

        Args:
            time: (N,) times of the rows.
        """
        return [
            (
                name,
                describe_time(span.start),
                describe_time(span.stop),
                int(span.holds(time).sum()),
                _days(time[span.holds(time)], span),
            )
            for name, span in self.intervals.items()
        ]


def resolve_spans(time: Times, splits: Splits, frozen: Times | None = None) -> ResolvedSpans:
    """Return the intervals of splits that are given as spans.

    Args:
        time: (N,) times of the rows in seconds since 1970, NaN if unknown.
        splits: the splits.
        frozen: (M,) times of the rows of a frozen test split; None if there is none.

    Raises:
        DataError: a span has no rows.
    """
    known = time[~np.isnan(time)]
    if not len(known):
        raise DataError("data.splits count back from the newest row, but no row has a time")
    given = {"train": splits.train, "calibration": splits.calibration, "test": splits.test}
    unit = HOUR if any(str(span).endswith("h") for span in given.values()) else DAY
    stop = (np.floor(known.max() / unit) + 1) * unit
    held = _frozen_days(known, frozen, unit)
    test = Interval(stop - span_seconds(str(splits.test)), stop)
    calibration = _before(
        test.start - splits.gap_days * DAY, span_seconds(str(splits.calibration)), held
    )
    if splits.train is None:
        oldest = np.floor(known.min() / unit) * unit
        train = _before(calibration.start, max(calibration.start - oldest, unit), None)
    else:
        train = _before(calibration.start, span_seconds(str(splits.train)), held)
    intervals = dict(zip(SPLITS, (train, calibration, test), strict=True))
    for name, interval in intervals.items():
        _refuse_empty(name, given[name], interval, known)
    bounds = {name: (_moment(span.start), _moment(span.stop)) for name, span in intervals.items()}
    return ResolvedSpans(
        splits.model_copy(update=bounds),
        intervals,
        float(known.max()),
        held,
        (
            *_missing(given["train"], train, known.min(), unit),
            *_skipped(held, intervals),
            *_gap(intervals, known),
        ),
    )


def _before(stop: float, seconds: float, held: Interval | None) -> Interval:
    """Return the interval of a length before a moment, without counting the ``held`` one."""
    if held and held.start < stop <= held.stop:
        stop = held.start
    start = stop - seconds
    if held and held.start < stop and start < held.stop:
        start -= held.stop - held.start
    return Interval(float(start), float(stop))


def _frozen_days(known: Times, frozen: Times | None, unit: float) -> Interval | None:
    """Return the period most of whose rows are in a frozen test split; None if there is none."""
    if frozen is None or np.isnan(frozen).all():
        return None
    days, rows = np.unique(np.floor(known / unit), return_counts=True)
    theirs, held = np.unique(np.floor(frozen[~np.isnan(frozen)] / unit), return_counts=True)
    all_rows = dict(zip(days.tolist(), rows.tolist(), strict=True))
    totals = np.array([all_rows.get(day, 0) for day in theirs.tolist()])
    full = theirs[held > FROZEN_SHARE * totals]
    return Interval(full.min() * unit, (full.max() + 1) * unit) if len(full) else None


def _refuse_empty(name: str, span: Any, interval: Interval, known: Times) -> None:
    if interval.holds(known).any():
        return
    asked = f"everything before {describe_time(interval.stop)}" if span is None else str(interval)
    first, last = describe_time(known.min()), describe_time(known.max())
    raise DataError(
        f"data.splits.{name} ({'null' if span is None else span}) is {asked}, where there are no "
        f"rows; the rows are from {first} to {last}; give older rows or shorter spans, and check "
        "that the newest time is right"
    )


def _missing(span: Any, train: Interval, oldest: float, unit: float) -> tuple[str, ...]:
    """Return a note if the rows begin later than the training span; empty if they do not."""
    first = np.floor(oldest / unit) * unit
    if span is None or first <= train.start:
        return ()
    asked, lacking = span_seconds(span) / unit, (first - train.start) / unit
    units = "days" if unit == DAY else "hours"
    return (
        f"Warning: data.splits.train ({span}) begins at {describe_time(train.start)}, but the "
        f"oldest row to train on is of {describe_time(oldest)}: {asked - lacking:g} of "
        f"{asked:g} {units} are there, {lacking:g} are missing",
    )


def _skipped(held: Interval | None, intervals: Mapping[str, Interval]) -> tuple[str, ...]:
    """Return a note if spans skip a frozen test split; empty if they do not."""
    test = intervals["test"]
    if held is None or held.stop <= intervals["train"].start or held.start >= test.start:
        return ()
    return (
        f"the rows of {held}, the frozen test split, neither train nor calibrate; earlier rows "
        "take their place",
    )


def _gap(intervals: Mapping[str, Interval], known: Times) -> tuple[str, ...]:
    """Return a note if the longest gap in days of the data is in, or just before, a late split."""
    days = np.unique(np.floor(known / DAY)) * DAY
    gaps = np.diff(days)
    longest = gaps.max(initial=DAY)
    if longest == DAY or (gaps == longest).sum() > 1:
        return ()
    last = days[1:][gaps.argmax()]
    names = (name for name in LATE_SPLITS if intervals[name].start <= last < intervals[name].stop)
    return tuple(
        f"Warning: data.splits.{name} is {intervals[name]}, but there are no rows from "
        f"{Interval(last - longest + DAY, last)}, longer than anywhere else; check that no rows "
        "are lost and that the newest time is right, from which spans are counted back"
        for name in names
    )


def _days(time: Times, span: Interval) -> str:
    """Return how many days of a span have rows, such as ``6 of 7``."""
    days = np.ceil(span.stop / DAY) - np.floor(span.start / DAY)
    return f"{len(np.unique(np.floor(time / DAY)))} of {days:.0f}"


def _moment(seconds: float) -> dt.datetime:
    return EPOCH + dt.timedelta(seconds=min(max(seconds, EARLIEST), LATEST))


def iso_time(seconds: float) -> str:
    """Return a time in seconds since 1970 as text in ISO 8601.

    >>> iso_time(86_400.0)
    '1970-01-02T00:00:00+00:00'
    """
    return _moment(seconds).isoformat()


def describe_time(seconds: float) -> str:
    """Return a time in seconds since 1970 for messages: the day, and the time unless midnight.

    >>> describe_time(86_400.0), describe_time(129_600.0)
    ('1970-01-02', '1970-01-02 12:00:00')
    """
    moment = _moment(seconds)
    return f"{moment:%Y-%m-%d}" if seconds % DAY == 0 else f"{moment:%Y-%m-%d %H:%M:%S}"


def young_labels(time: Times, delay: str, newest: float | None = None) -> NDArray[np.bool_]:
    """Return a mask (N,) of the rows whose labels may still change, as they are too young.

    A row of unknown age counts as young.

    Args:
        time: (N,) times in seconds since 1970, NaN if unknown.
        delay: the age from which labels are final, such as ``7d``.
        newest: the time from which ages are counted; None for the latest of ``time``.

    >>> import numpy as np
    >>> young_labels(86_400.0 * np.array([0.0, 6.0, 7.0, np.nan]), "1d").tolist()
    [False, False, True, True]
    """
    latest = np.nanmax(time, initial=-np.inf) if newest is None else newest
    return ~np.asarray(time <= latest - span_seconds(delay))
