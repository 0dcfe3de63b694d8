"""Shadows: models that are scored beside those that answer, and only compared with them.

A thread scores them from what waits in a bounded queue, many requests at a time; what finds no
room is counted and dropped. No answer waits for a shadow, holds anything of it, or fails with it.
Scores of two models do not compare, so what counts is how often the flags agree, and how far the
p-values are apart.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.detector import Detections
from serving import logs, uploads, wire
from serving.metrics import Metrics
from serving.settings import Settings
from serving.store import IMAGE, Served, Store

log = logging.getLogger("serving.shadow")

OVERHEAD = 4096
"""Bytes that a waiting request takes beside its body."""
TOGETHER = 64
"""So many requests are scored in one go, if they wait."""
CLOSING_SECONDS = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A request that was answered: its body, and what was found."""

    served: Served
    shadow: Served
    found: Detections
    body: bytes
    boundary: bytes | None

    @property
    def weight(self) -> int:
        """The room it takes, in bytes."""
        return len(self.body) + OVERHEAD

    @property
    def pair(self) -> tuple[Served, Served]:
        """The two that are compared."""
        return self.served, self.shadow


class Shadows:
    """Scores what was asked of a model with its shadow, too."""

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store, self._settings, self._metrics = store, settings, metrics
        self._waiting: deque[Asked] = deque()
        self._held, self._closed = 0, False
        self._changed = Condition()
        self._thread: Thread | None = None
        self._complained: set[str] = set()

    def offer(
        self, served: Served, found: Detections, body: bytes, boundary: bytes | None = None
    ) -> None:
        """Compare this with the shadow of the model, if it has one and there is room."""
        shadow = self._store.shadows.get(served.name)
        if shadow is None or shadow.digest == served.digest:
            return
        asked = Asked(served, shadow, found, body, boundary)
        with self._changed:
            if self._held + asked.weight > self._settings.shadow_bytes:
                self._metrics.shadow_dropped.labels(served.name).inc()
                return
            self._held += asked.weight
            self._waiting.append(asked)
            self._changed.notify()
            if self._thread is None:
                self._thread = Thread(target=self._run, name="shadow", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Leave what waits."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        if self._thread:
            self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while some := self._take():
            with self._complaining(some[0].shadow):
                self._compare(some)
            with self._changed:
                self._held -= sum(asked.weight for asked in some)

    def _take(self) -> list[Asked]:
        """What waits first, with more of the same pair; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            some: list[Asked] = []
            while self._waiting and len(some) < TOGETHER:
                if some and self._waiting[0].pair != some[0].pair:
                    break
                some.append(self._waiting.popleft())
            return some

    @contextmanager
    def _complaining(self, shadow: Served) -> Iterator[None]:
        """Say once of each version that it cannot score; the next request may do."""
        try:
            yield
        except Exception as error:
            self._metrics.shadow_failures.labels(shadow.name).inc()
            if shadow.digest not in self._complained:
                self._complained.add(shadow.digest)
                facts = {"model": shadow.name, "version": shadow.version}
                log.warning("shadow failed", extra={logs.FACTS: facts}, exc_info=error)

    def _compare(self, some: Sequence[Asked]) -> None:
        served, shadow = some[0].pair
        metrics = self._metrics.compared(shadow.name, served.version, shadow.version)
        score = self._score_images if served.kind == IMAGE else self._score_records
        for found, theirs in score(shadow, some):
            metrics.observe(found, theirs)

    def _score_images(
        self, shadow: Served, some: Sequence[Asked]
    ) -> Iterator[tuple[Detections, Detections]]:
        from serving import imaging

        most = self._settings.max_records
        for asked in some:
            files = uploads.files_of(asked.body, asked.boundary, most)
            theirs, _ = imaging.score(shadow, files, uploads.Asked(), self._settings)
            yield asked.found, theirs

    def _score_records(
        self, shadow: Served, some: Sequence[Asked]
    ) -> Iterator[tuple[Detections, Detections]]:
        most = self._settings.max_records
        records = [row for asked in some for row in wire.decode(asked.body, most).records]
        batch, found = shadow.detector.scorer.schema.from_records(records), _joined(some)
        if batch.problems:
            self._metrics.shadow_failures.labels(shadow.name).inc(int((~batch.usable).sum()))
            batch, found = batch.take(batch.usable), _those(found, batch.usable)
        if len(batch):
            yield found, shadow.detector.detect(batch)


def _joined(some: Sequence[Asked]) -> Detections:
    parts = [(one.found.score, one.found.p_value, one.found.is_anomaly) for one in some]
    return Detections(*map(np.concatenate, zip(*parts, strict=True)))


def _those(found: Detections, rows: NDArray[np.bool_]) -> Detections:
    return Detections(found.score[rows], found.p_value[rows], found.is_anomaly[rows])
