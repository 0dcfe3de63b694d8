"""The guarantee status in responses, `/models` and metrics, over one process and several."""

import dataclasses
import json
import time

import numpy as np
import pytest

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.data.splitting import CALIBRATION
from anomaly_vae.files import locked
from anomaly_vae.monitoring.exchangeability import BLOCKS, STATUSES
from anomaly_vae.scoring.detector import Detections
from serving.observability.guarantee import GuaranteeTrackers
from serving.scoring.loading import load_model
from tests.support.metrics import MODEL, samples, value
from tests.support.service_process import running
from tests.support.timed import records as timed_records
from tests.support.timed import rows as timed_rows
from tests.support.timed import timed_bundle


def shifted(records):
    """Return payments that are all far from the calibration rows."""
    return [{**record, "TX_AMOUNT": 1e5, "TX_CHANNEL": "carrier pigeon"} for record in records]


def stands(client):
    found = samples(client)
    (status,) = [
        dict(labels)["status"]
        for (name, labels), on in found.items()
        if name == "guarantee_status" and on
    ]
    return status


def some(n, p_value):
    """Return this many decisions without a flag."""
    return Detections(np.zeros(n), np.full(n, p_value), np.zeros(n, bool))


def test_few_rows_are_too_few_to_tell(client, records):
    assert client.get("/models").json()["models"][0]["guarantee_status"] == "unknown"
    answer = client.post("/score", json={"records": records[:3]}).json()
    assert list(answer) == ["model", "alpha", "threshold", "guarantee_status", "ignored", "results"]
    assert answer["guarantee_status"] == "unknown"
    assert stands(client) == "unknown"
    assert value(client, "window_records", **MODEL) == 3


def test_traffic_like_the_calibration_rows_holds(client, calibrated, dataset):
    detections = calibrated.detector.detect(dataset.part(CALIBRATION))
    model = next(iter(client.app.state.store.current.values()))
    client.app.state.metrics.guarantees.tracker(model).observe(detections)
    assert stands(client) == "holding"


@pytest.mark.parametrize("size", [1, 7, 200])
def test_a_shift_breaks_the_promise_everywhere(client, records, size):
    strange = shifted(records[:200])
    for start in range(0, 200, size):
        client.post("/score", json={"records": strange[start : start + size]})
    assert stands(client) == "broken"
    assert client.get("/models").json()["models"][0]["guarantee_status"] == "broken"
    for body in ({"records": records[:1]}, {"records": records[:1], "explain": 2}):
        assert client.post("/score", json=body).json()["guarantee_status"] == "broken"
    assert value(client, "window_records", **MODEL) == 202
    assert value(client, "window_flagged_ratio", **MODEL) > 0.9
    assert value(client, "martingale_log10", **MODEL) > 10
    column = {**MODEL, "column": "TX_AMOUNT"}
    assert value(client, "drift_psi", **column) > 1
    assert value(client, "window_missing_ratio", **column) == 0
    channel = {**MODEL, "column": "TX_CHANNEL"}
    assert value(client, "window_unseen_ratio", **channel) > 0.9


def test_answers_say_how_it_stood_at_the_last_look(client, records):
    client.get("/models")
    strange = {"records": shifted(records[:100])}
    for _ in range(2):
        assert client.post("/score", json=strange).json()["guarantee_status"] == "unknown"
    client.app.state.metrics.guarantees.refresh()
    ordinary = {"records": records[:1]}
    assert client.post("/score", json=ordinary).json()["guarantee_status"] == "broken"


def test_images_are_watched_without_columns(scan_client, pngs):
    answer = scan_client.post("/score", files=[("files", png) for png in pngs]).json()
    assert answer["guarantee_status"] in STATUSES
    found = samples(scan_client)
    assert found["window_records", frozenset({"model": "scans", "version": ""}.items())] == 40
    assert not [name for name, _ in found if name in {"drift_psi", "window_missing_ratio"}]


def test_another_version_begins_anew(client_of, served, records):
    client = client_of(served)
    client.post("/score", json={"records": shifted(records[:200])})
    assert stands(client) == "broken"
    client.app.state.store.swap([dataclasses.replace(served, version="2")])
    assert stands(client) == "unknown"
    answer = client.post("/score", json={"records": records[:1]}).json()
    assert (answer["model"]["version"], answer["guarantee_status"]) == ("2", "unknown")


def test_a_bundle_of_format_1_is_watched_without_columns(client_of, fixtures, records):
    client = client_of(load_model(BundleRef(str(fixtures / "format-1" / "table"))))
    client.post("/score", json={"records": shifted(records[:200])})
    assert stands(client) == "broken"
    assert not [name for name, _ in samples(client) if name == "drift_psi"]


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """Return a model that knows the hours of its calibration rows."""
    path = timed_bundle().save(tmp_path_factory.mktemp("timed") / "timed")
    return load_model(BundleRef(str(path)))


