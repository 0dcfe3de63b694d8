"""Decide by rules, each with its figures, whether a challenger may become champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from anomaly_vae.config.lifecycle import PromotionConfig
from anomaly_vae.evaluation.comparison import Agreement, Change, SliceChange
from anomaly_vae.evaluation.leakage import SingleFeatureAUROC
from anomaly_vae.evaluation.metrics import Evaluation
from anomaly_vae.evaluation.p_values import Exchangeability

__all__ = ["decide"]

DEFAULT_TEST_NAME = "the frozen test split"
"""Default name of the test rows in messages."""


CHANCE_AUROC = 0.5
"""AUROC of a random order."""


class Rule(StrEnum):
    """A requirement that a challenger has to meet."""

    KEEPS_ALPHA = "keeps_alpha"
    EXCHANGEABLE = "exchangeable"
    SCORES_ALL = "scores_all"
    NO_LEAK = "no_leak"
    ABOVE_CHANCE = "above_chance"
    NO_WORSE = "no_worse"
    NO_SLICE_COLLAPSES = "no_slice_collapses"
    AGREES = "agrees"
    READS_ALIKE = "reads_alike"
    UNSEEN_TEST = "unseen_test"
    REPRODUCES = "reproduces"
    FAST_ENOUGH = "fast_enough"
    SMALL_ENOUGH = "small_enough"


class RefusalReason(StrEnum):
    """The reason for a refusal. There is one for each `Rule`, in the same order."""

    TOO_MANY_FALSE_POSITIVES = "fpr_above_alpha"
    NOT_EXCHANGEABLE = "not_exchangeable"
    REJECTS_MORE = "rejects_more_rows"
    LEAKS = "feature_reveals_label"
    BELOW_CHANCE = "auroc_below_chance"
    WORSE = "worse_than_champion"
    SLICE_COLLAPSES = "slice_collapses"
    FLAGS_OTHERWISE = "flags_otherwise"
    READS_OTHERWISE = "reads_otherwise"
    SAW_TEST = "saw_test_rows"
    NOT_REPRODUCED = "not_reproduced"
    TOO_SLOW = "too_slow"
    TOO_LARGE = "too_large"


REFUSAL_REASONS = dict(zip(Rule, RefusalReason, strict=True))
"""Refusal reason of each rule."""


@dataclass(frozen=True)
class RuleResult:
    """The outcome of one rule, with its figures and a sentence that explains it."""

    rule: Rule
    passed: bool
    figures: Mapping[str, Any]
    text: str

    @property
    def refusal_reason(self) -> RefusalReason:
        """Reason to report when the rule fails."""
        return REFUSAL_REASONS[self.rule]


@dataclass(frozen=True)
class UnscorableRows:
    """The number of rows that only the challenger fails to score, and an example problem."""

    rows: int
    example: str


@dataclass(frozen=True)
class Parity:
    """The difference between scores from a bundle's graph and from its weights in torch.

    ``rows`` is the number of compared rows, ``error`` the largest difference, and ``problem``
    describes a disagreement; it is None if the scores agree.
    """

    rows: int
    error: float | None
    problem: str | None = None


@dataclass(frozen=True)
class Costs:
    """Bundle size in megabytes, and CPU microseconds to score a single row (None: not measured)."""

    megabytes: float
    microseconds: float | None = None
    champion_microseconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Differences between challenger and champion; rules skip those that are None."""

    test: str = DEFAULT_TEST_NAME
    """Name of the test rows in messages."""
    unscorable: UnscorableRows | None = None
    calibrated_on: Evaluation | None = None
    """The challenger's evaluation on its own test split, which follows its calibration rows."""
    single_features: Sequence[SingleFeatureAUROC] = ()
    """AUROC of each feature on its own, from the challenger's evaluation."""
    metric: Change | None = None
    """Change of ``policy.metric`` on the rows that both models can score."""
    slices: Sequence[SliceChange] | None = None
    agreement: Agreement | None = None
    reading: str | None = None
    """How the challenger's reading of images differs from that of the test images, if it does."""
    seen_test: str | None = None
    """Why test rows may have trained or calibrated the challenger, if they may."""
    parity: Parity | None = None
    costs: Costs | None = None


def decide(
    champion: Evaluation | None,
    challenger: Evaluation,
    policy: PromotionConfig,
    comparison: Comparison = Comparison(),
) -> tuple[RuleResult, ...]:
    """Apply every rule that has figures; a challenger that passes all may become champion.

    Args:
        champion: evaluation of the champion on the rows that both models can score; None if there
            is no champion.
        challenger: evaluation of the challenger on all rows that it can score.
        policy: the limits of the rules.
        comparison: differences between the models beyond their evaluations.

    Returns:
        One result per rule that applies, in the order of `Rule`.

    Examples:
        >>> from anomaly_vae.config.lifecycle import PromotionConfig
        >>> from anomaly_vae.evaluation.metrics import Evaluation
        >>> challenger = Evaluation(
        ...     rows=10_000, anomalies=50, alpha=0.01, threshold=12.5, flagged=160,
        ...     fpr=0.0121, fpr_interval=(0.0101, 0.0145), fpr_limit=0.0118,
        ... )
        >>> for result in decide(None, challenger, PromotionConfig()):
        ...     print(result.rule, result.passed)
        keeps_alpha False
        scores_all True
    """
    results = (
        _check_alpha(challenger, comparison),
        _check_exchangeable(comparison.calibrated_on or challenger, policy),
        _check_all_scored(comparison),
        _check_leak(policy, comparison),
        _check_chance(challenger, comparison),
        _check_metric(champion, policy, comparison) if champion else None,
        _check_slices(policy, comparison),
        _check_agreement(policy, comparison),
        _check_reading(comparison),
        _check_unseen(comparison),
        _check_parity(comparison),
        _check_speed(policy, comparison.costs),
        _check_size(policy, comparison.costs),
    )
    return tuple(result for result in results if result)


