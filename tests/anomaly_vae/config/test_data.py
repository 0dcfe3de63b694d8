"""Paths, splits and intensity windows are read and checked."""

from collections.abc import Mapping
from typing import Any

import pytest

from anomaly_vae.config import ImageConfig, TabularConfig, validate_config
from anomaly_vae.config.data import Splits
from anomaly_vae.config.detector import merged
from anomaly_vae.errors import ConfigError
from tests.support.configurations import LEAST, SCANS, SPLITS, with_yaml

SPANS = {"train": "28d", "calibration": "7d", "test": "1w"}


def test_several_paths_are_kept_in_order() -> None:
    assert with_yaml("data: {path: [b.csv, a.csv]}").data.paths == ("b.csv", "a.csv")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"test": 0.5, "calibration": 0.5}, "calibration and test leave nothing to train on"),
        ({"test": 0.9}, "train, calibration and test add up to 1.1, more than 1"),
        ({"train": 0.9}, "train, calibration and test add up to 1.3, more than 1"),
        ({"test": SPLITS["test"]}, "all as [from, to]; train is null, calibration is 0.2"),
        ({**SPLITS, "train": 0.5}, "all as [from, to]; train is 0.5, calibration is [2024-02-01"),
        ({"test": "7d"}, "all as spans such as 28d"),
        ({**SPANS, "train": 0.5}, "train is 0.5, calibration is 7d, test is 1w"),
        ({**SPANS, "calibration": SPLITS["calibration"]}, "train is 28d, calibration is [2024"),
        ({**SPANS, "test": "0d"}, "test is 0d, which has no rows"),
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


def test_spans_are_read_in_each_spelling() -> None:
    splits = Splits(train="last 28d", calibration="LAST  7 D", test="24h")
    assert (splits.train, splits.calibration, splits.test) == ("28d", "7d", "24h")
    assert splits.by_span
    assert not splits.by_interval


def test_without_a_training_span_all_earlier_rows_train() -> None:
    assert Splits(calibration="7d", test="7d").train is None


def test_spans_and_delays_need_a_time_column_and_delays_a_label() -> None:
    spans = {"path": "a.csv", "splits": SPANS}
    for data, expected in (
        (spans, "counts back from the newest row, which needs a time column"),
        ({"path": "a.csv", "label": "y", "label_delay": "7d"}, "label_delay needs a time column"),
        ({"path": "a.csv", "time": "t", "label_delay": "7d"}, "label_delay needs a label column"),
    ):
        with pytest.raises(ConfigError, match=expected):
            validate_config({"name": "x", "data": data})
    with pytest.raises(ConfigError, match="images have no time column"):
        validate_config(merged(SCANS, {"data": {"splits": SPANS}}))


def test_a_model_without_a_delay_records_none() -> None:
    data = {"path": "a.csv", "label": "y", "time": "t"}
    plain = validate_config({"name": "x", "data": data})
    assert "label_delay" not in plain.recorded()["data"]
    late = validate_config({"name": "x", "data": {**data, "label_delay": "last 1W"}})
    assert late.recorded()["data"]["label_delay"] == "1w"


def test_a_gap_needs_a_time_column() -> None:
    with pytest.raises(ConfigError, match="gap_days needs a time column"):
        validate_config({"name": "x", "data": {"path": "a.csv", "splits": {"gap_days": 7}}})


def test_a_window_is_a_word_or_two_numbers() -> None:
    windowed = validate_config(merged(SCANS, {"data": {"intensity_window": [40, 80]}}))
    assert isinstance(windowed, ImageConfig)
    assert windowed.data.intensity_window == (40.0, 80.0)
    named = validate_config(merged(SCANS, {"data": {"intensity_window": "soft_tissue"}}))
    assert isinstance(named, ImageConfig)
    assert named.data.intensity_window == "soft_tissue"


@pytest.mark.parametrize(
    "window",
    [
        "liver",
        None,
        3,
        [40],
        [40, 0],
        [40, ".inf"],
        ["lung"] * 4,
        ["lung", "liver", "bone"],
        [[1, 2, 3]],
    ],
)
def test_a_wrong_window_is_told_all_that_it_may_be(window: object) -> None:
    given = {"data": {"channels": 3, "intensity_window": window}}
    with pytest.raises(ConfigError) as refused:
        validate_config(merged(SCANS, given))
    assert str(refused.value).startswith(
        "data.intensity_window: expected auto, percentile, lung, bone, brain, soft_tissue, "
        "[center, width] with a width of at least 1, or three of the latter five, got "
    )


def test_late_labels_need_ids_and_are_not_part_of_the_model() -> None:
    config = with_yaml("data: {id: tx, labels: [a.csv, late/]}")
    assert isinstance(config, TabularConfig)
    assert config.data.label_places == ("a.csv", "late/")
    assert config.recorded() == with_yaml("data: {id: tx}").recorded()
    with pytest.raises(ConfigError, match="name their column in id"):
        with_yaml("data: {labels: a.csv}")


def test_the_time_zone_of_the_data_is_that_of_a_budget_per_day() -> None:
    """Unless the budget gives one of its own; without any, the manifest records none."""
    data = {"path": "rows.csv", "time": "at", "timezone": "Asia/Kolkata"}
    budget = {"method": "budget", "per_day": 5}
    config = validate_config({"name": "x", "data": data, "calibration": budget})
    assert config.calibration.time_zone == "Asia/Kolkata"
    own = {**budget, "time_zone": "Europe/Berlin"}
    config = validate_config({"name": "x", "data": data, "calibration": own})
    assert config.calibration.time_zone == "Europe/Berlin"
    assert config.recorded()["data"]["timezone"] == "Asia/Kolkata"
    plain = validate_config({"name": "x", "data": data})
    assert plain.calibration.time_zone is None
    assert "timezone" not in validate_config(LEAST).recorded()["data"]
    with pytest.raises(ConfigError, match=r"timezone.*no such time zone; give a name such as"):
        validate_config({"name": "x", "data": {**data, "timezone": "Mars"}})
