"""The application: routes over a store of detectors.

The scoring route is plain ASGI: one reference to the current detector → raw body → records or
images → decisions → bytes. Small requests are scored on the event loop, where a thread would cost
more than the scoring; large ones and images on a thread, so that they hold up nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from anomaly_vae import __version__
from anomaly_vae.errors import ConfigError, DataError
from serving import openapi
from serving.middleware import RequestMiddleware
from serving.models.store import Store
from serving.observability.metrics import Metrics
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
"""Other words that scoring is asked for in."""

COLLECTORS = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
"""Variables that name a collector of traces."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Service(FastAPI):
    """The application, with what surrounds every request before all else that FastAPI does."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.front(scope, receive, send)


def create_app(
    store: Store,
    settings: Settings,
    lifespan: Lifespan | None = None,
    board: Board | None = None,
) -> FastAPI:
    """The service over these detectors; whoever holds the store may swap them.

    Args:
        store: the current detectors.
        settings: limits and keys.
        lifespan: what is to happen around the time it runs.
        board: what of them follows the registry.
    """
    metrics = Metrics(store)
    follower = Follower(store, settings, metrics, board or Board(), Sources(settings))
    shadows = Shadows(store, settings, metrics)
    app = Service(
        title="anomaly-vae",
        version=__version__,
        description="Scores, conformal p-values and decisions, with their reasons.",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        lifespan=lifespan,
    )
    app.state.store, app.state.settings, app.state.metrics = store, settings, metrics
    app.state.follower, app.state.shadows = follower, shadows
    app.router.redirect_slashes = False
    _handle_errors(app, metrics)
    scoring = ScoringEndpoint(store, settings, metrics, shadows)
    app.router.routes[:0] = scoring.routes.values()  # first, so that nothing is matched before
    inner, refuse, find = super(Service, app).__call__, app.state.refuse, _finder(settings)
    app.front = RequestMiddleware(inner, scoring, settings, metrics, refuse, find)
    models.add_routes(app, store, settings, metrics, follower)
    admin.add_routes(app, follower, settings)
    if COLLECTORS & os.environ.keys():
        app.front = _traced(app.front)
    for protocol in PROTOCOLS:
        protocol.add_routes(app, store, settings)
        for path, endpoint in protocol.endpoints(scoring).items():
            app.router.routes.append(Template(path, endpoint, methods=["POST"]))
    openapi.install(app, store, settings, [protocol.document for protocol in PROTOCOLS])
    return app


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    def refuse(error: Exception, path: str) -> Response:
        problem = to_problem(error)
        metrics.rejected.labels(problem.kind.slug).inc()
        return problem.response_at(path)

    async def handle(request: Request, error: Exception) -> Response:
        return refuse(error, request.scope["path"])

    for kind in (ProblemError, DataError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.state.refuse = refuse


def _finder(settings: Settings) -> Callable[[bytes], ApiKey | None]:
    """Who is known by a key or, where there is an issuer, by a token."""
    known = partial(find_key, settings.api_keys)
    if not settings.oidc_issuer:
        return known
    try:
        from serving.http.oidc import TokenVerifier
    except ImportError as error:
        reason = "ANOMALY_VAE_OIDC_ISSUER needs: pip install 'anomaly-vae[oidc]'"
        raise ConfigError(f"{error}; {reason}", key="oidc_issuer") from None
    tokens = TokenVerifier(settings)
    return lambda secret: known(secret) or tokens.find_client(secret)


def _traced(app: ASGIApp) -> ASGIApp:
    """An application whose requests are told to the collector that the environment names."""
    try:
        from serving.observability.tracing import TracingMiddleware, make_provider
    except ImportError as error:
        variable = min(COLLECTORS)
        reason = f"{variable} needs: pip install 'anomaly-vae[otel]'"
        raise ConfigError(f"{error}; {reason}", key=variable) from None
    return TracingMiddleware(app, make_provider())
