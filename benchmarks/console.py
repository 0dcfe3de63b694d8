"""Measure what reviewers of the console cost scoring requests.

One service has a case store of 10,000 open cases. A client scores one record after another, in
turns alone, beside reviewers who open a page a second each, and beside reviewers who open pages
without a pause. Each opens the queue, then a case, and gives a verdict on it. Each round visits all
three in turn; ratios are taken within a round.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from anomaly_vae import TabularVAEDetector
from anomaly_vae.review import Case, CaseReason, CaseStore
from benchmarks.common import Ledger, Options, environment, free_port, markdown_table
from benchmarks.console_client import review
from benchmarks.serving_client import send_requests

CASES = 10_000
COLUMNS = 12
REVIEWERS = 3
PAUSES = {"alone": None, "beside 3 reviewers": 1.0, "beside 3 without a pause": 0.0}
"""Time between two pages of a reviewer, in seconds; None for no reviewers."""
ROUNDS, SHORT_ROUNDS = 12, 3
REQUESTS, SHORT_REQUESTS = 1_000, 200


def run(options: Options) -> None:
    """Measure, and print a table."""
    ledger = Ledger(options.out / "console.csv", ["case", "round"])
    rounds = SHORT_ROUNDS if options.short else ROUNDS
    requests = SHORT_REQUESTS if options.short else REQUESTS
    with TemporaryDirectory() as folder, service(Path(folder)) as port:
        send_requests("127.0.0.1", port, score_request(), 1, requests)
        for number in range(rounds):
            measure_round(ledger, port, requests, number)
    print(environment())
    print(report(ledger.rows))


def measure_round(ledger: Ledger, port: int, requests: int, number: int) -> None:
    """Measure each case, and its ratios to the first."""
    alone: dict[str, float] = {}
    for name, pause in PAUSES.items():
        figures = measure(port, requests, pause)
        alone = alone or figures
        ratios = {f"{key}_ratio": figures[key] / alone[key] for key in ("p50_ms", "p99_ms")}
        ledger.add((name, number), {**figures, **ratios})


def report(rows: pd.DataFrame) -> str:
    """Return the medians over the rounds as a table."""
    medians = rows.groupby("case", sort=False).median(numeric_only=True)
    headings = ["", "median, ms", "ratio", "99%, ms", "ratio", "pages a second"]
    keys = ("p50_ms", "p50_ms_ratio", "p99_ms", "p99_ms_ratio", "pages")
    lines = [[str(name), *(f"{row[key]:.2f}" for key in keys)] for name, row in medians.iterrows()]
    return markdown_table(headings, lines)


def measure(port: int, requests: int, pause: float | None) -> dict[str, float]:
    """Return the latencies of scoring beside reviewers, and the pages that they opened."""
    with reviewers(port, pause) as pages:
        start, before = time.perf_counter(), pages.value
        result = send_requests("127.0.0.1", port, score_request(), 1, requests)
        opened = (pages.value - before) / (time.perf_counter() - start)
    p50, p99 = np.quantile(result.latencies, (0.5, 0.99)) * 1000
    return {"p50_ms": float(p50), "p99_ms": float(p99), "pages": opened}


@contextmanager
def reviewers(port: int, pause: float | None) -> Iterator[object]:
    """Let reviewers open pages; yields the number of pages opened so far."""
    context = get_context("spawn")
    pages = context.Value("l", 0)
    count = 0 if pause is None else REVIEWERS
    processes = [
        context.Process(
            target=review, args=(port, pause, pages, range(n, CASES, REVIEWERS)), daemon=True
        )
        for n in range(count)
    ]
    for process in processes:
        process.start()
    while count and pages.value < count:
        time.sleep(0.05)
    yield pages
    for process in processes:
        process.kill()
        process.join()


# ---------------------------------------------------------------- the service


@contextmanager
def service(folder: Path) -> Iterator[int]:
    """Serve a model with a case store; yields the port."""
    values = pd.DataFrame(
        np.random.default_rng(0).normal(size=(3_000, COLUMNS)), columns=list("abcdefghijkl")
    )
    TabularVAEDetector(epochs=3, random_state=0).fit(values).save(folder / "bundle")
    fill(f"sqlite:///{folder}/cases.db")
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", str(port)]
    variables = {
        "ANOMALY_VAE_CASES": f"sqlite:///{folder}/cases.db",
        "ANOMALY_VAE_LOG_LEVEL": "error",
        "XDG_STATE_HOME": str(folder),
    }
    process = subprocess.Popen(
        [*command, "--model", f"model={folder}/bundle"], env={**os.environ, **variables}
    )
    try:
        wait(port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait(port: int) -> None:
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the service did not start")


def fill(address: str) -> None:
    reasons = [CaseReason(name, 5.0, 9.0, 0.1, f"{name} 9, usually -1.6 to 1.6") for name in "abc"]
    with CaseStore(address) as store:
        store.add(
            [
                Case.of(
                    model="model", row=number, score=90.0, p_value=(1 + number) / 1e6, alpha=0.05,
                    threshold=30.0, entity_column="card", entity=number % 97, at=1.7e9 + number,
                    fields=dict.fromkeys("abcdefghijkl", 1.5), reasons=reasons,
                )
                for number in range(CASES)
            ]
        )  # fmt: skip


def score_request() -> bytes:
    """Return a request with one usual record."""
    record = dict.fromkeys("abcdefghijkl", 0.1)
    body = json.dumps({"records": [record]}).encode()
    head = "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
