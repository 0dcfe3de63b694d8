"""Handle every request: check its key, answer it, count it, time it and log it.

The middleware is plain ASGI, so that a request costs a few function calls and no extra task.
Scoring requests bypass the router, which saves time and changes nothing else.
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

from serving.http.rate_limit import RateLimiter, open_store
from serving.observability import logs
from serving.observability.metrics import MULTIPROCESS_DIR, Metrics
from serving.paths import (
    HEADERS,
    PUBLIC_ROUTES,
    QUIET_ROUTES,
    check_port,
    is_console,
    required_scope,
    route_template,
)
from serving.problems import FORBIDDEN, INTERNAL, UNAUTHENTICATED, ProblemError
from serving.settings import ApiKey, Settings

if TYPE_CHECKING:
    from serving.scoring.engine import ScoringEndpoint

DRAINED_BODIES = 4
"""Maximum number of bytes discarded after an early response, as a multiple of the maximum body
size."""
CACHE_CONTROL = b"cache-control"
REQUEST_ID = b"x-request-id"
VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""Pattern of the request ids that are accepted from clients; any other id is replaced."""


class RequestMiddleware:
    """The outermost ASGI application, which authorises, answers, counts and logs each request.

    Args:
        app: the application that answers all requests except `POST /score`.
        scoring: the application that answers `POST /score`.
        settings: keys and limits.
        metrics: counters and histograms of requests.
        refuse: returns the error response to an exception raised at a path.
        find_client: returns the client of a key or token, or None if it is unknown.
    """

    def __init__(
        self,
        app: ASGIApp,
        scoring: ScoringEndpoint,
        settings: Settings,
        metrics: Metrics,
        refuse: Callable[[Exception, str], Response],
        find_client: Callable[[bytes], ApiKey | None],
    ) -> None:
        self.app, self.scoring, self.settings = app, scoring, settings
        self.metrics, self.store, self.refuse = metrics, scoring.store, refuse
        self.find_client = find_client
        buckets = open_store(settings, os.environ.get(MULTIPROCESS_DIR))
        self._rates = RateLimiter(settings.rate_per_second, settings.rate_burst, buckets)
        self._id_prefix, self._id_numbers = secrets.token_hex(8).encode(), count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self._request_id(headers)
        scope[HEADERS], scope[logs.LOG_FIELDS] = headers, {}
        channel = RequestChannel(headers, receive, send, self._response_headers(request_id))
        self.metrics.in_flight.inc()
        try:
            await self._dispatch(scope, channel)
        except Exception as error:  # noqa: BLE001  # every exception is answered
            await self._answer_error(error, scope, channel, request_id)
        finally:
            if channel.end_is_held:
                settings = self.settings
                limit = DRAINED_BODIES * settings.max_body_bytes
                await channel.drain_and_end(limit, settings.body_seconds)
            self.metrics.in_flight.dec()
            seconds = time.perf_counter() - start
            self._record(scope, channel.status or 500, seconds, request_id)

    def _dispatch(self, scope: Scope, channel: RequestChannel) -> Awaitable[None]:
        """Check port, key and rate limit; return the awaitable that answers the request."""
        path = scope["path"]
        if self.settings.admin_port:
            check_port(scope, self.settings.admin_port)
        is_open = path in PUBLIC_ROUTES or is_console(path)  # the console checks sessions itself
        if self.settings.requires_auth and not is_open:
            self._check_key(scope, path)
        direct = self.scoring.direct_route(path) if scope["method"] == "POST" else None
        if direct is None:
            return self.app(scope, channel.receive, channel.send)
        scope["route"], handler = direct
        return self.scoring.respond(handler, scope, channel.receive, channel.send)

    async def _answer_error(
        self, error: Exception, scope: Scope, channel: RequestChannel, request_id: bytes
    ) -> None:
        """Send an error response unless a response has begun, and log internal errors."""
        if not channel.status:
            response = self.refuse(error, scope["path"])
            await response(scope, channel.receive, channel.send)
        elif channel.status != INTERNAL.status:
            raise error  # the response is incomplete, so the server closes the connection
        if channel.status == INTERNAL.status:
            fields = {logs.LOG_FIELDS: {"request_id": request_id.decode()}}
            logs.failures.error("a request failed", exc_info=error, extra=fields)

    def _request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Return the client's request id if it is valid, else a new one."""
        client_id = headers.get(REQUEST_ID)
        if client_id and VALID_REQUEST_ID.fullmatch(client_id):
            return client_id
        return b"%b-%x" % (self._id_prefix, next(self._id_numbers))

    def _response_headers(self, request_id: bytes) -> list[tuple[bytes, bytes]]:
        headers = [(REQUEST_ID, request_id)]
        if self.store.draining:
            headers.append((b"connection", b"close"))
        return headers

    def _check_key(self, scope: Scope, path: str) -> None:
        secret = read_key(scope[HEADERS])
        key = self.find_client(secret) if secret else None
        if key is None:
            detail = f"{'the key is unknown' if secret else 'no key'}; send it as "
            detail += "'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": "Bearer"})
        scope[logs.LOG_FIELDS]["client"] = key.name
        needed_scope = required_scope(path)
        if needed_scope not in key.scopes:
            raise ProblemError(FORBIDDEN, f"key '{key.name}' lacks the scope '{needed_scope}'")
        if self.settings.rate_per_second:
            self._rates.consume(key.name)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: bytes) -> None:
        """Count, time and log an answered request."""
        route = route_template(scope)
        self.metrics.record_response(route, status, seconds)
        is_quiet = status < 400 and route.startswith(QUIET_ROUTES)
        level = logging.DEBUG if is_quiet else logging.INFO
        if logs.access.isEnabledFor(level):
            fields = {"request_id": request_id.decode(), "method": scope["method"], "route": route}
            fields |= {"status": status, "seconds": round(seconds, 6), **scope[logs.LOG_FIELDS]}
            logs.log_request(level, fields)


