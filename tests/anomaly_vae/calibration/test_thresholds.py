"""All methods of choosing a threshold have common properties."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_vae.calibration.conformal import Scores, calibrate
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import METHODS, choose_threshold, rows_needed
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.errors import CalibrationError
from tests.support.calibration_samples import SEEDS, WISHES, chosen, evidence, few_refits, wish

__all__ = ["few_refits"]

RANKS = [name for name in WISHES if name != "evt"]
"""Methods that use only the order of the scores."""
ALPHA = [name for name in RANKS if "alpha" in WISHES[name]]


def changed(given_: CalibrationSample, change: Any) -> CalibrationSample:
    """Return the same sample with transformed scores."""
    return replace(
        given_,
        normal=np.sort(change(given_.normal)),
        anomalies=np.sort(change(given_.anomalies)),
    )


def monotone(scores: Scores) -> Scores:
    return np.asarray(np.arcsinh(scores) * 3 - 7)


# ---------------------------------------------------------------- what holds for all


def test_each_method_is_tried_here_and_can_be_configured() -> None:
    assert set(WISHES) == set(METHODS) == set(CalibrationConfig.KEYS)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_flagged_exactly_when_its_score_exceeds_the_threshold(method: str) -> None:
    found = chosen(method, evidence(0))
    t = found.threshold
    assert math.isfinite(t)
    around = [t, math.nextafter(t, -math.inf), math.nextafter(t, math.inf), math.nan]
    assert found.flags(around).tolist() == [False, False, True, True]


@pytest.mark.parametrize("method", METHODS)
def test_p_values_are_counted_on_the_normal_scores_whatever_the_method(method: str) -> None:
    given_ = evidence(1)
    around = np.linspace(-5, 9, 50)
    expected = calibrate(given_.normal, 0.05).p_values(around)
    np.testing.assert_array_equal(chosen(method, given_).p_values(around), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_figures_are_plain_json_without_a_nan(method: str) -> None:
    figures = chosen(method, evidence(2)).figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS)
@settings(max_examples=2, deadline=None)
def test_the_order_of_the_rows_does_not_matter(method: str, seed: int) -> None:
    given_, rng = evidence(seed), np.random.default_rng(seed)
    order = rng.permutation(len(given_.anomalies))
    assert given_.amounts is not None
    shuffled = CalibrationSample.from_scores(
        rng.permutation(given_.normal),
        given_.anomalies[order],
        given_.amounts[order],
        weight=given_.weight,
        rows_per_day=given_.rows_per_day,
    )
    one, other = chosen(method, given_), chosen(method, shuffled)
    assert one.threshold == other.threshold
    assert one.figures == other.figures


@pytest.mark.parametrize("method", RANKS)
@given(seed=SEEDS, tied=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_monotone_change_of_the_scores_changes_no_decision(
    method: str, seed: int, tied: bool
) -> None:
    given_ = evidence(seed, tied=tied)
    one, other = chosen(method, given_), chosen(method, changed(given_, monotone))
    assert other.threshold == monotone(np.array(one.threshold))


@pytest.mark.parametrize("method", ALPHA)
@given(seed=SEEDS, tied=st.booleans())
@settings(max_examples=10, deadline=None)
def test_a_smaller_alpha_never_flags_more(method: str, seed: int, tied: bool) -> None:
    given_, alphas = evidence(seed, tied=tied), (0.02, 0.05, 0.3)
    thresholds = [chosen(method, given_, alpha=alpha).threshold for alpha in alphas]
    assert thresholds == sorted(thresholds, reverse=True)


@pytest.mark.parametrize("method", ALPHA)
def test_the_fewest_rows_that_a_method_takes_are_what_it_says(method: str) -> None:
    needed = rows_needed(wish(method))
    assert choose_threshold(evidence(3, needed), wish(method)).threshold
    with pytest.raises(CalibrationError, match=f" {needed}[ ,].*there are {needed - 1}"):
        choose_threshold(evidence(3, needed - 1), wish(method))


@pytest.mark.parametrize("method", METHODS)
def test_a_score_that_is_not_finite_is_refused(method: str) -> None:
    with pytest.raises(CalibrationError, match="1 of 300 calibration scores are not finite"):
        chosen(method, CalibrationSample.from_scores([math.inf, *evidence(4).normal[1:]], [1.0]))
