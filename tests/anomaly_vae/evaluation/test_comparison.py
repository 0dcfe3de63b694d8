"""Two models on the same rows: changes, and changes that chance explains."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_vae.data.converters import Levels
from anomaly_vae.evaluation.comparison import (
    TIMING_ROUNDS,
    agreement,
    cpu_seconds,
    flag_change,
    metric_change,
    slice_changes,
)


def flags(*counts: int) -> np.ndarray:
    """Return runs of False, True, False, … of the given lengths."""
    return np.repeat([index % 2 == 1 for index in range(len(counts))], counts)


# ---------------------------------------------------------------- ranking


@pytest.mark.parametrize(
    ("metric", "exact"),
    [("average_precision", average_precision_score), ("auroc", roc_auc_score)],
)
def test_the_figures_are_those_of_the_rows(metric: str, exact: object) -> None:
    rng = np.random.default_rng(0)
    anomaly = rng.random(300) < 0.1
    old, new = rng.normal(size=(2, 300)) + 2 * anomaly
    found = metric_change(old, new, anomaly, metric, 0.95)  # type: ignore[arg-type]
    assert found is not None
    assert found.champion == pytest.approx(exact(anomaly, old))  # type: ignore[operator]
    assert found.challenger == pytest.approx(exact(anomaly, new))  # type: ignore[operator]
    assert found.low <= found.value <= found.high


def test_the_same_scores_differ_by_nothing_whatever_the_draw() -> None:
    rng = np.random.default_rng(0)
    anomaly = rng.random(100) < 0.2
    scores = rng.normal(size=100)
    found = metric_change(scores, 2 * scores + 1, anomaly, "average_precision", 0.95)
    assert found is not None
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_models_that_err_on_the_same_rows_are_told_apart_sooner() -> None:
    """The draws are paired."""
    rng = np.random.default_rng(0)
    anomaly = np.arange(400) < 60
    scores = rng.normal(size=400) + 2 * anomaly
    twin = scores + 0.1 * rng.normal(size=400)
    other = rng.normal(size=400) + 2 * anomaly
    paired, apart = (
        metric_change(scores, x, anomaly, "average_precision", 0.95) for x in (twin, other)
    )
    assert paired is not None
    assert apart is not None
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_rows_of_one_kind_rank_nothing() -> None:
    scores = np.arange(5.0)
    for anomaly in (np.zeros(5, bool), np.ones(5, bool)):
        assert metric_change(scores, scores, anomaly, "auroc", 0.95) is None


# ---------------------------------------------------------------- flags


def test_only_rows_that_changed_sides_speak() -> None:
    """90 flags stay as they are; 8 of 10 that change are flagged now."""
    champion = np.concatenate([np.zeros(8, bool), np.ones(2, bool), np.zeros(90, bool)])
    challenger = np.concatenate([np.ones(8, bool), np.zeros(2, bool), np.zeros(90, bool)])
    found = flag_change(champion, challenger, 0.95)
    exact = binomtest(8, 10).proportion_ci(0.95, method="exact")
    assert found.value == pytest.approx(0.06)
    assert (found.low, found.high) == pytest.approx(
        ((2 * exact.low - 1) / 10, (2 * exact.high - 1) / 10)
    )


def test_flags_that_stay_leave_no_doubt() -> None:
    same = flags(5, 5)
    found = flag_change(same, same, 0.95)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_three_of_three_lost_prove_nothing_and_eight_of_eight_do() -> None:
    for rows, proven in ((3, False), (8, True)):
        found = flag_change(np.ones(rows, bool), np.zeros(rows, bool), 0.95)
        assert found.value == -1
        assert (found.high < 0) is proven


def test_a_customer_changes_sides_once() -> None:
    lost, kept = np.ones(12, bool), np.zeros(12, bool)
    one, twelve = np.zeros(12, int), np.arange(12)
    assert flag_change(lost, kept, 0.95, twelve).high < 0
    assert flag_change(lost, kept, 0.95, one).high > 0


@pytest.mark.slow
def test_chance_makes_a_slice_collapse_seldom_however_many_there_are() -> None:
    """Both flag at random at the same rate: any of 20 intervals misses 0 in at most 5% of runs."""
    rng, missed = np.random.default_rng(0), 0
    levels = Levels((np.arange(2_000) % 10).astype(np.int32), tuple("abcdefghij"))
    anomaly = np.arange(2_000) < 500
    for _ in range(200):
        old, new = rng.random((2, 2_000)) < 0.1
        found = slice_changes({"kind": levels}, old, new, anomaly, 0.01, 0.95)
        missed += any(one.change.low > 0 or one.change.high < 0 for one in found)
    assert len(found) == 20
    assert missed <= 0.05 * 200 + 3 * np.sqrt(200 * 0.05)


def test_a_level_that_is_lost_is_found_among_others_that_are_not() -> None:
    levels = Levels(np.repeat(np.array([0, 1, -1], np.int32), 100), ("chip", "web"))
    anomaly = np.tile(flags(80, 20), 3)
    old, new = anomaly.copy(), anomaly.copy()
    new[180:200] = False  # web's anomalies
    found = slice_changes({"channel": levels}, old, new, anomaly, 0.01, 0.95)
    assert {one.name for one in found} == {
        "channel = chip", "channel = web", "channel = (missing)"
    }  # fmt: skip
    collapsed = [one for one in found if one.collapsed(0.1)]
    assert [(one.name, one.figure, one.rows) for one in collapsed] == [
        ("channel = web", "recall", 20)
    ]
    assert "recall where channel = web goes from 1.0000 to 0.0000 (20 rows" in str(collapsed[0])


def test_agreement_counts_the_rows_that_both_flag_alike() -> None:
    found = agreement(flags(90, 10), flags(85, 15), "the traffic", 0.95)
    assert found is not None
    assert (found.rows, found.share) == (100, 0.95)
    assert (found.champion, found.challenger) == (0.1, 0.15)
    assert found.low < 0.95 < found.high
    assert agreement(flags(0), flags(0), "nothing", 0.95) is None


# ---------------------------------------------------------------- time


def test_models_take_turns() -> None:
    turns: list[str] = []
    taken = cpu_seconds([lambda: turns.append("a"), lambda: turns.append("b")])
    assert turns == ["a", "b"] * TIMING_ROUNDS
    assert all(seconds >= 0 for seconds in taken)
