"""The folder of fetched bundles: each under its digest, and which of them were good.

Several processes and services may share it. For each URI it keeps the version that served last and
the one before; bundles that no URI needs are removed when they are an hour old, so that nobody's
download is taken away before it is written down.
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

LAST = "last"
SPARED_SECONDS = 3600.0
OURS = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\..+")
"""Bundles, and what a process that was killed left of one."""


class Kept(msgspec.Struct, frozen=True):
    """What served under a URI last, and before that."""

    uri: str
    current: BundleRef
    previous: BundleRef | None = None


class Cache:
    """The cache in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holding(self, digest: str) -> Path | None:
        """The sound bundle of this digest, if it is there."""
        place = self.folder / digest
        return place if bundle.is_sound(place, digest) else None

    def last(self, uri: str) -> BundleRef | None:
        """What served under a URI last."""
        kept = self._kept(self._place(uri))
        return kept.current if kept else None

    def remember(self, uri: str, source: BundleRef) -> None:
        """Write down that this is good, and remove what nobody needs any more."""
        place = self._place(uri)
        kept = self._kept(place)
        if kept and kept.current == source:
            return
        previous = kept.current if kept else None
        with atomic_path(place) as whole:
            whole.write_bytes(msgspec.json.encode(Kept(uri, source, previous)))
        self.prune()

    def prune(self) -> None:
        """Remove the bundles that no URI needs, unless they are new."""
        with locked(self.folder):
            kept = filter(None, map(self._kept, (self.folder / LAST).glob("*.json")))
            needed = {s.digest for one in kept for s in (one.current, one.previous) if s}
            for place in self.folder.iterdir():
                if OURS.fullmatch(place.name) and place.name not in needed and _is_old(place):
                    shutil.rmtree(place, ignore_errors=True)

    def _place(self, uri: str) -> Path:
        """Where a URI's record is; the same URI of another registry is another."""
        registry = mlflow_rest.uri()
        if file := database_file(registry):
            registry = str(file.absolute())
        key = hashlib.sha256(f"{registry}\n{uri}".encode()).hexdigest()[:32]
        return self.folder / LAST / f"{key}.json"

    def _kept(self, place: Path) -> Kept | None:
        try:
            return msgspec.json.decode(place.read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError):
            return None


def _is_old(place: Path) -> bool:
    try:
        return time.time() - place.stat().st_mtime > SPARED_SECONDS
    except OSError:
        return False  # somebody else removed it
