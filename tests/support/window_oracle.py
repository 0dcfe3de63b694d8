"""Compute window features of events one by one, as docs/windows.md defines them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from anomaly_vae.features import WindowDefinition, WindowFeature


@dataclass(frozen=True)
class Event:
    """An event: its id, its time in microseconds, and its entities, numbers and values.

    ``known_at`` is the time in microseconds from which an anomaly is known; None: never.
    """

    id: str | None
    time: int | None
    keys: dict[str, str | None]
    numbers: dict[str, float | None] = field(default_factory=dict)
    known_at: int | None = None


def expected_features(
    definition: WindowDefinition, row: Event, arrived: Sequence[Event]
) -> dict[str, float | None]:
    """Return the features of a row by name, given the events that arrived before it, in order."""
    rows = [row for row in arrived if row.time is not None]
    events = _once([row for row in rows if any(row.keys.get(e) for e in definition.entities)])
    return {f.name: _feature(f, row, events) for f in definition.features}


def _once(events: Sequence[Event]) -> list[Event]:
    ids: set[str] = set()
    kept = []
    for event in events:
        if event.id is None or event.id not in ids:
            kept.append(event)
        ids |= {event.id} if event.id is not None else set()
    return kept


def _feature(feature: WindowFeature, row: Event, events: Sequence[Event]) -> float | None:
    key = row.keys.get(feature.entity)
    if key is None or row.time is None:
        return None
    stop = row.time - feature.delay
    window = [
        event
        for event in events
        if event.time is not None
        and event.keys.get(feature.entity) == key
        and stop - feature.span <= event.time < stop
        and (event.id is None or event.id != row.id)
    ]
    return _value(feature, row.time, window)


def _value(feature: WindowFeature, now: int, window: Sequence[Event]) -> float | None:
    match feature.kind:
        case "count":
            return float(len(window))
        case "since_last":
            times = [event.time for event in window if event.time is not None]
            return (now - max(times)) / 1e6 if times else None
        case "risk":
            known = [e.known_at is not None and e.known_at <= now for e in window]
            return sum(known) / len(window) if window else None
        case "distinct":
            values = {event.keys.get(feature.column or "") for event in window}
            return float(len(values - {None}))
    numbers = [event.numbers.get(feature.column or "") for event in window]
    return _statistic(feature.kind, [number for number in numbers if number is not None])


def _statistic(kind: str, numbers: Sequence[float]) -> float | None:
    match kind:
        case "sum":
            return sum(numbers)
        case "mean":
            return statistics.fmean(numbers) if numbers else None
        case "max":
            return max(numbers, default=None)
    return statistics.stdev(numbers) if len(numbers) > 1 else None
