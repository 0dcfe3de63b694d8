"""Keep past events in an SQLite file, which the processes of one machine share.

Each entity is one row with its packed events, whose number is a hash, so that it is found without
an index. The write-ahead log lets processes read while one writes. It is not flushed to the disk at
each commit: a power failure may lose the events of the last seconds, but never damages the file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features.history import NO_ID
from anomaly_vae.features.store.records import (
    KEY_BYTES,
    WORD,
    Limits,
    Outcome,
    Part,
    Recorded,
    Snapshot,
    SpaceState,
    StoredEvent,
    kept,
    labelled,
    merged,
    placed,
)

VERSION = 2
"""Version of the tables."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value);
CREATE TABLE IF NOT EXISTS spaces (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL, newest INTEGER, since INTEGER,
    retention TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS entities (
    id INTEGER PRIMARY KEY, space INTEGER NOT NULL, entity TEXT NOT NULL, width INTEGER NOT NULL,
    events BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS ids (
    id INTEGER PRIMARY KEY, space INTEGER NOT NULL, time INTEGER NOT NULL, keys BLOB NOT NULL
);
"""
PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": "normal",
    "cache_size": -65_536,
    "wal_autocheckpoint": 10_000,
}
"""Settings of a connection: 64 MiB of cache; long logs, because `expire` writes them back."""
BUSY_SECONDS = 2.0
"""Maximum time to wait for another process to write, in seconds."""
FEW = 8
"""Number of entities up to which a query has a part for each."""
MAX_KEYS = 500
"""Maximum number of keys in one query."""


class _Seen(NamedTuple):
    """Entities that a connection has read, which hold until anybody writes to the file."""

    space: str
    asked: frozenset[int]
    """Row numbers of the entities that were asked for."""
    events: Mapping[int, bytes]
    """Packed events of those that the store knows, by row number."""
    state: SpaceState
    changes: int
    """Number of changes that the connection had made."""


class _Connection(sqlite3.Connection):
    """A connection of one thread."""

    version: int | None = None
    """Version of the file in the last transaction of `SqliteBackend.record`."""
    seen: _Seen | None = None
    """What was read since."""


class _Placed(NamedTuple):
    """The events of an entity that are to be written, with the last of its parts."""

    events: bytes
    part: Part
    is_new: bool


class SqliteBackend:
    """A window store in one file.

    Args:
        path: the file; it and its folder are created if they do not exist.
        seconds: maximum time to wait for another process to write.
        create: whether to create the file if it does not exist.

    Raises:
        WindowStoreError: the file cannot be used.
    """

    def __init__(self, path: Path, seconds: float = BUSY_SECONDS, create: bool = True) -> None:
        self._path, self._seconds, self._local = path, seconds, threading.local()
        self._create_file = create

    # ------------------------------------------------------------ connections

    @property
    def _db(self) -> _Connection:
        """Connection of this thread."""
        if not hasattr(self._local, "db"):
            self._local.db = self._connect()
        db: _Connection = self._local.db
        return db

    def _connect(self) -> _Connection:
        try:
            if self._create_file:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = not self._path.exists()
            if new and not self._create_file:
                raise WindowStoreError(
                    f"window store '{self._path}' does not exist; correct its URL, or fill it "
                    "with: anomaly-vae windows load"
                )
            db = sqlite3.connect(
                self._path, self._seconds, isolation_level=None, factory=_Connection
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None
        if new:
            self._path.chmod(0o600)
        for name, value in PRAGMAS.items():
            db.execute(f"PRAGMA {name} = {value}")
        return db

    def _unusable(self, error: Exception) -> WindowStoreError:
        reason = getattr(error, "strerror", None) or str(error)
        return WindowStoreError(f"window store '{self._path}' cannot be used: {reason}")

    def _failed(self, error: sqlite3.Error) -> WindowStoreError:
        """Close the connection after an error, which is returned as one of the store."""
        self.close()
        return self._unusable(error)

    @contextmanager
    def _reading(self) -> Iterator[_Connection]:
        try:
            yield self._db
        except sqlite3.Error as error:
            raise self._failed(error) from None

    @contextmanager
    def _writing(self) -> Iterator[_Connection]:
        """Change the store in one transaction, which is undone after an error."""
        try:
            db = self._db
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Close the connection of this thread; it is opened again when needed."""
        if hasattr(self._local, "db"):
            self._local.db.close()
            del self._local.db

    # ------------------------------------------------------------ layouts

    def _create(self, check: str) -> None:
        with self._reading() as db:
            db.executescript(SCHEMA)
        with self._writing() as db:
            anew = "by another version of anomaly-vae; delete it, and load it anew"
            self._check(db, "version", VERSION, anew)
            self._check(db, "salt", check, "with another ANOMALY_VAE_WINDOWS_SALT; restore it")

    def spaces(self, check: str) -> list[str]:
        """Return the digests of all layouts."""
        self._create(check)
        with self._reading() as db:
            return [digest for (digest,) in db.execute("SELECT digest FROM spaces")]

    def register(self, space: str, retention: Mapping[str, int], check: str) -> SpaceState:
        """Open the events of a layout, and keep them at least as long as ``retention``.

        Raises:
            WindowStoreError: the file cannot be used, or was written with another salt.
        """
        self._create(check)
        with self._writing() as db:
            state = merged(_state(db, space), retention)
            db.execute(
                "INSERT INTO spaces VALUES (?, ?, NULL, ?, ?) ON CONFLICT (id)"
                " DO UPDATE SET since = excluded.since, retention = excluded.retention",
                (_space_number(space), space, state.since, state.retention),
            )
        return state

    def _check(self, db: sqlite3.Connection, name: str, value: object, reason: str) -> None:
        db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        (found,) = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if found != value:
            raise WindowStoreError(f"window store '{self._path}' was written {reason}")

    # ------------------------------------------------------------ events

    def read(self, space: str, keys: Sequence[bytes], ids: Sequence[int]) -> Snapshot:
        """Return what the store knows of these entities and ids."""
        rows = {row_number(key): key for key in keys}
        with self._reading() as db:
            if not ids and len(keys) <= MAX_KEYS:
                db.seen = seen = _look(db, space, rows)
                events, state = seen.events, seen.state
                return Snapshot({rows[row]: packed for row, packed in events.items()}, state=state)
            db.execute("BEGIN")  # so that all parts are of one moment
            try:
                found = _select(db, "SELECT id, events FROM entities WHERE id IN", [*rows])
                known = _select(db, "SELECT id FROM ids WHERE id IN", ids)
                return Snapshot(
                    {rows[row]: events for row, events in found},
                    frozenset(one for (one,) in known),
                    _state(db, space),
                )
            finally:
                db.execute("COMMIT")

    def record(self, space: str, events: Sequence[StoredEvent], limits: Limits) -> Recorded:
        """Place events in one transaction."""
        rows = {row_number(part.key) for event in events for part in event.parts}
        with self._writing() as db:
            seen = _seen(db, space, rows)
            recording = _Recording(db, _space_number(space), seen, limits)
            outcomes = [recording.record(event) for event in events]
            return Recorded(outcomes, recording.finish())

    def label(self, space: str, labels: Sequence[tuple[int, int]]) -> Sequence[bool]:
        """Set the time at which events are known as anomalies."""
        with self._writing() as db:
            return [self._label(db, _space_number(space), *one) for one in labels]

    @staticmethod
    def _label(db: sqlite3.Connection, space: int, one: int, at: int) -> bool:
        query = "SELECT keys FROM ids WHERE id = ? AND space = ?"
        found = db.execute(query, (one, space)).fetchone()
        for key, width in _labelled_keys(found[0]) if found else ():
            row = row_number(key)
            if events := _events(db, row):
                changed = labelled(events, one, at, width)
                db.execute("UPDATE entities SET events = ? WHERE id = ?", (changed, row))
        return bool(found)

    # ------------------------------------------------------------ removal

    def forget(self, keys: Sequence[bytes]) -> int:
        """Delete the events of entities."""
        with self._writing() as db:
            count = sum(
                db.execute("DELETE FROM entities WHERE id = ?", (row_number(key),)).rowcount
                for key in keys
            )
            _add_entities(db, -count)
        with self._reading() as db:  # so that no old page keeps them
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def expire(self, limit: int) -> int:
        """Delete expired events of the next entities and ids, and write the log back."""
        with self._writing() as db:
            count = _expire_ids(db, limit) + _expire_entities(db, limit)
        with self._reading() as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        return count

    def entities(self) -> int:
        """Return the number of entities with events."""
        with self._reading() as db:
            return _number(db, "entities")


class _Recording:
    """A transaction that places events, and writes each entity once."""

    def __init__(self, db: sqlite3.Connection, space: int, seen: _Seen, limits: Limits) -> None:
        self._db, self._space, self._seen, self._limits = db, space, seen, limits
        self._newest, self._since = self._known = seen.state.newest, seen.state.since
        self._placed: dict[int, _Placed] = {}

    def record(self, event: StoredEvent) -> Outcome:
        """Place one event."""
        if self._limits.is_late(event, self._newest):
            return "duplicate" if self._is_known(event.id) else "late"
        if event.id != NO_ID and not self._insert_id(event):
            return "duplicate"
        self._newest = self._limits.newest(event, self._newest)
        self._since = min(event.time, event.time if self._since is None else self._since)
        for part in event.parts:
            row = row_number(part.key)
            events, _, is_new = self._placed.get(row) or self._read(row, part)
            self._placed[row] = _Placed(placed(events, part.packed), part, is_new)
        return "recorded"

    def _is_known(self, one: int) -> bool:
        return self._db.execute("SELECT 1 FROM ids WHERE id = ?", (one,)).fetchone() is not None

    def _insert_id(self, event: StoredEvent) -> bool:
        row = event.id, self._space, event.time, event.labelled_keys
        return self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?, ?)", row).rowcount > 0

    def _read(self, row: int, part: Part) -> _Placed:
        events = self._seen.events.get(row)
        if events is None and row not in self._seen.asked:
            events = _events(self._db, row)
        return _Placed(events or b"", part, events is None)

    def finish(self) -> int:
        """Write the entities and the state; return how many events were dropped as too many."""
        rows, added, dropped = [], 0, 0
        for row, (events, part, is_new) in self._placed.items():
            rest, excess = self._kept(events, part)
            dropped += excess
            if rest or not is_new:  # `expire` deletes it if it is empty now
                rows.append((row, self._space, part.entity, len(part.packed), rest))
                added += is_new
        self._db.executemany("REPLACE INTO entities VALUES (?, ?, ?, ?, ?)", rows)
        _add_entities(self._db, added)
        if (self._newest, self._since) != self._known:
            update = "UPDATE spaces SET newest = ?, since = ? WHERE id = ?"
            self._db.execute(update, (self._newest, self._since, self._space))
        return dropped

    def _kept(self, events: bytes, part: Part) -> tuple[bytes, int]:
        assert self._newest is not None
        oldest = self._newest - part.retention
        return kept(events, oldest, len(part.packed), self._limits.max_events)


def _state(db: sqlite3.Connection, space: str) -> SpaceState:
    query = "SELECT newest, since, retention FROM spaces WHERE id = ?"
    found = db.execute(query, (_space_number(space),)).fetchone()
    return SpaceState(*found) if found else SpaceState()


@cache
def _entities_query(count: int) -> str:
    """Return one statement for a state and ``count`` entities, since each locks the file.

    `IN` builds a table first, which takes longer than to look up a few entities.
    """
    entities = "SELECT id, events, NULL, NULL FROM entities WHERE id"
    places = [f"IN ({','.join('?' * count)})"] if count > FEW else ["= ?"] * count
    state = "SELECT NULL, newest, since, retention FROM spaces WHERE id = ?"
    return " UNION ALL ".join([state, *(f"{entities} {place}" for place in places)])


def _look(db: sqlite3.Connection, space: str, rows: Collection[int]) -> _Seen:
    """Read entities, up to `MAX_KEYS`, and the state of a layout."""
    found = db.execute(_entities_query(len(rows)), (_space_number(space), *rows)).fetchall()
    state = next((SpaceState(*values) for row, *values in found if row is None), SpaceState())
    events = {row: events for row, events, *_ in found if row is not None}
    return _Seen(space, frozenset(rows), events, state, db.total_changes)


def _seen(db: _Connection, space: str, rows: set[int]) -> _Seen:
    """Return what was read of entities, or read it again if anybody has written since.

    If the version of the file is that of the last transaction of this connection, no other
    connection has written in between.
    """
    (version,) = db.execute("PRAGMA data_version").fetchone()
    before, seen = db.version, db.seen
    db.version, db.seen = version, None
    is_current = seen and (version, db.total_changes) == (before, seen.changes)
    if seen and is_current and space == seen.space and rows <= seen.asked:
        return seen
    return _look(db, space, list(rows)[:MAX_KEYS])


def _space_number(space: str) -> int:
    """Return the row number of a layout, the first 60 bits of its digest."""
    return int(space[:15], 16)


def row_number(key: bytes) -> int:
    """Return the row number of an entity, the first 63 bits of its key."""
    return int.from_bytes(key[:WORD], "little") >> 1


def _events(db: sqlite3.Connection, row: int) -> bytes | None:
    """Return the packed events of an entity; None if it is not in the store."""
    found = db.execute("SELECT events FROM entities WHERE id = ?", (row,)).fetchone()
    events: bytes | None = found and found[0]
    return events


def _select(db: sqlite3.Connection, query: str, values: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(values), MAX_KEYS):
        part = values[start : start + MAX_KEYS]
        yield from db.execute(f"{query} ({','.join('?' * len(part))})", part)


def _labelled_keys(keys: bytes) -> Iterator[tuple[bytes, int]]:
    for start in range(0, len(keys), KEY_BYTES + 2):
        one = keys[start : start + KEY_BYTES + 2]
        yield one[:KEY_BYTES], int.from_bytes(one[KEY_BYTES:], "little")


def _number(db: sqlite3.Connection, name: str) -> int:
    found = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else 0


def _add_entities(db: sqlite3.Connection, count: int) -> None:
    if count:
        db.execute(
            "INSERT INTO meta VALUES ('entities', ?) ON CONFLICT (name)"
            " DO UPDATE SET value = value + excluded.value",
            (count,),
        )


def _set(db: sqlite3.Connection, name: str, value: int) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _next(db: sqlite3.Connection, table: str, limit: int) -> tuple[int, int]:
    """Return the range of ids to visit next, begin excluded; after the last one, start again."""
    first = _number(db, f"expired_{table}")
    query = f"SELECT max(id) FROM (SELECT id FROM {table} WHERE id > ? ORDER BY id LIMIT ?)"  # noqa: S608
    (last,) = db.execute(query, (first, limit)).fetchone()
    _set(db, f"expired_{table}", last or 0)
    return first, last or 0


def _expire_ids(db: sqlite3.Connection, limit: int) -> int:
    first, last = _next(db, "ids", limit)
    query = "DELETE FROM ids WHERE space = ? AND id > ? AND id <= ? AND time < ?"
    return sum(
        db.execute(query, (space, first, last, newest - max(ages.values()))).rowcount
        for space, (newest, ages) in _ages(db).items()
    )


def _ages(db: sqlite3.Connection) -> dict[int, tuple[int, Mapping[str, int]]]:
    """Return the newest time of each layout with events, and how long it keeps those of entities.

    Models that are opened may raise these ages, also of events that are in the store.
    """
    query = "SELECT id, newest, retention FROM spaces WHERE newest IS NOT NULL"
    return {one: (newest, json.loads(text)) for one, newest, text in db.execute(query)}


def _expire_entities(db: sqlite3.Connection, limit: int) -> int:
    ages, removed, deleted = _ages(db), 0, 0
    query = "SELECT id, space, entity, width, events FROM entities WHERE id > ? AND id <= ?"
    found = db.execute(query, _next(db, "entities", limit)).fetchall()
    for one, space, entity, width, events in found:
        if space not in ages:
            continue
        newest, age = ages[space][0], ages[space][1][entity]
        rest, _ = kept(events, newest - age, width, len(events))
        removed += (len(events) - len(rest)) // width
        deleted += not rest
        if not rest:
            db.execute("DELETE FROM entities WHERE id = ?", (one,))
        elif len(rest) < len(events):
            db.execute("UPDATE entities SET events = ? WHERE id = ?", (rest, one))
    _add_entities(db, -deleted)
    return removed
