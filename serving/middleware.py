"""What surrounds every request: measured and logged on the way out, the key checked on the way in.

Plain ASGI, so that a request costs a few function calls and no task of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs
from serving.errors import FORBIDDEN, UNAUTHENTICATED, ProblemError
from serving.metrics import Metrics
from serving.settings import ApiKey, find_key
from serving.store import Store

OPEN = frozenset({"/health/live", "/health/ready", "/openapi.json", "/docs", "/-/webhook"})
"""What needs no key; webhooks are signed."""
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


class Linger:
    """Read on after an early answer, so that a client hears it that sends everything first.

    A connection that is closed while bytes arrive is reset, which takes the answer with it
    (RFC 9112, section 9.6). At most ``most`` bytes are read, for ``seconds`` at the most.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and end its answer when its body has ended."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            return await self.app(scope, receive, send)
        exchange = _Exchange(receive, send, b"expect" not in headers)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        finally:
            await exchange.end(self.most, self.seconds)


class _Exchange:
    """A request and its answer; ``unread`` while more of the body is to come.

    A client that waits for 100 Continue sends nothing before the body is asked for.
    """

    def __init__(self, receive: Receive, send: Send, unread: bool) -> None:
        self._receive, self._send = receive, send
        self.unread, self.held = unread, False

    async def receive(self) -> Message:
        """Pass on a part of the body."""
        message = await self._receive()
        self.unread = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a part of the answer, but not that it is the last."""
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        self.held = last and self.unread
        await self._send({**message, "more_body": True} if self.held else message)

    async def end(self, most: int, seconds: float) -> None:
        """Drop the rest of the body; then say that the answer is whole."""
        if not self.held:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.unread and most > 0:
                    most -= len((await self.receive()).get("body", b""))
        await self._send({"type": "http.response.body", "body": b""})


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
