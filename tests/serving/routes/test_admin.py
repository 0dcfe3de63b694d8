"""Who may have the registry looked at, and what MLflow's webhooks must bring."""

import asyncio
import hashlib
import json
import time

import pytest
from starlette.testclient import TestClient

from anomaly_vae.artifacts.registry_names import BundleRef
from serving.app import create_app
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.registry.board import Board, FollowedModel, FollowState
from serving.registry.follower import Follower
from serving.registry.sources import Sources
from serving.routes.admin import MAX_CLOCK_DIFFERENCE_SECONDS, WEBHOOK_BYTES
from serving.settings import ApiKey, Settings
from tests.support.fetching import answer, stand_in
from tests.support.mlflow_registry import URI, metric

SECRET = "a secret of webhooks"
DIGEST = hashlib.sha256(b"key").hexdigest()


def client(served, where="127.0.0.1", followed=(), **settings):
    app = create_app(Store([served]), Settings(**settings), board=Board(FollowState(followed)))
    return TestClient(app, raise_server_exceptions=False, client=(where, 5000))


@pytest.mark.parametrize(
    ("scopes", "key", "status"),
    [("admin", "key", 200), ("score+metrics", "key", 403), ("admin", "other", 401)],
)
def test_with_keys_it_takes_an_administrator(served, scopes, key, status):
    keys = (ApiKey("k", frozenset(scopes.split("+")), DIGEST),)
    asked = client(served, "192.0.2.1", api_keys=keys)
    headers = {"Authorization": f"Bearer {key}"}
    assert asked.post("/-/reload", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("where", "status"), [("127.0.0.1", 200), ("::1", 200), ("192.0.2.1", 403), ("x", 403)]
)
def test_without_keys_it_takes_this_machine(served, where, status):
    response = client(served, where).post("/-/reload")
    assert response.status_code == status
    if status == 403:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"].endswith("set ANOMALY_VAE_API_KEYS")


def test_answers_are_as_documented(served):
    asked = client(served)
    operation = asked.get("/openapi.json").json()["paths"]["/-/reload"]["post"]
    assert set(operation["responses"]) == {"200", "403", "408", "429", "431", "500", "503"}
    assert asked.post("/-/reload").json() == {"models": []}
    assert asked.get("/-/reload").status_code == 405
    assert asked.post("/-/webhook").status_code == 404, "there is no secret"


# ---------------------------------------------------------------- together


