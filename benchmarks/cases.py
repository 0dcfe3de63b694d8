"""Measure what writing cases costs `POST /score`, with requests of one record each.

The same model serves with and without a case store (SQLite): once a record that is not flagged,
whose p-value alone is counted, and once a record that is flagged, so that every request makes a
case. The latter is the worst case: the thread that makes cases never rests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache

import numpy as np
import pandas as pd

from anomaly_vae.artifacts.bundle import load_bundle
from benchmarks.common import Ledger, Options, environment, markdown_table
from benchmarks.serving import (
    CLI,
    CLIENTS,
    KEYS,
    TRAINING_ROWS,
    RegisteredModels,
    Server,
    measure,
    rows,
    running,
)

ROUNDS, SHORT_ROUNDS = 5, 3
REQUESTS, SHORT_REQUESTS = 10_000, 1_000
"""Number of requests of a measurement."""
PRESET = "default"
OFF, ON = "without cases", "with cases"
COLUMNS = ("cpu_ms", "per_second", "median_ms", "p99_ms")
HEADINGS = ("CPU ms", "requests/s", "median ms", "p99 ms")


def bodies(models: RegisteredModels) -> dict[str, bytes]:
    """Return a request with a record that is not flagged, and one with a record that is."""
    records = json.loads(rows(TRAINING_ROWS).head(100).to_json(orient="records"))
    records.append({**records[0], "number_00": 1e3})
    detector = load_bundle(str(models.bundle(PRESET))).detector
    flags = detector.detect(detector.scorer.schema.from_records(records)).is_anomaly
    chosen = {"not flagged": int(np.argmin(flags)), "flagged": len(flags) - 1}
    assert flags[chosen["flagged"]]
    assert not flags[chosen["not flagged"]]
    return {kind: json.dumps({"records": [records[row]]}).encode() for kind, row in chosen.items()}


def servers(models: RegisteredModels) -> Iterator[Server]:
    """Yield the servers with and without a case store."""
    command = (*CLI, "serve", "--model", str(models.bundle(PRESET)), "--port", "{port}")
    folder = models.folder / "cases"
    folder.mkdir(exist_ok=True)
    for kind, body in bodies(models).items():
        yield Server(f"{kind}, {OFF}", command, "/score", body)
        store = f"sqlite:///{folder}/{kind.replace(' ', '-')}.db"
        settings = (
            ("ANOMALY_VAE_CASES", store),
            ("ANOMALY_VAE_CASES_SPOOL", str(folder / "spool")),
        )
        yield Server(f"{kind}, {ON}", command, "/score", body, settings=settings)


def run(options: Options) -> None:
    """Run the missing measurements, round by round, and write the table."""
    models = RegisteredModels((options.result_path("serving-models")).resolve())
    ledger = Ledger(options.result_path("cases.csv"), KEYS)
    count = SHORT_REQUESTS if options.short else REQUESTS
    rounds = range(SHORT_ROUNDS if options.short else ROUNDS)
    chosen = list(servers(models))
    todo = [
        (number, clients, server)
        for number in rounds
        for clients in CLIENTS
        for server in chosen
        if (server.name, clients, number) not in ledger
    ]
    with ExitStack() as stack:
        start = cache(lambda server: stack.enter_context(running(server, models)))
        for number, clients, server in todo:
            found = measure(start(server), clients, count)
            ledger.add((server.name, clients, number), found)
    text = f"{report(ledger.rows)}\n{environment()}"
    options.result_path("cases.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def report(rows: pd.DataFrame) -> str:
    """Tabulate medians over the rounds, and the ratio of CPU time with cases to that without."""
    medians = rows.groupby(["server", "clients"], sort=False)[list(COLUMNS)].median()
    lines = []
    for name, clients in medians.index:
        values = medians.loc[(name, clients)]
        ratio = ""
        if str(name).endswith(ON):
            pairs = rows[rows["clients"] == clients].set_index("round")
            on = pairs[pairs["server"] == name]["cpu_ms"]
            off = pairs[pairs["server"] == str(name).replace(ON, OFF)]["cpu_ms"]
            ratio = f"{(on / off).median():.2f}"
        cells = (f"{values[column]:.3g}" for column in COLUMNS)
        lines.append((str(name), str(clients), *cells, ratio))
    return markdown_table(("record", "clients", *HEADINGS, "CPU ÷ without"), lines)
