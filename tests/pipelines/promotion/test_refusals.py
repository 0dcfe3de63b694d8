"""A refusal in words: what was compared, the numbers, and what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from anomaly_vae.lifecycle.promotion import Rule, RuleResult
from pipelines.promotion.refusals import refusal_in_words

FIGURES: dict[Rule, dict[str, Any]] = {
    Rule.KEEPS_ALPHA: {"fpr": 0.03, "low": 0.02, "high": 0.042, "limit": 0.018, "alpha": 0.01},
    Rule.EXCHANGEABLE: {"ks": 0.12, "ks_p_value": 1e-28, "limit": 0.03, "p_limit": 1e-15},
    Rule.UNSEEN_TEST: {},
    Rule.SCORES_ALL: {"lost": 3_000},
    Rule.NO_LEAK: {
        "auroc": 1.0, "feature": "TX_FRAUD_SCENARIO", "kind": "column", "limit": 0.99
    },
    Rule.ABOVE_CHANCE: {"auroc": 0.463, "limit": 0.5},
    Rule.NO_WORSE: {"champion": 0.6, "challenger": 0.45, "low": -0.2, "high": -0.1,
                    "difference": -0.15, "tolerance": 0.0, "proof": "worse"},
    Rule.NO_SLICE_COLLAPSES: {"compared": 9, "limit": 0.2, "collapsed": [
        {"slice": "channel = web", "figure": "recall", "rows": 60, "champion": 0.9,
         "challenger": 0.1},
        {"slice": "channel = chip", "figure": "fpr", "rows": 60, "champion": 0.01,
         "challenger": 0.2},
    ]},
    Rule.AGREES: {"of": "the traffic", "rows": 1_000, "share": 0.9, "low": 0.88, "high": 0.92,
                  "champion": 0.01, "challenger": 0.1, "limit": 0.99},
    Rule.READS_ALIKE: {},
    Rule.REPRODUCES: {"rows": 512, "error": 0.25},
    Rule.FAST_ENOUGH: {"microseconds": 900.0, "champion_microseconds": 300.0, "limit": 600.0},
    Rule.SMALL_ENOUGH: {"megabytes": 12.0, "limit": 10.0},
}  # fmt: skip
NUMBERS = {
    Rule.KEEPS_ALPHA: ("30 (20 to 42", "at most 10", "up to 18"),
    Rule.EXCHANGEABLE: ("12 of 100", "less than once in 1,000,000 times"),
    Rule.UNSEEN_TEST: ("may have learned",),
    Rule.SCORES_ALL: ("3,000",),
    Rule.NO_LEAK: ("'TX_FRAUD_SCENARIO'", "1,", "data.ignore"),
    Rule.ABOVE_CHANCE: ("46.3 of 100",),
    Rule.NO_WORSE: ("0.45 against 0.6", "between -0.2 and -0.1"),
    Rule.NO_SLICE_COLLAPSES: (
        "where channel = web, it finds 10 of 100 anomalies, the champion 90",
        "where channel = chip, it flags 20 of 100 normal rows, the champion 1",
    ),
    Rule.AGREES: ("90 of 100", "asks for 99.", "100, the champion 10"),
    Rule.READS_ALIKE: ("another way",),
    Rule.REPRODUCES: ("512", "0.25"),
    Rule.FAST_ENOUGH: ("900", "600"),
    Rule.SMALL_ENOUGH: ("12 MB", "10"),
}


def said(rule: Rule, **changes: Any) -> str:
    return refusal_in_words(RuleResult(rule, False, {**FIGURES[rule], **changes}, "…"))


@pytest.mark.parametrize("rule", list(Rule))
def test_every_refusal_has_its_numbers_and_a_remedy(rule: Rule) -> None:
    text = said(rule)
    found, _, remedy = text.partition(" To do: ")
    assert len(remedy) > 20
    assert all(number in text for number in NUMBERS[rule])
    assert found.endswith(".")
    assert remedy.endswith(".")
    assert not re.search(r"AUROC|average precision|recall of|p-value|\d[eE]-", found)


def test_a_chance_that_is_not_tiny_is_said() -> None:
    assert "about once in 2,000 times" in said(Rule.EXCHANGEABLE, ks_p_value=0.0005)


def test_a_metric_that_is_unknown_is_said() -> None:
    text = refusal_in_words(RuleResult(Rule.NO_WORSE, False, {"champion": 0.6}, "…"), "images")
    assert "is unknown" in text
    assert "0.6 of 1" in text
    assert "images" in text


def test_a_challenger_that_may_be_worse_is_not_called_worse() -> None:
    text = said(Rule.NO_WORSE, proof="no_worse", low=-0.2, high=0.1)
    assert "not shown to rank anomalies as well" in text


def test_scores_that_differ_by_an_unknown_amount_are_said() -> None:
    assert "differently from the model" in said(Rule.REPRODUCES, error=None)
