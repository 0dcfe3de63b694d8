"""The test for an excess of high scores: its report, and its false alarms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly_vae.calibration.conformal import Scores
from anomaly_vae.calibration.contamination_test import REPORT_LEVEL, ContaminationTest
from anomaly_vae.calibration.contamination_test import contamination_test as compared
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config.calibration import CalibrationConfig


def excess(normal: Scores, held_out: Scores) -> ContaminationTest:
    """Compare scores directly."""
    return compared(normal, held_out, normal)


def sample(rng: np.random.Generator, n: int, odd: int = 0, digits: int = 15) -> Scores:
    return np.sort(np.round(np.r_[rng.gumbel(size=n - odd), rng.normal(8, 1, odd)], digits))


@pytest.mark.parametrize("digits", [15, 0])
def test_it_is_told_no_oftener_than_its_level_where_there_is_none(digits: int) -> None:
    """False alarms are rare in 400 pairs of samples of one distribution, with and without ties."""
    rng = np.random.default_rng(0)
    pairs = [(sample(rng, 300, 0, digits), sample(rng, 100, 0, digits)) for _ in range(400)]
    p_values = np.array([excess(*pair).p_value for pair in pairs])
    for level in (REPORT_LEVEL, 0.1, 0.5):
        error = 3 * math.sqrt(level * (1 - level) / len(p_values))
        assert np.mean(p_values <= level) <= level + error


def test_anomalies_that_only_calibrate_are_told_and_counted() -> None:
    rng = np.random.default_rng(1)
    found = excess(sample(rng, 2_000, 100), sample(rng, 600))
    assert found.p_value == 0.0001, "the smallest there is"
    assert found.share == pytest.approx(0.05, abs=0.01)
    assert 3 < found.above < 8
    assert "about 5" in found.note
    assert "calibration.trim_scores" in found.note


def test_anomalies_everywhere_are_not_seen() -> None:
    """A tenth of both samples is anomalous, so they are exchangeable all the same."""
    rng = np.random.default_rng(2)
    assert excess(sample(rng, 2_000, 200), sample(rng, 600, 60)).note == ""


def test_lower_scores_than_those_held_out_are_no_excess() -> None:
    rng = np.random.default_rng(3)
    found = excess(sample(rng, 500) - 5, sample(rng, 200))
    assert found.p_value > 0.5
    assert found.share == 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 1), (1, 5), (300, 2)])
def test_few_rows_tell_nothing(n: int, m: int) -> None:
    rng = np.random.default_rng(4)
    found = excess(sample(rng, n) + 100, sample(rng, m))
    assert found.p_value > REPORT_LEVEL
    assert 0 <= found.share <= 1


def test_equal_scores_tell_nothing() -> None:
    assert excess(np.ones(500), np.ones(200)).p_value == 1


def test_the_same_rows_say_the_same() -> None:
    rng = np.random.default_rng(5)
    pair = sample(rng, 500, 10), sample(rng, 200)
    assert excess(*pair) == excess(*pair)


def test_so_many_of_the_highest_scores_are_named_as_are_too_many() -> None:
    """The advice refers to scores, whatever values the rows were compared by."""
    rng = np.random.default_rng(7)
    found = compared(sample(rng, 2_000, 100), sample(rng, 600), np.arange(2_000.0))
    assert found.above == 2_000 - round(2_000 * found.share)
    nothing = compared(sample(rng, 500) - 5, sample(rng, 200), np.arange(500.0))
    assert nothing.above == 499


def test_it_is_among_the_figures_and_in_the_note() -> None:
    rng = np.random.default_rng(6)
    losses, scores = (sample(rng, 2_000, 100), sample(rng, 600)), np.arange(2_000.0)
    given = CalibrationSample.from_scores(scores, losses=losses)
    figures = choose_threshold(given, CalibrationConfig(alpha=0.05)).figures
    assert figures["contamination"] == compared(*losses, scores).to_json()
    assert figures["note"].startswith("calibration rows fit worse than held-out training rows")
    assert (
        "contamination"
        not in choose_threshold(
            CalibrationSample.from_scores(given.normal), CalibrationConfig()
        ).figures
    )
