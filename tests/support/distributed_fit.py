"""Fit a small table in one of several processes: `python -m tests.support.distributed_fit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.type_inference import infer_schema
from anomaly_vae.errors import AnomalyVAEError
from anomaly_vae.training.distributed import process_group
from anomaly_vae.training.fit import Fitted, Prepared, assist_fit, fit_bundle, prepare
from anomaly_vae.training.trainer import Epoch

ROWS, VALIDATION_ROWS, EPOCHS, INTERRUPTED_AFTER = 801, 101, 30, 10


def example(seed: int = 0) -> tuple[Config, Prepared]:
    """Return a configuration and encoded rows: numbers, categories and missing values."""
    random = np.random.default_rng(0)
    size = ROWS + VALIDATION_ROWS
    channel = random.choice(["web", "shop", "phone"], size, p=[0.6, 0.3, 0.1])
    amount = random.lognormal(np.where(channel == "web", 2.0, 3.0), 0.4)
    count = random.poisson(amount / 5).astype(float)
    count[::17] = np.nan
    table = pa.table({"amount": amount, "count": count, "channel": channel})
    content = {
        "name": "shared",
        "data": {"path": "rows.csv"},
        "training": {"epochs": EPOCHS, "batch_size": 64, "seed": seed},
    }
    config = validate_config(content)
    schema = infer_schema(table, config.data).schema
    rows = schema.from_arrow(table)
    parts = np.split(np.arange(size), [ROWS])
    return config, prepare(config, schema, *(rows.take(part) for part in parts))


def fit_example(seed: int = 0, checkpoint: Path | None = None, interrupt: bool = False) -> Fitted:
    """Fit the example, or raise KeyboardInterrupt in the middle of it."""

    def on_epoch(epoch: Epoch, planned: int) -> None:
        if interrupt and epoch.epoch == INTERRUPTED_AFTER:
            raise KeyboardInterrupt

    return fit_bundle(*example(seed), {"rows": ROWS}, on_epoch, checkpoint)


def main(checkpoint: Path | None, interrupt: bool) -> None:
    """Fit, with a checkpoint if it is given, then without; print both results as JSON lines."""
    with process_group() as group:
        for path in (checkpoint, None):
            if group.rank:
                assist_fit()
                continue
            manifest = (fitted := fit_example(0, path, interrupt)).bundle.manifest["training"]
            sys.stdout.write(json.dumps({**manifest, "digest": fitted.bundle.digest}) + "\n")


def fit_seeds(count: int) -> None:
    """Fit once for each seed; print the best ELBO on the validation rows of each."""
    with process_group() as group:
        for seed in range(count):
            if group.rank:
                assist_fit()
            else:
                sys.stdout.write(f"{fit_example(seed).history.best.validation_elbo}\n")


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["seeds"]:
            fit_seeds(int(sys.argv[2]))
            sys.exit()
        main(Path(sys.argv[1]) if sys.argv[1:] else None, sys.argv[2:] == ["interrupt"])
    except KeyboardInterrupt:
        sys.exit(130)
    except AnomalyVAEError as error:
        sys.exit(f"error: {error}")