def _check_alpha(challenger: Evaluation, comparison: Comparison) -> RuleResult | None:
    """Refuse a false positive rate above ``fpr_limit``, the largest that chance explains."""
    fpr, interval, limit = challenger.fpr, challenger.fpr_interval, challenger.fpr_limit
    if fpr is None or interval is None or limit is None:
        return None
    passed = fpr <= limit
    text = (
        f"false positive rate {fpr:.4f} [{interval[0]:.4f}, {interval[1]:.4f}] on the normal rows "
        f"of {comparison.test} is {'at most' if passed else 'above'} {limit:.4f}, the most that "
        f"chance explains at alpha {challenger.alpha:g}"
    )
    low, high = interval
    figures = {"fpr": fpr, "low": low, "high": high, "limit": limit, "alpha": challenger.alpha}
    return RuleResult(Rule.KEEPS_ALPHA, passed, figures, text)


def _check_exchangeable(evaluation: Evaluation, policy: PromotionConfig) -> RuleResult | None:
    """Refuse a calibration on rows that are plainly not like the normal test rows."""
    distance, p_value, limit = evaluation.ks, evaluation.ks_p_value, policy.ks_distance
    if distance is None or p_value is None or limit is None:
        return None
    found = Exchangeability(distance, p_value, limit, policy.ks_p_value)
    text = found.warning or (
        f"calibration and test rows may be exchangeable: {found}, which is accepted up to "
        f"{limit:g}, or from a p-value of {policy.ks_p_value:g} on"
    )
    figures = {"ks": distance, "ks_p_value": p_value, "limit": limit, "p_limit": policy.ks_p_value}
    return RuleResult(Rule.EXCHANGEABLE, not found.refuted, figures, text)


def _check_all_scored(comparison: Comparison) -> RuleResult:
    unscorable, test = comparison.unscorable, comparison.test
    if not unscorable:
        text = f"every row of {test} that should be scored is"
        return RuleResult(Rule.SCORES_ALL, True, {"lost": 0}, text)
    text = f"{unscorable.rows} rows of {test} cannot be scored: {unscorable.example}"
    return RuleResult(Rule.SCORES_ALL, False, {"lost": unscorable.rows}, text)


def _check_leak(policy: PromotionConfig, comparison: Comparison) -> RuleResult | None:
    """Refuse a model that reads a feature which separates anomalies on its own."""
    best, limit = max(comparison.single_features, key=_auroc, default=None), policy.leak_auroc
    if best is None or limit is None:
        return None
    passed = best.auroc < limit
    named = f"the feature that separates anomalies best on its own is '{best.name}'"
    if best.kind == "columns":
        named = f"the features {best.name} mark anomalies together"
    text = f"{named}: AUROC {best.auroc:.4f}, {'below' if passed else 'not below'} {limit:g}"
    advice = (
        "; if this is known only after the label, add it to data.ignore and train again, "
        "otherwise promote with --force"
    )
    figures = {"auroc": best.auroc, "feature": best.name, "kind": best.kind, "limit": limit}
    return RuleResult(Rule.NO_LEAK, passed, figures, text + ("" if passed else advice))


def _auroc(feature: SingleFeatureAUROC) -> float:
    return feature.auroc


def _check_chance(challenger: Evaluation, comparison: Comparison) -> RuleResult | None:
    """Refuse a model that ranks anomalies lower than a random order would."""
    auroc = challenger.auroc
    if auroc is None:
        return None
    passed = auroc >= CHANCE_AUROC
    text = (
        f"AUROC {auroc:.4f} on {comparison.test} is {'at least' if passed else 'below'} "
        f"{CHANCE_AUROC:g}, that of chance"
    )
    advice = "; look for columns that were left out or misread"
    figures = {"auroc": auroc, "limit": CHANCE_AUROC}
    return RuleResult(Rule.ABOVE_CHANCE, passed, figures, text + ("" if passed else advice))


