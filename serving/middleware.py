"""What surrounds every request, in one pass: who asks, how it ended, how long it took.

Plain ASGI, so that a request costs a few function calls and no task of its own. Requests to score
go straight to their route, which is the same as through the router and takes less time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.rate_limit import RateLimiter, bucket_store
from serving.observability import logs
from serving.observability.metrics import MULTIPROCESS_DIR, Metrics
from serving.paths import HEADERS, OPEN, QUIET, check_port, scope_of, template_of
from serving.problems import FORBIDDEN, INTERNAL, UNAUTHENTICATED, ProblemError
from serving.settings import ApiKey, Settings

if TYPE_CHECKING:
    from serving.scoring.engine import ScoringEndpoint

LINGER = 4
"""So many bodies of the largest size are read on, and dropped, after a refusal."""
REQUEST_ID = b"x-request-id"
SOUND_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""A request id that is taken over; any other is replaced."""


class RequestMiddleware:
    """Admit, answer, count, time and log each request by its route template."""

    def __init__(
        self,
        app: ASGIApp,
        scoring: ScoringEndpoint,
        settings: Settings,
        metrics: Metrics,
        refuse: Callable[[Exception, str], Response],
        find: Callable[[bytes], ApiKey | None],
    ) -> None:
        self.app, self.scoring, self.settings, self.find = app, scoring, settings, find
        self.metrics, self.store, self.refuse = metrics, scoring.store, refuse
        book = bucket_store(settings, os.environ.get(MULTIPROCESS_DIR))
        self._rates = RateLimiter(settings.rate_per_second, settings.rate_burst, book)
        self._prefix, self._numbers = secrets.token_hex(8), count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and look at its answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        number = self._id(headers)
        scope[HEADERS], scope[logs.FACTS] = headers, {}
        exchange = Exchange(headers, receive, send, self._extra(number))
        self.metrics.in_flight.inc()
        try:
            await self._route(scope, exchange)
        except Exception as error:  # noqa: BLE001  # each is answered
            await self._fail(error, scope, exchange, number)
        finally:
            if exchange.held:
                settings = self.settings
                await exchange.end(LINGER * settings.max_body_bytes, settings.body_seconds)
            self.metrics.in_flight.dec()
            self._finish(scope, exchange.status or 500, time.perf_counter() - start, number)

    def _route(self, scope: Scope, exchange: Exchange) -> Awaitable[None]:
        """What answers a request, if it may be answered."""
        path = scope["path"]
        if self.settings.admin_port:
            check_port(scope, self.settings.admin_port)
        if self.settings.guarded and path not in OPEN:
            self._check_key(scope, path)
        direct = self.scoring.at(path) if scope["method"] == "POST" else None
        if direct is None:
            return self.app(scope, exchange.receive, exchange.send)
        scope["route"], handler = direct
        return self.scoring.respond(handler, scope, exchange.receive, exchange.send)

    async def _fail(
        self, error: Exception, scope: Scope, exchange: Exchange, number: bytes
    ) -> None:
        """Answer, unless a route's own handler did, and log what no client is to blame for."""
        if not exchange.status:
            problem = self.refuse(error, scope["path"])
            await problem(scope, exchange.receive, exchange.send)
        elif exchange.status != INTERNAL.status:
            raise error  # midway; who holds the connection closes it
        if exchange.status == INTERNAL.status:
            facts = {logs.FACTS: {"request_id": number.decode()}}
            logs.failures.error("a request failed", exc_info=error, extra=facts)

    def _id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The id that a request brings, or one of ours."""
        given = headers.get(REQUEST_ID)
        if given and SOUND_ID.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._numbers):x}".encode()

    def _extra(self, number: bytes) -> list[tuple[bytes, bytes]]:
        """Headers of the answer."""
        extra = [(REQUEST_ID, number)]
        return [*extra, (b"connection", b"close")] if self.store.draining else extra

    def _check_key(self, scope: Scope, path: str) -> None:
        secret = sent_key(scope[HEADERS])
        key = self.find(secret) if secret else None
        if key is None:
            detail = f"{'the key is unknown' if secret else 'no key'}; send it as "
            detail += "'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": "Bearer"})
        scope[logs.FACTS]["client"] = key.name
        needed = scope_of(path)
        if needed not in key.scopes:
            raise ProblemError(FORBIDDEN, f"key '{key.name}' lacks the scope '{needed}'")
        if self.settings.rate_per_second:
            self._rates.take(key.name)

    def _finish(self, scope: Scope, status: int, seconds: float, number: bytes) -> None:
        route = template_of(scope)
        self.metrics.finished(route, status, seconds)
        quiet = status < 400 and route.startswith(QUIET)
        level = logging.DEBUG if quiet else logging.INFO
        if logs.access.isEnabledFor(level):
            head = {"request_id": number.decode(), "method": scope["method"], "route": route}
            facts = {**head, "status": status, "seconds": round(seconds, 6), **scope[logs.FACTS]}
            logs.access.log(level, "request", extra={logs.FACTS: facts})


class Exchange:
    """A request and its answer; ``unread`` while more of the body is to come.

    An early answer is held open until the body has ended, so that a client hears it that sends
    everything first: a connection that is closed while bytes arrive is reset, which takes the
    answer with it (RFC 9112, section 9.6). A client that waits for 100 Continue sends nothing
    before the body is asked for.
    """

    __slots__ = ("_extra", "_receive", "_send", "held", "status", "unread")

    def __init__(
        self,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        extra: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self._receive, self._send, self._extra = receive, send, extra
        sends = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self.unread = sends and b"expect" not in headers
        self.held, self.status = False, 0

    async def receive(self) -> Message:
        """Pass on a part of the body."""
        message = await self._receive()
        self.unread = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a part of the answer, but not that it is the last."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._extra]
        elif self.unread and not message.get("more_body", False):
            self.held = True
            message["more_body"] = True
        await self._send(message)

    async def end(self, most: int, seconds: float) -> None:
        """Drop the rest of the body, so many bytes and seconds of it; say the answer is whole."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.unread and most > 0:
                    most -= len((await self.receive()).get("body", b""))
        await self._send({"type": "http.response.body", "body": b""})


def sent_key(headers: Mapping[bytes, bytes]) -> bytes:
    """The key a request carries; empty if it carries none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return bytes(token.strip())
    return bytes(headers.get(b"x-api-key", b"").strip())
