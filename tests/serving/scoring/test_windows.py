"""Test that /score computes windows from the store, and records each row once."""

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPException

import numpy as np
import pytest
from starlette.testclient import TestClient

from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features.store import WindowStore
from serving.app import create_app
from serving.models.store import Store
from serving.scoring import windows
from serving.settings import Settings
from tests.support.ports import free_port
from tests.support.redis_server import redis_server
from tests.support.service_process import running
from tests.support.window_streams import DAY, INPUTS, START, as_oracle, check, expected, stream
from tests.support.windowed import NAMES, record_of

SHORT = "windows reach further back than the history that the window store holds"


@pytest.fixture
def client(client_of, windowed, store_url):
    return client_of(windowed, windows=store_url)


def post(client, *records, path="/score", **options):
    response = client.post(path, json={"records": list(records), **options})
    assert response.status_code == 200, response.text
    return response.json()


def unlabelled(events):
    """Return events without labels, which records do not have."""
    return [replace(event, anomalous=frozenset()) for event in events]


def windows_of(result):
    assert list(result["windows"]) == list(NAMES)
    return [np.nan if value is None else value for value in result["windows"].values()]


@pytest.mark.parametrize("options", [{}, {"explain": 1}, {"errors": "per_record", "explian": 0}])
def test_each_record_is_scored_with_the_windows_of_what_had_arrived(client, windowed, options):
    arrived, draw = [], random.Random(1)
    events = unlabelled(stream(60, seed=21, disorder=DAY // 2))
    while events:
        size = draw.choice([1, 3])
        batch, events = events[:size], events[size:]
        answer = post(client, *map(record_of, batch), **options)
        for event, result in zip(batch, answer["results"], strict=True):
            check(windows_of(result), expected(INPUTS, event, arrived), event)
            arrived.append(as_oracle(event))
            assert result["id"] == int(event.id)


def test_the_score_is_that_of_the_row_with_these_windows(client, windowed):
    records = [record_of(event) for event in stream(40, seed=22)]
    for record, result in zip(records, post(client, *records)["results"], strict=True):
        scorer = windowed.detector.scorer
        batch = scorer.schema.from_records([{**record, **result["windows"]}])
        assert result["score"] == pytest.approx(float(scorer.score(batch)[0]), rel=1e-6)


def test_windows_that_a_client_sends_are_ignored_and_named(client):
    record = record_of(stream(1, seed=1)[0]) | {NAMES[0]: 99, "odd": 1}
    answer = post(client, record)
    assert answer["ignored"] == [NAMES[0], "odd"]
    assert answer["results"][0]["windows"][NAMES[0]] in (0, None)


@pytest.mark.parametrize("explain", [0, 1])
def test_a_repeated_request_does_not_count_twice(client, explain):
    record = record_of(stream(1, seed=1)[0]) | {"CUSTOMER_ID": 1}
    later = record | {"TRANSACTION_ID": 99, "TX_DATETIME": "2018-08-05"}
    for _ in range(3):
        post(client, record, explain=explain)
    assert post(client, later)["results"][0]["windows"]["CUSTOMER_ID_count_7d"] == 1
    assert post(client, later)["results"][0]["windows"]["CUSTOMER_ID_count_7d"] == 1


def test_a_refused_request_records_nothing(client):
    record = record_of(stream(1, seed=1)[0]) | {"CUSTOMER_ID": 1}
    bad = record | {"TRANSACTION_ID": 8, "TX_AMOUNT": "much"}
    assert client.post("/score", json={"records": [record, bad]}).status_code == 422
    partly = post(client, record, bad, errors="per_record")
    assert partly["results"][1]["error"]["field"] == "TX_AMOUNT"
    later = record | {"TRANSACTION_ID": 99, "TX_DATETIME": "2018-08-05"}
    assert post(client, later)["results"][0]["windows"]["CUSTOMER_ID_count_7d"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("CUSTOMER_ID", [1]), ("CUSTOMER_ID", {}), ("TX_DATETIME", "soon"), ("TX_DATETIME", 5)],
)
def test_an_unreadable_entity_or_time_is_refused_by_name(client, field, value):
    record = record_of(stream(1, seed=1)[0]) | {field: value}
    response = client.post("/score", json={"records": [record]})
    assert (response.status_code, response.json()["field"]) == (422, field)


@pytest.mark.parametrize("missing", ["CUSTOMER_ID", "TX_DATETIME"])
def test_a_missing_entity_or_time_has_no_windows(client, missing):
    record = record_of(stream(1, seed=1)[0]) | {"CUSTOMER_ID": 1, "TERMINAL_ID": "a", missing: None}
    found = post(client, record)["results"][0]["windows"]
    assert found["CUSTOMER_ID_count_1h"] is None
    assert (found["TERMINAL_ID_count_1d"] is None) == (missing == "TX_DATETIME")


def test_a_record_of_an_entity_alone_is_scored(client):
    record = {"CUSTOMER_ID": 1, "TX_DATETIME": "2018-08-01"}
    assert post(client, record)["results"][0]["windows"]["CUSTOMER_ID_count_1h"] == 0
    assert client.post("/score", json={"records": [{"odd": 1}]}).status_code == 422


def test_warnings_name_records_without_id_late_ones_and_short_history(client):
    first, second = (record_of(e) | {"CUSTOMER_ID": 1} for e in stream(2, seed=1))
    answer = post(client, first | {"TRANSACTION_ID": None, "TX_DATETIME": "2018-08-30"}, second)
    no_id, late, short = answer["warnings"]
    assert no_id.startswith("record 0: no id, so that a repeated request would count")
    assert late.startswith("record 1: older than data.windows_horizon allows")
    assert short.startswith(f"record 0 and 1 more: {SHORT}")
    strict = post(client, {"odd": 1, "TX_AMOUNT": 1}, second, errors="per_record")
    assert [w.partition(":")[0] for w in strict["warnings"]] == ["record 1", "record 1"]


def test_a_long_history_needs_no_warning(client, windowed, store_url):
    event = replace(stream(1, seed=1)[0], keys={"CUSTOMER_ID": "1", "TERMINAL_ID": "a"})
    post(client, record_of(event))
    answer = post(client, record_of(replace(event, id="7", time=event.time + 9 * DAY)))
    assert "warnings" not in answer


def test_other_protocols_compute_windows_too(client):
    event = replace(stream(1, seed=1)[0], keys={"CUSTOMER_ID": "1", "TERMINAL_ID": "a"})
    post(client, record_of(event))
    record = record_of(replace(event, id="7", time=START + 3 * DAY))
    body = {"dataframe_records": [record]}
    (row,) = client.post("/invocations", json=body).json()["predictions"]
    assert row["windows"]["CUSTOMER_ID_count_7d"] == 1
    tensors = [
        {"name": name, "shape": [1], "datatype": "FP64" if name == "TX_AMOUNT" else "BYTES",
         "data": [str(value) if name != "TX_AMOUNT" else value]}
        for name, value in (record | {"TRANSACTION_ID": "8"}).items()
    ]  # fmt: skip
    answer = client.post("/v2/models/cards/infer", json={"inputs": tensors}).json()
    found = {one["name"]: one["data"] for one in answer["outputs"]}
    assert found["CUSTOMER_ID_count_7d"] == [1]
    assert found["TERMINAL_ID_risk_1d"] == [None]


@pytest.mark.parametrize("binary", [False, True])
def test_other_protocols_answer_the_warnings_too(client, binary):
    first, second = (
        record_of(e) | {"CUSTOMER_ID": "1", "TRANSACTION_ID": None} for e in stream(2, seed=1)
    )
    post(client, first, second)
    expected = post(client, first, second)["warnings"]
    assert expected[1].startswith(f"record 0 and 1 more: {SHORT}")
    body = {"dataframe_records": [first, second]}
    answer = client.post("/invocations", json=body).json()
    assert answer["warnings"] == expected
    text = "\n".join([",".join(first), *(",".join(map(str, r.values())) for r in (first, second))])
    headers = {"content-type": "text/csv"}
    csv = client.post("/invocations", content=text.replace("None", ""), headers=headers)
    assert csv.json()["warnings"] == answer["warnings"]
    tensors = [
        {"name": name, "shape": [2], "datatype": "FP64" if name == "TX_AMOUNT" else "BYTES",
         "data": [first[name], second[name]]}
        for name in first if name != "TRANSACTION_ID"
    ]  # fmt: skip
    request = {"inputs": tensors, "parameters": {"binary_data_output": binary}}
    answered = client.post("/v2/models/cards/infer", json=request)
    length = int(answered.headers.get("inference-header-content-length", len(answered.content)))
    parameters = json.loads(answered.content[:length])["parameters"]
    assert parameters["warnings"].splitlines() == answer["warnings"]
    event = record_of(stream(1, seed=1)[0]) | {"CUSTOMER_ID": 1, "TX_DATETIME": "2018-08-30"}
    late = {"dataframe_records": [event]}
    assert "warnings" not in client.post("/invocations", json=late).json()


def test_the_description_of_the_model_lists_what_clients_send(client):
    (model,) = client.get("/models").json()["models"]
    names = [column["name"] for column in model["schema"]["columns"]]
    assert names == ["TX_AMOUNT", "TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID"]
    document = client.get("/openapi.json").json()
    body = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]
    (example,) = body["examples"].values()
    assert client.post("/score", json=example["value"]).status_code == 200
    (answer,) = document["paths"]["/score"]["post"]["responses"]["200"]["content"][
        "application/json"
    ]["examples"].values()
    assert answer["value"]["results"][0]["score"]


