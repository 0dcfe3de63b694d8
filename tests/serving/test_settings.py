"""Settings and API keys."""

import hashlib

import pytest

from anomaly_vae.errors import ConfigError
from serving.settings import ApiKey, Settings, describe_settings, find_key, read_settings


def sha(key):
    return hashlib.sha256(key.encode()).hexdigest()


KEYS = f"shop:score:{sha('k1')}, prom:metrics:{sha('k2')},boss:score+metrics+admin:{sha('k3')}"


@pytest.fixture
def guarded(client_of, served, monkeypatch):
    monkeypatch.setenv("ANOMALY_VAE_API_KEYS", KEYS)
    return client_of(served)


def test_keys_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("ANOMALY_VAE_API_KEYS", KEYS)
    keys = read_settings().api_keys
    assert [(key.name, key.scopes) for key in keys] == [
        ("shop", {"score"}),
        ("prom", {"metrics"}),
        ("boss", {"score", "metrics", "admin"}),
    ]
    assert sha("k1") not in repr(keys)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MAX_RECORDS", "0", "greater than or equal to 1"),
        ("MAX_RECORDS", "many", "integer"),
        ("LOG_LEVEL", "loud", "info"),
        ("API_KEYS", "shop", "name:scopes:sha256hex"),
        ("API_KEYS", f"shop:fly:{sha('k')}", "scopes are"),
        ("API_KEYS", "shop:score:hunter2", "64 hexadecimal digits"),
    ],
)
def test_a_bad_setting_is_one_line_with_its_name(monkeypatch, name, value, said):
    monkeypatch.setenv(f"ANOMALY_VAE_{name}", value)
    with pytest.raises(ConfigError, match=said) as caught:
        read_settings()
    message = str(caught.value)
    assert message.startswith(f"ANOMALY_VAE_{name}: ")
    assert "\n" not in message
    assert "hunter2" not in message


def test_every_setting_is_documented():
    described = list(describe_settings())
    assert {d.name for d in described} == {
        f"ANOMALY_VAE_{n.upper()}" for n in Settings.model_fields
    }
    assert all(d.description.endswith(".") for d in described)


def test_find_key():
    keys = [ApiKey("a", frozenset({"score"}), sha("one")), ApiKey("b", frozenset(), sha("two"))]
    assert find_key(keys, b"two") is keys[1]
    assert find_key(keys, b"three") is None
    assert find_key([], b"one") is None


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [
        ("k1", "/score", 200),
        ("k2", "/score", 403),
        ("k3", "/score", 200),
        ("k1", "/models", 200),
        ("k1", "/metrics", 403),
        ("k2", "/metrics", 200),
        ("k3", "/metrics", 200),
        ("k1", "/-/reload", 403),
        ("k3", "/-/reload", 200),
        ("no", "/score", 401),
        ("no", "/metrics", 401),
        ("no", "/anywhere", 401),
        ("", "/score", 401),
        ("", "/health/ready", 200),
        ("", "/health/live", 200),
        ("", "/docs", 200),
        ("", "/openapi.json", 200),
    ],
)
@pytest.mark.parametrize("way", ["Authorization", "X-API-Key"])
def test_who_may_do_what(guarded, key, path, status, way):
    value = f"Bearer {key}" if way == "Authorization" else key
    headers = {way: value} if key else {}
    method = "POST" if path in {"/score", "/-/reload"} else "GET"
    response = guarded.request(
        method,
        path,
        headers=headers,
        json={"records": [{"TX_AMOUNT": 1}]} if method == "POST" else None,
    )
    assert response.status_code == status, response.text
    if status in {401, 403}:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status
    assert ("www-authenticate" in response.headers) == (status == 401)


@pytest.mark.parametrize("header", [b"Basic k1", b"Bearer", b"Bearer \xff\xfe", b"k1"])
def test_headers_that_are_no_keys(guarded, header):
    response = guarded.post(
        "/score", json={"records": [{"TX_AMOUNT": 1}]}, headers={b"Authorization": header}
    )
    assert response.status_code == 401


def test_refused_keys_are_counted(guarded):
    guarded.get("/models")
    text = guarded.get("/metrics", headers={"X-API-Key": "k2"}).text
    assert 'anomaly_vae_rejected_requests_total{reason="unauthenticated"} 1.0' in text


def test_the_document_says_which_routes_need_a_key(guarded):
    document = guarded.get("/openapi.json").json()
    paths = document["paths"]
    assert paths["/score"]["post"]["security"] == [{"bearer": []}, {"key": []}]
    assert "401" in paths["/metrics"]["get"]["responses"]
    assert "security" not in paths["/health/live"]["get"]


@pytest.mark.parametrize("url", ["lmdb:///a", "a.db", "redis://h:port/0"])
def test_a_window_store_of_another_form_is_refused_at_the_start(url, monkeypatch):
    monkeypatch.setenv("ANOMALY_VAE_WINDOWS", url)
    with pytest.raises(ConfigError, match=r"ANOMALY_VAE_WINDOWS: .* expected sqlite:///FILE or"):
        read_settings()


def test_the_time_to_which_a_window_store_is_filled_must_be_a_time(monkeypatch):
    monkeypatch.setenv("ANOMALY_VAE_WINDOWS_FILLED_TO", "soon")
    with pytest.raises(
        ConfigError, match=r"ANOMALY_VAE_WINDOWS_FILLED_TO: .* expected a time such"
    ):
        read_settings()
