"""Provide the bundle of a small table as a served model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from serving.models.store import ServedModel
from serving.scoring.loading import load_model

Records = list[dict[str, Any]]


@pytest.fixture(scope="session")
def folder(calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the saved calibrated bundle."""
    return calibrated.save(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="session")
def served(folder: Path) -> ServedModel:
    """Return the calibrated bundle, loaded as in the service."""
    return load_model(BundleRef(str(folder)))


@pytest.fixture(scope="session")
def records(transactions: Path) -> Records:
    """Return rows as a client sends them: JSON values, null if missing, including the label."""
    rows: Records = pq.read_table(transactions).slice(0, 400).to_pylist()
    return [{**row, "TX_DATETIME": row["TX_DATETIME"].isoformat()} for row in rows]
