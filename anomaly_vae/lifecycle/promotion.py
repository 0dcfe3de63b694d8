"""May this challenger become champion? A pure decision: rules that pass or fail, with figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from anomaly_vae.config import PromotionConfig
from anomaly_vae.evaluation.comparison import Agreement, Change, SliceChange
from anomaly_vae.evaluation.metrics import Evaluation

THE_TEST = "the frozen test split"


class Rule(StrEnum):
    """What a challenger is held to."""

    KEEPS_ALPHA = "keeps_alpha"
    SCORES_ALL = "scores_all"
    NO_WORSE = "no_worse"
    NO_SLICE_COLLAPSES = "no_slice_collapses"
    AGREES = "agrees"
    READS_ALIKE = "reads_alike"
    REPRODUCES = "reproduces"
    FAST_ENOUGH = "fast_enough"
    SMALL_ENOUGH = "small_enough"


class RefusalReason(StrEnum):
    """Grounds for refusal."""

    TOO_MANY_FALSE_POSITIVES = "fpr_above_alpha"
    REJECTS_MORE = "rejects_more_rows"
    WORSE = "worse_than_champion"
    SLICE_COLLAPSES = "slice_collapses"
    FLAGS_OTHERWISE = "flags_otherwise"
    READS_OTHERWISE = "reads_otherwise"
    NOT_REPRODUCED = "not_reproduced"
    TOO_SLOW = "too_slow"
    TOO_LARGE = "too_large"


GROUNDS = dict(zip(Rule, RefusalReason, strict=True))
"""What the failure of each rule is called."""


@dataclass(frozen=True)
class RuleResult:
    """One rule, whether the challenger holds it, and what was found, in figures and in words."""

    rule: Rule
    passed: bool
    figures: Mapping[str, Any]
    text: str

    @property
    def why(self) -> RefusalReason:
        """The ground for refusal, where it fails."""
        return GROUNDS[self.rule]


@dataclass(frozen=True)
class Lost:
    """Rows that the challenger cannot score, though the champion can, and such a one."""

    rows: int
    such_as: str


@dataclass(frozen=True)
class Parity:
    """How far the bundle's graph is from its own weights in torch, or what is wrong with it."""

    rows: int
    error: float | None
    problem: str | None = None


@dataclass(frozen=True)
class Costs:
    """CPU time of scoring a row alone, where it was measured, and the size of the bundle."""

    megabytes: float
    microseconds: float | None = None
    champion_microseconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What was found beside the evaluations; what is absent is not judged."""

    test: str = THE_TEST
    """how verdicts call the rows that both were evaluated on"""
    lost: Lost | None = None
    metric: Change | None = None
    """the policy's, on the rows that both can score"""
    slices: Sequence[SliceChange] | None = None
    agreement: Agreement | None = None
    otherwise: str | None = None
    """how the challenger reads its images, where that is not how the frozen ones were read"""
    parity: Parity | None = None
    costs: Costs | None = None


def decide(
    champion: Evaluation | None,
    challenger: Evaluation,
    policy: PromotionConfig,
    evidence: Comparison = Comparison(),
) -> tuple[RuleResult, ...]:
    """Every rule that applies; the challenger may become champion where all are passed.

    Args:
        champion: on the rows that both can score; absent: there is none.
        challenger: on all that it can score.
        policy: what it must hold to.
        evidence: the rest of what was found.
    """
    found = (
        _keeps_alpha(challenger, evidence),
        _scores_all(evidence),
        _no_worse(champion, policy, evidence) if champion else None,
        _no_slice_collapses(policy, evidence),
        _agrees(policy, evidence),
        _reads_alike(evidence),
        _reproduces(evidence),
        _fast_enough(policy, evidence.costs),
        _small_enough(policy, evidence.costs),
    )
    return tuple(verdict for verdict in found if verdict)


def _keeps_alpha(challenger: Evaluation, evidence: Comparison) -> RuleResult | None:
    """Above alpha by more than chance explains (`evaluation.highest_kept_rate`) is too much."""
    fpr, interval, limit = challenger.fpr, challenger.fpr_interval, challenger.fpr_limit
    if fpr is None or interval is None or limit is None:
        return None
    passed = fpr <= limit
    text = (
        f"false positive rate {fpr:.4f} [{interval[0]:.4f}, {interval[1]:.4f}] on the normal rows "
        f"of {evidence.test} is {'at most' if passed else 'above'} {limit:.4f}, the most that "
        f"chance explains at alpha {challenger.alpha:g}"
    )
    low, high = interval
    figures = {"fpr": fpr, "low": low, "high": high, "limit": limit, "alpha": challenger.alpha}
    return RuleResult(Rule.KEEPS_ALPHA, passed, figures, text)


def _scores_all(evidence: Comparison) -> RuleResult:
    lost, test = evidence.lost, evidence.test
    if not lost:
        text = f"every row of {test} that should be scored is"
        return RuleResult(Rule.SCORES_ALL, True, {"lost": 0}, text)
    text = f"{lost.rows} rows of {test} cannot be scored: {lost.such_as}"
    return RuleResult(Rule.SCORES_ALL, False, {"lost": lost.rows}, text)


