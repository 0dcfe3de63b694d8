"""Each API key may send requests at a rate, over all worker processes."""

import hashlib

import pytest

from serving.http.rate_limit import SLOTS, BucketStore, RateLimiter, open_store
from serving.settings import ApiKey, Settings
from tests.support.http_requests import refusal


@pytest.mark.parametrize("shared", [False, True])
def test_a_rate_with_a_burst(tmp_path, shared):
    now = [100.0]
    store = BucketStore(tmp_path / "rates", ["a"]) if shared else BucketStore()
    rates = RateLimiter(2.0, 3, store, clock=lambda: now[0])
    for _ in range(3):
        rates.consume("a")
    refused = refusal(rates.consume, "a")
    assert (refused.kind.slug, refused.headers) == ("rate-limited", {"Retry-After": "1"})
    rates.consume("b")
    for _ in range(20):
        now[0] += 0.5
        rates.consume("a")
    refusal(rates.consume, "a")
    now[0] += 1000
    for _ in range(3):
        rates.consume("a")
    refusal(rates.consume, "a")


def test_processes_that_share_a_store_count_together(tmp_path):
    now = [100.0]
    names = ["a", "b"]
    one, other = (
        RateLimiter(2.0, 3, BucketStore(tmp_path / "rates", names), clock=lambda: now[0])
        for _ in range(2)
    )
    for key in (*names, "of a token"):
        one.consume(key)
        other.consume(key)
        one.consume(key)
        refusal(other.consume, key)
    now[0] += 0.5
    other.consume("a")
    refusal(one.consume, "a")


def test_a_key_that_asks_too_often(client_of, served):
    digest = hashlib.sha256(b"k").hexdigest()
    keys = f"shop:score:{digest}"
    client = client_of(served, api_keys=(ApiKey.parse(keys),), rate_per_second=0.001, rate_burst=2)
    answers = [client.get("/models", headers={"X-API-Key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) > 1
    assert answers[-1].json()["type"] == "urn:anomaly-vae:rate-limited"
    assert client.get("/health/live").status_code == 200


def test_keys_that_are_configured_have_a_slot_of_their_own():
    names = [f"key {number}" for number in range(30_000)]
    store = BucketStore(names=names)
    assert [store.slot(name) for name in names] == list(range(30_000))
    others = {store.slot(f"client {number}") for number in range(1000)}
    assert min(others) >= 30_000
    assert max(others) < SLOTS
    assert len(others) > 950, "they are spread over the rest"
    assert store.slot("client 7") == BucketStore(names=names).slot("client 7")


@pytest.mark.parametrize(("rate", "shared"), [(0.0, False), (2.0, True)])
def test_buckets_are_in_a_file_where_there_is_a_rate(tmp_path, rate, shared):
    keys = (ApiKey("shop", frozenset({"score"}), "0" * 64),)
    store = open_store(Settings(rate_per_second=rate, api_keys=keys), str(tmp_path))
    assert store.slot("shop") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["rates"] * shared
    if shared:
        assert (tmp_path / "rates").stat().st_size == SLOTS * 8
        assert (tmp_path / "rates").stat().st_mode & 0o777 == 0o600


def test_buckets_of_one_process_need_no_file():
    with open_store(Settings(rate_per_second=2.0), None).locked() as full_at:
        assert len(full_at) == SLOTS
        assert set(full_at) == {0.0}
