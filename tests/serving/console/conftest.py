"""Provide services with a console."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anomaly_vae.review import CaseStore
from serving.models.store import ServedModel
from tests.support.console import KEYS, Service, Visitor
from tests.support.review_cases import empty, fill

MakeService = Callable[..., Service]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a case store without cases."""
    path = tmp_path_factory.mktemp("cases") / "cases.db"
    with CaseStore(f"sqlite:///{path}") as store:
        store.prepare()
    return path


@pytest.fixture
def service_of(tmp_path: Path, empty_store: Path) -> Iterator[MakeService]:
    """Return a function that makes services of models, with settings and a number of cases.

    All of them have the same store, which the first fills.
    """
    services: list[Service] = []
    shutil.copy(empty_store, tmp_path / "cases.db")

    def make(*models: ServedModel, count: int = 3, **settings: Any) -> Service:
        services.append(Service(list(models), tmp_path, **({"api_keys": KEYS} | settings)))
        if len(services) == 1:
            fill(services[0].cases, count)
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture(scope="module")
def kept_service(
    served: ServedModel, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Return a service for the tests of a module."""
    folder = tmp_path_factory.mktemp("console")
    shutil.copy(empty_store, folder / "cases.db")
    service = Service([served], folder, api_keys=KEYS)
    yield service
    service.close()


@pytest.fixture
def service(kept_service: Service) -> Service:
    """Return a service with three cases and keys."""
    empty(kept_service.cases)
    fill(kept_service.cases, 3)
    return kept_service


@pytest.fixture
def alice(service: Service) -> Visitor:
    """Return a reviewer of `service`."""
    return service.visitor("alice")


@pytest.fixture
def bob(service: Service) -> Visitor:
    """Return another reviewer of `service`."""
    return service.visitor("bob")
