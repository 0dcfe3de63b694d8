"""Enough rows are held out for the threshold, and enough are left to fit."""

import numpy as np
import pytest

from anomaly_vae.errors import (
    CalibrationError,
)
from anomaly_vae.estimators.arguments import configuration
from anomaly_vae.estimators.holdout import MIN_FIT, split
from anomaly_vae.estimators.tabular import CONFIG_KEYS, TabularVAEDetector
from tests.support.estimators import TINY, tiny


@pytest.mark.parametrize(
    ("rows", "alpha", "held"),
    [
        (1000, 0.05, 99),
        (780, 0.05, 59),
        (100, 0.05, 19),
        (50, 0.05, 19),
        (150, 0.01, 99),
        (104, 0.01, 99),
        (100_000, 0.05, 399),
        (100_000, 0.01, 1999),
    ],
)
def test_enough_rows_are_held_out_for_alpha(rows: int, alpha: float, held: int) -> None:
    arguments = TabularVAEDetector(alpha=alpha).get_params()
    config, parts = split(rows, configuration("tabular", CONFIG_KEYS, arguments), None)
    assert len(parts.calibration) == held
    again, same = split(rows, config, float(str(config.data.splits.calibration)))
    assert again == config
    assert all(map(np.array_equal, same, parts))
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert min(map(len, parts)) >= 1
    assert len(parts.train) + len(parts.validation) >= MIN_FIT


def test_a_warning_says_when_more_rows_calibrate_than_teach() -> None:
    X = np.random.default_rng(0).normal(size=(110, 2))
    with pytest.warns(UserWarning, match="takes 99 of the 110 rows .* only 11 are left to fit"):
        tiny(alpha=0.01).fit(X)


def test_too_few_rows_for_alpha_are_refused_with_the_remedy() -> None:
    X = np.random.default_rng(0).normal(size=(100, 2))
    with pytest.raises(
        CalibrationError, match=r"n_samples=100 .* give at least 104 rows"
    ) as raised:
        tiny(alpha=0.01).fit(X)
    assert isinstance(raised.value, ValueError)


def test_the_defaults_do_with_150_rows() -> None:
    X = np.random.default_rng(0).normal(size=(150, 2))
    detector = TabularVAEDetector(**TINY).fit(X)
    assert detector.bundle_.manifest["calibration"]["n"] == 99


def test_nearly_all_rows_may_be_held_out(X: np.ndarray) -> None:
    detector = tiny(calibration_fraction=0.9, validation_fraction=0.5).fit(X)
    splits = detector.bundle_.manifest["data"]["splits"]
    assert splits == {"train": 15, "validation": 15, "calibration": 270}