def _check_metric(
    champion: Evaluation, policy: PromotionConfig, comparison: Comparison
) -> RuleResult:
    """Compare ``policy.metric`` of both models by one end of the interval of the difference.

    With ``policy.proof`` "worse", a challenger that is shown to be worse is refused; with
    "no_worse", one that is not shown to be no worse. A challenger without the metric is refused if
    the champion has it.
    """
    name, old = policy.metric.replace("_", " "), getattr(champion, policy.metric)
    test, change = comparison.test, comparison.metric
    if old is None:
        text = f"nothing to compare: the champion has no {name} on {test}"
        return RuleResult(Rule.NO_WORSE, True, {}, text)
    if change is None:
        text = f"{name} unknown on {test}, the champion's is {old:.4f}"
        return RuleResult(Rule.NO_WORSE, False, {"champion": old}, text)
    lowest = -policy.tolerance
    passed = change.high >= lowest if policy.proof == "worse" else change.low >= lowest
    reference = f"the champion's {old:.4f}" + (f" − {-lowest:g}" if lowest else "")
    text = (
        f"{name} {change.challenger:.4f} on {test} is {METRIC_VERDICTS[passed, policy.proof]} "
        f"{reference}: difference {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
    )
    figures = {**change.to_json(), "tolerance": policy.tolerance, "proof": policy.proof}
    return RuleResult(Rule.NO_WORSE, passed, figures, text)


METRIC_VERDICTS = {
    (True, "worse"): "not shown to be below",
    (False, "worse"): "below",
    (True, "no_worse"): "shown to be no less than",
    (False, "no_worse"): "not shown to be no less than",
}
"""Wording of a metric comparison, by whether it passed and by ``policy.proof``."""


def _check_slices(policy: PromotionConfig, comparison: Comparison) -> RuleResult | None:
    if comparison.slices is None or policy.slice_recall is None:
        return None
    collapsed = [s for s in comparison.slices if s.collapsed(policy.slice_recall)]
    figures = {
        "compared": len(comparison.slices),
        "limit": policy.slice_recall,
        "collapsed": [change.to_json() for change in collapsed],
    }
    listed = "; ".join(map(str, collapsed)) or f"none of {len(comparison.slices)} got much worse"
    text = f"slices of {comparison.test}: {listed}"
    return RuleResult(Rule.NO_SLICE_COLLAPSES, not collapsed, figures, text)


def _check_agreement(policy: PromotionConfig, comparison: Comparison) -> RuleResult | None:
    """Refuse an agreement that is below ``policy.agreement`` by more than chance explains."""
    agreement, least = comparison.agreement, policy.agreement
    if agreement is None:
        return None
    passed = least is None or agreement.high >= least
    text = (
        f"both models decide alike on {agreement.share:.4f} [{agreement.low:.4f}, "
        f"{agreement.high:.4f}] of {agreement.rows:,} rows of {agreement.source}; the champion "
        f"flags {agreement.champion:.4f}, the challenger {agreement.challenger:.4f}"
        + ("" if passed else f"; the policy asks for at least {least:g}")
    )
    return RuleResult(Rule.AGREES, passed, {**agreement.to_json(), "limit": least}, text)


def _check_reading(comparison: Comparison) -> RuleResult | None:
    if comparison.reading is None:
        return None
    return RuleResult(Rule.READS_ALIKE, False, {}, comparison.reading)


def _check_unseen(comparison: Comparison) -> RuleResult | None:
    """Refuse a model that was trained before the test rows were set apart, if it may know them."""
    if comparison.seen_test is None:
        return None
    text = f"{comparison.test}: {comparison.seen_test}; train again, without its rows"
    return RuleResult(Rule.UNSEEN_TEST, False, {}, text)


def _check_parity(comparison: Comparison) -> RuleResult | None:
    parity = comparison.parity
    if parity is None:
        return None
    figures = {"rows": parity.rows, "error": parity.error}
    text = parity.problem or (
        f"the graph scores {parity.rows} rows as its weights do in torch, to {parity.error:.1e}"
    )
    return RuleResult(Rule.REPRODUCES, parity.problem is None, figures, text)


def _check_speed(policy: PromotionConfig, costs: Costs | None) -> RuleResult | None:
    """Refuse a scoring time above ``row_microseconds`` or ``slowdown`` times the champion's."""
    if costs is None or costs.microseconds is None:
        return None
    taken, champion = costs.microseconds, costs.champion_microseconds
    relative = policy.slowdown * champion if policy.slowdown and champion else None
    limits = [limit for limit in (policy.row_microseconds, relative) if limit]
    limit = min(limits, default=None)
    if limit is None:
        return None
    passed = taken <= limit
    text = (
        f"scoring a row takes {taken:.0f} µs of CPU time, "
        f"{'at most' if passed else 'more than'} the {limit:.0f} µs allowed"
    )
    figures = {"microseconds": taken, "champion_microseconds": champion, "limit": limit}
    return RuleResult(Rule.FAST_ENOUGH, passed, figures, text)


def _check_size(policy: PromotionConfig, costs: Costs | None) -> RuleResult | None:
    if costs is None or policy.megabytes is None:
        return None
    size, limit = costs.megabytes, policy.megabytes
    passed = size <= limit
    text = f"the bundle has {size:.2f} MB, {'at most' if passed else 'more than'} the {limit:g} MB"
    figures = {"megabytes": size, "limit": limit}
    return RuleResult(Rule.SMALL_ENOUGH, passed, figures, f"{text} allowed")
