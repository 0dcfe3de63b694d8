"""The application: routes over a store of detectors.

The scoring route is plain ASGI: one reference to the current detector → raw body → records or
images → decisions → bytes. Small requests are scored on the event loop, where a thread would cost
more than the scoring; large ones and images on a thread, so that they hold up nobody.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from anomaly_vae import __version__
from anomaly_vae.errors import ConfigError, DataError
from serving import inference_protocol, invocations, logs, openapi, questions, uploads, wire
from serving.errors import NOT_READY, OVERLOADED, UNKNOWN_MODEL, ProblemError, problem_of
from serving.metrics import Metrics
from serving.middleware import Guard, Linger, Observe
from serving.settings import ApiKey, Settings, find_key
from serving.store import IMAGE, Served, Store

INLINE_BYTES = 128 * 1024
"""A body up to this size is decoded on the event loop: under a millisecond."""
INLINE_VALUES = 4096
"""So many values, records times columns, are scored on the event loop: a few milliseconds."""
LINGER = 4
"""So many bodies of the largest size are read on, and dropped, after a refusal."""
EXPLAINED = 8
"""What a value costs in a record that is explained, in values scored."""
PROTOCOLS = (inference_protocol, invocations)
"""Other words that scoring is asked for in."""

COLLECTORS = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
"""Variables that name a collector of traces."""

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

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self.store, self.settings, self.metrics = store, settings, metrics
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
            request = await self._decode(await self._read(receive, headers))
            scope[logs.FACTS] |= {"model": served.name, "records": len(request.records)}
            return await self._score(served, request)

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

    def find(self, name: str | None, route: str = openapi.SCORING[1]) -> Served:
        """The model of this name, or without a name the only one; ``route`` is said to others."""
        current = self.store.current
        if not current:
            raise ProblemError(NOT_READY, "no model is loaded", headers=self.settings.retry)
        if name is None and len(current) == 1:
            return next(iter(current.values()))
        if name is not None and name in current:
            return current[name]
        routes = ", ".join(route.format(name=known) for known in current)
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

    async def _score(self, served: Served, request: wire.ScoreRequest) -> bytes:
        values = len(request.records) * len(served.detector.scorer.encoding.labels)
        if request.explain:
            wire.check_contributions(values, self.settings.max_contributions)
        cost = values * (EXPLAINED if request.explain else 1)
        return await self._run(cost <= INLINE_VALUES, self.score, served, request)

    async def _run(self, inline: bool, function: Callable[..., T], *args: Any) -> T:
        if inline:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def converse(
        self,
        served: Served,
        scope: Scope,
        receive: Receive,
        decode: Callable[[bytes], questions.Question],
    ) -> Response:
        """Body → question → decisions → answer, in the words of another protocol."""
        with self.place():
            body = await self._read(receive, dict(scope["headers"]))
            question = await self._run(len(body) <= INLINE_BYTES, decode, body)
            scope[logs.FACTS] |= {"model": served.name, "records": question.rows.count}
            values = question.rows.count * len(served.detector.scorer.encoding.labels)
            inline = served.kind != IMAGE and values <= INLINE_VALUES
            return await self._run(inline, self.reply, served, question)

    def reply(self, served: Served, question: questions.Question) -> Response:
        """The answer to a question, counted."""
        found, ignored = questions.detect(served, question.rows, self.settings)
        self.metrics.observe(served, found, ignored)
        return question.answer(found)

    def score(self, served: Served, request: wire.ScoreRequest) -> bytes:
        """Records → the bytes of the answer, counted."""
        detector, explained = served.detector, None
        batch = wire.read_records(detector.scorer.schema, request.records)
        if request.explain:
            found, explained = detector.detect_and_explain(batch, request.most)
        else:
            found = detector.detect(batch)
        self.metrics.observe(served, found, len(batch.ignored))
        return wire.encode(wire.answer(served, wire.results(found, explained)))

    def score_images(
        self, served: Served, body: bytes, boundary: bytes | None, asked: uploads.Asked
    ) -> tuple[bytes, int]:
        """Uploads → the bytes of the answer and the number of images, counted."""
        from serving import imaging

        files = uploads.files_of(body, boundary, self.settings.max_records)
        found, results = imaging.score(served, files, asked, self.settings)
        self.metrics.observe(served, found, 0)
        return wire.encode(wire.answer(served, results)), len(results)


def create_app(store: Store, settings: Settings, lifespan: Lifespan | None = None) -> FastAPI:
    """The service over these detectors; whoever holds the store may swap them.

    Args:
        store: the current detectors.
        settings: limits and keys.
        lifespan: what is to happen around the time it runs.
    """
    metrics = Metrics(store)
    app = FastAPI(
        title="anomaly-vae",
        version=__version__,
        description="Scores, conformal p-values and decisions, with their reasons.",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        lifespan=lifespan,
    )
    app.state.store = store
    app.router.redirect_slashes = False
    _handle_errors(app, metrics)
    scoring = Scoring(store, settings, metrics)
    for path in reversed(openapi.SCORING):  # first, so that nothing is matched before them
        app.router.routes.insert(0, Template(path, scoring, methods=["POST"]))
    _add_routes(app, store, settings, metrics)
    for protocol in PROTOCOLS:
        protocol.add_routes(app, store, settings)
        for path, endpoint in protocol.endpoints(scoring).items():
            app.router.routes.append(Template(path, endpoint, methods=["POST"]))
    openapi.install(app, store, settings, [protocol.document for protocol in PROTOCOLS])
    return app


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    def refuse(error: Exception, path: str) -> Response:
        problem = problem_of(error)
        metrics.rejected.labels(problem.kind.slug).inc()
        return problem.response_at(path)

    async def handle(request: Request, error: Exception) -> Response:
        return refuse(error, request.scope["path"])

    for kind in (ProblemError, DataError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.state.refuse = refuse


def _add_routes(app: FastAPI, store: Store, settings: Settings, metrics: Metrics) -> None:
    if settings.guarded:
        app.add_middleware(Guard, find=_finder(settings), refuse=app.state.refuse)
    app.add_middleware(Observe, metrics=metrics, store=store)
    most, seconds = LINGER * settings.max_body_bytes, settings.body_seconds
    app.add_middleware(Linger, most=most, seconds=seconds)

    if COLLECTORS & os.environ.keys():
        _trace(app)

    @app.get("/models", **openapi.get("What is loaded.", wire.Models))
    async def models() -> Response:
        return _json(wire.describe(store.current))

    @app.get("/health/live", **openapi.get("Whether the process answers.", wire.Status))
    async def live() -> Response:
        return _json(wire.Status("live", list(store.current)))

    @app.get("/health/ready", **openapi.get("Whether to send requests.", wire.Status, NOT_READY))
    async def ready() -> Response:
        questions.check_ready(store, settings)
        return _json(wire.Status("ready", list(store.current)))

    @app.get("/metrics", **openapi.text("Metrics, for Prometheus."))
    async def exposition(request: Request) -> Response:
        content, media_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)


def _finder(settings: Settings) -> Callable[[bytes], ApiKey | None]:
    """Who is known by a key or, where there is an issuer, by a token."""
    known = partial(find_key, settings.api_keys)
    if not settings.oidc_issuer:
        return known
    try:
        from serving.oidc import Tokens
    except ImportError as error:
        reason = "ANOMALY_VAE_OIDC_ISSUER needs: pip install 'anomaly-vae[oidc]'"
        raise ConfigError(f"{error}; {reason}", key="oidc_issuer") from None
    tokens = Tokens(settings)
    return lambda secret: known(secret) or tokens.find(secret)


def _trace(app: FastAPI) -> None:
    """Have each request told to the collector that the environment names."""
    try:
        from serving.traces import Trace, provider
    except ImportError as error:
        variable = min(COLLECTORS)
        reason = f"{variable} needs: pip install 'anomaly-vae[otel]'"
        raise ConfigError(f"{error}; {reason}", key=variable) from None
    app.add_middleware(Trace, spans=provider())


def _json(content: Any) -> Response:
    return Response(wire.encode(content), media_type=wire.JSON)
