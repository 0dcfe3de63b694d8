"""Serve HTTP/1.1 with uvicorn: limit connections and heads, and refuse ambiguous messages.

uvicorn waits indefinitely for the head of a request and buffers all of it. `LimitedProtocol` gives
heads a size limit and a deadline, limits the number of connections, and discards trailer fields. It
also refuses what RFC 9112 forbids and the parser accepts, ignores each ``Upgrade``, and ends
connections so that no part of a request is read as another one. Error responses are problem
details, as everywhere else.

This is the only module that relies on uvicorn's `HttpToolsProtocol` beyond its documented options;
`tests/serving/http/test_http11.py` lists every attribute it uses.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.observability.metrics import Metrics
from serving.paths import REQUESTS
from serving.problems import (
    HEAD_TOO_LARGE,
    MALFORMED,
    METHOD_NOT_ALLOWED,
    OVERLOADED,
    TIMEOUT,
    ProblemError,
)
from serving.settings import Settings

SECURE_HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
    ("content-security-policy", "frame-ancestors 'none'"),
)
"""Headers of every response; uvicorn adds them to those of the application."""
SHUTDOWN_HEAD_SECONDS = 1.0
"""Time that an unused connection has to send a request when the server shuts down, in seconds."""
LINGER_SECONDS = 2.0
"""Time for which a client may keep sending after the end of the last response, in seconds."""
VERSIONS = ("1.1", "1.0")
"""Versions of HTTP that are answered."""
HOST = re.compile(rb"(\[[\w.:%~-]+\]|[\w.~!$&'()*+,;=%-]*)(:\d*)?")
"""Pattern of a ``Host`` header: a name or an address, and a port (RFC 9110, section 7.2)."""
METHODS = {"Allow": "GET, HEAD, POST"}
"""Header of a refused ``CONNECT``."""


class _DiscardedHeaders(list[tuple[bytes, bytes]]):
    """A list of headers that stays empty, for the trailer fields after a body."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        """Discard the header."""


DISCARDED_HEADERS = _DiscardedHeaders()


class CoalescingTransport(asyncio.Transport):
    """A transport that sends the head and the body of a response with one system call.

    uvicorn writes them separately: two system calls, two packets and two wake-ups of the client.
    This transport holds the first write until the second, or until the next iteration of the event
    loop.

    Attributes:
        lingers: whether closing waits until the client stops sending. Otherwise a client that is
            still sending would be reset and might lose the response (RFC 9112, section 9.6).
    """

    lingers = _is_lingering = False

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop, self._held = transport, loop, b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hold the first bytes, and send them together with the next ones."""
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        else:
            self._held = bytes(data)
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send the held bytes, then close the connection; a second call does nothing."""
        if self.is_closing():
            return
        self._flush()
        if self.lingers:
            self._linger()
        else:
            self._transport.close()

    def _linger(self) -> None:
        """Announce the end, and close once the client does or after a while."""
        self._is_lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_SECONDS, self._transport.close)

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._is_lingering or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Pause reading."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the connection, such as its socket or an address."""
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)


