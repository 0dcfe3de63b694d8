"""Score requests with a shadow model, too, and compare its decisions with those of the model.

A thread scores the requests that wait in a bounded queue, many at a time; a request for which the
queue has no room is counted and dropped. Answers never wait for a shadow, contain nothing of it,
and do not fail with it. Scores of two models are not comparable, so the comparison counts how often
the flags agree, and how far the p-values are apart.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread

from anomaly_vae.scoring.detector import Detections
from serving.models.store import Content, ServedModel, Store
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.scoring import requests
from serving.settings import Settings

log = logging.getLogger("serving.scoring.shadow")

OVERHEAD = 4096
"""Memory that a waiting request takes besides its body, in bytes."""
MAX_TOGETHER = 64
"""Maximum number of requests that are scored together."""
CLOSING_SECONDS = 2.0
"""Time to wait for the thread on shutdown."""

Read = Callable[[Sequence[bytes], ServedModel], Content]
"""Reads bodies of one format into the rows or files that a model scores."""


@dataclass(frozen=True, slots=True, eq=False)
class ShadowTask:
    """An answered request: the model's decisions, the body, and how the body is read."""

    model: ServedModel
    shadow: ServedModel
    detections: Detections
    body: bytes
    read: Read

    @property
    def weight(self) -> int:
        """Memory that the task takes, in bytes."""
        return len(self.body) + OVERHEAD

    @property
    def batch_key(self) -> tuple[ServedModel, ServedModel, Read]:
        """Key that is equal for tasks that can be scored together."""
        return self.model, self.shadow, self.read


class Shadows:
    """Scores requests with the shadows of their models."""

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store, self._settings, self._metrics = store, settings, metrics
        self._waiting: deque[ShadowTask] = deque()
        self._held, self._closed = 0, False
        self._changed = Condition()
        self._thread: Thread | None = None
        self._reported: set[str] = set()

    def beside(self, model: ServedModel) -> ServedModel | None:
        """Return the shadow of a model; None if it has none or both are the same bundle."""
        shadow = self._store.shadows.get(model.name)
        return shadow if shadow and shadow.digest != model.digest else None

    def offer(
        self, model: ServedModel, detections: Detections, body: bytes, read: Read | None = None
    ) -> None:
        """Queue a request for the shadow of its model, if it has one and there is room.

        Args:
            model: the model that answered.
            detections: its decisions.
            body: body of the request.
            read: reads the body; default: records of `POST /score`.
        """
        shadow = self.beside(model)
        if shadow is None:
            return
        task = ShadowTask(model, shadow, detections, body, read or self._read_records)
        with self._changed:
            if self._held + task.weight > self._settings.shadow_bytes:
                self._metrics.shadow_dropped.labels(model.name).inc()
                return
            self._held += task.weight
            self._waiting.append(task)
            self._changed.notify()
            if self._thread is None:
                self._thread = Thread(target=self._run, name="shadow", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Drop the waiting requests and stop the thread."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        if self._thread:
            self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while tasks := self._take():
            with self._reporting_failure(tasks[0].shadow):
                self._compare(tasks)
            with self._changed:
                self._held -= sum(task.weight for task in tasks)

    def _take(self) -> list[ShadowTask]:
        """Wait for tasks that can be scored together; return none after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            tasks: list[ShadowTask] = []
            while self._waiting and len(tasks) < MAX_TOGETHER:
                if tasks and self._waiting[0].batch_key != tasks[0].batch_key:
                    break
                tasks.append(self._waiting.popleft())
            return tasks

    @contextmanager
    def _reporting_failure(self, shadow: ServedModel) -> Iterator[None]:
        """Count failures, and log the first of each version; later requests may succeed."""
        try:
            yield
        except Exception as error:
            self._metrics.shadow_failures.labels(shadow.name).inc()
            if shadow.digest not in self._reported:
                self._reported.add(shadow.digest)
                fields = {"model": shadow.name, "version": shadow.version}
                log.warning("shadow failed", extra={logs.FACTS: fields}, exc_info=error)

    def _compare(self, tasks: Sequence[ShadowTask]) -> None:
        """Compare the rows that the shadow can read."""
        model, shadow, read = tasks[0].batch_key
        metrics = self._metrics.for_pair(shadow.name, model.version, shadow.version)
        content = read([task.body for task in tasks], shadow)
        readable, theirs = shadow.detect_readable(content, self._settings)
        ours = Detections.concatenate(task.detections for task in tasks)
        if unreadable := int((~readable).sum()):
            self._metrics.shadow_failures.labels(shadow.name).inc(unreadable)
        if readable.any():
            metrics.observe(ours.part(readable), theirs)

    def _read_records(self, bodies: Sequence[bytes], shadow: ServedModel) -> Content:
        """Read records; those that do not fit the schema of the shadow are marked as problems."""
        max_records = self._settings.max_records
        decoded = (requests.decode(body, max_records) for body in bodies)
        return shadow.schema.from_records([row for request in decoded for row in request.records])
