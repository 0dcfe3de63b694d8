"""Which detectors are served: where they come from, and the current ones, swapped at once.

A URI is a bundle folder or a place in the registry. The registry needs MLflow, so a child
process resolves it and leaves a verified folder behind; this process only ever reads folders.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from anomaly_vae import bundle
from anomaly_vae.detector import Detector
from anomaly_vae.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from anomaly_vae.heatmaps import Scale

IMAGE = "image"
"""The kind of the models that score images."""
NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.DOTALL)
REMOTE = re.compile(r"(models|runs):/")
FETCH = (sys.executable, "-m", "anomaly_vae.registry", "fetch")
"""The command that resolves a registry URI; ``URI --to FOLDER`` follow."""


class Source(msgspec.Struct, frozen=True):
    """A bundle folder and what is known of it; the digest is checked where it is given."""

    path: str
    digest: str | None = None
    name: str | None = None
    version: str | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A detector under its name.

    ``example`` is a typical record, ``load_seconds`` what loading and warming took, ``loaded_at``
    when that was, in seconds since 1970; ``heat_scale`` is what a model of images draws with.
    """

    name: str
    version: str | None
    alias: str | None
    digest: str
    kind: str
    detector: Detector
    example: Mapping[str, Any]
    load_seconds: float
    loaded_at: float
    heat_scale: Scale | None = None


class Store:
    """The current detectors by name. Readers take one reference; a swap is one assignment."""

    def __init__(self, served: Iterable[Served] = ()) -> None:
        self.draining = False
        self.swap(served)

    @property
    def current(self) -> Mapping[str, Served]:
        """The detectors served now: a snapshot that no later swap changes."""
        return self._current

    @property
    def ready(self) -> bool:
        """Whether there is something to serve, and time to."""
        return bool(self._current) and not self.draining

    def swap(self, served: Iterable[Served]) -> None:
        """Replace all detectors at once.

        Raises:
            ConfigError: two have the same name.
        """
        fresh: dict[str, Served] = {}
        for one in served:
            if fresh.setdefault(one.name, one) is not one:
                raise ConfigError(
                    f"two models are called '{one.name}'; give one another name: NAME=URI",
                    key="model",
                )
        self._current: Mapping[str, Served] = MappingProxyType(fresh)


def resolve(
    model: str, cache: Path, *, seconds: float = 300.0, command: Sequence[str] = FETCH
) -> Source:
    """Find the bundle folder of ``[NAME=]URI``.

    Raises:
        RegistryError: the registry has no such model or cannot be reached.
    """
    named = NAMED.fullmatch(model)
    name, uri = named.groups() if named else (None, model)
    if not REMOTE.match(uri):
        return Source(uri, name=name)
    source = fetch(uri, cache, seconds=seconds, command=command)
    return msgspec.structs.replace(source, name=name or source.name)


def fetch(uri: str, cache: Path, *, seconds: float, command: Sequence[str]) -> Source:
    """Have a child process fetch a registered bundle into the cache.

    Raises:
        RegistryError: what the child says, or that it said nothing of use in time.
    """
    call = [*command, uri, "--to", str(cache)]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=seconds)  # noqa: S603  # no shell, and the command is ours
    except subprocess.TimeoutExpired:
        raise RegistryError(f"'{uri}' was not fetched within {seconds:g} seconds") from None
    if done.returncode:
        raise RegistryError(_last_line(done.stderr) or f"'{uri}' could not be fetched")
    try:
        return msgspec.json.decode(_last_line(done.stdout), type=Source)
    except msgspec.DecodeError as error:
        raise RegistryError(f"'{uri}': the answer of the registry is unreadable: {error}") from None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def load(source: Source) -> Served:
    """Read, verify and warm a detector.

    Raises:
        BundleError: the folder is no bundle, or not the one it should be.
        NotCalibratedError: it has no threshold.
    """
    start = time.perf_counter()
    loaded = bundle.load(source.path, source.digest)
    kind = loaded.manifest["kind"]
    served = Served(
        name=source.name or loaded.manifest["name"],
        version=source.version,
        alias=source.alias,
        digest=source.digest or loaded.digest,
        kind=kind,
        detector=loaded.detector,
        example=loaded.example,
        load_seconds=0.0,
        loaded_at=0.0,
        heat_scale=loaded.heat_scale if kind == IMAGE else None,
    )
    warm(served)
    seconds = time.perf_counter() - start
    return dataclasses.replace(served, load_seconds=seconds, loaded_at=time.time())


def warm(served: Served) -> None:
    """Score, explain and draw once, so that the first client does not wait for it."""
    batch = served.detector.scorer.schema.from_records([served.example])
    served.detector.detect(batch)
    served.detector.detect_and_explain(batch, None)
    if served.kind == IMAGE:
        from serving.imaging import decide
        from serving.uploads import Asked

        decide(served, batch, Asked(heatmap=True))
