"""Define the routes for loaded models, health checks and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from anomaly_vae.calibration import conformal
from anomaly_vae.client.types import Groups
from serving.models.store import ServedModel, Store
from serving.observability.metrics import Metrics, Tallies, Tally, pair_of
from serving.openapi import DocumentedRoute, json_route, text_route
from serving.problems import NOT_READY
from serving.registry.board import FollowedModel
from serving.registry.follower import Follower
from serving.registry.sources import is_followed
from serving.scoring import adapters, responses, schemas
from serving.settings import Settings


def routes(
    store: Store, settings: Settings, metrics: Metrics, follower: Follower
) -> list[DocumentedRoute]:
    """Create `GET /models`, the health checks and `GET /metrics`."""

    async def list_models(_: Request) -> Response:
        return responses.response(describe(store, follower.followed, metrics))

    async def check_live(_: Request) -> Response:
        return responses.response(schemas.Status("live", list(store.current)))

    async def check_ready(_: Request) -> Response:
        adapters.check_ready(store, settings)
        return responses.response(schemas.Status("ready", list(store.current)))

    async def read_metrics(request: Request) -> Response:
        content, media_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)

    live_text, ready_text = "Whether the process is alive.", "Whether the service takes requests."
    return [
        json_route("GET", "/models", list_models, "The loaded models.", schemas.Models),
        json_route("GET", "/health/live", check_live, live_text, schemas.Status),
        json_route("GET", "/health/ready", check_ready, ready_text, schemas.Status, NOT_READY),
        text_route("/metrics", read_metrics, "Metrics in Prometheus's text format."),
    ]


def describe(store: Store, followed: Sequence[FollowedModel], metrics: Metrics) -> schemas.Models:
    """Describe the loaded models."""
    tallies = metrics.tallies() if store.shadows else {}
    return schemas.Models(
        [_model(model, store, followed, metrics, tallies) for model in store.current.values()]
    )


def _model(
    model: ServedModel,
    store: Store,
    followed: Sequence[FollowedModel],
    metrics: Metrics,
    tallies: Tallies,
) -> schemas.ModelInfo:
    calibration = model.detector.calibration
    report = metrics.guarantees.tracker(model).report()
    shadow = store.shadows.get(model.name)
    return schemas.ModelInfo(
        name=model.name,
        version=model.version,
        alias=model.alias,
        digest=model.digest,
        kind=model.kind,
        unit=model.detector.unit,
        alpha=calibration.alpha,
        threshold=calibration.threshold,
        groups=_groups(calibration.groups),
        guarantee_status=report.status,
        guarantee_lacks=report.lacks,
        schema=model.describe_schema(),
        following=_following(model.name, False, followed),
        shadow=_shadow(model, shadow, followed, tallies) if shadow else None,
    )


def _groups(groups: conformal.Groups | None) -> Groups | None:
    if groups is None:
        return None
    thresholds = {level: calibration.threshold for level, calibration in groups.by_level.items()}
    return Groups(groups.column, thresholds)


def _shadow(
    model: ServedModel, shadow: ServedModel, followed: Sequence[FollowedModel], tallies: Tallies
) -> schemas.ShadowInfo:
    tally = tallies.get(pair_of(model, shadow), Tally())
    return schemas.ShadowInfo(
        version=shadow.version,
        alias=shadow.alias,
        digest=shadow.digest,
        records=int(tally.records),
        agreement=_share(tally.agreed, tally),
        flagged=_share(tally.flagged, tally),
        shadow_flagged=_share(tally.shadow_flagged, tally),
        following=_following(shadow.name, True, followed),
    )


def _share(count: float, tally: Tally) -> float | None:
    return count / tally.records if tally.records else None


def _following(
    name: str, shadow: bool, followed: Sequence[FollowedModel]
) -> schemas.Following | None:
    for model in followed:
        if (model.name, model.shadow) == (name, shadow) and is_followed(model.uri):
            return schemas.Following(model.uri, model.checked_at, model.reason)
    return None
