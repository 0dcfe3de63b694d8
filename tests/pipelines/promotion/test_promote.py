"""Promotion over a real registry: what is frozen, who wins, and what a crash leaves behind."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import Calibration, calibrate
from anomaly_vae.data.splitting import CALIBRATION
from anomaly_vae.errors import BundleError, RegistryError
from anomaly_vae.evaluation.metrics import max_fpr_under_guarantee
from anomaly_vae.lifecycle.champion_history import Entry, history, previous_champions
from anomaly_vae.lifecycle.promotion import RefusalReason, Rule, RuleResult
from anomaly_vae.lifecycle.registry import (
    CHALLENGER,
    CHAMPION,
    DECISION_TAG,
    FROZEN_TAG,
    POLICY_TAG,
    TEST_DIGEST_TAG,
    TEST_TAG,
    Registry,
)
from pipelines.datasets.dataset import Dataset
from pipelines.promotion.decision import Promotion
from pipelines.promotion.promote import promote, rollback
from pipelines.registry.frozen_test import FrozenTest
from tests.support.flows import Command, World
from tests.support.registries import copy_registry, frozen_rows

pytestmark = pytest.mark.usefixtures("blank_figures")

GOOD, EQUAL, WORSE, LOOSE = "1", "2", "3", "4"
"""The versions there are; version 1 is the world's own, and champion in it."""


def worse_bundle(good: Bundle, dataset: Dataset) -> Bundle:
    """The good model, blind to every number."""
    encoding = [
        {**column, "scale": 1e9} if column["type"] == "numeric" else column
        for column in good.manifest["encoding"]
    ]
    blind = Bundle({**good.manifest, "encoding": encoding}, good.graph, good.weights)
    scores = blind.scorer.score(dataset.part(CALIBRATION))
    return blind.calibrated(calibrate(scores, 0.05), None)


def loose_bundle(good: Bundle) -> Bundle:
    """The good model with a threshold that flags a third of everything."""
    scores = good.detector.calibration.scores
    loose = Calibration("conformal", 0.05, float(np.quantile(scores, 0.66)), scores)
    return good.calibrated(loose, None)


