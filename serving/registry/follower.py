"""Follow the registry: serve the version an alias points to, or the last good one.

A check resolves the alias, fetches, loads and tests a new version, records it as good, and swaps it
in with a single assignment. If any step before the swap fails, the old version keeps serving, and a
metric and a log line report the failure. Only one worker process checks at a time. It writes a new
version to the board, a shared file, from which the other processes load it.
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
from anomaly_vae.masking import masked
from serving.models.store import ServedModel, Store
from serving.observability import logs
from serving.observability.metrics import Metrics, Reason
from serving.registry.board import Board, FollowedModel, FollowState
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
"""Error numbers of a process that lacks memory or file handles."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a cache that cannot be written."""

Outcome = Literal["swapped", "unchanged", "fixed", "missing", "failed"]


class Reloaded(msgspec.Struct, frozen=True):
    """The outcome of a registry check for a model, and its versions now and before the check."""

    name: str
    shadow: bool
    outcome: Outcome
    version: str | None
    previous: str | None
    detail: str | None = None


class Reloads(msgspec.Struct, frozen=True):
    """The outcome of a registry check for all models."""

    models: list[Reloaded]


class Follower:
    """A periodic and on-demand check of the registry, which swaps in new versions."""

    def __init__(
        self, store: Store, settings: Settings, metrics: Metrics, board: Board, sources: Sources
    ) -> None:
        self._store, self._metrics, self._board = store, metrics, board
        self._sources, self._interval = sources, settings.reload_seconds
        self._checking = asyncio.Lock()
        self._next: asyncio.Task[list[Reloaded]] | None = None
        self._running: asyncio.Task[list[Reloaded]] | None = None
        for entry in self.followed:
            if is_followed(entry.uri):
                metrics.start_following(entry.name, entry.shadow, entry.checked_at)

    @property
    def followed(self) -> Sequence[FollowedModel]:
        """The state of each model, shadows last."""
        return self._board.read().followed

    async def run(self) -> None:
        """Check the registry and read the board until cancelled."""
        if any(is_followed(entry.uri) for entry in self.followed):
            await asyncio.gather(self._poll_registry(), self._poll_board())

    async def _poll_registry(self) -> None:
        await self._catch_up()
        while self._interval:
            await asyncio.sleep(self._interval * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311  # no secret
            with _log_and_continue():
                if time.time() - self._board.read().last_check_at > self._interval / 2:
                    await self.reload()

    async def _catch_up(self) -> None:
        """Check the registry soon after a start from the cache, in a single worker process."""
        await asyncio.sleep(random.uniform(0, MAX_CATCH_UP_DELAY_SECONDS))  # noqa: S311  # no secret
        state = self._board.read()
        if not state.last_check_at:
            with _log_and_continue():
                self._board.write(msgspec.structs.replace(state, last_check_at=time.time()))
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

        All requests that arrive during a check share the next check. It starts after they arrived,
        so it sees the registry changes that they announce.
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
            return [await self._check(i, entry) for i, entry in enumerate(self.followed)]

    async def _load_from_board(self) -> None:
        """Serve the versions on the board."""
        for entry in self.followed:
            if entry.source and is_followed(entry.uri) and not self._serves(entry, entry.source):
                try:
                    model = await asyncio.to_thread(load_model, named_source(entry, entry.source))
                except Exception as error:  # noqa: BLE001  # the old version keeps serving
                    self._record_failure(entry, error)
                else:
                    self._store.put(model, entry.shadow)

    def _serves(self, entry: FollowedModel, source: BundleRef) -> bool:
        model = self._serving(entry)
        is_same = model and (model.version, model.digest) == (source.version, source.digest)
        return bool(is_same)

    def _serving(self, entry: FollowedModel) -> ServedModel | None:
        models = self._store.shadows if entry.shadow else self._store.current
        return models.get(str(entry.name))

    async def _check(self, index: int, entry: FollowedModel) -> Reloaded:
        if not is_followed(entry.uri):
            return _outcome(entry, entry, "fixed")
        try:
            fresh = await self._update(index, entry)
        except Exception as error:  # noqa: BLE001  # the old version keeps serving
            failed = self._record_failure(entry, error)
            self._sources.forget(entry.uri)
            with suppress(OSError):
                self._write(index, failed)
            is_missing = entry.shadow and failed.reason == "missing"
            return _outcome(entry, failed, "missing" if is_missing else "failed")
        self._metrics.record_check(fresh.name, fresh.shadow, fresh.checked_at)
        if entry.reason:
            _log(logging.INFO, "followed again", fresh)
        return _outcome(entry, fresh, "unchanged" if fresh.source == entry.source else "swapped")

    async def _update(self, index: int, entry: FollowedModel) -> FollowedModel:
        """Swap in the version that the registry names now, unless it is served already."""
        source = await self._sources.find(entry.uri, entry.source)
        changes = {"source": source, "reason": None, "detail": "", "checked_at": time.time()}
        fresh = msgspec.structs.replace(entry, **changes)
        if source == entry.source:
            self._write(index, fresh)
            return fresh
        model = await asyncio.to_thread(load_model, named_source(entry, source))
        self._sources.cache.remember(entry.uri, source)
        self._write(index, fresh)
        self._store.put(model, entry.shadow)
        self._metrics.record_swap(model.name, entry.shadow)
        _log(logging.INFO, "swapped", fresh, {"previous": entry.version})
        return fresh

    def _record_failure(self, entry: FollowedModel, error: Exception) -> FollowedModel:
        """Count a failed check; log it as a warning unless the previous failure was the same."""
        reason = reason_of(error)
        text = masked(str(error))
        detail = f"unexpected {type(error).__name__}" if reason == "internal" else text
        self._metrics.record_failed_check(entry.name, entry.shadow, reason)
        failed = msgspec.structs.replace(entry, reason=reason, detail=detail)
        is_repeated = (entry.reason, entry.detail) == (reason, detail)
        level = logging.DEBUG if is_repeated else logging.WARNING
        _log(level, "reload failed", failed, error=error if reason == "internal" else None)
        return failed

    def _write(self, index: int, entry: FollowedModel) -> None:
        followed = self._board.read().followed
        changed = (*followed[:index], entry, *followed[index + 1 :])
        self._board.write(FollowState(changed, last_check_at=time.time()))


def _outcome(before: FollowedModel, after: FollowedModel, outcome: Outcome) -> Reloaded:
    detail = after.detail if outcome == "failed" else None
    name, old, new = str(after.name), before.version, after.version
    return Reloaded(name, after.shadow, outcome, new, old, detail)


@contextmanager
def _log_and_continue() -> Iterator[None]:
    """Log any exception and continue, so that registry checks never stop."""
    try:
        yield
    except Exception:
        log.exception("following failed")


def named_source(entry: FollowedModel, source: BundleRef) -> BundleRef:
    """Return the source under the name that it is served by."""
    return replace(source, name=entry.name or source.name)


def reason_of(error: Exception) -> Reason:
    """Classify a failure for metrics and `GET /models`."""
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
    level: int, event: str, entry: FollowedModel, more: Mapping[str, Any] | None = None,
    error: Exception | None = None,
) -> None:  # fmt: skip
    fields: dict[str, Any] = {"model": entry.name, "shadow": entry.shadow, "uri": entry.uri}
    fields |= {"version": entry.version}
    fields |= {"reason": entry.reason, "detail": entry.detail} if entry.reason else {}
    log.log(level, event, extra={logs.LOG_FIELDS: {**fields, **(more or {})}}, exc_info=error)


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
    loaded = [await _load_initial(sources, FollowedModel(spec.uri, spec.name)) for spec in specs]
    store = Store(model for _, model in loaded if model)
    for shadow in shadows:
        name, uri = Spec.parse(shadow)
        entry = FollowedModel(uri, _shadowed_model(name, uri, store), shadow=True)
        loaded.append(await _load_initial(sources, entry))
        if model := loaded[-1][1]:
            store.put(model, shadow=True)
    followed = tuple(entry for entry, _ in loaded)
    last_check_at = 0.0 if any(entry.is_unchecked for entry in followed) else time.time()
    return store, FollowState(followed, last_check_at)


