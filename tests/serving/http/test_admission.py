"""Admission control, deadlines and rate limits."""

import asyncio
import hashlib

import pytest

from serving.http.admission import AdmissionControl, Deadlines
from serving.http.rate_limit import BucketStore, RateLimiter
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.problems import ProblemError
from serving.settings import ApiKey, Settings


def refusal(call, *args):
    with pytest.raises(ProblemError) as caught:
        call(*args)
    return caught.value


def places(**settings):
    return AdmissionControl(Settings(**settings), Metrics(Store()))


def test_so_many_requests_and_so_many_bytes():
    held = places(max_concurrency=2, max_pending_bytes=5000)
    held.admit(10_000)
    assert "bodies of 10000 bytes" in refusal(held.admit, 1).detail, "one of any size, alone"
    held.release(10_000)
    held.admit(3000)
    held.admit(2000)
    assert "2 requests" in refusal(held.admit, 0).detail
    held.release(3000)
    assert refusal(held.admit, 3001).headers == {"Retry-After": "1"}
    held.admit(3000)


def test_so_many_jobs():
    held = places(threads=1, max_queued=1)
    with held.job(), held.job():
        assert refusal(held.check_jobs).kind.status == 429
    held.check_jobs()


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


def test_who_is_late_is_refused_and_the_others_are_not():
    deadlines = Deadlines(0.2)

    async def after(seconds):
        await asyncio.sleep(seconds)
        return seconds

    async def together():
        waits = (0, 5, 0.1, 5, 0)
        works = [deadlines.enforce(after(seconds)) for seconds in waits]
        return await asyncio.gather(*works, return_exceptions=True)

    found = asyncio.run(together())
    late = "the body did not arrive within 0.2 seconds"
    assert [getattr(one, "detail", one) for one in found] == [0, late, 0.1, late, 0]


def test_a_task_that_is_cancelled_by_others_stays_cancelled():
    deadlines = Deadlines(5)

    async def cancelled():
        task = asyncio.ensure_future(deadlines.enforce(asyncio.sleep(9)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
