"""Bytes ↔ records and results: the one boundary that every scoring request passes.

JSON is decoded and encoded by msgspec, which refuses NaN and Infinity; what is wrong with a value
is said by the schema, with its record and field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from heapq import nsmallest
from typing import Any, Literal, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive

from anomaly_vae.detector import Detections, Explanation
from anomaly_vae.modality import Schema
from anomaly_vae.monitoring import Status as GuaranteeStatus
from anomaly_vae.schema import RawBatch, TabularSchema
from serving.errors import (
    INVALID_RECORD,
    INVALID_REQUEST,
    MALFORMED,
    TOO_LARGE,
    TOO_MANY_RECORDS,
    TOO_MUCH_EXPLAINED,
    UNSUPPORTED,
    BadRecord,
    ProblemError,
)
from serving.store import Served

JSON = "application/json"
PLAIN = JSON.encode()
MOST_ERRORS = 100
"""Bad records that one answer lists."""

Headers = Mapping[bytes, bytes]
T = TypeVar("T")


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

    ``looked_at`` is when the registry was last looked at with success, in seconds since 1970, and
    ``failing`` why the last look failed.
    """

    uri: str
    looked_at: float | None
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


_decoder = msgspec.json.Decoder(ScoreRequest)
encode = msgspec.json.Encoder().encode


# ---------------------------------------------------------------- requests


def media_type(headers: Headers) -> tuple[str, bool]:
    """The media type of a body, and whether it is in UTF-8 and has no other parameters."""
    media, _, parameters = headers.get(b"content-type", b"").decode("latin-1").partition(";")
    charset = parameters.lower().replace('"', "").replace(" ", "")
    return media.strip().lower(), charset in {"", "charset=utf-8", "charset=utf8"}


def check_media_type(headers: Headers) -> None:
    """Refuse anything but plain JSON in UTF-8."""
    if headers.get(b"content-type") == PLAIN and b"content-encoding" not in headers:
        return
    if media_type(headers) != (JSON, True):
        detail = f"this model scores records: send 'Content-Type: {JSON}', in UTF-8"
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept": JSON})
    check_encoding(headers)


def check_encoding(headers: Headers) -> None:
    """Refuse a body that is compressed as a whole."""
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        detail = "send the body without Content-Encoding"
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept-Encoding": "identity"})


def check_query(query: bytes) -> None:
    """Refuse the query parameters that only a model of images takes."""
    if query and {b"explain", b"heatmap"} & {pair.partition(b"=")[0] for pair in query.split(b"&")}:
        detail = "query: this model scores records: 'explain' goes into the body, 'heatmap' is for"
        raise ProblemError(INVALID_REQUEST, detail + " models of images")


def declared_size(headers: Headers, limit: int) -> int:
    """The bytes of a body as declared, or ``limit`` where it comes in chunks; or a refusal."""
    declared = headers.get(b"content-length")
    if declared is None:
        return limit
    if not declared.isdigit() or int(declared) > limit:
        raise _too_large(limit)
    return int(declared)


async def read_body(receive: Receive, limit: int) -> bytes:
    """The body, or a refusal as soon as it is known to exceed ``limit`` bytes."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ProblemError(MALFORMED, "the body ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(TOO_LARGE, f"a body may have {limit} bytes; send less at a time")


def decode(body: bytes, max_records: int) -> ScoreRequest:
    """The request in a body; its records are not yet looked at."""
    request = parse(_decoder, body)
    if not request.records:
        raise ProblemError(INVALID_REQUEST, "'records' is empty; send at least one record")
    check_count(len(request.records), max_records)
    return request


def parse(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """What a body of JSON holds."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _unfit_request(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProblemError(MALFORMED, f"not JSON: {error}") from None
    except RecursionError:
        raise ProblemError(MALFORMED, "the JSON is nested too deeply") from None


def check_count(count: int, most: int) -> None:
    """Refuse too many records."""
    if count > most:
        detail = f"{count} records; at most {most} fit into one request"
        raise ProblemError(TOO_MANY_RECORDS, detail)


