"""Scores, decisions, explanations, latents and files of an estimator agree."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.errors import (
    BundleError,
    CalibrationError,
    NotCalibratedError,
)
from anomaly_vae.estimators.tabular import TabularVAEDetector
from tests.support.estimators import tiny


def test_the_parts_of_a_decision_agree(on_array: TabularVAEDetector, X: np.ndarray) -> None:
    score = on_array.anomaly_score(X)
    np.testing.assert_array_equal(on_array.score_samples(X), -score)
    np.testing.assert_array_equal(on_array.decision_function(X), -score - on_array.offset_)
    flagged = on_array.predict(X) == -1
    np.testing.assert_array_equal(flagged, score > -on_array.offset_)
    np.testing.assert_array_equal(flagged, on_array.p_values(X) <= on_array.alpha)
    np.testing.assert_array_equal(flagged, on_array.bundle_.detector.calibration.flags(score))


def test_a_score_at_the_threshold_is_normal(on_array: TabularVAEDetector, X: np.ndarray) -> None:
    """The threshold is a held-out row's score, which equality must not flag."""
    score = on_array.anomaly_score(X)
    at_threshold = np.flatnonzero(score == -on_array.offset_)
    assert len(at_threshold) == 1
    assert on_array.decision_function(X)[at_threshold] == 0
    assert on_array.predict(X)[at_threshold] == 1


def test_explanations_add_up_to_the_score(
    on_frame: TabularVAEDetector, frame: pd.DataFrame
) -> None:
    score = on_frame.anomaly_score(frame)
    for most in (2, None):
        sums = [
            sum(c.nats for c in e.contributions) + e.rest + e.kl
            for e in on_frame.explain(frame, most)
        ]
        np.testing.assert_allclose(sums, score, rtol=1e-5, atol=1e-5)


def test_the_share_of_normal_rows_flagged_is_alpha() -> None:
    """Mean over fits of the false positive rate ≤ alpha, within its Monte Carlo error."""
    rng = np.random.default_rng(2)
    rates = [
        np.mean(
            tiny(random_state=seed).fit(rng.normal(size=(60, 2))).predict(rng.normal(size=(500, 2)))
            < 0
        )
        for seed in range(25)
    ]
    assert np.mean(rates) <= 0.2 + 3 * np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) > 0.1


def test_the_same_seed_gives_the_same_bundle_and_another_seed_another(X: np.ndarray) -> None:
    digests = {tiny(random_state=seed).fit(X).bundle_.digest for seed in (3, 3, np.int64(3))}
    assert len(digests) == 1
    assert tiny(random_state=4).fit(X).bundle_.digest not in digests


def test_a_random_state_moves_on_between_fits(X: np.ndarray) -> None:
    state = np.random.RandomState(0)  # scikit-learn's convention
    assert tiny(random_state=state).fit(X).offset_ != tiny(random_state=state).fit(X).offset_


def test_an_unfitted_detector_says_so(X: np.ndarray, tmp_path: Path) -> None:
    for method in (tiny().calibrate, tiny().explain, tiny().save, tiny().sample):
        with pytest.raises(NotFittedError):
            method(X if method != tiny().save else tmp_path)


def test_calibrate_replaces_the_threshold_and_nothing_else(X: np.ndarray) -> None:
    detector = tiny().fit(X)
    before, weights = detector.offset_, detector.bundle_.weights
    fresh = X + np.array([0, 0, 1.0])
    assert detector.set_params(alpha=0.1).calibrate(fresh) is detector
    assert detector.offset_ != before
    assert detector.bundle_.weights == weights
    assert detector.p_values(fresh).min() == pytest.approx(2 / 301)  # itself and one
    assert np.mean(detector.predict(fresh) < 0) <= 0.1
    with pytest.raises(CalibrationError, match="needs 9 normal calibration rows, there are 5"):
        detector.calibrate(fresh[:5])


def test_transform_gives_latent_means_that_inverse_transform_decodes(
    on_array: TabularVAEDetector, X: np.ndarray
) -> None:
    z = on_array.transform(X)
    assert z.shape == (300, 2)
    assert z.dtype == np.float64
    back = on_array.inverse_transform(z)
    assert back.shape == X.shape
    np.testing.assert_allclose(back, expected(on_array, X), rtol=1e-4, atol=1e-4)


def expected(detector: TabularVAEDetector, X: np.ndarray) -> np.ndarray:
    """What the scoring graph says that it expects, in units of X."""
    scorer = detector.bundle_.scorer
    table = pa.table(dict(zip(("x0", "x1", "x2"), X.T, strict=True)))
    explained = scorer.explain(scorer.schema.from_arrow(table))
    return np.transpose(scorer.encoding.decode(explained.expected))


def test_samples_repeat_by_seed(on_array: TabularVAEDetector) -> None:
    np.testing.assert_array_equal(on_array.sample(3), on_array.sample(3))
    assert not np.array_equal(on_array.sample(3), on_array.sample(3, random_state=1))


