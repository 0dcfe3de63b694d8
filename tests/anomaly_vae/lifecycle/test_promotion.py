"""`decide`, alone: no registry, no model, only figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config.lifecycle import PromotionConfig
from anomaly_vae.evaluation.comparison import Agreement, Change, SliceChange, metric_change
from anomaly_vae.evaluation.leakage import SingleFeatureAUROC
from anomaly_vae.evaluation.metrics import Evaluation, evaluate
from anomaly_vae.lifecycle.promotion import (
    REFUSAL_REASONS,
    Comparison,
    Costs,
    Parity,
    RefusalReason,
    Rule,
    RuleResult,
    UnscorableRows,
    decide,
)
from anomaly_vae.scoring.detector import Detections

POLICY = PromotionConfig()
shares = st.floats(0, 1)
differences = st.floats(-1, 1)


def evaluation(**changes: object) -> Evaluation:
    typical = Evaluation(
        rows=1_000,
        anomalies=20,
        alpha=0.01,
        threshold=12.5,
        auroc=0.9,
        average_precision=0.6,
        fpr=0.01,
        fpr_interval=(0.005, 0.019),
        fpr_limit=0.018,
        recall=0.5,
        precision=0.5,
        flagged=20,
    )
    return replace(typical, **changes)  # type: ignore[arg-type]


def change(low: float, high: float) -> Change:
    return Change(0.6, 0.6 + (low + high) / 2, low, high)


NOTHING = Comparison()
SAME = Comparison(metric=change(0, 0))
WORSE = Comparison(metric=change(-0.2, -0.1))


def grounds(
    old: Evaluation | None, new: Evaluation, evidence: Comparison = NOTHING, **policy: Any
) -> set[RefusalReason]:
    verdicts = decide(old, new, PromotionConfig(**policy), evidence)
    return {verdict.refusal_reason for verdict in verdicts if not verdict.passed}


def only(rule: Rule, evidence: Comparison, **policy: Any) -> RuleResult:
    """The verdict by this rule; every other is passed."""
    verdicts = decide(evaluation(), evaluation(), PromotionConfig(**policy), evidence)
    assert all(verdict.passed for verdict in verdicts if verdict.rule is not rule)
    return next(verdict for verdict in verdicts if verdict.rule is rule)


@pytest.mark.parametrize(
    ("ks", "p_value", "policy", "passed"),
    [
        (0.2, 1e-28, {}, False),
        (0.2, 1e-7, {}, True),
        (0.02, 1e-28, {}, True),
        (0.02, 1e-28, {"ks_distance": 0.01}, False),
        (0.2, 1e-7, {"ks_p_value": 1e-4}, False),
    ],
)
def test_rows_that_are_plainly_not_exchangeable_with_the_calibration_rows_refuse(
    ks: float, p_value: float, policy: dict[str, float], passed: bool
) -> None:
    own = evaluation(ks=ks, ks_p_value=p_value)
    verdict = only(Rule.EXCHANGEABLE, replace(SAME, calibrated_on=own), **policy)
    assert verdict.passed is passed
    assert (verdict.figures["ks"], verdict.figures["ks_p_value"]) == (ks, p_value)
    assert ("are not exchangeable" in verdict.text) is not passed


def test_exchangeability_is_that_of_the_own_test_split_before_that_of_the_frozen_one() -> None:
    frozen, own = evaluation(ks=0.5, ks_p_value=1e-99), evaluation(ks=0.01, ks_p_value=0.5)
    assert grounds(None, frozen, Comparison(calibrated_on=own)) == set()
    assert grounds(None, frozen) == {RefusalReason.NOT_EXCHANGEABLE}
    assert grounds(None, frozen, ks_distance=None) == set()
    assert Rule.EXCHANGEABLE not in {one.rule for one in decide(None, evaluation(), POLICY)}


def test_each_rule_has_a_ground_of_its_own() -> None:
    assert set(REFUSAL_REASONS) == set(Rule)
    assert set(REFUSAL_REASONS.values()) == set(RefusalReason)


# ---------------------------------------------------------------- the false positive rate


def test_a_first_model_that_keeps_alpha_is_promoted() -> None:
    verdicts = decide(None, evaluation(), POLICY)
    assert all(verdict.passed for verdict in verdicts)
    assert Rule.NO_WORSE not in {verdict.rule for verdict in verdicts}


def test_a_rate_above_alpha_within_chance_is_no_ground() -> None:
    assert not grounds(None, evaluation(fpr=0.015, fpr_interval=(0.0099, 0.025)))


def test_a_rate_above_alpha_beyond_chance_refuses_even_the_first_model() -> None:
    bad = evaluation(fpr=0.03, fpr_interval=(0.02, 0.042))
    (verdict,) = (v for v in decide(None, bad, POLICY) if not v.passed)
    assert verdict.refusal_reason is RefusalReason.TOO_MANY_FALSE_POSITIVES
    assert "0.0300 [0.0200, 0.0420]" in verdict.text
    assert "above 0.0180, the most that chance explains at alpha 0.01" in verdict.text
    assert verdict.figures["limit"] == 0.018


@given(shares, shares, shares, st.booleans())
def test_a_lower_rate_is_never_refused_where_a_higher_one_passes(
    limit: float, one: float, other: float, champion: bool
) -> None:
    old = evaluation() if champion else None
    if not grounds(old, evaluation(fpr_limit=limit, fpr=max(one, other)), SAME):
        assert not grounds(old, evaluation(fpr_limit=limit, fpr=min(one, other)), SAME)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_a_model_that_keeps_alpha_is_seldom_refused(alpha: float) -> None:
    """However few rows calibrated it: in at most 2.5% of splits."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        calibration = calibrate(rng.normal(size=150), alpha)
        scores = rng.normal(size=1_000)
        found = Detections(scores, np.ones(1_000), calibration.flags(scores))
        refused += bool(grounds(None, evaluate(found, np.zeros(1_000, bool), calibration)))
    assert refused <= 0.025 * 400 + 3 * np.sqrt(400 * 0.025)