def _unfit_request(error: msgspec.ValidationError) -> ProblemError:
    """msgspec's ``reason - at `$.records[3][...]` `` → the record, where there is one."""
    reason, _, path = str(error).partition(" - at ")
    reason = reason.replace("`", "'")
    place, _, index = path.strip("`").removeprefix("$").partition("[")
    record = index.partition("]")[0]
    if place == ".records" and record.isdigit():
        return unfit_records([BadRecord(int(record), None, reason)])
    where = place.removeprefix(".")
    return ProblemError(INVALID_REQUEST, f"'{where}': {reason}" if where else reason)


def read_records(schema: Schema, records: Sequence[Mapping[str, Any]]) -> RawBatch:
    """The batch of the records; one that does not fit refuses them all."""
    return fitting(partial(schema.from_records, records))


def fitting(read: Callable[[], RawBatch]) -> RawBatch:
    """The batch that is read; one record that does not fit refuses them all."""
    try:
        batch = read()
    except RecursionError:
        raise ProblemError(MALFORMED, "the JSON is nested too deeply") from None
    if batch.problems:
        raise unfit_records(
            [BadRecord(problem.row, problem.column, problem.reason) for problem in batch.problems]
        )
    return batch


def unfit_records(bad: Sequence[BadRecord]) -> ProblemError:
    """The refusal of a request for these records, of which the first are listed."""
    listed = nsmallest(MOST_ERRORS, bad, key=lambda one: one.record)
    first, more = listed[0], len(bad) - 1
    where = f"record {first.record}" + (f", field '{first.field}'" if first.field else "")
    detail = f"{where}: {first.detail}" + (f" (and {more} more)" if more else "")
    return ProblemError(INVALID_RECORD, detail, bad=listed)


def check_contributions(count: int, most: int) -> None:
    """Refuse to explain too much; all contributions are worked out, however few are listed."""
    if count > most:
        detail = f"{count} contributions to work out; at most {most} at a time: "
        raise ProblemError(TOO_MUCH_EXPLAINED, detail + "explain fewer in one request")


# ---------------------------------------------------------------- answers


def response(content: msgspec.Struct) -> Response:
    """An answer in JSON."""
    return Response(encode(content), media_type=JSON)


def results(found: Detections, explained: Sequence[Explanation] | None) -> list[Result]:
    """The results of N records."""
    columns = found.score.tolist(), found.p_value.tolist(), found.is_anomaly.tolist()
    if explained is None:
        made = list(map(Result, *columns))
    else:
        made = list(map(_explained, *columns, explained))
    return made if found.group is None else list(map(_grouped, made, *_groups(found)))


def _groups(found: Detections) -> tuple[list[str | None], list[float]]:
    """Whose scores decided on each record, and the threshold."""
    assert found.group is not None, "of a detector with groups"
    assert found.threshold is not None, "of a detector with groups"
    return found.group.tolist(), found.threshold.tolist()


def _grouped(result: Result, group: str | None, threshold: float) -> Result:
    return msgspec.structs.replace(result, group=group, threshold=threshold)


def answer(
    served: Served, results: list[Result], status: GuaranteeStatus = "holding"
) -> ScoreResponse:
    """The answer of a model whose promise stands like this."""
    alpha, threshold = served.detector.calibration.alpha, served.detector.calibration.threshold
    return ScoreResponse(reference(served), alpha, threshold, status, results)


def _explained(score: float, p_value: float, is_anomaly: bool, explanation: Explanation) -> Result:
    parts = [
        Contribution(part.feature, part.nats, part.observed, part.expected)
        for part in explanation.contributions
    ]
    return Result(score, p_value, is_anomaly, parts, explanation.rest, explanation.kl)


def reference(served: Served) -> ModelRef:
    """How answers name a model."""
    return ModelRef(served.name, served.version, served.alias)


def schema_info(schema: Schema) -> SchemaInfo:
    """What `GET /models` says of a schema."""
    columns = [ColumnInfo(column.name, str(column.type)) for column in schema.columns]
    if isinstance(schema, TabularSchema):
        return SchemaInfo(columns)
    return SchemaInfo(columns, schema.size, schema.channels)
