"""Verify that no request fails while models are replaced: 50,000 requests across 20 promotions.

The protocol runs a real registry (MLflow on SQLite, or an MLflow server in front of it), a real
service, and clients on persistent connections. The champion alias moves back and forth between two
versions of one model. After each move the service is asked to reload, and the clients go on until
all requests are sent and the last version is served. A response is correct if its status is 200 and
its score is the one that the model version named in the response gives to that record.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import validate_config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.files import atomic_path
from anomaly_vae.lifecycle.registry import CHAMPION, Registry
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import Options, environment, free_port, markdown_table
from pipelines.datasets.loading import load_dataset
from pipelines.demo.simulate import write_transactions

NAME = "fraud"
RECORDS = 256
"""Number of different records that the clients send."""
CLIENTS = 8
TOLERANCE = 1e-6
"""Relative tolerance of a correct score."""


@dataclass(frozen=True)
class Workload:
    """Number of requests, and number of promotions while they are sent."""

    requests: int = 50_000
    reloads: int = 20


@dataclass
class ClientResults:
    """Responses that the clients received."""

    seconds: list[float] = field(default_factory=list)
    """Latency of each answered request, in seconds."""
    versions: Counter[str] = field(default_factory=Counter)
    """Number of responses by model version."""
    failed: Counter[str] = field(default_factory=Counter)
    """Number of failed requests by status or exception."""
    mismatched: int = 0
    """Number of responses whose score is not that of the version they name."""
    reloads: int = 0
    """Number of promotions that the service has followed."""

    @property
    def answered(self) -> int:
        """Number of requests that succeeded or failed."""
        return self.versions.total() + self.failed.total()

    def is_complete(self, workload: Workload) -> bool:
        """Return whether all requests were sent and all promotions were made."""
        return self.answered >= workload.requests and self.reloads == workload.reloads


def run(options: Options) -> None:
    """Run the workload over SQLite and over an MLflow server, and write the table."""
    workload = Workload(5_000, 4) if options.short else Workload()
    rows = []
    for registry in ("SQLite", "MLflow server"):
        if options.wants(registry):
            results = measure(workload, registry == "MLflow server")
            rows.append(_table_row(registry, results))
            print(*rows[-1], sep=" | ", flush=True)
    headings = (
        "registry",
        "requests",
        "reloads",
        "failed",
        "wrong version",
        "median ms",
        "p99.9 ms",
    )
    result = options.result_path("reload.md")
    result.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(result) as temporary:
        temporary.write_text(f"{markdown_table(headings, rows)}\n{environment()}", encoding="utf-8")


def _table_row(registry: str, results: ClientResults) -> tuple[str, ...]:
    median, slowest = np.quantile(results.seconds, [0.5, 0.999]) * 1000
    counts = results.answered, results.reloads, results.failed.total(), results.mismatched
    return registry, *(f"{count:,}" for count in counts), f"{median:.2f}", f"{slowest:.1f}"


def measure(workload: Workload, mlflow_server: bool) -> ClientResults:
    """Run the workload against one service and registry."""
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-reload-") as temporary:
        folder = Path(temporary)
        with mlflow_tracking(folder, mlflow_server):
            bundles, records = register_versions(folder)
            expected = {
                version: bundle.scorer.score(bundle.scorer.schema.from_records(records)).tolist()
                for version, bundle in bundles.items()
            }
            with service(folder) as address:
                return asyncio.run(send_requests(address, records, expected, workload))


def register_versions(folder: Path) -> tuple[dict[str, Bundle], list[dict[str, Any]]]:
    """Register two versions of a model, the first as champion; return their bundles and records."""
    write_transactions(folder / "data", 3_000, seed=0)
    config = validate_config(
        {
            "name": NAME,
            "data": {
                "path": str(folder / "data" / "transactions.parquet"),
                "label": "TX_FRAUD",
                "id": "TRANSACTION_ID",
                "time": "TX_DATETIME",
                "ignore": ["CUSTOMER_ID", "TERMINAL_ID", "TX_FRAUD_SCENARIO"],
            },
            "training": {"epochs": 1},
        }
    )
    dataset = load_dataset(config.data)
    prepared = prepare(config, dataset.schema, dataset.part(TRAIN), dataset.part(VALIDATION))
    registry, bundles = Registry(), {}
    for epochs in (1, 2):
        content = config.model_dump()
        content["training"]["epochs"] = epochs
        bundle = fit_bundle(validate_config(content), prepared, dataset.summary()).bundle
        scores = bundle.scorer.score(dataset.part(CALIBRATION))
        bundle = bundle.calibrated(calibrate(scores, alpha=0.05), None)
        with registry.run(NAME, "calibrate", {}) as recorded:
            version = registry.register(recorded, bundle, NAME, {})
        bundles[version.version] = bundle
    registry.set_champion(NAME, "1")
    rows = dataset.table.slice(0, RECORDS).to_pylist()
    return bundles, [{**row, "TX_DATETIME": row["TX_DATETIME"].isoformat()} for row in rows]


async def send_requests(
    address: str,
    records: Sequence[Any],
    expected: Mapping[str, Sequence[float]],
    workload: Workload,
) -> ClientResults:
    """Send requests from all clients and promote versions until the workload is complete."""
    results = ClientResults()
    host, port = address.removeprefix("http://").split(":")
    bodies = [json.dumps({"records": [record]}).encode() for record in records]
    numbers = takewhile(lambda _: not results.is_complete(workload), count())
    clients = [_client(host, int(port), bodies, expected, numbers, results) for _ in range(CLIENTS)]
    await asyncio.gather(_promote(address, workload, results), *clients)
    return results


async def _client(
    host: str, port: int, bodies: Sequence[bytes], expected: Mapping[str, Sequence[float]],
    numbers: Iterator[int], results: ClientResults,
) -> None:  # fmt: skip
    reader, writer = await asyncio.open_connection(host, port)
    for number in numbers:
        row = number % len(bodies)
        start = time.perf_counter()
        try:
            status, answer = await _post(reader, writer, host, bodies[row])
        except (OSError, EOFError, ValueError) as error:
            results.failed[type(error).__name__] += 1
            reader, writer = await asyncio.open_connection(host, port)
            continue
        results.seconds.append(time.perf_counter() - start)
        if status != 200:
            results.failed[str(status)] += 1
            continue
        version, score = answer["model"]["version"], answer["results"][0]["score"]
        results.versions[version] += 1
        results.mismatched += not np.isclose(score, expected[version][row], rtol=TOLERANCE, atol=0)
    writer.close()


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, body: bytes
) -> tuple[int, Any]:
    request = f"POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{request}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = head.partition("content-length:")[2].partition("\r\n")[0]
    return int(head.split(" ", 2)[1]), json.loads(await reader.readexactly(int(length)))


async def _promote(address: str, workload: Workload, results: ClientResults) -> None:
    """Promote the other version each time the next share of the requests is answered."""
    for number in range(1, workload.reloads + 1):
        while results.answered < number * workload.requests // (workload.reloads + 1):
            await asyncio.sleep(0.005)
        version = str(1 + number % 2)
        await asyncio.to_thread(Registry().set_champion, NAME, version)
        answer = await asyncio.to_thread(_reload, address)
        (model,) = answer["models"]
        assert (model["outcome"], model["version"]) == ("swapped", version), model
        results.reloads += 1


def _reload(address: str) -> Any:
    request = urllib.request.Request(f"{address}/-/reload", b"", method="POST")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


# ---------------------------------------------------------------- processes


@contextmanager
def mlflow_tracking(folder: Path, server: bool) -> Iterator[None]:
    """Use a registry in this folder in this process and its children."""
    previous_uri = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri = f"sqlite:///{folder}/mlflow.db"
    Registry()  # creates the database
    try:
        if not server:
            yield
            return
        port = str(free_port())
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port"]
        artifacts = ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
        with _process([*command, port, *artifacts], folder, f"http://127.0.0.1:{port}/health"):
            os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
            yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        if previous_uri is not None:
            os.environ["MLFLOW_TRACKING_URI"] = previous_uri


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """Run `anomaly-vae serve`, yield its address, and verify that it shuts down cleanly."""
    port = str(free_port())
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", port]
    command += ["--model", f"models:/{NAME}@{CHAMPION}"]
    address = f"http://127.0.0.1:{port}"
    settings = {"ANOMALY_VAE_CACHE_DIR": str(folder / "cache"), "ANOMALY_VAE_LOG_LEVEL": "warning"}
    with _process(command, folder, f"{address}/health/ready", settings) as process:
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "the service did not end in order"


@contextmanager
def _process(
    command: Sequence[str], folder: Path, ready_url: str, settings: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **(settings or {})},
        )  # fmt: skip
        try:
            _wait_for(ready_url, process, folder / "log")
            yield process
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text()[-2000:]) from None
            time.sleep(0.1)
