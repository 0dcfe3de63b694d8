"""Say in plain words why a challenger was refused: what was compared, the numbers, what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from anomaly_vae.lifecycle.promotion import Rule, RuleResult
from anomaly_vae.messages import plain_number

Figures = Mapping[str, Any]


def refusal_in_words(result: RuleResult, noun: str = "rows") -> str:
    """Return the words for a rule that a challenger fails.

    Args:
        result: the rule and its figures.
        noun: what the model scores: rows or images.

    >>> figures = {"megabytes": 12.04, "limit": 10.0}
    >>> refusal_in_words(RuleResult(Rule.SMALL_ENOUGH, False, figures, "…")).split(". ")[0]
    'The version has 12 MB, and promotion.megabytes allows 10'
    """
    found, remedy = WORDS[result.rule]
    return f"{found(result.figures, noun)} To do: {remedy}"


def _of(share: float, among: int = 1000) -> str:
    """Return a share as a number of cases among 100 or 1,000."""
    return plain_number(share * among)


def _false_alarms(figures: Figures, noun: str) -> str:
    low, high, limit, alpha = (_of(figures[key]) for key in ("low", "high", "limit", "alpha"))
    return (
        f"Of 1,000 normal {noun} the version flags about {_of(figures['fpr'])} ({low} to {high}, "
        f"allowing for chance). Its alpha of {figures['alpha']:g} promises at most {alpha}, and "
        f"chance explains up to {limit}."
    )


def _unscored(figures: Figures, noun: str) -> str:
    return (
        f"The version cannot score {figures['lost']:,} of the test {noun}, so they would go "
        "unchecked."
    )


def _leak(figures: Figures, noun: str) -> str:
    who = f"A single feature, '{figures['feature']}', tells"
    if figures["kind"] == "columns":
        who = f"The features {figures['feature']} together tell"
    return (
        f"{who} anomalies from normal {noun} almost without fail: "
        f"{plain_number(figures['auroc'])}, where 0.5 is guessing, 1 is perfect and "
        f"{plain_number(figures['limit'])} is suspicious. Such values are mostly written after the "
        "case was decided, and missing when the model needs them."
    )


def _below_chance(figures: Figures, noun: str) -> str:
    return (
        f"If anomalies are compared with normal {noun} in pairs, the anomaly has the higher score "
        f"in only {_of(figures['auroc'], 100)} of 100 pairs; guessing reaches 50."
    )


def _worse(figures: Figures, noun: str) -> str:
    if "challenger" not in figures:
        return (
            f"How well the version ranks the test {noun} is unknown, because it scores too few of "
            f"them; the champion reaches {plain_number(figures['champion'])} of 1."
        )
    new, old, low, high = (
        plain_number(figures[key]) for key in ("challenger", "champion", "low", "high")
    )
    verdict = (
        "ranks anomalies worse than the champion"
        if figures["proof"] == "worse"
        else "is not shown to rank anomalies as well as the champion"
    )
    return (
        f"On the same {noun} the version {verdict}: {new} against {old}, where 1 is perfect. "
        f"Allowing for chance, the difference is between {low} and {high}, and the policy accepts "
        f"a loss of {plain_number(figures['tolerance'])}."
    )


def _collapsed(figures: Figures, noun: str) -> str:
    parts = "; ".join(_collapsed_slice(one, noun) for one in figures["collapsed"])
    return f"In parts of the data the version is much worse than the champion: {parts}."


def _collapsed_slice(one: Figures, noun: str) -> str:
    new, old = _of(one["challenger"], 100), _of(one["champion"], 100)
    does = f"flags {new} of 100 normal {noun}"
    if one["figure"] == "recall":
        does = f"finds {new} of 100 anomalies"
    return f"where {one['slice']}, it {does}, the champion {old}"


def _disagrees(figures: Figures, noun: str) -> str:
    new, old = _of(figures["challenger"]), _of(figures["champion"])
    return (
        f"Both models decide alike on {_of(figures['share'], 100)} of 100 {noun} of {figures['of']}"
        f"; the policy asks for {_of(figures['limit'], 100)}. Of 1,000 {noun} the version flags "
        f"{new}, the champion {old}."
    )


def _reads_otherwise(_: Figures, noun: str) -> str:
    return f"The version prepares {noun} in another way than the test {noun} were prepared."


def _not_reproduced(figures: Figures, noun: str) -> str:
    error = figures["error"]
    by = f" by up to {plain_number(error)}" if error is not None else ""
    return (
        f"The file that would be served scores {figures['rows']:,} {noun} differently{by} from the "
        "model that was trained."
    )


def _slow(figures: Figures, noun: str) -> str:
    taken, limit = (plain_number(figures[key]) for key in ("microseconds", "limit"))
    return f"Scoring one of the {noun} takes {taken} µs of CPU time, and the policy allows {limit}."


def _not_exchangeable(figures: Figures, noun: str) -> str:
    return (
        f"The normal test {noun} do not look like the calibration {noun}: the shares of both that "
        f"exceed a score differ by up to {_of(figures['ks'], 100)} of 100, which chance explains "
        f"{_rarely(figures['ks_p_value'])}. The threshold promises nothing for {noun} that differ "
        "from those it was chosen on."
    )


def _rarely(probability: float) -> str:
    """Return how often something happens by chance."""
    if probability < RAREST:
        return f"less than once in {round(1 / RAREST):,} times"
    return f"about once in {round(1 / probability):,} times"


RAREST = 1e-6
"""Probability below which the exact value tells people nothing."""


def _seen_test(_: Figures, noun: str) -> str:
    return (
        f"The version may have learned from the test {noun}, and would then look better on them "
        "than on new ones."
    )


def _large(figures: Figures, _: str) -> str:
    size, limit = (plain_number(figures[key]) for key in ("megabytes", "limit"))
    return f"The version has {size} MB, and promotion.megabytes allows {limit}."


WORDS: Mapping[Rule, tuple[Callable[[Figures, str], str], str]] = {
    Rule.KEEPS_ALPHA: (
        _false_alarms,
        "find out since when too much is flagged (the table of periods, if there are times); if "
        "the data have changed for good, train or calibrate on newer data; otherwise lower "
        "calibration.alpha.",
    ),
    Rule.SCORES_ALL: (
        _unscored,
        "compare its columns and types with the champion's (anomaly-vae inspect), mend the data or "
        "the configuration, and train again.",
    ),
    Rule.EXCHANGEABLE: (
        _not_exchangeable,
        "find out what changed between the calibration and the test period; train and calibrate "
        "on newer data, or on a calibration period that covers all hours and weekdays.",
    ),
    Rule.UNSEEN_TEST: (
        _seen_test,
        "train again, which leaves the test rows out.",
    ),
    Rule.NO_LEAK: (
        _leak,
        "if this is known only afterwards, add it to data.ignore and train again; if it is known "
        "in time, say so with --force --reason TEXT.",
    ),
    Rule.ABOVE_CHANCE: (
        _below_chance,
        "look for columns that were left out or misread (anomaly-vae inspect), check that "
        "data.positive is the label of anomalies, and train again.",
    ),
    Rule.NO_WORSE: (
        _worse,
        "keep the champion, find out what differs between the two (columns, period, "
        "configuration), and train again.",
    ),
    Rule.NO_SLICE_COLLAPSES: (
        _collapsed,
        "see whether the training data still hold enough cases of these parts, and train again "
        "with them; or change promotion.slice_recall and give the reason with --force.",
    ),
    Rule.AGREES: (
        _disagrees,
        "review some of the cases on which they differ; if the new decisions are right, promote "
        "with --force --reason TEXT, or lower promotion.agreement.",
    ),
    Rule.READS_ALIKE: (
        _reads_otherwise,
        "train with the same reading options, or freeze this version's own test split with "
        "--force --reason TEXT.",
    ),
    Rule.REPRODUCES: (
        _not_reproduced,
        "train again; if it happens again, report it, and do not promote by force.",
    ),
    Rule.FAST_ENOUGH: (
        _slow,
        "choose a smaller preset or fewer members, or raise promotion.row_microseconds or "
        "promotion.slowdown.",
    ),
    Rule.SMALL_ENOUGH: (
        _large,
        "choose a smaller preset or fewer members, or raise promotion.megabytes.",
    ),
}
"""What a failed rule found, as a function of its figures and the noun, and what to do."""
