"""Parse times written as text or as numbers, and recognise their format in a column."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.config.data import EPOCHS
from anomaly_vae.data.splitting import DAY
from anomaly_vae.messages import shown

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
LIKE_A_TIME = r"^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})($|T\d| +\d)"
"""Pattern of text that begins with a date of eight or fewer digits."""
YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?:[T ]+(.*))?")
DAY_FIRST = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:[T ]+(.*))?")
"""Pattern of a date with points, which are written with the day first."""
IN_DOUBT = re.compile(r"\d{1,2}([-/])\d{1,2}\1\d{4}(?:[T ]+(.*))?")
"""Pattern of a date that may have the day or the month first."""
CLOCK = re.compile(
    r"(\d{1,2})(?::(\d{2})(?::(\d{2})(?:[.,](\d+))?)?)?\s*([AaPp][Mm])?\s*"
    r"(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?(?::?\d{2})?)?"
)
"""Pattern of a time of day: hour, minute, second, fraction, half of the day, zone."""
DIGITS = "%Y%m%d"
"""Format of dates that are written as one number, such as 20240131."""
YEARS = (dt.datetime(1980, 1, 1, tzinfo=dt.UTC), dt.datetime(2050, 1, 1, tzinfo=dt.UTC))
"""Range of times in which numbers are recognised as times."""

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
YEAR_1, YEAR_10000 = -62_135_596_800.0, 253_402_300_800.0
"""Range of the times that a calendar can show, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Period:
    """The time from the first to the last of some rows, in whole seconds since 1970.

    >>> period = Period.of(np.array([1532390400.0, np.nan, 1532995199.0]))
    >>> str(period), round(period.days, 2)
    ('24 to 30 July 2018', 7.0)
    >>> Period.from_json(period.to_json()) == period
    True
    """

    first: float
    last: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64] | None) -> Self | None:
        """Return the period of times (N,), NaN if unknown; None if no time has a date."""
        if seconds is None or np.isnan(seconds).all():
            return None
        first, last = (float(np.floor(end(seconds))) for end in (np.nanmin, np.nanmax))
        return cls(first, last) if first >= YEAR_1 and last < YEAR_10000 else None

    @property
    def days(self) -> float:
        """Length in days; times without a time of day count as whole days."""
        is_whole = self.first % DAY == self.last % DAY == 0
        return (self.last - self.first) / DAY + is_whole

    def to_json(self) -> list[str]:
        """Return both ends in ISO 8601, in UTC."""
        return [_moment(end).isoformat() for end in (self.first, self.last)]

    @classmethod
    def from_json(cls, content: Sequence[str]) -> Self:
        """Restore a period from the result of `to_json`."""
        return cls(*(_seconds(dt.datetime.fromisoformat(end)) for end in content))

    def __str__(self) -> str:
        """Return the dates, such as "28 June to 3 July 2018"."""
        first, last = _moment(self.first), _moment(self.last)
        texts = [f"{end.day} {MONTHS[end.month - 1]} {end.year}" for end in (first, last)]
        if texts[0] == texts[1]:
            return texts[0]
        if first.year != last.year:
            return " to ".join(texts)
        same = first.month == last.month
        return f"{first.day if same else texts[0][:-5]} to {texts[1]}"


def _moment(seconds: float) -> dt.datetime:
    return EPOCH + dt.timedelta(seconds=seconds)


def parse_time(value: object, time_format: str | None = None) -> float:
    """Return the seconds since 1970 of a time; times without a zone are read as UTC.

    Args:
        value: a `datetime`; text such as 2024-01-31T09:05, 2024/01/31 9:05 or 31.01.2024 09:05; or
            a value in the given format.
        time_format: a format of `strptime`, or a key of `EPOCHS`; None for no other format.

    Raises:
        ValueError: the value is no such time.

    Example:
        >>> parse_time("1970-01-02 00:00:00+00"), parse_time("02.01.1970 00:00 UTC")
        (86400.0, 86400.0)
        >>> parse_time("01/02/1970 12:30 AM", "%m/%d/%Y"), parse_time(1500, "epoch_ms")
        (88200.0, 1.5)
    """
    if isinstance(value, dt.datetime):
        return _seconds(value)
    if isinstance(value, str) or (time_format and time_format not in EPOCHS and _is_whole(value)):
        text = value.strip() if isinstance(value, str) else f"{value:.0f}"
        for parse in _parsers(time_format):
            with suppress(ValueError, OverflowError):
                return _seconds(parse(text))
    elif time_format in EPOCHS and isinstance(value, int | float) and not isinstance(value, bool):
        return _since_epoch(value, time_format)
    raise ValueError(f"expected {_expected(time_format)}, got {shown(value)}")


def format_time(moment: dt.datetime, time_format: str) -> str | int:
    """Return a time in the form that `parse_time` reads with a format.

    >>> format_time(dt.datetime(1970, 1, 2, tzinfo=dt.UTC), "epoch_ms")
    86400000
    """
    if time_format in EPOCHS:
        return round(_seconds(moment) / EPOCHS[time_format])
    text = moment.strftime(time_format)
    return int(text) if time_format == DIGITS else text


