"""Run `anomaly-vae` in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anomaly_vae.client import Client
from tests.support.paths import ROOT
from tests.support.ports import free_port


class CommandLine:
    """The `anomaly-vae` command, run in a given folder without any MLflow or project variables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{
                k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "ANOMALY_VAE_"))
            },
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        """Run the command, check its exit code and return the JSON object that it prints."""
        process = self.start(*arguments)
        out, err = process.communicate()
        assert process.returncode == code, err
        assert "Traceback" not in err
        answer: dict[str, Any] = json.loads(out)
        return answer


@contextmanager
def server(line: CommandLine, model: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server and yield its address and process once it is ready; kill it at the end."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    process = line.start("serve", "--model", model, "--port", port)
    try:
        deadline = time.monotonic() + 120
        with Client(address) as client:
            while not client.ready():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline, "the server did not become ready"
                time.sleep(0.1)
        yield address, process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
