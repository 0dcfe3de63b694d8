"""Test the Redis store under concurrent writes, without a server, and after its return."""

import threading
from dataclasses import replace

import pytest
import redis

from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features.store import StoreOptions, open_store
from tests.support.ports import free_port
from tests.support.redis_server import PASSWORD, redis_server
from tests.support.window_streams import DAY, INPUTS, stream

CARD = {"CUSTOMER_ID": "1", "TERMINAL_ID": "1"}


def test_stores_that_write_at_once_lose_nothing(tmp_path):
    events = [replace(event, keys=CARD) for event in stream(200, seed=2)]

    def write(url, part):
        store = open_store(StoreOptions(url), INPUTS)
        for event in part:
            store.load([event])
        store.backend.close()

    with redis_server(tmp_path) as url:
        threads = [threading.Thread(target=write, args=(url, events[k % 4 :: 4])) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store = open_store(StoreOptions(url), INPUTS)
        times = store.history("CUSTOMER_ID", 1)[:, 0].tolist()
        assert times == sorted(event.time for event in events)
        store.backend.close()


def test_every_key_of_an_event_expires(tmp_path):
    with redis_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        store = open_store(StoreOptions(url), INPUTS)
        store.add([replace(stream(1, seed=1)[0], keys=CARD)])
        expiring = {key: client.pttl(key) for key in client.keys("*:[ei]*:*")}
        assert len(expiring) >= 3
        assert all(0 < left <= 60 * DAY // 1000 for left in expiring.values())
        store.backend.close()


def test_a_repeated_event_renews_its_keys(tmp_path):
    """So that history can be loaded again for a model with longer windows."""
    with redis_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        store = open_store(StoreOptions(url), INPUTS)
        event = replace(stream(1, seed=1)[0], keys=CARD)
        store.add([event])
        keys = client.keys("*:[ei]:*")
        for key in keys:
            client.pexpire(key, 60_000)
        assert store.load([event]).outcomes == ["duplicate"]
        assert all(client.pttl(key) > DAY // 1000 for key in keys)
        store.backend.close()


def test_a_server_that_is_gone_is_reported_without_its_password_and_may_return(tmp_path):
    port, events = free_port(), [replace(event, keys=CARD) for event in stream(2, seed=1)]
    with redis_server(tmp_path, port) as url:
        store = open_store(StoreOptions(url, seconds=1), INPUTS)
        store.add(events[:1])
    with pytest.raises(WindowStoreError, match=f"'redis://127.0.0.1:{port}/0' cannot be") as error:
        store.features(events)
    assert PASSWORD not in str(error.value)
    with redis_server(tmp_path, port):  # empty, as this server keeps nothing
        assert store.features(events).state.newest is None
        assert store.add(events[1:]).outcomes == ["recorded"]
    store.backend.close()
