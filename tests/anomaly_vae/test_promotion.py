"""`decide`, alone: no registry, no model, only figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.detector import Detections
from anomaly_vae.evaluation import Evaluation, evaluate
from anomaly_vae.promotion import Policy, Why, decide

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
    assert decide(evaluation(), unlabelled, POLICY) == []
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
    alpha: float, low: float, lower: float, champion: bool
) -> None:
    low, lower = max(low, lower), min(low, lower)
    old = evaluation() if champion else None
    passes = not decide(old, evaluation(alpha=alpha, fpr_interval=(low, 1.0)), POLICY)
    if passes:
        assert not decide(old, evaluation(alpha=alpha, fpr_interval=(lower, 1.0)), POLICY)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_a_model_that_keeps_alpha_is_seldom_refused(alpha: float) -> None:
    """The interval's lower end exceeds a true rate of alpha in at most 2.5% of test splits."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        flags = rng.random(1_000) < alpha
        found = Detections(np.zeros(1_000), np.ones(1_000), flags)
        new = evaluate(found, np.zeros(1_000, bool), alpha, 0.0)
        refused += bool(decide(None, new, POLICY))
    assert refused <= 0.025 * 400 + 3 * np.sqrt(400 * 0.025)


def test_an_evaluation_survives_json() -> None:
    for one in (evaluation(), evaluation(fpr=None, fpr_interval=None, auroc=None)):
        assert Evaluation.from_json(one.to_json()) == one
