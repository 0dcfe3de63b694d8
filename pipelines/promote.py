"""Challenger → champion, by a policy and a test split that the registry keeps frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from anomaly_vae.detector import Detector
from anomaly_vae.errors import RegistryError
from anomaly_vae.evaluation import Evaluation, Slice
from anomaly_vae.promotion import Lost, Policy, Reason, Why, decide
from anomaly_vae.registry import (
    CHALLENGER,
    CHAMPION,
    DECISION_TAG,
    FROZEN_TAG,
    POLICY_TAG,
    Registry,
    Version,
)
from pipelines import console
from pipelines.evaluate import Judged, Labelled, judge
from pipelines.frozen import Frozen


@dataclass(frozen=True)
class Origin:
    """The version that the frozen test split came with, its rows and its short digest."""

    version: str
    rows: int
    digest: str

    def __str__(self) -> str:
        return f"version {self.version}'s test split ({self.rows:,} rows, {self.digest})"


@dataclass(frozen=True)
class Promotion:
    """What was decided and why."""

    name: str
    version: str
    promoted: bool
    forced: bool
    reasons: tuple[Reason, ...]
    champion: str | None
    judged_on: Origin | None = None
    drifted: tuple[Slice, ...] = ()
    """stretches of time in the frozen test split that explain a refusal"""
    challenger_evaluation: Evaluation | None = None
    champion_evaluation: Evaluation | None = None

    @property
    def remedy(self) -> str | None:
        """The way out of a refusal where the test split of another version no longer fits."""
        if self.promoted or not self.judged_on or self.judged_on.version == self.version:
            return None
        return (
            f"{self.judged_on} is frozen for {self.name}; where the data have changed for good, "
            f"register under another name, or freeze this version's own test split with: "
            f"anomaly-vae promote {self.name} --version {self.version} --force --reason TEXT"
        )

    def result(self) -> dict[str, Any]:
        """The command's answer."""
        evaluations = {
            "challenger": self.challenger_evaluation,
            "champion": self.champion_evaluation,
        }
        drifted = [(s.name, s.fpr.value, s.fpr.total) for s in self.drifted]
        return {
            "name": self.name,
            "version": self.version,
            "promoted": self.promoted,
            "forced": self.forced,
            "alias": CHAMPION if self.promoted else CHALLENGER,
            "reasons": [{"why": str(r.why), "text": r.text} for r in self.reasons],
            "remedy": self.remedy,
            "judged_on": asdict(self.judged_on) if self.judged_on else None,
            "drifted": [{"slice": n, "fpr": fpr, "rows": rows} for n, fpr, rows in drifted],
            "previous_champion": self.champion,
            "evaluations": {k: e.to_json() for k, e in evaluations.items() if e},
        }


def promote(
    registry: Registry, name: str, version: str | None = None, force: str | None = None
) -> Promotion:
    """Compare with the champion on the frozen test split; move the alias or say why not.

    The first promotion freezes the version's own test split and policy; whoever is promoted
    later hands them on. Where the data have changed for good, they no longer fit: ``force``
    freezes those of the version it promotes, and a rollback brings the former ones back.

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
    frozen = Frozen.of(champion) if champion else Frozen.own(challenger)
    decision = _decide(registry, challenger, champion, frozen, force is not None)
    _record(registry, challenger, decision, Frozen.own(challenger) if force else frozen, force)
    return decision


def rollback(registry: Registry, name: str) -> dict[str, Any]:
    """The previous champion again, and with it the frozen test split that it was judged by.

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


def _decide(
    registry: Registry, challenger: Version, champion: Version | None, frozen: Frozen, force: bool
) -> Promotion:
    """Score the frozen test split with both and judge."""
    policy = frozen.policy
    truth = Labelled.of(frozen.read(registry), policy)
    origin = Origin(frozen.version, len(truth.table), frozen.digest[:12])
    new = judge(_detector(registry, challenger), truth)
    old = judge(_detector(registry, champion), truth) if champion else None
    shared = new.scored & old.scored if old else new.scored
    figures = new.evaluate(None, policy["confidence"])
    against = old.evaluate(shared, policy["confidence"]) if old else None
    reasons = decide(
        against,
        figures,
        Policy(policy["metric"], policy["tolerance"], str(origin)),
        _lost(old, new),
        new.evaluate(shared, policy["confidence"]),
    )
    if otherwise := _reads_otherwise(policy, challenger, origin):
        reasons.append(otherwise)
    above_alpha = Why.TOO_MANY_FALSE_POSITIVES in {reason.why for reason in reasons}
    return Promotion(
        name=challenger.name,
        version=challenger.version,
        promoted=force or not reasons,
        forced=force and bool(reasons),
        reasons=tuple(reasons),
        champion=champion.version if champion else None,
        judged_on=origin,
        drifted=tuple(new.drifted(policy["confidence"])) if above_alpha else (),
        challenger_evaluation=figures,
        champion_evaluation=against,
    )


def _reads_otherwise(
    policy: Mapping[str, Any], challenger: Version, origin: Origin
) -> Reason | None:
    """The frozen images were read by rules that are not the challenger's."""
    rules, own = policy.get("reading"), json.loads(challenger.tags.get(POLICY_TAG, "{}"))
    if rules == own.get("reading"):
        return None
    text = f"the images of {origin} were read with {_told(rules)}, its own are read with "
    return Reason(Why.READS_OTHERWISE, text + _told(own.get("reading")))


def _told(rules: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (rules or {"rules": "unknown"}).items())


def _lost(old: Judged | None, new: Judged) -> Lost | None:
    """What only the challenger cannot score."""
    lost = ~new.scored & (old.scored if old else True)
    return Lost(int(np.sum(lost)), new.problem) if lost.any() else None


def _record(
    registry: Registry,
    challenger: Version,
    decision: Promotion,
    frozen: Frozen,
    force: str | None,
) -> None:
    """Moving the alias comes last and decides: before it, all is as it was."""
    freezes = frozen.version if decision.promoted else None
    content = {**decision.result(), "force_reason": force, "freezes_test_split_of": freezes}
    registry.tag_version(challenger, DECISION_TAG, json.dumps(content))
    if not decision.promoted:
        return
    registry.tag_version(challenger, FROZEN_TAG, frozen.tag())
    chain = [*registry.past_champions(challenger.name), decision.champion]
    past = list(dict.fromkeys(v for v in chain if v and v != challenger.version))
    registry.remember_champions(challenger.name, past)  # first, so that none is lost
    registry.set_champion(challenger.name, challenger.version)


def _detector(registry: Registry, version: Version) -> Detector:
    return registry.fetch(version.uri).load().detector


def show(decision: Promotion) -> None:
    """The decision in words, and the time where the promise did not hold."""
    if decision.promoted and decision.champion == decision.version:
        console.say(f"{decision.name}: version {decision.version} already is champion")
    elif decision.promoted:
        how = "by force, against:" if decision.forced else "as champion"
        console.say(f"{decision.name}: version {decision.version} promoted {how}")
    else:
        console.say(f"{decision.name}: version {decision.version} stays challenger, because")
    for reason in decision.reasons:
        console.say(f"  {reason.text}")
    if decision.remedy:
        console.say(decision.remedy)
    if decision.drifted:
        console.table(
            "False positive rate above what chance explains",
            ("time", "rate", "low", "high", "limit", "normal rows"),
            [
                (s.name, s.fpr.value, s.fpr.low, s.fpr.high, s.limit, s.fpr.total)
                for s in decision.drifted
            ],
        )
