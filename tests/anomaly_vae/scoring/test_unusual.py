"""Rows unlike the training rows are reported, others at most at the rate alpha."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION
from anomaly_vae.errors import CalibrationError
from anomaly_vae.scoring.unusual import (
    TableTypicality,
    Tail,
    UnusualTest,
    fit_unusual_test,
    is_tested,
    learn_typicality,
    too_few,
)
from pipelines.datasets.dataset import Dataset


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw losses, rates and rows of four columns, a twentieth of whose values are missing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.05] = np.nan
    return rng.gamma(4, 2, count), rng.normal(size=count), x


def made(n: int, seed: int, alpha: float) -> UnusualTest:
    losses, rates, x = drawn(500, seed)
    missing = np.isnan(x).sum(1).astype(float)
    samples = (np.sort(values) for values in (losses, rates, missing))
    return UnusualTest.fit(TableTypicality(*samples, np.arange(4)), alpha, *drawn(n, seed + 1))


def test_false_alarms_keep_alpha_on_average() -> None:
    rates = []
    for seed in range(0, 400, 2):
        reasons = made(99, seed, 0.05).reasons(*drawn(200, seed + 100_000))
        rates.append(np.mean([reason is not None for reason in reasons]))
    assert np.mean(rates) <= 0.05 + 3 * np.std(rates) / np.sqrt(len(rates))


def test_each_property_has_its_reason() -> None:
    test = made(999, 0, 0.02)
    usual = np.zeros((1, 4), np.float32)
    loss, rate = np.array([8.0]), np.array([0.0])
    assert test.reasons(loss, rate, usual)[0] is None
    assert "expected ones" in test.reasons(np.array([0.001]), rate, usual)[0]
    assert "fit the model worse" in test.reasons(np.array([90.0]), rate, usual)[0]
    assert "farther" in test.reasons(loss, np.array([20.0]), usual)[0]
    assert "4 of 4 columns have no value" in test.reasons(loss, rate, usual * np.nan)[0]


def test_reported_rows_are_those_above_the_threshold() -> None:
    test, fresh = made(199, 3, 0.1), drawn(2_000, 9)
    surprises = test.typicality.surprises(*fresh)
    reported = np.array([reason is not None for reason in test.reasons(*fresh)])
    np.testing.assert_array_equal(reported, surprises > test.calibration.threshold)


def test_a_limit_is_the_largest_value_that_is_not_too_surprising() -> None:
    tail = Tail(np.arange(1.0, 100.0))
    for surprise in (0.0, 0.5, 2.0, 4.6, 7.0):
        limit = tail.limit(surprise)
        assert tail(np.array([limit]))[0] <= surprise + 1e-9
        assert tail(np.array([limit + 1 + 1e-6]))[0] > surprise


def test_any_missing_value_is_surprising_where_none_was_ever_missing() -> None:
    assert Tail(np.zeros(50))(np.array([1.0]))[0] > 100


@pytest.mark.parametrize("setting", [None, 0])
def test_null_and_zero_switch_the_test_off(setting: float | None) -> None:
    assert not is_tested(CalibrationConfig(unusual_alpha=setting), 10_000)


def test_too_few_rows_are_refused_only_if_alpha_was_given() -> None:
    assert not is_tested(CalibrationConfig(), 98)
    assert is_tested(CalibrationConfig(), 99)
    with pytest.raises(CalibrationError, match=r"unusual_alpha 0\.01 needs 99 .* there are 98"):
        is_tested(CalibrationConfig(unusual_alpha=0.01), 98)
    assert "raise it to 0.0102" in too_few(0.01, 98)


def test_a_model_reports_empty_rows_and_few_of_the_test_rows(
    calibrated: Bundle, dataset: Dataset
) -> None:
    scorer, parts = calibrated.scorer, dataset.part
    test = fit_unusual_test(
        CalibrationConfig(unusual_alpha=0.02),
        scorer.scored(parts(CALIBRATION)),
        lambda: learn_typicality(scorer, parts(TRAIN), parts(VALIDATION)),
    )
    assert test is not None
    x = scorer.encoding.encode(parts(TEST))
    reasons = test.reasons(*scorer.scores_and_terms(x)[1], x)
    assert np.mean([reason is not None for reason in reasons]) < 0.1
    empty = np.full_like(x[:1], np.nan)
    terms = scorer.scores_and_terms(empty)[1]
    assert "columns have no value" in test.reasons(*terms, empty)[0]
    restored = UnusualTest.restore(test.summary(), test.tensors(), scorer.encoding)
    assert restored.reasons(*terms, empty).tolist()
