"""`python -m benchmarks.serving_peers empty|bare PORT`: servers that do nothing, as ours is run."""

from __future__ import annotations

import os
import sys
from typing import Any

import uvicorn

ANSWER = b"{}"
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and answer."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": ANSWER})


def empty() -> Any:
    """One endpoint of FastAPI that takes nothing and says nothing."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/score")
    async def score() -> dict[str, str]:
        return {}

    return app


def main(name: str, port: str) -> None:
    app = bare if name == "bare" else empty()
    lines = os.environ.get("ANOMALY_VAE_LOG_LEVEL") == "info"
    uvicorn.run(
        app, port=int(port), loop="uvloop", http="httptools", ws="none", lifespan="off",
        log_level="info" if lines else "warning", access_log=lines,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
