"""Create the application and its routes.

Scoring requests bypass the router and go to `ScoringEndpoint`, a plain ASGI application that reads
the raw body, scores it and sends the encoded answer. Small requests are scored on the event loop,
because handing them to a thread would take longer than scoring them. Large requests and images are
scored on worker threads, so that they do not delay other requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from anomaly_vae.errors import ConfigError, DataError
from serving.console.hint import hint_routes
from serving.middleware import RequestMiddleware
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.openapi import document_route
from serving.paths import UNMATCHED, Template
from serving.problems import ProblemError, to_problem
from serving.protocols import mlflow_scoring, open_inference
from serving.registry.board import Board
from serving.registry.follower import Follower
from serving.registry.sources import Sources
from serving.review.case_recorder import CaseRecorder
from serving.review.label_writer import LabelWriter
from serving.routes import admin, docs, events, feedback, models
from serving.scoring.engine import ScoringEndpoint
from serving.scoring.observers import Observers
from serving.scoring.shadow import Shadows
from serving.scoring.windows import ShadowWindows, WindowStores
from serving.settings import ApiKey, Settings, find_key

if TYPE_CHECKING:
    from serving.console.app import Console


PROTOCOLS = (open_inference, mlflow_scoring)
"""Modules that implement the scoring protocols of other model servers."""
COLLECTOR_VARIABLES = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
"""Environment variables with the URL of an OpenTelemetry collector."""

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]
FindClient = Callable[[bytes], ApiKey | None]
"""Function that returns the client of a key or token, or None if it is unknown."""
Refuse = Callable[[Exception, str], Response]
"""Function that returns the error response to an exception raised at a path."""


class Service(Starlette):
    """The application; ``outermost`` receives every request and calls the router if needed."""

    outermost: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.outermost(scope, receive, send)


def create_app(
    store: Store,
    settings: Settings,
    lifespan: Lifespan | None = None,
    board: Board | None = None,
) -> Starlette:
    """Create the application.

    Args:
        store: the models to serve, which may be swapped while the application runs.
        settings: limits and keys.
        lifespan: context in which the application runs.
        board: state of the registry checks; None for a new one.
    """
    metrics = Metrics(store)
    follower = Follower(store, settings, metrics, board or Board(), Sources(settings))
    windows = WindowStores(store, settings, metrics)
    store.checks.append(windows.problem)
    metrics.count_entities = windows.entities
    shadows = Shadows(store, settings, metrics, ShadowWindows(windows))
    cases = CaseRecorder(store, settings, metrics) if settings.cases else None
    scoring = ScoringEndpoint(store, settings, metrics, Observers(shadows, cases), windows)
    writer = LabelWriter(settings, metrics) if settings.label_store else None
    find_client = _client_finder(settings)
    console = _console(settings, writer, scoring, follower, metrics, find_client)
    refuse = _refusal(metrics)
    routes: list[BaseRoute] = [
        *scoring.routes.values(),  # first, because most requests are for them
        *models.routes(store, settings, metrics, follower),
        *admin.routes(follower, settings),
        *events.routes(scoring.resources, windows),
        *feedback.routes(store, scoring.resources, writer, windows),
        *(route for protocol in PROTOCOLS for route in protocol.routes(store, settings)),
        *_protocol_routes(scoring),
        *(console.routes() if console else hint_routes()),
    ]
    describers = [protocol.document for protocol in PROTOCOLS]
    routes += [document_route(routes, store, settings, describers), *docs.routes()]
    metrics.start_routes(
        [*(route.path for route in routes if isinstance(route, Template)), UNMATCHED]
    )
    app = Service(routes=routes, lifespan=lifespan, exception_handlers=_handlers(refuse))
    app.router.redirect_slashes = False
    app.state.store, app.state.settings, app.state.metrics = store, settings, metrics
    app.state.follower, app.state.shadows, app.state.windows = follower, shadows, windows
    app.state.label_writer, app.state.cases, app.state.console = writer, cases, console
    router = super(Service, app).__call__
    middleware = RequestMiddleware(router, scoring, settings, metrics, refuse, find_client)
    app.outermost = _traced(middleware) if COLLECTOR_VARIABLES & os.environ.keys() else middleware
    return app


def _protocol_routes(scoring: ScoringEndpoint) -> list[Template]:
    return [
        Template(path, endpoint, methods=["POST"])
        for protocol in PROTOCOLS
        for path, endpoint in protocol.endpoints(scoring).items()
    ]


def _console(
    settings: Settings,
    writer: LabelWriter | None,
    scoring: ScoringEndpoint,
    follower: Follower,
    metrics: Metrics,
    find_client: FindClient,
) -> Console | None:
    """Create the console; None without a case store."""
    if not settings.cases or writer is None:
        return None
    from anomaly_vae.review import CaseStore
    from serving.console.app import Console

    cases = CaseStore(settings.cases, settings.labels)
    return Console(
        cases, writer, scoring.store, follower, metrics, scoring.resources, settings, find_client
    )


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


def _client_finder(settings: Settings) -> FindClient:
    """Return a function that finds the client of an API key or, with an OIDC issuer, a token."""
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
    """Wrap an application so that its requests are traced to an OpenTelemetry collector."""
    try:
        from serving.observability.tracing import TracingMiddleware, make_provider
    except ImportError as error:
        variable = min(COLLECTOR_VARIABLES)
        reason = f"{variable} needs: pip install 'anomaly-vae[otel]'"
        raise ConfigError(f"{error}; {reason}", key=variable) from None
    return TracingMiddleware(app, make_provider())
