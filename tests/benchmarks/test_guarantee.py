"""Simulate the false alarms of the drift monitor, and its delay after a shift."""

import numpy as np
import pytest

from benchmarks.guarantee import (
    RHYTHMS,
    SETTINGS,
    SHIFTS,
    Setting,
    detection_delays,
    false_alarms,
    timed_alarms,
)

USUAL = Setting(2_000, 0.01, anomaly_share=0.01)


def test_a_large_shift_is_noticed_at_once():
    found = detection_delays(USUAL, SHIFTS["up by 1 σ"], streams=5)
    assert found["noticed"].max() <= 500
    assert (found["noticed"] <= found["broken"]).all()


def test_nights_and_weekends_are_no_alarm_and_a_shift_is_one():
    found = timed_alarms(RHYTHMS[2], 10_000, streams=1)
    assert found["doubtful"] + found["broken"] <= 0.02
    assert found["late_rows"] <= 1_000


@pytest.mark.slow
@pytest.mark.parametrize("daily_rows", [1_000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("rhythm", RHYTHMS, ids=lambda rhythm: rhythm.title)
def test_it_stays_quiet_whatever_the_rhythm(rhythm, daily_rows):
    found = timed_alarms(rhythm, daily_rows, streams=4)
    assert found["doubtful"] <= 0.01
    assert found["broken"] == 0
    assert found["late_rows"] <= daily_rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", SETTINGS, ids=lambda setting: f"{setting.title}, {setting.anomaly_share}"
)
def test_it_stays_quiet_at_its_stated_rate(setting):
    """At most 1% of all reports are doubtful and 0.1% broken, over 60 calibration samples."""
    found = false_alarms(setting, streams=60)
    assert found["doubtful"] <= 0.01
    assert found["broken"] <= 0.001 + 3 * np.sqrt(0.001 / 60)
    assert found["ever_broken"] <= 3


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "rows"), [
    ("up by 0.2 σ", 10_000), ("up by 0.5 σ", 1_000), ("up by 1 σ", 500),
    ("1.3 times as wide", 3_000), ("down by 0.3 σ", 2_500),
])  # fmt: skip
def test_a_shift_is_noticed_within_so_many_rows(shift, rows):
    found = detection_delays(USUAL, SHIFTS[shift], streams=30)
    assert (found["noticed"] <= rows).sum() >= 27
