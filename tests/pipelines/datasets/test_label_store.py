"""Late labels are read from a label store; see test_labels.py for how they are merged."""

import pytest

from pipelines.datasets.label_store import is_store


@pytest.mark.parametrize("place", ["sqlite:///labels.db", "postgresql://fraud@db/labels"])
def test_addresses_are_stores(place: str) -> None:
    assert is_store(place)


@pytest.mark.parametrize("place", ["labels/", "labels/*.csv", "C:/labels.csv", "/data/labels.csv"])
def test_paths_are_files(place: str) -> None:
    assert not is_store(place)
