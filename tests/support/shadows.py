"""Serve a model together with a shadow model."""

import time

import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from serving.models.store import Store
from serving.settings import Settings
from tests.support.mlflow_registry import metric


@pytest.fixture
def client_beside():
    """Return a function that makes clients of a model with a shadow."""
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
    """Return the current value of a metric."""
    return metric(client.get("/metrics").text, name, **labels)


def wait_for(client, name, number, **labels):
    """Wait until a metric reaches a number, and return its value."""
    deadline = time.monotonic() + 20
    while counted(client, name, **labels) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return counted(client, name, **labels)
