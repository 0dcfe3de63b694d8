"""Write a result into an object store, in which an object appears whole or not at all.

Object stores cannot lock. A lease, an object that names the live run and is renewed while it
lives, takes the place of the lock.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from anomaly_vae.errors import DataError
from pipelines.batch.result.folder import RUN, SUMMARY, ResultFolder, holds_results
from pipelines.datasets.reading.objects import STORE_REMEDY, ObjectPath, object_path, objects_in
from pipelines.datasets.reading.parts import first_line

LEASE = f"{RUN}/lease.json"
LEASE_SECONDS = 60.0
"""Age of a lease from which its run is taken for dead."""
RENEWALS = 4
"""Number of renewals in this time."""


class ObjectFolder(ResultFolder):
    """The folder of a result in an object store.

    Args:
        path: the address of the folder.
    """

    def __init__(self, path: ObjectPath) -> None:
        super().__init__(path)
        self._at = path
        self._uploaded: dict[str, str] = {}
        """Digest of each object that was uploaded and not asked for since."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lease on the folder while the block runs.

        Raises:
            DataError: another run holds it, or the store cannot be written.
        """
        with self._told():
            self._refuse_second_run()
            mine = {"host": socket.gethostname(), "pid": os.getpid(), "run": uuid.uuid4().hex}
            self.write(LEASE, json.dumps(mine).encode())
            if json.loads(self.read(LEASE) or b"{}") != mine:
                raise self._in_use({})
        ended = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(mine, ended), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            ended.set()
            renewal.join()
            with suppress(OSError):
                self.remove(LEASE)

    def _renew(self, lease: dict[str, Any], ended: threading.Event) -> None:
        while not ended.wait(LEASE_SECONDS / RENEWALS):
            with suppress(OSError):
                self.write(LEASE, json.dumps(lease).encode())

    def _refuse_second_run(self) -> None:
        content = self.read(LEASE)
        lease = json.loads(content) if content else None
        if lease is None or _is_dead(lease):
            return
        with suppress(FileNotFoundError):
            age = time.time() - (self._at / LEASE).stat().st_mtime_ns / 1e9
            if age < LEASE_SECONDS:
                raise self._in_use(lease)

    def _in_use(self, lease: dict[str, Any]) -> DataError:
        where = f" on '{lease['host']}'" if lease else ""
        return DataError(
            f"--output '{self.path}' is being written by another run{where}; if that run is dead, "
            f"try again in {LEASE_SECONDS:.0f} seconds"
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"--output '{self.path}': {first_line(error)}; {STORE_REMEDY}"
            ) from None

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if there is none."""
        with self._told(), suppress(FileNotFoundError):
            return self._object(name).read_bytes()
        return None

    @contextmanager
    def create(self, name: str) -> Iterator[Path]:
        """Yield a temporary file to write to, which is uploaded if the block succeeds."""
        with tempfile.TemporaryDirectory(prefix="anomaly-vae-upload-") as folder:
            path = Path(folder, "file")
            yield path
            with path.open("rb") as file:
                self._uploaded[name] = hashlib.file_digest(file, "sha256").hexdigest()
            local = pafs.LocalFileSystem()
            pafs.copy_files(
                str(path),
                self._object(name).key,
                source_filesystem=local,
                destination_filesystem=self._at.store,
            )

    def digest(self, name: str) -> str | None:
        """Return the digest of an object; None if there is none."""
        return self._uploaded.pop(name, None) or super().digest(name)

    def open(self, name: str) -> Any:
        """Open an object for reading."""
        return self._object(name).open()

    def remove(self, name: str) -> None:
        """Remove an object, if there is one."""
        with suppress(FileNotFoundError):
            self._at.store.delete_file(self._object(name).key)

    def names(self, pattern: str) -> list[str]:
        """Return the names of the objects that a glob matches, sorted."""
        folder = self._object(pattern).parent if "/" in pattern else self._at
        return [name for name in self._names(folder) if fnmatch.fnmatchcase(name, pattern)]

    def clear(self) -> None:
        """Remove a result: the summary first, the plan last."""
        self.remove(SUMMARY)
        names = self._names(self._at)
        for name in sorted(names, key=lambda name: (name.startswith(f"{RUN}/"), "plan" in name)):
            if name != LEASE:
                self.remove(name)

    def _object(self, name: str) -> ObjectPath:
        return object_path(f"{self._at}/{name}")

    def _names(self, folder: ObjectPath) -> list[str]:
        return [str(path).removeprefix(f"{self._at}/") for path in objects_in(folder)]

    def has(self, name: str) -> bool:
        """Return whether there is such an object, or a folder with objects."""
        with self._told():
            return bool(self._object(name).info().type != pafs.FileType.NotFound)

    def _visible(self) -> Iterator[str]:
        with self._told():
            for name in self._names(self._at):
                first = name.partition("/")[0]
                if first != RUN:
                    yield name if holds_results(first) else first


def _is_dead(lease: dict[str, Any]) -> bool:
    """Return whether a lease is of a process of this machine that has ended."""
    if lease["host"] != socket.gethostname():
        return False
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def result_folder(path: Path) -> ResultFolder:
    """Return the folder of a result, on this machine or in an object store."""
    return ObjectFolder(path) if isinstance(path, ObjectPath) else ResultFolder(path)
