"""Limit the request rate of each API key, over all worker processes."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path

from serving.problems import RATE_LIMITED, ProblemError
from serving.settings import Settings

SLOTS = 65_536
"""Number of buckets; clients without a configured key may share a bucket."""


class RateLimiter:
    """A token bucket for each API key: ``per_second`` tokens are added, up to ``burst``."""

    def __init__(
        self,
        per_second: float,
        burst: int,
        store: BucketStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._store = store or BucketStore()

    def consume(self, key: str) -> None:
        """Take a token from the bucket of this key.

        Raises:
            ProblemError: the bucket is empty; `Retry-After` is the time until the next token.
        """
        now, interval, slot = self._clock(), 1 / self._rate, self._store.slot(key)
        with self._store.locked() as full_at:
            full = max(full_at[slot], now) + interval
            wait = full - now - self._burst * interval
            if wait <= interval * 1e-9:
                full_at[slot] = full
                return
        raise ProblemError(
            RATE_LIMITED,
            f"key '{key}' may send {self._rate:g} requests a second",
            headers={"Retry-After": str(math.ceil(wait))},
        )


class BucketStore:
    """The time at which the bucket of each key is full again, by the monotonic clock.

    Args:
        path: a file that worker processes share; None for a single process.
        names: keys that each have their own bucket; other keys share buckets by a digest.
    """

    def __init__(self, path: Path | None = None, names: Sequence[str] = ()) -> None:
        self._reserved = {name: slot for slot, name in enumerate(names)}
        self._file = -1  # without a file, the memory of this process
        if path:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            weakref.finalize(self, os.close, self._file)
            os.ftruncate(self._file, SLOTS * 8)
        self._full_at = memoryview(mmap(self._file, SLOTS * 8)).cast("d")

    @contextmanager
    def locked(self) -> Iterator[memoryview[float]]:
        """Yield the times of all slots, locked against other processes."""
        if self._file < 0:
            yield self._full_at
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield self._full_at
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def slot(self, key: str) -> int:
        """Return the index of a key's bucket."""
        if key in self._reserved:
            return self._reserved[key]
        digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        return len(self._reserved) + digest % (SLOTS - len(self._reserved))


def open_store(settings: Settings, folder: str | None) -> BucketStore:
    """Open the buckets: shared by worker processes in ``folder``, or private without one."""
    shared = Path(folder) / "rates" if folder and settings.rate_per_second else None
    return BucketStore(shared, [key.name for key in settings.api_keys])
