"""Following the registry: what is served is what an alias means now, or what it last meant.

A look asks, fetches, loads and tries the new version aside, writes down that it is good, and swaps
it in with one assignment. Whatever goes wrong before that, the old version keeps serving, and a
metric and one line in the log say so. Worker processes take turns at looking; what one finds goes
onto their board, a file, and the others take it from there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import msgspec

from anomaly_vae.errors import AnomalyVAEError, ConfigError, RegistryError
from serving.models.store import BundleRef, ServedModel, Store
from serving.observability import logs
from serving.observability.metrics import Metrics, Reason
from serving.registry.board import Board, Followed, FollowState
from serving.registry.sources import ALIAS, REMOTE, Sources, Spec, is_followed
from serving.scoring.loading import load_model
from serving.settings import Settings

log = logging.getLogger("serving.registry.follower")

JITTER = 0.2
"""Looks come this share of their interval early or late, so that replicas do not come at once."""
CATCH_UP_SECONDS = 0.2
"""The most that a look waits after a start from the cache, so that workers do not look at once."""
BOARD_SECONDS = 0.5
"""How often a worker looks at the board."""
NO_MEANS = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

Outcome = Literal["swapped", "unchanged", "fixed", "missing", "failed"]


class Reloaded(msgspec.Struct, frozen=True):
    """What became of one model: ``version`` is what serves now, ``previous`` what did before."""

    name: str
    shadow: bool
    outcome: Outcome
    version: str | None
    previous: str | None
    detail: str | None = None


class Reloads(msgspec.Struct, frozen=True):
    """What a look at the registry changed."""

    models: list[Reloaded]


class Follower:
    """Looks at the registry, of itself and when asked, and swaps in what has changed."""

    def __init__(
        self, store: Store, settings: Settings, metrics: Metrics, board: Board, sources: Sources
    ) -> None:
        self._store, self._metrics, self._board = store, metrics, board
        self._sources, self._interval = sources, settings.reload_seconds
        self._turns = asyncio.Lock()
        self._next: asyncio.Task[list[Reloaded]] | None = None
        self._running: asyncio.Task[list[Reloaded]] | None = None
        for one in self.followed:
            if is_followed(one.uri):
                metrics.follow(one.name, one.shadow, one.checked_at)

    @property
    def followed(self) -> Sequence[Followed]:
        """How each model stands, the shadows last."""
        return self._board.read().followed

    async def run(self) -> None:
        """Follow until cancelled."""
        if any(is_followed(one.uri) for one in self.followed):
            await asyncio.gather(self._poll(), self._watch())

    async def _poll(self) -> None:
        await self._catch_up()
        while self._interval:
            await asyncio.sleep(self._interval * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311  # no secret
            with _going_on():
                if time.time() - self._board.read().asked_at > self._interval / 2:
                    await self.reload()

    async def _catch_up(self) -> None:
        """Look soon where what serves is what served last; one worker is enough."""
        await asyncio.sleep(random.uniform(0, CATCH_UP_SECONDS))  # noqa: S311  # no secret
        standing = self._board.read()
        if not standing.asked_at:
            with _going_on():
                self._board.write(msgspec.structs.replace(standing, asked_at=time.time()))
                await self.reload()

    async def _watch(self) -> None:
        """Take over what another worker found."""
        while self._board.is_shared:
            await asyncio.sleep(BOARD_SECONDS)
            with _going_on():
                if self._board.has_news():
                    async with self._turns:
                        await self._adopt()

    async def reload(self) -> list[Reloaded]:
        """Look at the registry now.

        Whoever asks while a look is under way waits for the next one, with all others who do: it
        begins after they asked, and so sees what they mean.
        """
        return await asyncio.shield(self.soon())

    def soon(self) -> asyncio.Task[list[Reloaded]]:
        """Have the registry looked at, without waiting for it."""
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._take_turn())
        return self._next

    async def close(self) -> None:
        """Break off what is under way."""
        tasks = [task for task in (self._running, self._next) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_turn(self) -> list[Reloaded]:
        async with self._turns, self._board.turn():
            self._running, self._next = self._next, None
            await self._adopt()
            return [await self._look(i, one) for i, one in enumerate(self.followed)]

    async def _adopt(self) -> None:
        """Serve what stands on the board."""
        for one in self.followed:
            if one.source and is_followed(one.uri) and not self._serves(one, one.source):
                try:
                    served = await asyncio.to_thread(load_model, named(one, one.source))
                except Exception as error:  # noqa: BLE001  # the old version keeps serving
                    self._failed(one, error)
                else:
                    self._store.put(served, one.shadow)

    def _serves(self, one: Followed, source: BundleRef) -> bool:
        serving = self._serving(one)
        same = serving and (serving.version, serving.digest) == (source.version, source.digest)
        return bool(same)

    def _serving(self, one: Followed) -> ServedModel | None:
        among = self._store.shadows if one.shadow else self._store.current
        return among.get(str(one.name))

    async def _look(self, place: int, one: Followed) -> Reloaded:
        if not is_followed(one.uri):
            return self._told(one, one, "fixed")
        try:
            fresh = await self._find(place, one)
        except Exception as error:  # noqa: BLE001  # the old version keeps serving
            failed = self._failed(one, error)
            self._sources.forget(one.uri)
            with suppress(OSError):
                self._note(place, failed)
            missing = one.shadow and failed.reason == "missing"
            return self._told(one, failed, "missing" if missing else "failed")
        self._metrics.looked(fresh.name, fresh.shadow, fresh.checked_at)
        if one.reason:
            _say(logging.INFO, "followed again", fresh)
        return self._told(one, fresh, "unchanged" if fresh.source == one.source else "swapped")

    async def _find(self, place: int, one: Followed) -> Followed:
        """Swap in what the registry has now, if it is anything else."""
        source = await self._sources.find(one.uri, one.source)
        changes = {"source": source, "reason": None, "detail": "", "checked_at": time.time()}
        fresh = msgspec.structs.replace(one, **changes)
        if source == one.source:
            self._note(place, fresh)
            return fresh
        served = await asyncio.to_thread(load_model, named(one, source))
        self._sources.cache.remember(one.uri, source)
        self._note(place, fresh)
        self._store.put(served, one.shadow)
        self._metrics.swapped(served.name, one.shadow)
        _say(logging.INFO, "swapped", fresh, {"previous": one.version})
        return fresh

    def _failed(self, one: Followed, error: Exception) -> Followed:
        """Count a failure, and say it unless it is what was said last."""
        reason = reason_of(error)
        detail = f"unexpected {type(error).__name__}" if reason == "internal" else str(error)
        self._metrics.failed(one.name, one.shadow, reason)
        failed = msgspec.structs.replace(one, reason=reason, detail=detail)
        said = (one.reason, one.detail) == (reason, detail)
        trace = error if reason == "internal" else None
        _say(logging.DEBUG if said else logging.WARNING, "reload failed", failed, error=trace)
        return failed

    def _note(self, place: int, one: Followed) -> None:
        standing = self._board.read().followed
        self._board.write(
            FollowState((*standing[:place], one, *standing[place + 1 :]), asked_at=time.time())
        )

    def _told(self, before: Followed, after: Followed, outcome: Outcome) -> Reloaded:
        detail = after.detail if outcome == "failed" else None
        name, old, new = str(after.name), before.version, after.version
        return Reloaded(name, after.shadow, outcome, new, old, detail)


@contextmanager
def _going_on() -> Iterator[None]:
    """Following goes on, whatever happens."""
    try:
        yield
    except Exception:
        log.exception("following failed")


def named(one: Followed, source: BundleRef) -> BundleRef:
    """The source under the name that it is served by."""
    return msgspec.structs.replace(source, name=one.name or source.name)


def reason_of(error: Exception) -> Reason:
    """The class of a failure, as metrics and `GET /models` name it."""
    match error:
        case RegistryError(missing=True):
            return "missing"
        case RegistryError():
            full = any(os.strerror(code) in str(error) for code in NO_ROOM)
            return "disk" if full else "registry"
        case AnomalyVAEError():
            return "bundle"
        case OSError() if error.errno not in NO_MEANS:
            return "disk"
    return "internal"


def _say(
    level: int, event: str, one: Followed, more: Mapping[str, Any] | None = None,
    error: Exception | None = None,
) -> None:  # fmt: skip
    facts: dict[str, Any] = {"model": one.name, "shadow": one.shadow, "uri": one.uri}
    facts |= {"version": one.version}
    facts |= {"reason": one.reason, "detail": one.detail} if one.reason else {}
    log.log(level, event, extra={logs.FACTS: {**facts, **(more or {})}}, exc_info=error)


# ---------------------------------------------------------------- the beginning


async def begin(
    sources: Sources, models: Sequence[str], shadows: Sequence[str]
) -> tuple[Store, FollowState]:
    """Load everything: what the registry has, or where it fails or is slow, what served last.

    Raises:
        AnomalyVAEError: a model cannot be served, and none served before in its place.
    """
    specs = map(Spec.parse, models)
    begun = [await _begin(sources, Followed(spec.uri, spec.name)) for spec in specs]
    store = Store(served for _, served in begun if served)
    for model in shadows:
        name, uri = Spec.parse(model)
        one = Followed(uri, _beside(name, uri, store), shadow=True)
        begun.append(await _begin(sources, one))
        if served := begun[-1][1]:
            store.put(served, shadow=True)
    standing = tuple(one for one, _ in begun)
    asked_at = 0.0 if any(one.is_unasked for one in standing) else time.time()
    return store, FollowState(standing, asked_at)


def restored(standing: FollowState) -> Store:
    """What stands on a board, loaded anew."""
    store = Store()
    for one in standing.followed:
        with suppress(*((AnomalyVAEError, OSError) if one.shadow else ())):
            if one.source:
                store.put(load_model(named(one, one.source)), one.shadow)
    return store


def announce(standing: FollowState) -> None:
    """Say what could not be had as it should be, or is yet to be looked up."""
    for one in standing.followed:
        if one.is_unasked:
            _say(logging.INFO, "served from the cache until the registry answers", one)
        if one.reason:
            instead = "served from the cache" if one.source else "not there"
            _say(logging.WARNING, instead, one)


def _beside(name: str | None, uri: str, store: Store) -> str:
    """The model that a shadow is scored beside: of its name, or the only one."""
    known = list(store.current)
    registered = ALIAS.fullmatch(uri)
    wanted = name or (registered and registered["name"])
    if wanted in known:
        return str(wanted)
    if name is None and len(known) == 1:
        return known[0]
    raise ConfigError(
        f"shadow '{uri}': which model is it for? give NAME=URI, of {', '.join(known)}",
        key="shadow",
    )


async def _begin(sources: Sources, one: Followed) -> tuple[Followed, ServedModel | None]:
    with suppress(AnomalyVAEError, OSError):
        if kept := sources.at_once(one.uri):
            return _kept(one, kept)
    try:
        source = await sources.find(one.uri)
        served = load_model(named(one, source))
    except (AnomalyVAEError, OSError) as error:
        return _begin_again(sources, one, error)
    with suppress(OSError):  # a cache that only can be read will do
        if REMOTE.match(one.uri):
            sources.cache.remember(one.uri, source)
    found = {"name": served.name, "source": source, "checked_at": time.time()}
    return msgspec.structs.replace(one, **found), served


def _begin_again(
    sources: Sources, one: Followed, error: Exception
) -> tuple[Followed, ServedModel | None]:
    """Serve what served last; of a shadow, nothing will do."""
    failed = msgspec.structs.replace(one, reason=reason_of(error), detail=str(error))
    with suppress(AnomalyVAEError, OSError):
        if kept := sources.cache.last(one.uri):
            return _kept(failed, kept)
    if one.shadow and is_followed(one.uri):
        return failed, None
    raise error


def _kept(one: Followed, source: BundleRef) -> tuple[Followed, ServedModel]:
    """What served last, loaded; that it still should is yet to be seen."""
    served = load_model(named(one, source))
    return msgspec.structs.replace(one, name=served.name, source=source), served
