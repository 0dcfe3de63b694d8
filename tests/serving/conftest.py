"""A served bundle, records that fit it, and clients for the application around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from anomaly_vae.bundle import Bundle
from serving.app import create_app
from serving.settings import Settings
from serving.store import Served, Source, Store, load
from tests.scans import blobs, patched
from tests.serving.files import picture_file

Records = list[dict[str, Any]]
MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="session")
def folder(calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibrated bundle, saved."""
    return calibrated.save(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="session")
def served(folder: Path) -> Served:
    """The bundle, loaded as the service does."""
    return load(Source(str(folder)))


@pytest.fixture(scope="session")
def records(transactions: Path) -> Records:
    """Rows as a client sends them: JSON values, missing ones null, a label among them."""
    rows: Records = pq.read_table(transactions).slice(0, 400).to_pylist()
    return [{**row, "TX_DATETIME": row["TX_DATETIME"].isoformat()} for row in rows]


@pytest.fixture(scope="session")
def scan_folder(image_calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibrated bundle of a model of images, saved."""
    return image_calibrated.save(tmp_path_factory.mktemp("served") / "scans")


@pytest.fixture(scope="session")
def scanner(scan_folder: Path) -> Served:
    """That, loaded as the service does."""
    return load(Source(str(scan_folder)))


@pytest.fixture(scope="session")
def pngs() -> list[bytes]:
    """40 files as a client sends them, larger than the model's images; the last is an anomaly."""
    images = blobs(40, seed=1)
    images[-1:] = patched(images[-1:])
    return [picture_file(np.kron(image, np.ones((2, 2), np.uint8))) for image in images]


@pytest.fixture
def client_of() -> Iterator[MakeClient]:
    """Clients of applications over these models with these settings."""
    clients: list[TestClient] = []

    def make(*models: Served, **settings: Any) -> TestClient:
        app = create_app(Store(models), Settings(**settings))
        clients.append(TestClient(app, raise_server_exceptions=False))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(client_of: MakeClient, served: Served) -> TestClient:
    """A client of the one model."""
    return client_of(served)


@pytest.fixture
def scan_client(client_of: MakeClient, scanner: Served) -> TestClient:
    """A client of the one model of images."""
    return client_of(scanner)
