"""Types follow the values, however the file spells them; every other decision is reported."""

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.config.data import TabularData
from anomaly_vae.data.type_inference import check_present, feature_options, infer_schema, infer_type
from anomaly_vae.errors import DataError
from anomaly_vae.types import ColumnType

NUMERIC, BINARY, CATEGORICAL, DATETIME = (
    ColumnType.NUMERIC,
    ColumnType.BINARY,
    ColumnType.CATEGORICAL,
    ColumnType.DATETIME,
)
UNTYPED = TabularData(path="unused")
DAYS = [dt.date(2024, 1, 1) + dt.timedelta(days=i) for i in range(30)]


def infer(values: Any, kind: pa.DataType | None = None) -> tuple[ColumnType | None, str | None]:
    return infer_type("x", pa.chunked_array([pa.array(values, kind)]))


def types(table: pa.Table, **data: Any) -> dict[str, ColumnType]:
    inferred = infer_schema(table, TabularData(path="unused", **data))
    return {column.name: column.type for column in inferred.schema.columns}


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1.5, 2.0, None], pa.float64(), NUMERIC),
        ([1.5, 2.0, None], pa.float16(), NUMERIC),
        ([Decimal("1.50"), Decimal("2.25")], pa.decimal128(9, 2), NUMERIC),
        ([3, 1, 2], pa.int8(), NUMERIC),
        ([0, 1, 1, None], pa.int64(), BINARY),
        ([0.0, 1.0, math.nan], pa.float64(), BINARY),
        ([True, False, None], pa.bool_(), BINARY),
        (["true", "False", "TRUE", ""], pa.string(), BINARY),
        (["0", "1", "1.0", "NaN"], pa.large_string(), BINARY),
        (["1", " 2.5e3", "", "nan", "+7", ".5", "5."], pa.string(), NUMERIC),
        (["de", "fr", "de"], pa.string_view(), CATEGORICAL),
        (["de", "fr", "de"], pa.dictionary(pa.int8(), pa.string()), CATEGORICAL),
        (["1", "x", "y"], pa.string(), CATEGORICAL),
        (DAYS, pa.date32(), DATETIME),
        ([1_000_000, 2_000_000], pa.timestamp("ms"), DATETIME),
        ([str(day) for day in DAYS], pa.string(), DATETIME),
        ([f"{day}T08:30:00+0100" for day in DAYS], pa.string(), DATETIME),
    ],
)
def test_the_type_follows_from_the_values(
    values: list[Any], kind: pa.DataType, expected: ColumnType
) -> None:
    assert infer(values, kind) == (expected, None)


@given(st.lists(st.none() | st.integers(-5, 5) | st.floats(-5, 5), min_size=1, max_size=30))
def test_numbers_and_their_text_are_of_one_type(values: list[float | None]) -> None:
    text = [None if v is None else repr(v) for v in values]
    assert infer(values, pa.float64())[0] is infer(text, pa.string())[0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], pa.null()),
        ([None, None], pa.float64()),
        ([math.nan] * 3, pa.float32()),
        (["", "NA", None, " nan "], pa.string()),
        ([], pa.string()),
    ],
)
def test_a_column_without_values_is_left_out(values: list[Any], kind: pa.DataType) -> None:
    assert infer(values, kind) == (None, "left out, it has no value in the training rows")


@pytest.mark.parametrize(
    ("values", "shown"),
    [([5.0, None, 5.0], "5.0"), (["x", "x"], "'x'"), ([True], "true"), ([1.0, math.nan], "1.0")],
)
def test_a_constant_is_kept_and_said(values: list[Any], shown: str) -> None:
    kind, note = infer(values)
    assert kind is not None
    assert note == f"constant ({shown}); any other value will look anomalous"


SHUFFLED = [(7 * i) % 41 for i in range(41)]


@pytest.mark.parametrize("values", [list(range(40)), [str(i) for i in range(40)], SHUFFLED])
def test_a_counter_of_the_rows_is_left_out(values: list[Any]) -> None:
    kind, note = infer(values)
    assert (kind, note) == (
        None,
        "left out, it numbers the rows; declare it under data.types to keep it",
    )