def test_two_applications_share_a_store(client, client_of, windowed, store_url):
    clients = client, client_of(windowed, windows=store_url)
    arrived = []
    for number, event in enumerate(unlabelled(stream(40, seed=23))):
        (result,) = post(clients[number % 2], record_of(event))["results"]
        check(windows_of(result), expected(INPUTS, event, arrived), event)
        arrived.append(as_oracle(event))


def test_a_shadow_is_scored_with_its_windows(windowed, store_url):
    store = Store([windowed], [replace(windowed, digest="another")])
    client = TestClient(create_app(store, Settings(windows=store_url)))
    records = [record_of(event) for event in stream(30, seed=24)]
    post(client, *records)
    deadline = time.monotonic() + 20
    shadow = client.get("/models").json()["models"][0]["shadow"]
    while not shadow["records"] and time.monotonic() < deadline:
        time.sleep(0.01)
        shadow = client.get("/models").json()["models"][0]["shadow"]
    client.app.state.shadows.close()
    assert (shadow["records"], shadow["agreement"]) == (30, 1)


@pytest.mark.slow  # starts a service with two worker processes twice
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_two_workers_and_a_restart_in_the_middle_change_nothing(
    windowed_folder, store_url, tmp_path, number
):
    """A killed service may have recorded the record that it did not answer; a retry tells."""
    events, arrived = unlabelled(stream(80, seed=25, disorder=DAY // 2)), []
    variables = {"ANOMALY_VAE_WINDOWS": store_url}
    for part in (events[:40], events[40:]):
        options = {"workers": 2, "environment": variables}
        with running(tmp_path, [str(windowed_folder)], **options) as service:
            for event in part:
                body = {"records": [record_of(event)]}
                for repeated in range(2):  # each time over a new connection
                    (result,) = json.loads(service.ask("/score", body))["results"]
                    check(windows_of(result), expected(INPUTS, event, arrived), event)
                    arrived += [] if repeated else [as_oracle(event)]
            if number == signal.SIGTERM:
                assert service.stop() == 0
                continue
            body = {"records": [record_of(events[40])]}
            client = threading.Thread(target=ask_in_vain, args=(service, body))
            client.start()
            time.sleep(0.005)
            os.killpg(service.process.pid, signal.SIGKILL)
            client.join()


def ask_in_vain(service, body):
    with suppress(OSError, HTTPException):
        service.ask("/score", body)


# ---------------------------------------------------------------- a store that cannot be used


@pytest.fixture
def broken(tmp_path):
    """Return the folder of a store that cannot be used until the file in its place is removed."""
    folder = tmp_path / "state"
    folder.write_text("")
    return folder


def sample(client, name, **labels):
    shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
    start = (
        f"anomaly_vae_entity_windows_{name}{{{shown}}} "
        if labels
        else f"anomaly_vae_entity_windows_{name} "
    )
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def test_requests_are_refused_while_the_store_is_down(client_of, windowed, broken, monkeypatch):
    monkeypatch.setattr(windows, "PAUSE_SECONDS", 0.05)
    client = client_of(windowed, windows=f"sqlite:///{broken}/windows.db")
    record = record_of(stream(1, seed=1)[0])
    for body in ({"records": [record]}, {"records": [record], "explain": 1}):
        response = client.post("/score", json=body)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["type"] == "urn:anomaly-vae:windows-down"
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["detail"]) == (503, "the window store cannot be used")
    assert sample(client, "store_failures_total") >= 1
    broken.unlink()
    time.sleep(0.06)
    assert client.get("/health/ready").status_code == 200
    post(client, record)


def test_windows_may_be_missing_while_the_store_is_down(client_of, windowed, broken, monkeypatch):
    monkeypatch.setattr(windows, "PAUSE_SECONDS", 0.05)
    url = f"sqlite:///{broken}/windows.db"
    client = client_of(windowed, windows=url, windows_down="missing")
    record = record_of(stream(1, seed=1)[0])
    answer = post(client, record)
    assert set(answer["results"][0]["windows"].values()) == {None}
    assert answer["warnings"] == [
        "record 0: windows are missing, because the window store cannot be used"
    ]
    assert client.get("/health/ready").status_code == 200
    broken.unlink()
    time.sleep(0.06)
    assert "cannot be used" not in str(post(client, record))


def test_the_service_recovers_with_its_redis_server(client_of, windowed, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "PAUSE_SECONDS", 0.05)
    record, port = record_of(stream(1, seed=1)[0]), free_port()
    with redis_server(tmp_path, port) as url:
        client = client_of(windowed, windows=url)
        post(client, record)
    assert client.post("/score", json={"records": [record]}).status_code == 503
    assert client.get("/health/ready").status_code == 503
    with redis_server(tmp_path, port):
        time.sleep(0.06)
        post(client, record)
        assert client.get("/health/ready").status_code == 200


def test_a_store_that_fails_after_scoring_refuses_or_warns(
    client_of, windowed, store_url, monkeypatch
):
    def fail(*_):
        raise WindowStoreError("full")

    monkeypatch.setattr(WindowStore, "record", fail)
    record = record_of(replace(stream(1, seed=1)[0], keys={"CUSTOMER_ID": "1", "TERMINAL_ID": "a"}))
    client = client_of(windowed, windows=store_url)
    assert client.post("/score", json={"records": [record]}).status_code == 503
    client = client_of(windowed, windows=store_url, windows_down="missing")
    answer = post(client, record, {**record, "CUSTOMER_ID": None, "TERMINAL_ID": None})
    assert "record 0: not counted in later windows, because the window store" in str(answer)


@pytest.mark.parametrize(
    ("filled_to", "status"), [("2018-08-01", 200), ("2018-08-03", 503), ("2h", 503)]
)
def test_readiness_may_require_a_filled_store(client_of, windowed, store_url, filled_to, status):
    client = client_of(windowed, windows=store_url, windows_filled_to=filled_to)
    assert client.get("/health/ready").status_code == 503
    event = {"CUSTOMER_ID": 1, "TX_DATETIME": "2018-08-02"}
    assert client.post("/events", json={"events": [event]}).status_code == 200
    ready = client.get("/health/ready")
    assert ready.status_code == status
    assert status == 200 or "run: anomaly-vae windows load" in ready.json()["detail"]


def test_metrics_count_events_entities_and_durations(client):
    record = record_of(stream(1, seed=1)[0]) | {"CUSTOMER_ID": 1, "TERMINAL_ID": "a"}
    for _ in range(2):
        post(client, record)
    post(client, record | {"TRANSACTION_ID": 5, "TX_DATETIME": "2018-01-01"})
    for outcome in ("recorded", "duplicate", "late"):
        assert sample(client, "events_total", outcome=outcome) == 1
    assert sample(client, "entities") == 2
    assert sample(client, "store_seconds_count", operation="record") == 3
    assert sample(client, "short_history_records_total") == 3


def test_a_model_without_windows_opens_no_store(client_of, served, records, broken):
    client = client_of(served, windows=f"sqlite:///{broken}/windows.db")
    assert "windows" not in post(client, records[0])["results"][0]
    assert client.get("/health/ready").status_code == 200


def test_models_with_the_same_windows_in_another_order_keep_their_own(windowed, store_url):
    """Their features have the same digest, but other positions."""
    settings = Settings(windows=store_url)
    with TestClient(create_app(Store([windowed]), settings)) as client:
        stores = client.app.state.windows
        turned = dict(reversed(INPUTS.definition.windows.items()))
        other = replace(INPUTS, definition=replace(INPUTS.definition, windows=turned))
        later = replace(INPUTS, horizon=INPUTS.horizon + 1)
        assert other.definition.digest == INPUTS.definition.digest
        opened = [stores.store(inputs) for inputs in (INPUTS, other, later, INPUTS)]
        assert [store.inputs for store in opened] == [INPUTS, other, later, INPUTS]
        assert opened[0] is opened[3]
