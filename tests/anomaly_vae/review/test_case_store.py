"""Which cases a store keeps and lists, what snoozes do, and how p-values are counted."""

import datetime as dt
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from anomaly_vae.errors import StoreError
from anomaly_vae.review import (
    Case,
    CaseFilter,
    CaseReason,
    CaseStore,
    Label,
    LabelStore,
    PValueCounts,
    Snooze,
)
from tests.support.label_stores import FIRST_VERSION
from tests.support.processes import FORKED

DAY = 86_400
NOON = 1_700_000_000 // DAY * DAY + DAY / 2
TODAY = dt.date(2023, 11, 14)


def case(row, p_value=0.001, at=NOON, **parts):
    usual = {"model": "fraud", "version": "3", "score": 9.5, "threshold": 5.0, "alpha": 0.01}
    usual |= {"recorded_at": at + 0.5, **parts}
    return Case.of(row=row, p_value=p_value, at=at, **usual)


def label(row, verdict, who="alice", at=None, note=""):
    return Label.of("fraud", row, verdict, who, at, note)


def ids(records):
    return [one.case.row_id for one in records]


@pytest.fixture
def store(store_address):
    with CaseStore(store_address) as store:
        yield store


@pytest.fixture
def lite(sqlite_store):
    with CaseStore(sqlite_store) as store:
        yield store


def test_a_case_is_stored_once_and_comes_back_whole(store):
    reason = CaseReason("amount", 6.5, 950.0, 28.1, "amount 950, usually 5 to 80")
    whole = case(
        12, entity_column="card", entity=7, amount_column="amount", amount=950.0,
        fields={"amount": 950.0, "note": "<script>'\"{x} %s 中文", "missing": None, "old": True},
        reasons=[reason], unusual_input="amount is far outside", image="scan.png", unit="sd",
    )  # fmt: skip
    assert store.add([whole, whole, case(13)]) == [True, False, True]
    assert store.add([whole, replace(whole, version="4")]) == [False, True]
    first = store.queue(CaseFilter(row_id="12", version="3"))[0]
    assert first.case == whole
    assert store.case(first.number) == first
    assert store.case(99) is None


def test_the_queue_has_orders_pages_and_filters(store):
    store.add(
        [case(1, 0.004, amount_column="eur", amount=5, entity_column="card", entity="b"),
         case(2, 0.002, NOON + DAY, amount_column="eur", amount=80, entity_column="card",
              entity="a"),
         case(3, 0.003, NOON - DAY, kind="sample", version="4"),
         case(4, 0.001, NOON + 60, model="other", entity_column="card", entity="a")]
    )  # fmt: skip
    orders = {order: ids(store.queue(order=order)) for order in ("p_value", "amount", "entity")}
    assert orders == {
        "p_value": ["4", "2", "3", "1"], "amount": ["2", "1", "4", "3"],
        "entity": ["4", "2", "1", "3"],
    }  # fmt: skip
    assert ids(store.queue(order="day")) == ["2", "4", "1", "3"]
    assert ids(store.queue(offset=1, limit=2)) == ["2", "3"]
    wanted = {
        CaseFilter(model="fraud"): 3, CaseFilter(kind="sample"): 1, CaseFilter(entity="a"): 2,
        CaseFilter(version="4"): 1, CaseFilter(first_day=TODAY): 3, CaseFilter(last_day=TODAY): 3,
        CaseFilter(first_day=TODAY, last_day=TODAY): 2, CaseFilter(model="absent"): 0,
    }  # fmt: skip
    assert {chosen: store.count(chosen) for chosen in wanted} == wanted
    assert store.models() == [("fraud", "3"), ("fraud", "4"), ("other", "3")]
    days = {TODAY + dt.timedelta(1): 1, TODAY: 2, TODAY - dt.timedelta(1): 1}
    assert list(store.days().items()) == list(days.items())
    assert ids(store.history_of("fraud", "card", "a")) == ["2"]


