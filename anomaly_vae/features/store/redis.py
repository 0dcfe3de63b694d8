"""Keep past events in Redis or Valkey, which several machines share.

Each entity is one string of packed events, and the state of a layout is one, too, so that one
command reads them all. Scripts change them on the server, in one step for all events of a request.
Keys expire by themselves, counted from the last event that was recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features.history import NO_ID
from anomaly_vae.features.store.records import (
    WORD,
    Limits,
    Outcome,
    Recorded,
    Snapshot,
    SpaceState,
    StoredEvent,
    merged,
)

PREFIX = b"anomaly-vae:windows:"
"""Prefix of every key."""
VERSION = b"2"
"""Version of the layout of the keys."""
PERIOD = 30 * 86_400_000_000
"""Length of the periods in which entities are counted, in microseconds."""
MILLISECONDS = 1_000
"""Microseconds per millisecond."""
RECORD = """
local space, counter, at = KEYS[1], KEYS[2], 0
local function take() at = at + 1; return ARGV[at] end
local function take_number() return tonumber(take()) end
local function time_at(events, start) return (struct.unpack('<i8', events, start)) end

local now, horizon, most, period = take_number(), take_number(), take_number(), take_number()
local state = redis.call('GET', space) or '- - {}'
local newest, since, retention = state:match('^(%S+) (%S+) (.*)$')
newest, since = tonumber(newest), tonumber(since)
local dropped, outcomes = 0, {}

local function place(key, packed, time)
    local width, length = #packed, redis.call('STRLEN', key)
    local last = length > 0 and redis.call('GETRANGE', key, length - width, length - width + 7)
    if not last or time_at(last, 1) <= time then return redis.call('APPEND', key, packed) end
    local events, stop = redis.call('GET', key), length
    while stop > 0 and time_at(events, stop - width + 1) > time do stop = stop - width end
    redis.call('SET', key, events:sub(1, stop) .. packed .. events:sub(stop + 1))
end

local function trim(key, width, oldest)
    local length, start = redis.call('STRLEN', key), 0
    local first = time_at(redis.call('GETRANGE', key, 0, 7), 1)
    if first >= oldest and length <= most * width then return end
    local events = redis.call('GET', key)
    while start < length and time_at(events, start + 1) < oldest do start = start + width end
    local excess = math.max((length - start) / width - most, 0)
    dropped, start = dropped + excess, start + excess * width
    redis.call('SET', key, events:sub(start + 1))
end

