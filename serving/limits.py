"""How much at once, and how often: places for requests, bytes and threads, and a rate per key.

All is counted before a body is read. What does not fit is refused at once: a queue that grows
only makes everybody late.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.errors import OVERLOADED, RATE_LIMITED, ProblemError
from serving.metrics import Metrics
from serving.settings import Settings


class Places:
    """Places for scoring requests, and for the bytes of their bodies."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.held = self.bytes = self.jobs = 0
        self._settings, self._metrics = settings, metrics

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold a place and this many bytes, or refuse."""
        if self.held >= self._settings.max_concurrency:
            raise self.refusal(f"{self.held} requests are under way")
        if self.bytes and self.bytes + size > self._settings.max_pending_bytes:
            raise self.refusal(f"bodies of {self.bytes} bytes are under way")
        self.held += 1
        self.bytes += size
        try:
            yield
        finally:
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


class Rates:
    """A bucket of tokens for each API key: so many a second, and a burst."""

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._full: dict[str, float] = {}  # when the bucket of a key is full again

    def take(self, key: str) -> None:
        """Take a token of this key, or refuse."""
        now, one = self._clock(), 1 / self._rate
        full = max(self._full.get(key, now), now) + one
        late = full - now - self._burst * one
        if late > one * 1e-9:
            raise ProblemError(
                RATE_LIMITED,
                f"key '{key}' may send {self._rate:g} requests a second",
                headers={"Retry-After": str(math.ceil(late))},
            )
        self._full[key] = full
