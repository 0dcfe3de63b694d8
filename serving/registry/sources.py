"""Resolve model URIs to bundle folders, without loading MLflow into this process.

MLflow takes seconds to import and more memory than the service itself. Therefore `mlflow_rest`
queries registry servers, and a child process with MLflow fetches the bundles that are not in the
cache. A child process also reads registries in a database, unless it is an SQLite file that has not
changed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sqlite3
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from anomaly_vae.artifacts.registry_names import (
    ALIAS_URI,
    DIGEST_TAG,
    MISSING,
    UNFIT,
    UNWRITABLE,
    BundleRef,
    database_file,
)
from anomaly_vae.errors import BundleError, RegistryError
from anomaly_vae.masking import masked
from serving.registry import mlflow_rest
from serving.registry.cache import Cache
from serving.settings import Settings

NAMED_URI = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.DOTALL)
"""Pattern of ``NAME=URI``."""
REMOTE = re.compile(r"(models|runs):/")
"""Pattern of the beginning of a URI in a registry."""
FETCH = (sys.executable, "-m", "anomaly_vae.lifecycle.registry", "fetch")
"""The command that fetches a bundle; the arguments ``URI --to FOLDER`` follow."""
REQUEST_SECONDS = 5.0
"""Timeout of a request to the registry, in seconds."""
COUNT_VERSIONS = """
SELECT COUNT(*) FROM model_version_tags WHERE name = ? AND version = ? AND key = ? AND value = ?
"""
"""Query of MLflow's database for the tag that holds a version's digest."""

Fingerprint = tuple[tuple[int, int, int] | None, ...]
"""State of the files of an SQLite registry: modification time, size and inode."""


class Spec(NamedTuple):
    """A model to serve, given as ``[NAME=]URI``."""

    name: str | None
    uri: str

    @classmethod
    def parse(cls, model: str) -> Spec:
        """Split ``[NAME=]URI``."""
        named = NAMED_URI.fullmatch(model)
        return cls(*named.groups()) if named else cls(None, model)


def is_followed(uri: str) -> bool:
    """Return whether a URI may point to another version later, which only an alias can."""
    return ALIAS_URI.fullmatch(uri) is not None


class Sources:
    """A resolver of URIs to bundles; it remembers the results of an unchanged SQLite registry."""

    def __init__(self, settings: Settings, command: Sequence[str] = FETCH) -> None:
        self.cache = Cache(settings.cache_dir)
        self._seconds, self._command = settings.fetch_seconds, command
        self._resolved: dict[str, tuple[Fingerprint | None, BundleRef]] = {}

    async def find(self, uri: str, known: BundleRef | None = None) -> BundleRef:
        """Return the bundle that a URI points to now; ``known`` itself if it is unchanged.

        Raises:
            RegistryError: the registry has no such model or cannot be reached.
            BundleError: the bundle is damaged.
            OSError: the bundle cannot be written to the cache.
        """
        if not REMOTE.match(uri):
            return BundleRef(uri)
        alias = ALIAS_URI.fullmatch(uri)
        if alias and mlflow_rest.is_server():
            return await self._find_on_server(uri, known, *alias.groups())
        state = fingerprint()
        if state is None or self._resolved.get(uri, (None, None))[0] != state:
            self._resolved[uri] = state, await self._fetch(uri)
        return self._resolved[uri][1]

    def quick_start(self, uri: str) -> BundleRef | None:
        """Return the bundle that an alias served last, if resolving it needs a child process.

        None if an SQLite registry no longer has that version: its file was removed and made anew.
        """
        if not is_followed(uri) or mlflow_rest.is_server():
            return None
        served = self.cache.last_served(uri)
        file = database_file(mlflow_rest.uri())
        return None if served and file and lacks_version(file, served) else served

    def forget(self, uri: str) -> None:
        """Forget the bundle of a URI that cannot be served, so that the URI is resolved again."""
        self._resolved.pop(uri, None)

    async def _find_on_server(
        self, uri: str, known: BundleRef | None, name: str, alias: str
    ) -> BundleRef:
        latest = await asyncio.to_thread(mlflow_rest.resolve_alias, name, alias, REQUEST_SECONDS)
        if latest.digest is None:
            raise RegistryError(f"'{uri}' was not registered by anomaly-vae: it has no digest")
        if known and (known.version, known.digest) == (latest.version, latest.digest):
            return known
        folder = await asyncio.to_thread(self.cache.find, latest.digest)
        if folder:
            registered_at = latest.registered_at
            return BundleRef(str(folder), latest.digest, name, latest.version, alias, registered_at)
        fetched = await self._fetch(f"models:/{name}/{latest.version}")
        return replace(fetched, alias=alias)

    async def _fetch(self, uri: str) -> BundleRef:
        """Fetch a registered bundle into the cache with a child process."""
        check_installed(uri)
        with tempfile.TemporaryDirectory(prefix="anomaly-vae-") as temporary:
            command = [*self._command, uri, "--to", str(self.cache.folder)]
            environment = {**os.environ, "TMPDIR": temporary}
            child = await asyncio.create_subprocess_exec(
                *command, stdout=PIPE, stderr=PIPE, env=environment
            )
            try:
                async with asyncio.timeout(self._seconds):
                    out, err = await child.communicate()
            except TimeoutError:
                message = f"'{uri}' was not fetched within {self._seconds:g} seconds"
                raise RegistryError(message) from None
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        if child.returncode:
            raise _fetch_error(child.returncode, last_line(err) or f"'{uri}' could not be fetched")
        return _read(uri, last_line(out))


def _read(uri: str, line: str) -> BundleRef:
    try:
        return msgspec.json.decode(line, type=BundleRef)
    except msgspec.DecodeError as error:
        raise RegistryError(f"'{uri}': the answer of the registry is unreadable: {error}") from None


def _fetch_error(code: int, line: str) -> Exception:
    line = masked(line)[:500]
    if code in {UNFIT, UNWRITABLE}:
        return BundleError(line) if code == UNFIT else OSError(line)
    return RegistryError(line, missing=code == MISSING)


def last_line(output: bytes) -> str:
    """Return the last line that a child process wrote."""
    return (output.decode(errors="replace").strip().splitlines() or [""])[-1]


def check_installed(uri: str) -> None:
    """Check that a child process can read the registry.

    Raises:
        RegistryError: this is a lean install; the message names the missing package.
    """
    if not importlib.util.find_spec("mlflow"):
        missing = "mlflow; install it in the service's environment: pip install mlflow"
    elif not mlflow_rest.uri().startswith("http") and not importlib.util.find_spec("sqlalchemy"):
        missing = "the full mlflow, as mlflow-skinny reads no database: pip install mlflow"
    else:
        return
    raise RegistryError(
        f"'{uri}' is in a registry that only mlflow can read, which needs {missing}"
    )


def fingerprint() -> Fingerprint | None:
    """Return a value that changes when an SQLite registry is written; None for other registries."""
    file = database_file(mlflow_rest.uri())
    if file is None:
        return None
    return tuple(_state(Path(f"{file}{suffix}")) for suffix in ("", "-wal", "-journal"))


def lacks_version(file: Path, version: BundleRef) -> bool:
    """Return whether a registry in an SQLite file answers that it has no such version.

    False if the file cannot be read, as its registry then says nothing about the version.
    """
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            values = (version.name, version.version, DIGEST_TAG, version.digest)
            return bool(database.execute(COUNT_VERSIONS, values).fetchone() == (0,))
    except sqlite3.Error:
        return False


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
