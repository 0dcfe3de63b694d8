"""Limit what is in progress at once: requests, bytes of bodies, jobs on threads, and their time.

Everything is counted before a body is read. What exceeds a limit is refused at once, because a
queue that grows only delays every request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from serving.observability.metrics import Metrics
from serving.problems import OVERLOADED, TIMEOUT, ProblemError
from serving.settings import Settings

T = TypeVar("T")


class AdmissionControl:
    """The scoring requests of this process, the bytes of their bodies, and jobs on threads.

    Attributes:
        held: number of scoring requests in progress.
        bytes: size of their bodies, in bytes.
        jobs: number of requests that run on a worker thread or wait for one.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.held = self.bytes = self.jobs = 0
        self._settings, self._metrics = settings, metrics

    def take(self, size: int) -> None:
        """Admit a request with a body of this size in bytes; `give` must follow.

        Raises:
            ProblemError: too many requests, or too many bytes.
        """
        if self.held >= self._settings.max_concurrency:
            raise self.refusal(f"{self.held} requests are in progress")
        if self.bytes and self.bytes + size > self._settings.max_pending_bytes:
            raise self.refusal(f"bodies of {self.bytes} bytes are in progress")
        self.held += 1
        self.bytes += size

    def give(self, size: int) -> None:
        """Release a request that was admitted with this size."""
        self.held -= 1
        self.bytes -= size

    @contextmanager
    def job(self) -> Iterator[None]:
        """Hold a place in the queue of the worker threads.

        Raises:
            ProblemError: the queue is full.
        """
        self.check_jobs()
        self.jobs += 1
        self._metrics.queue.inc()
        try:
            yield
        finally:
            self.jobs -= 1
            self._metrics.queue.dec()

    def check_jobs(self) -> None:
        """Refuse if the queue of the worker threads is full.

        Raises:
            ProblemError: the queue is full.
        """
        if self.jobs >= self._settings.threads + self._settings.max_queued:
            raise self.refusal(f"{self.jobs} large requests are in progress")

    def refusal(self, detail: str) -> ProblemError:
        """Return the error that asks a client to come back later."""
        return ProblemError(OVERLOADED, detail, headers=self._settings.retry)


class Deadlines:
    """A deadline for the body of each request, with one timer for all of them.

    A timer per request would cost more than the rest of reading its body, most of which has
    usually arrived already.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def keep(self, work: Awaitable[T]) -> T:
        """Await the body of a request.

        Raises:
            ProblemError: it did not arrive in time.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task, "this is a coroutine"
        self._started[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._cancel_late, loop)
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._late:
                task.uncancel()
                detail = f"the body did not arrive within {self.seconds:g} seconds"
                raise ProblemError(TIMEOUT, detail) from None
            raise
        finally:
            del self._started[task]
            self._late.discard(task)

    def _cancel_late(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the tasks that are late, and set the timer for the next one."""
        self._timer = None
        for task, started in self._started.items():  # the oldest first
            if started + self.seconds > loop.time():
                self._timer = loop.call_at(started + self.seconds, self._cancel_late, loop)
                return
            self._late.add(task)
            task.cancel()
