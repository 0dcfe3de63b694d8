"""Challenger → champion, by a policy and a test split that the registry keeps frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from anomaly_vae.errors import RegistryError
from anomaly_vae.evaluation import Evaluation
from anomaly_vae.promotion import Policy, Reason, decide
from anomaly_vae.registry import (
    CHALLENGER,
    CHAMPION,
    DECISION_TAG,
    POLICY_TAG,
    Registry,
    Version,
)
from pipelines import console
from pipelines.evaluate import evaluate_table
from pipelines.frozen import FROZEN, read_test


@dataclass(frozen=True)
class Promotion:
    """What was decided and why."""

    name: str
    version: str
    promoted: bool
    forced: bool
    reasons: tuple[Reason, ...]
    champion: str | None
    challenger_evaluation: Evaluation | None = None
    champion_evaluation: Evaluation | None = None

    def result(self) -> dict[str, Any]:
        """The command's answer."""
        evaluations = {
            "challenger": self.challenger_evaluation,
            "champion": self.champion_evaluation,
        }
        return {
            "name": self.name,
            "version": self.version,
            "promoted": self.promoted,
            "forced": self.forced,
            "alias": CHAMPION if self.promoted else CHALLENGER,
            "reasons": [{"why": str(r.why), "text": r.text} for r in self.reasons],
            "previous_champion": self.champion,
            "evaluations": {k: e.to_json() for k, e in evaluations.items() if e},
        }


def promote(
    registry: Registry, name: str, version: str | None = None, force: str | None = None
) -> Promotion:
    """Compare with the champion on the frozen test split; move the alias or say why not.

    Args:
        registry: where the model is registered.
        name: of the registered model.
        version: absent: the challenger.
        force: promote whatever the grounds against it, for this reason, which is recorded.

    Raises:
        RegistryError: no such model, version or challenger, or its test split was altered.
    """
    challenger = registry.version(name, version) if version else registry.by_alias(name, CHALLENGER)
    champion = registry.champion(name)
    if champion and champion.version == challenger.version:
        return Promotion(name, champion.version, True, False, (), champion.version)
    frozen = registry.frozen(name) if champion else challenger.tags
    missing = [tag for tag in FROZEN if tag not in frozen]
    if missing:
        raise RegistryError(f"{name} has no {missing[0]}; register it with anomaly-vae calibrate")
    policy = json.loads(frozen[POLICY_TAG])
    table = read_test(registry, frozen)
    new = _evaluation(registry, challenger, table, policy)
    old = _evaluation(registry, champion, table, policy) if champion else None
    reasons = tuple(decide(old, new, Policy(policy["metric"], policy["tolerance"])))
    promoted = not reasons or force is not None
    decision = Promotion(
        name=name,
        version=challenger.version,
        promoted=promoted,
        forced=bool(reasons) and force is not None,
        reasons=reasons,
        champion=champion.version if champion else None,
        challenger_evaluation=new,
        champion_evaluation=old,
    )
    _record(registry, challenger, decision, frozen, force)
    return decision


def rollback(registry: Registry, name: str) -> dict[str, Any]:
    """The previous champion again.

    Raises:
        RegistryError: there is none.
    """
    champion = registry.champion(name)
    current = champion.version if champion else None
    past = [version for version in registry.past_champions(name) if version != current]
    if not past:
        raise RegistryError(f"{name} has no previous champion to go back to")
    registry.set_champion(name, past[-1])
    registry.remember_champions(name, past[:-1])  # last, so that none is lost
    console.say(f"{name}: version {past[-1]} is champion again")
    return {"name": name, "version": past[-1], "alias": CHAMPION, "was": current}


def _record(
    registry: Registry,
    challenger: Version,
    decision: Promotion,
    frozen: Mapping[str, str],
    force: str | None,
) -> None:
    content = {**decision.result(), "force_reason": force}
    registry.tag_version(challenger, DECISION_TAG, json.dumps(content))
    if not decision.promoted:
        return
    if decision.champion is None:
        registry.tag_model(challenger.name, {tag: frozen[tag] for tag in FROZEN})
    chain = [*registry.past_champions(challenger.name), decision.champion]
    past = list(dict.fromkeys(v for v in chain if v and v != challenger.version))
    registry.remember_champions(challenger.name, past)  # first, so that none is lost
    registry.set_champion(challenger.name, challenger.version)


def _evaluation(
    registry: Registry, version: Version, table: pa.Table, policy: Mapping[str, Any]
) -> Evaluation:
    """A version on the frozen test split."""
    detector = registry.fetch(f"models:/{version.name}/{version.version}").load().detector
    return evaluate_table(
        detector, table, policy["label"], policy["positive"], policy["confidence"]
    )


def show(decision: Promotion) -> None:
    """The decision in words."""
    if decision.promoted and decision.champion == decision.version:
        console.say(f"{decision.name}: version {decision.version} already is champion")
    elif decision.promoted:
        how = "by force, against:" if decision.forced else "as champion"
        console.say(f"{decision.name}: version {decision.version} promoted {how}")
    else:
        console.say(f"{decision.name}: version {decision.version} stays challenger, because")
    for reason in decision.reasons:
        console.say(f"  {reason.text}")
