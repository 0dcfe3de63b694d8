"""HTTP/1.1 as uvicorn speaks it, with limits on what comes before a request is one.

uvicorn waits for ever for the head of a request, and keeps of it whatever comes. Here a head has a
limit of bytes and of seconds, connections are so many at the most, and what follows a body is
dropped. All of it is refused as any request is, in problem details.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from serving.observability.metrics import Metrics
from serving.problems import HEAD_TOO_LARGE, MALFORMED, OVERLOADED, TIMEOUT, ProblemError
from serving.settings import Settings


class _Nowhere(list[tuple[bytes, bytes]]):
    """Where the fields go that follow a body."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        """Forget it."""


NOWHERE = _Nowhere()
SECURE = (
    b"x-content-type-options: nosniff\r\n"
    b"cache-control: no-store\r\n"
    b"content-security-policy: frame-ancestors 'none'\r\n"
)
"""Headers of every answer."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_SECONDS = 1.0
"""So long a connection that was taken before the end may still bring its first request."""


class _Joined:
    """The way out of one answer; its head is made secure and goes with the first of its body.

    One system call, one packet, one wake-up of the client where there were two. ASGI has it so: no
    answer starts before the first part of its body is there.
    """

    __slots__ = ("_begun", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head, self._begun = transport, b"", False

    def write(self, data: bytes) -> None:
        """Hold the head; write all else."""
        if self._begun or data == CONTINUE:
            self._transport.write(self._head + data)
            self._head = b""
        else:
            self._head, self._begun = data[:-2] + SECURE + data[-2:], True

    def close(self) -> None:
        """Close, after what there is."""
        if self._head:
            self._transport.write(self._head)
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._transport.is_closing()


class Protocol(HttpToolsProtocol):
    """A connection; ``heading`` while a head is due, ``taken`` are its bytes so far."""

    heading, taken = True, 0
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False
        self.settings: Settings = self.app.state.settings
        self.metrics: Metrics = self.app.state.metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or refuse it where there are too many."""
        super().connection_made(transport)
        self.metrics.connections.inc()
        if len(self.connections) > self.settings.max_connections:
            count = len(self.connections)
            detail = f"{count - 1} connections are open"
            self._refuse(ProblemError(OVERLOADED, detail, headers=self.settings.retry))
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self.metrics.connections.dec()
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close it as soon as nothing is under way; a first request may be, unseen as yet."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None and not self.transport.is_closing():
            self._stop_timer()
            self._start_timer(LAST_SECONDS)
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the head is too large or nobody listens any more."""
        if self.transport.is_closing():
            return
        if self.heading:
            self.taken += len(data)
        super().data_received(data)
        if self.taken and self.heading:
            self._check_head()

    def _check_head(self) -> None:
        """A head that is not yet whole may be so long, and take so long."""
        if self.taken > self.settings.max_head_bytes:
            self._refuse_head()
        elif self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._stop_timer()
        size, self.taken = self.taken, 0
        self.heading = False
        if size > self.settings.max_head_bytes and self._head_size() > self.settings.max_head_bytes:
            self._refuse_head()
            return
        super().on_headers_complete()
        self.cycle.transport = _Joined(self.transport)  # type: ignore[assignment]  # all that a cycle asks of one
        self.headers = NOWHERE

    def on_message_complete(self) -> None:
        """A request is whole; the next head is due."""
        super().on_message_complete()
        self.heading = True

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(ProblemError(MALFORMED, f"not HTTP/1.1: {msg}"))

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_head(self) -> None:
        most = self.settings.max_head_bytes
        detail = f"the line and headers of a request may have {most} bytes"
        self._refuse(ProblemError(HEAD_TOO_LARGE, detail))

    def _start_timer(self, seconds: float | None = None) -> None:
        self._timer = self.loop.call_later(seconds or self.settings.head_seconds, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        """Time is up: say so where a request had begun."""
        if self.taken:
            seconds = self.settings.head_seconds
            detail = f"the head of a request did not arrive within {seconds:g} seconds"
            self._refuse(ProblemError(TIMEOUT, detail))
        else:
            self.transport.close()

    def _refuse(self, problem: ProblemError) -> None:
        """Answer and close, if no other answer is under way."""
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.metrics.rejected.labels(problem.kind.slug).inc()
            response = problem.response
            fields = [*response.raw_headers, (b"connection", b"close")]
            lines = [b"%b: %b\r\n" % field for field in fields]
            head = [STATUS_LINE[response.status_code], *lines, SECURE, b"\r\n", response.body]
            self.transport.write(b"".join(map(bytes, head)))
        self.transport.close()
