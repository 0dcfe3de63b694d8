"""The flows for Prefect: a real server runs their deployments, with a real registry and data."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from anomaly_vae.config import Config
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.registries import changed, migrated, place
from tests.support.schedule import SCHEDULE, shift_late_amounts, write_config, write_program

__all__ = ["migrated", "place"]

BIN = ROOT / ".venv-schedule/bin"
FLOWS = SCHEDULE / "prefect_flows.py"
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
SECONDS = 240
"""Longest time that a flow or the server may take, in seconds."""
BUSY = 503
"""Status of Prefect's server while its SQLite database is locked."""


class Prefect:
    """A server of Prefect and the schedules that it runs."""

    def __init__(self, api: str) -> None:
        self.client = httpx2.Client(base_url=api, timeout=30)

    def post(self, path: str, **content: Any) -> Any:
        deadline = time.monotonic() + SECONDS
        while (answer := self.client.post(path, json=content)).status_code == BUSY:
            assert time.monotonic() < deadline, answer.text
            time.sleep(1)
        answer.raise_for_status()
        return answer.json()

    def deployments(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.post("/deployments/filter")}

    def start(self, deployment: str, **parameters: str) -> str:
        """Start a flow as its schedule does, and return its id."""
        place = self.deployments()[deployment]["id"]
        path = f"/deployments/{place}/create_flow_run"
        content = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        started = self.post(path, **content, idempotency_key=uuid.uuid4().hex)
        return str(started["id"])

    def state(self, flow: str) -> dict[str, Any]:
        (run,) = self.post("/flow_runs/filter", flow_runs={"id": {"any_": [flow]}})
        return dict(run["state"])

    def wait(self, flow: str, states: set[str] = FINAL) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while (state := self.state(flow))["type"] not in states:
            assert time.monotonic() < deadline, state
            time.sleep(0.5)
        return state

    def tries(self, flow: str) -> int:
        """Return how often a flow ran the program."""
        (task,) = self.post("/task_runs/filter", flow_runs={"id": {"any_": [flow]}})
        return int(task["run_count"])


@contextmanager
def running(*command: object, log: Path, env: dict[str, str]) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)), env=env, stdout=output, stderr=output, process_group=0
        )
        try:
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture
def prefect(place: Path, config: Config) -> Iterator[Prefect]:
    """A server that has both deployments, whose flows run in a folder with payments.yaml."""
    if not (BIN / "prefect").exists():
        pytest.skip("needs Prefect in an environment of its own: run make test-schedule")
    write_config(changed(config, name="payments", calibration__alpha=0.05))
    port = free_port()
    environment = write_program(place) | {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(place / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    server = (BIN / "prefect", "server", "start", "--port", port, "--no-ui")
    with running(*server, log=place / "server.log", env=environment):
        prefect = Prefect(environment["PREFECT_API_URL"])
        until(lambda: prefect.client.get("/health").is_success)
        with running(BIN / "python", FLOWS, log=place / "flows.log", env=environment):
            until(lambda: len(prefect.deployments()) == 2)
            yield prefect
        prefect.client.close()


def until(condition: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx2.TransportError):
            if condition():
                return
        time.sleep(0.5)
    raise AssertionError("Prefect did not start")


@pytest.mark.slow
def test_deployments_retrain_score_refuse_retry_and_never_overlap(
    prefect: Prefect, place: Path, transactions: Path, config: Config
) -> None:
    schedules = {
        name: deployment["schedules"][0]["schedule"]["cron"]
        for name, deployment in prefect.deployments().items()
    }
    assert schedules == {"weekly": "17 3 * * 1", "nightly": "23 5 * * *"}

    first = prefect.start("weekly")
    prefect.wait(first, {"RUNNING"})
    second = prefect.start("weekly")
    assert prefect.wait(second)["type"] == "CANCELLED", "the first still runs"
    assert prefect.wait(first)["name"] == "Completed"

    (place / "incoming").mkdir()
    shutil.copy(transactions, place / "incoming")
    assert prefect.wait(prefect.start("nightly"))["name"] == "Completed"
    (night,) = (place / "scores").iterdir()
    assert (night / "summary.json").exists()

    shift_late_amounts(transactions, place / "shifted.parquet")
    write_config(changed(config, name="other", data__path="shifted.parquet"))
    refused = prefect.start("weekly")
    state = prefect.wait(refused)
    assert (state["type"], state["name"]) == ("COMPLETED", "Refused")
    assert state["message"] == "version 1 was refused; the champion stays"
    assert prefect.tries(refused) == 1
    (artifact,) = prefect.post(
        "/artifacts/filter", artifacts={"key": {"any_": ["refused-promotion"]}}
    )
    assert "false positive rate" in artifact["data"]

    failed = prefect.start("nightly", input_path="gone")
    state = prefect.wait(failed)
    assert state["type"] == "FAILED"
    assert "exit code 1: error: 'gone'" in state["message"]
    assert prefect.tries(failed) == 3


def test_the_flows_name_commands_that_exist() -> None:
    tree = ast.parse(FLOWS.read_text(encoding="utf-8"))
    calls = [
        node.args[0].value  # type: ignore[attr-defined]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "anomaly_vae"
    ]
    assert calls == ["run", "score"]


def test_prefect_is_pinned_and_no_dependency_of_the_project() -> None:
    pins = (SCHEDULE / "requirements.txt").read_text(encoding="utf-8")
    assert re.findall(r"^(\w+)==[\d.]+$", pins, re.MULTILINE) == ["prefect"]
    assert "prefect" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
