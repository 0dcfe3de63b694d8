"""What a bundle says of itself on the terminal and on stdout."""

from __future__ import annotations

import pytest

from tests.support.flows import Command, World


def test_the_manifest_of_a_registered_model(champion: World, command: Command) -> None:
    answer = command("inspect", "models:/fraud@champion")
    assert answer.code == 0
    manifest = champion.calibrated.bundle.manifest
    assert answer.json["model"] == {
        "name": "fraud", "version": "1", "alias": "champion",
        "digest": champion.calibrated.bundle.digest,
    }  # fmt: skip
    for key in ("kind", "schema", "config", "data", "training", "calibration", "evaluation"):
        assert answer.json[key] == manifest[key]
    assert answer.json["calibration"]["alpha"] == 0.05
    for word in ("TX_AMOUNT", "numeric", "Calibration", "threshold", "AUROC", "champion"):
        assert word in answer.err


def test_a_bundle_without_threshold_can_be_looked_at(champion: World, command: Command) -> None:
    answer = command("inspect", champion.trained.folder)
    assert answer.code == 0
    assert answer.json["calibration"] is None
    assert answer.json["evaluation"] is None


@pytest.mark.parametrize("uri", ["models:/absent/1", "no/such/folder"])
def test_what_is_not_there_exits_1(champion: World, command: Command, uri: str) -> None:
    answer = command("inspect", uri)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("error: ")
