"""Keep cases on disk while the case store is down.

Each batch is a file, which is written beside its place and renamed, and deleted once it is stored.
The folder belongs to all worker processes and survives a restart. One process at a time empties
it. A batch that is stored twice changes nothing, so a crash between storing and deleting is
harmless.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import msgspec

from anomaly_vae.review.cases import Case
from anomaly_vae.review.p_values import PValueCounts
from serving.observability import logs

log = logging.getLogger("serving.review.spool")

SUFFIX = ".json"


def _new_source() -> str:
    return uuid4().hex


@dataclass(frozen=True)
class Batch:
    """Cases, and counts of p-values, that are stored together; ``source`` is its unique name."""

    cases: list[Case]
    counts: list[PValueCounts] = field(default_factory=list)
    source: str = field(default_factory=_new_source)


_decoder = msgspec.json.Decoder(Batch)


class Spool:
    """The batches that wait for one case store.

    Args:
        folder: folder of the spools of all stores; it need not exist.
        address: address of the store without its password, which names the folder of the spool.
        max_bytes: maximum size of all batches, in bytes.
    """

    def __init__(self, folder: Path, address: str, max_bytes: int) -> None:
        self.folder = folder / hashlib.sha256(address.encode()).hexdigest()[:16]
        self._max_bytes = max_bytes
        self._lock: int | None = None

    @property
    def size(self) -> int:
        """Size of the waiting batches, in bytes."""
        total = 0
        for path in self._paths():
            with suppress(OSError):  # another process has just stored it
                total += path.stat().st_size
        return total

    def put(self, batch: Batch) -> bool:
        """Write a batch; return False if there is no room, or the folder cannot be written to."""
        content = msgspec.json.encode(batch)
        if self.size + len(content) > self._max_bytes:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self.folder / f"{time.time_ns():020d}-{batch.source}{SUFFIX}"
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.rename(path)
        except OSError as error:
            fields = {logs.LOG_FIELDS: {"reason": f"{self.folder}: {error.strerror}"}}
            log.warning("cases cannot wait on disk", extra=fields)
            return False
        return True

    def waiting(self) -> Iterator[tuple[Path, Batch | None]]:
        """Yield the waiting batches, the oldest first; None for a file that cannot be read."""
        for path in self._paths():
            try:
                content = path.read_bytes()
            except OSError:
                continue
            try:
                yield path, _decoder.decode(content)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                yield path, None

    def remove(self, path: Path) -> None:
        """Delete a batch that is stored."""
        path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> None:
        """Keep a file that cannot be read, for people to look at."""
        with suppress(OSError):
            path.rename(path.with_suffix(".damaged"))

    def _paths(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == SUFFIX)
        except OSError:
            return []

    def is_leader(self) -> bool:
        """Return whether this process empties the spool: the first to ask, until it ends."""
        if self._lock is not None:
            return True
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return True  # nothing can wait there, so nothing is emptied twice
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def close(self) -> None:
        """Let another process empty the spool."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
