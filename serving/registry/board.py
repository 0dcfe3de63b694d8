"""Share what is followed between worker processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.files import atomic_path, locked
from serving.observability.metrics import Reason


class Followed(msgspec.Struct, frozen=True):
    """A model that is served, or a shadow, and how it stands with the registry.

    ``source`` is what is served, ``reason`` and ``detail`` are why the last look failed, and
    ``checked_at`` is when one last went well, in seconds since 1970.
    """

    uri: str
    name: str | None = None
    shadow: bool = False
    source: BundleRef | None = None
    reason: Reason | None = None
    detail: str = ""
    checked_at: float | None = None

    @property
    def is_unasked(self) -> bool:
        """Whether the registry was not asked yet."""
        return self.checked_at is None and self.reason is None

    @property
    def version(self) -> str | None:
        """What is served."""
        return self.source.version if self.source else None


class FollowState(msgspec.Struct, frozen=True):
    """Everything that is followed, and when the registry was last asked; 0 for never."""

    followed: tuple[Followed, ...] = ()
    asked_at: float = 0.0


class Board:
    """The standing, in memory or in a file that worker processes share."""

    def __init__(self, standing: FollowState = FollowState(), path: Path | None = None) -> None:  # noqa: B008  # frozen
        self._standing, self._path = standing, path
        self._seen: tuple[int, int] | None = None

    @classmethod
    def shared(cls, path: Path, standing: FollowState) -> Board:
        """A new board in a file."""
        board = cls(path=path)
        board.write(standing)
        return board

    def read(self) -> FollowState:
        """What stands on it."""
        if self._path is None:
            return self._standing
        return msgspec.json.decode(self._path.read_bytes(), type=FollowState)

    @property
    def is_shared(self) -> bool:
        """Whether other processes read it."""
        return self._path is not None

    def has_news(self) -> bool:
        """Whether it was written to since this was asked last."""
        before = self._seen
        if self._path:
            found = self._path.stat()
            self._seen = found.st_mtime_ns, found.st_ino
        return self._seen != before

    def write(self, standing: FollowState) -> None:
        """Replace what stands on it."""
        if self._path is None:
            self._standing = standing
            return
        with atomic_path(self._path) as whole:
            whole.write_bytes(msgspec.json.encode(standing))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Be the only worker that looks."""
        with ExitStack() as held:
            while self._path:
                try:
                    held.enter_context(locked(self._path.parent, wait=False))
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.05)
            yield
