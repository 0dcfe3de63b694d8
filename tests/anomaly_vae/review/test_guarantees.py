"""The states of guarantees over time."""

import pytest

from anomaly_vae.errors import StoreError
from anomaly_vae.review import CaseStore, GuaranteeLog, GuaranteeState
from tests.support.label_stores import postgres_server, sqlite_store, store_address

__all__ = ["postgres_server", "sqlite_store", "store_address"]


def test_only_changes_are_kept(store_address):
    with GuaranteeLog(store_address) as log, GuaranteeLog(store_address) as other:
        assert log.note("fraud", None, "unknown", 1.0)
        assert not other.note("fraud", None, "unknown", 2.0)
        assert other.note("fraud", None, "holding", 3.0)
        assert log.note("fraud", "2", "holding", 4.0)  # of another version
        assert log.note("scans", None, "holding", 5.0)
        assert log.note("fraud", "2", "broken", 6.5)
        assert log.states("fraud", limit=2) == [
            GuaranteeState("fraud", "2", "broken", 6.5),
            GuaranteeState("fraud", "2", "holding", 4.0),
        ]
        assert len(log.states("fraud")) == 4
        assert log.states("nothing") == []


def test_it_shares_the_database_of_the_cases(sqlite_store):
    with CaseStore(sqlite_store) as cases, GuaranteeLog(sqlite_store) as log:
        cases.prepare()
        log.note("fraud", None, "holding")
        assert log.states("fraud")[0].at > 1e9
        assert cases.count() == 0


def test_without_a_store_there_is_nothing_to_read(sqlite_store):
    with GuaranteeLog(sqlite_store) as log, pytest.raises(StoreError, match="no case store"):
        log.states("fraud")
