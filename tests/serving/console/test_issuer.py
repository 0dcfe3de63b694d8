"""Signing in at the issuer of tokens."""

import time

import pytest

from serving.console import issuer as module
from serving.problems import ProblemError
from serving.settings import Settings
from tests.support.issuers import AUDIENCE, Issuer

ORIGIN = "https://scores.example"
CALLBACK = f"{ORIGIN}/console/sign-in/callback"


@pytest.fixture(scope="module")
def running():
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def issuer(running):
    running.away, running.challenges = False, {}
    running.signed_in = {
        "iss": running.base,
        "scope": "openid review",
        "preferred_username": "ann",
        "azp": "console",
    }
    return running


@pytest.fixture
def service(service_of, served, issuer):
    return service_of(
        served, api_keys=(), oidc_issuer=issuer.base, oidc_audience=AUDIENCE,
        oidc_jwks_url=issuer.url, oidc_client_id="console",
        console_url=f"{ORIGIN}/console",
    )  # fmt: skip


def leave(visitor, following="/console/cases/2"):
    answer = visitor.get("/sign-in/issuer", params={"next": following})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def come_back(visitor, query, code):
    return visitor.get("/sign-in/callback", params={"state": query["state"], "code": code})


def test_a_reviewer_signs_in_under_their_own_name(service, issuer):
    visitor = service.visitor(origin=ORIGIN)
    assert "/console/sign-in/issuer?next=/console/models" in visitor.text(
        "/sign-in?next=/console/models"
    )
    address = leave(visitor)
    assert address.startswith(f"{issuer.base}/authorize?tenant=1&response_type=code&")
    query, code = issuer.authorize(address)
    assert query["redirect_uri"] == CALLBACK
    assert query["scope"] == "openid review"
    answer = come_back(visitor, query, code)
    assert answer.headers["location"] == "/console/cases/2"
    assert visitor.decide(1, "anomaly").status_code == 303
    assert service.cases.case(1).label.who == "token:ann"


def test_a_session_ends_with_its_token(service, issuer, monkeypatch):
    visitor = service.visitor(origin=ORIGIN)
    come_back(visitor, *issuer.authorize(leave(visitor)))
    assert visitor.get("").status_code == 200
    later = time.time() + 601
    monkeypatch.setattr(time, "time", lambda: later)
    assert visitor.get("").status_code == 303


def test_without_the_scope_nothing_is_shown(service, issuer):
    issuer.signed_in["scope"] = "openid score"
    visitor = service.visitor(origin=ORIGIN)
    answer = come_back(visitor, *issuer.authorize(leave(visitor)))
    assert (answer.status_code, "lacks the scope" in answer.text) == (401, True)
    assert visitor.get("").status_code == 303


def test_a_code_is_for_the_visitor_who_asked_for_it(service, issuer):
    """Another site cannot sign a visitor in as somebody else."""
    attacker, victim = service.visitor(origin=ORIGIN), service.visitor(origin=ORIGIN)
    query, code = issuer.authorize(leave(attacker))
    victim.get("/sign-in")
    answer = come_back(victim, query, code)
    assert (answer.status_code, "did not sign you in" in answer.text) == (401, True)
    assert victim.get("").status_code == 303


@pytest.mark.parametrize("change", [{"state": "x.y"}, {"state": ""}, {"code": ""}, {"code": "old"}])
def test_what_the_issuer_did_not_send_signs_nobody_in(service, issuer, change):
    visitor = service.visitor(origin=ORIGIN)
    query, code = issuer.authorize(leave(visitor))
    parameters = {"state": query["state"], "code": code, **change}
    answer = visitor.get("/sign-in/callback", params=parameters)
    assert answer.status_code == 401
    assert visitor.get("").status_code == 303


def test_a_token_that_does_not_fit_signs_nobody_in(service, issuer):
    issuer.signed_in["aud"] = "another service"
    visitor = service.visitor(origin=ORIGIN)
    answer = come_back(visitor, *issuer.authorize(leave(visitor)))
    assert (answer.status_code, "unknown" in answer.text) == (401, True)


def test_no_other_site_follows(service, issuer):
    visitor = service.visitor(origin=ORIGIN)
    answer = come_back(visitor, *issuer.authorize(leave(visitor, "https://evil.example")))
    assert answer.headers["location"] == "/console"


def test_an_issuer_that_is_away_is_one_line(service, issuer):
    issuer.away = True
    answer = service.visitor(origin=ORIGIN).get("/sign-in/issuer")
    assert (answer.status_code, "it answered 503" in answer.text) == (401, True)


def test_a_token_can_be_pasted_too(service, issuer):
    visitor = service.visitor(origin=ORIGIN)
    token = issuer.token(**issuer.signed_in)
    assert visitor.post("/sign-in", key=token).status_code == 303
    assert "token:ann" in visitor.text("")


def test_without_a_client_it_is_not_offered(service_of, served):
    visitor = service_of(served).visitor()
    assert "sign-in/issuer" not in visitor.text("/sign-in")
    assert visitor.get("/sign-in/issuer").status_code == 404


@pytest.mark.parametrize(
    "address", ["http://issuer.example", "ftp://x", "https://127.0.0.1:1", "http://127.0.0.1:1"]
)
def test_only_safe_addresses_are_asked(address):
    with pytest.raises(ProblemError, match=r"must begin with https|cannot be reached"):
        module._ask(address)


def test_it_is_offered_with_a_client_and_an_address():
    settings = Settings(oidc_client_id="c", console_url="https://x/console")
    assert module.Issuer(settings).is_offered
    assert not module.Issuer(Settings(oidc_client_id="c")).is_offered
