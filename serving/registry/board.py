"""Share the state of all followed models between worker processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.files import atomic_path, locked
from serving.observability.metrics import Reason


class FollowedModel(msgspec.Struct, frozen=True):
    """A model or shadow, and the outcome of its last registry check.

    ``source`` is the version that is served, ``reason`` and ``detail`` say why the last check
    failed, and ``checked_at`` is the time of the last successful check, in seconds since 1970.
    """

    uri: str
    name: str | None = None
    shadow: bool = False
    source: BundleRef | None = None
    reason: Reason | None = None
    detail: str = ""
    checked_at: float | None = None

    @property
    def is_unchecked(self) -> bool:
        """Whether the registry has not been checked yet."""
        return self.checked_at is None and self.reason is None

    @property
    def version(self) -> str | None:
        """The version that is served."""
        return self.source.version if self.source else None


class FollowState(msgspec.Struct, frozen=True):
    """All followed models and shadows, and the time of the last registry check.

    ``last_check_at`` is in seconds since 1970; 0 if there was no check.
    """

    followed: tuple[FollowedModel, ...] = ()
    last_check_at: float = 0.0


class Board:
    """The follow state, in memory or in a file that worker processes share."""

    def __init__(self, state: FollowState = FollowState(), path: Path | None = None) -> None:  # noqa: B008  # frozen
        self._state, self._path = state, path
        self._last_stat: tuple[int, int] | None = None

    @classmethod
    def shared(cls, path: Path, state: FollowState) -> Board:
        """Create a board in a file that worker processes share."""
        board = cls(path=path)
        board.write(state)
        return board

    def read(self) -> FollowState:
        """Return the state."""
        if self._path is None:
            return self._state
        return msgspec.json.decode(self._path.read_bytes(), type=FollowState)

    @property
    def is_shared(self) -> bool:
        """Whether other processes share the board."""
        return self._path is not None

    def has_changed(self) -> bool:
        """Return whether the file was written since the last call."""
        before = self._last_stat
        if self._path:
            stat = self._path.stat()
            self._last_stat = stat.st_mtime_ns, stat.st_ino
        return self._last_stat != before

    def write(self, state: FollowState) -> None:
        """Replace the state."""
        if self._path is None:
            self._state = state
            return
        with atomic_path(self._path) as temporary:
            temporary.write_bytes(msgspec.json.encode(state))

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the lock that lets only one worker process check the registry at a time."""
        with ExitStack() as stack:
            while self._path:
                try:
                    stack.enter_context(locked(self._path.parent, wait=False))
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.05)
            yield
