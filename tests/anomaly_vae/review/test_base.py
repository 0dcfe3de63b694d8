"""What the stores of labels and cases share."""

import pytest

from anomaly_vae.errors import ConfigError
from anomaly_vae.review import CaseStore, LabelStore
from anomaly_vae.review.base import batches


def test_batches():
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


@pytest.mark.parametrize(("kind", "noun"), [(LabelStore, "label"), (CaseStore, "case")])
def test_messages_name_the_kind_of_store(kind, noun):
    with pytest.raises(ConfigError, match=f"{noun} store 'mysql://.*': expected sqlite:///"):
        kind("mysql://bob:hunter2@host/db")


def test_a_store_that_was_deleted_is_made_again(tmp_path):
    with CaseStore(f"sqlite:///{tmp_path}/cases.db") as store:
        store.prepare()
        for path in tmp_path.glob("cases.db*"):
            path.unlink()
        store.labels.prepare()
        assert store.add([]) == []
        assert store.count() == 0
