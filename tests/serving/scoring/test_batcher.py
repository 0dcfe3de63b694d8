"""Requests that arrive together are scored in one pass, and each gets its own answer."""

import asyncio
import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.scoring.detector import Detections
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.scoring.batcher import ModelBatcher
from serving.scoring.loading import load_model
from serving.scoring.observers import Observers
from serving.scoring.row_decoder import RowDecoder
from serving.scoring.shadow import Shadows
from serving.settings import Settings
from tests.support.defective import defective


def batcher_of(served):
    store = Store([served])
    metrics = Metrics(store)
    observers = Observers(Shadows(store, Settings(), metrics))
    return ModelBatcher(served, RowDecoder(served.schema), metrics.for_model(served), observers)


@pytest.fixture
def batcher(served):
    return batcher_of(served)


def passes_of(batcher, monkeypatch):
    """The number of rows of each pass, in a list that grows."""
    passes, several, alone = [], batcher._detect, batcher._decide_alone
    monkeypatch.setattr(batcher, "_detect", lambda x: passes.append(len(x)) or several(x))
    monkeypatch.setattr(batcher, "_decide_alone", lambda *x: passes.append(1) or alone(*x))
    return passes


def scores(results):
    return [result["score"] for result in results]


def test_what_arrives_together_is_one_pass_and_each_gets_its_own(batcher, records, monkeypatch):
    sizes = [1, 3, 1, 7, 2]
    starts = np.cumsum([0, *sizes])
    bodies = [json.dumps({"records": records[a:b]}).encode() for a, b in pairwise(starts)]
    requests = [(batcher.decoder.decode(body), body) for body in bodies]
    passes = passes_of(batcher, monkeypatch)

    async def together():
        return await asyncio.gather(*(batcher.submit(*request) for request in requests))

    answers = asyncio.run(together())
    assert passes == [sum(sizes)]
    for answer, request in zip(answers, requests, strict=True):
        both = answer, batcher.answer(*request)
        ours, alone = (json.loads(content)["results"] for content in both)
        np.testing.assert_allclose(scores(ours), scores(alone), rtol=1e-6)
        assert [r["is_anomaly"] for r in ours] == [r["is_anomaly"] for r in alone]
    monkeypatch.setattr(batcher, "_max_rows", 4)
    passes.clear()
    again = asyncio.run(together())
    assert [len(json.loads(answer)["results"]) for answer in again] == sizes
    assert passes == [4, 1, 7, 2], "as much at a time as fits, and at least one"


def test_a_lone_row_has_the_score_that_it_has_in_a_batch_to_the_last_bit(batcher, records):
    gaps = [{name: value} for name, value in records[0].items()]
    rows = [
        row
        for record in [*records[:20], *gaps]
        if (decoded := batcher.decoder.decode(json.dumps({"records": [record]}).encode()))
        for row in decoded.rows
    ]
    together = batcher._detect(rows)
    alone = [batcher._decide_alone(batcher._encoder, row) for row in rows]
    found = Detections.of(alone, tested=False)
    for name in ("score", "p_value", "is_anomaly"):
        assert getattr(found, name).tolist() == getattr(together, name).tolist(), name


def test_where_there_was_company_one_more_turn_is_waited_for(batcher, records, monkeypatch):
    body = json.dumps({"records": records[:1]}).encode()
    passes = passes_of(batcher, monkeypatch)

    async def later(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        await batcher.submit(batcher.decoder.decode(body), body)

    async def ask(*turns):
        passes.clear()
        await asyncio.gather(*map(later, turns))
        return list(passes)

    async def all_of_it():
        assert await ask(0) == [1]
        assert await ask(0, 1) == [1, 1], "one that comes alone does not wait"
        assert await ask(0, 0) == [2]
        assert await ask(0, 1) == [2], "the next turn's go with it"
        assert await ask(0) == [1]
        assert await ask(0, 1) == [1, 1]

    asyncio.run(all_of_it())


def test_one_that_is_alone_is_scored_at_once(batcher, records):
    body = json.dumps({"records": records[:1]}).encode()
    request = batcher.decoder.decode(body)

    async def ask():
        first = batcher.submit(request, body, alone=True)
        assert first.done()
        second, third = batcher.submit(request, body), batcher.submit(request, body, alone=True)
        assert not third.done(), "it goes with the one that waits"
        return await asyncio.gather(first, second, third)

    assert len({*asyncio.run(ask())}) == 1


@pytest.fixture
def breaking(calibrated, tmp_path_factory):
    """The small model, with a graph that breaks on an amount beyond any."""
    broken = dataclasses.replace(calibrated, graph=defective(calibrated.graph))
    return batcher_of(
        load_model(BundleRef(str(broken.save(tmp_path_factory.mktemp("broken") / "bundle"))))
    )


def test_one_that_breaks_the_graph_takes_no_other_with_it(breaking, records):
    far = {**records[0], "TX_AMOUNT": 1e9}
    bodies = [json.dumps({"records": [row]}).encode() for row in (records[0], far, records[1])]

    async def together():
        answers = (breaking.submit(breaking.decoder.decode(body), body) for body in bodies)
        return await asyncio.gather(*answers, return_exceptions=True)

    first, broken, last = asyncio.run(together())
    assert "Gather" in str(broken)
    assert [len(json.loads(answer)["results"]) for answer in (first, last)] == [1, 1]


def test_one_that_is_cancelled_does_not_hold_up_the_others(batcher, records):
    body = json.dumps({"records": records[:1]}).encode()
    rows = batcher.decoder.decode(body)

    async def together():
        first, second = batcher.submit(rows, body), batcher.submit(rows, body)
        first.cancel()
        return await second

    assert json.loads(asyncio.run(together()))["results"]
