"""Which detectors are served: the current ones, swapped at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from anomaly_vae import bundle
from anomaly_vae.detector import Detections, Detector
from anomaly_vae.errors import AnomalyVAEError, BundleError, ConfigError
from anomaly_vae.monitoring import Monitor

if TYPE_CHECKING:
    from anomaly_vae.heatmaps import Scale

IMAGE = "image"
"""The kind of the models that score images."""


class Source(msgspec.Struct, frozen=True):
    """A bundle folder and what is known of it; the digest is checked where it is given."""

    path: str
    digest: str | None = None
    name: str | None = None
    version: str | None = None
    alias: str | None = None
    registered_at: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A detector under its name.

    ``monitor`` judges what it scores of late; ``example`` is a typical record, ``load_seconds``
    what loading and warming took, ``loaded_at`` when that was, in seconds since 1970, as is
    ``registered_at``; ``heat_scale`` is what a model of images draws with.
    """

    name: str
    version: str | None
    alias: str | None
    digest: str
    kind: str
    detector: Detector
    monitor: Monitor
    example: Mapping[str, Any]
    load_seconds: float
    loaded_at: float
    registered_at: float | None = None
    heat_scale: Scale | None = None


class Store:
    """The current detectors by name. Readers take one reference; a swap is one assignment.

    ``shadows`` are scored beside those of the same name and never answer.
    """

    def __init__(self, served: Iterable[Served] = (), shadows: Iterable[Served] = ()) -> None:
        self.draining = False
        self.shadows = _by_name(shadows)
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
        self._current = _by_name(served)

    def put(self, served: Served, shadow: bool = False) -> None:
        """Replace the detector, or the shadow, of this name; the others stay."""
        if shadow:
            self.shadows = MappingProxyType({**self.shadows, served.name: served})
        else:
            self._current = MappingProxyType({**self._current, served.name: served})


def _by_name(served: Iterable[Served]) -> Mapping[str, Served]:
    fresh: dict[str, Served] = {}
    for one in served:
        if fresh.setdefault(one.name, one) is not one:
            raise ConfigError(
                f"two models are called '{one.name}'; give one another name: NAME=URI",
                key="model",
            )
    return MappingProxyType(fresh)


def load(source: Source) -> Served:
    """Read, verify, warm and try a detector.

    Raises:
        BundleError: the folder is no bundle, or not the one it should be, or its example cannot be
            scored.
        NotCalibratedError: it has no threshold.
    """
    try:
        return _loaded(source)
    except AnomalyVAEError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise BundleError(f"bundle '{source.path}' cannot be scored with: {reason}") from error


def _loaded(source: Source) -> Served:
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
        monitor=loaded.monitor,
        example=loaded.example,
        load_seconds=0.0,
        loaded_at=0.0,
        registered_at=source.registered_at,
        heat_scale=loaded.heat_scale if kind == IMAGE else None,
    )
    check(served, warm(served))
    seconds = time.perf_counter() - start
    return dataclasses.replace(served, load_seconds=seconds, loaded_at=time.time())


def warm(served: Served) -> Detections:
    """Score, explain and draw once, so that the first client does not wait for it."""
    batch = served.detector.scorer.schema.from_records([served.example])
    found = served.detector.detect(batch)
    served.detector.detect_and_explain(batch, None)
    if served.kind == IMAGE:
        from serving.imaging import decide
        from serving.uploads import Asked

        decide(served, batch, Asked(heatmap=True))
    return found


def check(served: Served, found: Detections) -> None:
    """Refuse a detector whose example has no score or no p-value.

    Raises:
        BundleError: it is not fit to serve.
    """
    score, p_value = float(found.score[0]), float(found.p_value[0])
    if not (np.isfinite(score) and 0 < p_value <= 1):
        raise BundleError(
            f"model '{served.name}' gives its own example the score {score} and the p-value "
            f"{p_value}; train it again"
        )
