"""Each column type has readers that agree, and a description for every protocol."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from anomaly_vae.data import arrow
from anomaly_vae.data.column_types import COLUMN_TYPES, IMAGE_COLUMN
from anomaly_vae.data.converters import Levels
from anomaly_vae.types import ColumnType
from tests.support.levels import names

TYPES = list(COLUMN_TYPES)
VALUES: dict[ColumnType, list[Any]] = {
    ColumnType.NUMERIC: [1.5, None, -2.0],
    ColumnType.BINARY: [1, None, 0],
    ColumnType.DATETIME: ["2024-01-31T12:00:00", None, "2024-02-01"],
    ColumnType.CATEGORICAL: ["b", None, "a"],
}
"""Valid values of each type, as JSON holds them."""
WRONG: dict[ColumnType, Any] = {
    ColumnType.NUMERIC: "x",
    ColumnType.BINARY: 2,
    ColumnType.DATETIME: "yesterday",
    ColumnType.CATEGORICAL: ["a"],
}
"""A value that each type refuses."""


def plain(found: Any) -> list[Any]:
    """Return the values of the rows, None if they are missing."""
    if isinstance(found, Levels):
        return names(found)
    return [None if math.isnan(value) else value for value in found]


def test_every_type_has_a_description() -> None:
    assert set(COLUMN_TYPES) == set(ColumnType) == set(VALUES) == set(WRONG)


@pytest.mark.parametrize("kind", TYPES)
def test_arrow_and_json_are_read_alike(kind: ColumnType) -> None:
    spec = COLUMN_TYPES[kind]
    found, problems = spec.from_values(VALUES[kind])
    again, same = spec.from_arrow(pa.array(VALUES[kind]))
    assert problems == same == []
    assert plain(found) == plain(again)
    assert plain(found)[1] is None
    assert hasattr(arrow, spec.arrow_converter)


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_stored_is_what_the_description_says(kind: ColumnType) -> None:
    found, _ = COLUMN_TYPES[kind].from_values(VALUES[kind])
    is_level = COLUMN_TYPES[kind].storage == "level"
    assert isinstance(found, Levels) == is_level
    assert is_level or isinstance(found, np.ndarray)


@pytest.mark.parametrize("kind", TYPES)
def test_a_value_of_another_type_is_a_problem_of_its_row(kind: ColumnType) -> None:
    _, [problem] = COLUMN_TYPES[kind].from_values([VALUES[kind][0], WRONG[kind]])
    assert problem.row == 1


@pytest.mark.parametrize("kind", TYPES)
def test_json_is_decoded_as_the_type_that_its_schema_describes(kind: ColumnType) -> None:
    spec = COLUMN_TYPES[kind]
    for value in VALUES[kind]:
        assert msgspec.convert(value, spec.json_type) == value
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"a": 1}, spec.json_type)
    allowed = spec.json_schema.get("enum", spec.json_schema.get("type"))
    assert None in allowed or "null" in allowed


def test_rows_are_grouped_by_columns_with_few_values_only() -> None:
    grouping = {kind for kind in TYPES if COLUMN_TYPES[kind].has_levels}
    assert grouping == {ColumnType.BINARY, ColumnType.CATEGORICAL}
    assert not IMAGE_COLUMN.has_levels


def test_a_cell_may_be_missing_and_an_image_may_not() -> None:
    assert not any(spec.required for spec in COLUMN_TYPES.values())
    assert IMAGE_COLUMN.required
    assert IMAGE_COLUMN.storage == "pixels"


def test_only_bytes_need_a_content_type() -> None:
    for spec in (*COLUMN_TYPES.values(), IMAGE_COLUMN):
        assert (spec.tensor.content_type is not None) == (spec.tensor.datatype == "BYTES")
