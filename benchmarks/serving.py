"""Measure the CPU time and latency of one-record scoring requests against other servers.

The table has 30 columns: 28 numbers, a flag and a category. One model with the preset ``fast`` and
one with the default preset are trained with the project's command line and registered in a separate
MLflow registry. The peers answer the same request: an empty POST endpoint of FastAPI and a bare
ASGI application, both under uvicorn with uvloop and httptools like our service, and
`mlflow models serve` with the registered ``fast`` model.

All servers run side by side with one worker process. Each round visits every server in turn, first
with one client and then with 32; every client sends its next request as soon as it has received a
response. A second table compares our service with the empty endpoint while both log every request;
request logging is off in the first table. A third table has the latency seen by one client while
another client sends requests of 10,000 records.

CPU-seconds cover all processes and threads of the server, as counted by the kernel's scheduler
(Linux only). Ratios are taken within a round. The time to readiness is from the start of the
process to its first response.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from benchmarks.common import Column, Ledger, Options, environment, free_port, markdown_table
from benchmarks.serving_client import LoadResult, send_requests

OURS_FAST, OURS = "ours, preset: fast", "ours"
EMPTY_FASTAPI, BARE_ASGI = "empty FastAPI endpoint", "bare ASGI"
MLFLOW_INPUTS, MLFLOW_SPLIT = "mlflow models serve, inputs", "mlflow models serve, dataframe_split"
LOGGED_SUFFIX = ", a line for each request"
BESIDE_SUFFIX = ", beside 10,000 records"
"""Suffixes of server names: every request is logged; another client sends large requests."""
LARGE_REQUEST_ROWS = 10_000
"""Number of records in a large request."""
CLIENTS = (1, 32)
"""Numbers of concurrent clients."""
ROUNDS, SHORT_ROUNDS = 7, 3
REQUESTS, SHORT_REQUESTS = 6000, 1000
"""Number of requests per measurement; slow servers get a fraction of them."""
WARM_UP_REQUESTS = 1000
"""Number of requests before a measurement, enough for batches of every size to occur."""
TRAINING_ROWS = 6000
"""Number of rows that the models are trained on."""
BACKGROUND_START_SECONDS = 3.0
"""Time for the background client to start sending, in seconds."""
START_TIMEOUT_SECONDS = 120.0
"""Maximum time from the start of a server to its first response, in seconds."""
PRESETS = {OURS_FAST: "fast", OURS: "default"}
"""Preset of each of our servers."""


# ---------------------------------------------------------------- the models


def rows(count: int) -> pd.DataFrame:
    """Simulate normal rows whose numeric columns depend on six latent factors."""
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(count, 6)) @ rng.normal(size=(6, 28))
    numbers = causes + 0.3 * rng.normal(size=causes.shape)
    table = pd.DataFrame(numbers, columns=[f"number_{i:02}" for i in range(28)])
    table["flag"] = rng.random(count) < 0.3
    table["channel"] = rng.choice(["chip", "online", "phone"], count, p=[0.6, 0.3, 0.1])
    return table


@dataclass(frozen=True)
class RegisteredModels:
    """A separate registry with one model per preset."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which commands use this registry."""
        uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}

    def bundle(self, preset: str) -> Path:
        """Return the bundle folder of a model; train and register the model if necessary."""
        bundle_path_file = self.folder / f"{preset}.path"
        if not bundle_path_file.exists():
            self._train(preset)
            bundle_path_file.write_text(self._fetch(preset), encoding="utf-8")
        return Path(bundle_path_file.read_text(encoding="utf-8"))

    def uri(self, preset: str) -> str:
        """Return the URI of a registered model; train and register it if necessary."""
        self.bundle(preset)
        return f"models:/wide-{preset}/1"

    def _train(self, preset: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows(TRAINING_ROWS).to_parquet(self.folder / "rows.parquet")
        config = {
            "kind": "tabular", "name": f"wide-{preset}", "preset": preset,
            "data": {"path": str(self.folder / "rows.parquet")},
        }  # fmt: skip
        path = self.folder / f"{preset}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        trained = json.loads(self._run("train", str(path)))
        self._run("calibrate", str(path), "--model", trained["model_uri"])

    def _fetch(self, preset: str) -> str:
        command = [sys.executable, "-m", "anomaly_vae.lifecycle.registry", "fetch"]
        command += [f"models:/wide-{preset}/1", "--to", str(self.folder / "cache")]
        return str(json.loads(self._call(command).splitlines()[-1])["path"])

    def _run(self, *arguments: str) -> str:
        return self._call([*CLI, *arguments])

    def _call(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, check=True, stdout=subprocess.PIPE
        )
        return done.stdout.decode()


CLI = (sys.executable, "-c", "from pipelines.cli import main; main()")


# ---------------------------------------------------------------- the servers


@dataclass(frozen=True)
class Server:
    """A server to measure, and the request that it receives."""

    name: str
    command: tuple[str, ...]
    """Command that starts the server; ``{port}`` is replaced with a free port."""
    path: str
    """Path of the request."""
    body: bytes
    """Body of the request."""
    request_share: float = 1.0
    """Fraction of the usual number of requests, below 1 for slow servers."""
    logs: bool = False
    """Whether the server logs every request."""
    background_body: bytes = b""
    """Body that another client sends continuously during the measurement; empty for none."""
    settings: tuple[tuple[str, str], ...] = ()
    """Further environment variables of the server."""


@dataclass
class RunningServer:
    """A server process that is ready to answer requests."""

    server: Server
    process: subprocess.Popen[bytes]
    port: int
    ready_seconds: float
    request: bytes = field(repr=False)

    def send(self, clients: int, count: int) -> LoadResult:
        """Send ``count`` requests from concurrent clients and time them."""
        with self._background_client():
            return send_requests("127.0.0.1", self.port, self.request, clients, count)

    @contextmanager
    def _background_client(self) -> Iterator[None]:
        """Run the background client, if the server has one, in a separate process."""
        if not self.server.background_body:
            yield
            return
        request = _http_request(self.server.path, self.server.background_body)
        arguments = "127.0.0.1", self.port, request, 1, 1_000_000
        client = get_context("spawn").Process(target=send_requests, args=arguments)
        client.start()
        time.sleep(BACKGROUND_START_SECONDS)
        try:
            yield
        finally:
            client.kill()
            client.join()

    def cpu_seconds(self) -> float:
        """Return the CPU time of all threads of the server since its start, in seconds."""
        return sum(
            int(path.read_text().split()[0])
            for pid in _session_processes(self.process.pid)
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
        ) / 1e9  # fmt: skip

    def resident_mb(self) -> float:
        """Return the resident memory of all processes of the server, in MB."""
        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for pid in _session_processes(self.process.pid)
        )
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def servers(models: RegisteredModels) -> Iterator[Server]:
    """Yield our servers and their peers, all with the same request."""
    records = json.loads(rows(LARGE_REQUEST_ROWS).to_json(orient="records"))
    record, large_body = records[0], json.dumps({"records": records}).encode()
    body = json.dumps({"records": [record]}).encode()
    for name, preset in PRESETS.items():
        command = (*CLI, "serve", "--model", str(models.bundle(preset)), "--port", "{port}")
        yield Server(name, command, "/score", body)
        yield Server(name + LOGGED_SUFFIX, command, "/score", body, logs=True)
        yield Server(name + BESIDE_SUFFIX, command, "/score", body, 0.2, background_body=large_body)
    for name, app in ((EMPTY_FASTAPI, "empty"), (BARE_ASGI, "bare")):
        command = (sys.executable, "-m", "benchmarks.serving_peers", app, "{port}")
        yield Server(name, command, "/score", body)
    yield Server(
        EMPTY_FASTAPI + LOGGED_SUFFIX, (*command[:3], "empty", "{port}"), "/score", body, logs=True
    )
    mlflow = (
        *(sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"),
        *("-m", models.uri("fast"), "--port", "{port}"),
    )
    inputs = {"inputs": {name: [value] for name, value in record.items()}}
    split = {"columns": list(record), "data": [list(record.values())]}
    yield Server(MLFLOW_INPUTS, mlflow, "/invocations", json.dumps(inputs).encode(), 0.1)
    split_body = json.dumps({"dataframe_split": split}).encode()
    yield Server(MLFLOW_SPLIT, mlflow, "/invocations", split_body, 0.05)


@contextmanager
def running(server: Server, models: RegisteredModels) -> Iterator[RunningServer]:
    """Start a server, wait for its first response, and terminate all its processes at the end."""
    port = free_port()
    command = [part.format(port=port) for part in server.command]
    environment = {**models.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {"ANOMALY_VAE_LOG_LEVEL": "info" if server.logs else "warning"}
    environment |= dict(server.settings)
    with (models.folder / "servers.log").open("ab") as log:
        start = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, cwd=models.folder, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            request = _http_request(server.path, server.body)
            _await_response(process, port, request, start + START_TIMEOUT_SECONDS)
            yield RunningServer(server, process, port, time.monotonic() - start, request)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _http_request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _await_response(
    process: subprocess.Popen[bytes], port: int, request: bytes, deadline: float
) -> None:
    while process.poll() is None and time.monotonic() < deadline:
        try:
            send_requests("127.0.0.1", port, request, 1, 1)
        except OSError:
            time.sleep(0.005)
        else:
            return
    sys.exit(f"{process.args}: no answer; see servers.log")


def _session_processes(leader: int) -> list[int]:
    """Return the ids of all processes in a session."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            pids.append(int(path.parent.name))
    return pids


# ---------------------------------------------------------------- the run

KEYS = ("server", "clients", "round")


def run(options: Options) -> None:
    """Run the missing measurements, round by round, and write the tables."""
    models = RegisteredModels((options.result_path("serving-models")).resolve())
    ledger = Ledger(options.result_path("serving.csv"), KEYS)
    wanted = [server for server in servers(models) if options.wants(server.name)]
    rounds = range(SHORT_ROUNDS if options.short else ROUNDS)
    count = SHORT_REQUESTS if options.short else REQUESTS
    plan = [
        (number, clients, server)
        for number in rounds
        for clients in CLIENTS
        for server in wanted
        if clients == 1 or not server.background_body
    ]
    todo = [
        (number, clients, server)
        for number, clients, server in plan
        if (server.name, clients, number) not in ledger
    ]
    with ExitStack() as stack:
        start = cache(lambda server: stack.enter_context(running(server, models)))
        for number, clients, server in todo:
            metrics = measure(
                start(server), clients, max(int(count * server.request_share), 3 * clients)
            )
            ledger.add((server.name, clients, number), metrics)
    text = f"{report(ledger.rows)}\n{environment()}"
    options.result_path("serving.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def measure(running: RunningServer, clients: int, count: int) -> dict[str, float]:
    """Measure the cost of ``count`` requests to the server and the latency that clients see."""
    running.send(clients, max(int(WARM_UP_REQUESTS * running.server.request_share), clients))
    before = running.cpu_seconds()
    result = running.send(clients, count)
    return {
        "cpu_ms": 1e3 * (running.cpu_seconds() - before) / count,
        "per_second": count / result.seconds,
        "median_ms": 1e3 * float(np.median(result.latencies)),
        "p99_ms": 1e3 * float(np.quantile(result.latencies, 0.99)),
        "ready_seconds": running.ready_seconds,
        "resident_mb": running.resident_mb(),
    }


def report(rows: pd.DataFrame) -> str:
    """Tabulate costs without and with request logging, and latencies beside large requests."""
    logged, beside = (rows["server"].str.endswith(kind) for kind in (LOGGED_SUFFIX, BESIDE_SUFFIX))
    parts = [_cost_table(rows[~logged & ~beside], EMPTY_FASTAPI)]
    if logged.any():
        parts.append(_cost_table(rows[logged], EMPTY_FASTAPI + LOGGED_SUFFIX))
    if beside.any():
        parts.append(_background_table(rows[beside]))
    return "\n".join(parts)


def _background_table(rows: pd.DataFrame) -> str:
    """Tabulate the latency seen by one client, as medians over the rounds."""
    medians = rows.groupby("server", sort=False)[["median_ms", "p99_ms", "per_second"]].median()
    headings = ("server", "median ms", "p99 ms", "requests/s")
    return markdown_table(
        headings,
        [(name, *(f"{value:.2f}" for value in values)) for name, *values in medians.itertuples()],
    )


def _cost_table(rows: pd.DataFrame, base: str) -> str:
    """Tabulate medians over the rounds, and of the ratios to the server ``base`` within a round."""
    headings = [f"CPU-s per 1,000, {_format_clients(c)}" for c in CLIENTS]
    headings += [f"÷ empty, {_format_clients(c)}" for c in CLIENTS]
    headings += ["requests/s, 32", "median ms, 1", "p99 ms, 1", "ready, s", "resident, MB"]
    lines = [
        (str(name), *_cost_cells(part, rows[rows["server"] == base]))
        for name, part in rows.groupby("server", sort=False)
    ]
    return markdown_table(("server", *headings), lines)


def _format_clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _cost_cells(rows: pd.DataFrame, base: pd.DataFrame) -> Iterator[str]:
    single, concurrent = (rows[rows["clients"] == count] for count in CLIENTS)
    for part in (single, concurrent):
        yield Column("", ".3f").summarize(part["cpu_ms"])
    for part in (single, concurrent):
        merged = part.merge(base, on=["clients", "round"], suffixes=("", "_base"))
        yield f"{(merged['cpu_ms'] / merged['cpu_ms_base']).median():.2f}"
    yield f"{concurrent['per_second'].median():.0f}"
    yield f"{single['median_ms'].median():.2f}"
    yield f"{single['p99_ms'].median():.2f}"
    yield f"{rows['ready_seconds'].median():.2f}"
    yield f"{single['resident_mb'].iloc[0]:.0f}"
