"""A client that asks the same again and again over connections that stay open (HTTP/1.1)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import uvloop

HEAD_END = b"\r\n\r\n"


@dataclass
class Load:
    """What was measured: seconds from start to end, and of each request."""

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)


class Asker(asyncio.Protocol):
    """One connection; asks while there is something left to ask."""

    def __init__(self, request: bytes, left: list[int], found: Load) -> None:
        self.request, self.left, self.found = request, left, found
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer, self.start = b"", 0.0

    def connection_made(self, transport: Any) -> None:
        """Ask at once."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send one more request, or hang up."""
        if not self.left[0]:
            self.transport.close()
            return
        self.left[0] -= 1
        self.start = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        self.buffer += data
        head, end, body = self.buffer.partition(HEAD_END)
        if not end or len(body) < _length(head):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(f"{head!r}: {body!r}"))
            self.transport.close()
            return
        self.buffer = b""
        self.found.waits.append(time.perf_counter() - self.start)
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say how it ended."""
        if self.done.done():
            return
        if exc or self.buffer or self.left[0]:
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))
        else:
            self.done.set_result(None)


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0])


def load(host: str, port: int, request: bytes, clients: int, count: int) -> Load:
    """Send ``count`` requests over so many connections, each asking as soon as it is answered.

    Raises:
        OSError: nobody listens, or the connection was cut.
        RuntimeError: an answer that is not 200.
    """
    return uvloop.run(_load(host, port, request, clients, count))


async def _load(host: str, port: int, request: bytes, clients: int, count: int) -> Load:
    found, left = Load(), [count]
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    made = [
        await loop.create_connection(lambda: Asker(request, left, found), host, port)
        for _ in range(clients)
    ]
    await asyncio.gather(*(asker.done for _, asker in made))
    found.seconds = time.perf_counter() - start
    return found
