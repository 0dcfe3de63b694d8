"""The application: routes over a store of detectors.

The scoring route is plain ASGI: one reference to the current detector → raw body → records or
images → decisions → bytes. Small requests are scored on the event loop, where a thread would cost
more than the scoring; large ones and images on a thread, so that they hold up nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from anomaly_vae import __version__
from anomaly_vae.errors import DataError
from serving import admin, logs, openapi, overview, uploads, wire
from serving.errors import NOT_READY, OVERLOADED, UNKNOWN_MODEL, ProblemError, problem_of
from serving.follow import Board, Follower
from serving.metrics import Metrics
from serving.middleware import Guard, Linger, Observe
from serving.settings import Settings
from serving.shadow import Shadows
from serving.sources import Sources
from serving.store import IMAGE, Served, Store

INLINE_BYTES = 128 * 1024
"""A body up to this size is decoded on the event loop: under a millisecond."""
INLINE_VALUES = 4096
"""So many values, records times columns, are scored on the event loop: a few milliseconds."""
LINGER = 4
"""So many bodies of the largest size are read on, and dropped, after a refusal."""
EXPLAINED = 8
"""What a value costs in a record that is explained, in values scored."""

T = TypeVar("T")
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Template(Route):
    """A route that leaves its template behind, as FastAPI's own do."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this route is meant."""
        match, found = super().matches(scope)
        return match, {**found, "route": self} if found else found


