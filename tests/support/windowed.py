"""Provide a model with entity windows, and the records of a stream of events."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import validate_config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.features.inputs import Event
from anomaly_vae.training.fit import fit_bundle, prepare
from pipelines.datasets.loading import load_dataset
from serving.models.store import ServedModel
from serving.scoring.loading import load_model
from tests.support.window_streams import INPUTS, WINDOWS, stream

NAMES = INPUTS.definition.names
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def record_of(event: Event) -> dict[str, Any]:
    """Return an event as the record that a client sends, without its label."""
    assert event.time is not None
    moment = EPOCH + dt.timedelta(microseconds=event.time)
    amount = event.numbers["TX_AMOUNT"]
    return {
        "TRANSACTION_ID": event.id and int(event.id),
        "TX_DATETIME": moment.replace(tzinfo=None).isoformat(),
        "CUSTOMER_ID": event.keys["CUSTOMER_ID"],
        "TERMINAL_ID": event.keys["TERMINAL_ID"],
        "TX_AMOUNT": None if np.isnan(amount) else amount,
    }


def write_training_table(path: Path, events: Sequence[Event]) -> Path:
    """Write events with their labels."""
    rows: list[Mapping[str, Any]] = [
        record_of(event) | {"TX_FRAUD": int(bool(event.anomalous))} for event in events
    ]
    table = pa.Table.from_pylist(rows)
    times = pa.compute.cast(table["TX_DATETIME"], pa.timestamp("us"))
    index = table.schema.get_field_index("TX_DATETIME")
    pq.write_table(table.set_column(index, "TX_DATETIME", times), path)
    return path


@pytest.fixture(scope="session")
def windowed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with entity windows."""
    folder = tmp_path_factory.mktemp("windowed")
    path = write_training_table(folder / "rows.parquet", stream(500, seed=20))
    windows = {name: w.model_dump(exclude_none=True) for name, w in WINDOWS.items()}
    config = validate_config(
        {
            "name": "cards",
            "data": {
                "path": str(path),
                "label": "TX_FRAUD",
                "id": "TRANSACTION_ID",
                "time": "TX_DATETIME",
                "features": ["TX_AMOUNT"],
                "windows": windows,
            },
            "training": {"epochs": 2},
        }
    )
    rows = load_dataset(config.data)
    parts = rows.part(TRAIN), rows.part(VALIDATION)
    fitted = fit_bundle(config, prepare(config, rows.schema, *parts), rows.summary())
    scores = fitted.bundle.scorer.score(rows.part(CALIBRATION))
    bundle = fitted.bundle.calibrated(calibrate(scores, alpha=0.05), None)
    return bundle.save(folder / "bundle")


@pytest.fixture(scope="session")
def windowed(windowed_folder: Path) -> ServedModel:
    """Return a model with entity windows, loaded as in the service."""
    return load_model(BundleRef(str(windowed_folder)))


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """Return the URL of an empty window store."""
    return f"sqlite:///{tmp_path / 'windows.db'}"
