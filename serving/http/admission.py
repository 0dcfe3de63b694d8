"""How much at once, and how often: places for requests, bytes and threads, and a rate per key.

All is counted before a body is read. What does not fit is refused at once: a queue that grows
only makes everybody late.
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
    """Places for scoring requests, and for the bytes of their bodies."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.held = self.bytes = self.jobs = 0
        self._settings, self._metrics = settings, metrics

    def take(self, size: int) -> None:
        """Take a place and this many bytes, or refuse; `give` gives them back."""
        if self.held >= self._settings.max_concurrency:
            raise self.refusal(f"{self.held} requests are under way")
        if self.bytes and self.bytes + size > self._settings.max_pending_bytes:
            raise self.refusal(f"bodies of {self.bytes} bytes are under way")
        self.held += 1
        self.bytes += size

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.held -= 1
        self.bytes -= size

    @contextmanager
    def job(self) -> Iterator[None]:
        """Hold a place in the queue of the worker threads, or refuse."""
        self.check_jobs()
        self.jobs += 1
        self._metrics.queue.inc()
        try:
            yield
        finally:
            self.jobs -= 1
            self._metrics.queue.dec()

    def check_jobs(self) -> None:
        """Refuse where the queue of the worker threads is full."""
        if self.jobs >= self._settings.threads + self._settings.max_queued:
            raise self.refusal(f"{self.jobs} large requests are under way")

    def refusal(self, detail: str) -> ProblemError:
        """What a client is told that has to come back."""
        return ProblemError(OVERLOADED, detail, headers=self._settings.retry)


class Deadlines:
    """So many seconds for the body of each request, with one timer for all of them.

    A timer of its own for each request costs more than the rest of reading its body, which most of
    the time is there already.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def keep(self, work: Awaitable[T]) -> T:
        """Await the body of a request, or refuse it when time is up."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task, "this is a coroutine"
        self._since[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._sweep, loop)
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._late:
                task.uncancel()
                detail = f"the body did not arrive within {self.seconds:g} seconds"
                raise ProblemError(TIMEOUT, detail) from None
            raise
        finally:
            del self._since[task]
            self._late.discard(task)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel who is late; come back for the next."""
        self._timer = None
        for task, since in self._since.items():  # the oldest first
            if since + self.seconds > loop.time():
                self._timer = loop.call_at(since + self.seconds, self._sweep, loop)
                return
            self._late.add(task)
            task.cancel()
