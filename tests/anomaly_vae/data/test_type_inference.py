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
from anomaly_vae.data.type_inference import (
    check_present,
    feature_options,
    infer_schema,
    infer_type,
    read_times,
    time_column,
)
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


@pytest.mark.parametrize("values", [[[1]], [{"a": 1}], [dt.timedelta(1)]], ids=str)
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


def test_times_that_no_calendar_has_are_no_values() -> None:
    far = pa.array([2**62] * 30, pa.timestamp("us"))
    note = "left out, it has no value in the training rows"
    assert infer_type("x", pa.chunked_array([far])) == (None, note)


# ---------------------------------------------------------------- markers, names and forms

COUNTS = [str(i % 21) for i in range(400)]


@pytest.mark.parametrize("marker", ["\\N", "#N/A", "n/a", "-", "?", ".", "unknown", "weird"])
@pytest.mark.parametrize("every", [3, 7, 14])
def test_a_marker_among_numbers_is_refused_at_any_rate(marker: str, every: int) -> None:
    values = [marker if i % every == 0 else value for i, value in enumerate(COUNTS)]
    with pytest.raises(
        DataError, match=r"mixes numbers with text: .* data\.csv\.null_values"
    ) as caught:
        infer(values)
    assert repr(marker) in str(caught.value)


def test_known_markers_are_refused_even_if_most_values_are_missing() -> None:
    with pytest.raises(DataError, match="mixes numbers with text"):
        infer(["\\N", "n/a", "-", "5"] * 10)


def test_a_marker_among_times_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"mixes times with text: .* data\.types\.x\.type as datetime"
    ):
        infer([str(day) for day in DAYS] + ["\\N"] * 5)


@pytest.mark.parametrize("other", ["3+", "none of these"])
def test_few_numbers_beside_text_are_categories_and_it_is_said(other: str) -> None:
    kind, note = infer(["0", "1", "2", other] * 20)
    assert kind is CATEGORICAL
    assert note is not None
    assert note.startswith(
        f"read as categories: 60 of 80 values are numbers, others are text such as {other!r}"
    )


@pytest.mark.parametrize("form", ["{},5", "€ {}.50", "{}%", "1,{}.00", "{} 500 EUR", "1.{},00"])
def test_numbers_in_another_form_are_named_with_the_remedy(form: str) -> None:
    kind, note = infer([form.format(i) for i in range(100, 200)])
    assert kind is None
    assert note is not None
    assert "left out, nearly every value is its own (100 of 100): numbers such as" in note
    assert "data.csv.decimal" in note


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([f"{d:02}.07.2018 00:14" for d in range(1, 31)], None),
        ([f"{day} 00:00:00+00" for day in DAYS], None),
        ([f"{day}T09" for day in DAYS], None),
        ([f"{day} 10:00:00 UTC" for day in DAYS], None),
        ([f"{d:02}/07/2018" for d in range(1, 31)], "%d/%m/%Y"),
        ([f"07/{d:02}/2018 10:00 PM" for d in range(1, 31)], "%m/%d/%Y"),
    ],
)
def test_text_of_other_forms_is_time_with_its_format(
    values: list[str], expected: str | None
) -> None:
    (column,) = infer_schema(pa.table({"t": values}), UNTYPED).schema.columns
    assert (column.type, column.format) == (DATETIME, expected)


def test_dates_in_doubt_are_left_out_or_decided_by_the_configuration() -> None:
    table = pa.table({"a": [1.5, 2.5], "t": ["01/02/2024", "03/04/2024"]})
    inferred = infer_schema(table, UNTYPED)
    assert inferred.schema.names == ("a",)
    assert inferred.notes == (
        "column 't': left out, '01/02/2024' may be %d/%m/%Y or %m/%d/%Y; set data.time_format",
    )
    decided = infer_schema(table, TabularData(path="unused", time_format="%m/%d/%Y"))
    assert [column.format for column in decided.schema.columns] == [None, "%m/%d/%Y"]
    declared: Any = {"t": {"type": "datetime"}}
    with pytest.raises(
        DataError, match=r"column 't': '01/02/2024' may be .*; set data\.time_format"
    ):
        infer_schema(table, TabularData(path="unused", types=declared))


def test_numbers_that_look_like_times_are_said_and_read_where_declared() -> None:
    table = pa.table({"t": [1530403200000 + 60_000 * (i % 7) for i in range(40)]})
    inferred = infer_schema(table, UNTYPED)
    assert [column.type for column in inferred.schema.columns] == [NUMERIC]
    assert "look like times (epoch_ms)" in inferred.notes[0]
    assert "data.types: {t: {type: datetime}}" in inferred.notes[0]
    declared: Any = {"t": {"type": "datetime"}}
    for data in ({"types": declared}, {"time": "t"}):
        inferred = infer_schema(table, TabularData(path="unused", **data))
        assert [(c.type, c.format) for c in inferred.schema.columns] == [(DATETIME, "epoch_ms")]
        assert inferred.notes == ("column 't': read as times of the form epoch_ms",)


@pytest.mark.parametrize(
    ("name", "shown"), [("mcc", "mcc"), ("card no.", '"card no."'), ("no", '"no"')]
)
def test_numbers_that_name_things_are_said_with_the_lines_that_help(name: str, shown: str) -> None:
    table = pa.table({name: [5411, 5812, 4829] * 10, "amount": [1.5, 2.5, 3.5] * 10})
    inferred = infer_schema(table, UNTYPED)
    assert inferred.notes == (
        f"column '{name}': its numbers seem to name things but are read as amounts; if so, set "
        f"data.types: {{{shown}: {{type: categorical}}}} or data.ignore: [{shown}]",
    )


def test_one_declared_type_leaves_the_other_columns_inferred() -> None:
    declared: Any = {"c": {"type": "categorical", "max_levels": 7}}
    data = TabularData(path="unused", types=declared)
    inferred = infer_schema(TABLE, data)
    assert {c.name: c.type for c in inferred.schema.columns}["c"] is CATEGORICAL
    assert set(inferred.schema.names) == set(TABLE.column_names)
    assert feature_options(data)["c"].max_levels == 7
    with pytest.raises(DataError, match=r"data\.types names the column 'z', which is not there"):
        check_present(TABLE, TabularData(path="unused", types={"z": declared["c"]}))


def test_times_are_read_in_the_format_of_their_column() -> None:
    column = pa.chunked_array([["31/01/1970", None, "01/02/1970 00:01"]])
    assert read_times(column, None).tolist()[::2] == [30 * 86_400, 31 * 86_400 + 60]
    assert time_column(pa.chunked_array([pa.array(DAYS)]), None).format is None