def test_integers_that_never_repeat_over_a_wide_range_may_be_measurements() -> None:
    assert infer([(7919 * i) % 100_003 for i in range(40)]) == (NUMERIC, None)


def test_text_that_is_nearly_unique_is_left_out() -> None:
    kind, note = infer([f"name {i}" for i in range(30)])
    assert kind is None
    assert note == "left out, nearly every value is its own (30 of 30)"


def test_few_rows_are_too_few_to_call_anything_unique() -> None:
    assert infer([f"name {i}" for i in range(19)])[0] is CATEGORICAL
    assert infer(list(range(19)))[0] is NUMERIC


@pytest.mark.parametrize("values", [[[1]], [{"a": 1}], [b"x"], [dt.timedelta(1)]], ids=str)
def test_other_types_are_left_out_by_name(values: list[Any]) -> None:
    kind, note = infer(values)
    assert kind is None
    assert note == f"left out, {pa.array(values).type} is not a type it can learn from"


def test_numbers_mixed_with_some_text_fail_with_column_count_example_and_remedy() -> None:
    with pytest.raises(DataError) as caught:
        infer(["1"] * 19 + ["12,50"])
    assert caught.value.column == "x"
    assert str(caught.value) == (
        "column 'x' mixes numbers with text: 1 of 20 values are no numbers, such as '12,50'; "
        "correct them, add those that mean a missing value to data.csv.null_values, or declare "
        "data.types.x.type as numeric (such rows are rejected) or categorical"
    )


# ---------------------------------------------------------------- tables

TABLE = pa.table({"a": [1.5, 2.5], "b": ["x", "y"], "y": [0, 1], "c": [3, 1], "t": [DAYS[0]] * 2})


def test_roles_and_ignored_columns_are_no_features() -> None:
    left = types(TABLE, label="y", group="b", ignore=["c", "absent"])
    assert left == {"a": NUMERIC, "t": DATETIME}


def test_what_is_no_feature_is_still_expected_in_the_input() -> None:
    data = TabularData(path="unused", label="y", time="t", ignore=("c",))
    assert infer_schema(TABLE, data).schema.known == {"y", "t", "c"}


def test_a_plain_list_chooses_the_columns_and_their_order() -> None:
    data = TabularData(path="unused", features=("c", "a", "c"))
    assert infer_schema(TABLE, data).schema.names == ("c", "a")


def test_declared_types_win_over_what_the_values_look_like() -> None:
    assert types(TABLE, features={"c": {"type": "categorical"}}) == {"c": CATEGORICAL}


def test_a_declared_column_may_mix_and_may_be_empty() -> None:
    table = pa.table({"m": ["1"] * 19 + ["x"], "e": pa.nulls(20)})
    declared = {"m": {"type": "numeric"}, "e": {"type": "binary"}}
    assert types(table, features=declared) == {"m": NUMERIC, "e": BINARY}


@pytest.mark.parametrize("key", ["label", "id", "time", "group"])
def test_a_role_that_is_not_there_is_named_and_what_is_there_listed(key: str) -> None:
    with pytest.raises(DataError) as caught:
        check_present(TABLE, TabularData(path="unused", **{key: "fraud"}))
    assert caught.value.column == "fraud"
    assert str(caught.value) == (
        f"data.{key} names the column 'fraud', which is not there; found 'a', 'b', 'y', 'c', 't'"
    )


def test_a_feature_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"data\.features names the column 'z', which is not there"):
        check_present(TABLE, TabularData(path="unused", features=("a", "z")))


def test_no_column_left_is_refused() -> None:
    with pytest.raises(DataError, match="no column is left to learn from; found 'a'"):
        types(pa.table({"a": pa.nulls(3)}))


def test_notes_name_their_column() -> None:
    inferred = infer_schema(pa.table({"a": [1.5, 2.5], "k": [7.0, 7.0]}), UNTYPED)
    assert inferred.notes == ("column 'k': constant (7.0); any other value will look anomalous",)


def test_declared_limits_reach_the_encoding() -> None:
    declared = {"b": {"type": "categorical", "max_levels": 3}}
    options = feature_options(TabularData(path="unused", features=declared))
    assert options["b"].max_levels == 3
    assert feature_options(UNTYPED) == {}
