"""Wrap every request: check the key, answer, count, time and log, in one pass.

This is plain ASGI, so that a request costs a few function calls and no task of its own. Scoring
requests go straight to their route, which behaves as through the router and takes less time.
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
from serving.paths import HEADERS, OPEN, QUIET_ROUTES, check_port, required_scope, route_template
from serving.problems import FORBIDDEN, INTERNAL, UNAUTHENTICATED, ProblemError
from serving.settings import ApiKey, Settings

if TYPE_CHECKING:
    from serving.scoring.engine import ScoringEndpoint

DRAINED_BODIES = 4
"""Bytes read and discarded after an early response, as a multiple of the largest allowed body."""
REQUEST_ID = b"x-request-id"
VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""Request ids of clients that are kept; any other is replaced."""


class RequestMiddleware:
    """Admits, answers, counts, times and logs each request, by its route template.

    Args:
        app: answers what is not a scoring request.
        scoring: answers scoring requests.
        settings: keys and limits.
        metrics: where requests are counted.
        refuse: makes the error response to an exception, for a path.
        find_client: returns the client of a key or token, or None.
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
        scope[HEADERS], scope[logs.FACTS] = headers, {}
        channel = RequestChannel(headers, receive, send, self._response_headers(request_id))
        self.metrics.in_flight.inc()
        try:
            await self._dispatch(scope, channel)
        except Exception as error:  # noqa: BLE001  # each is answered
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
        """Check port, key and rate; return the awaitable that answers the request."""
        path = scope["path"]
        if self.settings.admin_port:
            check_port(scope, self.settings.admin_port)
        if self.settings.guarded and path not in OPEN:
            self._check_key(scope, path)
        direct = self.scoring.at(path) if scope["method"] == "POST" else None
        if direct is None:
            return self.app(scope, channel.receive, channel.send)
        scope["route"], batcher = direct
        return self.scoring.respond(batcher, scope, channel.receive, channel.send)

    async def _answer_error(
        self, error: Exception, scope: Scope, channel: RequestChannel, request_id: bytes
    ) -> None:
        """Answer an exception unless its route has, and log it if the client is not at fault."""
        if not channel.status:
            response = self.refuse(error, scope["path"])
            await response(scope, channel.receive, channel.send)
        elif channel.status != INTERNAL.status:
            raise error  # in the middle of a response; the server closes the connection
        if channel.status == INTERNAL.status:
            facts = {logs.FACTS: {"request_id": request_id.decode()}}
            logs.failures.error("a request failed", exc_info=error, extra=facts)

    def _request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Return the id that the request carries, or a new one."""
        given = headers.get(REQUEST_ID)
        if given and VALID_REQUEST_ID.fullmatch(given):
            return given
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
        scope[logs.FACTS]["client"] = key.name
        needed = required_scope(path)
        if needed not in key.scopes:
            raise ProblemError(FORBIDDEN, f"key '{key.name}' lacks the scope '{needed}'")
        if self.settings.rate_per_second:
            self._rates.take(key.name)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: bytes) -> None:
        """Count, time and log an answered request."""
        route = route_template(scope)
        self.metrics.answered(route, status, seconds)
        is_quiet = status < 400 and route.startswith(QUIET_ROUTES)
        level = logging.DEBUG if is_quiet else logging.INFO
        if logs.access.isEnabledFor(level):
            head = {"request_id": request_id.decode(), "method": scope["method"], "route": route}
            facts = {**head, "status": status, "seconds": round(seconds, 6), **scope[logs.FACTS]}
            logs.log_request(level, facts)


class RequestChannel:
    """The receive and send of one request, which delay the end of an early response.

    A response that is sent before the request body has arrived is held open until the body has
    ended: if a connection is closed while bytes arrive, it is reset, and a client that sends
    everything first loses the response (RFC 9112, section 9.6). A client that waits for
    100 Continue sends nothing before its body is asked for.

    Attributes:
        body_pending: whether more of the body is to come.
        end_is_held: whether the response is complete except for its end.
        status: the status sent; 0 before that.
    """

    __slots__ = ("_headers", "_receive", "_send", "body_pending", "end_is_held", "status")

    def __init__(
        self,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        response_headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self._receive, self._send, self._headers = receive, send, response_headers
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self.body_pending = has_body and b"expect" not in headers
        self.end_is_held, self.status = False, 0

    async def receive(self) -> Message:
        """Pass on a part of the request body."""
        message = await self._receive()
        self.body_pending = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a part of the response, except its end while the body is pending."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._headers]
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
