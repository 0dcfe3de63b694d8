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
"""Number of buckets; clients beyond the configured keys may share one with another."""


class RateLimiter:
    """A token bucket for each API key, filled at ``per_second`` up to ``burst`` tokens."""

    def __init__(
        self,
        per_second: float,
        burst: int,
        store: BucketStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._store = store or BucketStore()

    def take(self, key: str) -> None:
        """Take a token of this key.

        Raises:
            ProblemError: the bucket is empty; `Retry-After` says for how many seconds.
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
        names: keys with a bucket of their own; any other gets one by a digest of its name.
    """

    def __init__(self, path: Path | None = None, names: Sequence[str] = ()) -> None:
        self._own = {name: slot for slot, name in enumerate(names)}
        self._file = -1  # no file: memory of this process
        if path:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            weakref.finalize(self, os.close, self._file)
            os.ftruncate(self._file, SLOTS * 8)
        self._full_at = memoryview(mmap(self._file, SLOTS * 8)).cast("d")

    @contextmanager
    def locked(self) -> Iterator[memoryview[float]]:
        """Lock the times of all slots against other processes, and give access to them."""
        if self._file < 0:
            yield self._full_at
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield self._full_at
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def slot(self, key: str) -> int:
        """Return the slot of a key."""
        if key in self._own:
            return self._own[key]
        digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        return len(self._own) + digest % (SLOTS - len(self._own))


def open_store(settings: Settings, folder: str | None) -> BucketStore:
    """Open the buckets of this process or, in ``folder``, those of all worker processes."""
    shared = Path(folder) / "rates" if folder and settings.rate_per_second else None
    return BucketStore(shared, [key.name for key in settings.api_keys])
