"""Sessions, scopes, forms and errors of all pages."""

import re
import time

import pytest

from anomaly_vae.errors import StoreError
from anomaly_vae.review import CaseStore
from serving.console import access, rendering, visits
from serving.console.visits import SECURE_HEADERS
from tests.support.console import KEYS, SECRETS, Visitor, key_of

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
    stranger = service.visitor("shop")
    assert stranger.get(path).status_code == 403
    assert "lacks the scope" in stranger.get(path).text
    assert service.visitor("alice").get(path).status_code == 200


def test_every_route_is_behind_the_gate(service):
    """Whatever is added later, too."""
    open_routes = {"/console/sign-in", "/console/sign-out", "/console/static/{digest}/{name}"}
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
def test_every_page_forbids_scripts_frames_and_copies(alice, path):
    answer = alice.get(path)
    for name, value in SECURE_HEADERS.items():
        assert answer.headers[name] == value
    assert answer.headers["cache-control"] == "no-store"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|javascript:", answer.text)
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", answer.text)


def test_a_page_that_is_unknown_is_an_error_page(alice):
    answer = alice.get("/nowhere")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "Back to the queue" in answer.text


# ---------------------------------------------------------------- sessions


def test_a_wrong_key_gets_no_session(service):
    visitor = service.visitor()
    answer = visitor.post("/sign-in", key="guess", next="/console/models")
    assert answer.status_code == 401
    assert "unknown" in answer.text
    assert 'value="/console/models"' in answer.text
    assert "guess" not in answer.text
    assert visitor.get("").status_code == 303


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/console\\evil", "/consolex", "/", ""]
)
def test_after_signing_in_no_other_site_follows(service, path):
    answer = service.visitor().post("/sign-in", key=SECRETS["alice"], next=path)
    assert answer.headers["location"] == "/console"


def test_after_signing_in_the_page_follows(service):
    page = "/console/cases/2?order=amount"
    visitor = service.visitor()
    address = visitor.get("/cases/2?order=amount").headers["location"]
    assert visitor.client.get(address).text.count(page) == 1
    answer = visitor.post("/sign-in", key=SECRETS["alice"], next=page)
    assert answer.headers["location"] == page


def cookie_of(answer):
    return answer.headers["set-cookie"].lower()


def test_a_cookie_is_out_of_reach_of_scripts_and_other_sites(service):
    answer = service.visitor().post("/sign-in", key=SECRETS["alice"])
    cookie = cookie_of(answer)
    for part in ("httponly", "samesite=lax", "path=/console", "max-age=3"):
        assert part in cookie
    assert "secure" not in cookie
    assert SECRETS["alice"] not in cookie


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"console_url": "https://scores.example/console"}, {}),
        ({}, {"X-Forwarded-Proto": "https"}),
    ],
)
def test_over_https_a_cookie_is_sent_over_https_only(service_of, served, settings, headers):
    visitor = service_of(served, **settings).visitor()
    assert "; secure" in cookie_of(visitor.get("/sign-in", headers=headers))


def test_signing_out_ends_the_session_in_the_browser(alice):
    assert alice.post("/sign-out").headers["location"] == "/console/sign-in"
    assert alice.get("").status_code == 303


def test_an_altered_or_old_cookie_is_no_session(service, monkeypatch):
    alice = service.visitor("alice")
    cookie = alice.client.cookies[access.COOKIE]
    for altered in (cookie[:-1] + "x", "x" + cookie, cookie.partition(".")[0], "é", "."):
        visitor = service.visitor()
        answer = visitor.get("", headers={"cookie": f"{access.COOKIE}={altered}".encode()})
        assert answer.status_code == 303
    later = time.time() + 11 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert alice.get("").status_code == 303


def test_a_session_is_renewed_while_its_reviewer_works(service, monkeypatch):
    alice = service.visitor("alice")
    start = time.time()
    for hours in (6, 12, 18):
        monkeypatch.setattr(time, "time", lambda: start + 3600 * hours)  # noqa: B023
        assert alice.get("").status_code == 200


def test_sessions_are_valid_in_other_processes_until_their_key_is_taken_away(service_of, served):
    first, second = service_of(served), service_of(served)
    alice = first.visitor("alice")
    for app, status in (
        (second.app, 200),
        (service_of(served, api_keys=KEYS[1:]).app, 303),
        (service_of(served, api_keys=(key_of("alice", "score"),)).app, 403),
        (service_of(served, console_secret="x" * 32).app, 303),
    ):
        visitor = Visitor(app)
        visitor.client.cookies.update(alice.client.cookies)
        assert visitor.get("").status_code == status


def test_a_proxy_may_send_the_key_with_each_request(service):
    visitor = service.visitor()
    for headers in ({"X-API-Key": SECRETS["bob"]}, {"Authorization": f"Bearer {SECRETS['bob']}"}):
        assert visitor.get("", headers=headers).status_code == 200
    assert visitor.get("", headers={"X-API-Key": "guess"}).status_code == 303


# ---------------------------------------------------------------- without keys


def test_without_keys_the_reviewer_is_the_user_of_this_machine(service_of, served, monkeypatch):
    monkeypatch.setattr(access.getpass, "getuser", lambda: "carol")
    service = service_of(served, api_keys=())
    visitor = service.visitor()
    assert "carol" in visitor.text("")
    assert visitor.decide(1, "anomaly").status_code == 303
    assert service.cases.case(1).label.who == "carol"


def test_without_keys_no_other_name_reaches_this_machine(service_of, served):
    """A page of another site could otherwise use a name of its own for this address."""
    visitor = service_of(served, api_keys=()).visitor()
    answer = visitor.get("", headers={"host": "evil.example"})
    assert answer.status_code == 403
    assert "ANOMALY_VAE_CONSOLE_URL" in answer.text
    named = service_of(served, api_keys=(), console_url="https://scores.example/console")
    assert named.visitor().get("", headers={"host": "scores.example"}).status_code == 200


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
    monkeypatch.setattr(visits, "MAX_WAITING", -visits.THREADS)
    answer = alice.get("")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_a_template_with_a_name_that_it_lacks_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        rendering.environment().from_string("{{ nothing }}").render()


def test_values_are_escaped():
    shown = rendering.environment().from_string("{{ x }}<a b='{{ x }}'>").render(x="<i>'\"&")
    assert shown == "&lt;i&gt;&#39;&#34;&amp;<a b='&lt;i&gt;&#39;&#34;&amp;'>"
    names = rendering.environment().list_templates()
    assert len(names) > 10
    for name in names:
        source, _, _ = rendering.environment().loader.get_source(rendering.environment(), name)
        assert "|safe" not in source.replace(" ", "")
        assert "autoescape" not in source
