"""Challenger → champion, by a policy and a test split that the registry keeps frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import PromotionConfig
from anomaly_vae.errors import RegistryError
from anomaly_vae.evaluation.metrics import Evaluation, Slice
from anomaly_vae.lifecycle.champion_history import ChampionHistory, check_reason, past
from anomaly_vae.lifecycle.promotion import Rule, RuleResult, decide
from anomaly_vae.lifecycle.registry import (
    CHALLENGER,
    CHAMPION,
    DECISION_TAG,
    FROZEN_TAG,
    Registry,
    Version,
)
from anomaly_vae.renames import READING
from pipelines import console
from pipelines.promotion.compare import Contender, evidence
from pipelines.registry.frozen_test import Frozen, policy_of
from pipelines.reports.labelled import Labelled


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
    rules: tuple[RuleResult, ...]
    champion: str | None
    judged_on: Origin | None = None
    drifted: tuple[Slice, ...] = ()
    """stretches of time in the frozen test split that explain a refusal"""
    challenger_evaluation: Evaluation | None = None
    champion_evaluation: Evaluation | None = None

    @property
    def reasons(self) -> tuple[RuleResult, ...]:
        """The rules that speak against it."""
        return tuple(verdict for verdict in self.rules if not verdict.passed)

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
            "rules": [asdict(verdict) for verdict in self.rules],
            "remedy": self.remedy,
            "judged_on": asdict(self.judged_on) if self.judged_on else None,
            "drifted": [{"slice": n, "fpr": fpr, "rows": rows} for n, fpr, rows in drifted],
            "previous_champion": self.champion,
            "evaluations": {k: e.to_json() for k, e in evaluations.items() if e},
        }


def promote(
    registry: Registry,
    name: str,
    version: str | None = None,
    force: str | None = None,
    traffic: Sequence[str] = (),
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
        traffic: files of recent rows that both models are to flag alike.

    Raises:
        RegistryError: no such model, version or challenger, its test split was altered, or
            somebody else moved the champion meanwhile.
        ConfigError: a reason of many lines.
    """
    check_reason(force)
    challenger = registry.version(name, version) if version else registry.by_alias(name, CHALLENGER)
    succession = _succession(registry, name)
    champion = registry.champion(name)
    if champion and champion.version == challenger.version:
        return Promotion(name, champion.version, True, False, (), champion.version)
    frozen = Frozen.of(champion) if champion else Frozen.own(challenger)
    _tell_other_policy(frozen, challenger)
    decision = _decide(registry, challenger, champion, frozen, force is not None, traffic)
    kept = Frozen.own(challenger) if force else frozen
    _record(registry, succession, challenger, decision, frozen.policy, kept, force)
    return decision


def rollback(registry: Registry, name: str, reason: str | None = None) -> dict[str, Any]:
    """The previous champion again, and with it the frozen test split that it was judged by.

    Raises:
        RegistryError: there is none.
    """
    succession = _succession(registry, name)
    champion = registry.champion(name)
    current = champion.version if champion else None
    before = [v for v in past(succession.entries) if v != current and _exists(registry, name, v)]
    if not before:
        raise RegistryError(f"{name} has no previous champion to go back to")
    answer = {"name": name, "version": before[-1], "alias": CHAMPION, "was": current}
    succession.append("rollback", before[-1], current, answer, reason)
    console.say(f"{name}: version {before[-1]} is champion again")
    return answer


def _succession(registry: Registry, name: str) -> ChampionHistory:
    succession = ChampionHistory(registry, name)
    if done := succession.finished:
        console.say(
            f"{name}: version {done.version} is champion now; the {done.action} by {done.by} at "
            f"{done.at} had been broken off before the alias moved"
        )
    return succession


def _exists(registry: Registry, name: str, version: str) -> bool:
    """Whether nobody has deleted it."""
    try:
        registry.version(name, version)
    except RegistryError as error:
        if not error.missing:
            raise
        return False
    return True


