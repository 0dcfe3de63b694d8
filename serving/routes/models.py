"""What `GET /models` says: what is loaded, how it stands with the registry, and its shadows."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request
from starlette.responses import Response

from anomaly_vae.calibration.conformal import Groups
from serving import openapi
from serving.models.store import ServedModel, Store
from serving.observability.metrics import Metrics, Tallies, Tally, pair_of
from serving.problems import NOT_READY
from serving.registry.board import Followed
from serving.registry.follower import Follower
from serving.registry.sources import is_followed
from serving.scoring import adapters, responses, schemas
from serving.settings import Settings


def add_routes(
    app: FastAPI, store: Store, settings: Settings, metrics: Metrics, follower: Follower
) -> None:
    """Add `GET /models`, the health checks and `GET /metrics`."""

    @app.get("/models", **openapi.get("What is loaded.", schemas.Models))
    async def models() -> Response:
        return responses.response(describe(store, follower.followed, metrics))

    @app.get("/health/live", **openapi.get("Whether the process answers.", schemas.Status))
    async def live() -> Response:
        return responses.response(schemas.Status("live", list(store.current)))

    @app.get("/health/ready", **openapi.get("Whether to send requests.", schemas.Status, NOT_READY))
    async def ready() -> Response:
        adapters.check_ready(store, settings)
        return responses.response(schemas.Status("ready", list(store.current)))

    @app.get("/metrics", **openapi.text("Metrics, for Prometheus."))
    async def exposition(request: Request) -> Response:
        content, media_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)


def describe(store: Store, followed: Sequence[Followed], metrics: Metrics) -> schemas.Models:
    """Every model that is loaded."""
    tallies = metrics.tallies() if store.shadows else {}
    return schemas.Models(
        [_model(one, store, followed, metrics, tallies) for one in store.current.values()]
    )


def _model(
    served: ServedModel,
    store: Store,
    followed: Sequence[Followed],
    metrics: Metrics,
    tallies: Tallies,
) -> schemas.ModelInfo:
    calibration = served.detector.calibration
    shadow = store.shadows.get(served.name)
    return schemas.ModelInfo(
        name=served.name,
        version=served.version,
        alias=served.alias,
        digest=served.digest,
        kind=served.kind,
        unit=served.detector.unit,
        alpha=calibration.alpha,
        threshold=calibration.threshold,
        groups=_groups(calibration.groups),
        guarantee_status=metrics.guarantees.tracker(served).report().status,
        schema=responses.schema_info(served.detector.scorer.schema),
        following=_following(served.name, False, followed),
        shadow=_shadow(served, shadow, followed, tallies) if shadow else None,
    )


def _groups(groups: Groups | None) -> schemas.Groups | None:
    if groups is None:
        return None
    own = {level: calibration.threshold for level, calibration in groups.own.items()}
    return schemas.Groups(groups.column, own)


def _shadow(
    served: ServedModel, shadow: ServedModel, followed: Sequence[Followed], tallies: Tallies
) -> schemas.ShadowInfo:
    tally = tallies.get(pair_of(served, shadow), Tally())
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


def _following(name: str, shadow: bool, followed: Sequence[Followed]) -> schemas.Following | None:
    for one in followed:
        if (one.name, one.shadow) == (name, shadow) and is_followed(one.uri):
            return schemas.Following(one.uri, one.checked_at, one.reason)
    return None
