"""Provide image models, clients of the scoring application and real servers of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from serving.app import create_app
from serving.models.store import ServedModel, Store
from serving.scoring.loading import load_model
from serving.settings import Settings
from tests.support.image_uploads import image_file
from tests.support.scans import blobs
from tests.support.served import folder, records, served

__all__ = [
    "address_of",
    "client",
    "client_of",
    "folder",
    "keen_scanner",
    "pngs",
    "records",
    "scan_bundle",
    "scan_folder",
    "scanner",
    "served",
]  # the fixtures, for the conftest of each folder that tests against the service

MakeClient = Callable[..., TestClient]


class Server(uvicorn.Server):
    """A server that ends sooner: uvicorn's own looks ten times a second whether it should."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def pngs() -> list[bytes]:
    """Return 40 PNG files, larger than the model's images."""
    return [image_file(image) for image in blobs(40, seed=1, size=60)]


@pytest.fixture(scope="session")
def scan_bundle(image_bundle: Bundle, pngs: list[bytes]) -> Bundle:
    """Return an image model that flags about half of `pngs`, regardless of its training."""
    batch = image_bundle.scorer.schema.from_records([{"image": content} for content in pngs])
    return image_bundle.calibrated(calibrate(image_bundle.scorer.score(batch), alpha=0.5), None)


@pytest.fixture(scope="session")
def scan_folder(scan_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the saved `scan_bundle`."""
    return scan_bundle.save(tmp_path_factory.mktemp("served") / "scans")


@pytest.fixture(scope="session")
def scanner(scan_folder: Path) -> ServedModel:
    """Return `scan_bundle`, loaded as in the service."""
    return load_model(BundleRef(str(scan_folder)))


@pytest.fixture
def keen_scanner(scanner: ServedModel) -> ServedModel:
    """Return `scanner` with a region threshold so low that every image has a region."""
    assert scanner.heat_scale
    scale = replace(scanner.heat_scale, region=scanner.heat_scale.low)
    return replace(scanner, heat_scale=scale)


@pytest.fixture
def address_of() -> Iterator[Callable[..., str]]:
    """Return a function that starts a real server of models and returns its address."""
    with ExitStack() as servers:
        yield lambda *models, **settings: servers.enter_context(listening(models, settings))


@contextmanager
def listening(models: Sequence[ServedModel], settings: Mapping[str, Any]) -> Iterator[str]:
    """Run a server of models in a thread and yield its address."""
    app = create_app(Store(models), Settings(**settings))
    with serving(app) as address:
        yield address
    close_stores(app)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Run a server of an application in a thread and yield its address."""
    server = Server(uvicorn.Config(app, http="httptools", log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture
def client_of() -> Iterator[MakeClient]:
    """Return a function that makes clients of an application with given models and settings."""
    clients: list[TestClient] = []

    def make(*models: ServedModel, **settings: Any) -> TestClient:
        app = create_app(Store(models), Settings(**settings))
        clients.append(TestClient(app, raise_server_exceptions=False))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
        close_stores(client.app)


def close_stores(app: Any) -> None:
    """Close the stores of an application that ran without its lifespan."""
    for store in filter(None, (app.state.console, app.state.label_writer)):
        store.close()


@pytest.fixture
def client(client_of: MakeClient, served: ServedModel) -> TestClient:
    """Return a client of `served`."""
    return client_of(served)