def test_labels_decide_cases(store):
    store.add([case(1, 0.001), case(2, 0.002), case(3, 0.003), case(1, 0.004, NOON + 1)])
    store.labels.add([label(1, "anomaly", "alice", 100.0, "by phone"), label(3, "unsure")])
    store.labels.add([label(1, "normal", "bob", 200.0)])
    assert ids(store.queue()) == ["2", "3"]
    decided, again = store.queue(CaseFilter(status="decided"))
    assert (decided.label.label, decided.label.who) == ("normal", "bob")
    assert decided.label.conflicts == {"alice": "anomaly"}
    assert (decided.status, again.case.at) == ("decided", NOON + 1)
    assert [one.note for one in store.label_history("fraud", "1")] == ["by phone", ""]
    assert store.reviewed("fraud") == [(0.001, False), (0.004, False)]
    store.labels.add([label(1, "unsure", "bob", 300.0)])
    assert store.count(CaseFilter(status="open")) == 4


def test_labels_of_another_store_decide_too(store_address, tmp_path):
    labels = f"sqlite:///{tmp_path}/others.db"
    with CaseStore(store_address, labels) as store, LabelStore(labels) as others:
        store.add([case(1), case(2)])
        assert store.count(CaseFilter(status="open")) == 2  # there is no such store yet
        others.add([label(1, "anomaly", note="by phone")])
        assert ids(store.queue()) == ["2"]
        others.add([label(2, "normal")])
        assert store.count(CaseFilter(status="open")) == 0
        assert [one.note for one in store.label_history("fraud", "1")] == ["by phone"]
    with CaseStore(store_address) as store:
        assert store.labels.stats().labels == 2


# ---------------------------------------------------------------- snoozes


def snooze(entity="a", begin=NOON, until=NOON + DAY, who="alice"):
    return Snooze.of("card", entity, until, "new phone", who, begin)


def of_card(row, at, entity="a"):
    return case(row, at=at, entity_column="card", entity=entity)


def test_a_snooze_keeps_cases_out_of_the_queue_until_it_ends(store):
    store.add([of_card(1, NOON - 60), of_card(2, NOON - 50), of_card(3, NOON - 40, "b")])
    store.labels.add([label(2, "anomaly")])
    first = store.snooze(snooze())
    added = store.record([of_card(4, NOON + 60), of_card(5, NOON + 60, "b"), of_card(6, NOON - 1)])
    assert [one.case.snooze for one in added] == [first.number, None, None]
    store.record([of_card(7, NOON + DAY), case(8, at=NOON + 60)])
    assert sorted(ids(store.queue())) == ["3", "5", "6", "7", "8"]
    assert sorted(ids(store.queue(CaseFilter(status="snoozed")))) == ["1", "4"]
    assert store.stats().statuses == {"open": 5, "decided": 1, "snoozed": 2}
    assert store.active_snoozes(NOON + 1) == [first]
    assert store.active_snoozes(NOON - 1) == store.active_snoozes(NOON + DAY) == []


def test_an_ended_snooze_returns_its_cases_and_stays_stored(store):
    first = store.snooze(snooze())
    store.add([of_card(1, NOON + 60)])
    longer = store.snooze(snooze(until=NOON + 9 * DAY, who="bob"))
    store.add([of_card(2, NOON + 90)])
    assert store.active_snoozes(NOON + 2 * DAY) == [longer]
    assert not store.end_snooze(first.number, "carol", at=NOON + 100)
    assert store.end_snooze(longer.number, "carol", "mistake", NOON + 100)
    assert not store.end_snooze(longer.number, "carol", "mistake", NOON + 100)
    assert store.active_snoozes(NOON + 101) == []
    assert ids(store.queue()) == ["2"]
    store.add([of_card(3, NOON + 120)])
    assert sorted(ids(store.queue())) == ["2", "3"]
    assert [(one.who, one.reason) for one in store.snoozes("card", "a")] == [
        ("carol", "mistake"), ("bob", "new phone"), ("alice", "new phone")
    ]  # fmt: skip
    assert store.snoozes("card", "b") == []


# ---------------------------------------------------------------- p-values


