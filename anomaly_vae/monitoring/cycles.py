"""Learn how calibration rows vary with the hour and the weekday, and from one day to the next.

Payments at night differ from payments at noon, although nothing is wrong. A `Cycle` therefore holds
the counts of the calibration rows by hour and by weekday, for several *streams* of bins: p-values,
flags, and the values of each column. From these counts follow the shares of bins that are expected
of rows at given times.

Rows of one day also resemble each other more than independent rows do. Each stream has a
*concentration*: the shares of its bins on a day are assumed to be Dirichlet distributed around the
expected shares with this concentration. It is estimated from blocks of consecutive calibration rows
of several lengths, up to a day, whose expected shares come from the other days. The estimate thus
includes the error of the expected shares; the smallest of the lengths' estimates is used.

The expected shares of an hour or a weekday are estimated from few rows, and shares also vary within
an hour. A window within few hours therefore has a smaller concentration than a whole day.

Rows of one entity, such as a customer, also resemble each other, and their values may drift for
weeks: `entities` adds to the variation between days what follows from it, the more the older the
calibration is. The mean of a *score* of a column's bins, which a trend is measured by, may vary
further than its shares do on average, and is measured in the same way.

The shares of an hour and of a weekday are shrunk towards those of all rows. How much is chosen for
each stream from `PRIORS`: such that the rows of each day are most likely, given the other days.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.encoding import WEEKDAYS as WEEKDAY_NAMES
from anomaly_vae.data.splitting import DAY
from anomaly_vae.monitoring.entities import Bins, Dispersion, EntityRows
from anomaly_vae.monitoring.martingale import MOVED_SLOPES, Counts, Floats, densities

Priors = tuple[float, float]

HOUR = 3600.0
"""Length of an hour, in seconds."""
QUARTER = 900.0
"""Length of a quarter of an hour, in seconds."""
WEEK_SHIFT = 3 * DAY
"""Time that passed between a Monday and 1970-01-01, in seconds."""
HOURS, WEEKDAYS = 25, 8
"""Number of different hours and weekdays, including the unknown one."""
WEEK_CELLS = HOURS * WEEKDAYS
"""Number of different pairs of an hour and a weekday."""
MIN_DAYS, WEEK_DAYS = 3, 14
"""Minimum number of calibration days to learn variation between days, and between weekdays."""
PRIORS = (0.5, 5.0, 50.0, 1e6)
"""Numbers of rows per bin by which the ratios of hours or weekdays are shrunk towards 1."""
BLOCK_FACTORS = (1, 4, 16)
"""Lengths of blocks of rows, in blocks of the monitor; days are used in addition."""
MIN_EXPECTED = 1.0
"""Minimum expected number of rows per bin; other bins of a block are merged."""
MIN_SPREAD = 1e-6
"""Smallest standard deviation of scores that is not rounded up."""
MAX_CONCENTRATION = 1e6
"""Largest concentration, at which the variation between days is negligible."""
MIN_CONCENTRATION = 1e-3
"""Smallest concentration, at which all rows of a day are alike and other days tell nothing."""
BISECTION_STEPS = 60
"""Number of bisection steps, each of which halves the interval of a logarithm."""
TENSOR = "cycle/"
"""Prefix of the names of a cycle's tensors in a bundle."""
TENSORS = ("hours", "weekdays", "dispersions", "within_hours", "priors")
"""Names of the arrays of a cycle."""
SINCE, DISPERSIONS, CONCENTRATIONS = (
    TENSOR + name for name in ("since", "dispersions", "concentrations")
)
"""Names of the tensors of the time that ages begin at, of the dispersions, and of what earlier
bundles have instead of both."""
KINDS = 1 + len(MOVED_SLOPES)
"""Number of means whose dispersion is known: of the shares of bins, and of the score of each end of
a column's values."""
USUAL_AGE, MAX_AGE = 30, 1000
"""Days since calibration of rows whose time is unknown, and largest number that is told apart."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """The times (N,) of calibration rows in seconds since 1970, and the column they are from."""

    column: str
    seconds: Floats
    is_read: bool
    """Whether the model reads the column, so that the times of scored rows are known, too."""
    entities: Mapping[str, Bins] = field(default_factory=dict)
    """Number (N,) of each row's entity, for each column that names entities."""
    divided: str | None = None
    """Column of entities that are in one split each, so that scored rows have others."""

    def first(self, count: int) -> Timeline:
        """Return the times of the first rows."""
        entities = {name: numbers[:count] for name, numbers in self.entities.items()}
        return replace(self, seconds=self.seconds[:count], entities=entities)

    @property
    def n_days(self) -> int:
        """Number of different days."""
        return len(np.unique(self.seconds // DAY))


@dataclass(frozen=True, eq=False)
class Cycle:
    """Counts of calibration rows by time of the week, for M streams of bins side by side."""

    column: str
    """Name of the time column."""
    hours: Counts
    """Counts (`HOURS`, width) of rows per bin by hour; width is the number of bins in all."""
    weekdays: Counts
    """Counts (`WEEKDAYS`, width) of rows per bin by weekday."""
    dispersions: Floats
    """Dispersion (`KINDS`, M, 3) of each stream between days, how much is added on each day since
    calibration, and how much at most."""
    within_hours: Floats
    """Concentration (M,) of the quarters of an hour of each stream."""
    priors: Floats
    """Members (2, M) of `PRIORS` for the hours and the weekdays of each stream."""
    since: float = 0.0
    """Time that ages begin at, in seconds since 1970."""
    earlier: Floats | None = None
    """Concentration (M,) of the days of each stream, if an earlier bundle has no dispersions."""

    def beside(self, other: Cycle) -> Cycle:
        """Return a cycle with the streams of both."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in TENSORS)
        arrays: list[Any] = [np.hstack(pair) for pair in pairs]
        return replace(self, **dict(zip(TENSORS, arrays, strict=True)))

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by tensor name, for the bundle; an earlier one keeps its own."""
        arrays = {TENSOR + name: np.ascontiguousarray(getattr(self, name)) for name in TENSORS}
        if self.earlier is None:
            return arrays | {SINCE: np.array([self.since])}
        del arrays[DISPERSIONS]
        return arrays | {CONCENTRATIONS: self.earlier}

    @classmethod
    def from_tensors(cls, column: str, tensors: Mapping[str, NDArray[np.generic]]) -> Self:
        """Restore a cycle from the result of `tensors`.

        Raises:
            KeyError: a tensor is missing.
        """
        earlier: Any = tensors.get(CONCENTRATIONS)
        if earlier is not None:
            dispersions = np.tile((1 / (1 + earlier))[:, None] * (1, 0, 0), (KINDS, 1, 1))
            tensors = {**tensors, DISPERSIONS: dispersions, SINCE: np.zeros(1)}
        arrays: list[Any] = [tensors[TENSOR + name] for name in TENSORS]
        return replace(cls(column, *arrays), since=float(tensors[SINCE][0]), earlier=earlier)

    def shares(self, widths: Sequence[int]) -> Floats:
        """Return the expected share (`WEEK_CELLS`, width) of each bin at each time of the week."""
        hours, weekdays = _split(self.hours, widths), _split(self.weekdays, widths)
        parts = zip(hours, weekdays, self.priors.T.tolist(), strict=True)
        return np.hstack([_profile(*part) for part in parts])

    def ages(self, seconds: Floats) -> Counts:
        """Return the days (N,) since calibration of rows at times in seconds since 1970."""
        days = np.clip((seconds - self.since) / DAY, 0, MAX_AGE)
        return np.where(np.isfinite(days), days, USUAL_AGE).astype(np.int64)

    def concentrations(self, age: float = USUAL_AGE) -> Floats:
        """Return the concentration (`KINDS`, M) of whole days at this age in days."""
        return self._concentration(self._of_days(np.array([age]))[..., 0])

    def _of_days(self, ages: Floats) -> Floats:
        """Return the dispersion (`KINDS`, M, S) between days, at ages (S,) in days."""
        days, rate, limit = np.moveaxis(self.dispersions[..., None], 2, 0)
        return np.asarray(days + np.minimum(rate * ages, limit))

    @staticmethod
    def _concentration(dispersion: Floats) -> Floats:
        return np.asarray(np.maximum(1 / dispersion - 1, MIN_CONCENTRATION))

    def totals(self, times: Counts, ages: Floats, widths: Sequence[int]) -> Floats:
        """Return the concentration (`KINDS`, M, S) of the rows of S windows in each stream.

        Args:
            times: number of rows (S, `WEEK_CELLS`) at each time of the week.
            ages: mean age (S,) of the rows in days.
            widths: number of bins of each of the M streams.

        The variance of the expected shares adds to that of days: an hour's estimate is worth as
        many rows as it has, and its prior. Each hour counts by the square of its share of the rows.
        """
        weeks = times.reshape(-1, HOURS, WEEKDAYS)
        hours, weekdays = (_squared_shares(weeks.sum(axis=axis)) for axis in (2, 1))
        bins = np.array(widths)
        dispersion = (
            self._of_days(ages)
            + hours[:, :-1].sum(axis=1) / (1 + self.within_hours)[:, None]
            + self._errors(self.hours, widths, self.priors[0] * bins) @ hours.T
            + self._errors(self.weekdays, widths, self.priors[1] * bins) @ weekdays.T
        )
        return self._concentration(dispersion)

    @staticmethod
    def _errors(counts: Counts, widths: Sequence[int], priors: Floats) -> Floats:
        """Return the dispersion (M, T) of the expected shares of each of T times."""
        rows = np.array([part.sum(axis=1) for part in _split(counts, widths)], np.float64)
        rows[:, -1] += rows.sum(axis=1)  # rows of an unknown time are like all rows
        return np.asarray(1 / (1 + rows + priors[:, None]))


def _squared_shares(counts: Counts) -> Floats:
    """Return the squared share (S, T) of each of T times among the rows of S windows."""
    return np.asarray((counts / counts.sum(axis=1, keepdims=True)) ** 2)


def week_cells(seconds: Floats) -> Bins:
    """Return the index (N,) of the hour and weekday of times in seconds since 1970; NaN is unknown.

    >>> import numpy as np
    >>> week_cells(np.array([0.0, 3600.0, np.nan])).tolist()  # a Thursday, 0:00 and 1:00
    [3, 11, 199]
    """
    known = np.isfinite(seconds)
    times = np.where(known, seconds, 0)
    hours = times % DAY // HOUR
    weekdays = (times + WEEK_SHIFT) % (7 * DAY) // DAY
    return np.where(known, hours * WEEKDAYS + weekdays, WEEK_CELLS - 1).astype(np.int64)


def fit_cycle(
    timeline: Timeline,
    bins: Bins,
    widths: Sequence[int],
    block_rows: int,
    rare: bool = False,
    trends: bool = False,
) -> Cycle:
    """Learn the cycle of N calibration rows, which cover `MIN_DAYS` days or more.

    Args:
        timeline: the times of the rows.
        bins: bin (N, M) of each row in each stream.
        widths: number of bins of each of the M streams.
        block_rows: number of rows in a block of the monitor.
        rare: whether a bin has few rows, as flags have: variation between blocks then only counts
            as far as it exceeds chance by its standard deviation.
        trends: whether the bins are those of columns, in which trends are looked for.
    """
    order = np.argsort(timeline.seconds, kind="stable")
    rows = _Rows.of(timeline, order)
    streams = (_Stream(rows, bins[order, i], width, rare) for i, width in enumerate(widths))
    cycles = (stream.cycle(timeline.column, block_rows, trends) for stream in streams)
    return replace(reduce(Cycle.beside, cycles), since=_since(timeline.seconds))


def _since(seconds: Floats) -> float:
    """Return the time that ages begin at: the mean time of rows, and their mean distance."""
    days = seconds // DAY
    counts = np.bincount((days - days.min()).astype(np.int64)).astype(np.float64)
    numbers = np.arange(len(counts))
    lags = np.abs(numbers[:, None] - numbers)
    return float(seconds.mean() + DAY * (counts @ lags @ counts) / counts.sum() ** 2)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The times (N,) of calibration rows, in order; days are numbered from 0."""

    hours: Bins
    weekdays: Bins
    days: Bins
    quarters: Bins
    """Quarter of an hour of the day, from 0 to 95."""
    entities: tuple[EntityRows, ...]

    @classmethod
    def of(cls, timeline: Timeline, order: NDArray[np.intp]) -> Self:
        """Return the times in this order, from the first to the last."""
        seconds = timeline.seconds[order]
        days = np.unique(seconds // DAY, return_inverse=True)[1]
        cells = week_cells(seconds if timeline.is_read else np.full(len(seconds), np.nan))
        quarters = (seconds % DAY // QUARTER).astype(np.int64)
        related = (
            EntityRows.of(numbers[order], seconds, name == timeline.divided)
            for name, numbers in timeline.entities.items()
        )
        return cls(cells // WEEKDAYS, cells % WEEKDAYS, days, quarters, tuple(related))

    @property
    def n_days(self) -> int:
        return int(self.days[-1]) + 1

    def blocks(self, block_rows: int) -> Iterator[Bins]:
        """Yield the number of the block (N,) of each row, for blocks of each length."""
        positions = np.arange(len(self.days))
        for factor in BLOCK_FACTORS:
            yield positions // (factor * block_rows)
        yield self.days


class _Stream:
    """The bins (N,) of rows in one stream, counted by day and time."""

    def __init__(self, rows: _Rows, bins: Bins, width: int, rare: bool) -> None:
        self.rows, self.bins, self.width, self.rare = rows, bins, width, rare
        self.hours = self._count(rows.hours, HOURS)
        self.weekdays = self._count(rows.weekdays, WEEKDAYS)

    def _count(self, times: Bins, n_times: int) -> Counts:
        """Count rows (D, n_times, width) by day, time and bin."""
        shape = (self.rows.n_days, n_times, self.width)
        flat = np.ravel_multi_index((self.rows.days, times, self.bins), shape)
        return np.bincount(flat, minlength=math.prod(shape)).reshape(shape)

    def cycle(self, column: str, block_rows: int, trends: bool) -> Cycle:
        """Return what is learned about this stream."""
        priors = self.priors()
        expected = self._expected_from_other_days(priors)
        within = self._dispersion(self.rows.quarters, expected)
        found = [self.dispersion(block_rows, expected)]
        found += self._of_scores(found[0], expected) if trends else found * (KINDS - 1)
        return Cycle(
            column,
            self.hours.sum(axis=0),
            self.weekdays.sum(axis=0),
            np.array([[astuple(one)] for one in found]),
            np.array([1 / within - 1]),
            np.array([priors]).T,
        )

    def priors(self) -> Priors:
        """Return the priors of hours and weekdays: first the best for hours alone, then both."""
        by_hour = max(((prior, PRIORS[-1]) for prior in PRIORS), key=self._log_likelihood)
        return max(((by_hour[0], prior) for prior in PRIORS), key=self._log_likelihood)

    def _log_likelihood(self, priors: Priors) -> float:
        """Return the log-likelihood of the rows of each day, given the other days."""
        expected = self._expected_from_other_days(priors)
        return float(np.log(np.take_along_axis(expected, self.bins[:, None], axis=1)).sum())

    def dispersion(self, block_rows: int, expected: Floats) -> Dispersion:
        """Return how the shares of bins vary, which are ``expected`` (N, width) of each row.

        The dispersion of a day is the largest of those of the lengths of blocks, and of the
        entities.
        """
        found = [self._dispersion(blocks, expected) for blocks in self.rows.blocks(block_rows)]
        entities = Dispersion.largest(
            rows.dispersion(self.bins, self.width, self.rare) for rows in self.rows.entities
        )
        return replace(entities, days=max(*found, 1 / (len(self.bins) + 2), entities.days))

    def _of_scores(self, shares: Dispersion, expected: Floats) -> list[Dispersion]:
        """Return how the mean score of each end of the values varies, at least like the shares.

        Means of days are one number each, so that their variation only counts as far as it exceeds
        chance by its standard deviation.
        """
        usual = np.bincount(self.bins, minlength=self.width) + 0.5
        return [self._of_score(end, shares, expected) for end in densities(usual / usual.sum())]

    def _of_score(self, end: Floats, shares: Dispersion, expected: Floats) -> Dispersion:
        scores = end[self.bins]
        rest = (scores - expected @ end) / max(float(scores.std()), MIN_SPREAD)
        entities = Dispersion.largest(
            rows.dispersion_of_scores(rest) for rows in self.rows.entities
        )
        n = np.bincount(self.rows.days).astype(np.float64)
        squares = np.bincount(self.rows.days, rest) ** 2 / n
        between = _dispersion(squares, np.ones(len(n)), n, math.sqrt(2 * len(n)))
        return replace(entities, days=max(between, shares.days, entities.days))

    def _expected_from_other_days(self, priors: Priors) -> Floats:
        """Return the expected share (N, width) of each bin, for each row."""
        hours, weekdays, rows = self.hours.sum(axis=0), self.weekdays.sum(axis=0), self.rows
        expected = np.empty((len(self.bins), self.width))
        for day, (start, stop) in enumerate(_bounds(rows.days)):
            others = _profile(hours - self.hours[day], weekdays - self.weekdays[day], priors)
            part = slice(start, stop)
            expected[part] = others[rows.hours[part] * WEEKDAYS + rows.weekdays[part]]
        return expected

    def _dispersion(self, blocks: Bins, expected: Floats) -> float:
        """Estimate 1 / (concentration + 1) from the counts of blocks."""
        numbers = np.unique(blocks, return_inverse=True)[1]
        by_bin = [np.bincount(numbers, column) for column in expected.T]
        sums: Floats = np.column_stack(by_bin)
        flat = np.ravel_multi_index((numbers, self.bins), sums.shape)
        counts: Counts = np.bincount(flat, minlength=sums.size).reshape(sums.shape)
        chance = math.sqrt(_chance_variance(sums)) if self.rare else 0.0
        return _dispersion(*_merge_rare(counts.astype(np.float64), sums), chance)


def _bounds(days: Bins) -> list[tuple[int, int]]:
    """Return the first and last position of the rows of each day."""
    starts = np.flatnonzero(np.diff(days, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(days)], strict=True))


def _split(counts: Counts, widths: Sequence[int]) -> list[Counts]:
    return np.split(counts, np.cumsum(widths)[:-1], axis=1)


def _profile(hours: Counts, weekdays: Counts, priors: Priors) -> Floats:
    """Return the expected share (`WEEK_CELLS`, B) of each bin at each time of the week.

    The share is that of all rows, times the ratio of the hour and the ratio of the weekday, each
    shrunk towards 1 as if its prior were the number of further rows, counted and expected.
    """
    total = hours.sum(axis=0) + 0.5
    shares = total / total.sum()
    by_hour = _ratios(hours, shares, priors[0])
    by_weekday = _ratios(weekdays, shares, priors[1])
    product = shares * by_hour[:, None] * by_weekday[None]
    product /= product.sum(axis=2, keepdims=True)
    return np.asarray(product.reshape(WEEK_CELLS, -1))


def _ratios(counts: Counts, shares: Floats, prior: float) -> Floats:
    """Return the ratio (T, B) of the counted to the expected rows at each of T times."""
    expected = counts.sum(axis=1, keepdims=True) * shares
    return np.asarray((counts + prior) / (expected + prior))


def _merge_rare(counts: Floats, expected: Floats) -> tuple[Floats, Floats, Floats]:
    """Return Pearson's statistic, its degrees of freedom and the rows of each block.

    Bins with fewer than `MIN_EXPECTED` expected rows are merged into one.
    """
    rare = expected < MIN_EXPECTED
    squares = (counts - expected) ** 2 / np.maximum(expected, MIN_EXPECTED)
    rest = np.where(rare, counts - expected, 0).sum(axis=1) ** 2
    rest /= np.maximum(np.where(rare, expected, 0).sum(axis=1), MIN_EXPECTED)
    statistic = np.where(rare, 0, squares).sum(axis=1) + rest
    freedom = (~rare).sum(axis=1) + rare.any(axis=1) - 1.0
    return statistic, freedom, counts.sum(axis=1)


def _chance_variance(expected: Floats) -> float:
    """Return the variance of Pearson's statistic of all blocks, without further dispersion."""
    freedom = expected.shape[1] - 1
    return float((2 * freedom + (1 / np.maximum(expected, MIN_EXPECTED)).sum(axis=1)).sum())


def _dispersion(statistic: Floats, freedom: Floats, rows: Floats, chance: float = 0.0) -> float:
    """Estimate the dispersion of blocks by the method of moments (Williams 1982).

    The expectation of a block's statistic is its degrees of freedom times 1 + (rows − 1) ·
    dispersion. An excess of all statistics together up to ``chance`` counts as none.
    """
    low, high = 1 / MAX_CONCENTRATION, 1.0
    for _ in range(BISECTION_STEPS):
        middle = math.sqrt(low * high)
        if (statistic / (1 + (rows - 1) * middle)).sum() > freedom.sum() + chance:
            low = middle
        else:
            high = middle
    return low


def describe_span(timeline: Timeline) -> str:
    """Say in a sentence what the times of the calibration rows allow the monitor to check.

    >>> import numpy as np
    >>> describe_span(Timeline("at", np.arange(10) * 86400.0, is_read=True))
    "monitoring: the calibration rows cover 9.0 days of 'at'; ...; give calibration 14 days"
    """
    days = float(np.ptp(timeline.seconds)) / DAY
    head = f"monitoring: the calibration rows cover {days:.1f} days of '{timeline.column}'; "
    if timeline.n_days < MIN_DAYS:
        return (
            f"{head}with fewer than {MIN_DAYS} the monitor cannot tell a change between night and "
            f"day from a shift; give calibration {WEEK_DAYS} days"
        )
    if not timeline.is_read:
        return f"{head}the model does not read it, so an hour is not compared with the same hour"
    if days >= WEEK_DAYS - 1:
        return f"{head}traffic is compared with the same hour and weekday"
    return f"{head}traffic is compared with the same hour, but {_unchecked_weekdays(timeline)}"


def _unchecked_weekdays(timeline: Timeline) -> str:
    """Say what cannot be checked of weekdays of which few were seen."""
    seen = {WEEKDAY_NAMES[int(day)] for day in week_cells(timeline.seconds) % WEEKDAYS}
    unseen = [name for name in WEEKDAY_NAMES if name not in seen]
    what = "how weekdays differ is known from one or two days each"
    if unseen:
        what = f"the monitor cannot tell what is usual on {', '.join(unseen)} from a shift"
    return f"{what}; give calibration {WEEK_DAYS} days"
