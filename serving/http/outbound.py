"""Send requests to other servers: the issuer of tokens, and the receiver of webhooks."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import SplitResult


def send(
    url: SplitResult, method: str, body: str | bytes | None, headers: Mapping[str, str],
    seconds: float, max_bytes: int = 0,
) -> tuple[int, bytes]:  # fmt: skip
    """Send a request over a connection of its own; redirects are not followed.

    Args:
        url: an address that begins with http or https.
        method: GET or POST.
        body: the body; None for no body.
        headers: the headers, but for those that http.client adds.
        seconds: timeout of each step.
        max_bytes: number of bytes of the answer that are read at most.

    Returns:
        The status, and the beginning of the answer.

    Raises:
        OSError: the server cannot be reached.
        http.client.HTTPException: its answer is not HTTP.
    """
    connection = _connect(url, seconds)
    try:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request(method, target, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read(max_bytes) if max_bytes else b""
    finally:
        connection.close()


def _connect(url: SplitResult, seconds: float) -> HTTPConnection:
    host = url.hostname or ""
    if url.scheme == "https":
        context = ssl.create_default_context()
        return HTTPSConnection(host, url.port, timeout=seconds, context=context)
    return HTTPConnection(host, url.port, timeout=seconds)
