"""No request fails while what serves is replaced: 50,000 of them across 20 promotions.

A real registry (MLflow on SQLite, or an MLflow server in front of it), a real service and clients
on kept connections. The alias moves between two versions of one model; after each move the service
is told to look, and clients ask until the last version serves. An answer counts as right if its
status is 200 and its score is the one that the version which it names gives to that record.
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
from benchmarks.common import Options, environment, free_port, markdown
from pipelines.datasets.loading import load_dataset
from pipelines.demo.simulate import write_transactions

NAME = "fraud"
RECORDS = 256
CLIENTS = 8
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Load:
    """How much is asked, and how often the champion changes meanwhile."""

    requests: int = 50_000
    reloads: int = 20


@dataclass
class Tally:
    """What came back: seconds of each request, answers by version, and what was wrong."""

    seconds: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    mismatched: int = 0
    reloads: int = 0

    @property
    def answered(self) -> int:
        """All of them."""
        return self.versions.total() + self.failed.total()

    def has_done(self, load: Load) -> bool:
        """Whether everything was asked and every version came while there was something to ask."""
        return self.answered >= load.requests and self.reloads == load.reloads


def run(options: Options) -> None:
    """Ask a service while its champion changes, over SQLite and over an MLflow server."""
    load = Load(5_000, 4) if options.short else Load()
    lines = []
    for registry in ("SQLite", "MLflow server"):
        if options.wants(registry):
            tally = measure(load, registry == "MLflow server")
            lines.append(_line(registry, tally))
            print(*lines[-1], sep=" | ", flush=True)
    heads = ("registry", "requests", "reloads", "failed", "wrong version", "median ms", "p99.9 ms")
    result = options.result("reload.md")
    result.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(result) as whole:
        whole.write_text(f"{markdown(heads, lines)}\n{environment()}", encoding="utf-8")


def _line(registry: str, tally: Tally) -> tuple[str, ...]:
    median, late = np.quantile(tally.seconds, [0.5, 0.999]) * 1000
    counts = tally.answered, tally.reloads, tally.failed.total(), tally.mismatched
    return registry, *(f"{count:,}" for count in counts), f"{median:.2f}", f"{late:.1f}"


def measure(load: Load, server: bool) -> Tally:
    """One service over one registry, asked until it has answered everything."""
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-reload-") as place:
        folder = Path(place)
        with tracking(folder, server):
            bundles, records = make(folder)
            expected = {
                version: bundle.scorer.score(bundle.scorer.schema.from_records(records)).tolist()
                for version, bundle in bundles.items()
            }
            with service(folder) as address:
                return asyncio.run(ask(address, records, expected, load))


def make(folder: Path) -> tuple[dict[str, Bundle], list[dict[str, Any]]]:
    """Two registered versions of one model, the first of them champion, and records."""
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


async def ask(
    address: str, records: Sequence[Any], expected: Mapping[str, Sequence[float]], load: Load
) -> Tally:
    """Clients that ask without pause until all is done, and one that promotes meanwhile."""
    tally = Tally()
    host, port = address.removeprefix("http://").split(":")
    bodies = [json.dumps({"records": [record]}).encode() for record in records]
    numbers = takewhile(lambda _: not tally.has_done(load), count())
    clients = [_client(host, int(port), bodies, expected, numbers, tally) for _ in range(CLIENTS)]
    await asyncio.gather(_promote(address, load, tally), *clients)
    return tally


async def _client(
    host: str, port: int, bodies: Sequence[bytes], expected: Mapping[str, Sequence[float]],
    numbers: Iterator[int], tally: Tally,
) -> None:  # fmt: skip
    reader, writer = await asyncio.open_connection(host, port)
    for number in numbers:
        row = number % len(bodies)
        start = time.perf_counter()
        try:
            status, answer = await _post(reader, writer, host, bodies[row])
        except (OSError, EOFError, ValueError) as error:
            tally.failed[type(error).__name__] += 1
            reader, writer = await asyncio.open_connection(host, port)
            continue
        tally.seconds.append(time.perf_counter() - start)
        if status != 200:
            tally.failed[str(status)] += 1
            continue
        version, score = answer["model"]["version"], answer["results"][0]["score"]
        tally.versions[version] += 1
        tally.mismatched += not np.isclose(score, expected[version][row], rtol=TOLERANCE, atol=0)
    writer.close()


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, body: bytes
) -> tuple[int, Any]:
    head = f"POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answered = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = answered.partition("content-length:")[2].partition("\r\n")[0]
    return int(answered.split(" ", 2)[1]), json.loads(await reader.readexactly(int(length)))


async def _promote(address: str, load: Load, tally: Tally) -> None:
    """Move the alias to and fro, each time a share of the requests is answered."""
    for number in range(1, load.reloads + 1):
        while tally.answered < number * load.requests // (load.reloads + 1):
            await asyncio.sleep(0.005)
        version = str(1 + number % 2)
        await asyncio.to_thread(Registry().set_champion, NAME, version)
        answer = await asyncio.to_thread(_reload, address)
        (model,) = answer["models"]
        assert (model["outcome"], model["version"]) == ("swapped", version), model
        tally.reloads += 1


def _reload(address: str) -> Any:
    request = urllib.request.Request(f"{address}/-/reload", b"", method="POST")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


# ---------------------------------------------------------------- processes


@contextmanager
def tracking(folder: Path, server: bool) -> Iterator[None]:
    """MLflow's registry in this folder, for this process and its children."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri = f"sqlite:///{folder}/mlflow.db"
    Registry()  # makes the database
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
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """The service as `anomaly-vae serve` starts it; it ends in order."""
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
    command: Sequence[str], folder: Path, ready: str, settings: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **(settings or {})},
        )  # fmt: skip
        try:
            _wait_for(ready, process, folder / "log")
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
