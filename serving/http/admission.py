"""Limit the requests, body bytes and thread jobs in progress, and the time a body may take.

A request is counted before its body is read. If it exceeds a limit, it is refused at once, because
an ever-growing queue would delay all requests.
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
    """Counters and limits of the scoring requests in progress in this process.

    Attributes:
        requests: number of scoring requests in progress.
        bytes: total size of the bodies of these requests, in bytes.
        jobs: number of requests that run on a worker thread or wait for one.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.requests = self.bytes = self.jobs = 0
        self._settings, self._metrics = settings, metrics

    def admit(self, size: int) -> None:
        """Admit a request with a body of ``size`` bytes; call `release` when it is done.

        Raises:
            ProblemError: too many requests, or too many bytes.
        """
        if self.requests >= self._settings.max_concurrency:
            raise self.refusal(f"{self.requests} requests are in progress")
        if self.bytes and self.bytes + size > self._settings.max_pending_bytes:
            raise self.refusal(f"bodies of {self.bytes} bytes are in progress")
        self.requests += 1
        self.bytes += size

    def release(self, size: int) -> None:
        """Release a request that was admitted with a body of ``size`` bytes."""
        self.requests -= 1
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
        """Check that the queue of the worker threads has room.

        Raises:
            ProblemError: the queue is full.
        """
        if self.jobs >= self._settings.threads + self._settings.max_queued:
            raise self.refusal(f"{self.jobs} large requests are in progress")

    def refusal(self, detail: str) -> ProblemError:
        """Return the error that asks a client to come back later."""
        return ProblemError(OVERLOADED, detail, headers=self._settings.retry_headers)


class Deadlines:
    """A time limit for the body of each request, enforced by a single timer.

    A timer per request would cost more than reading the body, which has usually arrived already.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def enforce(self, work: Awaitable[T]) -> T:
        """Await the body of a request within the time limit.

        Raises:
            ProblemError: the body did not arrive in time.
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
        """Cancel the overdue tasks, and set the timer for the next deadline."""
        self._timer = None
        for task, started in self._started.items():  # the oldest first
            if started + self.seconds > loop.time():
                self._timer = loop.call_at(started + self.seconds, self._cancel_late, loop)
                return
            self._late.add(task)
            task.cancel()