class RequestChannel:
    """The receive and send functions of one request, which delay the end of an early response.

    If the response is sent before the whole request body has arrived, its end is held back until
    the body has been read. Closing a connection while bytes still arrive would reset it, and a
    client that reads only after sending its whole body would lose the response (RFC 9112, section
    9.6). The delay is not needed for a client that sends ``Expect: 100-continue``.

    Attributes:
        awaits_continue: whether the client waits for an invitation to send the body. An early
            response then ends the connection, as the body may come nevertheless.
        body_pending: whether parts of the request body have yet to arrive.
        end_is_held: whether only the end of the response has yet to be sent.
        status: status of the response; 0 until it is sent.
    """

    __slots__ = (
        "_headers", "_receive", "_send", "awaits_continue", "body_pending", "end_is_held", "status",
    )  # fmt: skip

    def __init__(
        self,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        response_headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self._receive, self._send, self._headers = receive, send, response_headers
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        expects = headers.get(b"expect", b"").lower() == b"100-continue"
        self.awaits_continue = has_body and expects
        self.body_pending = has_body and not expects
        self.end_is_held, self.status = False, 0

    async def receive(self) -> Message:
        """Receive a part of the request body."""
        message = await self._receive()
        self.awaits_continue, self.body_pending = False, message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response; hold back its end while the body is pending."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._headers]
            if not any(name == CACHE_CONTROL for name, _ in message["headers"]):
                message["headers"].append((CACHE_CONTROL, b"no-store"))
            if self.awaits_continue:
                message["headers"].append((b"connection", b"close"))
        elif self.body_pending and not message.get("more_body", False):
            self.end_is_held = True
            message["more_body"] = True
        await self._send(message)

    async def drain_and_end(self, limit: int, seconds: float) -> None:
        """Discard up to ``limit`` bytes of the body within ``seconds``, then end the response."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.body_pending and limit > 0:
                    limit -= len((await self.receive()).get("body", b""))
        await self._send({"type": "http.response.body", "body": b""})


def read_key(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the API key or token of a request, empty if there is none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return bytes(token.strip())
    return bytes(headers.get(b"x-api-key", b"").strip())
