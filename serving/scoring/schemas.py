"""Define the JSON bodies of requests and answers that only the service knows.

`anomaly_vae.client.types` defines what service and client share. msgspec decodes and encodes both;
it refuses NaN and Infinity.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from anomaly_vae.client import types
from anomaly_vae.client.types import Groups, Model, Region, Result
from anomaly_vae.monitoring.exchangeability import Status as GuaranteeStatus

JSON = "application/json"
JSON_BYTES = JSON.encode()
REF = "#/components/schemas/{name}"
"""Where the OpenAPI document describes a type."""


class ScoreRequest(msgspec.Struct, frozen=True):
    """Records to score; ``explain`` is the number of contributions to list for each."""

    records: list[dict[str, Any]]
    explain: float | Literal["all"] = 0  # JSON knows no integers: 3.0 is 3

    def __post_init__(self) -> None:
        """Refuse fractions and negative numbers."""
        if self.most is not None and not 0 <= self.most == self.explain:
            raise ValueError("'explain': expected a whole number from 0 up, or 'all'")

    @property
    def most(self) -> int | None:
        """Maximum number of contributions to list; None for all."""
        return None if isinstance(self.explain, str) else int(self.explain)


class GroupedResult(Result, frozen=True, kw_only=True):
    """A result of a model with groups: ``group`` is written even where it is null."""

    group: str | None
    threshold: float


class HeatmapResult(Result, frozen=True, kw_only=True):
    """A result with a heatmap: ``regions`` is written even where it is empty."""

    heatmap: bytes
    regions: tuple[Region, ...]


class ScoreResponse(msgspec.Struct, frozen=True):
    """The decisions, in the order of the records or images: anomalous where score > threshold.

    A result with its own ``threshold`` was decided by that. ``guarantee_status`` says whether
    recently scored rows still look like the calibration rows.
    """

    model: Model
    alpha: float
    threshold: float
    guarantee_status: GuaranteeStatus
    results: list[Result]


class Following(msgspec.Struct, frozen=True):
    """The state of following the registry; null for a URI that always names the same version.

    ``checked_at`` is the time of the last successful check, in seconds since 1970; ``failing`` is
    the reason if the last check failed.
    """

    uri: str
    checked_at: float | None
    failing: str | None


class ShadowInfo(msgspec.Struct, frozen=True):
    """A shadow model, and how often it agrees with the model on the ``records`` that both scored.

    ``agreement``, ``flagged`` and ``shadow_flagged`` are shares of these records: with the same
    flag, flagged by the model, and flagged by the shadow.
    """

    version: str | None
    alias: str | None
    digest: str
    records: int
    agreement: float | None
    flagged: float | None
    shadow_flagged: float | None
    following: Following | None


class ModelInfo(types.ModelInfo, frozen=True, kw_only=True):
    """A loaded model; ``groups`` is null where all rows have one threshold."""

    groups: Groups | None
    guarantee_status: GuaranteeStatus
    following: Following | None
    shadow: ShadowInfo | None


class Models(msgspec.Struct, frozen=True):
    """All models that the service has loaded."""

    models: list[ModelInfo]


class Status(msgspec.Struct, frozen=True):
    """The state of the service and the names of its models."""

    status: str
    models: list[str]
