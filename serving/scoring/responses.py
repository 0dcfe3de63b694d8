"""Build and encode the answers to scoring requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from anomaly_vae.client.types import (
    BadRecord,
    Contribution,
    Fault,
    Model,
    Result,
    ResultId,
)
from anomaly_vae.monitoring.exchangeability import Status as GuaranteeStatus
from anomaly_vae.scoring.detector import Detections, Explanation
from serving.models.store import ServedModel
from serving.scoring.schemas import JSON, DecidedResult, GroupedResult, ScoreResponse

encode = msgspec.json.Encoder().encode
FIELDS = ("score", "p_value", "is_anomaly", "id")
"""First fields of a `Result`."""


def response(content: msgspec.Struct) -> Response:
    """Return a response in JSON."""
    return Response(encode(content), media_type=JSON)


def results(
    detections: Detections,
    explanations: Sequence[Explanation] | None = None,
    ids: Sequence[ResultId] | None = None,
) -> list[Result]:
    """Return the results of N records; ``ids`` (N,) are repeated in them."""
    columns: list[Sequence[Any]] = [
        detections.score.tolist(), detections.p_value.tolist(), detections.is_anomaly.tolist()
    ]  # fmt: skip
    if ids is not None:
        columns.append(ids)
    unusual = _unusual(detections)
    if explanations is None and detections.group is None and detections.windows is None:
        rows = zip(*columns, strict=True)
        return [DecidedResult(*row, unusual_input=u) for row, u in zip(rows, unusual, strict=True)]
    kind = DecidedResult if detections.group is None else GroupedResult
    parts = zip(
        zip(*columns, strict=True),
        unusual,
        _groups(detections),
        _explanations(explanations, len(detections.score)),
        _windows(detections),
        strict=True,
    )
    return [
        kind(
            **dict(zip(FIELDS, decision, strict=False)),
            unusual_input=reason,
            **group,
            **explanation,
            **windows,
        )
        for decision, reason, group, explanation, windows in parts
    ]


def with_faults(
    results: Iterable[Result],
    usable: Sequence[bool],
    bad: Sequence[BadRecord],
    ids: Sequence[Any] | None,
) -> list[Result]:
    """Return the results of N records with errors in the places of the unusable ones.

    Args:
        results: the results of the usable records.
        usable: whether each record is usable (N,).
        bad: what is wrong with the others; of several faults of a record, the first is given.
        ids: the id of each record (N,), if any has one.
    """
    faults = {one.record: Fault(one.field, one.detail) for one in reversed(bad)}
    good = iter(results)
    return [
        next(good) if ok else Result(id=ids[row] if ids else None, error=faults[row])
        for row, ok in enumerate(usable)
    ]


def _unusual(detections: Detections) -> list[str | None]:
    """Return the reason why each record is unlike the training data, None for the others."""
    if detections.unusual_input is None:
        return [None] * len(detections.score)
    reasons: list[str | None] = detections.unusual_input.tolist()
    return reasons


def _groups(detections: Detections) -> Iterator[dict[str, Any]]:
    """Return the fields about the group of each record."""
    if detections.group is None or detections.threshold is None:
        return iter([{}] * len(detections.score))
    pairs = zip(detections.group.tolist(), detections.threshold.tolist(), strict=True)
    return ({"group": group, "threshold": threshold} for group, threshold in pairs)


def _windows(detections: Detections) -> Iterator[dict[str, Any]]:
    """Return the windows of each record; NaN is written as null."""
    values = detections.windows
    if values is None or values.dtype.names is None:
        return iter([{}] * len(detections.score))
    names = values.dtype.names
    return ({"windows": dict(zip(names, row, strict=True))} for row in values.tolist())


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
    model: ServedModel,
    results: list[Result],
    status: GuaranteeStatus = "unknown",
    ignored: Iterable[str] = (),
    **optional: Any,
) -> ScoreResponse:
    """Return the answer of a model whose guarantee has this status.

    ``optional`` are the fields of an answer that are left out unless they have a content.
    """
    calibration = model.detector.calibration
    return ScoreResponse(
        model=Model(model.name, model.version, model.alias),
        alpha=calibration.alpha,
        threshold=calibration.threshold,
        guarantee_status=status,
        ignored=list(ignored),
        results=results,
        **optional,
    )
