"""Serving: what one request of one record costs the server, against what people would use instead.

A table of 30 columns (28 numbers, a flag, a category), a model of the preset ``fast`` and one of
the default, both made by the project's own commands and registered in an MLflow of their own. The
peers answer the same request: an empty POST endpoint of FastAPI and a bare ASGI application, both
under uvicorn with uvloop and httptools like ours, and `mlflow models serve` of the registered fast
model. All servers run side by side with one worker; rounds go over all of them in turn, with one
client that asks again as soon as it is answered, and with 32. A second table has ours and the
empty endpoint each writing a line for every request, which the first leaves out. A third has what
one client waits while another sends 10,000 records in each request.

CPU-seconds are of the server's processes and threads alone, from the kernel's scheduler (Linux);
ratios are taken within a round. Ready is from the start of the process to the first answer.
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

from benchmarks.common import Figure, Ledger, Options, environment, free_port, markdown
from benchmarks.serving_client import Load, load

FAST, DEFAULT = "ours, preset: fast", "ours"
EMPTY, BARE = "empty FastAPI endpoint", "bare ASGI"
INPUTS, SPLIT = "mlflow models serve, inputs", "mlflow models serve, dataframe_split"
LOGGED = ", a line for each request"
BESIDE = ", beside 10,000 records"
CROWD = 10_000
CLIENTS = (1, 32)
ROUNDS, SHORT_ROUNDS = 7, 3
REQUESTS, SHORT_REQUESTS = 6000, 1000
"""Of a measurement; slow servers get a share of them."""
WARM = 1000
"""Requests before those of a measurement: every size of batch has been seen by then."""
ROWS = 6000
CROWD_SECONDS = 3.0
"""Until it asks."""
PATIENCE = 120.0
"""Seconds that a server may take to answer first."""
PRESETS = {FAST: "fast", DEFAULT: "default"}


# ---------------------------------------------------------------- the models


def rows(count: int) -> pd.DataFrame:
    """Normal rows with a few latent causes, as the columns of a business have."""
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(count, 6)) @ rng.normal(size=(6, 28))
    numbers = causes + 0.3 * rng.normal(size=causes.shape)
    table = pd.DataFrame(numbers, columns=[f"number_{i:02}" for i in range(28)])
    table["flag"] = rng.random(count) < 0.3
    table["channel"] = rng.choice(["chip", "online", "phone"], count, p=[0.6, 0.3, 0.1])
    return table


@dataclass(frozen=True)
class Models:
    """A registry of its own, and the bundle folder of each preset."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the commands need to find the registry."""
        uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}

    def bundle(self, preset: str) -> Path:
        """The bundle folder of a registered model, made where there is none."""
        place = self.folder / f"{preset}.path"
        if not place.exists():
            self._make(preset)
            place.write_text(self._fetch(preset), encoding="utf-8")
        return Path(place.read_text(encoding="utf-8"))

    def uri(self, preset: str) -> str:
        """The registered model."""
        self.bundle(preset)
        return f"models:/wide-{preset}/1"

    def _make(self, preset: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows(ROWS).to_parquet(self.folder / "rows.parquet")
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
        return self._call([*PROGRAM, *arguments])

    def _call(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, check=True, stdout=subprocess.PIPE
        )
        return done.stdout.decode()


PROGRAM = (sys.executable, "-c", "from pipelines.cli import main; main()")


# ---------------------------------------------------------------- the servers


@dataclass(frozen=True)
class Server:
    """How to start it (``{port}`` is filled in), what to ask it, and its share of the requests."""

    name: str
    command: tuple[str, ...]
    path: str
    body: bytes
    share: float = 1.0
    logs: bool = False
    crowd: bytes = b""
    """what another client sends all the while"""


@dataclass
class Running:
    """A server that answers."""

    server: Server
    process: subprocess.Popen[bytes]
    port: int
    ready_seconds: float
    request: bytes = field(repr=False)

    def ask(self, clients: int, count: int) -> Load:
        """So many requests of so many clients."""
        with self._crowded():
            return load("127.0.0.1", self.port, self.request, clients, count)

    @contextmanager
    def _crowded(self) -> Iterator[None]:
        """Another client that asks as well, from a process of its own."""
        if not self.server.crowd:
            yield
            return
        request = _http(self.server.path, self.server.crowd)
        endless = "127.0.0.1", self.port, request, 1, 1_000_000
        other = get_context("spawn").Process(target=load, args=endless)
        other.start()
        time.sleep(CROWD_SECONDS)
        try:
            yield
        finally:
            other.kill()
            other.join()

    def cpu_seconds(self) -> float:
        """What all its threads have taken so far."""
        return sum(
            int(path.read_text().split()[0])
            for pid in _session(self.process.pid)
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
        ) / 1e9  # fmt: skip

    def resident_mb(self) -> float:
        """Resident memory of all its processes."""
        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for pid in _session(self.process.pid)
        )
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def servers(models: Models) -> Iterator[Server]:
    """Ours and its peers, all asked the same."""
    records = json.loads(rows(CROWD).to_json(orient="records"))
    record, crowd = records[0], json.dumps({"records": records}).encode()
    ask = json.dumps({"records": [record]}).encode()
    for name, preset in PRESETS.items():
        command = (*PROGRAM, "serve", "--model", str(models.bundle(preset)), "--port", "{port}")
        yield Server(name, command, "/score", ask)
        yield Server(name + LOGGED, command, "/score", ask, logs=True)
        yield Server(name + BESIDE, command, "/score", ask, 0.2, crowd=crowd)
    for name, app in ((EMPTY, "empty"), (BARE, "bare")):
        command = (sys.executable, "-m", "benchmarks.serving_peers", app, "{port}")
        yield Server(name, command, "/score", ask)
    yield Server(EMPTY + LOGGED, (*command[:3], "empty", "{port}"), "/score", ask, logs=True)
    mlflow = (
        *(sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"),
        *("-m", models.uri("fast"), "--port", "{port}"),
    )
    inputs = {"inputs": {name: [value] for name, value in record.items()}}
    split = {"columns": list(record), "data": [list(record.values())]}
    yield Server(INPUTS, mlflow, "/invocations", json.dumps(inputs).encode(), 0.1)
    body = json.dumps({"dataframe_split": split}).encode()
    yield Server(SPLIT, mlflow, "/invocations", body, 0.05)


@contextmanager
def running(server: Server, models: Models) -> Iterator[Running]:
    """Start a server and wait for its first answer; end it with its whole session."""
    port = free_port()
    command = [part.format(port=port) for part in server.command]
    environment = {**models.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {"ANOMALY_VAE_LOG_LEVEL": "info" if server.logs else "warning"}
    with (models.folder / "servers.log").open("ab") as log:
        start = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, cwd=models.folder, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            request = _http(server.path, server.body)
            _await_answer(process, port, request, start + PATIENCE)
            yield Running(server, process, port, time.monotonic() - start, request)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _http(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _await_answer(
    process: subprocess.Popen[bytes], port: int, request: bytes, until: float
) -> None:
    while process.poll() is None and time.monotonic() < until:
        try:
            load("127.0.0.1", port, request, 1, 1)
        except OSError:
            time.sleep(0.005)
        else:
            return
    sys.exit(f"{process.args}: no answer; see servers.log")


def _session(leader: int) -> list[int]:
    """All processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            found.append(int(path.parent.name))
    return found


# ---------------------------------------------------------------- the run

KEYS = ("server", "clients", "round")


def run(options: Options) -> None:
    """Measure what is not yet measured, round by round; write the tables."""
    models = Models((options.result("serving-models")).resolve())
    found = Ledger(options.result("serving.csv"), KEYS)
    wanted = [server for server in servers(models) if options.wants(server.name)]
    rounds = range(SHORT_ROUNDS if options.short else ROUNDS)
    count = SHORT_REQUESTS if options.short else REQUESTS
    plan = [(r, c, s) for r in rounds for c in CLIENTS for s in wanted if c == 1 or not s.crowd]
    todo = [(r, c, s) for r, c, s in plan if (s.name, c, r) not in found]
    with ExitStack() as stack:
        start = cache(lambda server: stack.enter_context(running(server, models)))
        for number, clients, server in todo:
            figures = measure(start(server), clients, max(int(count * server.share), 3 * clients))
            found.add((server.name, clients, number), figures)
    text = f"{report(found.rows)}\n{environment()}"
    options.result("serving.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def measure(running: Running, clients: int, count: int) -> dict[str, float]:
    """What so many requests cost the server, and how long the clients waited."""
    running.ask(clients, max(int(WARM * running.server.share), clients))
    before = running.cpu_seconds()
    found = running.ask(clients, count)
    return {
        "cpu_ms": 1e3 * (running.cpu_seconds() - before) / count,
        "per_second": count / found.seconds,
        "median_ms": 1e3 * float(np.median(found.waits)),
        "p99_ms": 1e3 * float(np.quantile(found.waits, 0.99)),
        "ready_seconds": running.ready_seconds,
        "resident_mb": running.resident_mb(),
    }


def report(rows: pd.DataFrame) -> str:
    """Without lines for requests, with them, and beside large requests."""
    logged, beside = (rows["server"].str.endswith(kind) for kind in (LOGGED, BESIDE))
    parts = [_table(rows[~logged & ~beside], EMPTY)]
    if logged.any():
        parts.append(_table(rows[logged], EMPTY + LOGGED))
    if beside.any():
        parts.append(_waits(rows[beside]))
    return "\n".join(parts)


def _waits(rows: pd.DataFrame) -> str:
    """What one client waits, in the median round."""
    kept = rows.groupby("server", sort=False)[["median_ms", "p99_ms", "per_second"]].median()
    heads = ("server", "median ms", "p99 ms", "requests/s")
    return markdown(
        heads, [(name, *(f"{v:.2f}" for v in line)) for name, *line in kept.itertuples()]
    )


def _table(rows: pd.DataFrame, base: str) -> str:
    """Medians over the rounds; ratios to the base within each."""
    heads = [f"CPU-s per 1,000, {_clients(c)}" for c in CLIENTS]
    heads += [f"÷ empty, {_clients(c)}" for c in CLIENTS]
    heads += ["requests/s, 32", "median ms, 1", "p99 ms, 1", "ready, s", "resident, MB"]
    lines = [
        (str(name), *_line(part, rows[rows["server"] == base]))
        for name, part in rows.groupby("server", sort=False)
    ]
    return markdown(("server", *heads), lines)


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _line(rows: pd.DataFrame, base: pd.DataFrame) -> Iterator[str]:
    one, many = (rows[rows["clients"] == count] for count in CLIENTS)
    for part in (one, many):
        yield Figure("", ".3f").over_seeds(part["cpu_ms"])
    for part in (one, many):
        merged = part.merge(base, on=["clients", "round"], suffixes=("", "_base"))
        yield f"{(merged['cpu_ms'] / merged['cpu_ms_base']).median():.2f}"
    yield f"{many['per_second'].median():.0f}"
    yield f"{one['median_ms'].median():.2f}"
    yield f"{one['p99_ms'].median():.2f}"
    yield f"{rows['ready_seconds'].median():.2f}"
    yield f"{one['resident_mb'].iloc[0]:.0f}"