# ---------------------------------------------------------------- no worse than the champion


def test_an_equal_challenger_is_promoted() -> None:
    assert not grounds(evaluation(), evaluation(), SAME)


def test_a_challenger_that_is_shown_to_be_worse_is_refused_with_its_figures() -> None:
    verdict = only(Rule.NO_WORSE, WORSE)
    assert not verdict.passed
    assert "average precision 0.4500" in verdict.text
    assert "below the champion's 0.6000" in verdict.text
    assert "[-0.2000, -0.1000]" in verdict.text
    assert verdict.figures["difference"] == pytest.approx(-0.15)


@given(differences, differences, shares.filter(lambda t: t < 1))
def test_which_side_must_be_shown_is_the_policys_to_say(
    one: float, other: float, tolerance: float
) -> None:
    low, high = sorted((one, other))
    evidence = Comparison(metric=change(low, high))
    worse = grounds(evaluation(), evaluation(), evidence, tolerance=tolerance)
    unproven = grounds(evaluation(), evaluation(), evidence, tolerance=tolerance, proof="no_worse")
    assert (RefusalReason.WORSE in worse) == (high < -tolerance)
    assert (RefusalReason.WORSE in unproven) == (low < -tolerance)
    assert worse <= unproven


def test_a_figure_that_only_the_champion_has_is_worse() -> None:
    """A challenger that nothing can be said of must not slip through."""
    verdict = only(Rule.NO_WORSE, Comparison())
    assert not verdict.passed
    assert "unknown" in verdict.text
    unknown = evaluation(average_precision=None)
    assert not grounds(unknown, evaluation())


def test_without_labels_the_rate_alone_decides() -> None:
    unlabelled = evaluation(anomalies=0, auroc=None, average_precision=None)
    assert not grounds(unlabelled, unlabelled)
    bad = replace(unlabelled, fpr=0.03, fpr_interval=(0.02, 0.04))
    assert grounds(unlabelled, bad) == {RefusalReason.TOO_MANY_FALSE_POSITIVES}


