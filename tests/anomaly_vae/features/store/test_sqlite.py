"""Test that an SQLite store that cannot be used says so, and that writers take turns."""

import threading
from dataclasses import replace

import pytest

from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features import WindowDefinition
from anomaly_vae.features.store import WindowStore
from anomaly_vae.features.store.sqlite import FEW, MAX_KEYS, SqliteBackend
from tests.support.window_streams import DAY, INPUTS, stream


def store_at(path, **options):
    return WindowStore(SqliteBackend(path, **options), INPUTS)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "windows.db"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(WindowStoreError, match=r"windows\.db' cannot be used: file is not a"):
        store_at(path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WindowStoreError, match="cannot be used"):
        store_at(tmp_path / "file" / "windows.db")


def test_a_store_of_another_version_is_refused(tmp_path):
    store_at(tmp_path / "windows.db").backend._db.execute("UPDATE meta SET value = 9")
    with pytest.raises(WindowStoreError, match="written by another version"):
        store_at(tmp_path / "windows.db")


def test_only_the_owner_may_read_the_file(tmp_path):
    store_at(tmp_path / "state" / "windows.db")
    assert (tmp_path / "state" / "windows.db").stat().st_mode & 0o077 == 0


def test_the_number_of_entities_is_exact(tmp_path):
    store = store_at(tmp_path / "windows.db")
    store.load(stream(60, seed=4))
    assert store.backend.entities() == 5
    store.forget("CUSTOMER_ID", "1")
    assert store.backend.entities() == 4


def test_a_locked_store_is_reported_and_recovers(tmp_path):
    store, other = (store_at(tmp_path / "windows.db", seconds=0.01) for _ in range(2))
    other.backend._db.execute("BEGIN IMMEDIATE")
    with pytest.raises(WindowStoreError, match="locked"):
        store.add(stream(3, seed=1))
    other.backend._db.execute("ROLLBACK")
    assert "recorded" in store.add(stream(3, seed=1)).outcomes


@pytest.mark.parametrize("way", ["load", "score"])
def test_threads_that_write_at_once_lose_nothing(tmp_path, way):
    store = store_at(tmp_path / "windows.db", seconds=60)
    card = {"CUSTOMER_ID": "1", "TERMINAL_ID": "1"}
    (first,) = stream(1, seed=2)
    events = [replace(first, id=str(n), time=first.time + n, keys=card) for n in range(200)]

    def write(part):
        for event in part:
            if way == "load":
                store.load([event])
            else:
                store.record(store.features([event]).events)
        store.backend.close()

    threads = [threading.Thread(target=write, args=(events[k::4],)) for k in range(4)]
    threads += [threading.Thread(target=write, args=(events[k::4],)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.history("CUSTOMER_ID", 1)) == len(store.history("TERMINAL_ID", 1)) == 200
    assert store.backend.entities() == 2


def other_process_adds(path, events):
    """Record events through another connection."""
    other = store_at(path)
    other.add(events)
    other.backend.close()


@pytest.mark.parametrize(
    ("change", "customer", "terminal"),
    [("none", 6, 6), ("events", 7, 7), ("duplicates", 6, 6), ("forget", 1, 6)],
)
def test_what_was_read_is_used_again_only_if_nobody_has_written(
    tmp_path, change, customer, terminal
):
    path, card = tmp_path / "windows.db", {"CUSTOMER_ID": "1", "TERMINAL_ID": "1"}
    store, (event,) = store_at(path), stream(1, seed=2)
    events = [replace(event, id=str(n), time=event.time + n, keys=card) for n in range(7)]
    known, more, found = (store.features(events[n : n + 1]).events for n in range(3))
    store.record(known)
    store.features(events[2:3])
    if change != "forget":
        other_process_adds(path, events[3:])
    if change == "events":
        store.record(more)
    if change == "duplicates":  # a transaction that changes nothing
        assert store.record(known).outcomes == ["duplicate"]
    if change == "forget":
        store.add(events[3:])
        store.features(events[2:3])
        store.forget("CUSTOMER_ID", 1)
    store.record(found)
    assert len(store.history("CUSTOMER_ID", 1)) == customer
    assert len(store.history("TERMINAL_ID", 1)) == terminal
    assert store.state().newest == events[6].time


def test_a_request_is_read_once_while_nobody_else_writes(tmp_path):
    store, events = store_at(tmp_path / "windows.db"), stream(4, seed=2)
    for event in events[:2]:
        store.record(store.features([event]).events)
    statements: list[str] = []
    store.backend._db.set_trace_callback(statements.append)
    store.record(store.features(events[2:3]).events)
    assert sum("SELECT" in one for one in statements) == 1


def test_entities_without_events_since_expire_by_the_longer_windows_of_another_model(tmp_path):
    """Also the ids, so that a repeated event still counts once."""
    path = tmp_path / "windows.db"
    card = EntityWindows(over=("1h",), count=True)
    short, long = (
        replace(INPUTS, definition=WindowDefinition({"card": windows}))
        for windows in (card, card.model_copy(update={"over": ("30d",)}))
    )
    store, (event,) = WindowStore(SqliteBackend(path), short), stream(1, seed=1)
    event = replace(event, numbers={}, keys={"card": "1"}, anomalous=frozenset())
    later = replace(event, id="later", time=event.time + 20 * DAY, keys={"card": "2"})
    store.add([event])
    longer = WindowStore(SqliteBackend(path), long)
    longer.add([later])
    for _ in range(3):
        longer.backend.expire(10)
    assert len(longer.history("card", "1")) == 1
    assert longer.load([event]).outcomes == ["duplicate"]
    longer.add([replace(later, id="last", time=event.time + 32 * DAY)])
    for _ in range(3):
        longer.backend.expire(10)
    assert len(longer.history("card", "1")) == 0
    assert longer.backend.entities() == 1


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, MAX_KEYS + 1])
def test_any_number_of_entities_is_read(tmp_path, count):
    store = store_at(tmp_path / "windows.db")
    event = stream(1, seed=2)[0]
    keys = [{"CUSTOMER_ID": str(card), "TERMINAL_ID": None} for card in range(count)]
    events = [replace(event, id=str(n), keys=key) for n, key in enumerate(keys)]
    store.load(events)
    again = [replace(one, id=f"again {one.id}", time=event.time + 1) for one in events]
    store.load(again)
    found = store.histories("CUSTOMER_ID", [str(card) for card in range(count + 1)])
    assert [len(events) for events in found.values()] == [2] * count + [0]


def test_a_store_in_use_is_copied_by_vacuum_into(tmp_path):
    """Unlike a copy of the file, which lacks the events in the log."""
    store, events = store_at(tmp_path / "windows.db"), stream(60, seed=4)
    store.load(events)
    store.backend._db.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    copy = store_at(tmp_path / "copy.db")
    assert copy.state() == store.state()
    assert set(copy.load(events).outcomes) == {"duplicate"}
