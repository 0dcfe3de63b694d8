"""The first version of the tables."""

import sqlite3
from contextlib import closing

from anomaly_vae.review.migrations.versions import v0001_labels
from anomaly_vae.review.store import LabelStore
from tests.support.label_stores import FIRST_VERSION


def structure(path):
    query = "SELECT type, name, tbl_name FROM sqlite_master WHERE tbl_name = 'anomaly_vae_labels'"
    with closing(sqlite3.connect(path)) as connection:
        objects = sorted(row for row in connection.execute(query) if "sqlite_" not in row[1])
        columns = connection.execute("PRAGMA table_info(anomaly_vae_labels)").fetchall()
    return objects, [column[:4] for column in columns]


def test_it_never_changes(tmp_path):
    """Stores that were written by it exist; changes are further migrations."""
    with LabelStore(f"sqlite:///{tmp_path}/new.db") as store:
        store.prepare()
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.executescript(FIRST_VERSION)
    assert structure(tmp_path / "new.db") == structure(tmp_path / "old.db")
    assert (v0001_labels.revision, v0001_labels.down_revision) == ("0001", None)
