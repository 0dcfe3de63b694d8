"""Find the complete calendar days of a period, and count what happens on each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.splitting import DAY

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

QUARTER = 900.0
"""Length of a quarter of an hour, in seconds; time zones change their offset at its multiples."""
FAR_TIMES = (-6e10, 2.5e11)
"""Times in seconds since 1970 (the years 68 and 9892) beyond which offsets are those there."""
MIN_COVERAGE = 0.95
"""Minimum share of the rows of a complete day that are in the period."""
MAX_LOST = 0.01
"""Maximum share of a day's usual rows that may lie before the first or after the last row."""
CHANCE = 0.05
"""Probability below which chance does not explain that no row came before or after."""


@dataclass(frozen=True, eq=False)
class Days:
    """The complete days of a period, to which N rows belong.

    >>> days = Days(np.array([0, 0, 1, -1]), np.array([17_000, 17_001]), left_out=1)
    >>> days.counts(np.array([True, True, False, True])).tolist()
    [2, 0]
    >>> days.counts(np.array([True, True, False, True]), np.array([7, 7, 7, 7])).tolist()
    [1, 0]
    """

    index: Integers
    """Position (N,) of each row's day in ``dates``; -1 for rows outside the complete days."""
    dates: Integers
    """Complete days (D,) in ascending order, as days since 1970."""
    left_out: int = 0
    """Number of days with rows that are not complete."""
    scale: float = 1.0
    """Number of rows of traffic that each row represents."""

    def __len__(self) -> int:
        return len(self.dates)

    def take(self, rows: Mask) -> Days:
        """Return the days with some of their rows, those in a mask (N,)."""
        return replace(self, index=self.index[rows])

    def counts(self, rows: Mask, entity: NDArray[np.int32] | None = None) -> Integers:
        """Return the number (D,) of rows in a mask (N,), or of their entities, on each day.

        Args:
            rows: (N,) rows to count.
            entity: (N,) entity of each row, such as a customer; each counts once a day.
        """
        chosen = np.flatnonzero(rows & (self.index >= 0))
        day = self.index[chosen]
        if entity is not None:
            width = int(entity.max(initial=0)) + 1
            day = np.unique(day * width + entity[chosen]) // width
        return np.bincount(day, minlength=len(self))

    def sums(self, values: Floats) -> Floats:
        """Return the sum (D,) of values (N,) on each day."""
        rows = np.flatnonzero(self.index >= 0)
        sums = np.bincount(self.index[rows], values[rows], minlength=len(self))
        return np.asarray(sums, np.float64)


def zone_of_days(config: Mapping[str, Any]) -> str | None:
    """Return the time zone of the days of a recorded configuration; None for UTC.

    Days are those of the budget (`calibration.time_zone`), else those of the data
    (`data.timezone`), so that alerts are ranked and counted on the days that they were planned for.

    >>> data = {"timezone": "Europe/Berlin"}
    >>> zone_of_days({"data": data, "calibration": {"time_zone": None}})
    'Europe/Berlin'
    >>> zone_of_days({"data": data, "calibration": {"time_zone": "Asia/Kolkata"}})
    'Asia/Kolkata'
    """
    zone: str | None = config["calibration"].get("time_zone") or config["data"].get("timezone")
    return zone


def complete_days(
    seconds: Floats, inside: Mask, population: Mask | None = None, zone: str | None = None
) -> Days:
    """Return the days of which the rows in a mask hold all, or nearly all, rows.

    A day is left out if fewer than `MIN_COVERAGE` of its rows are in the mask: the period begins or
    ends within it, or its rows are used elsewhere. The first and the last day of all rows are left
    out if rows are missing at their beginning or end: more than `MAX_LOST` of the rows of the other
    days come before the first row (after the last row), and chance does not explain that. Days
    without any row do not count either.

    Args:
        seconds: (N,) times of all rows in seconds since 1970, NaN if unknown.
        inside: (N,) rows of the period.
        population: (N,) rows that ``inside`` is a sample of, such as the rows of some customers;
            None for all rows.
        zone: the time zone of the days, such as Europe/Berlin; None for UTC.
    """
    population = np.ones(len(seconds), bool) if population is None else population
    day, clock = _day_and_clock(seconds, zone)
    known = ~np.isnan(seconds)
    dates, index = np.unique(day[known], return_inverse=True)
    total, of_population, of_period = (
        np.bincount(index, rows[known], minlength=len(dates))
        for rows in (known, population, inside)
    )
    covered = (of_period > 0) & (of_period >= MIN_COVERAGE * of_population)
    complete = covered & ~_cut_off(index, clock[known], len(dates))
    position = np.where(complete, np.cumsum(complete) - 1, -1)
    by_row = np.full(len(seconds), -1, np.int64)
    by_row[known] = position[index]
    by_row[~inside] = -1
    left_out = int(((of_period > 0) & ~complete).sum())
    scale = total[complete].sum() / of_population[complete].sum() if complete.any() else 1.0
    return Days(by_row, dates[complete], left_out, float(scale))


def day_numbers(seconds: Floats, zone: str | None = None) -> Integers:
    """Return the day (N,) of each time, as days since 1970; the first one where it is unknown.

    Args:
        seconds: (N,) times in seconds since 1970, NaN if unknown.
        zone: the time zone of the days, such as Europe/Berlin; None for UTC.

    >>> day_numbers(np.array([86_399.0, 86_400.0])).tolist()
    [0, 1]
    >>> day_numbers(np.array([86_399.0]), "Asia/Kolkata").tolist()
    [1]
    """
    return _day_and_clock(seconds, zone)[0]


def _day_and_clock(seconds: Floats, zone: str | None) -> tuple[Integers, Floats]:
    """Return the day (N,) since 1970 and the seconds (N,) since its midnight of each time."""
    known = np.where(np.isnan(seconds), 0.0, seconds)
    local = known + (_offsets(known, ZoneInfo(zone)) if zone else 0.0)
    day = np.floor(local / DAY)
    return day.astype(np.int64), local - day * DAY


def _offsets(seconds: Floats, zone: ZoneInfo) -> Floats:
    """Return the offset (N,) of a time zone from UTC at each time, in seconds."""
    quarters, index = np.unique(np.floor(seconds / QUARTER), return_inverse=True)
    moments = np.clip(quarters * QUARTER, *FAR_TIMES).tolist()
    offsets = [dt.datetime.fromtimestamp(moment, zone).utcoffset() for moment in moments]
    return np.array([offset.total_seconds() if offset else 0.0 for offset in offsets])[index]


def _cut_off(index: Integers, clock: Floats, days: int) -> Mask:
    """Return which days (D,) miss rows at their beginning or end: only the first and the last."""
    cut = np.zeros(days, bool)
    for day, from_midnight in ((0, clock), (days - 1, DAY - clock)):
        if days and _is_cut(from_midnight, index == day):
            cut[day] = True
    return cut


def _is_cut(distance: Floats, today: Mask) -> bool:
    """Return whether one day lacks rows near midnight.

    Args:
        distance: (N,) seconds between each row and the midnight in question.
        today: (N,) rows of the day; without others, rows are assumed to come around the clock.
    """
    nearest, others = distance[today].min(), distance[~today]
    lost = (others < nearest).mean() if len(others) else nearest / DAY
    return bool(lost > MAX_LOST and (1 - lost) ** today.sum() < CHANCE)