def _tell_other_policy(frozen: Frozen, challenger: Version) -> None:
    """A policy that was changed in the configuration counts from the next forced promotion on."""
    own = policy_of(challenger)
    other = [key for key in own if key in PromotionConfig.model_fields]
    changed = [f"{k} {own[k]}" for k in other if own[k] != frozen.policy.get(k, _DEFAULTS[k])]
    if changed:
        console.say(
            f"the policy frozen with version {frozen.version} decides; version "
            f"{challenger.version} came with another: {', '.join(changed)}"
        )


_DEFAULTS = PromotionConfig().model_dump()


def _decide(
    registry: Registry,
    challenger: Version,
    champion: Version | None,
    frozen: Frozen,
    force: bool,
    traffic: Sequence[str],
) -> Promotion:
    """Score the frozen test split with both and judge."""
    keys = PromotionConfig.model_fields.keys() & frozen.policy.keys()
    policy = PromotionConfig.model_validate({key: frozen.policy[key] for key in keys})
    truth = Labelled.of(frozen.read(registry), frozen.policy)
    origin = Origin(frozen.version, len(truth.table), frozen.digest[:12])
    new = Contender.of(_bundle(registry, challenger), truth)
    old = Contender.of(_bundle(registry, champion), truth) if champion else None
    shared = new.judged.scored & old.judged.scored if old else new.judged.scored
    figures = new.judged.evaluate(None, policy.confidence)
    against = old.judged.evaluate(shared, policy.confidence) if old else None
    otherwise = _reads_otherwise(frozen.policy, challenger, origin)
    found = evidence(old, new, policy, str(origin), otherwise, traffic)
    rules = decide(against, figures, policy, found)
    failed = {verdict.rule for verdict in rules if not verdict.passed}
    too_many = Rule.KEEPS_ALPHA in failed
    return Promotion(
        name=challenger.name,
        version=challenger.version,
        promoted=force or not failed,
        forced=force and bool(failed),
        rules=rules,
        champion=champion.version if champion else None,
        judged_on=origin,
        drifted=tuple(new.judged.drifted(policy.confidence)) if too_many else (),
        challenger_evaluation=figures,
        champion_evaluation=against,
    )


def _reads_otherwise(policy: Mapping[str, Any], challenger: Version, origin: Origin) -> str | None:
    """The frozen images were read by rules that are not the challenger's."""
    rules, own = policy.get(READING), policy_of(challenger)
    if rules == own.get(READING):
        return None
    text = f"the images of {origin} were read with {_told(rules)}, its own are read with "
    return text + _told(own.get(READING))


def _told(rules: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (rules or {"rules": "unknown"}).items())


def _record(
    registry: Registry,
    succession: ChampionHistory,
    challenger: Version,
    decision: Promotion,
    policy: Mapping[str, Any],
    frozen: Frozen,
    force: str | None,
) -> None:
    """The next number in the history is what decides; before it, all is as it was."""
    reasons = [str(reason.why) for reason in decision.reasons]
    summary = {
        "promoted": decision.promoted,
        "forced": decision.forced,
        "reasons": reasons,
        "champion": decision.champion,
        "force_reason": force,
        "freezes_test_split_of": frozen.version if decision.promoted else None,
    }
    registry.tag_version(challenger, DECISION_TAG, json.dumps(summary))
    if decision.promoted:
        registry.tag_version(challenger, FROZEN_TAG, frozen.tag())
    succession.append(
        "promote" if decision.promoted else "refuse",
        challenger.version,
        decision.champion,
        {**summary, **decision.result(), "policy": dict(policy)},
        force or ", ".join(reasons) or None,
        decision.forced,
    )


def _bundle(registry: Registry, version: Version) -> Bundle:
    return registry.fetch(version.uri).load()


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
    if decision.rules:
        rows = [
            (str(verdict.rule), "passed" if verdict.passed else "failed", _spelled(verdict))
            for verdict in decision.rules
        ]
        console.table("Rules", ("rule", "verdict", "figures"), rows)
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


def _spelled(verdict: RuleResult) -> str:
    """Its numbers."""
    numbers = {k: v for k, v in verdict.figures.items() if isinstance(v, int | float)}
    return ", ".join(f"{name} {console.spell(value)}" for name, value in numbers.items())
