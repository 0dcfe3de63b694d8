"""Compute the window features of a row from the past events of one entity.

The events of an entity are packed as rows of 64-bit words: time in microseconds, hash of the id,
time at which an anomaly became known (only with `risk`), numbers, hashes of values.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from operator import mul
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.features.definition import MICROSECONDS, WindowDefinition, WindowFeature
from anomaly_vae.features.inputs import Event

NEVER = 2**63 - 1
"""Time at which the anomaly of a normal event becomes known."""
FEW = 256
"""Number of events up to which their times are read at once."""
NO_ID = 0
"""Hash of the id of an event without one, and of a missing value."""

Hash = Callable[[str], int]
"""Function that returns a hash of 63 bits for the text of a value."""
Words = NDArray[np.int64]


@dataclass(frozen=True)
class EntityHistory:
    """The layout of the packed events of one entity, and the features that are computed of them.

    Example:
        >>> from anomaly_vae.config.windows import EntityWindows
        >>> hourly = EntityWindows(over=("1h",), count=True, since_last=True)
        >>> history = EntityHistory.of(WindowDefinition({"card": hourly}), "card")
        >>> event = Event("7", 0, {"card": "12"}, {})
        >>> packed = history.pack(event, 7, hash)
        >>> history.features(packed, 60_000_000)
        [1.0, 60.0]
    """

    entity: str
    label: str | None
    """Label column of the known anomalies; None without `risk`."""
    numbers: tuple[str, ...]
    values: tuple[str, ...]
    by_window: Sequence[tuple[int, int, Sequence[tuple[int, WindowFeature]]]]
    """Start and stop of each window before the row, in microseconds, and its features."""
    count: int
    """Number of features."""

    @classmethod
    def of(cls, definition: WindowDefinition, entity: str) -> EntityHistory:
        """Return the history of one entity column of a definition."""
        windows = definition.windows[entity]
        features = definition.by_entity[entity]
        spans: dict[tuple[int, int], list[tuple[int, WindowFeature]]] = {}
        for position, feature in enumerate(features):
            edges = feature.span + feature.delay, feature.delay
            spans.setdefault(edges, []).append((position, feature))
        label = windows.risk.label if windows.risk else None
        by_window = [(start, stop, used) for (start, stop), used in spans.items()]
        return cls(
            entity, label, tuple(windows.of), tuple(windows.distinct), by_window, len(features)
        )

    @cached_property
    def width(self) -> int:
        """Number of words of a packed event."""
        return self._struct.size // 8

    @cached_property
    def _struct(self) -> Struct:
        marks = "q" if self.label else ""
        return Struct(f"<qq{marks}{len(self.numbers)}d{len(self.values)}q")

    @cached_property
    def number_words(self) -> list[tuple[str, int]]:
        """Numeric columns, each with the position of its word in a packed event."""
        return [*zip(self.numbers, count(2 + (self.label is not None)))]

    @cached_property
    def value_words(self) -> list[tuple[str, int]]:
        """Columns whose values are counted, each with the position of its word."""
        return [*zip(self.values, count(self.width - len(self.values)))]

    @cached_property
    def _edges(self) -> frozenset[int]:
        return frozenset(edge for start, stop, _ in self.by_window for edge in (start, stop))

    def pack(self, event: Event, own: int, hashed: Hash) -> bytes:
        """Pack an event that has a time and this entity; ``own`` is the hash of its id."""
        known = NEVER if self.label not in event.anomalous else event.time
        keys, numbers = event.keys, event.numbers
        return self._struct.pack(
            event.time,
            own,
            *([known] if self.label else ()),
            *[numbers[name] for name in self.numbers],
            *[NO_ID if keys[name] is None else hashed(str(keys[name])) for name in self.values],
        )

    def unpack(self, packed: bytes) -> Words:
        """Return packed events as words (N, W)."""
        return np.frombuffer(packed, np.int64).reshape(-1, self.width)

    def fields(self, events: Words) -> Fields:
        """Return the columns of events (N, W)."""
        columns = iter(events.T[2:])
        known = next(columns) if self.label else None
        numbers = {name: next(columns).view(np.float64) for name in self.numbers}
        return Fields(known, numbers, {name: next(columns) for name in self.values})

    def features(self, packed: bytes, now: int, own: int = NO_ID) -> list[float]:
        """Return the features of a row; NaN where they have no value.

        Args:
            packed: the events of its entity, in order of time.
            now: its time, in microseconds.
            own: hash of its id, whose event is left out.
        """
        words, width = memoryview(packed).cast("q"), self.width
        times: Sequence[int] = words[::width]
        if len(times) <= FEW:
            times = words[::width].tolist()
        bounds = {edge: bisect_left(times, now - edge) for edge in self._edges}
        first, stop = bounds[self._reach], bounds[self._delay]
        cells = words[first * width : stop * width].tolist()
        if own != NO_ID and own in cells[1::width]:
            return self.features(self._without(packed, own), now)
        columns, out = _Columns(self, packed, cells, first, now), [math.nan] * self.count
        for window in self._windows:
            columns.fill(out, window, bounds[window.start] - first, bounds[window.stop] - first)
        return out

    @cached_property
    def _reach(self) -> int:
        return max(self._edges)

    @cached_property
    def _delay(self) -> int:
        return min(self._edges)

    @cached_property
    def _windows(self) -> list[_Window]:
        return [_Window.of(*window) for window in self.by_window]

    def _without(self, packed: bytes, own: int) -> bytes:
        events = self.unpack(packed)
        kept: bytes = events[events[:, 1] != own].tobytes()
        return kept


class _Window(NamedTuple):
    """The features of one window, each with its position among those of the entity."""

    start: int
    """Time from its start to the row, in microseconds."""
    stop: int
    """Time from its end to the row, in microseconds."""
    events: list[tuple[int, str]]
    """Kinds of the features that are not of a column."""
    distinct: list[tuple[int, str]]
    """Columns whose different values are counted."""
    numbers: list[tuple[str, list[tuple[int, str]]]]
    """Numeric columns with their statistics."""

    @classmethod
    def of(cls, start: int, stop: int, features: Sequence[tuple[int, WindowFeature]]) -> _Window:
        """Sort the features of a window by what they are of."""
        window, numbers = cls(start, stop, [], [], []), dict[str, list[tuple[int, str]]]()
        for position, feature in features:
            if feature.column is None:
                window.events.append((position, feature.kind))
            elif feature.kind == "distinct":
                window.distinct.append((position, feature.column))
            else:
                numbers.setdefault(feature.column, []).append((position, feature.kind))
        return window._replace(numbers=[*numbers.items()])


class Fields(NamedTuple):
    """The columns of N packed events."""

    known: Words | None
    """Time (N,) from which an event is known as an anomaly, or `NEVER`; None without `risk`."""
    numbers: Mapping[str, NDArray[np.float64]]
    """Values (N,) of each numeric column; NaN where missing."""
    values: Mapping[str, Words]
    """Hashes (N,) of the values of each counted column; `NO_ID` where missing."""


class _Columns:
    """The columns of some events of one entity, as lists, which are fast for few events."""

    def __init__(
        self, history: EntityHistory, packed: bytes, cells: list[int], first: int, now: int
    ) -> None:
        width = history.width
        self._now, self._cells, self._width = now, cells, width
        self._in_windows: dict[tuple[str, int, int], Numbers] = {}
        if history.label:
            self._is_known = [at <= now for at in cells[2::width]]
        self._numbers: dict[str, list[float]] = {}
        if history.numbers:
            floats: Any = memoryview(packed).cast("d")  # its type says that slices are of integers
            real = floats[first * width : first * width + len(cells)].tolist()
            for name, at in history.number_words:
                self._numbers[name] = real[at::width]
        self._values = {name: cells[at::width] for name, at in history.value_words}

    def fill(self, out: list[float], window: _Window, start: int, stop: int) -> None:
        """Compute the features of the window that holds the events [start, stop)."""
        for position, kind in window.events:
            out[position] = self._of_events(kind, start, stop)
        for position, column in window.distinct:
            out[position] = float(len({*self._values[column][start:stop]} - {NO_ID}))
        for column, statistics in window.numbers:
            numbers = self._numbers_in(column, start, stop)
            for position, kind in statistics:
                out[position] = getattr(numbers, kind)

    def _numbers_in(self, column: str, start: int, stop: int) -> Numbers:
        """Return the numbers in a window; short windows often hold the same events."""
        key = column, start, stop
        if key not in self._in_windows:
            self._in_windows[key] = Numbers(self._numbers[column][start:stop])
        return self._in_windows[key]

    def _of_events(self, kind: str, start: int, stop: int) -> float:
        if kind == "count":
            return float(stop - start)
        if start == stop:
            return math.nan
        if kind == "since_last":
            return (self._now - self._cells[(stop - 1) * self._width]) / MICROSECONDS
        return sum(self._is_known[start:stop]) / (stop - start)


class Numbers:
    """The statistics of numbers, of which missing ones (NaN) are left out.

    >>> numbers = Numbers([1.0, math.nan, 3.0])
    >>> numbers.sum, numbers.mean, numbers.max
    (4.0, 2.0, 3.0)
    """

    __slots__ = ("_present", "sum")

    def __init__(self, numbers: list[float]) -> None:
        self._present, self.sum = numbers, _sum(numbers)
        """Sum, rounded once; 0 without numbers."""
        if math.isnan(self.sum):
            self._present = [number for number in numbers if not math.isnan(number)]
            self.sum = _sum(self._present)

    @property
    def mean(self) -> float:
        """Mean; NaN without numbers."""
        return self.sum / len(self._present) if self._present else math.nan

    @property
    def max(self) -> float:
        """Greatest number; NaN without numbers."""
        return max(self._present, default=math.nan)

    @property
    def std(self) -> float:
        """Sample standard deviation, corrected for the rounding of the mean; NaN without two."""
        present = self._present
        if len(present) < 2:
            return math.nan
        if present.count(present[0]) == len(present):
            return 0.0
        mean = self.mean
        apart = [number - mean for number in present]
        rest = _sum(apart)
        squares = _sum(list(map(mul, apart, apart))) - rest * rest / len(present)
        return math.sqrt(max(squares, 0.0) / (len(present) - 1))


def _sum(numbers: Sequence[float]) -> float:
    """Return the sum, rounded once; infinite numbers and overflow give infinity or NaN."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return sum(numbers)
