"""A case store that is down, comes back, and is shared by worker processes."""

import logging
import time
from dataclasses import replace

import pytest

from anomaly_vae.errors import ConfigError, StoreError
from anomaly_vae.review import Case, CaseStore, Label
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.review import case_writer
from serving.review.case_writer import CaseWriter
from serving.review.spool import Batch
from serving.server import serve
from serving.settings import Settings
from tests.support.label_stores import *  # noqa: F403  # its fixtures
from tests.support.ports import free_port
from tests.support.postgres import postgres
from tests.support.service_process import running


def case(row, recorded_at=None, **parts):
    return Case.of(
        model="fraud", row=row, score=9.5, p_value=0.001, threshold=5.0, alpha=0.01,
        recorded_at=recorded_at, **parts,
    )  # fmt: skip


@pytest.fixture
def make(served, tmp_path, monkeypatch):
    """Return a function that makes a writer; the store may be asked again at once."""
    monkeypatch.setattr(case_writer, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(case_writer, "LONGEST_PAUSE", 0.0)

    def make(address, **settings):
        models = Store([served])
        options = Settings(cases=address, cases_spool=tmp_path / "spool", **settings)
        return CaseWriter(models, options, Metrics(models))

    return make


def test_cases_wait_on_disk_while_the_store_is_down(make, tmp_path, caplog):
    folder = tmp_path / "away"
    writer = make(f"sqlite:///{folder}/cases.db")
    with caplog.at_level(logging.WARNING, "serving"):
        for row in range(3):
            assert writer.write(Batch([case(row)]))
        writer.maintain()
    assert writer.spool.size > 0
    lines = [one for one in caplog.records if "cannot be used" in one.getMessage()]
    assert len(lines) == 1, "it is not said again"
    folder.mkdir()
    writer.maintain()
    assert writer.store.count() == 3
    assert writer.spool.size == 0
    writer.close()


def test_a_batch_that_cannot_be_stored_does_not_hold_up_the_others(make, sqlite_store):
    writer = make(sqlite_store)
    bad = replace(case(1), score=float("nan"))  # SQLite takes it for a missing value
    assert writer.write(Batch([bad]))
    assert writer.write(Batch([case(2)]))
    writer.maintain()
    assert [one.case.row_id for one in writer.store.queue()] == ["2"]
    assert writer.spool.size == 0
    assert int(writer._metrics.dropped_cases["failed"]._value.get()) == 1
    writer.close()


def test_what_does_not_fit_is_reported(make, down_store, monkeypatch):
    monkeypatch.setattr(case_writer, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(case_writer, "LONGEST_PAUSE", 60.0)
    writer = make(down_store, cases_spool_bytes=1024)
    kept = [writer.write(Batch([case(row)])) for row in range(6)]
    assert kept[0]
    assert not kept[-1]
    assert int(writer._metrics.case_store_errors._value.get()) == 1, "one attempt"
    writer.close()


def test_the_state_of_the_review_is_measured(make, sqlite_store):
    writer = make(sqlite_store)
    now = time.time()
    writer.write(Batch([case(row, now - 100 - row) for row in range(4)]))
    writer.store.labels.add([Label.of("fraud", row, "anomaly", "alice") for row in (0, 1)])
    writer.maintain()
    gauges = {
        name: gauge.labels("fraud")._value.get() for name, gauge in writer._metrics.review.items()
    }
    assert gauges["open_cases"] == gauges["reviewed_flags"] == 2
    assert gauges["oldest_unreviewed_flag_seconds"] == pytest.approx(103, abs=5)
    assert gauges["reviewed_precision_ratio"] == gauges["reviewed_precision_upper_ratio"] == 1
    assert 0.3 < gauges["reviewed_precision_lower_ratio"] < 0.4
    writer.close()


def test_old_cases_and_their_scans_are_deleted(make, sqlite_store, tmp_path):
    scans = tmp_path / "scans"
    for name in ("old", "new"):
        (scans / name).mkdir(parents=True)
    writer = make(sqlite_store, cases_days=7, cases_images=scans)
    old, new = time.time() - 8 * 86_400, time.time()
    writer.write(Batch([case(1, old, image="old"), case(2, new, image="new")]))
    writer.maintain()
    assert [one.case.row_id for one in writer.store.queue()] == ["2"]
    assert [path.name for path in scans.iterdir()] == ["new"]
    writer.close()


def test_a_wrong_address_stops_the_start_with_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_VAE_CASES", "mysql://bob:hunter2@db/cases")
    with pytest.raises(ConfigError, match="case store 'mysql://db/cases': expected sqlite"):
        serve([str(tmp_path / "no-model")])


@pytest.mark.parametrize(
    ("name", "value"),
    [("CASES_MASK", "card"), ("CASES_SAMPLE", "1.5"), ("CASES_DAYS", "-1"), ("WEBHOOK", "x")],
)
def test_a_wrong_setting_is_named(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(f"ANOMALY_VAE_{name}", value)
    with pytest.raises(ConfigError, match=f"ANOMALY_VAE_{name}: "):
        serve([str(tmp_path / "no-model")])


def wait_for(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_workers_lose_nothing_while_the_store_is_down(folder, records, tmp_path):
    port = free_port()
    address = f"postgresql://mlflow:not-secret@127.0.0.1:{port}/mlflow"
    environment = {
        "ANOMALY_VAE_CASES": address, "ANOMALY_VAE_CASES_SAMPLE": "1",
        "ANOMALY_VAE_CASES_SPOOL": str(tmp_path / "spool"), "ANOMALY_VAE_DRAIN_SECONDS": "0",
    }  # fmt: skip
    options = {"workers": 2, "environment": environment}

    def send(service, rows):
        for start in range(rows.start, rows.stop, 10):
            service.ask("/score", {"records": records[start : start + 10]})

    with running(tmp_path, [str(folder)], **options) as service:
        send(service, range(0, 100))
        assert service.status("/health/ready") == 200
        assert service.stop() == 0
    assert list((tmp_path / "spool").glob("*/*.json")), "they survive the end of the service"
    with running(tmp_path, [str(folder)], **options) as service:
        send(service, range(100, 200))
        with postgres(port=port), CaseStore(address) as store:
            wait_for(lambda: store_has(store, 200))
            send(service, range(150, 250))
            wait_for(lambda: store_has(store, 250))
            wait_for(lambda: sum(one.rows for one in store.p_values("fraud")) == 300)
            metrics = service.ask("/metrics").decode()
            assert service.stop() == 0
            assert store.count() == 250
    assert 'anomaly_vae_dropped_cases_total{reason="spool"} 0.0' in metrics


def store_has(store, number):
    try:
        return store.count() == number
    except StoreError:
        return False
