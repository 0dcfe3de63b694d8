"""Which detectors are served: the current ones, swapped at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from anomaly_vae.errors import ConfigError
from anomaly_vae.monitoring.exchangeability import Monitor
from anomaly_vae.scoring.detector import Detector

if TYPE_CHECKING:
    from anomaly_vae.images.heatmaps import Scale

IMAGE = "image"
"""The kind of the models that score images."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
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

    def __init__(
        self, served: Iterable[ServedModel] = (), shadows: Iterable[ServedModel] = ()
    ) -> None:
        self.draining = False
        self.shadows = _by_name(shadows)
        self.swap(served)

    @property
    def current(self) -> Mapping[str, ServedModel]:
        """The detectors served now: a snapshot that no later swap changes."""
        return self._current

    @property
    def ready(self) -> bool:
        """Whether there is something to serve, and time to."""
        return bool(self._current) and not self.draining

    def swap(self, served: Iterable[ServedModel]) -> None:
        """Replace all detectors at once.

        Raises:
            ConfigError: two have the same name.
        """
        self._current = _by_name(served)

    def put(self, served: ServedModel, shadow: bool = False) -> None:
        """Replace the detector, or the shadow, of this name; the others stay."""
        if shadow:
            self.shadows = MappingProxyType({**self.shadows, served.name: served})
        else:
            self._current = MappingProxyType({**self._current, served.name: served})


def _by_name(served: Iterable[ServedModel]) -> Mapping[str, ServedModel]:
    fresh: dict[str, ServedModel] = {}
    for one in served:
        if fresh.setdefault(one.name, one) is not one:
            raise ConfigError(
                f"two models are called '{one.name}'; give one another name: NAME=URI",
                key="model",
            )
    return MappingProxyType(fresh)
