"""Metrics count what the service scores and refuses, and are documented."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from starlette.testclient import TestClient

from serving.app import create_app
from serving.models.store import Store
from serving.observability.metrics import Metrics, forget_dead_workers
from serving.problems import KINDS
from serving.registry.board import Board, FollowedModel, FollowState
from serving.settings import Settings
from tests.support.image_uploads import nifti_file, uploads
from tests.support.metrics import MODEL, samples, value
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.scans import blobs
from tests.support.service_process import running


def test_counts_add_up(client, records):
    sizes = [1, 7, 300]
    flagged = 0
    for size in sizes:
        answer = client.post("/score", json={"records": records[:size]}).json()
        flagged += sum(result["is_anomaly"] for result in answer["results"])
    assert value(client, "scored_records_total", **MODEL) == sum(sizes)
    assert value(client, "flagged_records_total", **MODEL) == flagged > 0
    assert value(client, "p_value_count", **MODEL) == sum(sizes)
    assert value(client, "p_value_bucket", **MODEL, le="+Inf") == sum(sizes)
    assert value(client, "p_value_bucket", **MODEL, le="0.05") == flagged
    assert value(client, "request_records_sum", **MODEL) == sum(sizes)
    assert value(client, "requests_total", route="/score", status="2xx") == len(sizes)
    assert value(client, "request_duration_seconds_count", route="/score") == len(sizes)
    assert value(client, "requests_in_flight") == 1, "the request for metrics itself"


def test_images_are_counted_as_records(scan_client, pngs):
    """Each frame counts as one record; images with an error do not count as scored."""
    contents = [*pngs, nifti_file(blobs(3))]
    answer = scan_client.post("/score", files=uploads(contents)).json()
    flagged = sum(result["is_anomaly"] for result in answer["results"])
    scan_client.post("/score", files=uploads([b"x", b"y"]))
    png = {"Content-Type": "image/png"}
    scan_client.post("/score", content=b"x", headers=png)
    scan_client.post("/score", json={"records": [{"TX_AMOUNT": 1}]})
    labels = {"model": "scans", "version": ""}
    assert value(scan_client, "scored_records_total", **labels) == len(pngs) + 3
    assert value(scan_client, "flagged_records_total", **labels) == flagged > 0
    assert value(scan_client, "p_value_count", **labels) == len(pngs) + 3
    assert value(scan_client, "request_records_sum", **labels) == len(pngs) + 5
    assert value(scan_client, "rejected_records_total", **labels) == 2
    assert value(scan_client, "rejected_requests_total", reason="invalid-record") == 1
    assert value(scan_client, "rejected_requests_total", reason="unsupported-media-type") == 1
    info = [dict(names) for name, names in samples(scan_client) if name == "model_info"]
    assert [one["kind"] for one in info] == ["image"]


def test_refusals_are_counted_by_reason(client):
    for body in ({"records": []}, {"records": [{"TX_AMOUNT": "x"}]}, {"records": [{}, 1]}):
        client.post("/score", json=body)
    client.get("/score")
    client.get("/nowhere")
    assert value(client, "rejected_requests_total", reason="invalid-request") == 1
    assert value(client, "rejected_requests_total", reason="invalid-record") == 2
    assert value(client, "rejected_requests_total", reason="method-not-allowed") == 1
    assert value(client, "rejected_requests_total", reason="not-found") == 1
    assert value(client, "requests_total", route="/score", status="4xx") == 4
    assert value(client, "requests_total", route="unmatched", status="4xx") == 1
    assert value(client, "scored_records_total", **MODEL) == 0


def test_ignored_keys_are_counted_and_known_ones_are_not(client, records):
    body = {"records": [{**records[0], "shoe_size": 1}, {**records[0], "hat_size": 3}]}
    client.post("/score", json=body)
    assert value(client, "ignored_keys_total", **MODEL) == 2


def test_no_label_is_chosen_by_a_client(client, records):
    client.post("/models/mallory/score", json={"records": [{"mallory": 1}]})
    client.get("/mallory?mallory=1", headers={"X-API-Key": "mallory"})
    client.post("/score", json={"records": [{**records[0], "mallory": "mallory"}]})
    assert "mallory" not in client.get("/metrics").text


def test_the_live_gauges_of_dead_workers_go(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f"gauge_livesum_{gone.pid}.db").touch()
    (tmp_path / f"gauge_livesum_{os.getpid()}.db").touch()
    (tmp_path / f"counter_{gone.pid}.db").touch()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)
    try:
        forget_dead_workers(str(tmp_path))
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
    assert not (tmp_path / f"gauge_livesum_{gone.pid}.db").exists()
    assert len(list(tmp_path.iterdir())) == 2
    forget_dead_workers(None)


def test_the_empty_file_of_a_worker_hides_no_other(tmp_path, monkeypatch):
    counts = MmapedDict(str(tmp_path / "counter_1.db"))
    counts.write_value(mmap_key("seen", "seen_total", (), (), "Seen."), 3.0, 0.0)
    counts.close()
    (tmp_path / "counter_2.db").touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (family,) = Metrics(Store()).counted_families()
    assert [(one.name, one.value) for one in family.samples] == [("seen_total", 3)]


def test_counters_exist_before_their_first_event(client_of, served):
    """Of requests, refusals and models alike, and of a version as soon as it is served."""
    client = client_of(served)
    found = samples(client)
    routes = {route.path for route in client.app.routes} | {"unmatched"}
    for route in routes:
        for status in ("2xx", "4xx", "5xx"):
            assert found["requests_total", frozenset({("route", route), ("status", status)})] == 0
        assert found["request_duration_seconds_count", frozenset({("route", route)})] == 0
    for kind in KINDS:
        assert found["rejected_requests_total", frozenset({("reason", kind.slug)})] == 0
    assert counted(found, **MODEL) == dict.fromkeys(BY_MODEL, 0)
    assert (
        found["missing_values_total", frozenset({"model": "fraud", "column": "TX_AMOUNT"}.items())]
        == 0
    )
    client.app.state.store.swap([dataclasses.replace(served, version="2")])
    both = samples(client)
    assert counted(both, model="fraud", version="2") == counted(both, **MODEL)


def test_counters_of_a_shadow_exist_before_their_first_event(served):
    store = Store([served], [dataclasses.replace(served, digest="another", version="9")])
    found = samples(TestClient(create_app(store, Settings())))
    decisions = [value for (name, _), value in found.items() if name == "shadow_decisions_total"]
    assert decisions == [0] * 4
    for name in ("shadow_dropped_requests_total", "shadow_failures_total"):
        assert found[name, frozenset({("model", "fraud")})] == 0


BY_MODEL = {
    "scored_records_total", "flagged_records_total", "ignored_keys_total", "p_value_count",
    "request_records_count", "inference_seconds_count", "batch_records_count",
}  # fmt: skip


def counted(found, **labels):
    return {
        name: value
        for (name, given), value in found.items()
        if name in BY_MODEL and given == frozenset(labels.items())
    }


@pytest.mark.e2e
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_counters_of_worker_processes_start_at_zero_too(tmp_path, folder, workers):
    with running(tmp_path, [str(folder)], workers=workers) as service:
        text = service.ask("/metrics").decode()
    for start in (
        'scored_records_total{model="fraud",version=""}',
        'flagged_records_total{model="fraud",version=""}',
        'requests_total{route="/score",status="5xx"}',
        'rejected_requests_total{reason="overloaded"}',
    ):
        assert f"anomaly_vae_{start} 0.0\n" in text


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("prometheus"), reason="needs prometheus (Debian: apt-get install prometheus)"
)
def test_prometheus_sees_the_first_event(tmp_path, folder, records):
    """The first refusal and the first records scored are increases, not starting points."""
    with running(tmp_path, [str(folder)]) as service, prometheus(tmp_path, service.url) as ask:
        ask("anomaly_vae_ready")
        time.sleep(0.5)  # a few scrapes
        assert service.status("/nowhere") == 404
        service.ask("/score", {"records": records[:3]})
        for query in (
            'increase(anomaly_vae_rejected_requests_total{reason="not-found"}[1m])',
            'increase(anomaly_vae_requests_total{route="unmatched",status="4xx"}[1m])',
            'increase(anomaly_vae_scored_records_total{model="fraud"}[1m])',
        ):
            ask(f"{query} > 0")


@contextmanager
def prometheus(tmp_path, target):
    """Scrape a service; yields a function that waits until a query has a result."""
    place, config = f"127.0.0.1:{free_port()}", tmp_path / "prometheus.yml"
    scraped = [{"targets": [target.removeprefix("http://")]}]
    job = {"job_name": "x", "scrape_interval": "200ms", "scrape_timeout": "200ms"}
    config.write_text(json.dumps({"scrape_configs": [{**job, "static_configs": scraped}]}))
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={place}",
    ]  # fmt: skip

    def ask(query):
        address = f"http://{place}/api/v1/query?{urlencode({'query': query})}"
        deadline, result = time.monotonic() + 60, None
        while not result:
            assert time.monotonic() < deadline, query
            time.sleep(0.1)
            with suppress(URLError, ConnectionError), urlopen(address) as answer:
                result = json.load(answer)["data"]["result"]

    with (tmp_path / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield ask
        finally:
            process.kill()
            process.wait()


TABLE = {
    name: (kind, frozenset(filter(None, labels.split(", "))), meaning)
    for name, kind, labels, meaning in re.findall(
        r"^\| `(anomaly_vae_\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$",
        (ROOT / "docs/serving.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}


TIMED_ONLY = {"anomaly_vae_drift_martingale_log10", "anomaly_vae_drift_noticed_records"}
"""Metrics of models that know the times of their calibration rows; see test_guarantee."""


def test_the_documented_metrics_are_those_there_are(served):
    families = {
        family.name: (family.type, family.documentation)
        for family in Metrics(Store([served])).collect()
        if not family.name.startswith("anomaly_vae_process_")
    }
    assert {name: (kind, meaning) for name, (kind, _, meaning) in TABLE.items()} == families


def test_the_documented_labels_are_those_there_are(served, records, tmp_path):
    board = Board(FollowState((FollowedModel("models:/fraud@champion", "fraud"),)))
    served = dataclasses.replace(served, registered_at=1.0)  # a folder's is not known
    store = Store([served], [dataclasses.replace(served, digest="another")])
    settings = Settings(cases=f"sqlite:///{tmp_path}/cases.db", cases_spool=tmp_path / "spool")
    client = TestClient(create_app(store, settings, board=board))
    odd = {**records[0], "TX_AMOUNT": None, "TX_CHANNEL": "carrier pigeon"}
    assert client.post("/score", json={"records": [odd, *records]}).status_code == 200
    assert client.post("/score", json={}).status_code == 422
    deadline = time.monotonic() + 20
    while not value(client, "shadow_agreement_ratio", **MODEL, shadow_version=""):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    client.app.state.shadows.close()
    client.app.state.cases.start()
    client.app.state.cases.close()
    found = samples(client)
    for name, (_, labels, _) in TABLE.items():
        if name in TIMED_ONLY:
            continue
        short = name.removeprefix("anomaly_vae_")
        names = {short + end for end in ("", "_total", "_count", "_info")}
        given = [{key for key, _ in labels} for sample, labels in found if sample in names]
        assert given, f"{name} is never there"
        assert all(one == labels for one in given), name


def test_what_is_missing_or_unseen_is_counted_by_column(client, records):
    whole = {**records[0], "TX_CHANNEL": "carrier pigeon"}
    less = {key: value for key, value in whole.items() if key != "TX_AMOUNT"}
    for body in ({"records": [whole, less]}, {"records": [less], "explain": 1}):
        assert client.post("/score", json=body).status_code == 200
    for column, missing, unseen in (("TX_AMOUNT", 2, 0), ("TX_CHANNEL", 0, 3)):
        labels = {"model": "fraud", "column": column}
        assert value(client, "missing_values_total", **labels) == missing
        assert value(client, "unseen_categories_total", **labels) == unseen


def test_batches_and_requests_are_counted_apart(client, records):
    for size in (1, 7, 300):
        client.post("/score", json={"records": records[:size]})
    assert value(client, "request_records_sum", **MODEL) == 308
    assert value(client, "batch_records_sum", **MODEL) == 308
    assert value(client, "inference_seconds_count", **MODEL) == 3
    assert value(client, "queue_depth") == 0
