"""Paths, splits and intensity windows are read and checked."""

from collections.abc import Mapping
from typing import Any

import pytest

from anomaly_vae.config import ImageConfig, TabularConfig, validate_config
from anomaly_vae.config.data import Splits
from anomaly_vae.config.detector import merged
from anomaly_vae.errors import ConfigError
from tests.support.configurations import LEAST, SCANS, SPLITS, with_yaml


def test_several_paths_are_kept_in_order() -> None:
    assert with_yaml("data: {path: [b.csv, a.csv]}").data.paths == ("b.csv", "a.csv")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"test": 0.5, "calibration": 0.5}, "calibration and test leave nothing to train on"),
        ({"test": 0.9}, "train, calibration and test add up to 1.1, more than 1"),
        ({"train": 0.9}, "train, calibration and test add up to 1.3, more than 1"),
        ({"test": SPLITS["test"]}, "all as fractions or all as [from, to]"),
        ({**SPLITS, "train": 0.5}, "all as fractions or all as [from, to]"),
        ({**SPLITS, "test": ["2024-04-01", "2024-03-01"]}, "test ends before it begins"),
        ({**SPLITS, "test": ["2024-03-01", "2024-03-01"]}, "test ends before it begins"),
        ({**SPLITS, "test": ["2024-02-20", "2024-04-01"]}, "calibration and test overlap"),
        ({**SPLITS, "test": ["2024-02-20T00:00Z", "2024-04-01"]}, "calibration and test overlap"),
    ],
)
def test_splits_that_contradict_each_other_are_refused(
    splits: Mapping[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(merged(LEAST, {"data": {"splits": splits}}))
    assert str(caught.value).startswith("data.splits: ")
    assert expected in str(caught.value)


def test_intervals_may_touch_and_mix_zones() -> None:
    splits = Splits.model_validate({**SPLITS, "test": ["2024-03-01T01:00:00+01:00", "2024-04-01"]})
    assert splits.by_interval


def test_a_gap_needs_a_time_column() -> None:
    with pytest.raises(ConfigError, match="gap_days needs a time column"):
        validate_config({"name": "x", "data": {"path": "a.csv", "splits": {"gap_days": 7}}})


def test_a_window_is_a_word_or_two_numbers() -> None:
    windowed = validate_config(merged(SCANS, {"data": {"intensity_window": [40, 80]}}))
    assert isinstance(windowed, ImageConfig)
    assert windowed.data.intensity_window == (40.0, 80.0)
    with pytest.raises(ConfigError, match=r"data\.intensity_window"):
        validate_config(merged(SCANS, {"data": {"intensity_window": "brain"}}))


def test_late_labels_need_ids_and_are_not_part_of_the_model() -> None:
    config = with_yaml("data: {id: tx, labels: [a.csv, late/]}")
    assert isinstance(config, TabularConfig)
    assert config.data.label_places == ("a.csv", "late/")
    assert config.recorded() == with_yaml("data: {id: tx}").recorded()
    with pytest.raises(ConfigError, match="name their column in id"):
        with_yaml("data: {labels: a.csv}")
