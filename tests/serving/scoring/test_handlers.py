"""Requests are scored on the event loop or on worker threads, by their size."""

import asyncio
import threading

import pytest

from anomaly_vae.data.encoding import TabularEncoding
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.problems import ProblemError
from serving.scoring import engine, handlers
from serving.scoring.observers import Observers
from serving.scoring.shadow import Shadows
from serving.settings import Settings
from tests.support.http_requests import nobody, score
from tests.support.scoring_ways import ways


@pytest.fixture
def on_threads(monkeypatch):
    """For each request scored since, whether a worker thread did it."""
    seen = []
    whole = TabularEncoding.encode

    def encode(*args):
        seen.append(threading.current_thread().name.startswith("score_"))
        return whole(*args)

    monkeypatch.setattr(TabularEncoding, "encode", encode)
    return seen


def test_no_thread_has_to_be_started_for_a_request():
    before = threading.active_count()
    with handlers.start_threads(3) as threads:
        assert threading.active_count() == before + 3
        assert list(threads.map(abs, range(-9, 0))) == list(range(9, 0, -1))
        assert threading.active_count() == before + 3


def test_on_a_thread_or_on_the_event_loop(client, records, on_threads, monkeypatch):
    """A large request takes the other path and gives the same answer."""
    monkeypatch.setattr(handlers, "INLINE_VALUES", 0)
    large = score(client, records[:100])["results"]
    monkeypatch.setattr(handlers, "INLINE_VALUES", 10**6)
    assert score(client, records[:100])["results"] == large
    assert on_threads == [True, False]


def test_a_wide_request_goes_to_a_thread_however_few_its_records(
    client, served, on_threads, monkeypatch
):
    """What holds up the event loop is records times columns, and more where they are explained."""
    columns, found = len(served.detector.scorer.encoding.labels), []
    monkeypatch.setattr(handlers, "INLINE_VALUES", 30 * columns)
    for records, explain in ((30, 0), (31, 0), (1, 3), (10, 3), (10, "all")):
        score(client, [{"TX_AMOUNT": None}] * records, explain=explain)
        found.append(on_threads[-1])
    assert found == [False, True, False, True, True]


@pytest.mark.parametrize("name", ["infer", "invocations"])
def test_what_takes_long_is_scored_on_a_thread(client, served, monkeypatch, name):
    """By its values, not its bytes: an absent column is work too; the answer is the same."""
    seen = []
    whole = engine.ScoringEndpoint.score_protocol

    def reply(*args):
        seen.append(threading.current_thread().name.startswith("score_"))
        return whole(*args)

    monkeypatch.setattr(engine.ScoringEndpoint, "score_protocol", reply)
    columns = len(served.detector.scorer.encoding.labels)
    monkeypatch.setattr(handlers, "INLINE_VALUES", 10 * columns)
    for count in (10, 11):
        assert ways(*range(count))[name].post(client).status_code == 200
    assert seen == [False, True]


@pytest.fixture
def resources(served):
    store, settings = Store([served]), Settings(threads=1, max_queued=1)
    metrics = Metrics(store)
    return handlers.Resources(settings, metrics, Observers(Shadows(store, settings, metrics)))


async def gone():
    return {"type": "http.disconnect"}


def test_a_call_on_a_thread_returns_its_result_or_its_error(resources):
    def name():
        return threading.current_thread().name

    assert asyncio.run(resources.run_on_thread(nobody, name)).startswith("score_")
    with pytest.raises(ZeroDivisionError):
        asyncio.run(resources.run_on_thread(nobody, divmod, 1, 0))
    assert resources.admission.jobs == 0


def test_a_call_whose_client_goes_away_before_it_starts_is_dropped(resources):
    free, calls = threading.Event(), []

    async def scenario():
        busy = asyncio.create_task(resources.run_on_thread(nobody, free.wait, 20))
        await asyncio.sleep(0)
        with pytest.raises(ProblemError, match="went away"):
            await resources.run_on_thread(gone, calls.append, "dropped")
        free.set()
        assert await busy
        await resources.run_on_thread(nobody, calls.append, "called")

    asyncio.run(scenario())
    assert calls == ["called"]


def test_bodies_are_read_within_the_limit(resources):
    async def short():
        return {"type": "http.request", "body": b"{}"}

    assert asyncio.run(resources.read_body(short)) == b"{}"
    with pytest.raises(ProblemError) as caught:
        asyncio.run(resources.read_body(gone))
    assert caught.value.kind.slug == "malformed"


def test_tables_are_scored_inline_if_they_are_small_and_images_never(resources, served, scanner):
    table, scans = served.handler(resources), scanner.handler(resources)
    most = handlers.INLINE_VALUES // served.width
    assert [table.is_inline(n) for n in (1, most, most + 1)] == [True, True, False]
    assert not table.is_inline(most, handlers.EXPLAIN_COST)
    assert not scans.is_inline(1)
    sizes = (handlers.INLINE_BYTES, handlers.INLINE_BYTES + 1)
    assert [table.may_need_thread(size) for size in sizes] == [False, True]
    assert [scans.may_need_thread(size) for size in sizes] == [True, True]
