"""Facts about loaded models and their guarantees are collected when they are asked for."""

import dataclasses

import pytest

from anomaly_vae.monitoring.exchangeability import STATUSES
from serving.models.store import Store
from serving.observability.collectors import GuaranteeCollector, ModelCollector, gauge, gauges
from serving.observability.guarantee import GuaranteeTrackers
from serving.observability.metrics import Metrics
from tests.support.metrics import MODEL, samples, value


def test_what_is_loaded(client, served):
    found = samples(client)
    info = [dict(labels) for (name, labels) in found if name == "model_info"]
    assert [one["digest"] for one in info] == [served.digest]
    assert value(client, "model_load_seconds", **MODEL) == served.load_seconds > 0
    assert value(client, "model_alpha_ratio", **MODEL) == 0.05
    assert value(client, "ready") == 1


def test_an_empty_store_has_metrics_too():
    text, _ = Metrics(Store()).exposition("")
    assert b"anomaly_vae_ready 0.0" in text


def test_missing_shares_stand_beside_those_of_the_calibration_rows(client, records):
    few = [{**record, "TX_AMOUNT": None} for record in records[:150]]
    client.post("/score", json={"records": [*few, *records[150:300]]})
    column = {**MODEL, "column": "TX_AMOUNT"}
    assert value(client, "window_missing_ratio", **column) == pytest.approx(0.5, abs=0.05)
    assert value(client, "reference_missing_ratio", **column) < 0.05


def test_an_empty_store_watches_nothing(client_of):
    client = client_of()
    assert not [name for name, _ in samples(client) if name == "guarantee_status"]
    assert Store().current == {}


def test_a_gauge_leaves_out_what_has_no_value():
    family = gauge("seen", "Seen.", ["model"], [(["a"], 1.0), (["b"], None), (["c"], 0.0)])
    assert (family.name, family.type, family.documentation) == (
        "anomaly_vae_seen", "gauge", "Seen."
    )  # fmt: skip
    assert [(s.labels, s.value) for s in family.samples] == [
        ({"model": "a"}, 1.0), ({"model": "c"}, 0.0)
    ]  # fmt: skip


def test_gauges_read_attributes_of_attributes(served):
    definitions = {"alpha": ("Alpha.", "detector.calibration.alpha"), "at": ("At.", "loaded_at")}
    found = gauges(definitions, ["model"], [(["a"], served), (["b"], served)])
    assert [[s.value for s in family.samples] for family in found] == [
        [served.detector.calibration.alpha] * 2,
        [served.loaded_at] * 2,
    ]


def families(collector):
    return {family.name.removeprefix("anomaly_vae_"): family for family in collector.collect()}


def test_facts_follow_a_swap(served):
    store = Store([served])
    collector = ModelCollector(store)
    store.swap([dataclasses.replace(served, version="2", alias="champion")])
    (info,) = families(collector)["model"].samples
    assert info.labels == {
        "model": "fraud", "version": "2", "alias": "champion", "kind": "tabular",
        "digest": served.digest,
    }  # fmt: skip
    (ready,) = families(collector)["ready"].samples
    assert ready.value == 1
    store.draining = True
    (ready,) = families(collector)["ready"].samples
    assert ready.value == 0


def test_one_status_of_a_guarantee_is_current(served):
    trackers = GuaranteeTrackers(None)
    found = families(GuaranteeCollector(Store([served]), trackers))
    status = {s.labels["status"]: s.value for s in found["guarantee_status"].samples}
    assert set(status) == set(STATUSES)
    assert [name for name, current in status.items() if current] == ["unknown"]
    lacks = {s.labels["what"]: s.value for s in found["guarantee_lacks"].samples}
    assert lacks == {"rows": 1, "calibration": 0}
    columns = {s.labels["column"] for s in found["reference_missing_ratio"].samples}
    assert columns == {drift.column for drift in trackers.tracker(served).report().columns}
