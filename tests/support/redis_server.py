"""Run a Redis server for tests."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.support.ports import free_port

PASSWORD = "pass-of-redis"  # of a server on loopback that ends with the test


@contextmanager
def redis_server(folder: Path, port: int | None = None) -> Iterator[str]:
    """Start a server on a free port, or on a given one, and yield its URL."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("needs redis-server or valkey-server")
    port = port or free_port()
    options = ("--port", port, "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", "")
    command = [binary, *map(str, options)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        try:
            _wait_for(url)
            yield url
        finally:
            process.kill()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 20
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.02)
            else:
                return
