"""What a frozen test split remembers, and which versions cannot know its rows."""

from __future__ import annotations

import json

import pytest

from anomaly_vae.lifecycle.registry import (
    FROZEN_TAG,
    POLICY_TAG,
    TEST_DIGEST_TAG,
    TEST_TAG,
    Version,
)
from pipelines.registry.frozen_test import EXCLUDED, FrozenTest, is_set_apart

OTHERS = FrozenTest("1", "runs:/1/test.parquet", "first", {"label": "y"})


def version(own: str, **policy: str | None) -> Version:
    tags = {TEST_TAG: "runs:/2/test.parquet", TEST_DIGEST_TAG: own, POLICY_TAG: json.dumps(policy)}
    return Version("fraud", "2", tags, (), None, 0.0)


@pytest.mark.parametrize(
    ("own", "policy", "apart"),
    [
        ("first", {EXCLUDED: None}, True),
        ("second", {EXCLUDED: "first"}, True),
        ("second", {EXCLUDED: None}, False),
        ("second", {EXCLUDED: "zeroth"}, False),
        ("second", {}, True),
    ],
    ids=["own rows", "excluded", "trained before", "another excluded", "of an older release"],
)
def test_rows_are_set_apart_if_they_are_ones_own_or_were_excluded(
    own: str, policy: dict[str, str | None], apart: bool
) -> None:
    assert is_set_apart(version(own, **policy), OTHERS) is apart
    assert is_set_apart(version(own, **policy), None)


@pytest.mark.parametrize(
    "test",
    [OTHERS, FrozenTest("1", "runs:/1/t", "first", {}, 3, "runs:/0/labels/a.parquet", "a")],
    ids=["first labels", "revision"],
)
def test_a_tag_restores_a_test_split_and_has_no_more_than_it_needs(test: FrozenTest) -> None:
    tags = {FROZEN_TAG: test.tag()}
    assert FrozenTest.of_champion(Version("fraud", "1", tags, (), None, 0.0)) == test
    assert ("labels" in json.loads(test.tag())) == (test.labels is not None)