@pytest.fixture(scope="module")
def candidates(
    world: World,
    dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder whose registry holds four versions; the first is champion."""
    folder = tmp_path_factory.mktemp("candidates")
    good = world.calibrated.bundle
    with pytest.MonkeyPatch.context() as patch:
        copy_registry(world.folder, folder, patch)
        registry = Registry()
        tags = {
            tag: world.calibrated.version.tags[tag]
            for tag in (TEST_TAG, TEST_DIGEST_TAG, POLICY_TAG)
        }
        for bundle in (good, worse_bundle(good, dataset), loose_bundle(good)):
            with registry.run("fraud", "calibrate", {}) as run:
                registry.register(run, bundle, "fraud", tags)
    return folder


@pytest.fixture
def registry(candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A copy of it, for one test to change."""
    copy_registry(candidates, tmp_path, monkeypatch)
    return Registry()


@pytest.fixture
def fresh(registry: Registry) -> Registry:
    """The same before the first promotion."""
    client = registry._client
    client.delete_registered_model_alias("fraud", CHAMPION)
    client.delete_model_version_tag("fraud", GOOD, FROZEN_TAG)
    return registry


def set_policy(registry: Registry, version: str, **changes: Any) -> None:
    """Change the policy that a version came with."""
    found = registry.version("fraud", version)
    policy = {**json.loads(found.tags[POLICY_TAG]), **changes}
    registry.tag_version(found, POLICY_TAG, json.dumps(policy))


def set_frozen(registry: Registry, table: pa.Table | None = None, **policy: Any) -> None:
    """Freeze another table or policy for the champion."""
    version = registry.champion("fraud")
    assert version is not None
    frozen = FrozenTest.of_champion(version)
    frozen = replace(frozen, policy={**frozen.policy, **policy})
    if table is not None:
        path = Path("frozen.parquet").absolute()
        pq.write_table(table, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        frozen = replace(frozen, test_split=path.as_uri(), digest=digest)
    registry.tag_version(version, FROZEN_TAG, frozen.tag())


def reads(bundle: Bundle, prefix: str) -> Bundle:
    """The same model of columns with another spelling."""
    content = json.loads(json.dumps(bundle.manifest))
    for column in (*content["schema"]["columns"], *content["encoding"]):
        column["name"] = prefix + column["name"]
    again = Bundle(content, bundle.graph, bundle.weights, bundle.calibration)
    return again.calibrated(bundle.detector.calibration, None)


def strict_bundle(bundle: Bundle) -> Bundle:
    """The same model, which takes TX_AMOUNT for zero or one and rejects all other amounts."""
    content = json.loads(json.dumps(bundle.manifest))
    for column in content["schema"]["columns"]:
        if column["name"] == "TX_AMOUNT":
            column["type"] = "binary"
    return replace(bundle, manifest=content, manifest_file=None)


def add(registry: Registry, world: World, bundle: Bundle) -> str:
    """Register another version with the world's own test split."""
    tags = {t: world.calibrated.version.tags[t] for t in (TEST_TAG, TEST_DIGEST_TAG, POLICY_TAG)}
    with registry.run("fraud", "calibrate", {}) as run:
        return registry.register(run, bundle, "fraud", tags).version


def recorded(registry: Registry, entry: Entry) -> dict[str, Any]:
    """The record of a decision."""
    run = registry.history("fraud")
    assert run is not None
    content = Path(registry.download(f"runs:/{run.id}/{entry.record}")).read_text()
    record: dict[str, Any] = json.loads(content)
    return record


def champion(registry: Registry) -> str | None:
    found = registry.champion("fraud")
    return found.version if found else None


# ---------------------------------------------------------------- the first


def test_the_first_promotion_freezes_the_test_split_and_the_policy(fresh: Registry) -> None:
    decision = promote(fresh, "fraud", GOOD)
    assert decision.promoted
    assert decision.champion is None
    assert champion(fresh) == GOOD
    version = fresh.version("fraud", GOOD)
    assert FrozenTest.of_champion(version) == FrozenTest.own(version)
    assert json.loads(version.tags[FROZEN_TAG])["digest"] == version.tags[TEST_DIGEST_TAG]
    assert decision.challenger_evaluation is not None
    assert decision.champion_evaluation is None


def test_the_challenger_is_meant_where_no_version_is_named(fresh: Registry) -> None:
    fresh._client.set_registered_model_alias("fraud", CHALLENGER, EQUAL)
    assert promote(fresh, "fraud").version == EQUAL
    assert champion(fresh) == EQUAL


def test_a_first_model_above_alpha_is_refused_and_freezes_nothing(fresh: Registry) -> None:
    decision = promote(fresh, "fraud", LOOSE)
    assert [r.refusal_reason for r in decision.reasons] == [RefusalReason.TOO_MANY_FALSE_POSITIVES]
    assert champion(fresh) is None
    assert FROZEN_TAG not in fresh.version("fraud", LOOSE).tags
    assert frozen_rows(fresh, "fraud") is None


def test_the_evaluation_is_that_of_the_version_itself(registry: Registry, world: World) -> None:
    decision = promote(registry, "fraud", EQUAL)
    assert decision.challenger_evaluation == world.calibrated.evaluation
    assert decision.champion_evaluation == world.calibrated.evaluation


# ---------------------------------------------------------------- the later ones


def test_an_equal_challenger_becomes_champion(registry: Registry) -> None:
    decision = promote(registry, "fraud", EQUAL)
    assert decision.promoted
    assert decision.champion == GOOD
    assert champion(registry) == EQUAL
    assert previous_champions(history(registry, "fraud")) == [GOOD]


def test_a_worse_challenger_is_refused_and_the_alias_stays(registry: Registry) -> None:
    decision = promote(registry, "fraud", WORSE)
    assert not decision.promoted
    assert RefusalReason.WORSE in {reason.refusal_reason for reason in decision.reasons}
    assert champion(registry) == GOOD
    assert previous_champions(history(registry, "fraud")) == []


def test_both_are_scored_on_the_frozen_split_whatever_came_with_the_challenger(
    registry: Registry,
) -> None:
    """The challenger's own test split and policy no longer count."""
    version = registry.version("fraud", EQUAL)
    registry.tag_version(version, TEST_TAG, "runs:/0123456789abcdef/elsewhere.parquet")
    registry.tag_version(version, POLICY_TAG, json.dumps({"metric": "nonsense"}))
    assert promote(registry, "fraud", EQUAL).promoted


def test_the_frozen_tolerance_counts(registry: Registry) -> None:
    set_frozen(registry, tolerance=0.99)
    decision = promote(registry, "fraud", WORSE)
    assert RefusalReason.WORSE not in {reason.refusal_reason for reason in decision.reasons}


def test_promoting_the_champion_again_changes_nothing(
    registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    decision = promote(registry, "fraud", GOOD)
    assert decision.promoted
    assert "is the champion already: nothing to do" in capfd.readouterr().err
    assert (champion(registry), previous_champions(history(registry, "fraud"))) == (GOOD, [])


def test_the_decision_is_recorded_with_its_figures_and_reasons(registry: Registry) -> None:
    decision = promote(registry, "fraud", WORSE)
    summary = json.loads(registry.version("fraud", WORSE).tags[DECISION_TAG])
    assert summary == {
        "promoted": False,
        "forced": False,
        "reasons": [str(reason.refusal_reason) for reason in decision.reasons],
        "champion": GOOD,
        "force_reason": None,
        "freezes_test_split_of": None,
    }
    kept = recorded(registry, history(registry, "fraud")[-1])
    result = json.loads(json.dumps(decision.result()))
    assert {key: kept[key] for key in result} == result


def test_force_promotes_against_the_reasons_and_records_why(registry: Registry) -> None:
    decision = promote(registry, "fraud", WORSE, force="the old one reads a column that ends")
    assert decision.promoted
    assert decision.forced
    assert champion(registry) == WORSE
    kept = json.loads(registry.version("fraud", WORSE).tags[DECISION_TAG])
    assert kept["force_reason"] == "the old one reads a column that ends"
    assert kept["reasons"]


def test_force_without_need_is_not_called_forced(registry: Registry) -> None:
    decision = promote(registry, "fraud", EQUAL, force="in haste")
    assert decision.promoted
    assert not decision.forced


def test_force_freezes_the_test_split_it_came_with_and_a_rollback_the_former(
    registry: Registry,
) -> None:
    """Data that changed for good need another judge, on the record."""
    set_policy(registry, WORSE, tolerance=0.5)
    promote(registry, "fraud", WORSE, force="new terminals")
    forced = registry.champion("fraud")
    assert forced is not None
    assert (
        FrozenTest.of_champion(forced).version,
        FrozenTest.of_champion(forced).policy["tolerance"],
    ) == (
        WORSE,
        0.5,
    )
    assert json.loads(forced.tags[DECISION_TAG])["freezes_test_split_of"] == WORSE
    later = promote(registry, "fraud", EQUAL)
    assert later.judged_on is not None
    assert later.judged_on.version == WORSE
    for back_to, judged_by in ((WORSE, WORSE), (GOOD, GOOD)):
        rollback(registry, "fraud")
        again = registry.champion("fraud")
        assert again is not None
        assert (again.version, FrozenTest.of_champion(again).version) == (back_to, judged_by)


def test_a_refusal_names_the_frozen_split_and_the_way_out(
    registry: Registry, command: Command
) -> None:
    rows = len(frozen_rows(registry, "fraud"))
    digest = FrozenTest.own(registry.version("fraud", GOOD)).digest[:12]
    answer = command("promote", "fraud", "--version", WORSE)
    assert answer.json["judged_on"] == {"version": GOOD, "rows": rows, "digest": digest}
    for reason in answer.json["reasons"]:
        assert f"version 1's test split ({rows} rows, {digest})" in reason["text"]
    assert "anomaly-vae promote fraud --version 3 --force --reason" in answer.json["remedy"]
    assert "another name" in answer.err


def test_a_first_model_has_no_other_way_out_than_to_be_better(fresh: Registry) -> None:
    assert promote(fresh, "fraud", LOOSE).remedy is None


# ---------------------------------------------------------------- rows that cannot be scored


def test_a_challenger_that_can_read_no_frozen_row_is_refused_on_the_record(
    registry: Registry, world: World, command: Command
) -> None:
    """Its columns were renamed: a ground for refusal, not an error."""
    version = add(registry, world, reads(world.calibrated.bundle, "NEW_"))
    answer = command("promote", "fraud", "--version", version)
    assert answer.code == 3
    rows = len(frozen_rows(registry, "fraud"))
    (reason,) = answer.json["reasons"]
    assert reason["why"] == str(RefusalReason.REJECTS_MORE)
    assert reason["text"].startswith(f"{rows} rows of")
    assert "NEW_" in reason["text"]
    kept = recorded(registry, history(registry, "fraud")[-1])
    assert kept["rules"] == answer.json["rules"]
    assert champion(registry) == GOOD


def test_a_challenger_that_rejects_rows_is_refused_with_their_number(
    registry: Registry, world: World
) -> None:
    decision = promote(
        registry, "fraud", add(registry, world, strict_bundle(world.calibrated.bundle))
    )
    lost = next(r for r in decision.reasons if r.refusal_reason is RefusalReason.REJECTS_MORE)
    new, old = decision.challenger_evaluation, decision.champion_evaluation
    assert new is not None
    assert old is not None
    assert lost.text.startswith(f"{new.rejected} rows of")
    assert "TX_AMOUNT" in lost.text
    assert old.rows == new.rows, "compared on the rows that both can score"


def test_images_frozen_by_other_rules_judge_nobody(registry: Registry) -> None:
    set_frozen(registry, reading={"intensity_window": "auto", "axis": 2})
    set_policy(registry, EQUAL, reading={"intensity_window": [40, 80], "axis": 2})
    decision = promote(registry, "fraud", EQUAL)
    assert [reason.refusal_reason for reason in decision.reasons] == [RefusalReason.READS_OTHERWISE]
    assert "intensity_window auto, axis 2" in decision.reasons[0].text
    assert "intensity_window [40, 80], axis 2" in decision.reasons[0].text
    set_policy(registry, EQUAL, reading={"intensity_window": "auto", "axis": 2})
    assert promote(registry, "fraud", EQUAL).promoted


def test_reading_rules_stored_under_their_old_name_count_as_the_new_one(registry: Registry) -> None:
    set_frozen(registry, reading={"window": [40, 80], "axis": 2})
    set_policy(registry, EQUAL, reading={"intensity_window": "auto", "axis": 2})
    text = promote(registry, "fraud", EQUAL).reasons[0].text
    assert "intensity_window [40, 80], axis 2" in text
    set_policy(registry, EQUAL, reading={"window": [40, 80], "axis": 2})
    decision = promote(registry, "fraud", EQUAL)
    assert decision.promoted
    frozen = FrozenTest.of_champion(registry.version("fraud", EQUAL))
    assert frozen.policy["reading"] == {"intensity_window": [40, 80], "axis": 2}


def test_rows_that_the_champion_cannot_score_speak_against_nobody(registry: Registry) -> None:
    table = frozen_rows(registry, "fraud")
    assert table is not None
    index = table.column_names.index("TX_AMOUNT")
    amounts = table["TX_AMOUNT"].to_pylist()
    amounts[0] = float("inf")
    set_frozen(registry, table.set_column(index, "TX_AMOUNT", pa.array(amounts)))
    decision = promote(registry, "fraud", EQUAL)
    assert decision.promoted
    assert decision.champion_evaluation is not None
    assert decision.champion_evaluation.rejected == 1


def test_a_challenger_replaces_a_champion_that_can_read_nothing_any_more(
    registry: Registry, world: World
) -> None:
    """There is nothing to compare with; it must still keep alpha."""
    blind = add(registry, world, reads(world.calibrated.bundle, "NEW_"))
    promote(registry, "fraud", blind, force="in error")
    assert not promote(registry, "fraud", LOOSE).promoted
    assert promote(registry, "fraud", EQUAL).promoted


# ---------------------------------------------------------------- more rules


def verdict(decision: Promotion, rule: Rule) -> RuleResult:
    """What this rule says."""
    return next(one for one in decision.rules if one.rule is rule)


def test_an_equal_challenger_passes_every_rule_with_figures(registry: Registry) -> None:
    decision = promote(registry, "fraud", EQUAL)
    assert [str(one.rule) for one in decision.rules] == [
        "keeps_alpha", "exchangeable", "scores_all", "no_leak", "above_chance", "no_worse",
        "no_slice_collapses", "agrees", "reproduces",
    ]  # fmt: skip
    assert all(one.passed for one in decision.rules)
    assert verdict(decision, Rule.NO_WORSE).figures["difference"] == 0
    assert verdict(decision, Rule.AGREES).figures["share"] == 1
    assert verdict(decision, Rule.REPRODUCES).figures["error"] < 1e-4
    assert verdict(decision, Rule.NO_SLICE_COLLAPSES).figures["compared"] > 0


# ---------------------------------------------------------------- what the evaluation found


def evaluated(bundle: Bundle, **changes: Any) -> Bundle:
    """The same model with another evaluation."""
    evaluation = {**bundle.manifest["evaluation"], **changes}
    return replace(bundle, manifest={**bundle.manifest, "evaluation": evaluation})


LEAK = {"name": "TX_FRAUD_SCENARIO", "kind": "column", "auroc": 1.0, "low": 1.0}
WARNING = "column 'TX_FRAUD_SCENARIO' separates anomalies"


def test_a_model_that_reads_what_reveals_the_label_is_refused_unless_forced(
    registry: Registry, world: World
) -> None:
    version = add(registry, world, evaluated(world.calibrated.bundle, alone=[LEAK]))
    decision = promote(registry, "fraud", version)
    (reason,) = decision.reasons
    assert reason.refusal_reason is RefusalReason.LEAKS
    assert "TX_FRAUD_SCENARIO" in reason.text
    assert champion(registry) == GOOD
    assert promote(registry, "fraud", version, force="the column is known in time").forced
    assert champion(registry) == version


def test_a_model_calibrated_on_rows_unlike_its_test_rows_is_refused(
    registry: Registry, world: World
) -> None:
    unlike = evaluated(world.calibrated.bundle, ks=0.3, ks_p_value=1e-28)
    version = add(registry, world, unlike)
    (reason,) = promote(registry, "fraud", version).reasons
    assert reason.refusal_reason is RefusalReason.NOT_EXCHANGEABLE
    assert "KS p-value 1.0e-28" in reason.text
    assert champion(registry) == GOOD
    set_frozen(registry, ks_distance=None)
    assert promote(registry, "fraud", version).promoted, "null in the frozen policy is no limit"


def test_labels_that_were_young_when_the_test_split_froze_do_not_count(registry: Registry) -> None:
    set_frozen(registry, label_delay="3d")
    decision = promote(registry, "fraud", EQUAL)
    evaluations = decision.challenger_evaluation, decision.champion_evaluation
    assert decision.judged_on is not None
    assert all(one and 0 < one.rows < decision.judged_on.rows for one in evaluations)
    set_frozen(registry, label_delay="3d", newest="2030-01-01T00:00:00+00:00")
    later = promote(registry, "fraud", LOOSE)
    assert later.challenger_evaluation is not None
    assert later.challenger_evaluation.rows == decision.judged_on.rows


def test_a_model_below_chance_is_refused(registry: Registry) -> None:
    """The labels are turned round: the most usual rows are the anomalies."""
    set_frozen(registry, positive=0)
    decision = promote(registry, "fraud", EQUAL)
    assert RefusalReason.BELOW_CHANCE in {reason.refusal_reason for reason in decision.reasons}
    assert champion(registry) == GOOD


def test_a_refusal_repeats_the_warnings_about_the_champion(
    registry: Registry, world: World, command: Command
) -> None:
    leaking = evaluated(world.calibrated.bundle, warnings=[WARNING])
    promote(registry, "fraud", add(registry, world, leaking), force="to be compared with")
    answer = command("promote", "fraud", "--version", WORSE)
    assert answer.code == 3
    assert answer.json["champion_warnings"] == [WARNING]
    assert f"the champion's own evaluation warned: {WARNING}" in answer.err
    (words,) = (r["words"] for r in answer.json["reasons"] if r["why"] == "worse_than_champion")
    assert "no honest version can reach them; then promote with --force" in words
    assert WARNING not in command("promote", "fraud", "--version", EQUAL).err


def test_a_challenger_that_flags_too_much_does_so_somewhere(registry: Registry) -> None:
    found = verdict(promote(registry, "fraud", LOOSE), Rule.NO_SLICE_COLLAPSES)
    assert {one["figure"] for one in found.figures["collapsed"]} == {"fpr"}
    set_frozen(registry, slice_recall=None)
    rules = {one.rule for one in promote(registry, "fraud", LOOSE).rules}
    assert Rule.NO_SLICE_COLLAPSES not in rules


def test_who_must_be_shown_to_be_no_worse_needs_a_margin(registry: Registry) -> None:
    """An equal one is exactly that; one that only might be is refused."""
    set_frozen(registry, proof="no_worse")
    assert promote(registry, "fraud", EQUAL).promoted
    assert RefusalReason.WORSE in {
        reason.refusal_reason for reason in promote(registry, "fraud", WORSE).reasons
    }


def test_budgets_are_measured_where_the_policy_has_them(registry: Registry) -> None:
    set_frozen(registry, row_microseconds=1e12, slowdown=1e6, megabytes=1e3)
    decision = promote(registry, "fraud", EQUAL)
    assert decision.promoted
    figures = verdict(decision, Rule.FAST_ENOUGH).figures
    assert figures["microseconds"] > 0
    assert figures["champion_microseconds"] > 0
    assert verdict(decision, Rule.SMALL_ENOUGH).figures["megabytes"] > 0


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({"row_microseconds": 1e-9}, RefusalReason.TOO_SLOW),
        ({"megabytes": 1e-6}, RefusalReason.TOO_LARGE),
    ],
)
def test_a_budget_that_nothing_keeps_refuses(
    registry: Registry, policy: dict[str, float], why: RefusalReason
) -> None:
    set_frozen(registry, **policy)
    assert [reason.refusal_reason for reason in promote(registry, "fraud", EQUAL).reasons] == [why]


def test_flags_are_compared_on_the_traffic_where_there_is_some(
    registry: Registry, command: Command
) -> None:
    """Recent rows without labels; one that nobody can score is left out."""
    table = frozen_rows(registry, "fraud")
    assert table is not None
    amounts = [float("inf"), *table["TX_AMOUNT"].to_pylist()[1:]]
    index = table.column_names.index("TX_AMOUNT")
    traffic = table.set_column(index, "TX_AMOUNT", pa.array(amounts)).drop_columns(["TX_FRAUD"])
    pq.write_table(traffic, "traffic.parquet")
    set_frozen(registry, agreement=0.95)
    answer = command("promote", "fraud", "--version", LOOSE, "--traffic", "traffic.parquet")
    rules = {rule["rule"]: rule for rule in answer.json["rules"]}
    found = rules["agrees"]["figures"]
    assert (found["of"], found["rows"]) == ("the traffic", len(table) - 1)
    assert found["challenger"] > found["champion"]
    assert str(RefusalReason.FLAGS_OTHERWISE) in {
        reason["why"] for reason in answer.json["reasons"]
    }


def test_a_policy_that_is_not_the_frozen_one_is_told_of(
    registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    set_policy(registry, EQUAL, tolerance=0.25, label_delay="7d")
    promote(registry, "fraud", EQUAL)
    said = capfd.readouterr().err
    assert "the policy frozen with version 1 decides" in said
    assert "another, which a promotion by force puts in its place: tolerance 0.25" in said
    assert said.count(", label_delay 7d") == 1


def test_a_policy_frozen_before_there_were_more_rules_still_decides(registry: Registry) -> None:
    known = ("metric", "tolerance", "confidence", "label", "positive", "time", "group")
    version = registry.champion("fraud")
    assert version is not None
    frozen = FrozenTest.of_champion(version)
    old = replace(frozen, policy={key: frozen.policy[key] for key in known})
    registry.tag_version(version, FROZEN_TAG, old.tag())
    assert promote(registry, "fraud", EQUAL).promoted


# ---------------------------------------------------------------- the history


def test_every_decision_is_in_the_history_with_who_when_and_why(
    registry: Registry, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_VAE_ACTOR", "nightly")
    command("promote", "fraud", "--version", WORSE)
    command("promote", "fraud", "--version", WORSE, "--force", "--reason", "a column ends")
    command("rollback", "fraud", "--reason", "too many alerts")
    answer = command("models", "fraud")
    (model,) = answer.json["models"]
    assert model["aliases"]["champion"] == GOOD
    told = [
        (one["action"], one["version"], one["champion"], one["forced"]) for one in model["history"]
    ]
    assert told == [
        ("promote", GOOD, None, False),
        ("refuse", WORSE, GOOD, False),
        ("promote", WORSE, GOOD, True),
        ("rollback", GOOD, WORSE, False),
    ]
    assert {one["by"] for one in model["history"][1:]} == {"nightly"}
    assert [one["reason"] for one in model["history"][2:]] == ["a column ends", "too many alerts"]
    for shown in ("History of fraud", "rollback", "(forced)", "nightly"):
        assert shown in answer.err
    kept = recorded(registry, history(registry, "fraud")[2])
    assert kept["policy"]["metric"] == "average_precision"
    assert kept["force_reason"] == "a column ends"


def test_models_without_a_name_are_listed_as_ever(registry: Registry, command: Command) -> None:
    (model,) = command("models").json["models"]
    assert set(model) == {"name", "aliases", "versions"}
    absent = command("models", "absent")
    assert (absent.code, absent.out) == (1, "")
    assert "no registered model 'absent'" in absent.err
    for arguments in (("models", "absent"), ("promote", "absent"), ("inspect", "models:/absent/1")):
        err = command(*arguments).err
        assert f"'{registry.uri}' (set MLFLOW_TRACKING_URI for another)" in err


def test_a_reason_of_many_lines_is_refused_before_anything_is_scored(
    registry: Registry, command: Command
) -> None:
    answer = command("promote", "fraud", "--version", WORSE, "--force", "--reason", "a\nb")
    assert answer.code == 1
    assert "one line" in answer.err
    assert len(history(registry, "fraud")) == 1


def test_a_rollback_passes_over_a_version_that_was_deleted(registry: Registry) -> None:
    promote(registry, "fraud", EQUAL)
    promote(registry, "fraud", LOOSE, force="to come back from")
    registry._client.delete_model_version("fraud", EQUAL)
    assert rollback(registry, "fraud")["version"] == GOOD


# ---------------------------------------------------------------- labels, groups, time


def test_a_frozen_split_without_an_anomaly_is_all_normal(
    registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    """Word labels, and the last fifth by time is all 'ok': that breaks no promotion."""
    table = frozen_rows(registry, "fraud")
    assert table is not None
    words = pa.array(["ok"] * len(table))
    index = table.column_names.index("TX_FRAUD")
    set_frozen(registry, table.set_column(index, "TX_FRAUD", words), positive="fraud")
    decision = promote(registry, "fraud", EQUAL)
    assert decision.challenger_evaluation is not None
    assert decision.challenger_evaluation.anomalies == 0
    assert decision.challenger_evaluation.auroc is None
    assert "rows has 'fraud' in column 'TX_FRAUD'" in capfd.readouterr().err


def test_the_gate_counts_groups_where_groups_are_what_is_exchangeable(registry: Registry) -> None:
    by_row = promote(registry, "fraud", WORSE).challenger_evaluation
    table = frozen_rows(registry, "fraud")
    assert table is not None
    customers = {
        c for c, fraud in zip(table["CUSTOMER_ID"].to_pylist(), table["TX_FRAUD"].to_pylist(),
                              strict=True) if not fraud
    }  # fmt: skip
    set_frozen(registry, group="CUSTOMER_ID")
    by_group = promote(registry, "fraud", WORSE).challenger_evaluation
    assert by_row is not None
    assert by_group is not None
    calibration = registry.fetch("models:/fraud/3").load().detector.calibration
    assert by_group.fpr_limit == max_fpr_under_guarantee(calibration, len(customers))
    assert by_group.fpr == by_row.fpr


def test_drift_is_looked_for_where_the_refusal_was_found(registry: Registry) -> None:
    """In the frozen table, by its own times."""
    table = frozen_rows(registry, "fraud")
    assert table is not None
    days = {str(day) for day in table["TX_DATETIME"].to_numpy().astype("datetime64[D]")}
    decision = promote(registry, "fraud", LOOSE)
    assert decision.drifted
    assert {one.name for one in decision.drifted} <= days
    set_frozen(registry, time=None)
    assert promote(registry, "fraud", LOOSE).drifted == ()


# ---------------------------------------------------------------- what is refused


def test_a_frozen_split_that_was_altered_is_refused(registry: Registry) -> None:
    (path,) = Path("mlartifacts").rglob("test_split.parquet")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(RegistryError, match="was altered"):
        promote(registry, "fraud", EQUAL)
    assert champion(registry) == GOOD


@pytest.mark.parametrize("altered", [GOOD, EQUAL])
def test_an_altered_bundle_is_not_compared(registry: Registry, altered: str) -> None:
    folder = Path(registry.fetch(f"models:/fraud/{altered}").path)
    (folder / "graph.onnx").write_bytes(b"x")
    with pytest.raises(BundleError):
        promote(registry, "fraud", EQUAL)
    assert champion(registry) == GOOD


@pytest.mark.parametrize(
    ("name", "version", "said"), [("absent", None, "absent"), ("fraud", "99", "99")]
)
def test_what_is_not_registered_is_named(
    registry: Registry, name: str, version: str | None, said: str
) -> None:
    with pytest.raises(RegistryError, match=said):
        promote(registry, name, version)


def test_a_version_registered_by_hand_is_sent_to_calibrate(fresh: Registry) -> None:
    fresh._client.create_registered_model("hand")
    fresh._client.create_model_version("hand", source="file:///nowhere")
    with pytest.raises(RegistryError, match="anomaly-vae calibrate"):
        promote(fresh, "hand", "1")


# ---------------------------------------------------------------- back again


def test_rollback_returns_to_each_champion_before(registry: Registry) -> None:
    promote(registry, "fraud", EQUAL)
    promote(registry, "fraud", LOOSE, force="to come back from")
    answer = rollback(registry, "fraud")
    assert answer == {"name": "fraud", "version": EQUAL, "alias": CHAMPION, "was": LOOSE}
    assert champion(registry) == EQUAL
    assert rollback(registry, "fraud")["version"] == GOOD
    with pytest.raises(RegistryError, match="no previous champion"):
        rollback(registry, "fraud")
    assert champion(registry) == GOOD


def test_a_rollback_and_another_promotion_forget_nothing_and_repeat_nothing(
    registry: Registry,
) -> None:
    promote(registry, "fraud", EQUAL)
    rollback(registry, "fraud")
    promote(registry, "fraud", EQUAL)
    assert (champion(registry), previous_champions(history(registry, "fraud"))) == (EQUAL, [GOOD])
    promote(registry, "fraud", GOOD)
    assert (champion(registry), previous_champions(history(registry, "fraud"))) == (GOOD, [EQUAL])


# ---------------------------------------------------------------- crashes


class Crash(BaseException):
    """The process ends here."""


WRITES = (
    "create_run",
    "log_param",
    "log_text",
    "set_model_version_tag",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "set_terminated",
)


def crash_at_write(number: int, patch: pytest.MonkeyPatch) -> None:
    """End the process just before its write of this number, from 0."""
    done = [0]

    def count(original: Any) -> Any:
        def write(*args: Any, **kwargs: Any) -> Any:
            if done[0] == number:
                raise Crash
            done[0] += 1
            return original(*args, **kwargs)

        return write

    for name in WRITES:
        patch.setattr(MlflowClient, name, count(getattr(MlflowClient, name)))


def state(registry: Registry) -> tuple[str | None, bool]:
    """Who is champion, and whether a rollback has somewhere to go."""
    current = champion(registry)
    return current, any(v != current for v in previous_champions(history(registry, "fraud")))


@pytest.mark.parametrize("write", range(7))
def test_a_crash_in_a_promotion_leaves_the_old_state_or_the_new(
    registry: Registry, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_at_write(write, patch)
        try:
            promote(registry, "fraud", EQUAL)
            crashed = False
        except Crash:
            crashed = True
    assert crashed == (write < 6)
    assert champion(registry) == (GOOD if write < 5 else EQUAL)
    assert promote(registry, "fraud", EQUAL).promoted
    assert state(registry) == (EQUAL, True)
    moves = [entry for entry in history(registry, "fraud") if entry.changes_champion]
    assert [entry.version for entry in moves] == [GOOD, EQUAL], "once each"
    assert rollback(registry, "fraud")["version"] == GOOD


@pytest.mark.parametrize("write", range(5))
def test_a_crash_in_a_rollback_leaves_the_old_state_or_the_new(
    registry: Registry, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, "fraud", EQUAL)
    with monkeypatch.context() as patch:
        crash_at_write(write, patch)
        try:
            rollback(registry, "fraud")
        except Crash:
            assert write < 4
    assert champion(registry) == (EQUAL if write < 3 else GOOD)
    if write < 2:  # its number was not taken
        assert rollback(registry, "fraud")["version"] == GOOD
    else:
        with pytest.raises(RegistryError, match="no previous champion"):
            rollback(registry, "fraud")
    assert champion(registry) == GOOD


@pytest.mark.parametrize("write", range(7))
def test_a_crash_in_the_first_promotion_can_be_repeated_with_another_model(
    fresh: Registry, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was frozen for a champion that never was binds nobody."""
    with monkeypatch.context() as patch:
        crash_at_write(write, patch)
        try:
            promote(fresh, "fraud", GOOD)
        except Crash:
            assert champion(fresh) == (None if write < 5 else GOOD)
    assert promote(fresh, "fraud", EQUAL).promoted
    version = fresh.version("fraud", EQUAL)
    assert replace(FrozenTest.of_champion(version), later_promotions=0) in (
        FrozenTest.own(version),
        FrozenTest.own(fresh.version("fraud", GOOD)),
    )


def test_a_failing_registry_is_one_line(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MlflowException("the disk is full\nand more")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", fail)
    with pytest.raises(RegistryError, match=r"^MLflow: the disk is full$"):
        promote(registry, "fraud", EQUAL)


# ---------------------------------------------------------------- the commands


def test_a_refusal_exits_3_with_its_reasons_on_stdout(registry: Registry, command: Command) -> None:
    answer = command("promote", "fraud", "--version", WORSE)
    assert answer.code == 3
    assert answer.json["promoted"] is False
    assert answer.json["alias"] == CHALLENGER
    whys = {reason["why"] for reason in answer.json["reasons"]}
    assert str(RefusalReason.WORSE) in whys
    assert all(reason["text"] in answer.err for reason in answer.json["reasons"])


def test_too_many_false_positives_exit_3(registry: Registry, command: Command) -> None:
    answer = command("promote", "fraud", "--version", LOOSE)
    assert answer.code == 3
    whys = {reason["why"] for reason in answer.json["reasons"]}
    assert whys == {str(RefusalReason.TOO_MANY_FALSE_POSITIVES), str(RefusalReason.SLICE_COLLAPSES)}
    assert "the most that chance explains at alpha 0.05" in answer.err


def test_a_promotion_exits_0(registry: Registry, command: Command) -> None:
    answer = command("promote", "fraud", "--version", EQUAL)
    assert answer.code == 0
    assert (answer.json["alias"], answer.json["previous_champion"]) == (CHAMPION, GOOD)
    assert "version 2 promoted as champion" in answer.err


def test_force_needs_a_reason_and_a_reason_force(registry: Registry, command: Command) -> None:
    for arguments in (["--force"], ["--reason", "why not"]):
        answer = command("promote", "fraud", "--version", WORSE, *arguments)
        assert answer.code == 2
        assert "--reason" in answer.err
        assert answer.out == ""
    assert champion(registry) == GOOD


def test_force_with_a_reason_exits_0(registry: Registry, command: Command) -> None:
    answer = command("promote", "fraud", "--version", WORSE, "--force", "--reason", "because")
    assert answer.code == 0
    assert answer.json["forced"] is True
    assert champion(registry) == WORSE


def test_the_rollback_command(registry: Registry, command: Command) -> None:
    assert command("rollback", "fraud").code == 1
    promote(registry, "fraud", EQUAL)
    answer = command("rollback", "fraud")
    assert (answer.code, answer.json["version"], answer.json["was"]) == (0, GOOD, EQUAL)


def test_no_label_in_the_policy_leaves_the_rate_to_decide(
    fresh: Registry,
) -> None:
    set_policy(fresh, GOOD, label=None)
    decision = promote(fresh, "fraud", GOOD)
    assert decision.challenger_evaluation is not None
    assert decision.challenger_evaluation.auroc is None
    assert decision.challenger_evaluation.fpr is not None


def test_a_challenger_with_other_windows_is_judged_by_force_alone_on_its_own_split(
    registry: Registry, world: World
) -> None:
    bundle = world.calibrated.bundle
    data = {**bundle.manifest["data"], "windows": {"digest": "of other windows"}}
    other = replace(bundle, manifest={**bundle.manifest, "data": data}, manifest_file=None)
    version = add(registry, world, other)
    before = champion(registry)
    with pytest.raises(RegistryError, match=r"another data\.windows .* --force --reason"):
        promote(registry, "fraud", version)
    assert champion(registry) == before
    decision = promote(registry, "fraud", version, force="windows of an hour")
    assert decision.champion == before
    assert decision.judged_on is not None
    assert decision.judged_on.version == version == champion(registry)
