"""Sessions are signed, end, and survive in other processes by their secret."""

import os
import time

import pytest

from anomaly_vae.errors import ConfigError
from serving.console.sessions import KEY_FILE, Session, Signer, fingerprint, read_secret


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def test_a_session_survives_its_cookie():
    session = Session.new(time.time() + 60, "alice", "f" * 16, ("review",))
    assert Signer(b"x").load(Signer(b"x").dump(session)) == session
    assert Signer(b"y").load(Signer(b"x").dump(session)) is None


def test_a_session_ends():
    assert Signer(b"x").load(Signer(b"x").dump(Session.new(time.time() - 1, "alice"))) is None


def test_form_tokens_differ_between_sessions_and_from_signatures():
    signer, one, other = Signer(b"x"), Session.new(1.0), Session.new(1.0)
    assert one.id != other.id
    assert signer.is_form_token(signer.form_token(one), one)
    assert not signer.is_form_token(signer.form_token(one), other)
    assert signer.form_token(one) not in signer.dump(one)


def test_the_secret_of_the_settings_wins(state):
    assert read_secret("s" * 32) == b"s" * 32
    assert not (state / KEY_FILE).exists()


def test_a_secret_is_made_once_and_for_its_owner_only(state):
    secret = read_secret(None)
    assert len(secret) == 32
    assert read_secret(None) == secret
    path = state / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_process_that_is_late_takes_the_secret_of_the_first(state, monkeypatch):
    def faster(draft, path):
        path.write_bytes(b"f" * 32)
        raise FileExistsError

    monkeypatch.setattr(os, "link", faster)
    assert read_secret(None) == b"f" * 32


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_damaged_secret_is_an_error_that_says_what_to_do(state, content):
    path = state / KEY_FILE
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="ANOMALY_VAE_CONSOLE_SECRET"):
        read_secret(None)


def test_a_service_that_cannot_keep_a_secret_scores_nevertheless(
    service_of, served, state, monkeypatch
):
    (state / "anomaly-vae").write_text("no folder")
    visitor = service_of(served, console_secret=None).visitor()
    answer = visitor.get("")
    assert answer.status_code == 503
    assert "ANOMALY_VAE_CONSOLE_SECRET" in answer.json()["detail"]
    headers = {"X-API-Key": "shop-key"}
    body = {"records": [{"TX_AMOUNT": 1}]}
    assert visitor.client.post("/score", json=body, headers=headers).status_code == 200


def test_the_fingerprint_of_a_key_does_not_reveal_its_digest():
    assert fingerprint("a" * 64) not in "a" * 64
    assert fingerprint("") == ""