def status_after(client, table, size, **options):
    """Send rows and return the status of the guarantee afterwards."""
    sent = timed_records(table)
    for start in range(0, len(sent), size):
        client.post("/score", json={"records": sent[start : start + size], **options})
    return stands(client)


@pytest.mark.parametrize(
    ("size", "options"),
    [pytest.param(1, {}, marks=pytest.mark.slow), (100, {}), (100, {"explain": 1})],
)
def test_rows_of_the_night_are_compared_with_those_of_nights(client_of, timed, size, options):
    night = timed_rows(1, 600, 1, hours=(0, 8))
    assert status_after(client_of(timed), night, size, **options) == "holding"
    without = night.assign(at=None)
    assert status_after(client_of(timed), without, size, **options) != "holding"


def test_values_of_the_night_by_day_break_the_promise(client_of, timed):
    day = timed_rows(1, 600, 1, hours=(8, 24))
    day["amount"] *= 3
    client = client_of(timed)
    assert status_after(client, day, 100) == "broken"
    labels = {"model": "detector", "version": ""}
    assert value(client, "drift_martingale_log10", **labels, column="amount") > 2
    assert value(client, "drift_martingale_log10", **labels, column="other") < 1
    assert value(client, "drift_noticed_records", **labels, column="amount") > 0


def test_a_column_that_goes_missing_is_reported(client_of, timed):
    table = timed_rows(1, 600, 1)
    assert status_after(client_of(timed), table.assign(other=None), 100) in {"doubtful", "broken"}


# ---------------------------------------------------------------- several processes


@pytest.fixture
def two(served, tmp_path):
    """Return the trackers of two processes that share a folder."""
    return GuaranteeTrackers(str(tmp_path)), GuaranteeTrackers(str(tmp_path))


def test_processes_count_together(two, served):
    ours, theirs = (trackers.tracker(served) for trackers in two)
    ours.observe(some(100, 0.5), None)
    theirs.observe(some(30, 0.5), None)
    two[0].refresh()
    assert theirs.report().rows == 130
    assert ours.report() == theirs.report()


def test_a_process_that_follows_later_counts_apart_until_then(two, served):
    first, late = two
    late.tracker(served).observe(some(300, 1e-4), None)
    newer = dataclasses.replace(served, version="2", digest="2" * 64)
    assert first.tracker(newer).report().rows == 0
    late.tracker(served).observe(some(300, 1e-4), None)
    assert late.tracker(served).report().rows == 600
    assert first.tracker(newer).report().rows == 0
    first.tracker(newer).observe(some(256, 0.5), None)
    assert late.tracker(newer).report().rows == 256
    assert first.tracker(served).report().rows == 0, "back again is another beginning"


def test_a_new_process_takes_up_what_the_others_know(two, served, tmp_path):
    two[0].tracker(served).observe(some(256, 0.5), None)
    assert GuaranteeTrackers(str(tmp_path)).tracker(served).report().rows == 256


def test_a_window_is_bounded_however_much_comes_at_once(served):
    watch = GuaranteeTrackers(None).tracker(served)
    watch.observe(some(100_000, 0.5), None)
    most = (BLOCKS + 1) * served.monitor.block_rows
    assert most / 2 < watch.report().rows <= most


@pytest.mark.timeout(60)
def test_a_worker_that_looks_at_the_registry_holds_up_nobody(served, tmp_path):
    """The process that checks the registry holds the lock of the parent folder meanwhile."""
    with locked(tmp_path):
        assert GuaranteeTrackers(str(tmp_path)).tracker(served).report().status == "unknown"


def test_workers_watch_together(tmp_path, folder, records):
    with running(tmp_path, [str(folder)], workers=2) as service:
        for record in shifted(records[:60]):
            service.ask("/score", {"records": [record]})
        deadline = time.monotonic() + 20
        line = 'anomaly_vae_window_records{model="fraud",version=""} 60.0'
        seen = 0
        while seen < 4:  # whichever worker answers
            assert time.monotonic() < deadline
            text = service.ask("/metrics").decode()
            seen = seen + 1 if line in text else 0
            time.sleep(0.1)
        status = 'anomaly_vae_guarantee_status{model="fraud",status="broken",version=""} 1.0'
        assert status in text
        answers = [service.ask("/score", {"records": [{"TX_AMOUNT": 1}]}) for _ in range(6)]
        assert {json.loads(answer)["guarantee_status"] for answer in answers} == {"broken"}
        assert service.stop() == 0
