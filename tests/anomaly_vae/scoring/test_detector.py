"""Decisions follow the calibration, and the parts of an explanation add up to the score."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import CALIBRATION, TEST
from anomaly_vae.scoring.detector import Detections, Detector, Explanation
from anomaly_vae.scoring.unusual import TableTypicality, UnusualTest
from pipelines.datasets.dataset import Dataset
from tests.support.merchants import merchant_bundle


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> RawBatch:
    return dataset.part(TEST).take(np.arange(60))


def whole(explanation: Explanation) -> float:
    return sum(c.nats for c in explanation.contributions) + explanation.rest + explanation.kl


def test_detect_scores_then_decides(calibrated: Bundle, rows: RawBatch) -> None:
    detector = calibrated.detector
    detections = detector.detect(rows)
    np.testing.assert_array_equal(detections.score, calibrated.scorer.score(rows))
    np.testing.assert_array_equal(
        detections.p_value, detector.calibration.p_values(detections.score)
    )
    np.testing.assert_array_equal(detections.is_anomaly, detections.p_value <= 0.05)
    assert detections.is_anomaly.dtype == bool


def test_a_lone_row_is_decided_on_as_in_a_batch(calibrated: Bundle, rows: RawBatch) -> None:
    """Also if values are missing, with a test for unusual rows."""
    scorer = calibrated.scorer
    x = scorer.encoding.encode(rows)
    x[40:, 0], x[-1] = np.nan, np.nan
    assert isinstance(scorer.encoding, TabularEncoding)
    _, terms = scorer.scores_and_terms(x)
    test = UnusualTest.fit(
        TableTypicality.fit(scorer.encoding, x, x[:40], terms.loss[:40], terms.rate[:40]),
        0.2, terms.loss[:40], terms.rate[:40], x[:40],
    )  # fmt: skip
    detector = Detector(scorer, calibrated.detector.calibration, unusual=test)
    lone = x[:, None]
    alone = Detections.of([detector.decide_alone(row, not np.isnan(row).any()) for row in lone])
    together = detector.detect_encoded(x)
    assert alone.unusual > 0
    assert [scorer.score_alone(row)[1] for row in lone] == terms.loss.tolist()
    for name in ("score", "p_value", "is_anomaly", "unusual_input"):
        assert getattr(alone, name).tolist() == getattr(together, name).tolist(), name


def test_calibration_rows_are_flagged_at_most_at_the_rate_alpha(
    calibrated: Bundle, dataset: Dataset
) -> None:
    flagged = calibrated.detector.detect(dataset.part(CALIBRATION)).is_anomaly
    assert 0 < flagged.mean() <= 0.05


def test_decisions_follow_the_threshold_of_whatever_method(
    calibrated: Bundle, dataset: Dataset, rows: RawBatch
) -> None:
    scores = calibrated.scorer.score(dataset.part(CALIBRATION))
    detector = Detector(calibrated.scorer, calibrate(scores, 0.2, "quantile"))
    detections = detector.detect(rows)
    np.testing.assert_array_equal(
        detections.is_anomaly, detections.score > detector.calibration.threshold
    )


@pytest.mark.parametrize("most", [0, 1, 3, None])
def test_the_reasons_are_the_largest_shares_and_add_up(
    most: int | None, calibrated: Bundle, rows: RawBatch
) -> None:
    detections, explanations = calibrated.detector.detect_and_explain(rows, most)
    np.testing.assert_array_equal(detections.score, calibrated.scorer.score(rows))
    labels = calibrated.scorer.encoding.labels
    assert len(explanations) == len(rows)
    for score, explanation in zip(detections.score, explanations, strict=True):
        nats = [c.nats for c in explanation.contributions]
        assert len(nats) == (len(labels) if most is None else most)
        assert nats == sorted(nats, reverse=True)
        assert whole(explanation) == pytest.approx(score, rel=1e-10, abs=1e-10)
        if most is None:
            assert sorted(c.feature for c in explanation.contributions) == sorted(labels)
            assert explanation.rest == pytest.approx(0, abs=1e-10)


def test_the_reasons_of_few_are_the_first_of_all(calibrated: Bundle, rows: RawBatch) -> None:
    _, few = calibrated.detector.detect_and_explain(rows, 2)
    _, everything = calibrated.detector.detect_and_explain(rows, None)
    for some, of_all in zip(few, everything, strict=True):
        assert some.contributions == of_all.contributions[:2]


def test_a_reason_shows_what_came_and_what_was_expected(calibrated: Bundle) -> None:
    """Values have the column's own unit, and levels their own name, even unseen ones."""
    record = {**calibrated.example, "TX_AMOUNT": 31.5, "TX_CHANNEL": "carrier pigeon"}
    rows = calibrated.scorer.schema.from_records([record])
    _, (explanation,) = calibrated.detector.detect_and_explain(rows, None)
    reasons = {c.feature: c for c in explanation.contributions}
    assert reasons["TX_AMOUNT"].observed == 31.5
    assert 0 < reasons["TX_AMOUNT"].expected < 500
    assert reasons["TX_CHANNEL"].observed == "carrier pigeon"
    assert reasons["TX_CHANNEL"].expected in ("chip", "contactless", "online", "atm")
    usual = calibrated.scorer.schema.from_records([{**record, "TX_CHANNEL": "chip"}])
    _, (plain,) = calibrated.detector.detect_and_explain(usual, None)
    channel = next(c for c in plain.contributions if c.feature == "TX_CHANNEL")
    assert reasons["TX_CHANNEL"].nats > channel.nats


def test_a_missing_value_is_shown_as_missing_and_costs_nothing(calibrated: Bundle) -> None:
    rows = calibrated.scorer.schema.from_records([{**calibrated.example, "TX_AMOUNT": None}])
    _, (explanation,) = calibrated.detector.detect_and_explain(rows, None)
    amount = next(c for c in explanation.contributions if c.feature == "TX_AMOUNT")
    assert amount.observed is None
    assert amount.nats == 0
    assert amount.expected is not None


def test_no_rows_have_no_decisions(calibrated: Bundle, rows: RawBatch) -> None:
    nothing = rows.take(np.array([], int))
    detections, explanations = calibrated.detector.detect_and_explain(nothing, 3)
    assert len(detections.score) == len(detections.p_value) == len(detections.is_anomaly) == 0
    assert explanations == []


def test_an_explanation_names_a_value_and_how_often_training_saw_it() -> None:
    detector = merchant_bundle().detector
    rows = detector.scorer.schema.from_records(
        [{"amount": 20.0, "merchant": name} for name in ("nobody", "m3", None)]
    )
    detections, reasons = detector.detect_and_explain(rows, None)
    merchants = [next(c for c in one.contributions if c.feature == "merchant") for one in reasons]
    assert [c.observed for c in merchants] == ["nobody", "m3", None]
    assert str(merchants[0].expected).endswith("; this one was never seen in 475 training rows")
    assert "training rows" not in f"{merchants[1].expected} {merchants[2].expected}"
    assert detections.score[0] > detections.score[1]
    assert merchants[2].nats == 0
    np.testing.assert_allclose([whole(one) for one in reasons], detections.score)
