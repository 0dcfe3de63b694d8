"""Serve Google's storage API on this machine, from a process of its own.

The process is another one because pyarrow holds the lock of the interpreter while it waits.
Run by itself, this module serves an empty bucket and prints its port.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer

import pytest

from pipelines.datasets.reading import objects
from tests.support.object_stores import BUCKET


@contextmanager
def google_store() -> Iterator[subprocess.Popen[str]]:
    """Serve an empty bucket, which clients of this process and its children use."""
    command = [sys.executable, "-m", "tests.support.google_store"]
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        objects.file_system.cache_clear()
        try:
            yield process
        finally:
            process.kill()
            objects.file_system.cache_clear()


def serve() -> None:
    """Serve until the process ends; a connection may stay open while others are served."""
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    storage = Storage(use_memory_fs=True)
    storage.create_bucket(BUCKET, {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RequestHandler, storage))
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    serve()
