"""Labels of a frozen test split that arrive later, and the revisions that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from anomaly_vae.data.vocabulary import ANOMALY, NORMAL, UNSURE
from anomaly_vae.errors import RegistryError
from anomaly_vae.lifecycle.champion_history import history
from anomaly_vae.lifecycle.registry import (
    FROZEN_TAG,
    NEWER_LABELS_TAG,
    POLICY_TAG,
    TEST_DIGEST_TAG,
    TEST_TAG,
    Registry,
)
from pipelines.datasets.verdicts import ID_TYPE, Verdicts
from pipelines.promotion.promote import promote, rollback
from pipelines.promotion.refresh import Revision
from pipelines.registry.frozen_test import FrozenTest, write_artifact
from tests.support.flows import Command, World
from tests.support.registries import copy_registry, frozen_rows
from tests.support.table_files import write

pytestmark = pytest.mark.usefixtures("blank_figures")

GOOD, EQUAL = "1", "2"


@pytest.fixture
def registry(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The champion, and an equal challenger."""
    copy_registry(world.folder, tmp_path, monkeypatch)
    registry = Registry()
    add(registry, world)
    return registry


def add(registry: Registry, world: World) -> str:
    tags = {t: world.calibrated.version.tags[t] for t in (TEST_TAG, TEST_DIGEST_TAG, POLICY_TAG)}
    with registry.run("fraud", "calibrate", {}) as run:
        return registry.register(run, world.calibrated.bundle, "fraud", tags).version


def normal_ids(registry: Registry, count: int) -> list[int]:
    """Return ids of frozen rows that are normal."""
    table = frozen_rows(registry, "fraud")
    normal = np.flatnonzero(table.column("TX_FRAUD").to_numpy() == 0)[:count]
    ids: list[int] = table.column("TRANSACTION_ID").to_numpy()[normal].tolist()
    return ids


def late_file(ids: list[int], label: str = "anomaly", name: str = "late.csv") -> Path:
    lines = "".join(f"{i},{label}\n" for i in ids)
    return write(Path(name), f"TRANSACTION_ID,label\n{lines}")


def record(registry: Registry) -> dict[str, Any]:
    """Return the record of the last decision."""
    run, entry = registry.history("fraud"), history(registry, "fraud")[-1]
    assert run is not None
    content = Path(registry.download(f"runs:/{run.id}/{entry.record}")).read_text()
    kept: dict[str, Any] = json.loads(content)
    return kept


def champions(registry: Registry) -> FrozenTest:
    version = registry.champion("fraud")
    assert version is not None
    return FrozenTest.of_champion(version)


def test_both_models_are_judged_on_late_labels_and_the_history_says_so(
    registry: Registry, command: Command
) -> None:
    ids = normal_ids(registry, 40)
    path = late_file([*ids, 10**9])
    answer = command("promote", "fraud", "--version", EQUAL, "--labels", path)
    assert answer.code == 0
    before = champions(registry).read(registry).column("TX_FRAUD").to_numpy().sum()
    for figures in answer.json["evaluations"].values():
        assert figures["anomalies"] == before + 40
    labels = answer.json["labels"]
    assert (labels["changed"], labels["to_anomaly"]) == (40, 40)
    assert (labels["anomalies_before"], labels["anomalies_after"]) == (before, before + 40)
    assert labels["digest"] == champions(registry).labels_digest
    assert record(registry)["labels"] == labels
    assert "40 labels changed (40 to anomaly)" in answer.err
    assert "precision" in answer.err


def test_the_rows_stay_and_old_revisions_stay_readable(registry: Registry, world: World) -> None:
    rows = frozen_rows(registry, "fraud")
    ids = normal_ids(registry, 2)
    promote(registry, "fraud", EQUAL, labels=[str(late_file(ids))])
    first = champions(registry)
    promote(registry, "fraud", add(registry, world), labels=[str(late_file(ids[:1], "normal"))])
    second = champions(registry)
    assert frozen_rows(registry, "fraud").equals(rows)
    assert (first.digest, first.labels != second.labels) == (second.digest, True)
    for test, codes in ((first, [ANOMALY, ANOMALY]), (second, [NORMAL, ANOMALY])):
        revision = Revision.from_table(test.read_labels(registry))
        assert revision.late.on(pa.array(map(str, ids), ID_TYPE)).tolist() == codes


def test_a_label_once_seen_counts_without_its_file(registry: Registry, world: World) -> None:
    path = late_file(normal_ids(registry, 3))
    promote(registry, "fraud", EQUAL, labels=[str(path)])
    path.unlink()
    later = promote(registry, "fraud", add(registry, world))
    assert later.labels is not None
    assert later.labels["changed"] == 0
    assert later.labels["anomalies_after"] == later.labels["anomalies_before"]
    assert later.champion_evaluation is not None
    assert later.champion_evaluation.anomalies == later.labels["anomalies_after"]


