"""Serve HTTP/1.1 with uvicorn, and limit connections and the heads of requests.

uvicorn waits indefinitely for the head of a request and buffers all of it. `LimitedProtocol` gives
heads a size limit and a deadline, limits the number of connections, and discards trailer fields.
Error responses are problem details, as everywhere else.

This is the only module that relies on uvicorn's `HttpToolsProtocol` beyond its documented options;
`tests/serving/http/test_http11.py` lists every attribute it uses.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.observability.metrics import Metrics
from serving.problems import HEAD_TOO_LARGE, MALFORMED, OVERLOADED, TIMEOUT, ProblemError
from serving.settings import Settings

SECURE_HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
    ("content-security-policy", "frame-ancestors 'none'"),
)
"""Headers of every response; uvicorn adds them to those of the application."""
SHUTDOWN_HEAD_SECONDS = 1.0
"""Time that an unused connection has to send a request when the server shuts down, in seconds."""


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
    """

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
        """Send the held bytes, then close the connection."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._transport.is_closing()

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
    """A connection with limits on request heads, idle time and the number of connections."""

    in_head, head_bytes = True, 0
    """Whether a request head is incomplete, and the number of its bytes received so far."""
    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.settings: Settings = self.app.state.settings
        self.metrics: Metrics = self.app.state.metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it if too many are open."""
        super().connection_made(CoalescingTransport(transport, self.loop))
        self.metrics.connections.inc()
        others = len(self.connections) - 1
        if others >= self.settings.max_connections:
            detail = f"{others} connections are open"
            self._refuse(ProblemError(OVERLOADED, detail, headers=self.settings.retry_headers))
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
        """Parse received bytes, unless the head is too large or the connection is closing."""
        if self.transport.is_closing():
            return
        if self.in_head:
            self.head_bytes += len(data)
        super().data_received(data)
        if self.in_head and self.head_bytes:
            self._check_incomplete_head()

    def _check_incomplete_head(self) -> None:
        if self.head_bytes > self.settings.max_head_bytes:
            self._refuse_head()
        elif self._head_timer is None:
            self._start_head_timer()

    def on_headers_complete(self) -> None:
        """Start a request, unless its head is too large, and discard its trailer fields."""
        if self._head_timer is not None:
            self._stop_head_timer()
        received, self.head_bytes = self.head_bytes, 0  # may include a part of the body
        self.in_head = False
        limit = self.settings.max_head_bytes
        if received > limit and self._head_size() > limit:
            self._refuse_head()
            return
        super().on_headers_complete()
        self.headers = DISCARDED_HEADERS

    def on_message_complete(self) -> None:
        """End a request, and expect the head of the next one."""
        super().on_message_complete()
        self.in_head = True

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP."""
        self._refuse(ProblemError(MALFORMED, f"not HTTP/1.1: {msg}"))

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_head(self) -> None:
        limit = self.settings.max_head_bytes
        detail = f"the request line and headers may have at most {limit} bytes"
        self._refuse(ProblemError(HEAD_TOO_LARGE, detail))

    def _start_head_timer(self, seconds: float | None = None) -> None:
        delay = seconds or self.settings.head_seconds
        self._head_timer = self.loop.call_later(delay, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        """Refuse an incomplete request; close a connection that has sent nothing."""
        if self.head_bytes:
            seconds = self.settings.head_seconds
            detail = f"the head of the request did not arrive within {seconds:g} seconds"
            self._refuse(ProblemError(TIMEOUT, detail))
        else:
            self.transport.close()

    def _refuse(self, problem: ProblemError) -> None:
        """Close the connection, after a problem response unless another response is under way."""
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self.metrics.rejected.labels(problem.kind.slug).inc()
            self.transport.write(_serialized(problem))
        self.transport.close()


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
