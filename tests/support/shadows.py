"""Serve a model beside its shadow."""

import time

import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from serving.models.store import Store
from serving.settings import Settings
from tests.support.mlflow_registry import metric


@pytest.fixture
def client_beside():
    """Clients of a model with a shadow."""
    clients = []

    def make(served, shadow, **settings):
        app = create_app(Store([served], [shadow]), Settings(**settings))
        clients.append(TestClient(app, raise_server_exceptions=False))
        return clients[-1]

    yield make
    for client in clients:
        client.app.state.shadows.close()
        client.close()


def counted(client, name, **labels):
    return metric(client.get("/metrics").text, name, **labels)


def wait_for(client, name, number, **labels):
    deadline = time.monotonic() + 20
    while counted(client, name, **labels) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return counted(client, name, **labels)
