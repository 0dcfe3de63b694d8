"""Keep fetched bundles in a folder by digest, and record which version each URI served last.

Several processes and services may share the folder. For each URI it keeps the version served last
and the one before. Other bundles are removed once they are an hour old, so that a download of
another process is not removed before that process has recorded it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from pathlib import Path

import msgspec

from anomaly_vae.artifacts import bundle
from anomaly_vae.artifacts.registry_names import BundleRef, database_file
from anomaly_vae.files import atomic_path, locked
from serving.registry import mlflow_rest

LAST_SERVED = "last"
"""Folder of the records, by URI."""
MIN_PRUNE_AGE_SECONDS = 3600.0
"""Age from which an unneeded bundle is removed, in seconds."""
BUNDLE_FOLDER = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\..+")
"""Pattern of the names of bundles, and of temporary folders left behind by killed processes."""


class LastServed(msgspec.Struct, frozen=True):
    """The bundle that a URI served last, and the bundle before it."""

    uri: str
    current: BundleRef
    previous: BundleRef | None = None


class Cache:
    """The bundles and records in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, digest: str) -> Path | None:
        """Return the folder of the bundle with this digest, None if it is absent or damaged."""
        folder = self.folder / digest
        return folder if bundle.is_sound(folder, digest) else None

    def last_served(self, uri: str) -> BundleRef | None:
        """Return the bundle that a URI served last."""
        record = self._read_record(self._record_path(uri))
        return record.current if record else None

    def remember(self, uri: str, source: BundleRef) -> None:
        """Record that a URI serves this bundle, and remove bundles that are no longer needed."""
        path = self._record_path(uri)
        record = self._read_record(path)
        if record and record.current == source:
            return
        previous = record.current if record else None
        with atomic_path(path) as temporary:
            temporary.write_bytes(msgspec.json.encode(LastServed(uri, source, previous)))
        self.prune()

    def prune(self) -> None:
        """Remove old bundles that no URI needs."""
        with locked(self.folder):
            paths = (self.folder / LAST_SERVED).glob("*.json")
            records = filter(None, map(self._read_record, paths))
            needed = {ref.digest for r in records for ref in (r.current, r.previous) if ref}
            for folder in self.folder.iterdir():
                is_bundle = BUNDLE_FOLDER.fullmatch(folder.name)
                if is_bundle and folder.name not in needed and _is_old(folder):
                    shutil.rmtree(folder, ignore_errors=True)

    def _record_path(self, uri: str) -> Path:
        """Return the path of the record of a URI in the current registry."""
        registry = mlflow_rest.uri()
        if file := database_file(registry):
            registry = str(file.absolute())
        key = hashlib.sha256(f"{registry}\n{uri}".encode()).hexdigest()[:32]
        return self.folder / LAST_SERVED / f"{key}.json"

    def _read_record(self, path: Path) -> LastServed | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=LastServed)
        except (OSError, msgspec.DecodeError):
            return None


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > MIN_PRUNE_AGE_SECONDS
    except OSError:
        return False  # another process removed it
