"""Compute the window features of a row from the past events of one entity.

The events of an entity are packed as rows of 64-bit words: time in microseconds, hash of the id,
time at which an anomaly became known (only with `risk`), numbers, hashes of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.features.definition import MICROSECONDS, WindowDefinition, WindowFeature
from anomaly_vae.features.inputs import Event

NEVER = 2**63 - 1
"""Time at which the anomaly of a normal event becomes known."""
NO_ID = 0
"""Hash of the id of an event without one, and of a missing value."""

Hash = Callable[[str, str], int]
"""Function that returns a hash of 64 bits for a kind of value and a text."""
Words = NDArray[np.int64]


class Interval(NamedTuple):
    """The events [start, stop) of one window, and the time of the row in microseconds."""

    start: int
    stop: int
    now: int


@dataclass(frozen=True)
class EntityHistory:
    """The layout of the packed events of one entity, and the features that are computed of them.

    Example:
        >>> from anomaly_vae.config.windows import EntityWindows
        >>> hourly = EntityWindows(over=("1h",), count=True, since_last=True)
        >>> history = EntityHistory.of(WindowDefinition({"card": hourly}), "card")
        >>> event = Event("7", 0, {"card": "12"}, {})
        >>> packed = history.pack(event, lambda kind, text: 7)
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
        features = [f for f in definition.features if f.entity == entity]
        spans: dict[tuple[int, int], list[tuple[int, WindowFeature]]] = {}
        for position, feature in enumerate(features):
            edges = feature.span + feature.delay, feature.delay
            spans.setdefault(edges, []).append((position, feature))
        label = windows.risk.label if windows.risk else None
        by_window = [(start, stop, used) for (start, stop), used in spans.items()]
        return cls(
            entity, label, tuple(windows.of), tuple(windows.distinct), by_window, len(features)
        )

    @property
    def width(self) -> int:
        """Number of words of a packed event."""
        return 2 + (self.label is not None) + len(self.numbers) + len(self.values)

    @property
    def _struct(self) -> Struct:
        marks = "q" if self.label else ""
        return Struct(f"<qq{marks}{len(self.numbers)}d{len(self.values)}q")

    def pack(self, event: Event, hashed: Hash) -> bytes:
        """Pack an event that has a time and this entity."""
        assert event.time is not None
        known = event.time if self.label in event.anomalous else NEVER
        return self._struct.pack(
            event.time,
            NO_ID if event.id is None else hashed("id", event.id),
            *([known] if self.label else ()),
            *(event.numbers[name] for name in self.numbers),
            *(_value_hash(event.keys[name], hashed) for name in self.values),
        )

    def unpack(self, packed: bytes) -> Words:
        """Return packed events as words (N, W)."""
        return np.frombuffer(packed, np.int64).reshape(-1, self.width)

    def features(self, packed: bytes, now: int, own: int = NO_ID) -> list[float]:
        """Return the features of a row; NaN where they have no value.

        Args:
            packed: the events of its entity, in order of time.
            now: its time, in microseconds.
            own: hash of its id, whose event is left out.
        """
        events = self.unpack(packed)
        if own != NO_ID and (events[:, 1] == own).any():
            events = events[events[:, 1] != own]
        return _Columns(self, events).features(now)


def _value_hash(text: str | None, hashed: Hash) -> int:
    return NO_ID if text is None else hashed("value", text)


class _Columns:
    """The columns of the events of one entity, as lists, which are fast for few events."""

    def __init__(self, history: EntityHistory, events: Words) -> None:
        self._history, self._times = history, events[:, 0]
        first = 2 + (history.label is not None)
        self._known = events[:, 2].tolist() if history.label else []
        self._columns: Mapping[str, list[float]] = {
            name: events[:, first + i].view(np.float64).tolist()
            for i, name in enumerate(history.numbers)
        }
        first += len(history.numbers)
        self._values: Mapping[str, list[int]] = {
            name: events[:, first + i].tolist() for i, name in enumerate(history.values)
        }

    def features(self, now: int) -> list[float]:
        out = [math.nan] * self._history.count
        for start, stop, features in self._history.by_window:
            begin, end = self._times.searchsorted((now - start, now - stop)).tolist()
            window, numbers = Interval(begin, end, now), dict[str, list[float]]()
            for position, feature in features:
                out[position] = self._feature(feature, window, numbers)
        return out

    def _feature(
        self, feature: WindowFeature, window: Interval, numbers: dict[str, list[float]]
    ) -> float:
        start, stop, now = window
        match feature.kind:
            case "count":
                return float(stop - start)
            case "since_last":
                return (
                    (now - int(self._times[stop - 1])) / MICROSECONDS if stop > start else math.nan
                )
            case "risk":
                known = sum(at <= now for at in self._known[start:stop])
                return known / (stop - start) if stop > start else math.nan
        column = str(feature.column)
        if feature.kind == "distinct":
            return float(len({*self._values[column][start:stop]} - {NO_ID}))
        if column not in numbers:
            numbers[column] = [v for v in self._columns[column][start:stop] if v == v]  # noqa: PLR0124 not NaN
        return STATISTICS[feature.kind](numbers[column])


def _sum(numbers: Sequence[float]) -> float:
    """Return the sum, rounded once; infinite numbers and overflow give infinity or NaN."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return sum(numbers)


def _mean(numbers: Sequence[float]) -> float:
    return _sum(numbers) / len(numbers) if numbers else math.nan


def _std(numbers: Sequence[float]) -> float:
    """Return the sample standard deviation, corrected for the rounding of the mean."""
    if len(numbers) < 2:
        return math.nan
    if min(numbers) == max(numbers):
        return 0.0
    mean = _mean(numbers)
    apart = [number - mean for number in numbers]
    rest = _sum(apart)
    squares = _sum([d * d for d in apart]) - rest * rest / len(numbers)
    return math.sqrt(max(squares, 0.0) / (len(numbers) - 1))


def _max(numbers: Sequence[float]) -> float:
    return max(numbers, default=math.nan)


STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "std": _std,
}
"""Statistics of the numbers in a window."""
