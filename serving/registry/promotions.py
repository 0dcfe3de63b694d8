"""Read the history of a model's champions, for the console.

It is in the runs of MLflow, which a child process reads, as in `sources`. The last answer is kept,
and renewed on a thread, so that no page waits for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from threading import Lock, Thread
from typing import NamedTuple

import msgspec

from anomaly_vae.artifacts.registry_names import MODEL_URI
from anomaly_vae.errors import RegistryError
from anomaly_vae.masking import masked
from serving.registry.board import FollowedModel
from serving.registry.sources import check_installed, last_line

READ = (sys.executable, "-m", "anomaly_vae.lifecycle.champion_history")
"""The command that prints a history; the name of the model follows."""
FRESH_SECONDS = 300.0
"""Time for which an answer is kept, in seconds."""


class Decision(msgspec.Struct, frozen=True):
    """An entry of the history: `anomaly_vae.lifecycle.champion_history.Entry`."""

    action: str
    version: str
    champion: str | None
    by: str
    at: str
    reason: str | None
    forced: bool


class History(NamedTuple):
    """The decisions about a model, the newest first, or the reason why they are not known."""

    decisions: Sequence[Decision] = ()
    fault: str = ""
    read_at: float | None = None
    """Time at which they were read, in seconds since 1970; None if they are being read."""


class Promotions:
    """The histories of models, by name in the registry."""

    def __init__(self, seconds: float, command: Sequence[str] = READ) -> None:
        self._seconds, self._command = seconds, command
        self._known: dict[str, History] = {}
        self._reading: set[str] = set()
        self._lock = Lock()

    def of(self, name: str) -> History:
        """Return the last known history of a model, and renew it in the background if it is old."""
        known = self._known.get(name, History())
        if time.time() - (known.read_at or 0.0) > FRESH_SECONDS:
            self._start(name)
        return known

    def _start(self, name: str) -> None:
        with self._lock:
            if name in self._reading:
                return
            self._reading.add(name)
        Thread(target=self._renew, args=(name,), name="promotions", daemon=True).start()

    def _renew(self, name: str) -> None:
        try:
            self._known[name] = History(self._read(name), read_at=time.time())
        except (RegistryError, OSError) as error:
            self._known[name] = History(fault=str(error), read_at=time.time())
        finally:
            self._reading.discard(name)

    def _read(self, name: str) -> Sequence[Decision]:
        check_installed(f"models:/{name}")
        try:
            done = subprocess.run(  # noqa: S603  # the project's own module
                [*self._command, name], capture_output=True, timeout=self._seconds, check=False,
                env=os.environ,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RegistryError(f"it was not read within {self._seconds:g} seconds") from None
        if done.returncode:
            raise RegistryError(masked(last_line(done.stderr))[:500] or "it could not be read")
        try:
            return msgspec.json.decode(last_line(done.stdout), type=list[Decision])[::-1]
        except msgspec.DecodeError as error:
            raise RegistryError(f"the answer of the registry is unreadable: {error}") from None


def registered_name(name: str, followed: Sequence[FollowedModel]) -> str | None:
    """Return the name in the registry of a served model; None for a model from a folder."""
    for entry in followed:
        if entry.name == name and not entry.shadow and (match := MODEL_URI.fullmatch(entry.uri)):
            return match["name"]
    return None
