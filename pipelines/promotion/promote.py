"""Promote a challenger to champion by the policy and test split that are frozen in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.lifecycle import PromotionConfig
from anomaly_vae.errors import RegistryError
from anomaly_vae.evaluation.metrics import Evaluation, Slice
from anomaly_vae.lifecycle.champion_history import ChampionHistory, check_reason, previous_champions
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
from pipelines.promotion.compare import Contender, compare
from pipelines.registry.frozen_test import FrozenTest, policy_of
from pipelines.reports.labelled import Labelled


@dataclass(frozen=True)
class SplitOrigin:
    """The version whose test split is frozen, with the split's row count and short digest."""

    version: str
    rows: int
    digest: str

    def __str__(self) -> str:
        return f"version {self.version}'s test split ({self.rows:,} rows, {self.digest})"


@dataclass(frozen=True)
class Promotion:
    """The decision on a challenger, with the results of all rules."""

    name: str
    version: str
    promoted: bool
    forced: bool
    rules: tuple[RuleResult, ...]
    champion: str | None
    judged_on: SplitOrigin | None = None
    drifted: tuple[Slice, ...] = ()
    """Periods of the frozen test split in which the challenger flags too many normal rows."""
    challenger_evaluation: Evaluation | None = None
    champion_evaluation: Evaluation | None = None
    champion_warnings: tuple[str, ...] = ()
    """Warnings from the champion's own evaluation."""

    @property
    def reasons(self) -> tuple[RuleResult, ...]:
        """Rules that the challenger fails."""
        return tuple(result for result in self.rules if not result.passed)

    @property
    def remedy(self) -> str | None:
        """How to proceed after a refusal if another version's test split no longer fits."""
        if self.promoted or not self.judged_on or self.judged_on.version == self.version:
            return None
        return (
            f"{self.judged_on} is frozen for {self.name}; where the data have changed for good, "
            f"register under another name, or freeze this version's own test split with: "
            f"anomaly-vae promote {self.name} --version {self.version} --force --reason TEXT"
        )

    def result(self) -> dict[str, Any]:
        """Return the JSON object that the command prints."""
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
            "reasons": [{"why": str(r.refusal_reason), "text": r.text} for r in self.reasons],
            "rules": [asdict(result) for result in self.rules],
            "remedy": self.remedy,
            "judged_on": asdict(self.judged_on) if self.judged_on else None,
            "drifted": [{"slice": n, "fpr": fpr, "rows": rows} for n, fpr, rows in drifted],
            "previous_champion": self.champion,
            "champion_warnings": list(self.champion_warnings),
            "evaluations": {k: e.to_json() for k, e in evaluations.items() if e},
        }


def promote(
    registry: Registry,
    name: str,
    version: str | None = None,
    force: str | None = None,
    traffic: Sequence[str] = (),
) -> Promotion:
    """Compare a version with the champion on the frozen test split and promote or refuse it.

    The first promotion freezes the version's own test split and policy, and later champions inherit
    them. If they no longer fit because the data have changed for good, ``force`` freezes those of
    the version that it promotes. A rollback restores the previous ones.

    Args:
        registry: the registry of the model.
        name: the registered model.
        version: the version to promote; None for the challenger.
        force: a reason to promote even against the rules; it is recorded. None applies the rules.
        traffic: files of recent rows on which the decisions of both models are compared.

    Raises:
        RegistryError: the model, version or challenger does not exist, the test split was altered
            or lacks the challenger's window features, or another process moved the champion
            meanwhile.
        ConfigError: the reason is not one line of text.
    """
    check_reason(force)
    challenger = registry.version(name, version) if version else registry.by_alias(name, CHALLENGER)
    history = _open_history(registry, name)
    champion = registry.champion(name)
    if champion and champion.version == challenger.version:
        return Promotion(name, champion.version, True, False, (), champion.version)
    frozen = FrozenTest.of_champion(champion) if champion else FrozenTest.own(challenger)
    compared = champion
    if champion and not _has_windows(frozen, _bundle(registry, challenger)):
        _refuse_other_windows(frozen, challenger, force)
        frozen, compared = FrozenTest.own(challenger), None
    _report_policy_difference(frozen, challenger)
    decision = _decide(registry, challenger, compared, frozen, force is not None, traffic)
    decision = replace(decision, champion=champion.version if champion else None)
    inherited = FrozenTest.own(challenger) if force else frozen
    _record(registry, history, challenger, decision, frozen.policy, inherited, force)
    return decision


def rollback(registry: Registry, name: str, reason: str | None = None) -> dict[str, Any]:
    """Restore the previous champion, and the test split that was frozen with it.

    Raises:
        RegistryError: there is no previous champion.
    """
    history = _open_history(registry, name)
    champion = registry.champion(name)
    current = champion.version if champion else None
    former = [v for v in previous_champions(history.entries) if v != current]
    available = [version for version in former if _exists(registry, name, version)]
    if not available:
        raise RegistryError(f"{name} has no previous champion to go back to")
    answer = {"name": name, "version": available[-1], "alias": CHAMPION, "was": current}
    history.append("rollback", available[-1], current, answer, reason)
    console.info(f"{name}: version {available[-1]} is champion again")
    return answer


def _open_history(registry: Registry, name: str) -> ChampionHistory:
    """Open the history, and report an interrupted decision that opening it has completed."""
    history = ChampionHistory(registry, name)
    if done := history.completed:
        console.info(
            f"{name}: version {done.version} is champion now; the {done.action} by {done.by} at "
            f"{done.at} had been interrupted before the alias was moved"
        )
    return history


def _exists(registry: Registry, name: str, version: str) -> bool:
    """Return whether a version is still registered."""
    try:
        registry.version(name, version)
    except RegistryError as error:
        if not error.missing:
            raise
        return False
    return True


