"""Answer scoring requests: `POST /score` and the routes of other protocols."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving.models.store import ServedModel, Store
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.paths import HEADERS, SCORING_ROUTES, Template
from serving.problems import NOT_READY, UNKNOWN_MODEL, ProblemError
from serving.scoring import adapters, requests, schemas
from serving.scoring.handlers import RequestHandler, Resources
from serving.scoring.observers import Observers
from serving.scoring.windows import WindowStores
from serving.settings import Settings

JSON_TYPE = (b"content-type", schemas.JSON_BYTES)


class ScoringEndpoint:
    """`POST /score` and `POST /models/{name}/score`, as an ASGI application."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        observers: Observers,
        windows: WindowStores | None = None,
    ) -> None:
        self.store, self.settings = store, settings
        self.routes = {path: Template(path, self, methods=["POST"]) for path in SCORING_ROUTES}
        self.resources = Resources(settings, metrics, observers, windows)
        self._handled: Mapping[str, ServedModel] | None = None
        self._handlers: dict[str, RequestHandler] = {}
        self._by_path: dict[str, tuple[Route, RequestHandler]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.respond(self.find(scope["path_params"].get("name")), scope, receive, send)

    async def respond(
        self, handler: RequestHandler, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one request with this handler."""
        content = await self._answer(handler, scope, receive)
        headers = [JSON_TYPE, (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, handler: RequestHandler, scope: Scope, receive: Receive) -> bytes:
        """Check the head, admit the request, read its body and score it."""
        log_fields, admission = scope[logs.LOG_FIELDS], self.resources.admission
        size = requests.declared_size(scope[HEADERS], self.settings.max_body_bytes)
        options = handler.read_head(scope)
        if handler.may_need_thread(size):
            admission.check_jobs()
        admission.admit(size)
        try:
            body = await self.resources.read_body(receive)
            log_fields["model"] = handler.model.name
            return await handler.answer(body, options, receive, log_fields)
        finally:
            admission.release(size)

    # ------------------------------------------------------------ models

    def direct_route(self, path: str) -> tuple[Route, RequestHandler] | None:
        """Return the route and handler for a path of `POST /score`, bypassing the router."""
        self._refresh()
        return self._by_path.get(path)

    def find(self, name: str | None, route: str = SCORING_ROUTES[1]) -> RequestHandler:
        """Return the handler of a model.

        Args:
            name: name of the model; None for the only model.
            route: template of the route that names a model, for error messages.

        Raises:
            ProblemError: no model is loaded, none has this name, or ``name`` is None and several
                are loaded.
        """
        self._refresh()
        handlers = self._handlers
        if not handlers:
            raise ProblemError(NOT_READY, "no model is loaded", headers=self.settings.retry_headers)
        if name is None and len(handlers) == 1:
            return next(iter(handlers.values()))
        if name is not None and name in handlers:
            return handlers[name]
        routes = ", ".join(route.format(name=known) for known in handlers)
        problem = f"no model '{name[:100]}' is loaded" if name else None
        problem = problem or f"{len(handlers)} models are loaded"
        raise ProblemError(UNKNOWN_MODEL, f"{problem}; post to {routes}")

    def _refresh(self) -> None:
        """Update the handlers after a swap; unchanged models keep theirs, and waiting requests."""
        current = self.store.current
        if current is self._handled:
            return
        kept = {handler.model: handler for handler in self._handlers.values()}
        self._handlers = {
            name: kept.get(model) or model.handler(self.resources)
            for name, model in current.items()
        }
        unnamed, named = self.routes.values()
        self._by_path = {
            f"/models/{name}/score": (named, handler) for name, handler in self._handlers.items()
        }
        if len(current) == 1:
            self._by_path["/score"] = unnamed, next(iter(self._handlers.values()))
        self._handled = current

    # ------------------------------------------------------------ other protocols

    async def handle_protocol(
        self,
        handler: RequestHandler,
        scope: Scope,
        receive: Receive,
        decode: adapters.DecodeBody,
    ) -> Response:
        """Admit a request of another protocol, read and decode its body, and score it."""
        log_fields, resources = scope[logs.LOG_FIELDS], self.resources
        size = requests.declared_size(scope[HEADERS], self.settings.max_body_bytes)
        if handler.may_need_thread(size):
            resources.admission.check_jobs()
        resources.admission.admit(size)
        try:
            body = await resources.read_body(receive)
            request = await resources.run_by_size(receive, decode, body)
            log_fields["model"], log_fields["records"] = handler.model.name, request.rows.count
            task = handler, request, body, decode
            if handler.is_inline(request.rows.count):
                return self.score_protocol(*task)
            return await resources.run_on_thread(receive, self.score_protocol, *task)
        finally:
            resources.admission.release(size)

    def score_protocol(
        self,
        handler: RequestHandler,
        request: adapters.ProtocolRequest,
        body: bytes,
        decode: adapters.DecodeBody,
    ) -> Response:
        """Score the rows of a request that ``decode`` made from ``body``."""
        model, read = handler.model, partial(adapters.read_again, decode)
        content = request.rows.read(model)
        ignored = handler.ignored_keys(content)
        detections = handler.decide(content)
        handler.metrics.sizes.observe(request.rows.count)
        handler.metrics.ignored.inc(len(content.ignored))
        self.resources.observers.offer(model, detections, body, request.rows.records, read)
        return request.answer(detections, ignored)
