"""What surrounds every request: measured and logged on the way out, the key checked on the way in.

Plain ASGI, so that a request costs a few function calls and no task of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs
from serving.errors import FORBIDDEN, UNAUTHENTICATED, ProblemError
from serving.metrics import Metrics
from serving.settings import ApiKey, find_key
from serving.store import Store

OPEN = frozenset({"/health/live", "/health/ready", "/openapi.json", "/docs"})
"""What needs no key."""
QUIET = ("/health/", "/metrics")
"""Routes that are logged only when they fail or at level debug."""


class Observe:
    """Count, time and log each request by its route template."""

    def __init__(self, app: ASGIApp, metrics: Metrics, store: Store) -> None:
        self.app, self.metrics, self.store = app, metrics, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and look at its answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500
        scope[logs.FACTS] = {}

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.store.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, observed)
        finally:
            self.metrics.in_flight.dec()
            self._finish(scope, status, time.perf_counter() - start)

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        route = template_of(scope)
        self.metrics.finished(route, status, seconds)
        quiet = status < 400 and route.startswith(QUIET)
        level = logging.DEBUG if quiet else logging.INFO
        if logs.access.isEnabledFor(level):
            head = {"method": scope["method"], "route": route, "status": status}
            facts = {**head, "seconds": round(seconds, 6), **scope[logs.FACTS]}
            logs.access.log(level, "request", extra={logs.FACTS: facts})


def template_of(scope: Scope) -> str:
    """The template of the route that matched, never a path that a client made up."""
    known = scope["path"] if scope["path"] in OPEN else "unmatched"
    return str(getattr(scope.get("route"), "path", known))


class Guard:
    """Let a request through when its key has the scope of its path.

    Every path needs a key but those that are open.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[ApiKey], refuse: Callable[[Exception], Response]
    ) -> None:
        self.app, self.keys, self.refuse = app, keys, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        app = self.app
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                self.admit(scope)
            except ProblemError as problem:
                app = self.refuse(problem)
        await app(scope, receive, send)

    def admit(self, scope: Scope) -> None:
        """Check the key of a request against the scope of its path."""
        secret = sent_key(scope)
        key = find_key(self.keys, secret) if secret else None
        if key is None:
            detail = f"{'the key is unknown' if secret else 'no key'}; send it as "
            detail += "'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": "Bearer"})
        scope[logs.FACTS]["client"] = key.name
        needed = scope_of(scope["path"])
        if needed not in key.scopes:
            raise ProblemError(FORBIDDEN, f"key '{key.name}' lacks the scope '{needed}'")


def sent_key(scope: Scope) -> bytes:
    """The key a request carries; empty if it carries none."""
    headers = dict(scope["headers"])
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return bytes(token.strip())
    return bytes(headers.get(b"x-api-key", b"").strip())


def scope_of(path: str) -> str:
    """The scope that a path needs."""
    if path.startswith("/-/"):
        return "admin"
    return "metrics" if path == "/metrics" else "score"