def test_whoever_asks_meanwhile_waits_for_the_next_look(tmp_path, folder, served, monkeypatch):
    """A hundred at once are one look; the one that began before they asked is not theirs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://nowhere")
    asked = tmp_path / "asked"
    code = f"open({str(asked)!r}, 'a').write('x')\ntime.sleep(0.3)\n"
    code += f"n = os.path.getsize({str(asked)!r})\n"
    code += f"print(json.dumps({{**{answer(folder)!r}, 'version': str(n)}}))"
    settings = Settings(cache_dir=tmp_path / "cache")
    store = Store([served])
    board = Board(FollowState((FollowedModel(URI, "fraud", source=BundleRef(str(folder))),)))
    sources = Sources(settings, stand_in(tmp_path, code))
    follower = Follower(store, settings, Metrics(store), board, sources)

    async def storm():
        first = asyncio.create_task(follower.reload())
        while not asked.exists():
            await asyncio.sleep(0.01)
        rest = await asyncio.gather(*(follower.reload() for _ in range(100)))
        return await first, rest

    first, rest = asyncio.run(storm())
    assert first[0].version == "1"
    assert {answers[0].version for answers in rest} == {"2"}
    assert asked.read_text() == "xx"
    assert store.current["fraud"].version == "2"


def test_what_nobody_foresaw_is_a_failure_too(tmp_path, served, monkeypatch, caplog):
    """The old version serves, and the log has the place but not the words."""
    settings = Settings(cache_dir=tmp_path)
    store, sources = Store([served]), Sources(settings)
    monkeypatch.setattr(sources, "find", lambda *_: 1 / 0)
    metrics = Metrics(store)
    board = Board(FollowState((FollowedModel(URI, "fraud", source=BundleRef("x", served.digest)),)))
    follower = Follower(store, settings, metrics, board, sources)
    (found,) = asyncio.run(follower.reload())
    assert (found.outcome, found.detail) == ("failed", "unexpected ZeroDivisionError")
    assert store.current["fraud"] is served
    text = metrics.exposition("")[0].decode()
    assert metric(text, "reload_failures_total", reason="internal") == 1
    assert [line.getMessage() for line in caplog.records] == ["reload failed"]


# ---------------------------------------------------------------- webhooks


def event(**changes):
    data = {"name": "fraud", "alias": "champion", "version": "2"}
    content = {"entity": "model_version_alias", "action": "created", "data": data}
    return json.dumps({"timestamp": "2026-01-01T00:00:00+00:00", **content, **changes})


def signed(body, secret=SECRET, at=None):
    """The headers that MLflow itself sends with this."""
    from mlflow.webhooks.constants import (
        WEBHOOK_DELIVERY_ID_HEADER,
        WEBHOOK_SIGNATURE_HEADER,
        WEBHOOK_TIMESTAMP_HEADER,
    )
    from mlflow.webhooks.delivery import _generate_hmac_signature

    stamp = str(int(time.time()) if at is None else at)
    return {
        WEBHOOK_DELIVERY_ID_HEADER: "7f5c",
        WEBHOOK_TIMESTAMP_HEADER: stamp,
        WEBHOOK_SIGNATURE_HEADER: _generate_hmac_signature(secret, "7f5c", stamp, body),
    }


@pytest.fixture
def hooked(served, monkeypatch):
    """A client of a service that takes webhooks, and how often it looked."""
    looks = []
    monkeypatch.setattr(Follower, "schedule_check", lambda _: looks.append(1))
    followed = (FollowedModel(URI, "fraud", source=BundleRef("x")),)
    keys = (ApiKey("k", frozenset({"score"}), DIGEST),)
    asked = client(served, "192.0.2.1", followed, webhook_secret=SECRET, api_keys=keys)
    asked.looks = looks
    return asked


@pytest.mark.parametrize(
    ("changes", "looks"),
    [
        ({}, 1),
        ({"action": "deleted"}, 1),
        ({"entity": "model_version"}, 0),
        ({"data": {"name": "other", "alias": "champion"}}, 0),
        ({"data": {"name": "fraud", "alias": "staging"}}, 0),
        ({"data": {}}, 0),
    ],
)
def test_an_alias_that_moves_is_a_reason_to_look(hooked, changes, looks):
    body = event(**changes)
    response = hooked.post("/-/webhook", content=body, headers=signed(body))
    assert (response.status_code, response.content) == (202, b"")
    assert len(hooked.looks) == looks


def now() -> int:
    return int(time.time())


@pytest.mark.parametrize(
    "forge",
    [
        dict,
        lambda: signed(event(), secret="another secret of webhooks"),
        lambda: signed(event(action="deleted")),
        lambda: signed(event(), at=now() - MAX_CLOCK_DIFFERENCE_SECONDS - 60),
        lambda: signed(event(), at=now() + MAX_CLOCK_DIFFERENCE_SECONDS + 60),
        lambda: signed(event(), at="soon"),
        lambda: {**signed(event()), "X-MLflow-Delivery-Id": "7f5d"},
        lambda: {**signed(event()), "X-MLflow-Timestamp": str(now() + 1)},
        lambda: {**signed(event()), "X-MLflow-Signature": "v1,"},
        lambda: {**signed(event()), "X-MLflow-Signature": "v1,\u00e9".encode("latin-1")},
    ],
    ids=range(10),
)
def test_what_mlflow_did_not_sign_just_now_is_refused(hooked, forge):
    response = hooked.post("/-/webhook", content=event(), headers=forge())
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert not hooked.looks


@pytest.mark.parametrize("body", ["", "no event", "[]", '{"data": 1}'])
def test_what_is_no_event_is_refused(hooked, body):
    response = hooked.post("/-/webhook", content=body, headers=signed(body))
    assert response.status_code == 400
    assert not hooked.looks


def test_a_webhook_is_small(hooked):
    body = "x" * (WEBHOOK_BYTES + 1)
    assert hooked.post("/-/webhook", content=body, headers=signed(body)).status_code == 413


def test_a_webhook_is_documented_and_needs_no_key(hooked):
    key = {"X-API-Key": "key"}
    operation = hooked.get("/openapi.json", headers=key).json()["paths"]["/-/webhook"]["post"]
    assert set(operation["responses"]) == {"202", "400", "401", "408", "413", "429", "431", "500"}
    assert "security" not in operation


def test_a_secret_that_is_short_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        Settings(webhook_secret="")
    assert SECRET not in repr(Settings(webhook_secret=SECRET))
