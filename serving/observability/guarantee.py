"""Track whether the guarantee of each served model holds, from what it scores.

A request leaves its decisions and continues; they are counted a few hundred rows at a time, and
the guarantee is assessed once a second on a thread, or when an operator asks. Worker processes
count into one shared file per model.
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

FLUSH_ROWS = 256
"""Number of pending rows from which they are counted."""
REFRESH_SECONDS = 1.0
"""Seconds between two assessments of every guarantee."""
DIGEST_BYTES = 64
"""Length of the bundle digest at the beginning of a shared file, in bytes."""

LockFactory = Callable[[], AbstractContextManager[object]]
"""Function that returns the lock of a window."""


class GuaranteeTracker:
    """The recent decisions of one version of a model, and the status of its guarantee."""

    def __init__(
        self, monitor: Monitor, window: Window | None = None, lock: LockFactory | None = None
    ) -> None:
        own_lock = Lock()
        self._monitor, self._window = monitor, window or Window(monitor)
        self._window_lock: LockFactory = lock or (lambda: own_lock)
        self._pending: list[tuple[Detections, Matrix | None]] = []
        self._pending_rows, self._pending_lock = 0, Lock()
        self._blocks = self._window.blocks
        self._report = monitor.report(self._blocks)

    def observe(self, found: Detections, x: Matrix | None) -> None:
        """Record decided rows; ``x`` (N, F) are the encoded rows of a table, None for images."""
        with self._pending_lock:
            self._pending.append((found, x))
            self._pending_rows += len(found.score)
            is_full = self._pending_rows >= FLUSH_ROWS
        if is_full:
            self.flush()

    @property
    def status(self) -> Status:
        """Status of the guarantee at the last assessment."""
        return self._report.status

    def report(self) -> Report:
        """Assess the guarantee, including the pending rows and those of other processes."""
        self.flush()
        with self._window_lock():
            blocks = self._window.blocks
        if not np.array_equal(blocks, self._blocks):
            self._blocks, self._report = blocks, self._monitor.report(blocks)
        return self._report

    def flush(self) -> None:
        """Count the pending rows into the window."""
        with self._pending_lock:
            taken, self._pending, self._pending_rows = self._pending, [], 0
        if not taken:
            return
        found = Detections.concatenate(found for found, _ in taken)
        tables = [x for _, x in taken if x is not None]
        x = np.concatenate(tables) if tables else None
        counts = [self._count(found, x, part) for part in self._blocks_of(len(found.score))]
        with self._window_lock():
            for block in counts:
                self._window.add(block)

    def _blocks_of(self, rows: int) -> Iterator[slice]:
        """Yield the rows block by block; rows that would leave the window again are skipped."""
        step = self._monitor.block_rows
        first = max(rows - step * BLOCKS, 0)
        return (slice(start, start + step) for start in range(first, rows, step))

    def _count(self, found: Detections, x: Matrix | None, part: slice) -> Counts:
        rows = found.part(part)
        return self._monitor.count(rows.score, rows.is_anomaly, None if x is None else x[part])


class GuaranteeTrackers:
    """The tracker of each served model; a new version starts with an empty window.

    Args:
        folder: where worker processes share their windows; None for a single process.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = _window_folder(Path(folder)) if folder else None
        self._trackers: dict[str, tuple[ServedModel, GuaranteeTracker]] = {}

    def tracker(self, served: ServedModel) -> GuaranteeTracker:
        """Return the tracker of a served model."""
        known = self._trackers.get(served.name)
        if known is None or known[0] is not served:
            known = self._trackers[served.name] = served, self._new_tracker(served)
        return known[1]

    async def run(self) -> None:
        """Assess every guarantee periodically, so that responses carry a recent status."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Assess every guarantee."""
        for _, tracker in list(self._trackers.values()):
            tracker.report()

    def _new_tracker(self, served: ServedModel) -> GuaranteeTracker:
        if not self._folder:
            return GuaranteeTracker(served.monitor)
        window = Window(served.monitor, _shared_counts(self._folder, served))
        return GuaranteeTracker(served.monitor, window, partial(locked, self._folder))


def _window_folder(folder: Path) -> Path:
    """Make a folder with a lock of its own: that of the parent is held for whole downloads."""
    place = folder / "watches"
    place.mkdir(exist_ok=True)
    return place


def _shared_counts(folder: Path, served: ServedModel) -> Counts:
    """Map the counts that worker processes share for this version of a model into memory.

    The file of another version is replaced, never changed: processes that still serve that version
    keep counting into the old file until they follow.
    """
    path = folder / sha256(served.name.encode()).hexdigest()[:32]
    digest, size = served.digest.encode().ljust(DIGEST_BYTES), window_shape(served.monitor)
    with locked(folder):
        if not path.exists() or path.read_bytes()[:DIGEST_BYTES] != digest:
            with atomic_path(path) as fresh:
                fresh.write_bytes(digest + np.zeros(size, np.int64).tobytes())
        return np.memmap(path, np.int64, "r+", offset=DIGEST_BYTES, shape=size)
