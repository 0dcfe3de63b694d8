"""Which labels a store keeps, and which of them count; on SQLite and PostgreSQL."""

import os
import threading

import pytest

from anomaly_vae.errors import StoreError
from anomaly_vae.review import CurrentLabel, Label, LabelStore
from tests.support.processes import FORKED


def label(row, verdict, who="alice", at=None, note="", model="fraud"):
    return Label.of(model, row, verdict, who, at, note)


@pytest.fixture
def store(store_address):
    with LabelStore(store_address) as store:
        yield store


@pytest.fixture
def lite(sqlite_store):
    with LabelStore(sqlite_store) as store:
        yield store


def current(store, model=None):
    return [(one.id, one.label, one.who) for one in store.newest(model)]


def test_the_newest_of_each_id_counts(store):
    assert store.add([label(12, "anomaly"), label(12.0, "normal"), label("7", "unsure")]) == [
        True, True, True,
    ]  # fmt: skip
    assert current(store) == [("12", "normal", "alice"), ("7", "unsure", "alice")]


def test_the_time_of_the_verdict_counts_not_that_of_its_arrival(store):
    store.add([label(1, "normal", at=200.0), label(1, "anomaly", at=100.0)])
    (one,) = store.newest()
    assert one == CurrentLabel("fraud", "1", "normal", "alice", 200.0, "", {})


def test_of_equal_times_the_last_one_counts(store):
    store.add([label(1, "normal", at=100.0), label(1, "anomaly", at=100.0)])
    assert current(store) == [("1", "anomaly", "alice")]


def test_without_a_time_a_verdict_equal_to_the_newest_is_not_stored(store):
    assert store.add([label(1, "anomaly"), label(1, "anomaly", note="again")]) == [True, False]
    assert store.add([label(1, "anomaly")]) == [False]
    assert store.add([label(1, "normal"), label(1, "anomaly")]) == [True, True]
    assert store.stats().labels == 3


def test_each_reviewer_has_a_newest_verdict(store):
    assert store.add([label(1, "anomaly"), label(1, "anomaly", "bob")]) == [True, True]
    assert store.add([label(1, "anomaly", model="other")]) == [True]


def test_a_label_with_a_time_may_be_sent_again(store):
    labels = [label(1, "anomaly", at=1.7e9 + 0.123456), label(1, "normal", at=1.6e9)]
    assert store.add(labels) == [True, True]
    assert store.add([*labels, *labels]) == [False] * 4
    assert store.add([label(1, "normal", at=1.6e9, note="called")]) == [True]


def test_the_last_word_counts_even_if_clocks_differ(lite, monkeypatch):
    lite.add([label(1, "anomaly")])
    monkeypatch.setattr("anomaly_vae.review.store.time.time", lambda: 1_000.0)
    lite.add([label(1, "normal")])
    assert current(lite) == [("1", "normal", "alice")]


def test_conflicts_are_visible_and_the_newest_counts(store):
    store.add(
        [label(1, "anomaly", "alice", 100.0), label(1, "normal", "bob", 200.0),
         label(1, "normal", "carol", 50.0), label(1, "unsure", "dan", 60.0),
         label(2, "normal", "alice", 100.0), label(2, "normal", "bob", 100.0)]
    )  # fmt: skip
    first, second = store.newest()
    assert (first.label, first.who) == ("normal", "bob")
    assert first.conflicts == {"alice": "anomaly", "dan": "unsure"}
    assert second.conflicts == {}
    store.add([label(1, "normal", "alice", 300.0), label(1, "normal", "dan", 300.0)])
    assert next(store.newest()).conflicts == {}


def test_stats(store):
    store.add(
        [label(1, "anomaly", "alice", 100.0), label(1, "normal", "bob", 200.0),
         label(2, "unsure", "bob", 50.5), label(3, "anomaly", "bob", 60.0, model="other")]
    )  # fmt: skip
    stats = store.stats("fraud")
    assert (stats.labels, stats.ids, stats.conflicts) == (3, 2, 1)
    assert stats.verdicts == {"anomaly": 0, "normal": 1, "unsure": 1}
    assert stats.reviewers == {"alice": 1, "bob": 2}
    assert (stats.oldest, stats.newest) == (50.5, 200.0)
    assert store.stats().ids == 3
    nothing = store.stats("absent")
    assert (nothing.labels, nothing.oldest, nothing.newest) == (0, None, None)


def test_many_labels_are_stored_all_or_none(store):
    labels = [label(row, "normal", at=float(row)) for row in range(2_500)]
    assert all(store.add(labels))
    assert not any(store.add(labels))
    assert store.add([]) == []
    assert len(list(store.newest())) == 2_500


def test_texts_stay_texts(store):
    note = "<script>alert('x')</script>'; DROP TABLE anomaly_vae_labels; --\n{0} %s :x 中文"
    row = "'; DELETE FROM anomaly_vae_labels; --"
    store.add([label(row, "anomaly", "o'brien <b>", note=note)])
    (one,) = store.newest()
    assert (one.id, one.who, one.note) == (row, "o'brien <b>", note)


def test_a_look_creates_no_store(store, store_address, tmp_path):
    for look in (store.stats, lambda: list(store.newest())):
        with pytest.raises(StoreError, match=r"there is no label store at .*labels import"):
            look()
    assert not (tmp_path / "labels.db").exists()


def test_a_store_that_cannot_be_written_to_is_named(sqlite_store, tmp_path):
    with (
        LabelStore(sqlite_store.replace("labels.db", "absent/labels.db")) as store,
        pytest.raises(StoreError, match=r"absent/labels\.db: unable to open database file"),
    ):
        store.add([])


def add_many(address, who, ready):
    ready.wait(60)
    with LabelStore(address) as store:
        for verdict in ("anomaly", "normal", "normal", "unsure"):
            store.add([label(row, verdict, who) for row in range(20)])


def test_processes_that_start_at_once_migrate_once_and_lose_nothing(store_address):
    ready = FORKED.Barrier(2)
    names = [f"reviewer {number}" for number in range(2)]
    workers = [FORKED.Process(target=add_many, args=(store_address, name, ready)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 2
    with LabelStore(store_address) as store:
        assert store.stats().reviewers == dict.fromkeys(names, 60)


def test_threads_that_send_the_same_verdict_store_it_once(store):
    store.prepare()
    added, barrier = [], threading.Barrier(4)

    def send():
        barrier.wait(30)
        added.extend(store.add([label(1, "anomaly")]))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(added) == [False, False, False, True]


def test_a_database_that_is_replaced_by_an_empty_one_is_used(lite, tmp_path):
    assert lite.add([label(1, "anomaly")]) == [True]
    for file in tmp_path.glob("labels.db*"):
        file.unlink()
    with pytest.raises(StoreError, match="no such table"):
        lite.add([label(2, "anomaly")])
    assert lite.add([label(2, "anomaly")]) == [True]
    assert current(lite) == [("2", "anomaly", "alice")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(lite, tmp_path):
    lite.add([label(1, "anomaly")])
    lite.close()
    (tmp_path / "labels.db").chmod(0)
    with pytest.raises(StoreError, match="unable to open"):
        lite.stats()
