"""URI → bundle folder. This process only ever reads folders and asks one question over HTTP.

A registry needs MLflow, which costs seconds and more memory than the service itself. So a server is
asked by `mlflow_rest`, and a child process with MLflow in it fetches what is not in the cache; a
database is asked by the child, unless it is a file that nobody has written to since.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from anomaly_vae.artifacts.registry_names import (
    ALIAS_URI,
    MISSING,
    UNFIT,
    UNWRITABLE,
    BundleRef,
    database_file,
)
from anomaly_vae.errors import BundleError, RegistryError
from serving.registry import mlflow_rest
from serving.registry.cache import Cache
from serving.settings import Settings

NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.DOTALL)
REMOTE = re.compile(r"(models|runs):/")
FETCH = (sys.executable, "-m", "anomaly_vae.lifecycle.registry", "fetch")
"""The command that resolves a registry URI; ``URI --to FOLDER`` follow."""
ASK_SECONDS = 5.0
USER = re.compile(r"//[^/@\s]+@")

Seen = tuple[tuple[int, int, int] | None, ...]


class Spec(NamedTuple):
    """``[NAME=]URI``."""

    name: str | None
    uri: str

    @classmethod
    def parse(cls, model: str) -> Spec:
        """Read it."""
        named = NAMED.fullmatch(model)
        return cls(*named.groups()) if named else cls(None, model)


def is_followed(uri: str) -> bool:
    """Whether what a URI means may change: an alias moves, all else stays."""
    return ALIAS_URI.fullmatch(uri) is not None


class Sources:
    """Where bundles come from, and what was seen there last."""

    def __init__(self, settings: Settings, command: Sequence[str] = FETCH) -> None:
        self.cache = Cache(settings.cache_dir)
        self._seconds, self._command = settings.fetch_seconds, command
        self._found: dict[str, tuple[Seen | None, BundleRef]] = {}

    async def find(self, uri: str, known: BundleRef | None = None) -> BundleRef:
        """The bundle folder that a URI means now; ``known`` where it still means that.

        Raises:
            RegistryError: the registry has no such model or cannot be reached.
            BundleError: it has one, and it is damaged.
            OSError: there is no room for it.
        """
        if not REMOTE.match(uri):
            return BundleRef(uri)
        alias = ALIAS_URI.fullmatch(uri)
        if alias and mlflow_rest.is_server():
            return await self._of_server(uri, known, *alias.groups())
        seen = fingerprint()
        if seen is None or self._found.get(uri, (None, None))[0] != seen:
            self._found[uri] = seen, await self._fetch(uri)
        return self._found[uri][1]

    def at_once(self, uri: str) -> BundleRef | None:
        """What an alias meant last, where asking what it means now takes a child process."""
        return self.cache.last(uri) if is_followed(uri) and not mlflow_rest.is_server() else None

    def forget(self, uri: str) -> None:
        """Ask anew next time: what was found will not do."""
        self._found.pop(uri, None)

    async def _of_server(
        self, uri: str, known: BundleRef | None, name: str, alias: str
    ) -> BundleRef:
        found = await asyncio.to_thread(mlflow_rest.ask, name, alias, ASK_SECONDS)
        if found.digest is None:
            raise RegistryError(f"'{uri}' was not registered by anomaly-vae: it has no digest")
        if known and (known.version, known.digest) == (found.version, found.digest):
            return known
        place = await asyncio.to_thread(self.cache.holding, found.digest)
        if place:
            at = found.registered_at
            return BundleRef(str(place), found.digest, name, found.version, alias, at)
        fetched = await self._fetch(f"models:/{name}/{found.version}")
        return replace(fetched, alias=alias)

    async def _fetch(self, uri: str) -> BundleRef:
        """Have a child process fetch a registered bundle into the cache."""
        _check_installed(uri)
        with tempfile.TemporaryDirectory(prefix="anomaly-vae-") as place:
            call = [*self._command, uri, "--to", str(self.cache.folder)]
            environment = {**os.environ, "TMPDIR": place}
            child = await asyncio.create_subprocess_exec(
                *call, stdout=PIPE, stderr=PIPE, env=environment
            )
            try:
                async with asyncio.timeout(self._seconds):
                    out, err = await child.communicate()
            except TimeoutError:
                late = f"'{uri}' was not fetched within {self._seconds:g} seconds"
                raise RegistryError(late) from None
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        if child.returncode:
            raise _said(child.returncode, _last_line(err) or f"'{uri}' could not be fetched")
        return _read(uri, _last_line(out))


def _read(uri: str, line: str) -> BundleRef:
    try:
        return msgspec.json.decode(line, type=BundleRef)
    except msgspec.DecodeError as error:
        raise RegistryError(f"'{uri}': the answer of the registry is unreadable: {error}") from None


def _said(code: int, line: str) -> Exception:
    line = USER.sub("//", line)[:500]  # no password of a database
    if code in {UNFIT, UNWRITABLE}:
        return BundleError(line) if code == UNFIT else OSError(line)
    return RegistryError(line, missing=code == MISSING)


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or [""])[-1]


def _check_installed(uri: str) -> None:
    """Say in one line what a lean install lacks."""
    if not importlib.util.find_spec("mlflow"):
        lacks = "mlflow; install it beside the service: pip install mlflow"
    elif not mlflow_rest.uri().startswith("http") and not importlib.util.find_spec("sqlalchemy"):
        lacks = "the full mlflow, as mlflow-skinny reads no database: pip install mlflow"
    else:
        return
    raise RegistryError(f"'{uri}' is in a registry that only mlflow can read, which needs {lacks}")


def fingerprint() -> Seen | None:
    """What changes whenever an SQLite registry is written to; None of any other."""
    file = database_file(mlflow_rest.uri())
    if file is None:
        return None
    return tuple(_state(Path(f"{file}{suffix}")) for suffix in ("", "-wal", "-journal"))


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
