"""Answer scoring requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from threading import Barrier
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.attribution import CANDIDATES, MAX_HIDDEN_COLUMNS
from serving.http.admission import AdmissionControl, Deadlines
from serving.models.store import ServedModel, Store
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.paths import HEADERS, SCORING, Template
from serving.problems import MALFORMED, NOT_READY, UNKNOWN_MODEL, ProblemError
from serving.scoring import adapters, requests, responses, schemas, uploads
from serving.scoring.batcher import ModelBatcher
from serving.scoring.shadow import Shadows
from serving.settings import Settings

INLINE_BYTES = 128 * 1024
"""A body up to this size is decoded on the event loop: under a millisecond."""


INLINE_VALUES = 4096
"""So many values, records times columns, are scored on the event loop: a few milliseconds."""


JSON_TYPE = (b"content-type", schemas.JSON.encode())


EXPLAINED = 1 + MAX_HIDDEN_COLUMNS * CANDIDATES
"""What a value costs in a record that is explained, in values scored."""


T = TypeVar("T")


def started(count: int) -> ThreadPoolExecutor:
    """So many threads, there from now on: to start one out of memory would hold the loop up."""
    threads, together = ThreadPoolExecutor(count, thread_name_prefix="score"), Barrier(count)
    wait([threads.submit(together.wait) for _ in range(count)])
    return threads


class ScoringEndpoint:
    """`POST /score` and `POST /models/{name}/score`, as an ASGI application."""

    def __init__(
        self, store: Store, settings: Settings, metrics: Metrics, shadows: Shadows
    ) -> None:
        self.store, self.settings, self.metrics = store, settings, metrics
        self.shadows = shadows
        self.places, self.deadlines = (
            AdmissionControl(settings, metrics),
            Deadlines(settings.body_seconds),
        )
        self.routes = {path: Template(path, self, methods=["POST"]) for path in SCORING}
        self._threads = started(settings.threads)
        self._seen: Mapping[str, ServedModel] | None = None
        self._lanes: dict[str, ModelBatcher] = {}
        self._paths: dict[str, tuple[Route, ModelBatcher]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.respond(self.find(scope["path_params"].get("name")), scope, receive, send)

    async def respond(self, lane: ModelBatcher, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to this model."""
        take = self._take_images if lane.reader is None else self._take_records
        size = requests.declared_size(scope[HEADERS], self.settings.max_body_bytes)
        content = await take(lane, scope, receive, size)
        headers = [JSON_TYPE, (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def at(self, path: str) -> tuple[Route, ModelBatcher] | None:
        """The route and the model of a path that needs no search."""
        self._refresh()
        return self._paths.get(path)

    def find(self, name: str | None, route: str = SCORING[1]) -> ModelBatcher:
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
            name: known.get(served)
            or ModelBatcher(served, self.metrics.for_model(served), self.shadows)
            for name, served in current.items()
        }
        alone, named = self.routes.values()
        self._paths = {f"/models/{n}/score": (named, lane) for n, lane in self._lanes.items()}
        if len(current) == 1:
            self._paths["/score"] = alone, next(iter(self._lanes.values()))
        self._seen = current

    async def _take_records(
        self, lane: ModelBatcher, scope: Scope, receive: Receive, size: int
    ) -> bytes:
        requests.check_media_type(scope[HEADERS])
        requests.check_query(scope["query_string"])
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
        self, lane: ModelBatcher, facts: logs.Facts, receive: Receive, body: bytes
    ) -> bytes:
        """The quick way where it is open, on a thread where it takes long."""
        if len(body) > INLINE_BYTES:
            content, facts["records"] = await self._run(receive, self.score_large, lane, body)
            return content
        rows = lane.read(body)
        if rows and len(rows) * lane.columns <= INLINE_VALUES and self._fits(rows):
            facts["records"] = len(rows)
            return await lane.submit(rows, body)
        request = requests.decode(body, self.settings.max_records)
        facts["records"] = len(request.records)
        if self._cost(lane, request) <= INLINE_VALUES:
            return self.score(lane, request, body)
        return await self._run(receive, self.score, lane, request, body)

    async def _take_images(
        self, lane: ModelBatcher, scope: Scope, receive: Receive, size: int
    ) -> bytes:
        facts = scope[logs.FACTS]
        boundary = uploads.boundary_of(scope[HEADERS])
        asked = uploads.image_options(scope["query_string"])
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
        return self.deadlines.keep(requests.read_body(receive, self.settings.max_body_bytes))

    async def handle_protocol(
        self,
        lane: ModelBatcher,
        scope: Scope,
        receive: Receive,
        decode: adapters.DecodeBody,
    ) -> Response:
        """Body → question → decisions → answer, in the words of another protocol."""
        size = requests.declared_size(scope[HEADERS], self.settings.max_body_bytes)
        if lane.reader is None or size > INLINE_BYTES:
            self.places.check_jobs()
        self.places.take(size)
        try:
            body = await self._read(receive)
            inline, facts = len(body) <= INLINE_BYTES, scope[logs.FACTS]
            question = decode(body) if inline else await self._run(receive, decode, body)
            facts["model"], facts["records"] = lane.served.name, question.rows.count
            if lane.reader and question.rows.count * lane.columns <= INLINE_VALUES:
                return self.score_protocol(lane, question, body, decode)
            return await self._run(receive, self.score_protocol, lane, question, body, decode)
        finally:
            self.places.give(size)

    def score_protocol(
        self,
        lane: ModelBatcher,
        question: adapters.ProtocolRequest,
        body: bytes,
        decode: adapters.DecodeBody,
    ) -> Response:
        """The answer to a question, counted; ``decode`` made it of ``body``."""
        start = time.perf_counter()
        content = question.rows.read(lane.served.detector.scorer.schema)
        if isinstance(content, RawBatch):
            found = lane.decide(lane.served.detector.scorer.encoding.encode(content))
            lane.metrics.ignored.inc(len(content.ignored))
        else:
            found = adapters.detect_images(lane.served, content, self.settings)
            lane.metrics.inference.observe(time.perf_counter() - start)
            lane.metrics.observe(found, None)
        lane.metrics.sizes.observe(question.rows.count)
        self.shadows.offer(lane.served, found, body, partial(adapters.read_again, decode))
        return question.answer(found)

    def _fits(self, rows: Sequence[object]) -> bool:
        return len(rows) <= self.settings.max_records

    def _cost(self, lane: ModelBatcher, request: schemas.ScoreRequest) -> int:
        """How many values it takes as much time to score; refuses to explain too many."""
        values = len(request.records) * lane.columns
        if not request.explain:
            return values
        requests.check_contributions(values, self.settings.max_contributions)
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

    def score_large(self, lane: ModelBatcher, body: bytes) -> tuple[bytes, int]:
        """A body → the bytes of the answer and the number of records, counted."""
        rows = lane.read(body)
        if rows and self._fits(rows):
            return lane.answer(rows, body), len(rows)
        request = requests.decode(body, self.settings.max_records)
        self._cost(lane, request)
        return self.score(lane, request, body), len(request.records)

    def score(self, lane: ModelBatcher, request: schemas.ScoreRequest, body: bytes) -> bytes:
        """Records, read the careful way → the bytes of the answer, counted."""
        detector, explained = lane.served.detector, None
        batch = requests.read_records(detector.scorer.schema, request.records)
        if request.explain:
            found, explained = detector.detect_and_explain(batch, request.most)
            lane.metrics.observe(found, detector.scorer.encoding.encode(batch))
        else:
            found = lane.decide(detector.scorer.encoding.encode(batch))
        lane.metrics.ignored.inc(len(batch.ignored))
        lane.metrics.sizes.observe(len(batch))
        self.shadows.offer(lane.served, found, body)
        return responses.encode(lane.answered(responses.results(found, explained)))

    def score_images(
        self, lane: ModelBatcher, body: bytes, boundary: bytes | None, asked: uploads.ImageOptions
    ) -> tuple[bytes, int]:
        """Uploads → the bytes of the answer and the number of images, counted."""
        from serving.scoring import images

        start = time.perf_counter()
        files_of = partial(uploads.files_of, boundary=boundary, most=self.settings.max_records)
        found, results = images.score(lane.served, files_of(body), asked, self.settings)
        lane.metrics.inference.observe(time.perf_counter() - start)
        lane.metrics.observe(found, None)
        lane.metrics.sizes.observe(len(results))
        self.shadows.offer(lane.served, found, body, lambda bodies, _: files_of(*bodies))
        return responses.encode(lane.answered(results)), len(results)


async def _departure(receive: Receive) -> None:
    """Return when the client is gone; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)
