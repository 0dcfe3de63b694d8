"""Run `anomaly-vae` in a separate process, or in this one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from anomaly_vae.client import Client
from pipelines import cli
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.registries import DATABASE


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

    def here(self, *arguments: object, codes: Collection[int] = (0,)) -> dict[str, Any]:
        """Run the command in this process, which does not import everything again.

        Otherwise the same as a call, except that one of several exit codes is expected.
        """
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(action="ignore"),  # as `cli.main` does
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            patch.chdir(self.folder)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.folder / DATABASE}")
            patch.setenv("XDG_CACHE_HOME", self.environment["XDG_CACHE_HOME"])
            patch.setattr("sys.argv", ["anomaly-vae", *map(str, arguments)])
            code = cli._exit_code()
        assert code in codes, err.getvalue()
        answer: dict[str, Any] = json.loads(out.getvalue())
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
