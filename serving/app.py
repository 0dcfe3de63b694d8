"""The application: routes over a store of detectors.

The scoring route is plain ASGI: one reference to the current detector → raw body → records or
images → decisions → bytes. Small requests are scored on the event loop, where a thread would cost
more than the scoring; large ones and images on a thread, so that they hold up nobody.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractAsyncContextManager
from functools import partial
from threading import Barrier
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from anomaly_vae import __version__
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.reasons import CANDIDATES, HIDDEN
from anomaly_vae.schema import RawBatch
from serving import (
    admin,
    inference_protocol,
    invocations,
    logs,
    openapi,
    overview,
    questions,
    uploads,
    wire,
)
from serving.batching import Lane
from serving.errors import MALFORMED, NOT_READY, UNKNOWN_MODEL, ProblemError, problem_of
from serving.follow import Board, Follower
from serving.limits import Deadlines, Places
from serving.metrics import Metrics
from serving.middleware import HEADERS, Front
from serving.settings import ApiKey, Settings, find_key
from serving.shadow import Shadows
from serving.sources import Sources
from serving.store import Served, Store

INLINE_BYTES = 128 * 1024
"""A body up to this size is decoded on the event loop: under a millisecond."""
INLINE_VALUES = 4096
"""So many values, records times columns, are scored on the event loop: a few milliseconds."""
JSON_TYPE = (b"content-type", wire.JSON.encode())
EXPLAINED = 1 + HIDDEN * CANDIDATES
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


def started(count: int) -> ThreadPoolExecutor:
    """So many threads, there from now on: to start one out of memory would hold the loop up."""
    threads, together = ThreadPoolExecutor(count, thread_name_prefix="score"), Barrier(count)
    wait([threads.submit(together.wait) for _ in range(count)])
    return threads


class Scoring:
    """`POST /score` and `POST /models/{name}/score`, as an ASGI application."""

    def __init__(
        self, store: Store, settings: Settings, metrics: Metrics, shadows: Shadows
    ) -> None:
        self.store, self.settings, self.metrics = store, settings, metrics
        self.shadows = shadows
        self.places, self.deadlines = Places(settings, metrics), Deadlines(settings.body_seconds)
        self.routes = {path: Template(path, self, methods=["POST"]) for path in openapi.SCORING}
        self._threads = started(settings.threads)
        self._seen: Mapping[str, Served] | None = None
        self._lanes: dict[str, Lane] = {}
        self._paths: dict[str, tuple[Route, Lane]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.respond(self.find(scope["path_params"].get("name")), scope, receive, send)

    async def respond(self, lane: Lane, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to this model."""
        take = self._take_images if lane.reader is None else self._take_records
        size = wire.declared_size(scope[HEADERS], self.settings.max_body_bytes)
        content = await take(lane, scope, receive, size)
        headers = [JSON_TYPE, (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def at(self, path: str) -> tuple[Route, Lane] | None:
        """The route and the model of a path that needs no search."""
        self._refresh()
        return self._paths.get(path)

    def find(self, name: str | None, route: str = openapi.SCORING[1]) -> Lane:
        """The model of this name, or without a name the only one; ``route`` is said to others."""
        self._refresh()
        lanes = self._lanes
        if not lanes:
            raise ProblemError(NOT_READY, "no model is loaded", headers=self.settings.retry)
        if name is None and len(lanes) == 1:
            return next(iter(lanes.values()))
        if name is not None and name in lanes:
            return lanes[name]
        routes = ", ".join(route.format(name=known) for known in lanes)
        said = f"no model '{name[:100]}' is loaded" if name else f"{len(lanes)} models are loaded"
        raise ProblemError(UNKNOWN_MODEL, f"{said}; post to {routes}")

    def _refresh(self) -> None:
        """Follow a swap: a model that stays keeps its lane, and what waits there."""
        current = self.store.current
        if current is self._seen:
            return
        known = {lane.served: lane for lane in self._lanes.values()}
        self._lanes = {
            name: known.get(served) or Lane(served, self.metrics.of(served), self.shadows)
            for name, served in current.items()
        }
        alone, named = self.routes.values()
        self._paths = {f"/models/{n}/score": (named, lane) for n, lane in self._lanes.items()}
        if len(current) == 1:
            self._paths["/score"] = alone, next(iter(self._lanes.values()))
        self._seen = current

    async def _take_records(self, lane: Lane, scope: Scope, receive: Receive, size: int) -> bytes:
        wire.check_media_type(scope[HEADERS])
        wire.check_query(scope["query_string"])
        if size > INLINE_BYTES:
            self.places.check_jobs()
        self.places.take(size)
        try:
            body = await self._read(receive)
            scope[logs.FACTS]["model"] = lane.served.name
            return await self._score_records(lane, scope[logs.FACTS], receive, body)
        finally:
            self.places.give(size)

    async def _score_records(
        self, lane: Lane, facts: logs.Facts, receive: Receive, body: bytes
    ) -> bytes:
        """The quick way where it is open, on a thread where it takes long."""
        if len(body) > INLINE_BYTES:
            content, facts["records"] = await self._run(receive, self.score_large, lane, body)
            return content
        rows = lane.read(body)
        if rows and len(rows) * lane.columns <= INLINE_VALUES and self._fits(rows):
            facts["records"] = len(rows)
            return await lane.submit(rows, body)
        request = wire.decode(body, self.settings.max_records)
        facts["records"] = len(request.records)
        if self._cost(lane, request) <= INLINE_VALUES:
            return self.score(lane, request, body)
        return await self._run(receive, self.score, lane, request, body)

    async def _take_images(self, lane: Lane, scope: Scope, receive: Receive, size: int) -> bytes:
        facts = scope[logs.FACTS]
        boundary = uploads.boundary_of(scope[HEADERS])
        asked = uploads.asked_for(scope["query_string"])
        self.places.check_jobs()
        self.places.take(size)
        try:
            body = await self._read(receive)
            facts["model"] = lane.served.name
            task = self.score_images, lane, body, boundary, asked
            content, facts["records"] = await self._run(receive, *task)
        finally:
            self.places.give(size)
        return content

    def _read(self, receive: Receive) -> Awaitable[bytes]:
        return self.deadlines.keep(wire.read_body(receive, self.settings.max_body_bytes))

    async def converse(
        self,
        lane: Lane,
        scope: Scope,
        receive: Receive,
        decode: questions.DecodeBody,
    ) -> Response:
        """Body → question → decisions → answer, in the words of another protocol."""
        size = wire.declared_size(scope[HEADERS], self.settings.max_body_bytes)
        if lane.reader is None or size > INLINE_BYTES:
            self.places.check_jobs()
        self.places.take(size)
        try:
            body = await self._read(receive)
            inline, facts = len(body) <= INLINE_BYTES, scope[logs.FACTS]
            question = decode(body) if inline else await self._run(receive, decode, body)
            facts["model"], facts["records"] = lane.served.name, question.rows.count
            if lane.reader and question.rows.count * lane.columns <= INLINE_VALUES:
                return self.reply(lane, question, body, decode)
            return await self._run(receive, self.reply, lane, question, body, decode)
        finally:
            self.places.give(size)

    def reply(
        self, lane: Lane, question: questions.Question, body: bytes, decode: questions.DecodeBody
    ) -> Response:
        """The answer to a question, counted; ``decode`` made it of ``body``."""
        start = time.perf_counter()
        content = question.rows.read(lane.served.detector.scorer.schema)
        if isinstance(content, RawBatch):
            found = lane.decide(lane.served.detector.scorer.encoding.encode(content))
            lane.metrics.ignored.inc(len(content.ignored))
        else:
            found = questions.detect_images(lane.served, content, self.settings)
            lane.metrics.inference.observe(time.perf_counter() - start)
            lane.metrics.observe(found, None)
        lane.metrics.sizes.observe(question.rows.count)
        self.shadows.offer(lane.served, found, body, partial(questions.read_again, decode))
        return question.answer(found)

    def _fits(self, rows: Sequence[object]) -> bool:
        return len(rows) <= self.settings.max_records

    def _cost(self, lane: Lane, request: wire.ScoreRequest) -> int:
        """How many values it takes as much time to score; refuses to explain too many."""
        values = len(request.records) * lane.columns
        if not request.explain:
            return values
        wire.check_contributions(values, self.settings.max_contributions)
        return values * EXPLAINED

    async def _run(self, receive: Receive, function: Callable[..., T], *args: Any) -> T:
        """Have a worker thread do it; refuse where too many wait for one.

        Where the client goes away before its turn comes, it is not done at all.
        """
        with self.places.job():
            job = self._threads.submit(function, *args)
            work, gone = asyncio.wrap_future(job), asyncio.ensure_future(_departure(receive))
            either: set[asyncio.Future[Any]] = {work, gone}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if gone.done() and job.cancel():
                    raise ProblemError(MALFORMED, "the client went away")
                return await work
            finally:
                gone.cancel()

    def score_large(self, lane: Lane, body: bytes) -> tuple[bytes, int]:
        """A body → the bytes of the answer and the number of records, counted."""
        rows = lane.read(body)
        if rows and self._fits(rows):
            return lane.answer(rows, body), len(rows)
        request = wire.decode(body, self.settings.max_records)
        self._cost(lane, request)
        return self.score(lane, request, body), len(request.records)

    def score(self, lane: Lane, request: wire.ScoreRequest, body: bytes) -> bytes:
        """Records, read the careful way → the bytes of the answer, counted."""
        detector, explained = lane.served.detector, None
        batch = wire.read_records(detector.scorer.schema, request.records)
        if request.explain:
            found, explained = detector.detect_and_explain(batch, request.most)
            lane.metrics.observe(found, detector.scorer.encoding.encode(batch))
        else:
            found = lane.decide(detector.scorer.encoding.encode(batch))
        lane.metrics.ignored.inc(len(batch.ignored))
        lane.metrics.sizes.observe(len(batch))
        self.shadows.offer(lane.served, found, body)
        return wire.encode(lane.answered(wire.results(found, explained)))

    def score_images(
        self, lane: Lane, body: bytes, boundary: bytes | None, asked: uploads.Asked
    ) -> tuple[bytes, int]:
        """Uploads → the bytes of the answer and the number of images, counted."""
        from serving import imaging

        start = time.perf_counter()
        files_of = partial(uploads.files_of, boundary=boundary, most=self.settings.max_records)
        found, results = imaging.score(lane.served, files_of(body), asked, self.settings)
        lane.metrics.inference.observe(time.perf_counter() - start)
        lane.metrics.observe(found, None)
        lane.metrics.sizes.observe(len(results))
        self.shadows.offer(lane.served, found, body, lambda bodies, _: files_of(*bodies))
        return wire.encode(lane.answered(results)), len(results)


async def _departure(receive: Receive) -> None:
    """Return when the client is gone; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)


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
    scoring = Scoring(store, settings, metrics, shadows)
    app.router.routes[:0] = scoring.routes.values()  # first, so that nothing is matched before
    inner, refuse, find = super(Service, app).__call__, app.state.refuse, _finder(settings)
    app.front = Front(inner, scoring, settings, metrics, refuse, find)
    _add_routes(app, store, settings, metrics, follower)
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
        problem = problem_of(error)
        metrics.rejected.labels(problem.kind.slug).inc()
        return problem.response_at(path)

    async def handle(request: Request, error: Exception) -> Response:
        return refuse(error, request.scope["path"])

    for kind in (ProblemError, DataError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.state.refuse = refuse


def _add_routes(
    app: FastAPI, store: Store, settings: Settings, metrics: Metrics, follower: Follower
) -> None:
    @app.get("/models", **openapi.get("What is loaded.", wire.Models))
    async def models() -> Response:
        return wire.response(overview.describe(store, follower.followed, metrics))

    @app.get("/health/live", **openapi.get("Whether the process answers.", wire.Status))
    async def live() -> Response:
        return wire.response(wire.Status("live", list(store.current)))

    @app.get("/health/ready", **openapi.get("Whether to send requests.", wire.Status, NOT_READY))
    async def ready() -> Response:
        questions.check_ready(store, settings)
        return wire.response(wire.Status("ready", list(store.current)))

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


def _traced(app: ASGIApp) -> ASGIApp:
    """An application whose requests are told to the collector that the environment names."""
    try:
        from serving.traces import Trace, provider
    except ImportError as error:
        variable = min(COLLECTORS)
        reason = f"{variable} needs: pip install 'anomaly-vae[otel]'"
        raise ConfigError(f"{error}; {reason}", key=variable) from None
    return Trace(app, provider())