def test_p_values_add_up_and_a_batch_is_counted_once(store):
    today = PValueCounts.of("fraud", "3", TODAY, [0.001, 0.01, 0.5])
    other = PValueCounts.of("fraud", None, TODAY + dt.timedelta(1), [1.0])
    assert store.add_p_values([today, other], "part 1")
    assert not store.add_p_values([today], "part 1")
    assert store.add_p_values([today], "part 2")
    assert store.add_p_values([today])
    first, second = store.p_values("fraud")
    assert (first.rows, first.at_most(0.01), first.bins[0.5]) == (9, 6, 3)
    assert (second.version, second.rows) == ("", 1)
    assert store.p_values("fraud", "3") == [first]
    assert store.p_values("fraud", first_day=TODAY + dt.timedelta(1)) == [second]
    assert store.p_values("fraud", last_day=TODAY) == [first]
    assert store.p_values("absent") == []
    assert store.models() == [("fraud", ""), ("fraud", "3")]


# ---------------------------------------------------------------- statistics and retention


def test_stats(store):
    store.add([case(row, at=NOON + row) for row in range(4)])
    store.add([case(row, kind="sample", at=NOON - 60) for row in (10, 11, 12)])
    store.add([case(20, model="other", at=NOON - 5)])
    words = {0: "anomaly", 1: "normal", 2: "anomaly", 10: "normal", 11: "unsure"}
    store.labels.add([label(row, word) for row, word in words.items()])
    stats = store.stats("fraud")
    assert stats.statuses == {"open": 3, "decided": 4, "snoozed": 0}
    assert (stats.flags.found, stats.flags.reviewed) == (2, 3)
    assert (stats.sample.found, stats.sample.reviewed) == (0, 1)
    assert stats.oldest_open == NOON + 3.5
    assert store.stats().oldest_open == NOON - 4.5
    assert store.stats("fraud", since=NOON + 2).flags.reviewed == 1
    assert store.stats("absent").cases == 0


def test_old_cases_go_and_labels_stay(store):
    store.add([case(1, image="old.png"), case(2, at=NOON + 8 * DAY, image="new.png")])
    store.add([case(3, image="new.png")])
    store.labels.add([label(1, "anomaly")])
    store.snooze(snooze(until=NOON + DAY / 2))
    store.add_p_values([PValueCounts.of("fraud", "3", TODAY, [0.5])], "part")
    pruned = store.prune(7, NOON + 8 * DAY)
    assert (pruned.cases, pruned.images) == (2, ("old.png",))
    assert ids(store.queue()) == ["2"]
    assert (store.labels.stats().labels, store.p_values("fraud"), store.snoozes()) == (1, [], [])
    assert store.prune(7, NOON + 8 * DAY).cases == 0


# ---------------------------------------------------------------- the database


def test_a_look_creates_no_store(lite, tmp_path):
    for look in (lite.queue, lite.count, lite.stats, lite.active_snoozes):
        with pytest.raises(StoreError, match=r"there is no case store at .*cases import"):
            look()
    assert not (tmp_path / "labels.db").exists()


def test_a_store_of_labels_alone_gets_cases(sqlite_store):
    with closing(sqlite3.connect(sqlite_store.removeprefix("sqlite:///"))) as connection:
        connection.executescript(FIRST_VERSION)
    with CaseStore(sqlite_store) as store:
        assert store.queue() == []
        store.add([case(12), case(13)])
        assert ids(store.queue()) == ["13"]


def add_many(address, ready):
    ready.wait(60)
    with CaseStore(address) as store:
        for start in range(0, 40, 10):
            store.add([case(row) for row in range(start, start + 10)])
            store.add_p_values([PValueCounts.of("fraud", "3", TODAY, [0.5])])


def test_processes_that_write_at_once_store_each_case_once(store_address):
    ready = FORKED.Barrier(2)
    workers = [FORKED.Process(target=add_many, args=(store_address, ready)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    with CaseStore(store_address) as store:
        assert store.count() == 40
        assert store.p_values("fraud")[0].rows == 8
