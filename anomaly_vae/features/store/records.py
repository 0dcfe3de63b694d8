"""Define what a backend of the window store keeps, and how packed events are placed and dropped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from anomaly_vae.features.history import NO_ID

Outcome = Literal["recorded", "duplicate", "late"]
"""What became of an event."""
WORD = 8
"""Size of a word of a packed event, in bytes."""
KEY_BYTES = 16
"""Size of the key of an entity, in bytes."""


class Part(NamedTuple):
    """An event of one entity."""

    entity: str
    """Column of the entity."""
    key: bytes
    """Hash of the entity's value."""
    packed: bytes
    retention: int
    """Age up to which events of the entity are kept, in microseconds."""
    is_labelled: bool
    """Whether the event has a word for the time at which an anomaly became known."""


class StoredEvent(NamedTuple):
    """An event, packed for each of its entities."""

    id: int
    """Hash of the id; `NO_ID` if it has none."""
    time: int
    """Time in microseconds since 1970."""
    parts: tuple[Part, ...]

    @property
    def retention(self) -> int:
        """Age up to which the id is kept, in microseconds."""
        return max((part.retention for part in self.parts), default=0)

    @property
    def labelled_keys(self) -> bytes:
        """Keys of the entities to which a label of this event matters, each with its width."""
        labelled = (part for part in self.parts if part.is_labelled)
        return b"".join(part.key + len(part.packed).to_bytes(2, "little") for part in labelled)


@dataclass(frozen=True)
class Limits:
    """Rules by which events are placed or left out."""

    now: int
    """Present time, in microseconds; events cannot move the newest time beyond it."""
    horizon: int | None = None
    """Age beyond which an event counts as late; None: only if no entity keeps it."""
    max_events: int = 10_000
    """Maximum number of events kept of one entity."""

    def is_late(self, event: StoredEvent, newest: int | None) -> bool:
        """Return whether an event is too old to be placed."""
        age = 0 if newest is None else newest - event.time
        return age > (event.retention if self.horizon is None else self.horizon)

    def newest(self, event: StoredEvent, newest: int | None) -> int:
        """Return the newest time once an event has arrived."""
        time = min(event.time, self.now)
        return time if newest is None else max(newest, time)


class SpaceState(NamedTuple):
    """The state of the events of one layout; None where there are no events."""

    newest: int | None = None
    """Time of the newest event, in microseconds, but never in the future."""
    since: int | None = None
    """Time from which on the history is complete, in microseconds."""
    retention: str = "{}"
    """Age up to which events are kept, in microseconds, by entity column, as JSON."""


class Snapshot(NamedTuple):
    """Stored events of some entities, and known ids."""

    events: Mapping[bytes, bytes]
    """Packed events in order of time, by key; absent entities have none."""
    known: frozenset[int] = frozenset()
    """Ids that are recorded already."""
    state: SpaceState = SpaceState()


class Recorded(NamedTuple):
    """Counts of events by outcome, and how many were dropped because an entity has too many."""

    outcomes: Sequence[Outcome]
    dropped: int = 0


class Backend(Protocol):
    """A database of packed events; its methods raise `WindowStoreError` if it cannot be used."""

    def register(self, space: str, retention: Mapping[str, int], check: str) -> SpaceState:
        """Open the events of a layout; ``check`` must be the same for all that open the store."""

    def read(self, space: str, keys: Sequence[bytes], ids: Sequence[int]) -> Snapshot:
        """Return what the store knows of these entities and ids."""

    def record(self, space: str, events: Sequence[StoredEvent], limits: Limits) -> Recorded:
        """Place events, all or none; those whose id is known, or that are late, are left out."""

    def label(self, space: str, labels: Sequence[tuple[int, int]]) -> Sequence[bool]:
        """Set the time at which events are known as anomalies; return which ids are known."""

    def spaces(self, check: str) -> list[str]:
        """Return the digests of all layouts; ``check`` must be that of `register`."""

    def forget(self, keys: Sequence[bytes]) -> int:
        """Delete the events of entities; return how many entities had any."""

    def expire(self, limit: int) -> int:
        """Visit up to ``limit`` entities and ids, and delete expired events; return how many."""

    def entities(self) -> int:
        """Return the number of entities with events."""

    def close(self) -> None:
        """Release connections."""


