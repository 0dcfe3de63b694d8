"""Test the URLs of window stores."""

import pytest

from anomaly_vae.errors import ConfigError
from anomaly_vae.features.store import StoreOptions, open_store
from anomaly_vae.features.store.opening import default_url, open_backend
from anomaly_vae.features.store.redis import RedisBackend
from anomaly_vae.features.store.sqlite import SqliteBackend
from tests.support.window_streams import INPUTS, stream


def test_the_default_is_a_file_in_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("ANOMALY_VAE_WINDOWS", raising=False)
    assert default_url() == f"sqlite:///{tmp_path}/anomaly-vae/windows.db"
    store = open_store(StoreOptions.from_environment(), INPUTS)
    store.add(stream(3, seed=1))
    assert (tmp_path / "anomaly-vae" / "windows.db").is_file()


def test_options_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("ANOMALY_VAE_WINDOWS", "sqlite:///a.db")
    monkeypatch.setenv("ANOMALY_VAE_WINDOWS_SALT", "pepper")
    assert StoreOptions.from_environment() == StoreOptions("sqlite:///a.db", "pepper")
    assert StoreOptions.from_environment("sqlite:///b.db").url == "sqlite:///b.db"
    assert isinstance(open_backend(StoreOptions("sqlite:///b.db")), SqliteBackend)


def test_redis_and_valkey_are_opened_when_they_are_used():
    for scheme in ("redis", "rediss", "valkey"):
        assert isinstance(open_backend(StoreOptions(f"{scheme}://:secret@h:1/0")), RedisBackend)


@pytest.mark.parametrize(
    "url", ["lmdb:///a", "sqlite://", "a.db", "redis://", "http://u:pass@h", "redis://h:p/0"]
)
def test_another_url_is_refused_without_its_password(url):
    with pytest.raises(ConfigError, match="expected sqlite:///FILE or redis://") as error:
        open_backend(StoreOptions(url))
    assert "pass@" not in str(error.value)