def restore_store(state: FollowState) -> Store:
    """Load the models of a follow state; shadows that cannot be loaded are left out."""
    store = Store()
    for entry in state.followed:
        with suppress(*((AnomalyVAEError, OSError) if entry.shadow else ())):
            if entry.source:
                store.put(load_model(named_source(entry, entry.source)), entry.shadow)
    return store


def log_initial_state(state: FollowState) -> None:
    """Log which models come from the cache, and which shadows are missing."""
    for entry in state.followed:
        if entry.is_unchecked:
            _log(logging.INFO, "served from the cache until the registry answers", entry)
        if entry.reason:
            event = "served from the cache" if entry.source else "not loaded"
            _log(logging.WARNING, event, entry)


def _shadowed_model(name: str | None, uri: str, store: Store) -> str:
    """Return the model that a shadow belongs to: the model of its name, or the only model."""
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


async def _load_initial(
    sources: Sources, entry: FollowedModel
) -> tuple[FollowedModel, ServedModel | None]:
    with suppress(AnomalyVAEError, OSError):
        if cached := sources.quick_start(entry.uri):
            return _load_cached(entry, cached)
    try:
        source = await sources.find(entry.uri)
        model = load_model(named_source(entry, source))
    except (AnomalyVAEError, OSError) as error:
        return _fall_back(sources, entry, error)
    with suppress(OSError):  # the cache may be read-only
        if REMOTE.match(entry.uri):
            sources.cache.remember(entry.uri, source)
    changes = {"name": model.name, "source": source, "checked_at": time.time()}
    return msgspec.structs.replace(entry, **changes), model


def _fall_back(
    sources: Sources, entry: FollowedModel, error: Exception
) -> tuple[FollowedModel, ServedModel | None]:
    """Load the version that served last; without one, leave out a shadow and fail for a model."""
    failed = msgspec.structs.replace(entry, reason=reason_of(error), detail=masked(str(error)))
    with suppress(AnomalyVAEError, OSError):
        if cached := sources.cache.last_served(entry.uri):
            return _load_cached(failed, cached)
    if entry.shadow and is_followed(entry.uri):
        return failed, None
    raise error


def _load_cached(entry: FollowedModel, source: BundleRef) -> tuple[FollowedModel, ServedModel]:
    """Load a version from the cache without checking that it is current."""
    model = load_model(named_source(entry, source))
    return msgspec.structs.replace(entry, name=model.name, source=source), model
