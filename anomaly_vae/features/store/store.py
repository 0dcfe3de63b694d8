"""Compute window features of incoming rows from a store of past events, and record the rows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.features.history import NEVER, NO_ID, EntityHistory
from anomaly_vae.features.inputs import Event, WindowInputs, entity_text
from anomaly_vae.features.store.records import (
    Backend,
    Hasher,
    Limits,
    Part,
    Recorded,
    SpaceState,
    StoredEvent,
    placed,
)

MAX_EVENTS = 10_000
"""Maximum number of events kept of one entity, unless configured otherwise."""


class Label(NamedTuple):
    """A label of an event that was found later."""

    id: str
    is_anomaly: bool
    at: int
    """Time from which it is known, in microseconds."""


@dataclass(frozen=True)
class Windows:
    """The window features of N rows.

    ``values`` (N, F) are the features in the order of the definition, NaN where missing. ``events``
    are the rows as they are recorded. ``state`` is that of the store before.
    """

    values: NDArray[np.float64]
    events: Sequence[StoredEvent]
    state: SpaceState


def now_in_microseconds() -> int:
    """Return the present time in microseconds since 1970."""
    return time.time_ns() // 1000


class WindowStore:
    """The past events that a model's windows are computed of.

    ``space`` is the digest that identifies them in the database. Models with the same entities and
    columns share their events, whatever their windows.

    Args:
        backend: the database.
        inputs: the definition and its columns.
        salt: a secret that is hashed with every entity, id and value.
        max_events: maximum number of events kept of one entity.
        clock: function that returns the present time in microseconds.

    Raises:
        WindowStoreError: the database cannot be used, or was written with another salt.

    >>> import tempfile
    >>> from anomaly_vae.config.windows import EntityWindows
    >>> from anomaly_vae.features import WindowDefinition
    >>> from anomaly_vae.features.store import StoreOptions, open_store
    >>> card = EntityWindows(over=("1h",), count=True)
    >>> inputs = WindowInputs(WindowDefinition({"card": card}), time="at")
    >>> first, second = (Event(None, time, {"card": "12"}, {}) for time in (0, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = open_store(StoreOptions(f"sqlite:///{folder}/windows.db"), inputs)
    ...     outcomes = store.add([first]).outcomes
    ...     found = store.features([second]).values.tolist()
    ...     store.backend.close()
    >>> outcomes, found
    (['recorded'], [[1.0]])
    """

    def __init__(
        self,
        backend: Backend,
        inputs: WindowInputs,
        salt: str = "",
        max_events: int = MAX_EVENTS,
        clock: Callable[[], int] = now_in_microseconds,
    ) -> None:
        self.backend, self.inputs = backend, inputs
        self._max_events, self._clock = max_events, clock
        definition = inputs.definition
        self._histories = {name: EntityHistory.of(definition, name) for name in definition.entities}
        self.space = definition.layout
        self._hasher = Hasher(salt, self.space)
        own = {name: reach + inputs.horizon for name, reach in definition.reach.items()}
        self._longest = definition.longest
        self._own_retention = own
        self._register()

    def _register(self) -> None:
        check = self._hasher.check
        self._set_retention(self.backend.register(self.space, self._own_retention, check))

    def _set_retention(self, state: SpaceState) -> None:
        self._retention_text = state.retention
        self._retention: Mapping[str, int] = json.loads(state.retention)

    def _follow(self, state: SpaceState) -> bool:
        """Keep events as long as the database says; return whether that has changed.

        Another model may have longer windows since, or the database was emptied.
        """
        changed = state.retention != self._retention_text
        if changed:
            self._register()
        return changed

    def state(self) -> SpaceState:
        """Return the times that the store knows events of."""
        return self.backend.read(self.space, (), ()).state

    # ------------------------------------------------------------ features

    def features(self, rows: Sequence[Event]) -> Windows:
        """Compute the features of N rows, each of which sees the rows before it.

        Nothing is recorded yet.

        Raises:
            WindowStoreError: the database cannot be used.
        """
        events = [self._stored(row) for row in rows]
        keys = list({part.key for event in events for part in event.parts})
        ids = [event.id for event in events if event.id != NO_ID] if len(events) > 1 else []
        snapshot = self.backend.read(self.space, keys, ids)
        if self._follow(snapshot.state):
            events = [self._stored(row) for row in rows]
        arriving = _Arriving(dict(snapshot.events), set(snapshot.known), snapshot.state.newest)
        limits, values = self._limits, np.empty((len(rows), len(self.inputs.definition.names)))
        for number, event in enumerate(events):
            values[number] = self._features(event, arriving.events)
            if len(events) > 1:
                arriving.add(event, limits)
        return Windows(values, events, snapshot.state)

    def _features(self, event: StoredEvent, events: Mapping[bytes, bytes]) -> list[float]:
        keys = {part.entity: part.key for part in event.parts}
        features: list[float] = []
        for entity, history in self._histories.items():
            if key := keys.get(entity):
                features += history.features(events.get(key, b""), event.time, event.id)
            else:
                features += [math.nan] * history.count
        return features

    def lacks_history(self, windows: Windows, rows: Sequence[Event]) -> bool:
        """Return whether a window of any row begins before the events that the store knows."""
        since = windows.state.since
        times = [row.time for row in rows if row.time is not None]
        return bool(times) and (since is None or min(times) - self._longest < since)

    def _stored(self, row: Event) -> StoredEvent:
        if row.time is None:
            return StoredEvent(NO_ID, 0, ())
        one = NO_ID if row.id is None else self._hasher.id(row.id)
        return StoredEvent(one, row.time, tuple(self._parts(row, one)))

    def _parts(self, row: Event, one: int) -> Iterator[Part]:
        for entity, history in self._histories.items():
            text = row.keys[entity]
            if text is not None:
                packed = history.pack(row, one, self._hasher.value)
                key = self._hasher.key(entity, text)
                yield Part(entity, key, packed, self._retention[entity], history.label is not None)

    @property
    def _limits(self) -> Limits:
        return Limits(self._clock(), self.inputs.horizon, self._max_events)

    # ------------------------------------------------------------ changes

    def record(self, events: Sequence[StoredEvent]) -> Recorded:
        """Record rows that `features` returned; known ids and late events are left out.

        Raises:
            WindowStoreError: the database cannot be used; nothing is recorded then.
        """
        return self._record(events, self._limits)

    def _record(self, events: Sequence[StoredEvent], limits: Limits) -> Recorded:
        complete = [event for event in events if event.parts]
        if not complete:
            return Recorded([])
        return self.backend.record(self.space, complete, limits)

    def add(self, rows: Sequence[Event]) -> Recorded:
        """Record rows that are not scored."""
        self._follow(self.state())
        return self.record([self._stored(row) for row in rows])

    def load(self, rows: Sequence[Event]) -> Recorded:
        """Record rows of the past in any order; only those that no window reaches are late."""
        self._follow(self.state())
        limits = replace(self._limits, horizon=None)
        return self._record([self._stored(row) for row in rows], limits)

    def label(self, labels: Sequence[Label]) -> Sequence[bool]:
        """Label events; return which of them the store knows.

        Raises:
            WindowStoreError: the database cannot be used.
        """
        known = [(self._hasher.id(one.id), one.at if one.is_anomaly else NEVER) for one in labels]
        return self.backend.label(self.space, known)

    def forget(self, entity: str, value: object) -> int:
        """Delete the events of an entity; return whether there were any, as 0 or 1."""
        text = entity_text(value)
        return self.backend.forget([self._hasher.key(entity, text)]) if text else 0

    # ------------------------------------------------------------ contents

    def history(self, entity: str, value: object) -> NDArray[np.int64]:
        """Return the kept events of an entity, in order of time, as packed words (N, W)."""
        text = entity_text(value) or ""
        return self.histories(entity, [text])[text]

    def histories(self, entity: str, texts: Sequence[str]) -> Mapping[str, NDArray[np.int64]]:
        """Return the kept events of several values of an entity; see `history`."""
        keys = {text: self._hasher.key(entity, text) for text in texts}
        snapshot = self.backend.read(self.space, [*keys.values()], ())
        oldest = (snapshot.state.newest or 0) - self._retention[entity]
        unpack = self.layout(entity).unpack
        words = {text: unpack(snapshot.events.get(key, b"")) for text, key in keys.items()}
        return {text: events[events[:, 0] >= oldest] for text, events in words.items()}

    def layout(self, entity: str) -> EntityHistory:
        """Return the layout of the packed events of an entity."""
        return self._histories[entity]

    def known_ids(self, ids: Sequence[str]) -> Mapping[str, int]:
        """Return those ids that the store knows, with their hashes in packed events."""
        hashes = {one: self._hasher.id(one) for one in ids}
        known = self.backend.read(self.space, (), [*hashes.values()]).known
        return {one: number for one, number in hashes.items() if number in known}

    def hashes(self, values: Sequence[str]) -> Mapping[str, int]:
        """Return the hash of each value in packed events."""
        return {value: self._hasher.value(value) for value in values}

    def complete_from(self, state: SpaceState) -> int | None:
        """Return the time from which on rows see all events in their windows, in microseconds.

        None if there are no events.
        """
        if state.since is None or state.newest is None:
            return None
        reach = self.inputs.definition.reach
        spare = min(self._retention[entity] - age for entity, age in reach.items())
        return max(state.since + self._longest, state.newest - spare)


class _Arriving:
    """The events that a row of a request sees: those of the store, and those of rows before it."""

    def __init__(self, events: dict[bytes, bytes], known: set[int], newest: int | None) -> None:
        self.events, self._known, self._newest = events, known, newest

    def add(self, event: StoredEvent, limits: Limits) -> None:
        """Add a row, as the store will record it."""
        if not event.parts or event.id in self._known or limits.is_late(event, self._newest):
            return
        self._known |= {event.id} - {NO_ID}
        self._newest = limits.newest(event, self._newest)
        for part in event.parts:
            self.events[part.key] = placed(self.events.get(part.key, b""), part.packed)
