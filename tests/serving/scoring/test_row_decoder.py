"""Two ways into one kernel: what the quick one takes means what the careful one says."""

import asyncio
import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.data.schema import Column, TabularSchema
from anomaly_vae.types import ColumnType
from serving.app import create_app
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.problems import ProblemError
from serving.scoring.batcher import ModelBatcher
from serving.scoring.loading import load_model
from serving.scoring.requests import decode, read_records
from serving.scoring.row_decoder import RowDecoder
from serving.scoring.shadow import Shadows
from serving.settings import Settings
from tests.support.defective import defective

SCHEMA = TabularSchema(
    (
        Column("when", ColumnType.DATETIME),
        Column("a", ColumnType.NUMERIC),
        Column("color", ColumnType.CATEGORICAL),
        Column("on", ColumnType.BINARY),
        Column("b ç/d", ColumnType.NUMERIC),
    ),
    known=frozenset({"label", "a"}),
)
READER = RowDecoder(SCHEMA)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
ANYTHING = st.none() | st.booleans() | NUMBERS | st.text(max_size=6)
TIMES = st.datetimes().map(str) | st.dates().map(str) | st.sampled_from(["", "NA", "2024-13-01"])
VALUES = {
    "when": st.none() | TIMES | ANYTHING,
    "a": st.none() | NUMBERS | ANYTHING,
    "color": ANYTHING | st.sampled_from(["red", " red ", "NA", "5.0", "true"]),
    "on": st.sampled_from([0, 1, True, False, None, 0.0, 1.0]) | ANYTHING,
    "b ç/d": st.none() | NUMBERS,
    "label": ANYTHING | st.lists(st.integers(), max_size=2),
}
RECORDS = st.lists(st.fixed_dictionaries({}, optional=VALUES), min_size=1, max_size=5)


def careful(body):
    """The batch of the other way, or None where it refuses."""
    try:
        return read_records(SCHEMA, decode(body, 1000).records)
    except ProblemError:
        return None


def assert_same(quick, slow):
    assert len(quick) == len(slow)
    assert not slow.ignored
    for name, values in slow.values.items():
        mine = quick.values[name]
        if name == "color":
            ours, theirs = (
                [None if code < 0 else levels.names[code] for code in levels.codes]
                for levels in (mine, values)
            )
            assert ours == theirs
        else:
            np.testing.assert_array_equal(mine, values)


@given(RECORDS)
@example([{"a": 2**63 + 1}, {"a": 10**25}, {"color": 12345678901234567890}])
@example([{"a": 10**400}])
@example([{"a": "1"}])
@settings(max_examples=300, deadline=None)
def test_both_ways_mean_the_same(records):
    body = json.dumps({"records": records}).encode()
    rows = READER.decode(body)
    slow = careful(body)
    if rows is None:
        return
    assert slow is not None, "the quick way takes nothing that the careful one refuses"
    assert_same(READER.batch(rows), slow)


def test_what_is_usual_goes_the_quick_way():
    record = {"a": 1, "b ç/d": 2.5, "on": True, "color": "red", "when": "2024-01-01T10:00"}
    for one in (record, {}, dict.fromkeys(record), {**record, "label": [1, {"x": None}]}):
        assert READER.decode(json.dumps({"records": [one, record]}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'{"records": [{}], "explain": 1}', b'{"records": [{"other": 1}]}',
        b'{"records": [{"a": NaN}]}', b'{"records": [{"a": 1e999}]}', b'{"records": [7]}',
        b'{"records": [{"color": ["red"]}]}', b'{"records": [{"when": "soon"}]}',
        b'{"records": [{"on": 2}]}', b'{"records": [{"color": "\xff"}]}',
        b'{"records": [' + b'{"label":' * 100_000,
    ],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
def test_what_is_unusual_does_not(body):
    assert READER.decode(body) is None


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_the_same_both_ways(served, records, data):
    """`"explain": 0.0` means 0 and is not usual."""
    chosen = data.draw(st.lists(st.sampled_from(records[:50]), min_size=1, max_size=9))
    cut = data.draw(st.sets(st.sampled_from(sorted(chosen[0]))))
    chosen[0] = {key: value for key, value in chosen[0].items() if key not in cut}
    client = TestClient(create_app(Store([served]), Settings()))
    quick = client.post("/score", json={"records": chosen})
    slow = client.post("/score", json={"records": chosen, "explain": 0.0})
    assert quick.status_code == slow.status_code == 200
    assert quick.content == slow.content


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_names_that_no_type_can_have_go_the_careful_way(name):
    body = json.dumps({"records": [{name: 1}]}).encode()
    odd = (Column(name, ColumnType.NUMERIC), Column("b", ColumnType.NUMERIC))
    assert RowDecoder(TabularSchema(odd)).decode(body) is None
    ignored = TabularSchema(odd[1:], known=frozenset({name}))
    assert RowDecoder(ignored).decode(body) is None
    assert RowDecoder(ignored).decode(b'{"records": [{"b": 2}]}') == [(2.0,)]


# ---------------------------------------------------------------- together


def batcher_of(served):
    store = Store([served])
    metrics = Metrics(store)
    shadows = Shadows(store, Settings(), metrics)
    return ModelBatcher(served, RowDecoder(served.schema), metrics.for_model(served), shadows)


@pytest.fixture
def batcher(served):
    return batcher_of(served)


def scores(results):
    return [result["score"] for result in results]


def test_what_arrives_together_is_one_pass_and_each_gets_its_own(batcher, records, monkeypatch):
    sizes = [1, 3, 1, 7, 2]
    starts = np.cumsum([0, *sizes])
    bodies = [json.dumps({"records": records[a:b]}).encode() for a, b in pairwise(starts)]
    requests = [(batcher.decoder.decode(body), body) for body in bodies]
    passes = []
    whole = batcher.decide
    monkeypatch.setattr(batcher, "decide", lambda x: passes.append(len(x)) or whole(x))

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


def test_where_there_was_company_one_more_turn_is_waited_for(batcher, records, monkeypatch):
    body = json.dumps({"records": records[:1]}).encode()
    passes = []
    whole = batcher.decide
    monkeypatch.setattr(batcher, "decide", lambda x: passes.append(len(x)) or whole(x))

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


# ---------------------------------------------------------------- anything at all


def mutated(content, rng):
    """A copy with bytes changed, left out, put in or repeated."""
    altered = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(altered) + 1))
        match rng.integers(4):
            case 0:
                altered[at : at + 1] = rng.bytes(1)
            case 1:
                del altered[at : at + int(rng.integers(1, 9))]
            case 2:
                altered[at:at] = rng.choice([b'"', b"{", b"]", b"null", b"1e999", b",", b"\xff"])
            case 3:
                altered[at:at] = altered[at : at + 20]
    return bytes(altered)


def check_mutated(served, records, count):
    rng = np.random.default_rng(0)
    client = TestClient(create_app(Store([served]), Settings()), raise_server_exceptions=False)
    bodies = [json.dumps({"records": records[i : i + 2]}).encode() for i in range(20)]
    statuses = []
    with client:
        for number in range(count):
            body = mutated(bodies[number % len(bodies)], rng)
            headers = {"Content-Type": "application/json"}
            statuses.append(client.post("/score", content=body, headers=headers).status_code)
    assert set(statuses) == {200, 400, 422}


def test_mutated_bodies(served, records):
    check_mutated(served, records, 300)


@pytest.mark.slow
def test_ten_thousand_mutated_bodies(served, records):
    check_mutated(served, records, 10_000)
