"""A label store that is slow or down, and what does not depend on it."""

import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx2
import pytest

from anomaly_vae.errors import ConfigError
from serving.review.label_writer import check_address
from serving.server import serve
from tests.support.http_requests import refused, score
from tests.support.label_stores import *  # noqa: F403  # its fixtures
from tests.support.metrics import value
from tests.support.service_process import running

BODY = {"labels": [{"id": 7, "label": "anomaly"}]}


@pytest.fixture
def quick(monkeypatch):
    """Make stores give up sooner."""
    monkeypatch.setattr("anomaly_vae.review.database.CONNECT_SECONDS", 0.5)


@contextmanager
def held(address):
    """Hold the write lock of a store that exists."""
    path = address.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_a_store_that_is_down_fails_neither_scores_nor_readiness(
    client_of, served, records, down_store, caplog
):
    client = client_of(served, labels=down_store)
    with caplog.at_level(logging.WARNING, "serving"):
        response = client.post("/feedback", json=BODY)
    refused(response, 503, "label-store-down")
    assert response.headers["retry-after"] == "1"
    assert "hunter2" not in response.text
    (line,) = [one for one in caplog.records if "label store" in one.getMessage()]
    assert "refused" in line.facts["reason"]
    assert "hunter2" not in line.facts["reason"]
    assert value(client, "label_store_errors_total") == 1
    assert client.get("/health/ready").status_code == 200
    assert score(client, records[:1])["results"]


def test_requests_right_after_a_failure_do_not_wait_for_another(client_of, served, down_store):
    client = client_of(served, labels=down_store, retry_after_seconds=60)
    for _ in range(3):
        refused(client.post("/feedback", json=BODY), 503, "label-store-down")
    assert value(client, "label_store_errors_total") == 1, "one attempt"


def test_labels_are_stored_again_once_the_store_is_back(client_of, served, sqlite_store, quick):
    client = client_of(served, labels=sqlite_store)
    with held(sqlite_store):
        refused(client.post("/feedback", json=BODY), 503, "label-store-down")
    client.app.state.label_writer._failed_at = -float("inf")
    assert client.post("/feedback", json=BODY).json()["stored"] == 1


def test_scores_do_not_wait_for_a_store_that_is_locked(
    address_of, served, records, sqlite_store, quick
):
    """More requests than may wait for the store are refused, and none of them delays a score."""
    address = address_of(served, labels=sqlite_store, threads=1, max_queued=1)
    with held(sqlite_store), ThreadPoolExecutor(4) as threads:
        post = (httpx2.post, f"{address}/feedback")
        waiting = [threads.submit(*post, json=BODY) for _ in range(4)]
        answer = httpx2.post(f"{address}/score", json={"records": records[:1]})
        assert not all(one.done() for one in waiting), "the score came first"
        assert answer.status_code == 200
        statuses = sorted(one.result().status_code for one in waiting)
    assert statuses == [429, 429, 503, 503]


def test_a_wrong_address_stops_the_start_with_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_VAE_LABELS", "mysql://bob:hunter2@db/labels")
    with pytest.raises(ConfigError, match="label store 'mysql://db/labels': expected sqlite"):
        serve([str(tmp_path / "no-model")])
    check_address("")


def test_worker_processes_share_a_store(folder, tmp_path):
    """Takes the seconds in which a supervisor starts two processes."""
    store = f"sqlite:///{tmp_path}/labels.db"
    environment = {"ANOMALY_VAE_LABELS": store}
    with running(tmp_path, [str(folder)], workers=2, environment=environment) as service:
        answers = []

        def send(who):
            labels = [{"id": who * 10 + i, "label": "normal"} for i in range(10)]
            answers.append(service.ask("/feedback", {"labels": labels}))

        threads = [threading.Thread(target=send, args=(who,)) for who in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 6
        metrics = service.ask("/metrics").decode()
        assert 'anomaly_vae_labels_total{verdict="normal"} 60.0' in metrics
        assert service.stop() == 0


def test_a_service_starts_without_its_store(client_of, served, down_store, caplog):
    client = client_of(served, labels=down_store)
    writer = client.app.state.label_writer
    with caplog.at_level(logging.WARNING, "serving"):
        writer.start()
        writer.close()
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert client.get("/health/ready").status_code == 200
