"""Fits that several processes share: the ELBO over seeds, and what an epoch costs.

The processes are started on this machine with the variables that torchrun sets, one thread each.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np

from anomaly_vae.config import validate_config
from anomaly_vae.data.type_inference import infer_schema
from anomaly_vae.simulation.transactions import simulate_transactions
from anomaly_vae.training.distributed import process_group
from anomaly_vae.training.fit import assist_fit, fit_bundle, prepare
from benchmarks.common import Options, environment, markdown_table

SEEDS = 5
HEADINGS = (
    "model", "processes", "validation ELBO, nats", "CPU-s per epoch, all processes",
    "wall s per epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A model, and the rows and epochs of its fits."""

    name: str
    rows: int
    epochs: int
    hidden_dim: int | None = None
    batch_size: int = 512


SETTINGS = (
    Setting("default", 10_000, 12),
    Setting("`hidden_dim: 1024`", 4_000, 3, 1024, 1_024),
)


def run(options: Options) -> None:
    """Fit every model by one and by two processes, with the same seeds, and print a table."""
    settings = SETTINGS[:1] if options.short else SETTINGS
    lines = [
        _line(setting, processes, _fits(number, processes, options.seeds))
        for number, setting in enumerate(settings)
        for processes in (1, 2)
    ]
    print(f"{environment()}\n{markdown_table(HEADINGS, lines)}")


def _line(setting: Setting, processes: int, fits: list[list[dict[str, float]]]) -> list[str]:
    """Summarise the fits of each process, of which the first reports the ELBO."""
    elbo = np.array([fit["elbo"] for fit in fits[0]])
    cpu = np.sum([[fit["cpu"] for fit in each] for each in fits], axis=0) / setting.epochs
    wall = np.array([fit["wall"] for fit in fits[0]]) / setting.epochs
    return [
        setting.name,
        str(processes),
        f"{elbo.mean():.3f} ± {elbo.std(ddof=1):.3f}",
        f"{cpu.mean():.2f} ± {cpu.std(ddof=1):.2f}",
        f"{wall.mean():.2f} ± {wall.std(ddof=1):.2f}",
    ]


def _fits(setting: int, processes: int, seeds: int) -> list[list[dict[str, float]]]:
    """Return what each process measured of its fits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    started = [_start(setting, seeds, rank, processes, port) for rank in range(processes)]
    texts = [process.communicate()[0] for process in started]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def _start(setting: int, seeds: int, rank: int, size: int, port: str) -> subprocess.Popen[str]:
    variables = {
        "TORCHELASTIC_RUN_ID": "benchmark",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(size),
        "RANK": str(rank),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.distributed", str(setting), str(seeds)]
    return subprocess.Popen(command, env=os.environ | variables, stdout=-1, text=True)


def main(number: int, seeds: int) -> None:
    """Take part in the fits of a setting, one for each seed, and print a line for each."""
    with process_group() as group:
        for seed in range(seeds):
            wall, cpu = time.perf_counter(), time.process_time()
            elbo = assist_fit() if group.rank else _fit(SETTINGS[number], seed)
            found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            print(json.dumps({**found, "elbo": elbo}), flush=True)


def _fit(setting: Setting, seed: int) -> float:
    """Fit a model; return its best ELBO on the validation rows."""
    table = simulate_transactions(setting.rows, seed=0)
    model = {} if setting.hidden_dim is None else {"hidden_dim": setting.hidden_dim}
    config = validate_config({
        "name": "shared",
        "data": {"path": "rows.parquet", "label": "TX_FRAUD", "id": "TRANSACTION_ID"},
        "model": model,
        "training": {
            "epochs": setting.epochs, "batch_size": setting.batch_size, "seed": seed, "threads": 1,
        },
    })  # fmt: skip
    schema = infer_schema(table, config.data).schema
    rows = schema.from_arrow(table)
    split = np.random.default_rng(0).permutation(setting.rows)
    parts = np.split(split, [setting.rows * 4 // 5])
    prepared = prepare(config, schema, *(rows.take(part) for part in parts))
    return fit_bundle(config, prepared, {"rows": len(parts[0])}).history.best.validation_elbo


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