while at < #ARGV do
    local id, time, retention, labelled = take(), take_number(), take_number(), take()
    local count, expires = take_number(), math.floor(retention / 1000)
    local is_late = newest and newest - time > (horizon >= 0 and horizon or retention)
    local outcome = 0
    if is_late then
        outcome = id ~= '' and redis.call('EXISTS', id) == 1 and 1 or 2
    elseif id ~= '' and not redis.call('SET', id, labelled, 'NX', 'PX', expires) then
        outcome = 1
        redis.call('PEXPIRE', id, expires)
    else
        newest = math.max(newest or -math.huge, math.min(time, now))
        since = math.min(since or time, time)
    end
    outcomes[#outcomes + 1] = outcome
    for _ = 1, count do
        local key, packed, age = take(), take(), take_number()
        if outcome == 0 then
            place(key, packed, time)
            trim(key, #packed, newest - age)
            redis.call('PFADD', counter, key)
        end
        if outcome < 2 then redis.call('PEXPIRE', key, math.floor(age / 1000)) end
    end
end
if newest then
    redis.call('SET', space, string.format('%.0f %.0f %s', newest, since, retention))
end
redis.call('PEXPIRE', counter, period)
return {outcomes, dropped}
"""
"""Script that places events."""
LABEL = """
local keys = redis.call('GET', KEYS[1])
if not keys then return 0 end
local id, known, prefix = ARGV[1], ARGV[2], ARGV[3]
for start = 1, #keys, 18 do
    local key = prefix .. keys:sub(start, start + 15)
    local width, events = struct.unpack('<I2', keys, start + 16), redis.call('GET', key) or ''
    for at = 0, #events - width, width do
        if events:sub(at + 9, at + 16) == id then redis.call('SETRANGE', key, at + 16, known) end
    end
end
return 1
"""
"""Script that sets the time at which an event is known as an anomaly."""
OUTCOMES: tuple[Outcome, ...] = ("recorded", "duplicate", "late")


class RedisBackend:
    """A window store in Redis or Valkey.

    Args:
        url: URL of the server, with its password if it has one.
        seconds: maximum time to wait for a connection or an answer.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._client = redis.Redis.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 1),  # once, because the server may have closed the connection
        )
        self._record = self._client.register_script(RECORD)
        self._label = self._client.register_script(LABEL)

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            reason = f"window store '{self._url}' cannot be used: {error}"
            raise WindowStoreError(reason) from None

    def close(self) -> None:
        """Close all connections; they are opened again when needed."""
        self._client.close()

    def register(self, space: str, retention: Mapping[str, int], check: str) -> SpaceState:
        """Open the events of a layout, and keep them at least as long as ``retention``.

        Raises:
            WindowStoreError: the server cannot be used, or the store was written with another salt.
        """
        with self._using():
            self._check_meta(check)
            return self._merge(space, retention)

    def spaces(self, check: str) -> list[str]:
        """Return the digests of all layouts."""
        with self._using():
            self._check_meta(check)
            prefix = _space_key("")
            keys = self._client.scan_iter(match=prefix + b"*")
            return [key.removeprefix(prefix).decode() for key in keys]

    def _check_meta(self, check: str) -> None:
        anew = "delete its keys anomaly-vae:windows:*, and load it anew"
        self._check(b"version", VERSION, f"by another version of anomaly-vae; {anew}")
        salt = "with another ANOMALY_VAE_WINDOWS_SALT; restore it"
        self._check(b"salt", check.encode(), salt)

    def _check(self, name: bytes, value: bytes, reason: str) -> None:
        self._client.hsetnx(PREFIX + b"meta", name, value)
        if self._client.hget(PREFIX + b"meta", name) != value:
            raise WindowStoreError(f"window store '{self._url}' was written {reason}")

    def _merge(self, space: str, retention: Mapping[str, int]) -> SpaceState:
        key = _space_key(space)

        def change(pipe: Pipeline) -> SpaceState:
            state = merged(_state(pipe.get(key)), retention, expires_by_age=True)
            pipe.multi()
            pipe.set(key, _state_text(state))
            return state

        transaction: Any = self._client.transaction  # its types do not know of the value
        state: SpaceState = transaction(change, key, value_from_callable=True)
        return state

    def read(self, space: str, keys: Sequence[bytes], ids: Sequence[int]) -> Snapshot:
        """Return what the store knows of these entities and ids."""
        names = _space_key(space), *map(_entity_key, keys), *map(_id_key, ids)
        with self._using():
            found: list[Any] = self._client.mget(names)
        events = {key: packed for key, packed in zip(keys, found[1:], strict=False) if packed}
        known = zip(ids, found[1 + len(keys) :], strict=True)
        return Snapshot(
            events, frozenset(one for one, value in known if value is not None), _state(found[0])
        )

    def record(self, space: str, events: Sequence[StoredEvent], limits: Limits) -> Recorded:
        """Place events in one step."""
        horizon = -1 if limits.horizon is None else limits.horizon
        arguments: list[Any] = [limits.now, horizon, limits.max_events, 2 * PERIOD // MILLISECONDS]
        arguments += [argument for event in events for argument in _arguments(event)]
        keys = [_space_key(space), _counter_key(limits.now // PERIOD)]
        with self._using():
            outcomes, dropped = self._record(keys, arguments)
        return Recorded([OUTCOMES[outcome] for outcome in outcomes], dropped)

    def label(self, space: str, labels: Sequence[tuple[int, int]]) -> Sequence[bool]:
        """Set the time at which events are known as anomalies."""
        del space  # hashes of ids contain it
        prefix = _entity_key(b"")
        with self._using():
            pipe = self._client.pipeline()
            for one, at in labels:
                self._label([_id_key(one)], [_word(one), _word(at), prefix], client=pipe)
            return [bool(known) for known in pipe.execute()]

    def forget(self, keys: Sequence[bytes]) -> int:
        """Delete the events of entities."""
        with self._using():
            count: int = self._client.delete(*map(_entity_key, keys))
            return count

    def expire(self, limit: int) -> int:
        """Do nothing, because keys expire by themselves."""
        del limit
        return 0

    def entities(self) -> int:
        """Return about how many entities had events in the last one to two months."""
        with self._using():
            seconds, _ = self._client.time()
            period = seconds * 1_000_000 // PERIOD
            count: int = self._client.pfcount(_counter_key(period - 1), _counter_key(period))
            return count


def _arguments(event: StoredEvent) -> Iterator[Any]:
    """Yield an event and its parts as the script takes them."""
    yield b"" if event.id == NO_ID else _id_key(event.id)
    yield from (event.time, event.retention, event.labelled_keys, len(event.parts))
    for part in event.parts:
        yield from (_entity_key(part.key), part.packed, part.retention)


def _state(found: Any) -> SpaceState:
    """Return a state from its text: two times, or "-", and the retention."""
    newest, since, retention = (found or b"- - {}").decode().split(" ", 2)
    return SpaceState(_time(newest), _time(since), retention)


def _time(text: str) -> int | None:
    return None if text == "-" else int(text)


def _state_text(state: SpaceState) -> str:
    times = ("-" if time is None else str(time) for time in state[:2])
    return " ".join((*times, state.retention))


def _space_key(space: str) -> bytes:
    return PREFIX + b"space:" + space.encode()


def _entity_key(key: bytes) -> bytes:
    return PREFIX + b"e:" + key


def _id_key(one: int) -> bytes:
    return PREFIX + b"i:" + _word(one)


def _counter_key(period: int) -> bytes:
    return PREFIX + b"entities:%d" % period


def _word(number: int) -> bytes:
    return number.to_bytes(WORD, "little", signed=True)
