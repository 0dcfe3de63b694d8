"""Follow the registry: serve the version an alias points to, or the last good one.

A check resolves the alias, fetches, loads and tests a new version, records that it is good, and
swaps it in with one assignment. If any step before the swap fails, the old version keeps serving,
and a metric and a log line report the failure. Worker processes take turns at checking; the one
that finds a new version writes it to their board, a file, from which the others load it.
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
from dataclasses import replace
from typing import Any, Literal

import msgspec

from anomaly_vae.artifacts.registry_names import ALIAS_URI, BundleRef
from anomaly_vae.errors import AnomalyVAEError, ConfigError, RegistryError
from serving.models.store import ServedModel, Store
from serving.observability import logs
from serving.observability.metrics import Metrics, Reason
from serving.registry.board import Board, Followed, FollowState
from serving.registry.sources import REMOTE, Sources, Spec, is_followed
from serving.scoring.loading import load_model
from serving.settings import Settings

log = logging.getLogger("serving.registry.follower")

JITTER = 0.2
"""Random variation of the time between checks, as a fraction of it, to spread replicas out."""
MAX_CATCH_UP_DELAY_SECONDS = 0.2
"""Longest delay of the first check after a start from the cache, to spread workers out."""
BOARD_POLL_SECONDS = 0.5
"""Interval at which a worker process reads the board, in seconds."""
RESOURCE_ERRORS = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

Outcome = Literal["swapped", "unchanged", "fixed", "missing", "failed"]


class Reloaded(msgspec.Struct, frozen=True):
    """The outcome for one model; ``version`` serves now, ``previous`` served before."""

    name: str
    shadow: bool
    outcome: Outcome
    version: str | None
    previous: str | None
    detail: str | None = None


class Reloads(msgspec.Struct, frozen=True):
    """The outcome of a registry check."""

    models: list[Reloaded]


class Follower:
    """Checks the registry, periodically and on request, and swaps in changed versions."""

    def __init__(
        self, store: Store, settings: Settings, metrics: Metrics, board: Board, sources: Sources
    ) -> None:
        self._store, self._metrics, self._board = store, metrics, board
        self._sources, self._interval = sources, settings.reload_seconds
        self._checking = asyncio.Lock()
        self._next: asyncio.Task[list[Reloaded]] | None = None
        self._running: asyncio.Task[list[Reloaded]] | None = None
        for one in self.followed:
            if is_followed(one.uri):
                metrics.start_following(one.name, one.shadow, one.checked_at)

    @property
    def followed(self) -> Sequence[Followed]:
        """The state of each model, shadows last."""
        return self._board.read().followed

    async def run(self) -> None:
        """Check the registry and read the board until cancelled."""
        if any(is_followed(one.uri) for one in self.followed):
            await asyncio.gather(self._poll_registry(), self._poll_board())

    async def _poll_registry(self) -> None:
        await self._catch_up()
        while self._interval:
            await asyncio.sleep(self._interval * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311  # no secret
            with _log_and_continue():
                if time.time() - self._board.read().asked_at > self._interval / 2:
                    await self.reload()

    async def _catch_up(self) -> None:
        """Check soon after a start from the cache, in one worker process."""
        await asyncio.sleep(random.uniform(0, MAX_CATCH_UP_DELAY_SECONDS))  # noqa: S311  # no secret
        state = self._board.read()
        if not state.asked_at:
            with _log_and_continue():
                self._board.write(msgspec.structs.replace(state, asked_at=time.time()))
                await self.reload()

    async def _poll_board(self) -> None:
        """Load the versions that another worker process found."""
        while self._board.is_shared:
            await asyncio.sleep(BOARD_POLL_SECONDS)
            with _log_and_continue():
                if self._board.has_changed():
                    async with self._checking:
                        await self._load_from_board()

    async def reload(self) -> list[Reloaded]:
        """Check the registry now.

        All requests that arrive during a check share the next one. It starts after they arrived,
        so it sees the state of the registry that they refer to.
        """
        return await asyncio.shield(self.schedule_check())

    def schedule_check(self) -> asyncio.Task[list[Reloaded]]:
        """Start a check of the registry, without waiting for it."""
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._check_all())
        return self._next

    async def close(self) -> None:
        """Cancel the checks in progress."""
        tasks = [task for task in (self._running, self._next) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check_all(self) -> list[Reloaded]:
        async with self._checking, self._board.exclusive():
            self._running, self._next = self._next, None
            await self._load_from_board()
            return [await self._check(i, one) for i, one in enumerate(self.followed)]

    async def _load_from_board(self) -> None:
        """Serve the versions on the board."""
        for one in self.followed:
            if one.source and is_followed(one.uri) and not self._serves(one, one.source):
                try:
                    served = await asyncio.to_thread(load_model, named_source(one, one.source))
                except Exception as error:  # noqa: BLE001  # the old version keeps serving
                    self._record_failure(one, error)
                else:
                    self._store.put(served, one.shadow)

    def _serves(self, one: Followed, source: BundleRef) -> bool:
        serving = self._serving(one)
        same = serving and (serving.version, serving.digest) == (source.version, source.digest)
        return bool(same)

    def _serving(self, one: Followed) -> ServedModel | None:
        models = self._store.shadows if one.shadow else self._store.current
        return models.get(str(one.name))

    async def _check(self, index: int, one: Followed) -> Reloaded:
        if not is_followed(one.uri):
            return _outcome(one, one, "fixed")
        try:
            fresh = await self._update(index, one)
        except Exception as error:  # noqa: BLE001  # the old version keeps serving
            failed = self._record_failure(one, error)
            self._sources.forget(one.uri)
            with suppress(OSError):
                self._write(index, failed)
            missing = one.shadow and failed.reason == "missing"
            return _outcome(one, failed, "missing" if missing else "failed")
        self._metrics.registry_checked(fresh.name, fresh.shadow, fresh.checked_at)
        if one.reason:
            _log(logging.INFO, "followed again", fresh)
        return _outcome(one, fresh, "unchanged" if fresh.source == one.source else "swapped")

    async def _update(self, index: int, one: Followed) -> Followed:
        """Swap in the version that the registry names now, if it is another."""
        source = await self._sources.find(one.uri, one.source)
        changes = {"source": source, "reason": None, "detail": "", "checked_at": time.time()}
        fresh = msgspec.structs.replace(one, **changes)
        if source == one.source:
            self._write(index, fresh)
            return fresh
        served = await asyncio.to_thread(load_model, named_source(one, source))
        self._sources.cache.remember(one.uri, source)
        self._write(index, fresh)
        self._store.put(served, one.shadow)
        self._metrics.swapped(served.name, one.shadow)
        _log(logging.INFO, "swapped", fresh, {"previous": one.version})
        return fresh

    def _record_failure(self, one: Followed, error: Exception) -> Followed:
        """Count a failed check; log it as a warning unless the last one failed alike."""
        reason = reason_of(error)
        detail = f"unexpected {type(error).__name__}" if reason == "internal" else str(error)
        self._metrics.check_failed(one.name, one.shadow, reason)
        failed = msgspec.structs.replace(one, reason=reason, detail=detail)
        is_repeated = (one.reason, one.detail) == (reason, detail)
        level = logging.DEBUG if is_repeated else logging.WARNING
        _log(level, "reload failed", failed, error=error if reason == "internal" else None)
        return failed

    def _write(self, index: int, one: Followed) -> None:
        followed = self._board.read().followed
        changed = (*followed[:index], one, *followed[index + 1 :])
        self._board.write(FollowState(changed, asked_at=time.time()))


def _outcome(before: Followed, after: Followed, outcome: Outcome) -> Reloaded:
    detail = after.detail if outcome == "failed" else None
    name, old, new = str(after.name), before.version, after.version
    return Reloaded(name, after.shadow, outcome, new, old, detail)


@contextmanager
def _log_and_continue() -> Iterator[None]:
    """Log any exception, so that following the registry never ends."""
    try:
        yield
    except Exception:
        log.exception("following failed")


def named_source(one: Followed, source: BundleRef) -> BundleRef:
    """Return the source with the name it is served under."""
    return replace(source, name=one.name or source.name)


def reason_of(error: Exception) -> Reason:
    """Classify a failure, as metrics and `GET /models` do."""
    match error:
        case RegistryError(missing=True):
            return "missing"
        case RegistryError():
            is_disk = any(os.strerror(code) in str(error) for code in DISK_ERRORS)
            return "disk" if is_disk else "registry"
        case AnomalyVAEError():
            return "bundle"
        case OSError() if error.errno not in RESOURCE_ERRORS:
            return "disk"
    return "internal"


def _log(
    level: int, event: str, one: Followed, more: Mapping[str, Any] | None = None,
    error: Exception | None = None,
) -> None:  # fmt: skip
    facts: dict[str, Any] = {"model": one.name, "shadow": one.shadow, "uri": one.uri}
    facts |= {"version": one.version}
    facts |= {"reason": one.reason, "detail": one.detail} if one.reason else {}
    log.log(level, event, extra={logs.FACTS: {**facts, **(more or {})}}, exc_info=error)


# ---------------------------------------------------------------- start-up


async def load_initial_models(
    sources: Sources, models: Sequence[str], shadows: Sequence[str]
) -> tuple[Store, FollowState]:
    """Load all models and shadows from the registry, or from the cache if it fails or is slow.

    Args:
        sources: finds the bundles.
        models: ``[NAME=]URI`` of each model.
        shadows: ``[NAME=]URI`` of each shadow.

    Raises:
        AnomalyVAEError: a model can neither be resolved nor loaded from the cache.
    """
    specs = map(Spec.parse, models)
    loaded = [await _load_initial(sources, Followed(spec.uri, spec.name)) for spec in specs]
    store = Store(served for _, served in loaded if served)
    for model in shadows:
        name, uri = Spec.parse(model)
        one = Followed(uri, _shadowed_model(name, uri, store), shadow=True)
        loaded.append(await _load_initial(sources, one))
        if served := loaded[-1][1]:
            store.put(served, shadow=True)
    followed = tuple(one for one, _ in loaded)
    asked_at = 0.0 if any(one.is_unchecked for one in followed) else time.time()
    return store, FollowState(followed, asked_at)


def restore_store(state: FollowState) -> Store:
    """Load the models of a follow state; shadows that cannot be loaded are left out."""
    store = Store()
    for one in state.followed:
        with suppress(*((AnomalyVAEError, OSError) if one.shadow else ())):
            if one.source:
                store.put(load_model(named_source(one, one.source)), one.shadow)
    return store


def log_initial_state(state: FollowState) -> None:
    """Log which models come from the cache, and which shadows are missing."""
    for one in state.followed:
        if one.is_unchecked:
            _log(logging.INFO, "served from the cache until the registry answers", one)
        if one.reason:
            event = "served from the cache" if one.source else "not loaded"
            _log(logging.WARNING, event, one)


def _shadowed_model(name: str | None, uri: str, store: Store) -> str:
    """Return the model that a shadow accompanies: the one of its name, or the only one."""
    known = list(store.current)
    registered = ALIAS_URI.fullmatch(uri)
    wanted = name or (registered and registered["name"])
    if wanted in known:
        return str(wanted)
    if name is None and len(known) == 1:
        return known[0]
    raise ConfigError(
        f"shadow '{uri}': which model is it for? give NAME=URI, of {', '.join(known)}",
        key="shadow",
    )


async def _load_initial(sources: Sources, one: Followed) -> tuple[Followed, ServedModel | None]:
    with suppress(AnomalyVAEError, OSError):
        if cached := sources.quick_start(one.uri):
            return _load_cached(one, cached)
    try:
        source = await sources.find(one.uri)
        served = load_model(named_source(one, source))
    except (AnomalyVAEError, OSError) as error:
        return _fall_back(sources, one, error)
    with suppress(OSError):  # the cache may be read-only
        if REMOTE.match(one.uri):
            sources.cache.remember(one.uri, source)
    found = {"name": served.name, "source": source, "checked_at": time.time()}
    return msgspec.structs.replace(one, **found), served


def _fall_back(
    sources: Sources, one: Followed, error: Exception
) -> tuple[Followed, ServedModel | None]:
    """Load the version that served last; a shadow may be missing."""
    failed = msgspec.structs.replace(one, reason=reason_of(error), detail=str(error))
    with suppress(AnomalyVAEError, OSError):
        if cached := sources.cache.last_served(one.uri):
            return _load_cached(failed, cached)
    if one.shadow and is_followed(one.uri):
        return failed, None
    raise error


def _load_cached(one: Followed, source: BundleRef) -> tuple[Followed, ServedModel]:
    """Load a version from the cache, without having checked that it is current."""
    served = load_model(named_source(one, source))
    return msgspec.structs.replace(one, name=served.name, source=source), served
