"""Track whether the guarantee of each served model holds for the rows that it scores.

Requests only queue their decisions. These are counted a few hundred rows at a time. The guarantee
is assessed every second on a thread, and whenever its report is requested. Worker processes count
into one shared file per model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.files import atomic_path, locked
from anomaly_vae.monitoring.exchangeability import (
    BLOCKS,
    Monitor,
    Report,
    Status,
    Window,
    window_shape,
)
from anomaly_vae.monitoring.martingale import Counts, Floats
from anomaly_vae.scoring.detector import Decision, Detections
from serving.models.store import ServedModel

FLUSH_ROWS = 256
"""Number of pending rows at which they are counted."""
REFRESH_SECONDS = 1.0
"""Seconds between two assessments of every guarantee."""
DIGEST_BYTES = 64
"""Length of the bundle digest at the beginning of a shared file, in bytes."""

LockFactory = Callable[[], AbstractContextManager[object]]
"""Function that returns the lock of a window."""


class Observation(NamedTuple):
    """N scores and flags (N,), with the encoded rows (N, F) and times (N,) of a table."""

    scores: Any
    flags: Any
    x: Matrix | None
    seconds: Floats | None

    @classmethod
    def concatenate(cls, parts: Sequence[Observation]) -> Observation:
        """Join observations of the same model."""
        x = [part.x for part in parts if part.x is not None]
        seconds = [part.seconds for part in parts if part.seconds is not None]
        return cls(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.flags for part in parts]),
            np.concatenate(x) if x else None,
            np.concatenate(seconds) if seconds else None,
        )

    def part(self, rows: slice) -> Observation:
        """Return some of the rows."""
        return Observation(*(None if part is None else np.asarray(part)[rows] for part in self))


class GuaranteeTracker:
    """The recent decisions of one version of a model, and the status of its guarantee."""

    def __init__(
        self, monitor: Monitor, window: Window | None = None, lock: LockFactory | None = None
    ) -> None:
        own_lock = Lock()
        self._monitor, self._window = monitor, window or Window(monitor)
        self._window_lock: LockFactory = lock or (lambda: own_lock)
        self._pending: list[Observation] = []
        self._pending_rows, self._pending_lock = 0, Lock()
        self._blocks = self._window.blocks
        self._report = monitor.report(self._blocks)

    def observe(
        self, detections: Detections, x: Matrix | None = None, batch: RawBatch | None = None
    ) -> None:
        """Record N decisions; ``x`` (N, F) and ``batch`` are the rows of a table."""
        seconds = self._monitor.seconds(batch) if batch else None
        self._add(Observation(detections.score, detections.is_anomaly, x, seconds))

    def observe_alone(self, decision: Decision, x: Matrix, times: RawBatch | None) -> None:
        """Record the decision on a lone row of a table; see `observe`."""
        seconds = self._monitor.seconds(times) if times else None
        self._add(Observation([decision.score], [decision.is_anomaly], x, seconds))

    def _add(self, observation: Observation) -> None:
        """Add an observation to the pending ones, and count them if they are many."""
        with self._pending_lock:
            self._pending.append(observation)
            self._pending_rows += len(observation.scores)
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
            pending, self._pending, self._pending_rows = self._pending, [], 0
        if not pending:
            return
        observed = Observation.concatenate(pending)
        blocks = self._blocks_of(len(observed.scores))
        counts = [self._count(observed.part(block)) for block in blocks]
        with self._window_lock():
            for block in counts:
                self._window.add(block)

    def _blocks_of(self, rows: int) -> Iterator[slice]:
        """Yield the rows block by block, except early rows that the window cannot hold."""
        step = self._monitor.block_rows
        first = max(rows - step * BLOCKS, 0)
        return (slice(start, start + step) for start in range(first, rows, step))

    def _count(self, rows: Observation) -> Counts:
        return self._monitor.count(*rows)


class GuaranteeTrackers:
    """The tracker of each served model; a new version starts with an empty window.

    Args:
        folder: folder in which worker processes share their windows; None for a single process.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = _window_folder(Path(folder)) if folder else None
        self._trackers: dict[str, tuple[ServedModel, GuaranteeTracker]] = {}

    def tracker(self, model: ServedModel) -> GuaranteeTracker:
        """Return the tracker of a served model."""
        entry = self._trackers.get(model.name)
        if entry is None or entry[0] is not model:
            entry = self._trackers[model.name] = model, self._new_tracker(model)
        return entry[1]

    async def run(self) -> None:
        """Assess every guarantee periodically, so that responses contain a recent status."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Assess every guarantee."""
        for _, tracker in list(self._trackers.values()):
            tracker.report()

    def _new_tracker(self, model: ServedModel) -> GuaranteeTracker:
        if not self._folder:
            return GuaranteeTracker(model.monitor)
        window = Window(model.monitor, _shared_counts(self._folder, model))
        return GuaranteeTracker(model.monitor, window, partial(locked, self._folder))


def _window_folder(folder: Path) -> Path:
    """Create a subfolder with its own lock, since downloads may hold the parent's for long."""
    subfolder = folder / "watches"
    subfolder.mkdir(exist_ok=True)
    return subfolder


def _shared_counts(folder: Path, model: ServedModel) -> Counts:
    """Map the file of counts that worker processes share for this version of a model into memory.

    A file of another version is replaced rather than overwritten: processes that still serve the
    other version keep counting into the old file until they load the new one.
    """
    path = folder / sha256(model.name.encode()).hexdigest()[:32]
    digest, size = model.digest.encode().ljust(DIGEST_BYTES), window_shape(model.monitor)
    with locked(folder):
        if not path.exists() or path.read_bytes()[:DIGEST_BYTES] != digest:
            with atomic_path(path) as fresh:
                fresh.write_bytes(digest + np.zeros(size, np.int64).tobytes())
        return np.memmap(path, np.int64, "r+", offset=DIGEST_BYTES, shape=size)
