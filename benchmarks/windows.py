"""Replay a month of card transactions through `/score` and compare each window with batch columns.

A model of July has the windows of docs/windows.md. August is sent in time order, once
to an empty store and once to a store that was filled with June and July by `windows load`; labels
follow by `POST /events`. The batch columns are those of `add_windows`, which training and `score`
use, too. A second part measures what windows add to a request, with a million
entities in the store.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import validate_config
from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.features import WindowDefinition, WindowInputs
from anomaly_vae.features.offline import add_windows
from anomaly_vae.features.store import StoreOptions, open_store
from anomaly_vae.features.store.redis import RedisBackend
from anomaly_vae.features.store.sqlite import SqliteBackend
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import Options, environment
from pipelines.datasets.loading import load_dataset
from pipelines.registry.model_uri import open_model
from pipelines.windows import load_windows

TIME, LABEL, ID = "TX_DATETIME", "TX_FRAUD", "TRANSACTION_ID"
RAW = [ID, TIME, "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT"]
WINDOWS: dict[str, Any] = {
    "CUSTOMER_ID": {
        "over": ["1h", "1d", "7d", "30d"],
        "count": True,
        "of": {"TX_AMOUNT": ["sum", "mean", "max", "std"]},
        "distinct": ["TERMINAL_ID"],
        "since_last": True,
    },
    "TERMINAL_ID": {
        "over": ["1d", "7d", "30d"],
        "count": True,
        "risk": {"label": LABEL, "delay": "7d"},
    },
}
DEFINITION = WindowDefinition({n: EntityWindows.model_validate(w) for n, w in WINDOWS.items()})
DAY = 86_400_000_000
ROWS_TOGETHER = 200
"""Number of records in a request of the replay."""
SPLITS = {
    "train": ["2018-07-01", "2018-07-04"],
    "calibration": ["2018-07-04", "2018-07-05"],
    "test": ["2018-07-05", "2018-07-06"],
}
SHORT_ROWS = 2_000
"""Number of rows of August in the short form."""
ENTITIES, EVENTS_EACH, REQUESTS = 500_000, 20, 3_000
"""Number of entities of each kind in the full store, of events of each, and of timed requests."""


# ---------------------------------------------------------------- the model and the service


def batch_columns(rows: pd.DataFrame, history: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return rows with the windows that they have in files, after the rows of history."""
    found: pd.DataFrame = add_windows(rows, WINDOWS, time=TIME, id=ID, history=history)
    return found


def train(rows: pd.DataFrame, folder: Path) -> Path:
    """Train a model on rows of July, with windows that see June, and return its bundle."""
    path = folder / "july.parquet"
    rows[rows[TIME] < SPLITS["test"][1]].to_parquet(path)
    data = {
        "path": str(path), "label": LABEL, "id": ID, "time": TIME, "windows": WINDOWS,
        "features": ["TX_AMOUNT"], "splits": SPLITS,
    }  # fmt: skip
    config = validate_config({"name": "cards", "data": data, "training": {"epochs": 3}})
    table = load_dataset(config.data)
    parts = table.part(TRAIN), table.part(VALIDATION)
    fitted = fit_bundle(config, prepare(config, table.schema, *parts), table.summary())
    scores = fitted.bundle.scorer.score(table.part(CALIBRATION))
    bundle = fitted.bundle.calibrated(calibrate(scores, alpha=0.01), None)
    return bundle.save(folder / "bundle")


def without_windows(bundle: Path, folder: Path) -> Path:
    """Save the same model without the definition, so that clients send the columns."""
    loaded = load_bundle(bundle)
    data = {k: v for k, v in loaded.manifest["config"]["data"].items() if k != "windows"}
    config = {**loaded.manifest["config"], "data": data}
    plain = replace(loaded, manifest={**loaded.manifest, "config": config}, manifest_file=None)
    return plain.save(folder / "plain")


