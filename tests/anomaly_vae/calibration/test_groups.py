"""Thresholds by group, by weight and after trimming: ranks and simulated guarantees."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from anomaly_vae.artifacts.bundle import CALIBRATION, Bundle, from_files, load_bundle
from anomaly_vae.calibration.conformal import (
    Calibration,
    Groups,
    calibrate,
    effective_rows,
    weighted_p_values,
)
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config import validate_config
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import TEST
from anomaly_vae.errors import BundleError, CalibrationError, ConfigError
from anomaly_vae.scoring.detector import Detections, Detector
from pipelines.datasets.dataset import Dataset
from tests.support.calibration_samples import few_refits
from tests.support.naive import weighted_p_value

__all__ = ["few_refits"]

SEEDS = st.integers(0, 2**32 - 1)
COLUMN = "TX_CHANNEL"
NAMES = ("a", "b", "few")


def wish(method: str = "conformal", **keys: Any) -> CalibrationConfig:
    return CalibrationConfig.model_validate({"method": method, "alpha": 0.05, **keys})


def grouped(seed: int, n: int = 600, **known: Any) -> CalibrationSample:
    """Return rows of a narrow group, a wide group, a small group, and without a group."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([0, 1, 2, -1], n, p=[0.6, 0.3, 0.01, 0.09]).astype(np.int32)
    scores = rng.gumbel(size=n) * np.where(codes == 1, 3, 1)
    return CalibrationSample.from_scores(scores, levels=Levels(codes, NAMES), **known)


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize("method", ["conformal", "certified", "quantile", "evt"])
def test_each_group_is_calibrated_as_if_there_were_no_other(method: str) -> None:
    given_, alone = grouped(0, 4_000), wish(method, alpha=0.02)
    found = choose_threshold(given_, wish(method, alpha=0.02, group_by="kind"))
    assert found.groups
    assert found.groups.column == "kind"
    assert sorted(found.groups.by_level) == ["a", "b"]
    assert given_.levels
    for code, name in enumerate(("a", "b")):
        expected = choose_threshold(
            CalibrationSample.from_scores(given_.normal[given_.levels.codes == code]), alone
        )
        own = found.groups.by_level[name]
        assert own.threshold == expected.threshold
        assert own.figures == expected.figures
        np.testing.assert_array_equal(own.scores, expected.scores)
    everybody = choose_threshold(CalibrationSample.from_scores(given_.normal), alone)
    assert found.threshold == everybody.threshold
    np.testing.assert_array_equal(found.scores, everybody.scores)


def test_groups_of_too_few_rows_are_told_with_what_becomes_of_them() -> None:
    given_ = grouped(1)
    figures = choose_threshold(given_, wish(group_by="kind")).figures
    assert given_.levels
    assert figures["small_groups"] == {"few": int((given_.levels.codes == 2).sum())}
    assert figures["ungrouped"] == int((given_.levels.codes == -1).sum())
    assert "too few rows for a separate threshold in 'few'" in figures["note"]


def test_no_group_with_rows_enough_is_refused_with_the_number() -> None:
    levels = Levels(np.arange(60, dtype=np.int32) % 30, tuple(map(str, range(30))))
    with pytest.raises(CalibrationError) as caught:
        choose_threshold(
            CalibrationSample.from_scores(np.arange(60.0), levels=levels), wish(group_by="kind")
        )
    assert str(caught.value).startswith(
        "calibration.group_by: no level of 'kind' has the 19 normal calibration rows that a "
        "separate threshold needs; the largest, '0', has 2. Give more rows"
    )
    missing = Levels(np.full(60, -1, np.int32), ())
    with pytest.raises(CalibrationError, match="no level of 'kind'"):
        choose_threshold(
            CalibrationSample.from_scores(np.arange(60.0), levels=missing), wish(group_by="kind")
        )


@pytest.mark.parametrize("method", ["budget", "cost", "fbeta", "recall_at_precision"])
def test_methods_of_traffic_and_labels_have_no_groups(method: str) -> None:
    keys = {"budget": {"per_1000": 5}, "cost": {"costs": {"review": 1}}}.get(method, {})
    for key, value in {"group_by": "kind", "trim_scores": 0.1, "density_ratio": "w"}.items():
        content = {"name": "x", "data": {"path": "x"}, "calibration": {"method": method, **keys}}
        content["calibration"][key] = value  # type: ignore[index]
        with pytest.raises(ConfigError, match=f"method {method} has no {key}"):
            validate_config(content)