@pytest.mark.slow
def test_an_equal_challenger_is_seldom_refused_and_a_much_worse_one_nearly_always() -> None:
    """Two models that see the same signal under noise of their own."""
    rng, refused = np.random.default_rng(0), {0.0: 0, 3.0: 0}
    anomaly = np.arange(600) < 60
    for _ in range(40):
        signal = rng.normal(size=600) + 2 * anomaly
        old = signal + rng.normal(size=600)
        for noise in refused:
            new = signal + rng.normal(size=600) * np.hypot(1, noise)
            found = metric_change(old, new, anomaly, "average_precision", 0.95)
            old_found, new_found = evaluation(), evaluation()
            refused[noise] += RefusalReason.WORSE in grounds(
                old_found, new_found, Comparison(metric=found)
            )
    assert refused[0.0] <= 4
    assert refused[3.0] >= 36


# ---------------------------------------------------------------- the others


def test_rows_that_only_the_challenger_rejects_are_counted_against_it() -> None:
    evidence = replace(SAME, unscorable=UnscorableRows(3, "column 'age'"))
    verdict = only(Rule.SCORES_ALL, evidence)
    assert not verdict.passed
    assert verdict.text.startswith("3 rows of the frozen test split")
    assert "column 'age'" in verdict.text


def slice_change(figure: Any, low: float, high: float) -> SliceChange:
    return SliceChange("channel = chip", figure, 80, change(low, high), 0.01)


@pytest.mark.parametrize(
    ("figure", "low", "high", "passed"),
    [
        ("recall", -0.5, -0.1, False),
        ("recall", -0.14, -0.02, True),  # less than may be lost
        ("recall", -0.5, 0.0, True),  # chance explains it
        ("recall", 0.1, 0.5, True),
        ("fpr", 0.01, 0.05, False),
        ("fpr", 0.001, 0.012, True),  # less than alpha more
        ("fpr", 0.0, 0.05, True),
        ("fpr", -0.5, -0.1, True),
    ],
)
def test_a_slice_collapses_where_it_is_much_worse_beyond_chance(
    figure: str, low: float, high: float, passed: bool
) -> None:
    evidence = replace(SAME, slices=[slice_change(figure, low, high)])
    verdict = only(Rule.NO_SLICE_COLLAPSES, evidence)
    assert verdict.passed is passed
    assert ("channel = chip" in verdict.text) is not passed
    assert verdict.figures["compared"] == 1
    assert not grounds(evaluation(), evaluation(), evidence, slice_recall=None)


def test_flags_that_differ_too_often_are_a_ground_only_where_the_policy_says_so() -> None:
    found = Agreement("the traffic", 1_000, 0.9, 0.88, 0.92, 0.01, 0.11)
    evidence = replace(SAME, agreement=found)
    assert only(Rule.AGREES, evidence).passed
    assert only(Rule.AGREES, evidence, agreement=0.91).passed, "chance explains it"
    verdict = only(Rule.AGREES, evidence, agreement=0.95)
    assert not verdict.passed
    assert "0.9000 [0.8800, 0.9200] of 1,000 rows of the traffic" in verdict.text


def test_images_read_by_other_rules_judge_nobody() -> None:
    assert not only(Rule.READS_ALIKE, replace(SAME, reading="window 40")).passed


def test_a_graph_that_is_not_its_weights_is_refused() -> None:
    assert only(Rule.REPRODUCES, replace(SAME, parity=Parity(512, 1e-7))).passed
    assert not only(Rule.REPRODUCES, replace(SAME, parity=Parity(512, None, "differs"))).passed


@pytest.mark.parametrize(
    ("policy", "passed"),
    [
        ({"row_microseconds": 60}, True),
        ({"row_microseconds": 40}, False),
        ({"slowdown": 3}, True),
        ({"slowdown": 2}, False),
        ({"slowdown": 3, "row_microseconds": 40}, False),
    ],
)
def test_a_row_may_take_so_long_and_so_many_times_what_it_took(
    policy: dict[str, Any], passed: bool
) -> None:
    evidence = replace(SAME, costs=Costs(1.0, 50.0, 20.0))
    assert only(Rule.FAST_ENOUGH, evidence, **policy).passed is passed


def test_a_first_model_has_nobody_to_be_slower_than() -> None:
    evidence = Comparison(costs=Costs(1.0, 50.0))
    assert not grounds(None, evaluation(), evidence, slowdown=0.001)
    assert grounds(None, evaluation(), evidence, row_microseconds=1) == {RefusalReason.TOO_SLOW}


