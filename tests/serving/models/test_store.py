"""What is served."""

import dataclasses

import pytest

from anomaly_vae.errors import ConfigError
from serving.models.store import Store


def test_two_of_one_name(served):
    with pytest.raises(ConfigError, match="NAME=URI"):
        Store([served, dataclasses.replace(served, version="2")])


def test_a_snapshot_does_not_change(served):
    store = Store([served])
    before = store.current
    store.swap([dataclasses.replace(served, name="other")])
    assert list(before) == ["fraud"]
    assert list(store.current) == ["other"]
    with pytest.raises(TypeError):
        store.current["x"] = served


def test_a_failed_swap_changes_nothing(served):
    store = Store([served])
    with pytest.raises(ConfigError):
        store.swap([served, dataclasses.replace(served)])
    assert store.current["fraud"] is served


def test_one_is_replaced_and_the_others_stay(served):
    other = dataclasses.replace(served, name="other")
    store = Store([served, other])
    before, newer = store.current, dataclasses.replace(served, version="2")
    store.put(newer)
    store.put(other, shadow=True)
    assert dict(store.current) == {"fraud": newer, "other": other}
    assert dict(store.shadows) == {"other": other}
    assert before["fraud"] is served