@pytest.mark.slow
def test_the_promise_holds_in_each_group_and_would_not_without() -> None:
    """Simulate 2,000 calibrations of 600 rows with known false positive rates."""
    config, trials = wish(group_by="kind"), 2_000
    rates = np.empty((trials, 3))
    for trial in range(trials):
        found = choose_threshold(grouped(trial), config)
        assert found.groups
        narrow, wide = (found.groups.by_level[name].threshold for name in ("a", "b"))
        rates[trial] = [gumbel(narrow), gumbel(wide / 3), gumbel(found.threshold / 3)]
    error = 3 * rates.std(0) / math.sqrt(trials)
    assert (rates.mean(0)[:2] <= 0.05 + error[:2]).all()
    assert (rates.mean(0)[:2] > 0.04).all(), "no more careful than it must be"
    assert rates.mean(0)[2] > 0.1, "the wide group under the threshold of all rows"


def gumbel(t: float) -> float:
    """Return P(Gumbel > t)."""
    return -math.expm1(-math.exp(-t))


# ---------------------------------------------------------------- decisions


@pytest.fixture(scope="module")
def by_channel(bundle: Bundle, dataset: Dataset) -> Bundle:
    """The small model with thresholds for the channels that have 40 calibration rows."""
    rows = dataset.batch.take(dataset.calibration_rows)
    x = bundle.scorer.encoding.encode(rows)
    levels = bundle.scorer.encoding.levels(COLUMN, x)  # type: ignore[union-attr]
    given_ = CalibrationSample.from_scores(bundle.scorer.score_encoded(x), levels=levels)
    return bundle.calibrated(choose_threshold(given_, wish(alpha=0.025, group_by=COLUMN)), None)


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> RawBatch:
    return dataset.part(TEST)


def naive(detector: Detector, rows: RawBatch) -> list[tuple[float, bool, str | None, float]]:
    """Decide row by row, by the name of the row's channel."""
    groups, channel = detector.calibration.groups, rows.values[COLUMN]
    assert groups
    assert isinstance(channel, Levels)
    found = []
    for score, code in zip(detector.scorer.score(rows), channel.codes, strict=True):
        name = channel.names[code] if code >= 0 else None
        own = groups.by_level.get(name or "")
        one = own or detector.calibration
        group = name if own else None
        found.append((float(one.p_values(score)), bool(one.flags(score)), group, one.threshold))
    return found


def answers(found: Detections) -> list[tuple[float, bool, str | None, float]]:
    assert found.group is not None
    assert found.threshold is not None
    columns = found.p_value, found.is_anomaly, found.group, found.threshold
    return list(zip(*(one.tolist() for one in columns), strict=True))


def test_each_row_is_decided_by_its_own_group(by_channel: Bundle, rows: RawBatch) -> None:
    found = by_channel.detector.detect(rows)
    assert answers(found) == naive(by_channel.detector, rows)
    assert {None, "chip", "online"} < set(found.group.tolist())  # type: ignore[union-attr]
    np.testing.assert_array_equal(found.is_anomaly, found.score > found.threshold)
    np.testing.assert_array_equal(found.is_anomaly, found.p_value <= 0.025)


def test_missing_and_unseen_levels_are_decided_by_all_rows(by_channel: Bundle) -> None:
    records = [{**by_channel.example, COLUMN: level} for level in (None, "pigeon", "chip")]
    batch = by_channel.scorer.schema.from_records(records)
    found = by_channel.detector.detect(batch)
    assert found.group is not None
    assert found.group.tolist() == [None, None, "chip"]
    everybody = replace(by_channel.detector.calibration, groups=None)
    np.testing.assert_array_equal(found.p_value[:2], everybody.p_values(found.score[:2]))


