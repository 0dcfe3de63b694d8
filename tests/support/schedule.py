"""Make the folder in which the schedules of deploy/schedule run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from anomaly_vae.config import Config
from tests.support.paths import ROOT

SCHEDULE = ROOT / "deploy/schedule"


def write_config(config: Config) -> None:
    """Write payments.yaml into the working folder."""
    Path("payments.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))


def write_program(folder: Path) -> dict[str, str]:
    """Write ``bin/anomaly-vae``, which runs this checkout; return the environment it needs."""
    program = folder / "bin/anomaly-vae"
    program.parent.mkdir()
    variables = f'PYTHONPATH="{ROOT}" OMP_NUM_THREADS=1'
    program.write_text(f'#!/bin/sh\n{variables} exec {sys.executable} -m pipelines.cli "$@"\n')
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:/usr/local/bin:/usr/bin:/bin",
        "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
        "XDG_CACHE_HOME": str(folder / "cache"),
        "RETRY_SECONDS": "0",
    }


def shift_late_amounts(source: Path, target: Path) -> None:
    """Triple the amounts of the last fifth of the time, so that the threshold no longer fits."""
    table = pq.read_table(source)
    late = np.arange(len(table)) >= 0.8 * len(table)
    late &= table["TX_FRAUD"].to_numpy() == 0
    for index, name in enumerate(table.column_names):
        if "AMOUNT" in name:
            values = table[name].to_numpy()
            table = table.set_column(index, name, pa.array(np.where(late, 3 * values, values)))
    pq.write_table(table, target)
