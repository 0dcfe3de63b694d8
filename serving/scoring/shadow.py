"""Shadows: models that are scored beside those that answer, and only compared with them.

A thread scores them from what waits in a bounded queue, many requests at a time; what finds no
room is counted and dropped. No answer waits for a shadow, holds anything of it, or fails with it.
Scores of two models do not compare, so what counts is how often the flags agree, and how far the
p-values are apart.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.detector import Detections
from anomaly_vae.scoring.modality import Schema
from serving.models.store import ServedModel, Store
from serving.observability import logs
from serving.observability.metrics import Metrics, PairMetrics
from serving.scoring import requests, uploads
from serving.settings import Settings

log = logging.getLogger("serving.scoring.shadow")

OVERHEAD = 4096
"""Bytes that a waiting request takes beside its body."""
TOGETHER = 64
"""So many requests are scored in one go, if they wait."""
CLOSING_SECONDS = 2.0

Read = Callable[[Sequence[bytes], Schema], RawBatch | Sequence[bytes]]
"""Bodies of one form → rows as a schema reads them, or files with images."""


@dataclass(frozen=True, slots=True, eq=False)
class ShadowTask:
    """A request that was answered: what was found, its body, and how that is read."""

    served: ServedModel
    shadow: ServedModel
    found: Detections
    body: bytes
    read: Read

    @property
    def weight(self) -> int:
        """The room it takes, in bytes."""
        return len(self.body) + OVERHEAD

    @property
    def company(self) -> tuple[ServedModel, ServedModel, Read]:
        """What those have in common that can be scored together."""
        return self.served, self.shadow, self.read


class Shadows:
    """Scores what was asked of a model with its shadow, too."""

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store, self._settings, self._metrics = store, settings, metrics
        self._waiting: deque[ShadowTask] = deque()
        self._held, self._closed = 0, False
        self._changed = Condition()
        self._thread: Thread | None = None
        self._complained: set[str] = set()

    def beside(self, served: ServedModel) -> ServedModel | None:
        """What a model is compared with; nothing while both are the same bundle."""
        shadow = self._store.shadows.get(served.name)
        return shadow if shadow and shadow.digest != served.digest else None

    def offer(
        self, served: ServedModel, found: Detections, body: bytes, read: Read | None = None
    ) -> None:
        """Compare this with the shadow of the model, if it has one and there is room.

        Args:
            served: what answered.
            found: what it decided.
            body: what was asked.
            read: how that is read, unless it is a body of `POST /score` with records.
        """
        shadow = self.beside(served)
        if shadow is None:
            return
        asked = ShadowTask(served, shadow, found, body, read or self._read_records)
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

    def _take(self) -> list[ShadowTask]:
        """What waits first, and what can be scored with it; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            some: list[ShadowTask] = []
            while self._waiting and len(some) < TOGETHER:
                if some and self._waiting[0].company != some[0].company:
                    break
                some.append(self._waiting.popleft())
            return some

    @contextmanager
    def _complaining(self, shadow: ServedModel) -> Iterator[None]:
        """Say once of each version that it cannot score; the next request may do."""
        try:
            yield
        except Exception as error:
            self._metrics.shadow_failures.labels(shadow.name).inc()
            if shadow.digest not in self._complained:
                self._complained.add(shadow.digest)
                facts = {"model": shadow.name, "version": shadow.version}
                log.warning("shadow failed", extra={logs.FACTS: facts}, exc_info=error)

    def _compare(self, some: Sequence[ShadowTask]) -> None:
        served, shadow, read = some[0].company
        metrics = self._metrics.for_pair(shadow.name, served.version, shadow.version)
        content = read([asked.body for asked in some], shadow.detector.scorer.schema)
        found = Detections.concatenate(asked.found for asked in some)
        if isinstance(content, RawBatch):
            self._compare_rows(metrics, found, content, shadow)
        else:
            from serving.scoring import images

            theirs, _ = images.score(shadow, content, uploads.ImageOptions(), self._settings)
            metrics.observe(found, theirs)

    def _compare_rows(
        self, metrics: PairMetrics, found: Detections, batch: RawBatch, shadow: ServedModel
    ) -> None:
        """Compare the rows that the shadow can read."""
        if batch.problems:
            self._metrics.shadow_failures.labels(shadow.name).inc(int((~batch.usable).sum()))
            batch, found = batch.take(batch.usable), found.part(batch.usable)
        if len(batch):
            metrics.observe(found, shadow.detector.detect(batch))

    def _read_records(self, bodies: Sequence[bytes], schema: Schema) -> RawBatch:
        most = self._settings.max_records
        return schema.from_records(
            [row for b in bodies for row in requests.decode(b, most).records]
        )