class Scoring:
    """`POST /score` and `POST /models/{name}/score`, as an ASGI application."""

    def __init__(
        self, store: Store, settings: Settings, metrics: Metrics, shadows: Shadows
    ) -> None:
        self.store, self.settings, self.metrics = store, settings, metrics
        self.shadows = shadows
        self.held = 0
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="score")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        served = self.find(scope["path_params"].get("name"))
        take = self._take_images if served.kind == IMAGE else self._take_records
        content = await take(served, scope, receive)
        await Response(content, media_type=wire.JSON)(scope, receive, send)

    async def _take_records(self, served: Served, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        wire.check_media_type(headers)
        wire.check_query(scope["query_string"])
        with self.place():
            body = await self._read(receive, headers)
            request = await self._decode(body)
            scope[logs.FACTS] |= {"model": served.name, "records": len(request.records)}
            return await self._score(served, request, body)

    async def _take_images(self, served: Served, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        boundary = uploads.boundary_of(headers)
        asked = uploads.asked_for(scope["query_string"])
        with self.place():
            body = await self._read(receive, headers)
            scope[logs.FACTS]["model"] = served.name
            task = self.score_images, served, body, boundary, asked
            content, count = await self._run(False, *task)
        scope[logs.FACTS]["records"] = count
        return content

    async def _read(self, receive: Receive, headers: wire.Headers) -> bytes:
        limit, seconds = self.settings.max_body_bytes, self.settings.body_seconds
        return await wire.read_body(receive, headers, limit, seconds)

    def find(self, name: str | None) -> Served:
        """The model of this name, or without a name the only one."""
        current = self.store.current
        if not current:
            raise ProblemError(NOT_READY, "no model is loaded", headers=self.settings.retry)
        if name is None and len(current) == 1:
            return next(iter(current.values()))
        if name is not None and name in current:
            return current[name]
        routes = ", ".join(f"/models/{known}/score" for known in current)
        said = f"no model '{name[:100]}' is loaded" if name else f"{len(current)} models are loaded"
        raise ProblemError(UNKNOWN_MODEL, f"{said}; post to {routes}")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places there are, or refuse."""
        if self.held >= self.settings.max_concurrency:
            detail = f"{self.held} requests are under way"
            raise ProblemError(OVERLOADED, detail, headers=self.settings.retry)
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def _decode(self, body: bytes) -> wire.ScoreRequest:
        most = self.settings.max_records
        return await self._run(len(body) <= INLINE_BYTES, wire.decode, body, most)

    async def _score(self, served: Served, request: wire.ScoreRequest, body: bytes) -> bytes:
        values = len(request.records) * len(served.detector.scorer.encoding.labels)
        if request.explain:
            wire.check_contributions(values, self.settings.max_contributions)
        cost = values * (EXPLAINED if request.explain else 1)
        return await self._run(cost <= INLINE_VALUES, self.score, served, request, body)

    async def _run(self, inline: bool, function: Callable[..., T], *args: Any) -> T:
        if inline:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def score(self, served: Served, request: wire.ScoreRequest, body: bytes) -> bytes:
        """Records → the bytes of the answer, counted."""
        detector, explained = served.detector, None
        batch = wire.read_records(detector.scorer.schema, request.records)
        if request.explain:
            found, explained = detector.detect_and_explain(batch, request.most)
        else:
            found = detector.detect(batch)
        self.metrics.observe(served, found, len(batch.ignored))
        self.shadows.offer(served, found, body)
        return wire.encode(wire.answer(served, wire.results(found, explained)))

    def score_images(
        self, served: Served, body: bytes, boundary: bytes | None, asked: uploads.Asked
    ) -> tuple[bytes, int]:
        """Uploads → the bytes of the answer and the number of images, counted."""
        from serving import imaging

        files = uploads.files_of(body, boundary, self.settings.max_records)
        found, results = imaging.score(served, files, asked, self.settings)
        self.metrics.observe(served, found, 0)
        self.shadows.offer(served, found, body, boundary)
        return wire.encode(wire.answer(served, results)), len(results)


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
    app = FastAPI(
        title="anomaly-vae",
        version=__version__,
        description="Scores, conformal p-values and decisions, with their reasons.",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        lifespan=lifespan,
    )
    app.state.store, app.state.follower = store, follower
    app.router.redirect_slashes = False
    _handle_errors(app, metrics)
    app.state.shadows = Shadows(store, settings, metrics)
    scoring = Scoring(store, settings, metrics, app.state.shadows)
    for path in reversed(openapi.SCORING):  # first, so that nothing is matched before them
        app.router.routes.insert(0, Template(path, scoring, methods=["POST"]))
    _add_routes(app, store, settings, metrics, follower)
    admin.add_routes(app, follower, settings)
    openapi.install(app, store, settings)
    return app


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    def refuse(error: Exception) -> Response:
        problem = problem_of(error)
        metrics.rejected.labels(problem.kind.slug).inc()
        return problem.response

    async def handle(_: Request, error: Exception) -> Response:
        return refuse(error)

    for kind in (ProblemError, DataError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.state.refuse = refuse


def _add_routes(
    app: FastAPI, store: Store, settings: Settings, metrics: Metrics, follower: Follower
) -> None:
    if settings.api_keys:
        app.add_middleware(Guard, keys=settings.api_keys, refuse=app.state.refuse)
    app.add_middleware(Observe, metrics=metrics, store=store)
    most, seconds = LINGER * settings.max_body_bytes, settings.body_seconds
    app.add_middleware(Linger, most=most, seconds=seconds)

    @app.get("/models", **openapi.get("What is loaded.", wire.Models))
    async def models() -> Response:
        return _json(overview.describe(store, follower.followed, metrics))

    @app.get("/health/live", **openapi.get("Whether the process answers.", wire.Status))
    async def live() -> Response:
        return _json(wire.Status("live", list(store.current)))

    @app.get("/health/ready", **openapi.get("Whether to send requests.", wire.Status, NOT_READY))
    async def ready() -> Response:
        if store.ready:
            return _json(wire.Status("ready", list(store.current)))
        why = "shutting down" if store.draining else "no model is loaded"
        raise ProblemError(NOT_READY, why, headers=settings.retry)

    @app.get("/metrics", **openapi.text("Metrics, for Prometheus."))
    async def exposition(request: Request) -> Response:
        content, media_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)


def _json(content: Any) -> Response:
    return Response(wire.encode(content), media_type=wire.JSON)
