"""Test which column and time zone give rows their day."""

from __future__ import annotations

import pytest

from pipelines.batch.times import Times


@pytest.mark.parametrize(
    ("budget", "data", "zone"),
    [
        (None, None, None),
        (None, "Europe/Berlin", "Europe/Berlin"),
        ("Asia/Kolkata", None, "Asia/Kolkata"),
        ("Asia/Kolkata", "Europe/Berlin", "Asia/Kolkata"),
    ],
)
def test_rows_are_ranked_on_the_days_of_the_budget(
    budget: str | None, data: str | None, zone: str | None
) -> None:
    config = {"data": {"time": "at", "timezone": data}, "calibration": {"time_zone": budget}}
    assert Times.of_model(config, {}) == Times("at", None, zone)