def test_explained_and_alone_a_row_is_decided_the_same(by_channel: Bundle, rows: RawBatch) -> None:
    together = answers(by_channel.detector.detect(rows))
    explained, _ = by_channel.detector.detect_and_explain(rows, 2)
    assert [one[2:] for one in answers(explained)] == [one[2:] for one in together]
    alone = [by_channel.detector.detect(rows.take(np.array([i]))) for i in range(20)]
    assert answers(Detections.concatenate(alone)) == together[:20]


def test_decisions_are_cut_and_joined_with_their_groups(by_channel: Bundle, rows: RawBatch) -> None:
    found = by_channel.detector.detect(rows)
    halves = found.part(slice(0, 100)), found.part(slice(100, None))
    assert answers(Detections.concatenate(halves)) == answers(found)
    assert answers(found.part(found.is_anomaly)) == [a for a in answers(found) if a[1]]


def test_no_rows_have_no_groups(by_channel: Bundle, rows: RawBatch) -> None:
    nothing = by_channel.detector.detect(rows.take(np.array([], int)))
    assert answers(nothing) == []


def test_a_bit_groups_rows_too(bundle: Bundle, dataset: Dataset, rows: RawBatch) -> None:
    night, x = "TX_DURING_NIGHT", bundle.scorer.encoding.encode(rows)
    levels = bundle.scorer.encoding.levels(night, x)  # type: ignore[union-attr]
    expected = np.nan_to_num(np.asarray(rows.values[night]), nan=-1).astype(int)
    np.testing.assert_array_equal(levels.codes, expected)
    assert levels.names == ("0", "1")


def test_a_detector_without_groups_names_none(calibrated: Bundle, rows: RawBatch) -> None:
    found = calibrated.detector.detect(rows)
    assert found.group is found.threshold is None
    assert found.part(slice(3)).group is None


# ---------------------------------------------------------------- in the bundle


def test_groups_and_weights_are_saved_and_loaded(by_channel: Bundle, rows: RawBatch) -> None:
    again = from_files(by_channel.files)
    assert again.digest == by_channel.digest
    assert answers(again.detector.detect(rows)) == answers(by_channel.detector.detect(rows))
    weighted = replace(
        by_channel.detector.calibration, weights=np.linspace(0.5, 1, 295), groups=None
    )
    weighted = replace(weighted, scores=weighted.scores[:295])
    stored = from_files(by_channel.calibrated(weighted, None).files).calibration
    assert stored
    assert stored.groups is None
    np.testing.assert_array_equal(stored.weights, weighted.weights)
    np.testing.assert_array_equal(stored.p_values([0, 30]), weighted.p_values([0, 30]))


def test_a_bundle_without_them_is_as_it_was(calibrated: Bundle, tmp_path: Any) -> None:
    assert set(calibrated.manifest["calibration"]) == {
        "method", "alpha", "threshold", "n", "figures"
    }  # fmt: skip
    assert b'"scores"' in calibrated.files[CALIBRATION]
    assert b"weights" not in calibrated.files[CALIBRATION]
    stored = load_bundle(calibrated.save(tmp_path / "bundle")).calibration
    assert stored
    assert stored.weights is stored.groups is None


@pytest.mark.parametrize("level", ["a/b", "", "weights", "ü \n"])
def test_a_level_may_be_called_anything(calibrated: Bundle, level: str) -> None:
    own = calibrate(np.arange(50.0), 0.05)
    pooled = replace(calibrate(np.arange(90.0), 0.05), groups=Groups(COLUMN, {level: own}))
    stored = from_files(calibrated.calibrated(pooled, None).files).calibration
    assert stored
    assert stored.groups
    np.testing.assert_array_equal(stored.groups.by_level[level].scores, own.scores)
    np.testing.assert_array_equal(stored.scores, pooled.scores)


def test_a_group_without_its_scores_is_refused(by_channel: Bundle) -> None:
    tensors = load_tensors(by_channel.files[CALIBRATION])
    del tensors["scores/chip"]
    with pytest.raises(BundleError, match=r"calibration.safetensors and manifest.json disagree"):
        from_files({**by_channel.files, CALIBRATION: save_tensors(tensors)})


# ---------------------------------------------------------------- weights