class LimitedProtocol(HttpToolsProtocol):
    """A connection with limits on request heads, idle time and the number of connections.

    Attributes:
        in_head: whether the next bytes belong to the head of a request, not to a body.
        unparsed: number of bytes received since the last part of a body, or since the last request:
            those of an incomplete head, of the size of a chunk, or of trailer fields.
        unanswered: number of requests that have begun and have no complete response.
        refusal: the problem that ends the connection after the last response.
    """

    in_head, unparsed, unanswered = True, 0, 0
    refusal: ProblemError | None = None
    transport: CoalescingTransport
    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.settings: Settings = self.app.state.settings
        self.metrics: Metrics = self.app.state.metrics

    # ---------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it if too many are open."""
        super().connection_made(CoalescingTransport(transport, self.loop))
        self.metrics.connections.inc()
        others = len(self.connections) - 1
        if others >= self.settings.max_connections:
            detail = f"{others} connections are open"
            problem = ProblemError(OVERLOADED, detail, headers=self.settings.retry_headers)
            self._refuse(problem, lingers=False)
        else:
            self._start_head_timer()

    def connection_lost(self, _: Exception | None) -> None:
        """Stop all timers; uvicorn stops its own timer only if it is passed no exception."""
        self.metrics.connections.dec()
        self._stop_head_timer()
        super().connection_lost(None)

    def shutdown(self) -> None:
        """Close the connection when idle, but wait briefly for a first request under way."""
        cycle: Any = self.cycle
        if cycle is None and not self.transport.is_closing():
            self._stop_head_timer()
            self._start_head_timer(SHUTDOWN_HEAD_SECONDS)
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, unless the connection is ending."""
        if self.refusal or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.unparsed += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            problem = error.__context__  # raised by a callback, where it stops the parser
            if not isinstance(problem, ProblemError):
                problem = ProblemError(MALFORMED, f"not HTTP/1.1: {error}")
            self._refuse(problem)
        if self.unparsed:
            self._check_unparsed()

    def _parse(self, data: bytes) -> None:
        """Feed the parser, which stops after each head that asks for an upgrade.

        The parser takes the rest for another protocol. A new parser therefore gets the same head
        without its ``Upgrade``, so that it reads the body of the request (RFC 9110, section 7.8).
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:
                data = data[stop.args[0] :]
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        kept = (header for header in self.headers if header[0] != b"upgrade")
        lines = [b"%b %b HTTP/%b" % (method, self.url, version), *map(b": ".join, kept)]
        return b"\r\n".join([*lines, b"", b""])

    def _check_unparsed(self) -> None:
        if self.unparsed > self.settings.max_head_bytes:
            self._refuse(self._head_problem())
        elif self.in_head and self._head_timer is None:
            self._start_head_timer()

    # ---------------------------------------------------------------- parser callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header or a trailer field; the parser leaves whitespace at the end of its value."""
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Start a request, unless its head is too large or wrong, and discard its trailer fields.

        Raises:
            ProblemError: the request is refused; the parser stops.
        """
        if self.parser.should_upgrade():
            self._check_method()
            return  # this head is parsed again
        self._stop_head_timer()
        received, self.unparsed = self.unparsed, 0  # may include a part of the body
        if received > self.settings.max_head_bytes:
            self._check_head_size()
        self._check_head()
        super().on_headers_complete()
        scope: Any = self.scope
        scope[REQUESTS], self.headers = self.tasks, DISCARDED_HEADERS
        self.unanswered += 1
        self.in_head, self.transport.lingers = False, True

    def _check_method(self) -> None:
        """Refuse ``CONNECT``, which the parser takes for an upgrade."""
        if self.parser.get_method() == b"CONNECT":
            raise ProblemError(METHOD_NOT_ALLOWED, "this is no proxy", headers=METHODS)

    def _check_head(self) -> None:
        """Check what the parser does not check, and normalise the target."""
        version = self.parser.get_http_version()
        if fault := _find_fault(version, self.headers):
            raise ProblemError(MALFORMED, f"not HTTP/1.1: {fault}")
        if not self.url.startswith(b"/"):
            self.url = _origin_form(self.url)
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1

    def on_body(self, body: bytes) -> None:
        """Pass on a part of a body, which needs no invitation any more."""
        self.unparsed, self.cycle.waiting_for_100_continue = 0, False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request, and expect the head of the next one."""
        if self.in_head:
            return  # the parser stopped for an upgrade
        self.cycle.waiting_for_100_continue = False
        super().on_message_complete()
        self.in_head, self.unparsed, self.transport.lingers = True, 0, False

    def on_response_complete(self) -> None:
        """Start the next request, unless the connection ends with this response."""
        self.unanswered -= 1
        if not self.in_head and self.cycle.response_complete:
            self.transport.close()  # the rest of the body is not wanted
        super().on_response_complete()
        if self.refusal and not self.unanswered:
            self._send_refusal(self.refusal)

    # ---------------------------------------------------------------- refusals

    def _check_head_size(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.max_head_bytes:
            raise self._head_problem()

    def _head_problem(self) -> ProblemError:
        limit = self.settings.max_head_bytes
        detail = f"the request line and headers may have at most {limit} bytes"
        return ProblemError(HEAD_TOO_LARGE, detail)

    def _start_head_timer(self, seconds: float | None = None) -> None:
        delay = seconds or self.settings.head_seconds
        self._head_timer = self.loop.call_later(delay, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        """Refuse an incomplete request; close a connection that has sent nothing."""
        if self.unparsed:
            seconds = self.settings.head_seconds
            detail = f"the head of the request did not arrive within {seconds:g} seconds"
            self._refuse(ProblemError(TIMEOUT, detail))
        else:
            self.transport.close()

    def _refuse(self, problem: ProblemError, lingers: bool = True) -> None:
        """Answer the complete requests, then send a problem and close the connection.

        Args:
            problem: the last response.
            lingers: whether the client may still be sending.
        """
        if self.refusal or self.transport.is_closing():
            return
        self._stop_head_timer()
        self.refusal, self.transport.lingers = problem, lingers
        if self.in_head:
            self.metrics.rejected.labels(problem.kind.slug).inc()
        else:
            self._abandon_request()
        if not self.unanswered:
            self._send_refusal(problem)

    def _abandon_request(self) -> None:
        """Give up the request whose body cannot be read; the application counts it as refused."""
        cycle: Any = self.cycle
        if cycle.response_started:
            self.transport.close()
            return
        self.unanswered -= 1
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
        cycle.disconnected = True
        cycle.message_event.set()

    def _send_refusal(self, problem: ProblemError) -> None:
        if not self.transport.is_closing():
            self.transport.write(_serialized(problem))
            self.transport.close()


def _find_fault(version: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Return why a head is ambiguous although the parser accepts it (RFC 9112), or nothing."""
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if version not in VERSIONS:
        return f"the version {version} is not supported"
    if len(hosts) != 1 and (hosts or version != "1.0"):
        return f"{len(hosts)} Host headers; send one"
    if hosts and not HOST.fullmatch(hosts[0]):
        return "the Host header is neither a name nor an address"
    if codings and (codings != [b"chunked"] or version == "1.0"):
        return "send no Transfer-Encoding but 'chunked', and that in HTTP/1.1"
    return ""


def _origin_form(target: bytes) -> bytes:
    """Convert an absolute target, as proxies receive it, into a path and query."""
    url = httptools.parse_url(target)
    if not url.schema:
        return target
    path = url.path or b"/"
    return path + b"?" + url.query if url.query else path


def _serialized(problem: ProblemError) -> bytes:
    """Serialise a problem as a complete HTTP response."""
    response = problem.response
    status = HTTPStatus(response.status_code)
    headers = [*response.headers.items(), ("connection", "close"), *SECURE_HEADERS]
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        *(f"{name}: {text}" for name, text in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + bytes(response.body)
