"""Slices of columns: their rows, their figures, and limits that chance rarely exceeds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from anomaly_vae.calibration.conformal import Calibration, calibrate
from anomaly_vae.data.converters import Levels, as_levels
from anomaly_vae.evaluation.metrics import max_fpr_under_guarantee
from anomaly_vae.evaluation.slices import MAX_LEVELS, MIN_ROWS, ColumnSlice, column_slices
from anomaly_vae.scoring.detector import Detections

PROMISE = calibrate(np.arange(999.0), alpha=0.01)


def decide(scores: NDArray[np.float64], by: Calibration = PROMISE) -> Detections:
    return Detections(scores, by.p_values(scores), by.flags(scores))


def column(*sizes: int) -> Levels:
    """Return levels a, b, … with these numbers of rows."""
    codes = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    return Levels(codes, tuple("abcdefghijklmnopqrstuvwxyz"[: len(sizes)]))


def test_each_level_has_the_figures_of_its_rows() -> None:
    rng = np.random.default_rng(0)
    kinds, anomaly = column(300, 200), rng.random(500) < 0.2
    found = decide(rng.uniform(500, 1_100, 500))
    large, small = column_slices({"kind": kinds}, found, anomaly, PROMISE)
    assert [(s.name, s.rows) for s in (large, small)] == [("kind = a", 300), ("kind = b", 200)]
    rows = kinds.codes == 1
    assert small.anomalies == anomaly[rows].sum()
    assert small.fpr
    assert small.recall
    assert small.fpr.value == found.is_anomaly[rows & ~anomaly].mean()
    assert small.recall.value == found.is_anomaly[rows & anomaly].mean()
    expected = average_precision_score(anomaly[rows], found.score[rows])
    assert small.average_precision == pytest.approx(expected)


def test_missing_is_a_level_and_small_levels_are_none() -> None:
    codes = np.repeat([0, -1, 1], [80, 60, MIN_ROWS - 1]).astype(np.int32)
    slices = column_slices(
        {"kind": Levels(codes, ("a", "b"))},
        decide(np.zeros(len(codes))),
        np.zeros(len(codes), bool),
        PROMISE,
    )
    assert [(s.level, s.rows) for s in slices] == [("a", 80), (None, 60)]
    assert slices[1].name == "kind = (missing)"
    assert slices[0].recall is None
    assert slices[0].average_precision is None


def test_only_the_largest_levels_are_told() -> None:
    kinds = column(*(MIN_ROWS + i for i in range(MAX_LEVELS + 5)))
    rows = len(kinds)
    slices = column_slices({"k": kinds}, decide(np.zeros(rows)), np.zeros(rows, bool), PROMISE)
    sizes = [s.rows for s in slices]
    assert len(sizes) == MAX_LEVELS
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) == MIN_ROWS + 5


def test_zeros_and_ones_are_levels() -> None:
    levels = as_levels(np.array([0.0, 1.0, np.nan]))
    assert levels.codes.tolist() == [0, 1, -1]
    assert levels.names == ("0", "1")


def test_a_slice_that_is_flagged_more_than_chance_explains_has_drifted() -> None:
    scores, normal = np.zeros(400), np.zeros(400, bool)
    scores[200:240] = 2_000.0
    calm, drifted = column_slices({"k": column(200, 200)}, decide(scores), normal, PROMISE)
    assert not calm.drifted
    assert drifted.drifted


def test_limits_count_the_slices_and_the_groups() -> None:
    found, normal = decide(np.zeros(400)), np.zeros(400, bool)
    by_row = column_slices({"k": column(200, 200)}, found, normal, PROMISE)
    assert by_row[0].limit == max_fpr_under_guarantee(PROMISE, 200, 1 - 0.05 / 2)
    by_group = column_slices(
        {"k": column(200, 200)}, found, normal, PROMISE, group=np.arange(400) // 10
    )
    assert by_group[0].limit == max_fpr_under_guarantee(PROMISE, 20, 1 - 0.05 / 2)


@pytest.mark.slow
def test_kept_promises_seldom_have_a_slice_that_drifted() -> None:
    """One of ten slices of homogeneous rows exceeds its limit in few of 400 samples."""
    rng, drifted = np.random.default_rng(0), 0
    normal = np.zeros(2_000, bool)
    kinds = {"k": column(*[200] * 10)}
    for _ in range(400):
        promise = calibrate(rng.normal(size=500), alpha=0.05)
        slices = column_slices(kinds, decide(rng.normal(size=2_000), promise), normal, promise)
        drifted += any(s.drifted for s in slices)
    assert 0 < drifted / 400 <= 0.05


def test_json_and_back() -> None:
    anomaly = np.arange(120) < 10
    slices = column_slices({"k": column(60, 60)}, decide(np.arange(120.0)), anomaly, PROMISE)
    assert [ColumnSlice.from_json(json.loads(json.dumps(s.to_json()))) for s in slices] == slices