def weights_of(seed: int, n: int, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted scores and their weights."""
    rng = np.random.default_rng(seed)
    return np.sort(np.round(rng.normal(size=n), 1 if tied else 15)), rng.exponential(size=n)


@given(SEEDS, st.integers(1, 60), st.booleans())
def test_weighted_p_values_are_those_of_the_formula(seed: int, n: int, tied: bool) -> None:
    scores, weights = weights_of(seed, n, tied)
    around = np.r_[scores, -9, 9, 0.05, np.nan]
    found = Calibration("conformal", 0.1, 0, scores, weights=weights).p_values(around)
    worst = np.nan_to_num(around, nan=math.inf).tolist()
    expected = [weighted_p_value(scores.tolist(), weights.tolist(), one) for one in worst]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@given(SEEDS, st.integers(1, 60), st.floats(0.1, 10))
def test_equal_weights_are_none(seed: int, n: int, each: float) -> None:
    scores, _ = weights_of(seed, n, False)
    weighted = Calibration("conformal", 0.1, 0, scores, weights=np.full(n, each))
    plain = Calibration("conformal", 0.1, 0, scores)
    np.testing.assert_allclose(weighted.p_values(scores), plain.p_values(scores), rtol=1e-12)
    assert effective_rows(np.full(n, each)) == pytest.approx(n)


@given(SEEDS, st.integers(20, 200), st.booleans(), st.floats(0.15, 0.6))
def test_a_weighted_row_is_flagged_exactly_when_its_p_value_is_at_most_alpha(
    seed: int, n: int, tied: bool, alpha: float
) -> None:
    scores, weights = weights_of(seed, n, tied)
    given_ = CalibrationSample.from_scores(scores, weights=np.minimum(weights, 1))
    found = choose_threshold(given_, wish(alpha=alpha, density_ratio="w"))
    around = np.r_[scores, np.nextafter(scores, 9), found.threshold, -9, 9]
    np.testing.assert_array_equal(found.flags(around), found.p_values(around) <= alpha)
    assert found.flags(9)


def test_the_order_of_weights_is_that_of_their_rows() -> None:
    found = CalibrationSample.from_scores(
        [3, 1, 2], weights=[30, 10, 20], levels=Levels(np.array([2, 0, 1]), NAMES)
    )
    assert found.weights is not None
    assert found.levels
    assert found.weights.tolist() == [10, 20, 30]
    assert found.levels.codes.tolist() == [0, 1, 2]


def test_weights_that_do_not_resolve_alpha_say_what_they_are_worth() -> None:
    weights = np.r_[np.ones(99), 50]
    with pytest.raises(CalibrationError) as caught:
        choose_threshold(
            CalibrationSample.from_scores(np.arange(100.0), weights=weights),
            wish(density_ratio="w"),
        )
    assert str(caught.value) == (
        "alpha 0.05 needs weights that add up to 19 times the largest; those of the 100 normal "
        "calibration rows add up to 2.98 times theirs, and are worth 8.542 rows; give more rows or "
        "raise alpha to 0.2513"
    )
    assert weighted_p_values(weights)[-1] <= 0.2513


@pytest.mark.parametrize("scale", [0, 1e-300, 1e300])
def test_weights_of_any_size_are_weighed(scale: float) -> None:
    given_ = CalibrationSample.from_scores(np.arange(100.0), weights=np.full(100, scale))
    if scale:
        assert choose_threshold(given_, wish(density_ratio="w")).figures["effective_rows"] == 100
        return
    with pytest.raises(CalibrationError, match="add up to 0 times theirs, and are worth 0 rows"):
        choose_threshold(given_, wish(density_ratio="w"))


def test_the_figures_say_what_weighted_rows_are_worth() -> None:
    weights = np.tile([0.5, 1.5], 100)
    found = choose_threshold(
        CalibrationSample.from_scores(np.arange(200.0), weights=weights), wish(density_ratio="w")
    )
    assert found.figures["effective_rows"] == pytest.approx(160)
    assert found.figures["largest_weight"] == 1.5


def test_groups_take_their_weights_with_them() -> None:
    given_ = grouped(2, weights=np.random.default_rng(0).uniform(0.5, 1, 600))
    found = choose_threshold(given_, wish(group_by="kind", density_ratio="w"))
    assert found.groups
    assert given_.levels
    assert given_.weights is not None
    own = given_.weights[given_.levels.codes == 1]
    np.testing.assert_array_equal(found.groups.by_level["b"].weights, own)


@pytest.mark.slow
def test_the_promise_of_weights_holds_in_traffic_and_would_not_without() -> None:
    """Simulate 1,500 calibrations of uniform x, with density 0.1 + 1.8x in traffic."""
    rng, trials = np.random.default_rng(3), 1_500
    x = (np.arange(1_000) + 0.5) / 1_000
    rates = np.empty((trials, 2))
    for trial in range(trials):
        seen = rng.random(500)
        scores = 4 * seen + rng.exponential(size=500)
        weighted = choose_threshold(
            CalibrationSample.from_scores(scores, weights=0.1 + 1.8 * seen), wish(density_ratio="w")
        )
        both = (
            weighted.threshold,
            choose_threshold(CalibrationSample.from_scores(scores), wish()).threshold,
        )
        rates[trial] = [((0.1 + 1.8 * x) * np.exp(-np.maximum(t - 4 * x, 0))).mean() for t in both]
    mean, error = rates.mean(0), 3 * rates.std(0) / math.sqrt(trials)
    assert 0.04 < mean[0] <= 0.05 + error[0]
    assert mean[1] > 0.06


# ---------------------------------------------------------------- trim


def test_trimmed_rows_are_the_highest_and_count_no_more() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(size=1_000)
    found = choose_threshold(CalibrationSample.from_scores(scores), wish(trim_scores=0.03))
    kept = choose_threshold(CalibrationSample.from_scores(np.sort(scores)[:970]), wish())
    assert found.threshold == kept.threshold
    np.testing.assert_array_equal(found.scores, kept.scores)
    assert found.figures["trimmed"] == 30
    assert found.figures["alpha_if_clean"] == pytest.approx((30 + 48) / 1_001)
    assert found.figures["note"] == (
        "calibration.trim_scores left out the 30 highest of 1000 rows: alpha 0.05 holds if all of "
        "these were anomalies, and 0.0779 in its place if none was"
    )


def test_what_is_left_after_trimming_has_to_resolve_alpha() -> None:
    with pytest.raises(CalibrationError, match="needs 19 normal calibration rows, there are 18"):
        choose_threshold(CalibrationSample.from_scores(np.arange(20.0)), wish(trim_scores=0.1))


def test_trimming_less_than_a_row_is_none() -> None:
    figures = choose_threshold(
        CalibrationSample.from_scores(np.arange(50.0)), wish(trim_scores=0.01)
    ).figures
    assert figures == {}


def test_rows_are_trimmed_by_group() -> None:
    given_ = grouped(5)
    found = choose_threshold(given_, wish(group_by="kind", trim_scores=0.1))
    assert found.groups
    assert given_.levels
    n = int((given_.levels.codes == 1).sum())
    assert len(found.groups.by_level["b"].scores) == n - math.floor(0.1 * n)
    assert found.groups.by_level["b"].figures["trimmed"] == math.floor(0.1 * n)


def test_weighted_rows_are_not_trimmed() -> None:
    with pytest.raises(ValueError, match="trim_scores counts rows, density_ratio weighs them"):
        wish(trim_scores=0.1, density_ratio="w")


# ---------------------------------------------------------------- configuration


def test_a_column_of_weights_is_no_feature() -> None:
    content: dict[str, Any] = {
        "name": "x", "data": {"path": "x", "ignore": ["a"]}, "calibration": {"density_ratio": "w"}
    }  # fmt: skip
    assert validate_config(content).data.ignore == ("a", "w")  # type: ignore[union-attr]
    content["data"]["ignore"] = ("w",)
    assert validate_config(content).data.ignore == ("w",)  # type: ignore[union-attr]
    del content["data"]["ignore"]
    assert validate_config(content).data.ignore == ("w",)  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["group_by", "density_ratio"])
def test_images_have_neither(key: str) -> None:
    content = {"kind": "image", "name": "x", "data": {"path": "x"}, "calibration": {key: "site"}}
    with pytest.raises(ConfigError, match=f"calibration.{key} names a column, and an image"):
        validate_config(content)
