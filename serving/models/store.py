"""Hold the models that are served; a swap replaces them in one assignment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.client import types
from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import ConfigError
from anomaly_vae.features import WindowInputs
from anomaly_vae.monitoring.exchangeability import Monitor
from anomaly_vae.review.case_maker import CaseColumns
from anomaly_vae.review.cases import CaseReason
from anomaly_vae.scoring.detector import Detections, Detector
from anomaly_vae.scoring.modality import Encoding, Schema
from anomaly_vae.scoring.wording import Wording
from serving.settings import Settings

Json = dict[str, Any]
Content: TypeAlias = Any
"""Input to score: a `RawBatch` for a table model, the contents of N files for an image model.

Rows of other protocols have an attribute ``ignored`` that names their unknown columns."""


class BodyDescription(NamedTuple):
    """The part of the OpenAPI document about the bodies that one kind of model reads."""

    text: str
    content: Json
    """Body by media type."""
    parameters: Sequence[Json]
    components: Json
    """Schemas that the bodies refer to, by name."""


@dataclass(frozen=True, slots=True)
class CasePart:
    """Content of a case besides the decision and the columns that were sent."""

    reasons: tuple[CaseReason, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    """Columns that the service computed."""
    row_id: str | None = None
    """Id of an image; None for the id in the row."""
    image: str | None = None
    """Name of the folder of a kept scan."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ServedModel(ABC):
    """A loaded detector under its name.

    The subclasses `ServedTable` and `ServedImages` hold all that differs between tables and images.
    `load_model` chooses between them.
    """

    kind: ClassVar[str]
    """Kind of the bundle: ``tabular`` or ``image``."""
    reads_files: ClassVar[bool]
    """Whether input values are the contents of files, which are base64 in JSON."""

    name: str
    version: str | None
    alias: str | None
    digest: str
    detector: Detector
    monitor: Monitor
    """Test of whether recently scored rows still look like the calibration rows."""
    example: Mapping[str, Any]
    """A typical record."""
    load_seconds: float
    """Time taken to load and warm up the model, in seconds."""
    loaded_at: float
    """Time at which the model was loaded, in seconds since 1970."""
    id_column: str | None = None
    """Column that identifies a record, whose value is repeated in its result."""
    registered_at: float | None = None
    """Time of registration in seconds since 1970; None for a bundle that is not registered."""
    windows: WindowInputs | None = None
    """Windows that are computed for each record; None without `data.windows`."""
    case_columns: CaseColumns = field(default_factory=CaseColumns)
    """Columns with the id, the time, the entity and the amount of a record."""
    wording: Wording = field(default_factory=partial(Wording, {}))
    """Words for the columns."""

    @property
    def schema(self) -> Schema:
        """The columns that the model reads."""
        return self.detector.scorer.schema

    @property
    def encoding(self) -> Encoding:
        """The encoding of rows for the scoring graph."""
        return self.detector.scorer.encoding

    @property
    def table_encoding(self) -> TabularEncoding | None:
        """The encoding of a table model, for metrics by column; None for an image model."""
        return None

    @property
    def width(self) -> int:
        """Number of encoded values per record, a measure of the cost of scoring it."""
        return len(self.encoding.labels)

    def warm_up(self) -> Detections:
        """Score and explain the example once, so that the first request is not slow."""
        batch = self.schema.from_records([self.example])
        detections = self.detector.detect(batch)
        self.detector.detect_and_explain(batch, None)
        return detections

    def describe_schema(self) -> types.Schema:
        """Describe the columns that the model reads, for `GET /models`."""
        columns = self.schema.columns
        return types.Schema(tuple(types.Column(c.name, str(c.type)) for c in columns))

    def with_windows(self, batch: RawBatch, values: NDArray[np.float64]) -> RawBatch:
        """Return N rows completed with their windows (N, F)."""
        raise NotImplementedError(f"models of kind {self.kind} have no windows")

    @abstractmethod
    def handler(self, resources: Any) -> Any:
        """Create the `serving.scoring.handlers.RequestHandler` of this model.

        Args:
            resources: the `serving.scoring.handlers.Resources` of the process.
        """

    @abstractmethod
    def read_columns(self, columns: Mapping[str, Sequence[Any]]) -> Content:
        """Read N rows, given as columns (N,); unknown columns are ignored.

        Raises:
            ProblemError: a value does not fit its column.
        """

    @abstractmethod
    def detect(self, content: Content, settings: Settings) -> Detections:
        """Decide on N rows, or on N files with one image each.

        Raises:
            ProblemError: a file cannot be read or holds several images.
        """

    @abstractmethod
    def detect_readable(
        self, content: Content, settings: Settings
    ) -> tuple[NDArray[np.bool_], Detections]:
        """Decide on the rows that can be read, or on every image of the files.

        Returns:
            Which of the N rows could be read (N,), and the decisions on those.
        """

    @abstractmethod
    def case_parts(
        self,
        records: Sequence[Mapping[str, Any]],
        detections: Detections,
        explained: NDArray[np.bool_],
        settings: Settings,
    ) -> list[CasePart]:
        """Return what the cases of N rows say besides the decisions.

        Args:
            records: the rows, or the images with their ``content`` and ``frame``.
            detections: the decisions on them.
            explained: which of them are explained (N,).
            settings: limits, and the folder of kept scans.
        """

    @classmethod
    @abstractmethod
    def describe_bodies(cls, models: Sequence[Self], settings: Settings) -> BodyDescription:
        """Describe the bodies of `POST /score` for all models of this kind."""

    @abstractmethod
    def example_results(self, settings: Settings) -> list[Any]:
        """Return the `Result` list for the example request of `describe_bodies`."""


class Store:
    """The current models by name, which are swapped by a single assignment.

    A shadow scores the same requests as the model of the same name, but never answers them.
    """

    def __init__(
        self, models: Iterable[ServedModel] = (), shadows: Iterable[ServedModel] = ()
    ) -> None:
        self.draining = False
        self.checks: list[Callable[[], str | None]] = []
        self.shadows = _by_name(shadows)
        self.swap(models)

    @property
    def current(self) -> Mapping[str, ServedModel]:
        """The models served now: a snapshot that later swaps do not change."""
        return self._current

    @property
    def ready(self) -> bool:
        """Whether the process can score."""
        return self.unready_reason is None

    @property
    def unready_reason(self) -> str | None:
        """Reason why the process cannot score: draining, no model, or a check that fails."""
        if self.draining:
            return "shutting down"
        if not self._current:
            return "no model is loaded"
        return next(filter(None, (check() for check in self.checks)), None)

    def swap(self, models: Iterable[ServedModel]) -> None:
        """Replace all models at once.

        Raises:
            ConfigError: two have the same name.
        """
        self._current = _by_name(models)

    def put(self, model: ServedModel, shadow: bool = False) -> None:
        """Replace the model or shadow of the same name, and keep all others."""
        if shadow:
            self.shadows = MappingProxyType({**self.shadows, model.name: model})
        else:
            self._current = MappingProxyType({**self._current, model.name: model})


def _by_name(models: Iterable[ServedModel]) -> Mapping[str, ServedModel]:
    by_name: dict[str, ServedModel] = {}
    for model in models:
        if by_name.setdefault(model.name, model) is not model:
            raise ConfigError(
                f"two models are called '{model.name}'; give one another name: NAME=URI",
                key="model",
            )
    return MappingProxyType(by_name)
