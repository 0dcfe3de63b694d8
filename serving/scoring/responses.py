"""Build and encode the answers to scoring requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from anomaly_vae.client.types import Contribution, Model, Result
from anomaly_vae.monitoring.exchangeability import Status as GuaranteeStatus
from anomaly_vae.scoring.detector import Detections, Explanation
from serving.models.store import ServedModel
from serving.scoring.schemas import JSON, GroupedResult, ScoreResponse

encode = msgspec.json.Encoder().encode


def response(content: msgspec.Struct) -> Response:
    """Return a response in JSON."""
    return Response(encode(content), media_type=JSON)


def results(
    detections: Detections, explanations: Sequence[Explanation] | None = None
) -> list[Result]:
    """Return the results of N records."""
    columns = (
        detections.score.tolist(), detections.p_value.tolist(), detections.is_anomaly.tolist()
    )  # fmt: skip
    if explanations is None and detections.group is None:
        return list(map(Result, *columns))
    kind = Result if detections.group is None else GroupedResult
    rows = zip(
        *columns,
        _groups(detections),
        _explanations(explanations, len(detections.score)),
        strict=True,
    )
    return [
        kind(score, p_value, is_anomaly, **group, **explanation)
        for score, p_value, is_anomaly, group, explanation in rows
    ]


def _groups(detections: Detections) -> Iterator[dict[str, Any]]:
    """Return the fields about the group of each record."""
    if detections.group is None or detections.threshold is None:
        return iter([{}] * len(detections.score))
    pairs = zip(detections.group.tolist(), detections.threshold.tolist(), strict=True)
    return ({"group": group, "threshold": threshold} for group, threshold in pairs)


def _explanations(
    explanations: Sequence[Explanation] | None, count: int
) -> Iterator[dict[str, Any]]:
    """Return the fields that explain each record."""
    if explanations is None:
        return iter([{}] * count)
    return (
        {"contributions": _contributions(one), "rest": one.rest, "kl": one.kl}
        for one in explanations
    )


def _contributions(explanation: Explanation) -> tuple[Contribution, ...]:
    return tuple(
        Contribution(part.feature, part.nats, part.observed, part.expected)
        for part in explanation.contributions
    )


def answer(
    model: ServedModel, results: list[Result], status: GuaranteeStatus = "holding"
) -> ScoreResponse:
    """Return the answer of a model whose guarantee has this status."""
    calibration = model.detector.calibration
    return ScoreResponse(
        Model(model.name, model.version, model.alias),
        calibration.alpha,
        calibration.threshold,
        status,
        results,
    )