class Service(http.client.HTTPConnection):
    """A connection to a service, whose first process has the id ``pid``."""

    def __init__(self, host: str, port: int, pid: int) -> None:
        super().__init__(host, port, timeout=60)
        self.pid = pid

    def cpu_seconds(self) -> float:
        """Return the processor time that the first process has used."""
        fields = (
            Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def service(bundle: Path, url: str, workers: int = 1) -> Iterator[Service]:
    """Start a service and yield a connection to it."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--model", str(bundle)]
    command += ["--port", "0", "--workers", str(workers)]
    variables = {**os.environ, "ANOMALY_VAE_WINDOWS": url, "ANOMALY_VAE_LOG_LEVEL": "warning"}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = None
            while found is None:
                found = re.search(r"on http://([\d.]+):(\d+) ", process.stderr.readline())
            _wait_for(found[1], int(found[2]))
            yield Service(found[1], int(found[2]), process.pid)
        finally:
            process.terminate()


def _wait_for(host: str, port: int) -> None:
    """Wait until the service is ready."""
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError), closing(http.client.HTTPConnection(host, port)) as connection:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        assert time.monotonic() < deadline, "the service is not ready"
        time.sleep(0.1)


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
    """Send JSON and return the decoded answer."""
    content = json.dumps(body)
    connection.request("POST", path, content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    return answer


# ---------------------------------------------------------------- equality


def replay(connection: http.client.HTTPConnection, rows: pd.DataFrame) -> pd.DataFrame:
    """Send rows in time order, and the labels of each request after it; return the answers."""
    sent = rows[RAW].assign(**{TIME: rows[TIME].astype(str)}).to_dict("records")
    due = (rows[TIME] + pd.Timedelta(days=7)).astype(str).tolist()
    frauds, results = rows[LABEL].to_numpy(), list[dict[str, Any]]()
    for start in range(0, len(sent), ROWS_TOGETHER):
        part = slice(start, start + ROWS_TOGETHER)
        results += post(connection, "/score", {"records": sent[part]})["results"]
        labels = [
            {"id": record[ID], "label": "anomaly", "at": at}
            for record, at, fraud in zip(sent[part], due[part], frauds[part], strict=True)
            if fraud
        ]
        if labels:
            assert post(connection, "/events", {"labels": labels})["labels"]["unknown"] == 0
    found = pd.DataFrame([one["windows"] for one in results], dtype=float, index=rows.index)
    return found.assign(score=[one["score"] for one in results], id=[one["id"] for one in results])


def compare(found: pd.DataFrame, rows: pd.DataFrame, bundle: Path) -> dict[str, float]:
    """Compare answers with the batch columns of the same rows, and with their scores."""
    names = list(DEFINITION.names)
    ours, theirs = found[names].to_numpy(), rows[names].to_numpy(float)
    missing = int((np.isnan(ours) != np.isnan(theirs)).sum())
    size = np.maximum(np.abs(theirs), 1.0)
    exact = [i for i, f in enumerate(DEFINITION.features) if f.kind in ("count", "distinct", "max")]
    batch = load_bundle(bundle).scorer.schema.from_arrow(pa.Table.from_pandas(rows))
    scores = load_bundle(bundle).scorer.score(batch)
    return {
        "rows": len(rows),
        "rows lost": len(rows) - len(found),
        "windows missing on one side": missing,
        "largest relative difference of a window": float(np.nanmax(np.abs(ours - theirs) / size)),
        "counts, distinct and max that differ": float(np.nansum(ours[:, exact] != theirs[:, exact]))
        - float((np.isnan(ours[:, exact]) & np.isnan(theirs[:, exact])).sum()),
        "largest relative difference of a score": float(
            np.max(np.abs(found["score"] - scores) / np.abs(scores))
        ),
    }


# ---------------------------------------------------------------- cost


def fill(url: str, inputs: WindowInputs, now: int, entities: int) -> None:
    """Put entities with events of the last 30 days straight into a store, past its interface."""
    store = open_store(StoreOptions(url), inputs)
    rng = np.random.default_rng(0)
    for entity, history in store._histories.items():
        words = np.zeros((EVENTS_EACH, history.width), np.int64)
        words[:, 0] = np.sort(now - rng.integers(DAY, 30 * DAY, EVENTS_EACH))
        words[:, 1] = rng.integers(1, 1 << 62, EVENTS_EACH)
        words[:, 2:] = rng.integers(1 << 60, 1 << 61, (EVENTS_EACH, history.width - 2))
        if history.numbers:
            words[:, 2] = (rng.random(EVENTS_EACH) * 100).view(np.int64)
        packed, keys = words.tobytes(), partial(store._hasher.key, entity)
        _insert(store.backend, packed, history.width * 8, map(keys, map(str, range(entities))), now)


def _insert(backend: Any, packed: bytes, width: int, keys: Iterator[bytes], now: int) -> None:
    if isinstance(backend, RedisBackend):
        pipe = backend._client.pipeline(transaction=False)
        for number, key in enumerate(keys):
            pipe.set(b"anomaly-vae:windows:e:" + key, packed)
            if number % 20_000 == 19_999:
                pipe.execute()
        pipe.execute()
        return
    assert isinstance(backend, SqliteBackend)
    with backend._writing() as db:
        insert = "INSERT INTO entities (key, space, width, expires, events) VALUES (?,1,?,?,?)"
        db.executemany(insert, ((key, width, now + 60 * DAY, packed) for key in keys))
    backend._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Latency(NamedTuple):
    """Microseconds of requests with one record each, and processor time of the service for one."""

    median: float
    high: float
    """95th percentile."""
    cpu: float

    @classmethod
    def of(cls, connection: Service, records: Sequence[Any]) -> Latency:
        """Send the records, the first tenth of them to warm up."""
        out, cpu = list[float](), 0.0
        for number, record in enumerate(records):
            if number == len(records) // 10:
                out, cpu = [], connection.cpu_seconds()
            start = time.perf_counter()
            post(connection, "/score", {"records": [record]})
            out.append((time.perf_counter() - start) * 1e6)
        used = (connection.cpu_seconds() - cpu) * 1e6 / len(out)
        return cls(float(np.median(out)), float(np.quantile(out, 0.95)), used)

    def __str__(self) -> str:
        wall = f"median {self.median:.0f} us, 95th percentile {self.high:.0f} us"
        return f"{wall}, processor time {self.cpu:.0f} us"


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start Redis on loopback and yield its URL."""
    port = 16_379
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(1)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()


def cost(bundle: Path, plain: Path, rows: pd.DataFrame, folder: Path, short: bool) -> None:
    """Measure what windows add to a request with full stores, and print it."""
    entities, requests = (20_000, 300) if short else (ENTITIES, REQUESTS)
    inputs = WindowInputs.from_manifest(load_bundle(bundle).manifest)
    assert inputs is not None
    last = rows.iloc[-requests:].reset_index(drop=True)
    now = int(last[TIME].iloc[0].timestamp() * 1e6)
    draw = np.random.default_rng(1)
    drawn = last[RAW].assign(
        TX_DATETIME=last[TIME].astype(str),
        CUSTOMER_ID=draw.integers(0, entities, requests),
        TERMINAL_ID=draw.integers(0, entities, requests),
    )
    raw = drawn.to_dict("records")
    columns = last[["TX_AMOUNT", *DEFINITION.names]].to_dict("records")
    sent = [{n: None if v != v else v for n, v in record.items()} for record in columns]  # noqa: PLR0124
    with ExitStack() as stack:
        urls = {"SQLite": f"sqlite:///{folder / 'full.db'}"}
        if shutil.which("redis-server"):
            urls["Redis"] = stack.enter_context(redis_server(folder))
        with service(plain, urls["SQLite"]) as connection:
            base = Latency.of(connection, sent)
        print(f"columns sent, no store: {base}", flush=True)
        for name, url in urls.items():
            fill(url, inputs, now, entities)
            with service(bundle, url) as connection:
                found = Latency.of(connection, raw)
            print(
                f"{name}, {2 * entities:,} entities of {EVENTS_EACH} events: {found}; added "
                f"{found.median - base.median:.0f} us at the median, {found.cpu - base.cpu:.0f} us "
                f"of processor time; {_size(name, url, folder)}",
                flush=True,
            )


def _size(name: str, url: str, folder: Path) -> str:
    if name == "SQLite":
        return f"{(folder / 'full.db').stat().st_size / 1e6:.0f} MB on disk"
    backend = RedisBackend(url, 5)
    used: int = backend._client.info("memory")["used_memory"]
    return f"{used / 1e6:.0f} MB in memory"


# ---------------------------------------------------------------- the protocol


def run(options: Options) -> None:
    """Run both parts and print their figures."""
    files = [
        options.data_folder("fraud") / f"transactions-2018-0{month}.parquet" for month in (6, 7, 8)
    ]
    months = [pd.read_parquet(file, columns=[*RAW, LABEL]) for file in files]
    rows = pd.concat(months, ignore_index=True).sort_values(TIME, kind="stable", ignore_index=True)
    past, august = (part for _, part in rows.groupby(rows[TIME].dt.month == 8))
    past, august = past.reset_index(drop=True), august.reset_index(drop=True)
    if options.short:
        august = august[:SHORT_ROWS]
    print(environment(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = train(past, folder)
        if options.wants("cost"):
            plain = without_windows(bundle, folder)
            last = batch_columns(august[-REQUESTS:], pd.concat([past, august[:-REQUESTS]]))
            cost(bundle, plain, last, folder, options.short)
        if options.wants("filled"):
            equality("filled", bundle, batch_columns(august, past), files[:2], folder)
        if options.wants("empty"):
            equality("empty", bundle, batch_columns(august), [], folder)


def equality(
    name: str, bundle: Path, expected: pd.DataFrame, history: Sequence[Path], folder: Path
) -> None:
    """Replay rows to a store that was filled with history, and print how the answers compare."""
    file = folder / f"{name}.db"
    url = f"sqlite:///{file}"
    if history:
        start = time.perf_counter()
        paths = [str(path) for path in history]
        loaded = load_windows(open_model(str(bundle)), paths, StoreOptions(url))
        rate = loaded["rows"] / (time.perf_counter() - start)
        print(f"load: {rate:,.0f} rows/s, {file.stat().st_size / 1e6:.0f} MB, {loaded}", flush=True)
    with service(bundle, url, workers=2) as connection:
        start = time.perf_counter()
        found = replay(connection, expected)
        rate = len(found) / (time.perf_counter() - start)
    print(f"{name} store, {rate:,.0f} rows/s: {compare(found, expected, bundle)}", flush=True)
