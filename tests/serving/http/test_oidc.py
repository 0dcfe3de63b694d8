"""Tokens of an issuer whose public keys are served on loopback."""

import base64
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from anomaly_vae.errors import ConfigError
from serving.http import oidc
from serving.settings import ApiKey, read_settings
from tests.support.http_requests import refused
from tests.support.issuers import AUDIENCE, ISSUER, MAKERS, Issuer

BODY = {"records": [{"TX_AMOUNT": 1}]}


@pytest.fixture(scope="module")
def signer():
    """Make the keys once, because that takes long."""
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def issuer(signer):
    signer.seen, signer.away = 0, False
    yield signer
    signer.keys = {name: signer.keys[name] for name in MAKERS}


@pytest.fixture
def ask(client_of, served, issuer):
    """Return a function that scores with a token and returns the status."""

    def make(**more):
        options = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks_url": issuer.url}
        client = client_of(served, **{**options, **more})
        return lambda token, path="/score": client.request(
            "POST" if path in {"/score", "/-/reload"} else "GET",
            path,
            json=BODY if path == "/score" else None,
            headers={"Authorization": f"Bearer {token}"},
        )

    return make


@pytest.mark.parametrize("name", MAKERS)
def test_a_good_token(ask, issuer, name):
    assert ask()(issuer.token(name)).status_code == 200


def test_an_administrator_may_have_the_registry_looked_at(ask, issuer):
    """With an issuer, any address can be served, as with keys."""
    asking = ask()
    assert asking(issuer.token(scope="admin"), "/-/reload").status_code == 200
    refused(asking(issuer.token(), "/-/reload"), 403, "forbidden")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"exp": None},
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "another-service"},
        {"aud": None},
        {"nbf": 4_000_000_000},
    ],
    ids=str,
)
def test_a_token_that_is_not_for_us_or_not_for_now(ask, issuer, claims):
    refused(ask()(issuer.token(**claims)), 401, "unauthenticated")


def with_secret(token, secret, algorithm="HS256"):
    """Return the same claims signed with the public key as a shared secret."""
    head, claims, _ = token.split(".")
    number = jwt.get_unverified_header(token)["kid"]
    head = encoded(json.dumps({"alg": algorithm, "typ": "JWT", "kid": number}).encode())
    signature = hmac.digest(secret, f"{head}.{claims}".encode(), "sha256")
    return f"{head}.{claims}.{encoded(signature)}"


def encoded(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def test_a_token_that_somebody_else_made(ask, issuer):
    asking = ask()
    public = issuer.keys["RS256"].public_key()
    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    shared = b"secret" * 8
    tokens = [
        issuer.token(key=MAKERS["RS256"]()),
        issuer.token("ES256", kid="RS256"),
        with_secret(issuer.token(), der),
        with_secret(issuer.token(kid="shared"), shared),
        with_secret(issuer.token(kid="shared"), shared, algorithm="RS256"),
        issuer.token(kid="nobody's"),
        jwt.encode({"scope": "score"}, None, "none", headers={"kid": "RS256"}),
        issuer.token()[:-8] + "AAAAAAAA",
        "a.b.c",
        "...",
        "x" * 20_000,
        issuer.token(more="x" * 30_000),
    ]
    for token in tokens:
        refused(asking(token), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("scope", "settings", "statuses"),
    [
        ("score", {}, [200, 403]),
        ("openid metrics", {}, [403, 200]),
        (["score", "metrics", 5], {}, [200, 200]),
        ("", {}, [403, 403]),
        (None, {}, [403, 403]),
        (5, {}, [403, 403]),
        ("fraud:score metrics", {"oidc_scope_prefix": "fraud:"}, [200, 403]),
        ("score", {"oidc_scope_claim": "roles"}, [403, 403]),
    ],
)
def test_scopes(ask, issuer, scope, settings, statuses):
    asking, token = ask(**settings), issuer.token(scope=scope)
    assert [asking(token, path).status_code for path in ("/score", "/metrics")] == statuses


def test_another_claim_of_scopes(ask, issuer):
    asking = ask(oidc_scope_claim="roles")
    assert asking(issuer.token(scope=None, roles=["score"])).status_code == 200


def test_no_request_waits_for_the_issuer(ask, issuer):
    """The number of tokens with unknown keys makes no difference."""
    asking = ask()
    for number in range(20):
        assert asking(issuer.token()).status_code == 200
        assert asking(issuer.token(kid=f"unknown {number}")).status_code == 401
    assert issuer.seen == 1


def wait_until(asking, token, status):
    deadline = time.monotonic() + 20
    while asking(token).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_new_key_is_learned_and_an_old_one_forgotten(ask, issuer, monkeypatch):
    monkeypatch.setattr(oidc, "MIN_FETCH_INTERVAL_SECONDS", 0.0)
    asking, old = ask(oidc_refresh_seconds=0.01), issuer.token("ES256")
    assert asking(old).status_code == 200
    issuer.keys["ES256 new"] = MAKERS["ES256"]()
    wait_until(asking, issuer.token("ES256 new"), 200)
    kept = issuer.keys.pop("ES256")
    wait_until(asking, old, 401)
    issuer.keys["ES256"] = kept


def test_an_issuer_that_is_away(ask, issuer, monkeypatch):
    """Known keys stay valid; new ones are fetched once the issuer is back."""
    monkeypatch.setattr(oidc, "MIN_FETCH_INTERVAL_SECONDS", 0.0)
    asking = ask(oidc_refresh_seconds=0.01)
    issuer.away = True
    late = ask()
    for _ in range(5):
        assert asking(issuer.token()).status_code == 200
        time.sleep(0.02)
    assert late(issuer.token()).status_code == 401
    issuer.away = False
    wait_until(late, issuer.token(), 200)


def test_keys_are_good_beside_tokens(ask, issuer):
    keys = (ApiKey("a", frozenset({"score"}), "2" * 64),)
    asking = ask(api_keys=keys)
    assert asking("no token").status_code == 401
    assert asking(issuer.token()).status_code == 200


def test_the_log_names_who_asks_and_shows_no_token(ask, issuer, caplog):
    with caplog.at_level("INFO"):
        ask()(issuer.token(azp="till-7"))
    said = " ".join(str(vars(record)) for record in caplog.records)
    assert "token:till-7" in said
    assert "eyJ" not in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ISSUER": ISSUER}, "ANOMALY_VAE_OIDC_AUDIENCE"),
        (
            {"ISSUER": ISSUER, "AUDIENCE": "a", "JWKS_URL": "http://issuer.example/keys"},
            "https address",
        ),
        ({"ISSUER": ISSUER, "AUDIENCE": "a", "JWKS_URL": "file:///etc/passwd"}, "https address"),
    ],
)
def test_settings_that_are_not_enough(monkeypatch, settings, said):
    for name, value in settings.items():
        monkeypatch.setenv(f"ANOMALY_VAE_OIDC_{name}", value)
    with pytest.raises(ConfigError, match=said):
        read_settings()
