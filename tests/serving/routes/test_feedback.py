"""Labels that arrive over HTTP."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from anomaly_vae.client import Client
from anomaly_vae.review import LabelStore
from serving.routes.feedback import decode
from serving.settings import ApiKey, Settings
from tests.support.http_requests import refusal, refused
from tests.support.label_stores import *  # noqa: F403  # its fixtures
from tests.support.metrics import value
from tests.support.paths import ROOT

SETTINGS = Settings()


def send(client, *labels, **more):
    return client.post("/feedback", json={"labels": [*labels], **more})


def stored(address):
    with LabelStore(address) as store:
        return [(one.model, one.id, one.label, one.who, one.note) for one in store.newest()]


@pytest.fixture
def labelled(client_of, served, sqlite_store):
    return client_of(served, labels=sqlite_store)


def test_labels_are_stored_and_counted(client_of, served, store_address):
    client = client_of(served, labels=store_address)
    response = send(
        client,
        {"id": 12, "label": "anomaly", "note": "<script>alert('x')</script>"},
        {"id": "12.0", "label": "anomaly"},
        {"id": "x-1", "label": "unsure", "at": "2024-01-31T12:00:00Z", "model": "fraud"},
    )
    assert response.status_code == 200
    assert response.json() == {
        "stored": 2,
        "unchanged": 1,
        "results": [
            {"id": "12", "model": "fraud", "label": "anomaly", "outcome": "stored"},
            {"id": "12", "model": "fraud", "label": "anomaly", "outcome": "unchanged"},
            {"id": "x-1", "model": "fraud", "label": "unsure", "outcome": "stored"},
        ],
        "ignored": [],
    }
    assert stored(store_address) == [
        ("fraud", "12", "anomaly", "anonymous", "<script>alert('x')</script>"),
        ("fraud", "x-1", "unsure", "anonymous", ""),
    ]
    assert value(client, "labels_total", verdict="anomaly") == 1
    assert value(client, "labels_total", verdict="normal") == 0


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"label": "maybe"}, "label", "expected anomaly, normal or unsure"),
        ({"label": None}, "label", "expected anomaly, normal or unsure"),
        ({"id": None}, "id", "got 'null'"),
        ({"id": [1]}, "id", "got 'array'"),
        ({"id": ""}, "id", "empty"),
        ({"id": "x" * 201}, "id", "201 characters"),
        ({"id": "a\u0000b"}, "id", "control characters"),
        ({"at": "yesterday"}, "at", "ISO 8601"),
        ({"at": 1700000000}, "at", "got 'int'"),
        ({"at": "3000-01-01"}, "at", "in the future"),
        ({"at": "01/02/2024"}, "at", "ISO 8601"),
        ({"note": "x" * 2001}, "note", "2,001 characters"),
        ({"note": 5}, "note", "got 'int'"),
        ({"model": "other"}, "model", "no such model is served; name one of 'fraud'"),
        ({"model": 5}, "model", "got 'int'"),
    ],
)
def test_bad_labels_are_named_and_none_is_stored(labelled, sqlite_store, change, field, reason):
    good = {"id": 1, "label": "normal"}
    response = send(labelled, good, good | change, good, good | change)
    problem = refused(response, 422, "invalid-label")
    assert (problem["record"], problem["field"]) == (1, field)
    assert [one["record"] for one in problem["errors"]] == [1, 3]
    assert reason in problem["errors"][0]["detail"]
    assert problem["detail"].startswith(f"label 1, field '{field}': ")
    assert problem["detail"].endswith("(and 1 more)")
    labelled.app.state.label_writer.prepare()
    assert stored(sqlite_store) == []


@pytest.mark.parametrize(
    ("label", "field"), [({"label": "normal"}, "id"), ({"id": 1}, "label"), ("normal", None)]
)
def test_labels_without_a_part(labelled, label, field):
    problem = refused(send(labelled, label), 422, "invalid-label")
    assert problem["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b'{"labels":[{"id":NaN,"label":"normal"}]}', 400, "malformed"),
        (b'{"labels":[{"id":"\xff","label":"normal"}]}', 400, "malformed"),
        (b'{"labels":[{"id":"\\ud800","label":"normal"}]}', 400, "malformed"),
        (b'{"labels":' + b"[" * 50_000, 400, "malformed"),
        (b"[]", 422, "invalid-request"),
        (b"{}", 422, "invalid-request"),
        (b'{"labels":[]}', 422, "invalid-request"),
        (b'{"labels":{}}', 422, "invalid-request"),
        (b'{"labels":[{"id":' + b"1" * 5000 + b',"label":"normal"}]}', 422, "invalid-label"),
        (b'{"labels":[' + b"0," * 3 + b"0]}", 413, "too-many-records"),
        (b'{"labels":[' + b" " * 2000 + b"]}", 413, "too-large"),
    ],
)
def test_bad_bodies(client_of, served, sqlite_store, content, status, slug):
    client = client_of(
        served, labels=sqlite_store, max_records=3,
        max_body_bytes=1024 if slug == "too-large" else 2**20,
    )  # fmt: skip
    headers = {"Content-Type": "application/json"}
    refused(client.post("/feedback", content=content, headers=headers), status, slug)


def test_the_media_type_is_json(labelled):
    headers = {"Content-Type": "text/csv"}
    response = labelled.post("/feedback", content=b"id,label", headers=headers)
    refused(response, 415, "unsupported-media-type")


def test_without_a_store_the_remedy_is_named(client):
    problem = refused(send(client, {"id": 1, "label": "normal"}), 404, "no-label-store")
    assert "ANOMALY_VAE_LABELS" in problem["detail"]
    assert client.get("/feedback").status_code == 405


def test_the_model_may_be_left_out_only_if_one_is_served(client_of, served, sqlite_store):
    client = client_of(served, replace(served, name="other"), labels=sqlite_store)
    problem = refused(send(client, {"id": 1, "label": "normal"}), 422, "invalid-label")
    assert "2 models are served; name one of 'fraud', 'other'" in problem["detail"]
    assert send(client, {"id": 1, "label": "normal", "model": "other"}).json()["stored"] == 1
    assert stored(sqlite_store)[0][0] == "other"


def test_the_reviewer_is_the_name_of_the_key(client_of, served, sqlite_store):
    def key(name, *scopes):
        return ApiKey(name, frozenset(scopes), hashlib.sha256(name.encode()).hexdigest())

    keys = key("alice", "feedback"), key("bob", "score", "feedback"), key("shop", "score")
    client = client_of(served, labels=sqlite_store, api_keys=keys)
    for name, status in (("alice", 200), ("bob", 200), ("shop", 403), ("mallory", 401)):
        client.headers["X-API-Key"] = name
        verdict = "anomaly" if name == "alice" else "normal"
        response = send(client, {"id": 7, "label": verdict, "who": "carol"})
        assert response.status_code == status, response.text
    with LabelStore(sqlite_store) as store:
        (label,) = store.newest()
    assert (label.who, label.label, label.conflicts) == ("bob", "normal", {"alice": "anomaly"})


def test_unknown_keys_are_named_or_refused(client_of, served, labelled, sqlite_store):
    response = send(labelled, {"id": 1, "label": "normal", "notes": "x"}, hat=1)
    assert response.json()["ignored"] == ["hat", "notes"]
    strict = client_of(served, labels=sqlite_store, unknown_keys="refuse")
    response = send(strict, {"id": 2, "label": "normal", "notes": "x"})
    problem = refused(response, 422, "invalid-request")
    assert problem["detail"] == "unknown key 'notes'; did you mean 'note'?"
    assert len(stored(sqlite_store)) == 1


def test_no_model_is_loaded_yet():
    body = b'{"labels":[{"id":1,"label":"normal"}]}'
    assert refusal(decode, body, [], "alice", SETTINGS).kind.status == 503


def test_the_document_describes_the_route_with_an_example_that_works(labelled):
    operation = labelled.get("/openapi.json").json()["paths"]["/feedback"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/FeedbackRequest"}
    assert labelled.post("/feedback", json=content["example"]).json()["stored"] == 1
    assert {"200", "404", "413", "422", "503"} <= operation["responses"].keys()


def test_the_example_of_the_documentation(labelled):
    page = (ROOT / "docs/labels.md").read_text(encoding="utf-8")
    (body, shown) = re.search(r"/feedback .*? -d '(.*?)'\n(.*?)\n```", page, re.DOTALL).groups()
    headers = {"Content-Type": "application/json"}
    response = labelled.post("/feedback", content=body, headers=headers)
    assert response.json() == json.loads(shown)


def test_the_client_sends_labels(address_of, served, sqlite_store):
    address = address_of(served, labels=sqlite_store)
    with Client(address) as client:
        answer = client.feedback([{"id": 7, "label": "anomaly"}, {"id": 8.0, "label": "normal"}])
    assert (answer.stored, answer.unchanged) == (2, 0)
    assert [one.id for one in answer.results] == ["7", "8"]


# ---------------------------------------------------------------- models with entity windows


PAID = {"TERMINAL_ID": "a", "CUSTOMER_ID": 1, "TX_AMOUNT": 5.0}


def test_a_verdict_counts_in_later_windows(client_of, windowed, store_url, sqlite_store):
    client = client_of(windowed, windows=store_url, labels=sqlite_store)

    def risk(number, time):
        record = PAID | {"TRANSACTION_ID": number, "TX_DATETIME": time}
        (result,) = client.post("/score", json={"records": [record]}).json()["results"]
        return result["windows"]["TERMINAL_ID_risk_2d"]

    assert risk(7, "2018-08-01T10:00") is None
    at = "2018-08-03T00:00Z"
    assert send(client, {"id": 7, "label": "anomaly", "at": at}).json()["stored"] == 1
    assert risk(8, "2018-08-02T23:00") == 0
    assert risk(9, "2018-08-03T01:00") == 1
    assert send(client, {"id": 7, "label": "unsure"}, {"id": 99, "label": "anomaly"}).is_success
    assert risk(10, "2018-08-03T02:00") == 0


@pytest.mark.parametrize(("mode", "status"), [("refuse", 503), ("missing", 200)])
def test_verdicts_are_refused_as_a_whole_while_the_window_store_is_down(
    mode, status, client_of, windowed, tmp_path, sqlite_store
):
    (tmp_path / "state").write_text("")
    url = f"sqlite:///{tmp_path}/state/windows.db"
    client = client_of(windowed, windows=url, windows_down=mode, labels=sqlite_store)
    response = send(client, {"id": 7, "label": "anomaly"})
    assert response.status_code == status
    if status == 200:
        assert len(stored(sqlite_store)) == 1
    else:
        assert response.json()["type"] == "urn:anomaly-vae:windows-down"
        assert not Path(sqlite_store.removeprefix("sqlite:///")).exists()
