"""Sections are frozen and refuse unknown keys; moments have a time zone."""

import datetime as dt

import pytest
from pydantic import ValidationError

from anomaly_vae.config import validate_config
from anomaly_vae.config.base import Section, utc
from tests.support.configurations import LEAST


def test_a_configuration_cannot_be_changed() -> None:
    config = validate_config(LEAST)
    sections: tuple[tuple[Section, str], ...] = ((config, "name"), (config.model, "depth"))
    for section, key in sections:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)


def test_a_section_refuses_unknown_keys_and_numbers_that_are_not_finite() -> None:
    class Rates(Section):
        rate: float = 0.5

    assert Rates(rate=0.1).rate == 0.1
    with pytest.raises(ValidationError, match="Extra inputs"):
        Rates.model_validate({"rates": 0.1})
    with pytest.raises(ValidationError, match="finite"):
        Rates(rate=float("inf"))


def test_a_moment_without_a_zone_is_utc_and_one_with_a_zone_stays() -> None:
    naive = dt.datetime(2024, 1, 31, 12)  # noqa: DTZ001 the point of the test
    there = dt.datetime(2024, 1, 31, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert utc(naive) == dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
    assert utc(there) is there
