"""Reviewers read what is unusual about a row, in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.encoding import Binary, Categorical, Cyclic, Numeric, TabularEncoding
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import TEST
from anomaly_vae.features import WindowFeature
from anomaly_vae.scoring.detector import Contribution, Explanation, RegionContribution
from anomaly_vae.scoring.wording import COMBINATION, Wording
from pipelines.datasets.dataset import Dataset
from tests.support.merchants import merchant_bundle

HOUR = Cyclic(name="at", part="hour", period=86_400, shift=0, usual=(11, 17))
DAY = Cyclic(name="at", part="weekday", period=604_800, shift=259_200, usual=(0, 4))
WORDING = Wording.of(
    TabularEncoding(
        (
            Numeric(name="amount", center=30, scale=20, usual=(5, 80), limits=(0.5, 900)),
            Numeric(name="CUSTOMER_count_1h", center=0, scale=1, usual=(0, 1)),
            Numeric(name="old", center=0, scale=1),
            HOUR,
            DAY,
            Cyclic(name="night", part="hour", period=86_400, shift=0, usual=(22, 3)),
            Cyclic(name="any", part="hour", period=86_400, shift=0),
            Binary(name="online"),
            Categorical(name="channel", levels=("chip", "contactless", "atm", "mail", "web")),
        )
    )
)


def said(feature: str, observed: Any, expected: Any) -> str:
    return WORDING.sentence(Contribution(feature, 1.0, observed, expected))


@pytest.mark.parametrize(
    ("feature", "observed", "expected", "sentence"),
    [
        ("amount", 1045.82, 28.143, "amount 1046, usually 5 to 80"),
        ("amount", "1045.82", "28.143", "amount 1046, usually 5 to 80"),
        ("amount", 0.00001, 28.0, "amount 0.00001, usually 5 to 80"),
        ("amount", 60.0, 9.5, "amount 60, where about 9.5 was expected"),
        ("amount", 80.04, 9.5, "amount 80, where about 9.5 was expected"),
        ("amount", 28.1, 28.1, "amount 28.1: unusual beside the other values"),
        ("amount", None, 28.1, "amount missing, where 28.1 was expected"),
        ("old", 9.0, 1.0, "old 9, where about 1 was expected"),
        ("online", 1.0, 0.03, "online 1, usually 0"),
        ("online", 1.0, 0.97, "online 1: unusual beside the other values"),
        ("channel", "web", "chip", "channel web, usually chip"),
        ("channel", "chip", "chip", "channel chip: unusual beside the other values"),
        ("channel", "pigeon", "chip",
         "channel pigeon, rare or never seen in training; usually chip"),
        ("channel", "", "chip", "channel (empty), rare or never seen in training; usually chip"),
        ("channel", "web", "(other)", "channel web, usually a rare value"),
        ("at", "Sun 14:02", "Wed 15:00", "at on a Sunday, usually Monday to Friday"),
        ("at", "Wed 00:02", "Wed 15:00", "at at 00:02, usually 11 to 18h"),
        ("at", "Sun 00:02", "Wed 15:00",
         "at on a Sunday at 00:02, usually Monday to Friday, 11 to 18h"),
        ("at", "Wed 12:02", "Tue 15:00",
         "at on a Wednesday at 12:02: unusual beside the other values"),
        ("at", "Wed 12:02", "Wed 12:02",
         "at on a Wednesday at 12:02: unusual beside the other values"),
        ("at", "00:02", "15:00", "at at 00:02, usually 11 to 18h"),
        ("night", "12:30", "23:00", "night at 12:30, usually 22 to 4h"),
        ("night", "02:30", "23:00", "night at 02:30: unusual beside the other values"),
        ("any", "02:30", "23:00", "any at 02:30: unusual beside the other values"),
        ("at.hour", "02:30", "23:00", "at.hour 02:30, where 23:00 was expected"),
    ],
)  # fmt: skip
def test_a_contribution_is_a_sentence(
    feature: str, observed: Any, expected: Any, sentence: str
) -> None:
    assert said(feature, observed, expected) == sentence


def test_a_window_is_said_in_words_in_place_of_its_name() -> None:
    hour = WindowFeature("CUSTOMER_count_1h", "CUSTOMER", "count", None, 3_600_000_000)
    wording = Wording(WORDING.parts, {hour.name: hour})
    reason = Contribution("CUSTOMER_count_1h", 1.0, 9.0, 0.4)
    expected = "9 events of this CUSTOMER in the last hour, usually 0 to 1"
    assert wording.sentence(reason) == expected


@pytest.mark.parametrize(
    ("kind", "observed", "sentence"),
    [
        ("risk", 0.5, "50% known anomalies among the events of this CUSTOMER in the last hour, "
         "usually 0% to 6.25%"),
        ("since_last", 90.0, "90 seconds since the last event of this CUSTOMER, usually 0 seconds "
         "to 0.062 seconds"),
    ],
)  # fmt: skip
def test_usual_values_of_a_window_have_its_unit(kind: Any, observed: float, sentence: str) -> None:
    feature = WindowFeature("w", "CUSTOMER", kind, None, 3_600_000_000)
    column = Numeric(name="w", center=0, scale=1, usual=(0, 0.0625))
    wording = Wording({"w": (column,)}, {"w": feature})
    assert wording.sentence(Contribution("w", 1.0, observed, 0.4)) == sentence


def test_a_quoted_value_is_short_and_on_one_line() -> None:
    sentence = said("channel", "a\n\x1b[31m" + "b" * 10_000, "chip")
    assert sentence.isprintable()
    assert len(sentence) < 120


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e6))
def test_amounts_have_no_exponent_and_no_sentence_fails(observed: float, expected: float) -> None:
    sentence = said("amount", observed, expected)
    if 1e-9 <= abs(observed) < 1e15 and (expected == 0 or expected > 1e-9):
        assert "e-" not in sentence
        assert "e+" not in sentence


def explanation(*nats: float) -> Explanation:
    listed = (Contribution("amount", n, 1000.0 + i, 28.0) for i, n in enumerate(nats))
    return Explanation(tuple(listed), rest=3.0, kl=2.0)


def test_what_lowers_the_score_is_not_said() -> None:
    reasons = WORDING.reasons(explanation(9.0, 4.0, 0.001, 0.0, -5.0))
    assert reasons == ("amount 1000, usually 5 to 80", "amount 1001, usually 5 to 80")
    assert WORDING.reasons(explanation(9.0, 4.0), most=1) == reasons[:1]
    assert WORDING.reasons(explanation(-1.0, 0.0)) == (COMBINATION,)
    assert WORDING.reasons(Explanation((), rest=1.0, kl=0.0)) == ()


def test_regions_of_images_are_said() -> None:
    regions = RegionContribution((1, 2, 5, 6), 9.0, 0.8), RegionContribution((7, 2, 9, 6), -1.0, 0)
    found = Explanation((), rest=1.0, kl=0.0, regions=regions)
    expected = ("the area from x 1 to 5 and y 2 to 6, 80% of all that is unusual",)
    assert Wording.of(SimpleNamespace(labels=())).reasons(found) == expected  # type: ignore[arg-type]


def test_usual_values_of_a_column_are_said() -> None:
    found = {name: WORDING.usual_values(name) for name in ("amount", "at", "any", "online", "old")}
    assert found == {
        "amount": "5 to 80",
        "at": "Monday to Friday, 11 to 18h",
        "any": "",
        "online": "0 or 1",
        "old": "",
    }
    assert WORDING.usual_values("channel") == "chip, contactless, atm and 2 more"
    assert WORDING.usual_values("unknown") == ""


def test_a_value_that_training_never_saw_is_said() -> None:
    detector = merchant_bundle().detector
    rows = detector.scorer.schema.from_records([{"amount": 20.0, "merchant": "nobody"}])
    _, (found,) = detector.detect_and_explain(rows, None)
    reasons = Wording.of(detector.scorer.encoding).reasons(found)
    assert reasons[0].startswith("merchant nobody, never seen in 475 training rows; usually ")


def test_every_explanation_of_a_model_has_words(calibrated: Bundle, dataset: Dataset) -> None:
    detector = calibrated.detector
    rows: RawBatch = dataset.part(TEST).take(np.arange(60))
    wording = Wording.of(detector.scorer.encoding)
    for one in detector.detect_and_explain(rows, None)[1]:
        reasons = wording.reasons(one)
        assert reasons
        assert len(reasons) <= sum(c.nats > 0 for c in one.contributions) or reasons == (
            COMBINATION,
        )
        assert all(reason.isprintable() for reason in reasons)
