"""Bytes ↔ records and results: the one boundary that every scoring request passes.

JSON is decoded and encoded by msgspec, which refuses NaN and Infinity; what is wrong with a value
is said by the schema, with its record and field.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from anomaly_vae.monitoring.exchangeability import Status as GuaranteeStatus

JSON = "application/json"
PLAIN = JSON.encode()


class ScoreRequest(msgspec.Struct, frozen=True):
    """Records to score; ``explain`` is how many contributions each answer lists."""

    records: list[dict[str, Any]]
    explain: float | Literal["all"] = 0  # JSON knows no integers: 3.0 is 3

    def __post_init__(self) -> None:
        """Refuse fractions and negative numbers."""
        if self.most is not None and not 0 <= self.most == self.explain:
            raise ValueError("'explain': expected a whole number from 0 up, or 'all'")

    @property
    def most(self) -> int | None:
        """The contributions to list; None for all."""
        return None if isinstance(self.explain, str) else int(self.explain)


class ModelRef(msgspec.Struct, frozen=True):
    """Which model answered; version and alias are null for one served from a folder."""

    name: str
    version: str | None
    alias: str | None


class Contribution(msgspec.Struct, frozen=True):
    """A feature's share of the score, in the model's unit; what was seen and what was expected."""

    feature: str
    nats: float
    observed: str | float | bool | None
    expected: str | float | bool | None


class Region(msgspec.Struct, frozen=True):
    """Where an image is anomalous, in pixels of the model's image; x to the right, y down.

    ``area`` is in pixels; ``peak`` and ``total`` say how anomalous, in the unit of the heatmap.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float
    total: float


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decision on one record or image.

    If explained, score = Σ contributions + rest + kl in the model's unit. An image is ``frame`` of
    upload ``file``, both counted from 0; ``heatmap`` is a PNG, in base64. Of a model with groups
    also whose ``threshold`` decided: the ``group``'s own, or, where that is null, that of all rows.
    """

    score: float
    p_value: float
    is_anomaly: bool
    contributions: list[Contribution] | msgspec.UnsetType = msgspec.UNSET
    rest: float | msgspec.UnsetType = msgspec.UNSET
    kl: float | msgspec.UnsetType = msgspec.UNSET
    file: int | msgspec.UnsetType = msgspec.UNSET
    frame: int | msgspec.UnsetType = msgspec.UNSET
    heatmap: bytes | msgspec.UnsetType = msgspec.UNSET
    regions: list[Region] | msgspec.UnsetType = msgspec.UNSET
    group: str | msgspec.UnsetType | None = msgspec.UNSET
    threshold: float | msgspec.UnsetType = msgspec.UNSET


class ScoreResponse(msgspec.Struct, frozen=True):
    """The decisions, in the order of the records or images: anomalous where score > threshold.

    A result that names its own threshold was decided by that. ``guarantee_status`` says whether
    what is scored of late still looks like the calibration rows.
    """

    model: ModelRef
    alpha: float
    threshold: float
    guarantee_status: GuaranteeStatus
    results: list[Result]


class ColumnInfo(msgspec.Struct, frozen=True):
    """A column that a model reads."""

    name: str
    type: str


class SchemaInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model reads of a record; images become squares of ``size`` by ``size`` pixels."""

    columns: list[ColumnInfo]
    size: int | msgspec.UnsetType = msgspec.UNSET
    channels: int | msgspec.UnsetType = msgspec.UNSET


class Following(msgspec.Struct, frozen=True):
    """How a model stands with the registry: null where its URI always means the same.

    ``checked_at`` is when the registry was last looked at with success, in seconds since 1970, and
    ``failing`` why the last look failed.
    """

    uri: str
    checked_at: float | None
    failing: str | None


class ShadowInfo(msgspec.Struct, frozen=True):
    """A model that is scored beside another, and how they agree on the ``records`` of both.

    Shares of these records: with the same flag, flagged by the model, and by the shadow.
    """

    version: str | None
    alias: str | None
    digest: str
    records: int
    agreement: float | None
    flagged: float | None
    shadow_flagged: float | None
    following: Following | None


class Groups(msgspec.Struct, frozen=True):
    """The column whose levels have thresholds of their own; other rows have the model's."""

    column: str
    thresholds: dict[str, float]


class ModelInfo(msgspec.Struct, frozen=True):
    """A model that is loaded; ``groups`` is null where all rows have one threshold."""

    name: str
    version: str | None
    alias: str | None
    digest: str
    kind: str
    unit: str
    alpha: float
    threshold: float
    groups: Groups | None
    guarantee_status: GuaranteeStatus
    schema: SchemaInfo
    following: Following | None
    shadow: ShadowInfo | None


class Models(msgspec.Struct, frozen=True):
    """Every model that is loaded."""

    models: list[ModelInfo]


class Status(msgspec.Struct, frozen=True):
    """How the service is."""

    status: str
    models: list[str]


# ---------------------------------------------------------------- requests


# ---------------------------------------------------------------- answers
