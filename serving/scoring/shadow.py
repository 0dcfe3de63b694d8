"""Score requests a second time with a shadow model, and compare its decisions with the model's.

A thread scores the requests in a bounded queue, many at a time. A request that does not fit into
the queue is counted and dropped. Answers never wait for a shadow, never depend on it, and never
fail because of it. Scores of two models need not be comparable, so the comparison also counts how
often the flags agree, and how much the p-values differ.
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
from serving.scoring.windows import ShadowWindows
from serving.settings import Settings

log = logging.getLogger("serving.scoring.shadow")

OVERHEAD = 4096
"""Memory that a waiting request takes in addition to its body, in bytes."""
MAX_TOGETHER = 64
"""Maximum number of requests that are scored together."""
CLOSING_SECONDS = 2.0
"""Maximum time to wait for the thread on shutdown, in seconds."""

Read = Callable[[Sequence[bytes], ServedModel], Content]
"""Function that reads bodies of one format into the rows or files that a model scores."""


@dataclass(frozen=True, slots=True, eq=False)
class ShadowTask:
    """An answered request: the model's decisions, the body, and the function that reads it."""

    model: ServedModel
    shadow: ServedModel
    detections: Detections
    body: bytes
    read: Read

    @property
    def weight(self) -> int:
        """Memory that the task takes while it waits, in bytes."""
        return len(self.body) + OVERHEAD

    @property
    def batch_key(self) -> tuple[ServedModel, ServedModel, Read]:
        """Key that equals that of other tasks if they can be scored together."""
        return self.model, self.shadow, self.read


class Shadows:
    """A queue of requests, and the thread that scores them with the shadows of their models."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        windows: ShadowWindows | None = None,
    ) -> None:
        self._store, self._settings, self._metrics = store, settings, metrics
        self._windows = windows
        self._waiting: deque[ShadowTask] = deque()
        self._queued_bytes, self._closed = 0, False
        self._changed = Condition()
        self._thread: Thread | None = None
        self._reported: set[str] = set()

    def shadow_of(self, model: ServedModel) -> ServedModel | None:
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
            read: function that reads the body; None for the records of `POST /score`.
        """
        shadow = self.shadow_of(model)
        if shadow is None:
            return
        task = ShadowTask(model, shadow, detections, body, read or self._read_records)
        with self._changed:
            if self._queued_bytes + task.weight > self._settings.shadow_bytes:
                self._metrics.shadow_dropped.labels(model.name).inc()
                return
            self._queued_bytes += task.weight
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
        while tasks := self._next_tasks():
            with self._reporting_failure(tasks[0].shadow):
                self._compare(tasks)
            with self._changed:
                self._queued_bytes -= sum(task.weight for task in tasks)

    def _next_tasks(self) -> list[ShadowTask]:
        """Wait for tasks that can be scored together; return an empty list after `close`."""
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
        """Count failures, and log the first one of each version; continue after a failure."""
        try:
            yield
        except Exception as error:
            self._metrics.shadow_failures.labels(shadow.name).inc()
            if shadow.digest not in self._reported:
                self._reported.add(shadow.digest)
                fields = {"model": shadow.name, "version": shadow.version}
                log.warning("shadow failed", extra={logs.LOG_FIELDS: fields}, exc_info=error)

    def _compare(self, tasks: Sequence[ShadowTask]) -> None:
        """Compare the rows that the shadow can read."""
        model, shadow, read = tasks[0].batch_key
        metrics = self._metrics.for_pair(shadow.name, model.version, shadow.version)
        content = read([task.body for task in tasks], shadow)
        if shadow.windows and self._windows:
            content = self._windows.complete(shadow, model, content)
        readable, shadow_detections = shadow.detect_readable(content, self._settings)
        detections = Detections.concatenate(task.detections for task in tasks)
        if unreadable := int((~readable).sum()):
            self._metrics.shadow_failures.labels(shadow.name).inc(unreadable)
        if readable.any():
            metrics.observe(detections.part(readable), shadow_detections)

    def _read_records(self, bodies: Sequence[bytes], shadow: ServedModel) -> Content:
        """Read records; those that do not fit the schema of the shadow are marked as problems."""
        max_records = self._settings.max_records
        decoded = (requests.decode(body, max_records).request for body in bodies)
        return shadow.schema.from_records([row for request in decoded for row in request.records])