def test_save_and_load_keep_scores_decisions_and_arguments(
    on_frame: TabularVAEDetector, frame: pd.DataFrame, tmp_path: Path
) -> None:
    loaded = TabularVAEDetector.load(on_frame.save(tmp_path / "bundle"))
    assert loaded.bundle_.digest == on_frame.bundle_.digest
    assert loaded.offset_ == on_frame.offset_
    assert list(loaded.feature_names_in_) == list(on_frame.feature_names_in_)
    for name in ("alpha", "epochs", "score_type", "latent_dim", "random_state"):
        assert loaded.get_params()[name] == on_frame.get_params()[name]
    np.testing.assert_array_equal(loaded.p_values(frame), on_frame.p_values(frame))
    assert clone(loaded).fit(frame).bundle_.weights == on_frame.bundle_.weights


def test_a_bundle_split_by_dates_can_be_calibrated(
    on_array: TabularVAEDetector, X: np.ndarray, tmp_path: Path
) -> None:
    manifest = copy.deepcopy(dict(on_array.bundle_.manifest))
    manifest["config"]["data"]["splits"]["calibration"] = ["2024-01-01", "2024-02-01"]
    folder = dataclasses.replace(on_array.bundle_, manifest=manifest).save(tmp_path / "bundle")
    assert TabularVAEDetector.load(folder).calibrate(X).bundle_.calibration is not None


def test_what_is_saved_is_a_bundle_for_everyone(
    on_array: TabularVAEDetector, tmp_path: Path
) -> None:
    bundle = load_bundle(on_array.save(tmp_path / "bundle"))
    assert bundle.detector.calibration.threshold == -on_array.offset_


def test_a_bundle_of_another_kind_is_refused(on_array: TabularVAEDetector, tmp_path: Path) -> None:
    manifest = {**on_array.bundle_.manifest, "kind": "image"}
    folder = dataclasses.replace(on_array.bundle_, manifest=manifest).save(tmp_path / "bundle")
    with pytest.raises(BundleError):
        TabularVAEDetector.load(folder)


@pytest.mark.parametrize("through", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy])
def test_pickle_and_deepcopy_keep_a_fitted_detector(
    on_array: TabularVAEDetector,
    X: np.ndarray,
    through: Callable[[TabularVAEDetector], TabularVAEDetector],
) -> None:
    on_array.predict(X)  # a session that cannot be pickled is open now
    same = through(on_array)
    np.testing.assert_array_equal(same.p_values(X), on_array.p_values(X))
    assert same.bundle_.digest == on_array.bundle_.digest
    assert pickle.loads(pickle.dumps(tiny())).get_params() == tiny().get_params()


def test_an_estimator_says_why_a_row_is_unusual() -> None:
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 3)), columns=list("abc"))
    detector = tiny(unusual_alpha=0.05).fit(rows)
    assert detector.unusual_input(rows)[:50].tolist().count(None) > 40
    empty = pd.DataFrame({name: [np.nan] for name in rows})
    assert detector.unusual_input(empty)[0] == "3 of 3 columns have no value, where none is usual"
    again = detector.calibrate(rows[:40]).bundle_.manifest["unusual"]
    assert again == {"alpha": 0.05, "n": 40}


def test_too_few_rows_are_refused_if_unusual_alpha_is_given_else_not_tested() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 2))
    with pytest.raises(CalibrationError, match=r"unusual_alpha 0\.01 needs 99"):
        tiny(unusual_alpha=0.01).fit(rows)
    for untested in (tiny().fit(rows), tiny(unusual_alpha=0).fit(rows)):
        with pytest.raises(NotCalibratedError, match="no test for unusual rows"):
            untested.unusual_input(rows)


def test_calibrating_a_detector_without_the_test_learns_it_from_half_of_the_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 2))
    detector = tiny().fit(rows[:100])
    assert detector.calibrate(rows).bundle_.manifest["unusual"] == {"alpha": 0.01, "n": 150}


def test_calibrating_a_model_of_an_older_version_adds_the_test(fixtures: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({
        "TX_AMOUNT": rng.gamma(2, 20, 300),
        "TX_DATETIME": pd.date_range("2024-03-01", periods=300, freq="h"),
        "TX_DURING_NIGHT": rng.integers(2, size=300),
        "TX_CHANNEL": rng.choice(["chip", "online"], 300),
    })  # fmt: skip
    loaded = TabularVAEDetector.load(fixtures / "format-1" / "table")
    assert loaded.get_params()["unusual_alpha"] is None
    assert loaded.calibrate(rows).bundle_.manifest["unusual"] == {"alpha": 0.01, "n": 150}
    untested = loaded.set_params(unusual_alpha=0).calibrate(rows)
    assert "unusual" not in untested.bundle_.manifest