def test_a_refusal_keeps_the_labels_for_the_champion(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.champion("fraud")
    assert version is not None
    frozen = FrozenTest.of_champion(version)
    strict = {**frozen.policy, "agreement": 0.5, "megabytes": 1e-6}
    registry.tag_version(
        version, FROZEN_TAG, json.dumps({**json.loads(frozen.tag()), "policy": strict})
    )
    decision = promote(registry, "fraud", EQUAL, labels=[str(late_file(normal_ids(registry, 3)))])
    assert not decision.promoted
    assert champions(registry).labels is not None
    again = promote(registry, "fraud", EQUAL, labels=["none"])
    assert again.labels is not None
    assert (again.labels["changed"], again.labels["digest"]) == (
        0,
        champions(registry).labels_digest,
    )


def test_the_source_is_that_of_the_challengers_configuration(registry: Registry) -> None:
    version = registry.version("fraud", EQUAL)
    path = late_file(normal_ids(registry, 3)).absolute()
    policy = json.loads(version.tags[POLICY_TAG])
    policy["late_labels"] = {"places": [str(path)], "normal": ["0"]}
    registry.tag_version(version, POLICY_TAG, json.dumps(policy))
    decision = promote(registry, "fraud", EQUAL)
    assert decision.labels is not None
    assert decision.labels["changed"] == 3


def test_a_source_that_is_gone_stops_the_promotion(registry: Registry, command: Command) -> None:
    answer = command("promote", "fraud", "--version", EQUAL, "--labels", "gone.csv")
    assert answer.code == 1
    assert "gone.csv" in answer.err
    assert champions(registry).version == GOOD
    assert len(history(registry, "fraud")) == 1


def test_newer_data_bring_labels_for_frozen_rows(registry: Registry, world: World) -> None:
    """Labels that were corrected in the data themselves, once and back again."""
    ids = normal_ids(registry, 2)
    for code, changed, version in (
        (ANOMALY, 2, EQUAL),
        (UNSURE, 0, add(registry, world)),
        (NORMAL, 2, add(registry, world)),
    ):
        verdicts = Verdicts(
            pa.array(map(str, ids), ID_TYPE), np.full(2, code, np.int8), np.full(2, np.nan)
        )
        with registry.run("fraud", "newer", {}) as run:
            digest = write_artifact(run, verdicts.table, "newer.parquet")
        tag = json.dumps({"uri": f"runs:/{run.id}/newer.parquet", "digest": digest})
        registry.tag_version(registry.version("fraud", version), NEWER_LABELS_TAG, tag)
        decision = promote(registry, "fraud", version)
        assert decision.promoted
        assert decision.labels is not None
        assert decision.labels["changed"] == changed


def test_a_rollback_keeps_the_newest_labels_of_the_same_split(registry: Registry) -> None:
    promote(registry, "fraud", EQUAL, labels=[str(late_file(normal_ids(registry, 3)))])
    newest = champions(registry).labels
    rollback(registry, "fraud")
    assert newest is not None
    assert champions(registry).labels == newest
    assert champions(registry).version == GOOD


def test_altered_labels_are_refused(registry: Registry, world: World) -> None:
    promote(registry, "fraud", EQUAL, labels=[str(late_file(normal_ids(registry, 3)))])
    version = registry.champion("fraud")
    assert version is not None
    tag = {**json.loads(version.tags[FROZEN_TAG]), "labels_digest": "0" * 64}
    registry.tag_version(version, FROZEN_TAG, json.dumps(tag))
    with pytest.raises(RegistryError, match=r"labels of the frozen test split .* was altered"):
        promote(registry, "fraud", add(registry, world))


def test_a_crash_before_the_decision_leaves_the_old_labels(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(late_file(normal_ids(registry, 3)))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.promotion.promote._record", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            promote(registry, "fraud", EQUAL, labels=[path])
    assert champions(registry).labels is None
    decision = promote(registry, "fraud", EQUAL, labels=[path])
    assert decision.labels is not None
    assert decision.labels["changed"] == 3


# ---------------------------------------------------------------- revisions


def known(*rows: tuple[str, int, float]) -> Verdicts:
    ids, codes, at = zip(*rows, strict=True) if rows else ((), (), ())
    return Verdicts(pa.array(ids, ID_TYPE), np.array(codes, np.int8), np.array(at, float))


def test_an_older_late_label_does_not_replace_a_newer_one() -> None:
    nan, nothing = float("nan"), known()
    first = known(("a", NORMAL, nan), ("b", NORMAL, nan))
    start = Revision.from_table(None).updated(first, nothing, known(("a", ANOMALY, 5)))
    for at, code in ((4, ANOMALY), (5, NORMAL), (6, NORMAL), (nan, NORMAL)):
        later = start.updated(first, nothing, known(("a", NORMAL, at), ("z", ANOMALY, 9)))
        assert later.verdicts.on(pa.array(["a", "z"], ID_TYPE)).tolist() == [code, -1]


def test_a_late_label_comes_before_that_of_newer_data_and_a_table_keeps_both() -> None:
    nan = float("nan")
    first = known(("a", NORMAL, nan), ("b", NORMAL, nan))
    data = known(("a", NORMAL, nan), ("b", ANOMALY, nan))
    revision = Revision.from_table(None).updated(first, data, known(("a", ANOMALY, 5)))
    assert revision.data.ids.to_pylist() == ["b"], "a says what the frozen row says"
    again = Revision.from_table(revision.table)
    assert again.verdicts.on(first.ids).tolist() == [ANOMALY, ANOMALY]
    assert again.table.equals(revision.table)
