"""Create the application: its routes over the loaded models.

Requests to score go straight to `ScoringEndpoint`, which is plain ASGI: it reads the raw body,
scores it and sends the encoded answer. Small requests are scored on the event loop, where a thread
would cost more than the scoring; large ones and images are scored on worker threads, so that they
do not delay other requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from anomaly_vae.errors import ConfigError, DataError
from serving.middleware import RequestMiddleware
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.openapi import document_routes
from serving.paths import Template
from serving.problems import ProblemError, to_problem
from serving.protocols import mlflow_scoring, open_inference
from serving.registry.board import Board
from serving.registry.follower import Follower
from serving.registry.sources import Sources
from serving.routes import admin, models
from serving.scoring.engine import ScoringEndpoint
from serving.scoring.shadow import Shadows
from serving.settings import ApiKey, Settings, find_key

PROTOCOLS = (open_inference, mlflow_scoring)
"""Protocols of other servers that the service speaks."""
COLLECTORS = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
"""Environment variables that name a collector of traces."""

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]
Refuse = Callable[[Exception, str], Response]
"""Returns the answer to a request that failed with this exception at this path."""


class Service(Starlette):
    """The application; ``front`` receives every request before Starlette does."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.front(scope, receive, send)


def create_app(
    store: Store,
    settings: Settings,
    lifespan: Lifespan | None = None,
    board: Board | None = None,
) -> Starlette:
    """Create the application over these models; the holder of the store may swap them.

    Args:
        store: the current models.
        settings: limits and keys.
        lifespan: context in which the application runs.
        board: state of following the registry.
    """
    metrics = Metrics(store)
    follower = Follower(store, settings, metrics, board or Board(), Sources(settings))
    shadows = Shadows(store, settings, metrics)
    scoring = ScoringEndpoint(store, settings, metrics, shadows)
    refuse = _refusal(metrics)
    routes: list[BaseRoute] = [
        *scoring.routes.values(),  # first, because most requests are for them
        *models.routes(store, settings, metrics, follower),
        *admin.routes(follower, settings),
        *(route for protocol in PROTOCOLS for route in protocol.routes(store, settings)),
        *_protocol_routes(scoring),
    ]
    parts = [protocol.document for protocol in PROTOCOLS]
    routes += document_routes(routes, store, settings, parts)
    app = Service(routes=routes, lifespan=lifespan, exception_handlers=_handlers(refuse))
    app.router.redirect_slashes = False
    app.state.store, app.state.settings, app.state.metrics = store, settings, metrics
    app.state.follower, app.state.shadows = follower, shadows
    inner, find = super(Service, app).__call__, _find_client(settings)
    front = RequestMiddleware(inner, scoring, settings, metrics, refuse, find)
    app.front = _traced(front) if COLLECTORS & os.environ.keys() else front
    return app


def _protocol_routes(scoring: ScoringEndpoint) -> list[Template]:
    return [
        Template(path, endpoint, methods=["POST"])
        for protocol in PROTOCOLS
        for path, endpoint in protocol.endpoints(scoring).items()
    ]


def _refusal(metrics: Metrics) -> Refuse:
    def refuse(error: Exception, path: str) -> Response:
        problem = to_problem(error)
        metrics.rejected.labels(problem.kind.slug).inc()
        return problem.response_at(path)

    return refuse


def _handlers(refuse: Refuse) -> dict[type[Exception], Callable[[Request, Exception], Any]]:
    async def handle(request: Request, error: Exception) -> Response:
        return refuse(error, request.scope["path"])

    return dict.fromkeys((ProblemError, DataError, HTTPException, Exception), handle)


def _find_client(settings: Settings) -> Callable[[bytes], ApiKey | None]:
    """Return a function that finds the client of an API key or, with an issuer, of a token."""
    find_by_key = partial(find_key, settings.api_keys)
    if not settings.oidc_issuer:
        return find_by_key
    try:
        from serving.http.oidc import TokenVerifier
    except ImportError as error:
        reason = "ANOMALY_VAE_OIDC_ISSUER needs: pip install 'anomaly-vae[oidc]'"
        raise ConfigError(f"{error}; {reason}", key="oidc_issuer") from None
    tokens = TokenVerifier(settings)
    return lambda secret: find_by_key(secret) or tokens.find_client(secret)


def _traced(app: ASGIApp) -> ASGIApp:
    """Trace the requests of an application for the collector that the environment names."""
    try:
        from serving.observability.tracing import TracingMiddleware, make_provider
    except ImportError as error:
        variable = min(COLLECTORS)
        reason = f"{variable} needs: pip install 'anomaly-vae[otel]'"
        raise ConfigError(f"{error}; {reason}", key=variable) from None
    return TracingMiddleware(app, make_provider())
