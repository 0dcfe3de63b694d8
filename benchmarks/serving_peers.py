"""Serve an endpoint that does nothing, under uvicorn with the settings of the scoring service.

Usage: `python -m benchmarks.serving_peers empty|bare PORT`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import uvicorn

BODY = b"{}"
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Handle a request as a bare ASGI application: read its body and respond with `BODY`."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})


def empty() -> Any:
    """Build a FastAPI application with one endpoint that ignores its input."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/score")
    async def score() -> dict[str, str]:
        return {}

    return app


def main(name: str, port: str) -> None:
    """Run the server ``name`` on a port until it is stopped."""
    app = bare if name == "bare" else empty()
    access_log = os.environ.get("ANOMALY_VAE_LOG_LEVEL") == "info"
    uvicorn.run(
        app, port=int(port), loop="uvloop", http="httptools", ws="none", lifespan="off",
        log_level="info" if access_log else "warning", access_log=access_log,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
