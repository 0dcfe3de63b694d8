"""Test that an SQLite store that cannot be used says so, and that writers take turns."""

import threading
from dataclasses import replace

import pytest

from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features.store import WindowStore
from anomaly_vae.features.store.sqlite import SqliteBackend
from tests.support.window_streams import INPUTS, stream


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


def test_threads_that_write_at_once_lose_nothing(tmp_path):
    store = store_at(tmp_path / "windows.db")
    card = {"CUSTOMER_ID": "1", "TERMINAL_ID": "1"}
    events = [replace(event, keys=card) for event in stream(200, seed=2)]

    def write(part):
        for event in part:
            store.load([event])
        store.backend.close()

    threads = [threading.Thread(target=write, args=(events[k::4],)) for k in range(4)]
    threads += [threading.Thread(target=write, args=(events[k::4],)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.history("CUSTOMER_ID", 1)) == len(store.history("TERMINAL_ID", 1)) == 200
    assert store.backend.entities() == 2


def test_a_store_in_use_is_copied_by_vacuum_into(tmp_path):
    """Unlike a copy of the file, which lacks the events in the log."""
    store, events = store_at(tmp_path / "windows.db"), stream(60, seed=4)
    store.load(events)
    store.backend._db.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    copy = store_at(tmp_path / "copy.db")
    assert copy.state() == store.state()
    assert set(copy.load(events).outcomes) == {"duplicate"}
