"""The table of guarantees, which a store of labels gets."""

import sqlite3
from contextlib import closing

from anomaly_vae.review import CaseStore, GuaranteeLog
from anomaly_vae.review.migrations.versions import v0003_guarantees
from tests.support.label_stores import FIRST_VERSION


def test_it_follows_the_cases_and_keeps_the_labels(tmp_path):
    path = tmp_path / "labels.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_VERSION)
    address = f"sqlite:///{path}"
    with GuaranteeLog(address) as log, CaseStore(address) as cases:
        assert log.note("fraud", None, "holding")
        assert cases.labels.stats().labels == 1
    revisions = v0003_guarantees.revision, v0003_guarantees.down_revision
    assert revisions == ("0003", "0002")
