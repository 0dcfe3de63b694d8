"""Who a visitor is: by cookie, by key, or on this machine."""

import time

import pytest

from serving.console import access
from tests.support.console import KEYS, SECRETS, Visitor, key_of


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