def test_a_bundle_may_have_so_many_bytes() -> None:
    evidence = replace(SAME, costs=Costs(2.0))
    assert only(Rule.SMALL_ENOUGH, evidence, megabytes=2).passed
    assert not only(Rule.SMALL_ENOUGH, evidence, megabytes=1.9).passed


def test_every_ground_is_told() -> None:
    bad = evaluation(fpr=0.03, fpr_interval=(0.02, 0.04), auroc=0.4, ks=0.5, ks_p_value=1e-99)
    evidence = Comparison(
        unscorable=UnscorableRows(1, "x"),
        single_features=[single_feature(1.0)],
        metric=WORSE.metric,
        slices=[slice_change("recall", -0.5, -0.4)],
        agreement=Agreement("the traffic", 10, 0.1, 0.0, 0.2, 0, 1),
        reading="window 40",
        seen_test="it may have been trained on them",
        parity=Parity(1, None, "differs"),
        costs=Costs(9.0, 50.0, 20.0),
    )
    policy = {"agreement": 0.9, "slowdown": 1, "megabytes": 1}
    assert grounds(evaluation(), bad, evidence, **policy) == set(RefusalReason)


# ---------------------------------------------------------------- leaks, and chance


def single_feature(auroc: float, name: str = "TX_FRAUD_SCENARIO") -> SingleFeatureAUROC:
    return SingleFeatureAUROC(name, "column", auroc, auroc - 0.01)


def test_a_feature_that_reveals_the_label_refuses_even_the_first_model() -> None:
    features = [single_feature(0.995), single_feature(0.7, "TX_AMOUNT")]
    evidence = replace(SAME, single_features=features)
    assert grounds(None, evaluation(), evidence) == {RefusalReason.LEAKS}
    found = only(Rule.NO_LEAK, evidence)
    feature = {"feature": "TX_FRAUD_SCENARIO", "kind": "column"}
    assert found.figures == {"auroc": 0.995, "limit": 0.99, **feature}
    for word in ("TX_FRAUD_SCENARIO", "0.9950", "data.ignore", "--force"):
        assert word in found.text


def test_features_that_reveal_the_label_together_refuse_a_model() -> None:
    together = SingleFeatureAUROC("'stolen', 'cloned'", "columns", 1.0, 1.0)
    found = only(Rule.NO_LEAK, replace(SAME, single_features=[together]))
    assert not found.passed
    assert "features 'stolen', 'cloned' mark anomalies together: AUROC 1.0000" in found.text


def test_a_good_feature_is_no_leak_and_the_limit_can_be_set() -> None:
    evidence = replace(SAME, single_features=[single_feature(0.98)])
    found = only(Rule.NO_LEAK, evidence)
    assert found.passed
    assert "data.ignore" not in found.text
    assert grounds(None, evaluation(), evidence, leak_auroc=0.97) == {RefusalReason.LEAKS}
    perfect = Comparison(single_features=[single_feature(1.0)])
    assert not grounds(None, evaluation(), perfect, leak_auroc=None)


def test_a_model_that_ranks_below_chance_is_refused() -> None:
    below = evaluation(auroc=0.42)
    assert grounds(None, below) == {RefusalReason.BELOW_CHANCE}
    (found,) = (v for v in decide(None, below, POLICY) if not v.passed)
    assert "AUROC 0.4200 on the frozen test split is below 0.5" in found.text
    assert not grounds(None, evaluation(auroc=0.5))
    assert not grounds(None, evaluation(auroc=None)), "without labels there is no AUROC"


def test_reasons_name_the_rows_they_were_found_on() -> None:
    bad = evaluation(fpr=0.03)
    evidence = replace(WORSE, test="version 1's test split", unscorable=UnscorableRows(1, "x"))
    failed = [v for v in decide(evaluation(), bad, POLICY, evidence) if not v.passed]
    assert len(failed) == 3
    assert all("version 1's test split" in verdict.text for verdict in failed)


def test_an_evaluation_survives_json() -> None:
    for one in (evaluation(), evaluation(fpr=None, fpr_interval=None, auroc=None)):
        assert Evaluation.from_json(one.to_json()) == one
