"""`decide`, alone: no registry, no model, only figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.calibration import calibrate
from anomaly_vae.detector import Detections
from anomaly_vae.evaluation import Evaluation, evaluate
from anomaly_vae.promotion import Lost, Policy, Why, decide

POLICY = Policy("average_precision", 0.0)
shares = st.floats(0, 1)


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


def grounds(old: Evaluation | None, new: Evaluation, policy: Policy = POLICY) -> set[Why]:
    return {reason.why for reason in decide(old, new, policy)}


def test_a_first_model_that_keeps_alpha_is_promoted() -> None:
    assert decide(None, evaluation(), POLICY) == []


def test_an_equal_challenger_is_promoted() -> None:
    assert decide(evaluation(), evaluation(), POLICY) == []


def test_a_worse_challenger_is_refused_with_both_figures() -> None:
    (reason,) = decide(evaluation(), evaluation(average_precision=0.5), POLICY)
    assert reason.why is Why.WORSE
    assert "0.5000" in reason.text
    assert "0.6000" in reason.text


def test_the_metric_is_the_policys() -> None:
    worse_precision = evaluation(average_precision=0.5)
    assert decide(evaluation(), worse_precision, Policy("auroc", 0.0)) == []
    assert grounds(evaluation(), evaluation(auroc=0.8), Policy("auroc", 0.0)) == {Why.WORSE}


def test_a_rate_above_alpha_within_chance_is_no_ground() -> None:
    assert decide(None, evaluation(fpr=0.015, fpr_interval=(0.0099, 0.025)), POLICY) == []


def test_a_rate_above_alpha_beyond_chance_refuses_even_the_first_model() -> None:
    found = decide(None, evaluation(fpr=0.03, fpr_interval=(0.02, 0.042)), POLICY)
    assert [reason.why for reason in found] == [Why.TOO_MANY_FALSE_POSITIVES]
    assert "0.0300 [0.0200, 0.0420]" in found[0].text
    assert "alpha 0.01" in found[0].text


def test_every_ground_is_told() -> None:
    bad = evaluation(average_precision=0.1, fpr=0.03, fpr_interval=(0.02, 0.04))
    assert grounds(evaluation(), bad) == {Why.WORSE, Why.TOO_MANY_FALSE_POSITIVES}


def test_without_labels_the_rate_alone_decides() -> None:
    unlabelled = evaluation(anomalies=0, auroc=None, average_precision=None)
    assert decide(unlabelled, unlabelled, POLICY) == []
    bad = replace(unlabelled, fpr=0.03, fpr_interval=(0.02, 0.04))
    assert grounds(unlabelled, bad) == {Why.TOO_MANY_FALSE_POSITIVES}


@given(shares, shares, shares.filter(lambda t: t < 1))
def test_worse_means_below_the_champion_by_more_than_the_tolerance(
    old: float, new: float, tolerance: float
) -> None:
    champion, challenger = evaluation(average_precision=old), evaluation(average_precision=new)
    refused = bool(decide(champion, challenger, Policy("average_precision", tolerance)))
    assert refused == (new < old - tolerance)


@given(shares, shares)
def test_of_two_models_one_may_always_replace_the_other(first: float, second: float) -> None:
    one, other = evaluation(auroc=first), evaluation(auroc=second)
    policy = Policy("auroc", 0.0)
    assert not decide(one, other, policy) or not decide(other, one, policy)


@given(shares, shares, shares, st.booleans())
def test_a_lower_rate_is_never_refused_where_a_higher_one_passes(
    limit: float, one: float, other: float, champion: bool
) -> None:
    old = evaluation() if champion else None
    if not decide(old, evaluation(fpr_limit=limit, fpr=max(one, other)), POLICY):
        assert not decide(old, evaluation(fpr_limit=limit, fpr=min(one, other)), POLICY)


def test_a_figure_that_only_the_champion_has_is_worse() -> None:
    """A challenger that nothing can be said of must not slip through."""
    unknown = evaluation(average_precision=None)
    (reason,) = decide(evaluation(), unknown, POLICY)
    assert reason.why is Why.WORSE
    assert "unknown" in reason.text
    assert decide(unknown, evaluation(), POLICY) == []


def test_rows_that_only_the_challenger_rejects_are_counted_against_it() -> None:
    (reason,) = decide(evaluation(), evaluation(), POLICY, Lost(3, "column 'age'"))
    assert reason.why is Why.REJECTS_MORE
    assert reason.text.startswith("3 rows of the frozen test split")
    assert "column 'age'" in reason.text


def test_both_are_compared_on_the_rows_that_both_can_score() -> None:
    """Its figures on rows that the champion cannot score speak neither for nor against it."""
    old, hard, easy = (evaluation(average_precision=x) for x in (0.6, 0.5, 0.7))
    assert decide(old, hard, POLICY, shared=easy) == []
    assert [r.why for r in decide(old, easy, POLICY, shared=hard)] == [Why.WORSE]


def test_reasons_name_the_rows_they_were_found_on() -> None:
    bad = evaluation(average_precision=0.1, fpr=0.03)
    policy = replace(POLICY, test="version 1's test split")
    reasons = decide(evaluation(), bad, policy, Lost(1, "x"))
    assert len(reasons) == 3
    assert all("version 1's test split" in reason.text for reason in reasons)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_a_model_that_keeps_alpha_is_seldom_refused(alpha: float) -> None:
    """However few rows calibrated it: in at most 2.5% of splits."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        calibration = calibrate(rng.normal(size=150), alpha)
        scores = rng.normal(size=1_000)
        found = Detections(scores, np.ones(1_000), calibration.flags(scores))
        new = evaluate(found, np.zeros(1_000, bool), calibration)
        refused += bool(decide(None, new, POLICY))
    assert refused <= 0.025 * 400 + 3 * np.sqrt(400 * 0.025)


def test_an_evaluation_survives_json() -> None:
    for one in (evaluation(), evaluation(fpr=None, fpr_interval=None, auroc=None)):
        assert Evaluation.from_json(one.to_json()) == one
