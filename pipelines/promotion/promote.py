"""Promote a challenger to champion by the policy and test split that are frozen in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.lifecycle import PromotionConfig
from anomaly_vae.errors import RegistryError
from anomaly_vae.lifecycle.champion_history import ChampionHistory, check_reason, previous_champions
from anomaly_vae.lifecycle.promotion import Rule, decide
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
from pipelines.datasets.verdicts import Verdicts
from pipelines.promotion.compare import Contender, compare
from pipelines.promotion.decision import Promotion, SplitOrigin
from pipelines.promotion.refresh import RefreshedTest, refresh
from pipelines.promotion.renewal import Renewal, due, not_set_apart, renewed_test, seen_rows
from pipelines.registry.frozen_test import FrozenTest, policy_of
from pipelines.reports.late_labels import label_source, read_late_labels


def promote(
    registry: Registry,
    name: str,
    version: str | None = None,
    force: str | None = None,
    traffic: Sequence[str] = (),
    labels: Sequence[str] | None = None,
) -> Promotion:
    """Compare a version with the champion on the frozen test split and promote or refuse it.

    The first promotion freezes the version's own test split and policy, and later champions inherit
    them. If they no longer fit because the data have changed for good, ``force`` freezes those of
    the version that it promotes. A rollback restores the previous ones.

    Labels that arrived since are merged into the test split first. If the policy says when a test
    split is replaced, and it is due, both models are compared on the old and on the version's own
    one, and the latter decides: the old one no longer represents the rows that will be scored.

    Args:
        registry: the registry of the model.
        name: the registered model.
        version: the version to promote; None for the challenger.
        force: a reason to promote even against the rules; it is recorded. None applies the rules.
        traffic: files of recent rows on which the decisions of both models are compared.
        labels: where late labels are; None for ``data.labels`` of the version's configuration.

    Raises:
        RegistryError: the model, version or challenger does not exist, the test split was altered
            or lacks the challenger's window features, or another process moved the champion
            meanwhile.
        ConfigError: the reason is not one line of text.
        DataError: late labels cannot be read.
    """
    check_reason(force)
    challenger = registry.version(name, version) if version else registry.by_alias(name, CHALLENGER)
    history = _open_history(registry, name)
    champion = registry.champion(name)
    if champion and champion.version == challenger.version:
        console.info(f"{name} version {champion.version} is the champion already: nothing to do")
        return Promotion(name, champion.version, True, False, (), champion.version)
    frozen = FrozenTest.of_champion(champion) if champion else FrozenTest.own(challenger)
    compared, new = champion, _bundle(registry, challenger)
    if champion and not _has_windows(frozen, new):
        _refuse_other_windows(frozen, challenger, force)
        frozen, compared = FrozenTest.own(challenger), None
    _report_policy_difference(frozen, challenger)
    old = _bundle(registry, compared) if compared else None
    match = _Match(registry, challenger, new, compared, old, force is not None, traffic)
    decision, judge, refreshed = match.decide(frozen, labels)
    decision = replace(decision, champion=champion.version if champion else None)
    inherited = FrozenTest.own(challenger) if force else _inherited(judge, champion, decision)
    _record(registry, history, challenger, decision, judge, inherited, force)
    if compared:
        _keep_labels(registry, compared, frozen, refreshed)
    return decision


def _inherited(test: FrozenTest, champion: Version | None, decision: Promotion) -> FrozenTest:
    """Return the test split that a promoted version passes on, with one promotion more."""
    first = champion is None or decision.on_old_split is not None
    return test if first else replace(test, later_promotions=test.later_promotions + 1)


def _keep_labels(
    registry: Registry, champion: Version, frozen: FrozenTest, refreshed: FrozenTest
) -> None:
    """Let a champion refer to the newest labels of its test split."""
    if refreshed != frozen:
        registry.tag_version(champion, FROZEN_TAG, refreshed.tag())


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
    if champion:
        _pass_labels_back(registry, champion, registry.version(name, available[-1]))
    answer = {"name": name, "version": available[-1], "alias": CHAMPION, "was": current}
    history.append("rollback", available[-1], current, answer, reason)
    console.info(f"{name}: version {available[-1]} is champion again")
    return answer


def _pass_labels_back(registry: Registry, champion: Version, former: Version) -> None:
    """Let a former champion refer to the newest labels, if it has the same test split."""
    if FROZEN_TAG not in champion.tags or FROZEN_TAG not in former.tags:
        return
    newer, older = FrozenTest.of_champion(champion), FrozenTest.of_champion(former)
    if newer.digest == older.digest:
        newest = replace(older, labels=newer.labels, labels_digest=newer.labels_digest)
        _keep_labels(registry, former, older, newest)


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
    changed = [
        f"{key} {json.dumps(own.get(key, default))}".replace('"', "")
        for key, default in _DEFAULTS.items()
        if own.get(key, default) != frozen.policy.get(key, default)
    ]
    if changed:
        console.info(
            f"the policy frozen with version {frozen.version} decides; version "
            f"{challenger.version} was registered with another, which a promotion by force puts in "
            f"its place: {', '.join(changed)}"
        )


_DEFAULTS = {**PromotionConfig().model_dump(), "label_delay": None}
"""Rules that a policy may change, with the values of policies that lack them."""


@dataclass(frozen=True, eq=False)
class _Match:
    """A challenger and the champion, if there is one, with their bundles."""

    registry: Registry
    challenger: Version
    new: Bundle
    champion: Version | None
    old: Bundle | None
    force: bool
    traffic: Sequence[str]

    def decide(
        self, frozen: FrozenTest, labels: Sequence[str] | None
    ) -> tuple[Promotion, FrozenTest, FrozenTest]:
        """Apply the rules on the test split that decides.

        Returns:
            The decision, the test split that decided, and the frozen one with its newest labels.
        """
        late = read_late_labels(label_source(self.new, self.challenger, labels))
        test = self._refreshed(frozen, late)
        renewal, own = self._renewal(test, late)
        if own is None:
            return replace(self._judge(test), renewal=renewal), test.frozen, test.frozen
        decision = replace(self._judge(own), renewal=renewal, on_old_split=self._judge(test))
        return decision, own.frozen, test.frozen

    def _refreshed(self, frozen: FrozenTest, late: Verdicts) -> RefreshedTest:
        return refresh(self.registry, frozen, self.challenger, self.new, late)

    def _renewal(
        self, test: RefreshedTest, late: Verdicts
    ) -> tuple[Renewal | None, RefreshedTest | None]:
        """Return why the test split is due to be replaced, and its successor if that is fit."""
        rules = _rules(test.frozen)
        if self.champion is None or self.old is None or not rules.renew_test:
            return None, None
        own = FrozenTest.own(self.challenger)
        reason = due(test, own, rules)
        if reason is None:
            return None, None
        renewed = self._refreshed(renewed_test(test.frozen, own), late)
        seen = seen_rows(renewed, self.champion, self.old)
        return Renewal(reason, seen), None if seen else renewed

    def _judge(self, test: RefreshedTest) -> Promotion:
        """Score a test split with both models and apply the rules."""
        frozen, labelled = test.frozen, test.labelled
        policy = _rules(frozen)
        origin = SplitOrigin(frozen.version, len(labelled.table), frozen.digest[:12])
        new = Contender.of(self.new, labelled)
        old = Contender.of(self.old, labelled) if self.old else None
        shared = new.judged.scored & old.judged.scored if old else new.judged.scored
        new_figures = new.judged.evaluate(None, policy.confidence)
        old_figures = old.judged.evaluate(shared, policy.confidence) if old else None
        reading = _reading_difference(frozen.policy, self.challenger, origin)
        seen = not_set_apart(test, self.challenger, self.new)
        comparison = compare(old, new, policy, str(origin), (reading, seen), self.traffic)
        rules = decide(old_figures, new_figures, policy, comparison)
        failed = {result.rule for result in rules if not result.passed}
        too_many_flags = Rule.KEEPS_ALPHA in failed
        return Promotion(
            name=self.challenger.name,
            version=self.challenger.version,
            promoted=self.force or not failed,
            forced=self.force and bool(failed),
            rules=rules,
            champion=self.champion.version if self.champion else None,
            judged_on=origin,
            drifted=tuple(new.judged.drifted(policy.confidence)) if too_many_flags else (),
            challenger_evaluation=new_figures,
            champion_evaluation=old_figures,
            champion_warnings=old.report.warnings if old and old.report else (),
            labels=test.to_json(),
            kind=self.new.manifest["kind"],
            period=new.judged.period,
        )


def _rules(frozen: FrozenTest) -> PromotionConfig:
    """Return the rules of a frozen policy."""
    keys = PromotionConfig.model_fields.keys() & frozen.policy.keys()
    return PromotionConfig.model_validate({key: frozen.policy[key] for key in keys})


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
    test: FrozenTest,
    inherited: FrozenTest,
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
        "freezes_test_split_of": inherited.version if decision.promoted else None,
    }
    registry.tag_version(challenger, DECISION_TAG, json.dumps(summary))
    if decision.promoted:
        registry.tag_version(challenger, FROZEN_TAG, inherited.tag())
    history.append(
        "promote" if decision.promoted else "refuse",
        challenger.version,
        decision.champion,
        {**summary, **decision.result(), "policy": dict(test.policy)},
        force or ", ".join(reasons) or None,
        decision.forced,
    )


def _bundle(registry: Registry, version: Version) -> Bundle:
    return registry.fetch(version.uri).load()
