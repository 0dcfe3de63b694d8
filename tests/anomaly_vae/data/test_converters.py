"""Equal content converts to equal values, however it is stored; invalid cells name their row."""

import math
from decimal import Decimal

import numpy as np
import pytest

from anomaly_vae.data.converters import (
    MISSING,
    Levels,
    binary_from_values,
    level_name,
    levels_from_values,
    numbers_from_values,
    times_from_values,
)
from anomaly_vae.errors import DataError
from anomaly_vae.messages import shown
from tests.support.levels import names

# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "value", ["3", "", True, [1], {}, math.nan, math.inf, 10**400, "NaN"], ids=str
)
def test_json_numbers_are_numbers_or_null(value: object) -> None:
    found, [problem] = numbers_from_values([1, value, None])
    assert problem.row == 1
    np.testing.assert_array_equal(found, [1.0, math.nan, math.nan])


# ---------------------------------------------------------------- zeros and ones


@pytest.mark.parametrize("value", [2, -1, 0.5, "1", "true", [1], math.nan], ids=str)
def test_json_binary_is_zero_one_true_or_false(value: object) -> None:
    found, [problem] = binary_from_values([0, value])
    assert (problem.row, problem.reason) == (1, f"expected 0 or 1, got {shown(value)}")
    assert math.isnan(found[1])


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize("value", [5, 5.0, "5", "5.0", " 5 ", "5.", Decimal("5.00"), np.float32(5)])
def test_five_is_one_level_however_it_is_written(value: object) -> None:
    assert level_name(value) == "5"


@pytest.mark.parametrize("value", [True, "true", "True", "TRUE ", np.True_])
def test_true_is_one_level_however_it_is_written(value: object) -> None:
    assert level_name(value) == "true"


@pytest.mark.parametrize("value", [None, math.nan, np.float32("nan")])
def test_a_missing_level_has_no_name(value: object) -> None:
    assert level_name(value) is None


@pytest.mark.parametrize("text", ["007", "1.10", "5.0.0", "v5.0", "NAM", "5,0", "1e3"])
def test_other_text_is_a_level_as_it_stands(text: str) -> None:
    """Codes keep their leading zeros, and the level NA can be a country."""
    assert level_name(text) == text


@pytest.mark.parametrize("text", MISSING)
def test_texts_of_markers_are_levels_until_they_are_taken_for_missing(text: str) -> None:
    assert level_name(text) == text
    levels = levels_from_values(["x", text, "y", None, text])[0].without_markers()
    assert (levels.names, levels.codes.tolist()) == (("x", "y"), [0, -1, 1, -1, -1])


def test_bytes_are_their_text() -> None:
    assert level_name("é ".encode()) == "é"
    with pytest.raises(DataError, match="not UTF-8"):
        level_name(b"\xff")


def test_spellings_of_one_level_share_a_code() -> None:
    levels, _ = levels_from_values([5, "5", 5.0, "x", None, "5.0"])
    assert levels.names == ("5", "x")
    assert levels.codes.tolist() == [0, 0, 0, 1, -1, 0]


@pytest.mark.parametrize("value", [[1], {"a": 1}], ids=str)
def test_json_lists_and_objects_are_no_levels(value: object) -> None:
    levels, [problem] = levels_from_values(["a", value])
    assert (problem.row, problem.reason) == (1, f"expected a category, got {value}")
    assert names(levels) == ["a", None]


def test_levels_are_taken_by_position_and_by_mask() -> None:
    levels = Levels(np.array([0, -1, 1], np.int32), ("a", "b"))
    assert names(levels.take(np.array([2, 0]))) == ["b", "a"]
    assert names(levels.take(np.array([False, True, True]))) == [None, "b"]


def test_recoding_keeps_missing_and_maps_unknown_levels_to_one_code() -> None:
    levels = Levels(np.array([0, -1, 1, 0], np.int32), ("a", "b"))
    assert levels.recode({"b": 7}, unseen=0).tolist() == [0, -1, 7, 0]


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    "value", ["yesterday", "2024-13-01", "2024", 1, True, [1], "", " ", "NA", "null"], ids=str
)
def test_other_values_are_no_times(value: object) -> None:
    found, [problem] = times_from_values(["2024-01-01", value])
    assert problem.row == 1
    assert problem.reason == f"expected an ISO 8601 date or time, got {shown(value)}"
    assert math.isnan(found[1])
