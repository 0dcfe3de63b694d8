"""Encode answers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.monitoring.exchangeability import Status as GuaranteeStatus
from anomaly_vae.scoring.detector import Detections, Explanation
from anomaly_vae.scoring.modality import Schema
from serving.models.store import ServedModel
from serving.scoring.schemas import (
    JSON,
    ColumnInfo,
    Contribution,
    ModelRef,
    Result,
    SchemaInfo,
    ScoreResponse,
)

encode = msgspec.json.Encoder().encode


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
    served: ServedModel, results: list[Result], status: GuaranteeStatus = "holding"
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


def reference(served: ServedModel) -> ModelRef:
    """How answers name a model."""
    return ModelRef(served.name, served.version, served.alias)


def schema_info(schema: Schema) -> SchemaInfo:
    """What `GET /models` says of a schema."""
    columns = [ColumnInfo(column.name, str(column.type)) for column in schema.columns]
    if isinstance(schema, TabularSchema):
        return SchemaInfo(columns)
    return SchemaInfo(columns, schema.size, schema.channels)