def merged(
    state: SpaceState, retention: Mapping[str, int], expires_by_age: bool = False
) -> SpaceState:
    """Keep events at least as long as ``retention``; longer windows lack what was dropped.

    With ``expires_by_age``, entities without events from now on expire by the former age, so that
    none of the present events is sure to be kept longer.
    """
    before: dict[str, int] = json.loads(state.retention)
    since = state.since
    for entity, age in retention.items():
        if entity in before and before[entity] < age and state.newest is not None:
            lost = state.newest - (0 if expires_by_age else before[entity])
            since = max(since or 0, lost)
        before[entity] = max(age, before.get(entity, 0))
    return SpaceState(state.newest, since, json.dumps(before, sort_keys=True))


class Hasher:
    """Hashes of entities, ids and values of one layout, with a secret salt if there is one.

    >>> Hasher("", "a0").key("card", "12") == Hasher("pepper", "a0").key("card", "12")
    False
    """

    def __init__(self, salt: str, space: str) -> None:
        encoded = salt.encode()
        self._salt = encoded if len(encoded) <= 64 else hashlib.sha256(encoded).digest()
        self._key, self._id, self._value = (
            hashlib.blake2b(f"{space}\0{kind}\0".encode(), digest_size=size, key=self._salt)
            for kind, size in (("key", KEY_BYTES), ("id", WORD), ("value", WORD))
        )

    @property
    def check(self) -> str:
        """Text that differs for another salt and does not reveal it."""
        return hashlib.blake2b(b"check", digest_size=KEY_BYTES, key=self._salt).hexdigest()

    def key(self, entity: str, text: str) -> bytes:
        """Return the key of an entity, 16 bytes."""
        return _digest(self._key, f"{entity}\0{text}")

    def id(self, text: str) -> int:
        """Return a hash of an id, of 63 bits and never `NO_ID`."""
        return _to_number(_digest(self._id, text))

    def value(self, text: str) -> int:
        """Return a hash of a value, of 63 bits and never `NO_ID`."""
        return _to_number(_digest(self._value, text))


def _digest(base: hashlib.blake2b, text: str) -> bytes:
    digest = base.copy()
    digest.update(text.encode())
    return digest.digest()


def _to_number(digest: bytes) -> int:
    return int.from_bytes(digest, "little") >> 1 or NO_ID + 1


def placed(events: bytes, packed: bytes) -> bytes:
    """Insert a packed event behind those of the same or an earlier time.

    >>> import struct
    >>> one, two, three = (struct.pack("<qq", time, 0) for time in (1, 2, 3))
    >>> placed(one + three, two) == one + two + three
    True
    """
    width, time = len(packed), int.from_bytes(packed[:WORD], "little", signed=True)
    if int.from_bytes(events[-width:][:WORD], "little", signed=True) <= time or not events:
        return events + packed
    at = _count_before(events, time + 1, width) * width
    return events[:at] + packed + events[at:]


def kept(events: bytes, oldest: int, width: int, max_events: int) -> tuple[bytes, int]:
    """Drop the events before a time, and the oldest of too many.

    Returns:
        The rest, and how many were dropped because there are too many.
    """
    if int.from_bytes(events[:WORD], "little", signed=True) < oldest:
        events = events[_count_before(events, oldest, width) * width :]
    excess = max(len(events) // width - max_events, 0)
    return events[excess * width :], excess


def last_time(events: bytes, width: int) -> int:
    """Return the time of the last of packed events, in microseconds."""
    return int.from_bytes(events[-width:][:WORD], "little", signed=True)


def labelled(events: bytes, one: int, at: int, width: int) -> bytes:
    """Set the time at which the event with an id becomes known as an anomaly."""
    words = np.frombuffer(events, np.int64).reshape(-1, width // WORD).copy()
    words[words[:, 1] == one, 2] = at
    return words.tobytes()


def _count_before(events: bytes, time: int, width: int) -> int:
    times = np.frombuffer(events, np.int64)[:: width // WORD]
    return int(times.searchsorted(time))
