"""Sessions, scopes, forms and errors of all pages."""

import re

import pytest

from anomaly_vae.errors import StoreError
from anomaly_vae.review import CaseStore
from serving.console import visits
from serving.console.visits import SECURE_HEADERS
from tests.support.console import KEYS, SECRETS

PAGES = ("", "/cases/1", "/what-if", "/models", "/try", "/batches", "/snoozes")


def test_without_a_case_store_a_hint_says_what_to_set(client_of, served):
    for path in ("/console", "/console/cases/1", "/console/static/x/console.css"):
        for settings in ({}, {"api_keys": KEYS}):
            answer = client_of(served, **settings).get(path)
            assert answer.status_code == 404
            assert answer.json()["type"] == "urn:anomaly-vae:no-case-store"
            assert "ANOMALY_VAE_CASES" in answer.json()["detail"]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_needs_a_session_with_the_scope(service, path):
    visitor = service.visitor()
    answer = visitor.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/console/sign-in?next=%2Fconsole")
    stranger = visitor.get(path, headers={"X-API-Key": SECRETS["shop"]})
    assert stranger.status_code == 403
    assert "lacks the scope" in stranger.text
    assert service.visitor("bob").get(path).status_code == 200


def test_every_route_is_behind_the_gate(service):
    """Whatever is added later, too."""
    open_routes = {f"/console/sign-{end}" for end in ("in", "out", "in/issuer", "in/callback")}
    open_routes.add("/console/static/{digest}/{name}")
    routes = [one for one in service.app.routes if one.path.startswith("/console")]
    assert len(routes) > 15
    visitor = service.visitor()
    for route in routes:
        if route.path in open_routes:
            continue
        path = re.sub(r"{[^}]*}", "1", route.path)
        for method in route.methods:
            answer = visitor.client.request(method, path)
            assert answer.status_code in (303, 401), (route.path, method)
            assert answer.status_code == 401 or "/sign-in?" in answer.headers["location"]


@pytest.mark.parametrize("path", [*PAGES, "/sign-in", "/nowhere"])
def test_every_page_forbids_scripts_frames_and_copies(bob, path):
    answer = bob.get(path)
    for name, value in SECURE_HEADERS.items():
        assert answer.headers[name] == value
    assert answer.headers["cache-control"] == "no-store"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|javascript:", answer.text)
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", answer.text)


def test_a_slash_at_the_end_is_forgiven(alice):
    assert alice.get("/").headers["location"] == "/console"


def test_a_page_that_is_unknown_is_an_error_page(alice):
    answer = alice.get("/nowhere")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "<h1>Not found</h1>" in answer.text
    assert "Back to the queue" in answer.text


# ---------------------------------------------------------------- forms

POSTS = [
    ("/cases/1/verdict", {"verdict": "anomaly"}),
    ("/cases/1/note", {"note": "x"}),
    ("/cases/1/undo", {}),
    ("/cases/1/snooze", {"until": "2099-01-01", "reason": "x"}),
    ("/snoozes/1/end", {}),
    ("/sign-out", {}),
    ("/sign-in", {"key": "alice-key"}),
    ("/try", {"text": "a", "from": "text"}),
]


@pytest.mark.parametrize(("path", "fields"), POSTS)
def test_a_form_needs_the_token_of_its_session(service, alice, bob, path, fields):
    for token in ("", "0" * 64, bob.token, "é"):
        answer = alice.client.post(f"/console{path}", data={**fields, "form_token": token})
        assert answer.status_code == 403, token
    crossed = alice.client.post(
        f"/console{path}",
        data={**fields, "form_token": alice.token},
        headers={"Sec-Fetch-Site": "cross-site"},
    )
    assert crossed.status_code == 403
    assert service.cases.case(1).label is None
    assert alice.get("").status_code == 200


def test_a_form_of_a_session_that_has_ended_says_so(service):
    answer = service.visitor().post("/cases/1/verdict", verdict="anomaly")
    assert answer.status_code == 401
    assert "sign in" in answer.text


def test_forms_have_limits(service_of, served):
    alice = service_of(served, max_body_bytes=4096).visitor("alice")
    assert alice.post("/try", text="x" * 5000).status_code == 413
    many = {f"f{number}": "" for number in range(2001)}
    small = service_of(served).visitor("alice")
    answer = small.client.post("/console/try", data=many)
    assert (answer.status_code, "too long" in answer.text) == (400, True)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"no form", b"--x\r\nno head"):
        assert small.client.post("/console/try", content=body, headers=broken).status_code in (
            400, 403,
        )  # fmt: skip


# ---------------------------------------------------------------- faults


def test_a_store_that_is_down_is_a_page_that_says_so(alice, monkeypatch):
    def fail(*_):
        raise StoreError("case store sqlite:///x: disk I/O error")

    monkeypatch.setattr(CaseStore, "queue", fail)
    monkeypatch.setattr(CaseStore, "count", fail)
    answer = alice.get("")
    assert answer.status_code == 503
    assert "disk I/O error" in answer.text
    assert "Nothing is lost" in answer.text


def test_a_bug_is_logged_and_reveals_nothing(alice, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(CaseStore, "queue", fail)
    answer = alice.get("")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert "secret detail" in caplog.text


def test_too_many_pages_at_once_are_refused(alice, monkeypatch):
    monkeypatch.setattr(visits, "MAX_WAITING", 0)
    answer = alice.get("")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
