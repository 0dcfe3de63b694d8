"""Test that the store computes what the oracle computes, whatever the order of arrival."""

import random
from dataclasses import replace

import numpy as np
import pytest
import redis

from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features import WindowDefinition
from anomaly_vae.features.store import StoreOptions, WindowStore
from anomaly_vae.features.store.opening import open_backend
from tests.support.killed_writers import kill_while_loading
from tests.support.redis_server import redis_server
from tests.support.window_streams import (
    DAY,
    HOUR,
    INPUTS,
    START,
    WINDOWS,
    Replay,
    as_oracle,
    batches,
    stream,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'windows.db'}"
    server = request.getfixturevalue("server")
    with redis.Redis.from_url(server) as client:
        client.flushdb()
    return server


@pytest.fixture
def make(url):
    backends = []

    def open_one(inputs=INPUTS, **options):
        backends.append(open_backend(StoreOptions(url)))
        return WindowStore(backends[-1], inputs, **options)

    yield open_one
    for backend in backends:
        backend.close()


def store_of(url):
    return WindowStore(open_backend(StoreOptions(url)), INPUTS)


def contents(store):
    return [
        sorted(map(tuple, store.history(entity, value).tolist()))
        for entity, values in (("CUSTOMER_ID", "123"), ("TERMINAL_ID", "1a"))
        for value in values
    ]


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("disorder", [0, DAY // 2])
def test_each_row_equals_the_oracle_over_what_had_arrived(make, ids, size, disorder):
    replay = Replay(make())
    for rows in batches(stream(120, seed=size, ids=ids, disorder=disorder), size):
        replay.score(rows)


def test_retries_and_duplicates_count_once(make):
    replay, draw, events = Replay(make()), random.Random(3), stream(100, seed=3)
    complete = [event for event in events if any(event.keys.values())]
    for number, event in enumerate(complete):
        replay.score([event])
        if draw.random() < 0.4:
            replay.score([event, complete[draw.randrange(number + 1)]])
        if draw.random() < 0.2:  # another event with the id of an earlier one
            replay.score([replace(event, id=complete[draw.randrange(number + 1)].id)])


def test_labels_count_from_the_moment_they_are_known(make):
    replay, events = Replay(make()), stream(120, seed=5)
    draw = random.Random(5)
    for number, event in enumerate(events):
        replay.score([event])
        known = events[draw.randrange(number + 1)]
        if known.keys["TERMINAL_ID"] or known.keys["CUSTOMER_ID"]:
            replay.label(known.id, draw.random() < 0.7, event.time + draw.randrange(DAY))


def test_stores_of_two_processes_share_events_and_survive_a_restart(make):
    first = make()
    replay, events = Replay(first), stream(90, seed=7)
    for number, event in enumerate(events):
        if number == 45:
            first.backend.close()
        replay.store = (first, make())[number % 2] if number < 60 else make()
        replay.score([event])


@pytest.mark.parametrize(("size", "groups", "wait"), [(3, 20, 0.001), (1500, 0, 0.01)])
def test_a_killed_writer_leaves_whole_groups_and_a_retry_counts_once(
    make, url, tmp_path, size, groups, wait
):
    """The process is killed while it records a group, which is then there or is not."""
    known = kill_while_loading(url, 1500, 12, size, groups, wait)
    store, events, counts = make(), stream(1500, seed=12), []
    for rows in batches(events, size):
        outcomes = store.load(rows).outcomes
        assert len(set(outcomes)) <= 1  # all of a group, or none
        counts += outcomes
    complete = [any(event.keys.values()) for event in events]
    assert counts.count("duplicate") >= sum(complete[: size * known])
    assert counts == sorted(counts)  # nothing is recorded before what is lost
    in_order = store_of(f"sqlite:///{tmp_path / 'in-order.db'}")
    in_order.load(events)
    assert contents(store) == contents(in_order)
    assert store.state() == in_order.state()
    assert store.backend.entities() == in_order.backend.entities()


def test_the_final_store_does_not_depend_on_the_order_of_arrival(make, tmp_path):
    events = stream(150, seed=11)
    in_order = make()
    in_order.add(events)
    shuffled = store_of(f"sqlite:///{tmp_path / 'shuffled.db'}")
    draw = random.Random(11)
    for event in sorted(events, key=lambda e: e.time + draw.randrange(DAY)):
        assert "late" not in shuffled.add([event, event]).outcomes
    assert contents(shuffled) == contents(in_order)
    assert shuffled.state() == in_order.state()


def test_events_of_one_time_do_not_see_each_other(make):
    store, events = make(), stream(2, seed=0)
    tie = [
        replace(event, time=START, keys=events[0].keys, id=str(i)) for i, event in enumerate(events)
    ]
    assert np.nan_to_num(store.features(tie).values).sum() == 0


def test_late_events_are_left_out_and_counted(make):
    store, (first, *_) = make(), stream(1, seed=1)
    card = {"CUSTOMER_ID": "1", "TERMINAL_ID": None}
    events = [replace(first, id=str(age), time=START - age, keys=card) for age in (0, DAY, DAY + 1)]
    assert store.add(events).outcomes == ["recorded", "recorded", "late"]
    assert store.add([replace(events[1], time=START - 9 * DAY)]).outcomes == ["duplicate"]
    assert len(store.history("CUSTOMER_ID", 1.0)) == 2


def test_an_event_of_the_future_makes_no_present_event_late(make):
    store = make(clock=lambda: START)
    (event,) = stream(1, seed=1)
    event = replace(event, keys={"CUSTOMER_ID": "1", "TERMINAL_ID": None})
    far, present = replace(event, id="far", time=START + 900 * DAY), replace(event, time=START)
    assert store.add([far, present]).outcomes == ["recorded", "recorded"]
    assert store.state().newest == START


def test_history_is_loaded_in_any_order(make):
    store, events = make(), stream(150, seed=2)
    moved = [replace(e, time=START + (e.time - START) * 2) for e in reversed(events)]
    assert set(store.load(moved).outcomes) == {"recorded"}
    assert set(store.load(moved).outcomes) == {"duplicate"}
    other = make()
    assert contents(other) == contents(store)


def test_expired_events_are_dropped_and_their_entities_forgotten(make, url):
    if url.startswith("redis"):
        pytest.skip("keys of Redis expire by themselves")
    store, events = make(), stream(60, seed=4)
    store.load(events)
    before = store.backend.entities()
    later = replace(
        events[-1], id="x", time=START + 40 * DAY, keys={"CUSTOMER_ID": "9", "TERMINAL_ID": None}
    )
    store.load([later])
    assert before == 5
    while store.backend.expire(7):
        pass
    for _ in range(20):
        store.backend.expire(7)
    assert store.backend.entities() == 1
    assert len(store.history("CUSTOMER_ID", "9")) == 1
    assert store.add([replace(later, id=events[0].id)]).outcomes == ["recorded"]


def test_an_entity_keeps_a_bounded_number_of_events(make):
    store = make(max_events=5)
    card = {"CUSTOMER_ID": "1", "TERMINAL_ID": "1"}
    events = [replace(e, keys=card) for e in stream(12, seed=6)]
    assert store.add(events[:4]).dropped == 0
    assert store.add(events[4:]).dropped == 2 * 7
    assert store.history("CUSTOMER_ID", 1)[:, 0].tolist() == [e.time for e in events[-5:]]


def test_a_forgotten_entity_leaves_nothing(make, tmp_path):
    store = make()
    store.load(stream(60, seed=4))
    assert len(store.history("CUSTOMER_ID", 1)) > 0
    assert store.forget("CUSTOMER_ID", "1") == 1
    assert store.forget("CUSTOMER_ID", "1") == 0
    assert len(store.history("CUSTOMER_ID", 1)) == 0
    assert len(store.history("CUSTOMER_ID", 2)) > 0


def test_models_with_other_windows_share_the_events_of_the_same_columns(make):
    short = {**WINDOWS, "CUSTOMER_ID": WINDOWS["CUSTOMER_ID"].model_copy(update={"over": ("1h",)})}
    small, large = make(replace(INPUTS, definition=WindowDefinition(short))), make()
    assert small.space == large.space
    events = stream(80, seed=8)
    for event in events:
        small.record(small.features([event]).events)
    replay = Replay(large)
    for event in events:
        replay.arrived.append(as_oracle(event))
    replay.score([replace(events[0], id="new", time=START + 3 * DAY)])


def test_a_longer_window_lacks_the_history_that_was_dropped(make, url):
    hourly = {"card": EntityWindows(over=("1h",), count=True)}
    inputs = replace(INPUTS, definition=WindowDefinition(hourly), horizon=HOUR)
    store = make(inputs)
    rows = [
        replace(e, keys={"card": "1"}, numbers={}, anomalous=frozenset())
        for e in stream(50, seed=9)
    ]
    assert store.lacks_history(store.features(rows[:1]), rows[:1])
    store.add(rows)
    newest = [replace(rows[-1], id="new")]
    assert not store.lacks_history(store.features(newest), newest)
    daily = {"card": EntityWindows(over=("1d",), count=True)}
    longer = make(replace(inputs, definition=WindowDefinition(daily)))
    assert longer.lacks_history(longer.features(newest), newest)
    kept = 0 if url.startswith("redis") else 2 * HOUR  # keys of Redis expire by the former age
    assert longer.state().since == store.state().newest - kept


@pytest.mark.parametrize("way", ["score", "add", "load"])
def test_events_are_kept_as_long_as_another_model_sees_them(make, way):
    """The other model is opened while this one records."""
    short, long = (
        replace(INPUTS, definition=WindowDefinition({"card": window}), horizon=HOUR)
        for window in (
            EntityWindows(over=("1h",), count=True),
            EntityWindows(over=("1d",), count=True),
        )
    )
    store, (event,) = make(short), stream(1, seed=9)
    event = replace(event, keys={"card": "1"}, numbers={}, anomalous=frozenset())
    rows = [replace(event, id=str(hours), time=START + hours * HOUR) for hours in (0, 5)]
    store.add(rows[:1])
    other = make(long)
    if way == "score":
        store.record(store.features(rows[1:]).events)
    else:
        getattr(store, way)(rows[1:])
    assert other.history("card", "1")[:, 0].tolist() == [row.time for row in rows]


def test_a_store_written_with_another_salt_is_refused(make):
    make(salt="one")
    with pytest.raises(WindowStoreError, match="with another ANOMALY_VAE_WINDOWS_SALT"):
        make(salt="two")
