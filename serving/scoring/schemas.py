"""Define the types of JSON bodies that only the service uses.

`anomaly_vae.client.types` defines those that the client uses as well. msgspec decodes and encodes
them, and refuses NaN and Infinity.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from anomaly_vae.client import types
from anomaly_vae.client.types import GroupResult, Groups, Model, Region, Result
from anomaly_vae.monitoring.exchangeability import Lack
from anomaly_vae.monitoring.exchangeability import Status as GuaranteeStatus

JSON = "application/json"
JSON_BYTES = JSON.encode()
REF = "#/components/schemas/{name}"
"""Template of a reference to a type in the OpenAPI document."""


MAX_ID = 200
"""Maximum length of the ``id`` of a request, in characters."""
RequestId = Annotated[str, msgspec.Meta(max_length=MAX_ID)] | int | float | None
ErrorMode = Literal["refuse", "per_record"]


class ScoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records to score; ``explain`` is the number of contributions to list for each.

    With ``errors`` per_record, records that cannot be scored get an error in place of a result.
    ``id`` is repeated in the answer.
    """

    records: list[dict[str, Any]]
    explain: float | Literal["all"] = 0  # in JSON, 3.0 equals 3
    errors: ErrorMode = "refuse"
    id: RequestId = None

    def __post_init__(self) -> None:
        """Refuse fractions and negative numbers."""
        count = self.max_contributions
        if count is not None and not 0 <= count == self.explain:
            raise ValueError("'explain': expected a whole number from 0 up, or 'all'")

    @property
    def max_contributions(self) -> int | None:
        """Maximum number of contributions to list; None for all."""
        return None if isinstance(self.explain, str) else int(self.explain)


class DecidedResult(Result, frozen=True, kw_only=True):
    """A result with a decision; ``unusual_input`` is present even if it is null."""

    unusual_input: str | None


class GroupedResult(DecidedResult, frozen=True, kw_only=True):
    """A result of a model with groups; ``group`` is present even if it is null."""

    group: str | None
    threshold: float


class RegionsResult(DecidedResult, frozen=True, kw_only=True):
    """The result of an image with its regions; ``regions`` is present even if it is empty."""

    regions: tuple[Region, ...]


class ScoreResponse(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The decisions, in the order of the records or images.

    A record is anomalous if its score exceeds ``threshold``, or the ``threshold`` of its result if
    it has one. ``guarantee_status`` says whether recently scored rows still look like the
    calibration rows. ``ignored`` names the keys of records that the model does not know, at most
    100 of them; ``warnings`` says what else may be unintended. ``id`` is that of the request.
    ``groups`` are the decisions on groups of images that the model has thresholds for.
    """

    id: RequestId = None
    model: Model
    alpha: float
    threshold: float
    guarantee_status: GuaranteeStatus
    warnings: list[str] = []
    ignored: list[str]
    results: list[Result]
    groups: tuple[GroupResult, ...] = ()


class Following(msgspec.Struct, frozen=True):
    """The state of the registry checks; null for a URI that always points to the same version.

    ``checked_at`` is the time of the last successful check, in seconds since 1970; ``failing`` is
    the reason if the last check failed.
    """

    uri: str
    checked_at: float | None
    failing: str | None


class ShadowInfo(msgspec.Struct, frozen=True):
    """A shadow model, and a comparison with the model on the ``records`` that both scored.

    ``agreement`` is the share of these records with the same flag; ``flagged`` and
    ``shadow_flagged`` are the shares flagged by the model and by the shadow.
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
    """A loaded model; ``groups`` is null if all rows have the same threshold.

    ``guarantee_lacks`` is what is missing to tell more if the status of the guarantee is unknown.
    """

    groups: Groups | None
    guarantee_status: GuaranteeStatus
    guarantee_lacks: Lack | None
    following: Following | None
    shadow: ShadowInfo | None


class Models(msgspec.Struct, frozen=True):
    """All models that the service has loaded."""

    models: list[ModelInfo]


class Status(msgspec.Struct, frozen=True):
    """The state of the service and the names of its models."""

    status: str
    models: list[str]
