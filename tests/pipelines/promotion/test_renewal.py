"""A frozen test split that is replaced by a challenger's own, newer one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.data.splitting import DAY
from anomaly_vae.lifecycle.champion_history import history
from anomaly_vae.lifecycle.promotion import RefusalReason
from anomaly_vae.lifecycle.registry import (
    FROZEN_TAG,
    POLICY_TAG,
    TEST_DIGEST_TAG,
    TEST_TAG,
    Registry,
)
from pipelines.promotion.promote import promote
from pipelines.registry.frozen_test import FrozenTest
from tests.support.flows import Command, World
from tests.support.registries import copy_registry, frozen_rows

pytestmark = pytest.mark.usefixtures("blank_figures")

GOOD, NEWER = "1", "2"


@pytest.fixture
def registry(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The champion, and an equal challenger whose own test rows are 20 days younger."""
    copy_registry(world.folder, tmp_path, monkeypatch)
    registry = Registry()
    add(registry, world, 20)
    return registry


def shifted(registry: Registry, days: float) -> pa.Table:
    """Return the frozen rows with other ids and later times."""
    table = frozen_rows(registry, "fraud")
    times = table.column("TX_DATETIME").to_numpy() + np.timedelta64(int(days * DAY), "s")
    ids = table.column("TRANSACTION_ID").to_numpy() + 10**7
    for name, values in (("TX_DATETIME", times), ("TRANSACTION_ID", ids)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


def add(registry: Registry, world: World, days: float, **policy: Any) -> str:
    """Register an equal model with test rows that are some days younger."""
    table, path = shifted(registry, days), Path(f"test-{days}.parquet").absolute()
    pq.write_table(table, path)
    own = json.loads(world.calibrated.version.tags[POLICY_TAG])
    own |= {"newest_row": own["newest_row"] + days * DAY, **policy}
    own |= {"excluded_test": world.calibrated.version.tags[TEST_DIGEST_TAG]}
    tags = {
        TEST_TAG: path.as_uri(),
        TEST_DIGEST_TAG: hashlib.sha256(path.read_bytes()).hexdigest(),
        POLICY_TAG: json.dumps(own),
    }
    with registry.run("fraud", "calibrate", {}) as run:
        return registry.register(run, world.calibrated.bundle, "fraud", tags).version


def freeze(registry: Registry, **policy: Any) -> None:
    """Change the frozen rules."""
    version = registry.champion("fraud")
    assert version is not None
    kept = json.loads(FrozenTest.of_champion(version).tag())
    kept["policy"] |= policy
    registry.tag_version(version, FROZEN_TAG, json.dumps(kept))


def judge(registry: Registry) -> str:
    """Return the version whose test split is frozen."""
    version = registry.champion("fraud")
    assert version is not None
    return FrozenTest.of_champion(version).version


def test_a_split_is_never_replaced_by_default(registry: Registry) -> None:
    decision = promote(registry, "fraud", NEWER)
    assert decision.promoted
    assert decision.renewal is None
    assert judge(registry) == GOOD


@pytest.mark.parametrize(("days", "renewed"), [(19, True), (20, False), (21, False)])
def test_a_split_is_replaced_when_it_is_too_old(
    registry: Registry, days: int, renewed: bool
) -> None:
    """Its newest row is 20 days older than the newest row of the data, whatever the clock says."""
    freeze(registry, renew_test={"days": days, "promotions": None})
    assert promote(registry, "fraud", NEWER).promoted
    assert judge(registry) == (NEWER if renewed else GOOD)


def test_a_split_is_replaced_after_a_number_of_promotions(registry: Registry, world: World) -> None:
    freeze(registry, renew_test={"days": None, "promotions": 2})
    promote(registry, "fraud", NEWER)
    assert judge(registry) == GOOD, "the second promotion decided on it"
    third = add(registry, world, 30)
    decision = promote(registry, "fraud", third)
    assert decision.renewal is not None
    assert decision.renewal.reason == "2 promotions were decided on it, 2 are allowed"
    assert judge(registry) == third
    promote(registry, "fraud", add(registry, world, 40))
    assert judge(registry) == third, "the count begins again"


def test_both_splits_are_judged_recorded_and_shown(registry: Registry, command: Command) -> None:
    freeze(registry, renew_test={"days": 10, "promotions": None}, tolerance=0.5)
    answer = command("promote", "fraud", "--version", NEWER)
    assert answer.code == 0
    renewal = answer.json["renewal"]
    assert renewal["renewed"] is True
    assert renewal["obstacle"] is None
    assert answer.json["judged_on"]["version"] == NEWER
    assert renewal["on_old_split"]["judged_on"]["version"] == GOOD
    assert set(renewal["on_old_split"]["evaluations"]) == {"champion", "challenger"}
    assert set(answer.json["evaluations"]) == {"champion", "challenger"}
    for text in ("days older than the newest row, 10 are allowed", "Judged on version 1's",
                 "Judged on version 2's", "decides and is frozen from now on"):  # fmt: skip
        assert text in answer.err
    assert "disagrees" not in answer.err
    run, entry = registry.history("fraud"), history(registry, "fraud")[-1]
    assert run is not None
    record = json.loads(Path(registry.download(f"runs:/{run.id}/{entry.record}")).read_text())
    assert record["renewal"] == renewal
    assert record["freezes_test_split_of"] == NEWER
    policy = FrozenTest.of_champion(registry.version("fraud", NEWER)).policy
    assert policy["tolerance"] == 0.5, "the rules stay"
    assert policy["renew_test"] == {"days": 10, "promotions": None}


def test_the_old_split_may_disagree_and_a_refusal_leaves_it(
    registry: Registry, world: World, command: Command
) -> None:
    """On its own rows, normal ones of three times the amount, the challenger flags too many."""
    freeze(registry, renew_test={"days": 10, "promotions": None})
    table = shifted(registry, 25)
    for name in table.column_names:
        if "AMOUNT" in name:
            values = pa.array(table.column(name).to_numpy() * 5)
            table = table.set_column(table.column_names.index(name), name, values)
    version = add(registry, world, 25)
    pq.write_table(table, "test-25.parquet")
    digest = hashlib.sha256(Path("test-25.parquet").read_bytes()).hexdigest()
    registry.tag_version(registry.version("fraud", version), TEST_DIGEST_TAG, digest)
    answer = command("promote", "fraud", "--version", version)
    assert answer.code == 3
    assert "fpr_above_alpha" in {reason["why"] for reason in answer.json["reasons"]}
    assert "the old test split disagrees: by it, the challenger would be promoted" in answer.err
    assert answer.json["renewal"]["on_old_split"]["reasons"] == []
    assert judge(registry) == GOOD


def test_rows_that_may_have_trained_the_champion_become_no_test(
    registry: Registry, world: World, command: Command
) -> None:
    freeze(registry, renew_test={"days": None, "promotions": 1})
    version = add(registry, world, -10)
    answer = command("promote", "fraud", "--version", version)
    assert answer.json["renewal"]["renewed"] is False
    assert "may have trained or calibrated version 1" in answer.json["renewal"]["obstacle"]
    assert "due to be replaced" in answer.err
    assert "stays, because the one of version 3 is unfit" in answer.err
    assert judge(registry) == GOOD


def test_without_times_nothing_shows_that_rows_are_new(registry: Registry, world: World) -> None:
    freeze(registry, renew_test={"days": None, "promotions": 1})
    version = add(registry, world, 30, time=None)
    decision = promote(registry, "fraud", version)
    assert decision.renewal is not None
    assert "without times (data.time) nothing shows" in str(decision.renewal.obstacle)
    assert judge(registry) == GOOD


# ---------------------------------------------------------------- challengers that know the rows


def test_a_challenger_trained_before_a_renewal_may_know_the_new_rows(
    registry: Registry, world: World
) -> None:
    """Both were trained while the first split was frozen; one's test rows may train the other."""
    freeze(registry, renew_test={"days": None, "promotions": 2})
    until = json.loads(world.calibrated.version.tags[POLICY_TAG])["seen_until"]
    rival = add(registry, world, 60, seen_until=until + 50 * DAY)
    freeze(registry, renew_test={"days": 10, "promotions": None})
    promote(registry, "fraud", NEWER)
    freeze(registry, renew_test=None)
    decision = promote(registry, "fraud", rival)
    assert [r.refusal_reason for r in decision.reasons] == [RefusalReason.SAW_TEST]
    assert "train again, without its rows" in decision.reasons[0].text


def test_a_challenger_trained_on_earlier_rows_does_not_know_them(
    registry: Registry, world: World
) -> None:
    rival = add(registry, world, 60)
    freeze(registry, renew_test={"days": 10, "promotions": None})
    promote(registry, "fraud", NEWER)
    freeze(registry, renew_test=None)
    assert promote(registry, "fraud", rival).promoted