def _has_windows(frozen: FrozenTest, challenger: Bundle) -> bool:
    """Return whether the frozen rows have the window features that a challenger reads, if any."""
    own = challenger.manifest["data"].get("windows", {}).get("digest")
    return own is None or own == frozen.policy.get("windows")


def _refuse_other_windows(frozen: FrozenTest, challenger: Version, force: str | None) -> None:
    """Refuse a challenger with other window features than the frozen rows, unless forced.

    Raises:
        RegistryError: the promotion is not forced.
    """
    reason = (
        f"the test split frozen with version {frozen.version} was made with another data.windows "
        f"than version {challenger.version}"
    )
    if force is None:
        raise RegistryError(f"{reason}; promote it with --force --reason TEXT, on its own split")
    console.info(f"{reason}, which is judged on its own test split")


def _report_policy_difference(frozen: FrozenTest, challenger: Version) -> None:
    """Print the rules of the challenger's own policy that the frozen policy overrides.

    A policy that was changed in the configuration takes effect with the next forced promotion.
    """
    own = policy_of(challenger)
    keys = [key for key in own if key in PromotionConfig.model_fields]
    changed = [f"{k} {own[k]}" for k in keys if own[k] != frozen.policy.get(k, _DEFAULTS[k])]
    if changed:
        console.info(
            f"the policy frozen with version {frozen.version} decides; version "
            f"{challenger.version} was registered with another: {', '.join(changed)}"
        )


_DEFAULTS = PromotionConfig().model_dump()


def _decide(
    registry: Registry,
    challenger: Version,
    champion: Version | None,
    frozen: FrozenTest,
    force: bool,
    traffic: Sequence[str],
) -> Promotion:
    """Score the frozen test split with both models and apply the rules."""
    keys = PromotionConfig.model_fields.keys() & frozen.policy.keys()
    policy = PromotionConfig.model_validate({key: frozen.policy[key] for key in keys})
    labelled = Labelled.of(frozen.read(registry), frozen.policy)
    origin = SplitOrigin(frozen.version, len(labelled.table), frozen.digest[:12])
    new = Contender.of(_bundle(registry, challenger), labelled)
    old = Contender.of(_bundle(registry, champion), labelled) if champion else None
    shared = new.judged.scored & old.judged.scored if old else new.judged.scored
    new_figures = new.judged.evaluate(None, policy.confidence)
    old_figures = old.judged.evaluate(shared, policy.confidence) if old else None
    reading = _reading_difference(frozen.policy, challenger, origin)
    comparison = compare(old, new, policy, str(origin), reading, traffic)
    rules = decide(old_figures, new_figures, policy, comparison)
    failed = {result.rule for result in rules if not result.passed}
    too_many_flags = Rule.KEEPS_ALPHA in failed
    return Promotion(
        name=challenger.name,
        version=challenger.version,
        promoted=force or not failed,
        forced=force and bool(failed),
        rules=rules,
        champion=champion.version if champion else None,
        judged_on=origin,
        drifted=tuple(new.judged.drifted(policy.confidence)) if too_many_flags else (),
        challenger_evaluation=new_figures,
        champion_evaluation=old_figures,
        champion_warnings=old.report.warnings if old and old.report else (),
    )


def _reading_difference(
    policy: Mapping[str, Any], challenger: Version, origin: SplitOrigin
) -> str | None:
    """Describe how the challenger reads images differently from the frozen ones; None if equal."""
    rules, own = policy.get(READING), policy_of(challenger)
    if rules == own.get(READING):
        return None
    text = f"the images of {origin} were read with {_listed(rules)}, the challenger reads its own "
    return f"{text}with {_listed(own.get(READING))}"


def _listed(rules: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (rules or {"rules": "unknown"}).items())


def _record(
    registry: Registry,
    history: ChampionHistory,
    challenger: Version,
    decision: Promotion,
    policy: Mapping[str, Any],
    frozen: FrozenTest,
    force: str | None,
) -> None:
    """Record the decision: first as tags of the version, then in the history, which applies it."""
    reasons = [str(reason.refusal_reason) for reason in decision.reasons]
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
    history.append(
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
    """Print the decision, its rules and the periods with too many false positives."""
    if decision.promoted and decision.champion == decision.version:
        console.info(f"{decision.name}: version {decision.version} is already champion")
    elif decision.promoted:
        how = "by force, against:" if decision.forced else "as champion"
        console.info(f"{decision.name}: version {decision.version} promoted {how}")
    else:
        console.info(f"{decision.name}: version {decision.version} remains challenger, because")
    for reason in decision.reasons:
        console.info(f"  {reason.text}")
    if not decision.promoted:
        for warning in decision.champion_warnings:
            console.info(f"  the champion's own evaluation warned: {warning}")
    if decision.rules:
        rows = [
            (str(result.rule), "passed" if result.passed else "failed", _numbers(result))
            for result in decision.rules
        ]
        console.table("Rules", ("rule", "verdict", "figures"), rows)
    if decision.remedy:
        console.info(decision.remedy)
    if decision.drifted:
        console.table(
            "False positive rate above what chance explains",
            ("time", "rate", "low", "high", "limit", "normal rows"),
            [
                (s.name, s.fpr.value, s.fpr.low, s.fpr.high, s.limit, s.fpr.total)
                for s in decision.drifted
            ],
        )


def _numbers(result: RuleResult) -> str:
    """Format the figures of a rule that are numbers."""
    numbers = {k: v for k, v in result.figures.items() if isinstance(v, int | float)}
    return ", ".join(f"{name} {console.format_value(value)}" for name, value in numbers.items())
