"""Test the features of packed events at extreme values."""

import math

import pytest

from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.features import WindowDefinition
from anomaly_vae.features.history import EntityHistory
from anomaly_vae.features.inputs import Event

CARD = EntityWindows(over=("1h",), of={"amount": ("sum", "mean", "max", "std")})
HISTORY = EntityHistory.of(WindowDefinition({"card": CARD}), "card")


def features(*amounts):
    events = [Event(None, 0, {"card": "1"}, {"amount": amount}) for amount in amounts]
    return HISTORY.features(b"".join(HISTORY.pack(event, 0, hash) for event in events), 1)


def test_equal_values_have_no_deviation():
    assert features(0.1, 0.1, 0.1)[3] == 0


def test_small_deviations_of_large_values_are_exact():
    assert features(1e9, 1e9 + 1, 1e9 + 2)[3] == pytest.approx(1, rel=1e-12)


def test_one_value_has_no_deviation():
    assert [math.isnan(value) for value in features(3.0)] == [False, False, False, True]


def test_sums_that_overflow_are_infinite():
    assert features(1e308, 1e308, 1e308)[0] == math.inf


def test_missing_values_are_left_out():
    assert features(math.nan, 2.0)[:3] == [2, 2, 2]


def test_windows_hold_their_start_and_not_their_stop():
    card = EntityWindows(over=("1h",), count=True)
    history = EntityHistory.of(WindowDefinition({"card": card}), "card")
    packed = history.pack(Event(None, 0, {"card": "1"}, {}), 0, hash)
    hour = 3_600_000_000
    assert [history.features(packed, now)[0] for now in (0, 1, hour, hour + 1)] == [0, 1, 1, 0]