def _no_worse(champion: Evaluation, policy: PromotionConfig, evidence: Comparison) -> RuleResult:
    """One-sided: which side must be shown is the policy's to say.

    A figure that the champion has and the challenger lacks is worse, too.
    """
    name, old, found = policy.metric.replace("_", " "), getattr(champion, policy.metric), evidence
    if old is None:
        text = f"nothing to compare: the champion has no {name} on {found.test}"
        return RuleResult(Rule.NO_WORSE, True, {}, text)
    if found.metric is None:
        text = f"{name} unknown on {found.test}, the champion's is {old:.4f}"
        return RuleResult(Rule.NO_WORSE, False, {"champion": old}, text)
    change, least = found.metric, -policy.tolerance
    passed = change.high >= least if policy.proof == "worse" else change.low >= least
    champions = f"the champion's {old:.4f}" + (f" − {-least:g}" if least else "")
    text = (
        f"{name} {change.challenger:.4f} on {found.test} is {HELD[passed, policy.proof]} "
        f"{champions}: difference {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
    )
    figures = {**change.to_json(), "tolerance": policy.tolerance, "proof": policy.proof}
    return RuleResult(Rule.NO_WORSE, passed, figures, text)


HELD = {
    (True, "worse"): "not shown to be below",
    (False, "worse"): "below",
    (True, "no_worse"): "shown to be no less than",
    (False, "no_worse"): "not shown to be no less than",
}
"""How a passed or failed comparison is told, by what the policy wants to be shown."""


def _no_slice_collapses(policy: PromotionConfig, evidence: Comparison) -> RuleResult | None:
    if evidence.slices is None or policy.slice_recall is None:
        return None
    collapsed = [one for one in evidence.slices if one.collapsed(policy.slice_recall)]
    figures = {
        "compared": len(evidence.slices),
        "limit": policy.slice_recall,
        "collapsed": [one.to_json() for one in collapsed],
    }
    told = "; ".join(map(str, collapsed)) or f"none of {len(evidence.slices)} got much worse"
    text = f"slices of {evidence.test}: {told}"
    return RuleResult(Rule.NO_SLICE_COLLAPSES, not collapsed, figures, text)


def _agrees(policy: PromotionConfig, evidence: Comparison) -> RuleResult | None:
    """Fewer than wished, beyond chance."""
    found, least = evidence.agreement, policy.agreement
    if found is None:
        return None
    passed = least is None or found.high >= least
    text = (
        f"both flag alike {found.share:.4f} [{found.low:.4f}, {found.high:.4f}] of {found.rows:,} "
        f"rows of {found.source}; the champion flags {found.champion:.4f}, the challenger "
        f"{found.challenger:.4f}" + ("" if passed else f"; wished for is {least:g}")
    )
    return RuleResult(Rule.AGREES, passed, {**found.to_json(), "limit": least}, text)


def _reads_alike(evidence: Comparison) -> RuleResult | None:
    if evidence.otherwise is None:
        return None
    return RuleResult(Rule.READS_ALIKE, False, {}, evidence.otherwise)


def _reproduces(evidence: Comparison) -> RuleResult | None:
    found = evidence.parity
    if found is None:
        return None
    figures = {"rows": found.rows, "error": found.error}
    text = found.problem or (
        f"the graph scores {found.rows} rows as its weights do in torch, to {found.error:.1e}"
    )
    return RuleResult(Rule.REPRODUCES, found.problem is None, figures, text)


def _fast_enough(policy: PromotionConfig, costs: Costs | None) -> RuleResult | None:
    """Within the budget, and within so many times what the champion takes."""
    if costs is None or costs.microseconds is None:
        return None
    taken, before = costs.microseconds, costs.champion_microseconds
    relative = policy.slowdown * before if policy.slowdown and before else None
    limit = min((most for most in (policy.row_microseconds, relative) if most), default=None)
    if limit is None:
        return None
    passed = taken <= limit
    text = (
        f"scoring a row takes {taken:.0f} µs of CPU time, "
        f"{'at most' if passed else 'more than'} the {limit:.0f} µs allowed"
    )
    figures = {"microseconds": taken, "champion_microseconds": before, "limit": limit}
    return RuleResult(Rule.FAST_ENOUGH, passed, figures, text)


def _small_enough(policy: PromotionConfig, costs: Costs | None) -> RuleResult | None:
    if costs is None or policy.megabytes is None:
        return None
    size, limit = costs.megabytes, policy.megabytes
    passed = size <= limit
    text = f"the bundle has {size:.2f} MB, {'at most' if passed else 'more than'} the {limit:g} MB"
    figures = {"megabytes": size, "limit": limit}
    return RuleResult(Rule.SMALL_ENOUGH, passed, figures, f"{text} allowed")
