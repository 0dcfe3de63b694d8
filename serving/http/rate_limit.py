"""Limit the rate of each API key."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from mmap import mmap
from pathlib import Path

from serving.problems import RATE_LIMITED, ProblemError
from serving.settings import Settings

PLACES = 65_536
"""Keys that worker processes count together; beyond them, two may share a bucket."""


class RateLimiter:
    """A bucket of tokens for each API key: so many a second, and a burst."""

    def __init__(
        self,
        per_second: float,
        burst: int,
        book: BucketStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._book = book or BucketStore()

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


class BucketStore:
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


class SharedBucketStore(BucketStore):
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


def bucket_store(settings: Settings, folder: str | None) -> BucketStore:
    """The book of this process, or in ``folder``, where there is a rate, that of all workers."""
    if not (folder and settings.rate_per_second):
        return BucketStore()
    return SharedBucketStore(Path(folder) / "rates", [key.name for key in settings.api_keys])
