"""Print the decision on a challenger."""

from __future__ import annotations

from dataclasses import fields

from anomaly_vae.lifecycle.promotion import RuleResult
from pipelines import console
from pipelines.datasets.labels import LabelChanges
from pipelines.promotion.decision import Promotion
from pipelines.reports.in_words import in_words


def show(decision: Promotion, figures_known: bool = False) -> None:
    """Print the decision, its rules and the periods with too many false positives.

    Args:
        decision: the decision.
        figures_known: whether the version's figures on its own test split have been printed.
    """
    if decision.promoted and decision.champion == decision.version:
        console.info(f"{decision.name}: version {decision.version} is already champion")
    elif decision.promoted:
        how = "by force, against:" if decision.forced else "as champion"
        console.info(f"{decision.name}: version {decision.version} promoted {how}")
    else:
        console.info(f"{decision.name}: version {decision.version} remains challenger, because")
    for reason in decision.reasons:
        console.info(f"  {reason.text}")
        console.info(f"    In words: {decision.words(reason)}")
    if not decision.promoted:
        for warning in decision.champion_warnings:
            console.info(f"  the champion's own evaluation warned: {warning}")
    _show_renewal(decision)
    _show_judgement(decision)
    _show_in_words(decision, figures_known)
    if decision.on_old_split:
        _show_old(decision, decision.on_old_split)
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


def _show_judgement(decision: Promotion) -> None:
    """Print the labels, the rules, and the figures of both models on a test split."""
    if decision.judged_on:
        console.info(f"Judged on {decision.judged_on}")
    if decision.labels and decision.labels["revision"]:
        digest = decision.labels["digest"][:12]
        console.info(f"{_label_state(decision)} (digest {digest})")
    if decision.rules:
        rows = [
            (str(result.rule), "passed" if result.passed else "failed", _numbers(result))
            for result in decision.rules
        ]
        console.table("Rules", ("rule", "verdict", "figures"), rows)
    models = [("challenger", decision.challenger_evaluation)]
    models += [("champion", decision.champion_evaluation)]
    columns = [(name, figures.to_json()) for name, figures in models if figures]
    if columns:
        rows = [(name, *(figures[name] for _, figures in columns)) for name in SHOWN_FIGURES]
        header = ("figure", *(name for name, _ in columns))
        console.table("Figures", header, rows)


def _show_in_words(decision: Promotion, figures_known: bool) -> None:
    """Print the challenger's figures in words, unless they were printed of the same rows."""
    own_split = decision.judged_on and decision.judged_on.version == decision.version
    if decision.challenger_evaluation and not (figures_known and own_split):
        period = {"period": decision.period.to_json()} if decision.period else {}
        figures = {**decision.challenger_evaluation.to_json(), **period}
        console.info(f"Version {decision.version}: {in_words(figures, decision.kind)}")


SHOWN_FIGURES = (
    "rows",
    "unlabelled",
    "anomalies",
    "flagged",
    "fpr",
    "precision",
    "recall",
    "auroc",
    "average_precision",
)
"""Figures of both models that are printed."""


def _label_state(decision: Promotion) -> str:
    """Describe the labels: what changed, or those of a split that nothing was decided on yet."""
    labels = decision.labels or {}
    names = {field.name for field in fields(LabelChanges)}
    changes = LabelChanges(**{key: value for key, value in labels.items() if key in names})
    own_split = decision.judged_on and decision.judged_on.version == decision.version
    if own_split and not changes.changed:
        return f"Labels: {changes.anomalies_after:,} anomalies"
    return f"Since the last decision: {changes}"


def _show_renewal(decision: Promotion) -> None:
    """Print what happened to a test split that was due to be replaced."""
    renewal, old = decision.renewal, decision.on_old_split
    if renewal is None:
        return
    if old is None:
        console.info(
            f"Warning: {decision.judged_on} is due to be replaced ({renewal.reason}), but it "
            f"stays, because the one of version {decision.version} is unfit: {renewal.obstacle}"
        )
        return
    fate = "is frozen from now on" if decision.promoted else "is frozen only by a promotion"
    console.info(
        f"{old.judged_on} is due to be replaced ({renewal.reason}); {decision.judged_on} decides "
        f"and {fate}"
    )


def _show_old(decision: Promotion, old: Promotion) -> None:
    """Print the decision on the test split that was replaced, and whether it disagrees."""
    console.heading("For comparison, the test split that was due:")
    _show_judgement(old)
    if _verdict(old) == _verdict(decision):
        return
    console.info(
        f"Warning: the old test split disagrees: by it, the challenger would be {_verdict(old)}; "
        "find out what changed in the data"
    )
    for reason in old.reasons:
        console.info(f"  {reason.text}")


def _verdict(decision: Promotion) -> str:
    """Return what the rules say, whether or not the promotion is forced."""
    return "refused" if decision.reasons else "promoted"


def _numbers(result: RuleResult) -> str:
    """Format the figures of a rule that are numbers."""
    numbers = {k: v for k, v in result.figures.items() if isinstance(v, int | float)}
    return ", ".join(f"{name} {console.format_value(value)}" for name, value in numbers.items())
