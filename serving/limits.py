"""How much at once, and how often: places for requests, bytes and threads, and a rate per key.

All is counted before a body is read. What does not fit is refused at once: a queue that grows
only makes everybody late.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import math
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from mmap import mmap
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import OVERLOADED, RATE_LIMITED, TIMEOUT, ProblemError
from serving.metrics import Metrics
from serving.settings import Settings

T = TypeVar("T")

PLACES = 65_536
"""Keys that worker processes count together; beyond them, two may share a bucket."""


class Places:
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


class Rates:
    """A bucket of tokens for each API key: so many a second, and a burst."""

    def __init__(
        self,
        per_second: float,
        burst: int,
        book: Book | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._book = book or Book()

    def take(self, key: str) -> None:
        """Take a token of this key, or refuse."""
        now, one = self._clock(), 1 / self._rate
        with self._book.turn():
            full = max(self._book.full_at(key), now) + one
            late = full - now - self._burst * one
            if late <= one * 1e-9:
                self._book.fill_at(key, full)
                return
        raise ProblemError(
            RATE_LIMITED,
            f"key '{key}' may send {self._rate:g} requests a second",
            headers={"Retry-After": str(math.ceil(late))},
        )


class Book:
    """When the bucket of each key is full again, by a clock that all processes share."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}

    def turn(self) -> AbstractContextManager[None]:
        """Hold it while it is read and written."""
        return nullcontext()

    def full_at(self, key: str) -> float:
        """The time of a key; 0 of one that is new."""
        return self._times.get(key, 0.0)

    def fill_at(self, key: str, full: float) -> None:
        """Keep the time of a key."""
        self._times[key] = full


class SharedBook(Book):
    """The same for several worker processes: a file with a place for each of so many keys."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, PLACES * 8)
        self._shared = memoryview(mmap(self._file, PLACES * 8)).cast("d")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold it while it is read and written."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def full_at(self, key: str) -> float:
        """The time of a key; 0 of one that is new."""
        return self._shared[self._place(key)]

    def fill_at(self, key: str, full: float) -> None:
        """Keep the time of a key."""
        self._shared[self._place(key)] = full

    def _place(self, key: str) -> int:
        """Those of the configuration first; the others, which tokens name, by a digest."""
        if key in self._places:
            return self._places[key]
        digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        return len(self._places) + digest % (PLACES - len(self._places))


def book_of(settings: Settings, folder: str | None) -> Book:
    """The book of this process, or in ``folder``, where there is a rate, that of all workers."""
    if not (folder and settings.rate_per_second):
        return Book()
    return SharedBook(Path(folder) / "rates", [key.name for key in settings.api_keys])
