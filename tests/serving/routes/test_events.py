"""Test that POST /events records events and labels for later windows."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.window_streams import stream
from tests.support.windowed import record_of

CARD = {"CUSTOMER_ID": "1", "TERMINAL_ID": "a"}


@pytest.fixture
def client(client_of, windowed, store_url):
    return client_of(windowed, windows=store_url)


@pytest.fixture
def record():
    return record_of(replace(stream(1, seed=1)[0], keys=CARD, id="1")) | {
        "TX_DATETIME": "2018-08-01"
    }


def send(client, **body):
    response = client.post("/events", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def windows(client, record, time):
    later = record | {"TRANSACTION_ID": 999, "TX_DATETIME": time}
    return client.post("/score", json={"records": [later]}).json()["results"][0]["windows"]


def test_events_count_in_windows_once(client, record):
    other = record | {"TRANSACTION_ID": 2, "TX_DATETIME": "2018-08-01T01:00"}
    answer = send(client, events=[record, other, record, {"CUSTOMER_ID": 1}])
    assert answer["events"] == {"recorded": 2, "duplicate": 1, "late": 0, "incomplete": 1}
    assert answer["warnings"] == [
        "1 events without id, so that a repeated request would count them twice"
    ]
    late = record | {"TRANSACTION_ID": 3, "TX_DATETIME": "2018-07-01"}
    assert send(client, events=[late])["events"]["late"] == 1
    assert windows(client, record, "2018-08-02")["CUSTOMER_ID_count_7d"] == 2


@pytest.mark.parametrize("label", ["anomaly", "Anomaly", 1, True, "1", 1.0, "TRUE"])
def test_labels_count_from_the_moment_they_are_known(client, record, label):
    send(client, events=[record])
    body = {"id": 1.0, "label": label, "at": "2018-08-02T12:00"}
    answer = send(client, labels=[body, {"id": "x", "label": "normal"}])
    assert answer["labels"] == {"known": 1, "unknown": 1}
    found = [
        windows(client, record, f"2018-08-02T{hour}:00")["TERMINAL_ID_risk_2d"] for hour in (11, 13)
    ]
    assert found == [0, 1]


@pytest.mark.parametrize("label", ["normal", "NORMAL", "Unsure", 0, False, "0"])
def test_a_single_label_may_be_sent_alone_and_taken_back(client, record, label):
    send(client, events=[record | {"TX_FRAUD": 1}])
    assert windows(client, record, "2018-08-02T11:00")["TERMINAL_ID_risk_2d"] == 1
    assert send(client, id=1, label=label)["labels"] == {"known": 1, "unknown": 0}
    assert windows(client, record, "2018-08-02T11:00")["TERMINAL_ID_risk_2d"] == 0


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({}, 422, "send at least one record"),
        ({"events": [{"CUSTOMER_ID": []}]}, 422, "record 0, field 'CUSTOMER_ID'"),
        ({"events": [{"TX_DATETIME": "soon"}]}, 422, "record 0, field 'TX_DATETIME'"),
        ({"events": [{"odd": 1}]}, 422, "none of the model's columns"),
        ({"labels": [{"id": 1, "label": "anomaly", "at": "soon"}]}, 422, "field 'at'"),
        ({"labels": [{"id": 1, "label": "anomaly", "at": "9999-12-31T23:59:59"}]}, 200, ""),
        ({"labels": [{"id": None, "label": 1}]}, 422, "field 'id'"),
        ({"labels": [{"id": 1}]}, 422, "label"),
        ({"label": 1}, 422, "a label needs 'id' and 'label'"),
        (
            {"labels": [{"id": 1, "label": 1}, {"id": 2, "label": "fraud"}]},
            422,
            "record 1, field 'label': 'fraud' is neither 1, which data.positive names, nor anomaly",
        ),
        ({"id": 1, "label": ""}, 422, "record 0, field 'label'"),
        ({"id": 1, "label": 2}, 422, "record 0, field 'label'"),
        (
            {"events": [{"CUSTOMER_ID": 1, "TX_FRAUD": 0}, {"CUSTOMER_ID": 1, "TX_FRAUD": "yes"}]},
            422,
            "record 1, field 'TX_FRAUD': 'yes' is neither 1",
        ),
        ({"events": [], "odd": 1}, 422, "odd"),
        ({"events": [{"CUSTOMER_ID": 1}], "model": "x"}, 404, "no model 'x' with entity windows"),
        ({"events": [{"CUSTOMER_ID": 1}] * 4}, 413, "4 records"),
    ],
)
def test_what_cannot_be_recorded_is_refused(client_of, windowed, store_url, body, status, detail):
    client = client_of(windowed, windows=store_url, max_records=3)
    response = client.post("/events", json=body)
    assert (response.status_code, detail in response.text) == (status, True), response.text


def test_a_service_without_windows_has_none_to_record_for(client_of, served):
    response = client_of(served).post("/events", json={"events": [{"a": 1}]})
    assert response.status_code == 404


def test_a_large_body_is_recorded_on_a_thread(client, record):
    events = [record | {"TRANSACTION_ID": number, "note": "x" * 200} for number in range(1000)]
    assert send(client, events=events)["events"]["recorded"] == 1000


def test_a_store_that_cannot_be_used_refuses_events(client_of, windowed, tmp_path, record):
    (tmp_path / "file").write_text("")
    client = client_of(windowed, windows=f"sqlite:///{tmp_path}/file/w.db", windows_down="missing")
    response = client.post("/events", json={"events": [record]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["type"] == "urn:anomaly-vae:windows-down"


def test_the_example_of_the_description_works(client):
    operation = client.get("/openapi.json").json()["paths"]["/events"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert send(client, **example)["labels"]["unknown"] == 1


def test_neither_entities_nor_ids_are_stored_in_clear(client, record, store_url):
    record |= {"CUSTOMER_ID": "customer-4711", "TRANSACTION_ID": "transaction-4711"}
    send(client, events=[record])
    path = store_url.removeprefix("sqlite:///")
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"4711" not in Path(path).read_bytes()
