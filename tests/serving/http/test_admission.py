"""Admission control and deadlines."""

import asyncio
import json

import pytest

from serving.http.admission import AdmissionControl, Deadlines
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.settings import Settings
from tests.support.http_requests import asgi_post, nobody, post, refusal


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


def test_a_full_house_says_when_to_come_back(client_of, served):
    client = client_of(served, max_concurrency=2, retry_after_seconds=7, body_seconds=0.3)

    async def scenario():
        slow = [asyncio.create_task(asgi_post(client.app, nobody)) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused_now = await asgi_post(client.app, nobody)
        return refused_now, [await task for task in slow]

    (status, headers, body), slow = asyncio.run(scenario())
    assert status == 429
    assert headers[b"retry-after"] == b"7"
    assert json.loads(body)["type"] == "urn:anomaly-vae:overloaded"
    assert [status for status, _, _ in slow] == [408, 408]
    assert post(client, {"records": [{"TX_AMOUNT": 1}]}).status_code == 200, (
        "their places are free again"
    )