def _is_whole(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and float(value).is_integer()  # type: ignore[arg-type]


def _expected(time_format: str | None) -> str:
    if time_format is None:
        return "an ISO 8601 date or time"
    if time_format in EPOCHS:
        return f"a time as a number ({time_format})"
    return f"a time of the form {time_format}"


def _seconds(moment: dt.datetime | float) -> float:
    if not isinstance(moment, dt.datetime):
        return moment
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (zoned - EPOCH).total_seconds()


@cache
def _parsers(time_format: str | None) -> tuple[Callable[[str], dt.datetime | float], ...]:
    """Return the parsers of texts, first that of the format."""
    others = dt.datetime.fromisoformat, _written
    if not time_format:
        return others
    if time_format in EPOCHS:
        return (lambda text: _since_epoch(_number(text), time_format), *others)
    return (partial(_by_strptime, time_format=time_format), *others)


def _since_epoch(value: float, time_format: str) -> float:
    """Return the seconds since 1970 of a time that is written as a number."""
    if not YEAR_1 <= (seconds := float(value) * EPOCHS[time_format]) < YEAR_10000:
        raise ValueError("the time lies outside the years 1 to 9999")
    return seconds


def _number(text: str) -> float:
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+]?\d+)?", text):
        raise ValueError(text)
    return float(text)


def _by_strptime(text: str, time_format: str) -> dt.datetime:
    """Parse a text; a format of a date alone also accepts a time of day after a space or T."""
    with suppress(ValueError):
        return dt.datetime.strptime(text, time_format)  # noqa: DTZ007  # no zone means UTC
    date, _, clock = text.replace("T", " ", 1).partition(" ")
    day = dt.datetime.strptime(date, time_format)  # noqa: DTZ007
    return _with_clock(day, clock)


def _written(text: str) -> dt.datetime:
    """Parse forms that `fromisoformat` refuses although they leave no doubt."""
    if match := YEAR_FIRST.fullmatch(text):
        year, _, month, day, clock = match.groups()
    elif match := DAY_FIRST.fullmatch(text):
        day, month, year, clock = match.groups()
    else:
        raise ValueError(text)
    date = dt.datetime(int(year), int(month), int(day))  # noqa: DTZ001
    return _with_clock(date, clock or "")


def _with_clock(day: dt.datetime, clock: str) -> dt.datetime:
    """Return a day with a time of day, such as 9:05 PM or 21:05:00.123 +0000."""
    match = CLOCK.fullmatch(clock.strip() or "0")
    if not match:
        raise ValueError(clock)
    hour, minute, second, fraction, half, zone = match.groups()
    hours = int(hour)
    if half:
        if not 1 <= hours <= 12:
            raise ValueError(clock)
        hours = hours % 12 + 12 * (half.lower() == "pm")
    micros = int((fraction or "0")[:6].ljust(6, "0"))
    moment = day.replace(
        hour=hours, minute=int(minute or 0), second=int(second or 0), microsecond=micros
    )
    return moment.replace(tzinfo=_zone(zone)) if zone else moment


def _zone(text: str) -> dt.tzinfo:
    named = "+00" if text.upper() in ("Z", "UTC", "GMT") else text
    zone = dt.time.fromisoformat(f"00:00{named}").tzinfo
    return zone or dt.UTC


# ---------------------------------------------------------------- the format of a column


@dataclass(frozen=True, slots=True)
class TimeColumn:
    """The format of a column of times, and how far it can be read."""

    format: str | None = None
    """Format for `parse_time`; None if it needs none."""
    problem: str | None = None
    """Reason why the column cannot be read as times; None if it can."""

    @property
    def note(self) -> str | None:
        """Note on the format, for the user; None if the texts are ISO 8601."""
        return self.format and f"read as times of the form {self.format}"


def recognise_times(values: Sequence[Any], configured: str | None = None) -> TimeColumn:
    """Recognise the format of times (N,), given as text or numbers, without missing values.

    >>> recognise_times(["31/01/2024", "01/02/2024 10:00"])
    TimeColumn(format='%d/%m/%Y', problem=None)
    >>> recognise_times([1706659200000]).format
    'epoch_ms'
    """
    if configured and _all_parse(values, configured):
        return TimeColumn(configured)
    if isinstance(values[0], str | dt.datetime) and _all_parse(values, None):
        return TimeColumn()
    fitting = [name for name in _candidates(values) if _fits(values, name)]
    if len(fitting) == 1:
        return TimeColumn(fitting[0])
    if fitting:
        return TimeColumn(problem=f"{shown(values[0])} may be {' or '.join(fitting)}")
    return TimeColumn(problem=_first_problem(values, configured))


def _candidates(values: Sequence[Any]) -> list[str]:
    first = values[0]
    text = str(first).strip()
    if match := IN_DOUBT.fullmatch(text):
        return [form.replace("/", match[1]) for form in ("%d/%m/%Y", "%m/%d/%Y")]
    if isinstance(first, bool) or not re.fullmatch(r"\d{8,19}(\.\d+)?", text):
        return []
    return [DIGITS, *EPOCHS]


def _fits(values: Sequence[Any], time_format: str) -> bool:
    """Return whether all values have a format; numbers must also be of plausible years."""
    if "/" in time_format or "-" in time_format:
        return _all_parse(values, time_format)
    return all(_in_range(value, time_format) for value in values)


def _in_range(value: Any, time_format: str) -> bool:
    try:
        seconds = parse_time(value, time_format)
    except ValueError:
        return False
    return bool(_seconds(YEARS[0]) <= seconds < _seconds(YEARS[1]))


def _all_parse(values: Sequence[Any], time_format: str | None) -> bool:
    try:
        for value in values:
            parse_time(value, time_format)
    except ValueError:
        return False
    return True


def _first_problem(values: Sequence[Any], time_format: str | None) -> str:
    for value in values:
        try:
            parse_time(value, time_format)
        except ValueError as error:
            return str(error)
    return f"expected times, got {shown(values[0])}"
