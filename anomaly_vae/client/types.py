"""Define the answers of the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True, slots=True)
class Model:
    """Which model answered; version and alias are None for one served from a folder."""

    name: str
    version: str | None
    alias: str | None


@dataclass(frozen=True, slots=True)
class Contribution:
    """A feature's share of the score; what was seen and what was expected."""

    feature: str
    nats: float
    observed: str | float | bool | None
    expected: str | float | bool | None


@dataclass(frozen=True, slots=True)
class Region:
    """Where an image is anomalous, in pixels of the model's image."""

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float
    total: float


@dataclass(frozen=True, slots=True)
class Result:
    """The decision on one record, or on one ``frame`` of image file number ``file``.

    ``heatmap`` is a PNG. If explained, score = Σ contributions + rest + kl. Of a model with groups
    ``threshold`` is what decided: the ``group``'s own, or, where that is None, that of all rows.
    """

    score: float
    p_value: float
    is_anomaly: bool
    contributions: tuple[Contribution, ...] = ()
    rest: float | None = None
    kl: float | None = None
    file: int | None = None
    frame: int | None = None
    heatmap: bytes | None = None
    regions: tuple[Region, ...] = ()
    group: str | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Scores(Sequence[Result]):
    """The results in the order of the records: anomalous where score > threshold.

    ``guarantee_status`` says whether what the service scored of late still looks like the rows that
    alpha was calibrated on: holding, doubtful, broken; None where the service is too old to say.
    """

    model: Model
    alpha: float
    threshold: float
    results: tuple[Result, ...]
    guarantee_status: str | None = None

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Result, ...]: ...
    def __getitem__(self, index: int | slice) -> Result | tuple[Result, ...]:
        return self.results[index]


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a model reads."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Schema:
    """What a model reads; images become squares of ``size`` by ``size`` pixels."""

    columns: tuple[Column, ...]
    size: int | None = None
    channels: int | None = None


@dataclass(frozen=True, slots=True)
class Groups:
    """The column whose levels have thresholds of their own; other rows have the model's."""

    column: str
    thresholds: dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that is loaded; ``groups`` is None where all rows have one threshold."""

    name: str
    version: str | None
    alias: str | None
    digest: str
    kind: str
    unit: str
    alpha: float
    threshold: float
    schema: Schema
    groups: Groups | None = None
    guarantee_status: str | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """Every model that the service has loaded."""

    models: tuple[ModelInfo, ...]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """What is wrong with one field of one record, or of one file."""

    record: int
    field: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What the service says of an error (RFC 9457); ``errors`` lists the first bad records."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[BadRecord, ...] = ()
