"""Send one request repeatedly over persistent HTTP/1.1 connections and time the responses."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import uvloop

HEAD_END = b"\r\n\r\n"
"""End of the header section of a response."""


@dataclass
class LoadResult:
    """Timing of a series of requests."""

    seconds: float = 0.0
    """Time from the first request to the last response, in seconds."""
    latencies: list[float] = field(default_factory=list)
    """Time from each request to its response, in seconds."""


class ClientConnection(asyncio.Protocol):
    """A connection that sends requests one after the other until none remain.

    ``remaining`` is a counter in a list of one item, shared by all connections.
    """

    def __init__(self, request: bytes, remaining: list[int], result: LoadResult) -> None:
        self.request, self.remaining, self.result = request, remaining, result
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer, self.start = b"", 0.0

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self.transport = transport
        self.send_next()

    def send_next(self) -> None:
        """Send one more request, or close the connection if none remain."""
        if not self.remaining[0]:
            self.transport.close()
            return
        self.remaining[0] -= 1
        self.start = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Append received bytes; send the next request once the response is complete."""
        self.buffer += data
        head, end, body = self.buffer.partition(HEAD_END)
        if not end or len(body) < _length(head):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(f"{head!r}: {body!r}"))
            self.transport.close()
            return
        self.buffer = b""
        self.result.latencies.append(time.perf_counter() - self.start)
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Set the result of `done`: an error if the connection was lost before the end."""
        if self.done.done():
            return
        if exc or self.buffer or self.remaining[0]:
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))
        else:
            self.done.set_result(None)


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0])


def send_requests(host: str, port: int, request: bytes, clients: int, count: int) -> LoadResult:
    """Send ``count`` requests over ``clients`` connections, without a pause between requests.

    Raises:
        OSError: if the server refuses or closes the connection.
        RuntimeError: if a response has another status than 200.
    """
    return uvloop.run(_send_requests(host, port, request, clients, count))


async def _send_requests(
    host: str, port: int, request: bytes, clients: int, count: int
) -> LoadResult:
    result, remaining = LoadResult(), [count]
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    connections = [
        await loop.create_connection(
            lambda: ClientConnection(request, remaining, result), host, port
        )
        for _ in range(clients)
    ]
    await asyncio.gather(*(connection.done for _, connection in connections))
    result.seconds = time.perf_counter() - start
    return result
