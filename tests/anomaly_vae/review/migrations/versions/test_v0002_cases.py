"""The tables of cases, which a store of labels gets."""

import sqlite3
from contextlib import closing

from anomaly_vae.review import CaseStore
from anomaly_vae.review.migrations.versions import v0002_cases
from tests.support.label_stores import FIRST_VERSION


def test_it_follows_the_labels_and_keeps_them(tmp_path):
    path = tmp_path / "labels.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_VERSION)
    with CaseStore(f"sqlite:///{path}") as store:
        assert store.count() == 0
        assert store.labels.stats().labels == 1
    assert (v0002_cases.revision, v0002_cases.down_revision) == ("0002", "0001")
