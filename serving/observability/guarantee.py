"""Whether each served model's promise still holds: what it scores, against its calibration rows.

A request leaves its decisions and is done; they are counted some hundreds of rows at a time, and
judged once a second, on a thread, or when an operator asks. Worker processes count into one file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Lock

import numpy as np

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.files import atomic_path, locked
from anomaly_vae.monitoring.drift import Counts
from anomaly_vae.monitoring.exchangeability import (
    BLOCKS,
    Monitor,
    Report,
    Status,
    Window,
    window_shape,
)
from anomaly_vae.scoring.detector import Detections
from serving.models.store import ServedModel

TOGETHER = 256
"""Rows that are counted at a time."""
SECONDS = 1.0
"""Between two looks at how it stands."""
DIGEST_BYTES = 64
"""At the head of a shared file, the digest of the model that it is of."""

Alone = Callable[[], AbstractContextManager[object]]
Decided = tuple[Detections, Matrix | None]


class Watch:
    """What one version of a model has scored of late, and what that says of its promise."""

    def __init__(
        self, monitor: Monitor, window: Window | None = None, alone: Alone | None = None
    ) -> None:
        lock = Lock()
        self._monitor, self._window = monitor, window or Window(monitor)
        self._alone: Alone = alone or (lambda: lock)
        self._pending: list[Decided] = []
        self._waiting, self._mine = 0, Lock()
        self._blocks = self._window.blocks
        self._report = monitor.report(self._blocks)

    def observe(self, found: Detections, x: Matrix | None) -> None:
        """Take note of decided rows, of a table encoded as ``x`` (N, F)."""
        with self._mine:
            self._pending.append((found, x))
            self._waiting += len(found.score)
            enough = self._waiting >= TOGETHER
        if enough:
            self.count()

    @property
    def status(self) -> Status:
        """How it stood at the last look."""
        return self._report.status

    def report(self) -> Report:
        """How it stands."""
        self.count()
        with self._alone():
            blocks = self._window.blocks
        if not np.array_equal(blocks, self._blocks):
            self._blocks, self._report = blocks, self._monitor.report(blocks)
        return self._report

    def count(self) -> None:
        """Count what was left to be counted together."""
        with self._mine:
            taken, self._pending, self._waiting = self._pending, [], 0
        if not taken:
            return
        found = Detections.concatenate(found for found, _ in taken)
        tables = [x for _, x in taken if x is not None]
        x = np.concatenate(tables) if tables else None
        counts = [self._counted(found, x, part) for part in self._parts(len(found.score))]
        with self._alone():
            for some in counts:
                self._window.add(some)

    def _parts(self, rows: int) -> Iterator[slice]:
        """A block at a time, of so many rows only those that stay in the window."""
        step = self._monitor.block_rows
        first = max(rows - step * BLOCKS, 0)
        return (slice(start, start + step) for start in range(first, rows, step))

    def _counted(self, found: Detections, x: Matrix | None, part: slice) -> Counts:
        some = found.part(part)
        return self._monitor.count(some.score, some.is_anomaly, None if x is None else x[part])


class Watches:
    """The watch of each model that is served; another version begins anew.

    ``folder`` is where worker processes count together; absent: there is one process.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = _place(Path(folder)) if folder else None
        self._known: dict[str, tuple[ServedModel, Watch]] = {}

    def of(self, served: ServedModel) -> Watch:
        """That of a model that is served now."""
        known = self._known.get(served.name)
        if known is None or known[0] is not served:
            known = self._known[served.name] = served, self._begin(served)
        return known[1]

    async def run(self) -> None:
        """Look again and again, so that answers and other processes know of the latest rows."""
        while True:
            await asyncio.sleep(SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """See how each promise stands."""
        for _, watch in list(self._known.values()):
            watch.report()

    def _begin(self, served: ServedModel) -> Watch:
        if not self._folder:
            return Watch(served.monitor)
        memory = _shared(self._folder, served)
        window = Window(served.monitor, memory)
        return Watch(served.monitor, window, partial(locked, self._folder))


def _place(folder: Path) -> Path:
    """A folder whose lock is only ever held for an instant: that of all is held over a fetch."""
    place = folder / "watches"
    place.mkdir(exist_ok=True)
    return place


def _shared(folder: Path, served: ServedModel) -> Counts:
    """The memory of the window that worker processes share, in the file of this version.

    The file of another version is replaced, never changed: processes that still serve that one
    count where they did, until they follow.
    """
    path = folder / sha256(served.name.encode()).hexdigest()[:32]
    digest, size = served.digest.encode().ljust(DIGEST_BYTES), window_shape(served.monitor)
    with locked(folder):
        if not path.exists() or path.read_bytes()[:DIGEST_BYTES] != digest:
            with atomic_path(path) as fresh:
                fresh.write_bytes(digest + np.zeros(size, np.int64).tobytes())
        return np.memmap(path, np.int64, "r+", offset=DIGEST_BYTES, shape=size)
