"""Find free ports, for processes that need their port number before they start."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_port() -> int:
    """Return a free TCP port on the loopback interface."""
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """Return different free TCP ports on the loopback interface."""
    with ExitStack() as sockets:
        taken = [
            sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in taken]
