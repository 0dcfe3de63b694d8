"""Tables and records become the same `RawBatch`; invalid rows are reported with a reason."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.data.converters import Levels
from anomaly_vae.data.schema import Column, RawBatch, RowProblem, TabularSchema
from anomaly_vae.errors import DataError
from anomaly_vae.types import ColumnType

SCHEMA = TabularSchema(
    (
        Column("amount", ColumnType.NUMERIC),
        Column("online", ColumnType.BINARY),
        Column("country", ColumnType.CATEGORICAL),
        Column("at", ColumnType.DATETIME),
    ),
    known=frozenset({"id"}),
)
ARROW = {"amount": pa.float64(), "online": pa.bool_(), "country": pa.string(), "at": pa.string()}
records = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "amount": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "online": st.none() | st.booleans(),
            "country": st.none() | st.sampled_from(["", "de", " fr", "5"]),
            "at": st.none() | st.sampled_from(["2024-02-29", "2024-01-01T12:30:00+01:00"]),
            "id": st.integers(0, 9),
            "note": st.text(max_size=3),
        },
    ),
    max_size=8,
)


def plainly(batch: RawBatch) -> dict[str, list[Any]]:
    """Return comparable values by column; missing is None."""
    out: dict[str, list[Any]] = {}
    for name, column in batch.values.items():
        if isinstance(column, Levels):
            out[name] = [None if code < 0 else column.names[code] for code in column.codes]
        else:
            out[name] = [None if math.isnan(value) else value for value in column]
    return out


def as_text(value: object) -> str | None:
    return None if value is None else repr(value) if isinstance(value, float) else str(value)


@given(records)
def test_records_a_typed_table_and_its_text_read_the_same(rows: list[dict[str, Any]]) -> None:
    rows = [{"online": None, **row} for row in rows]
    from_records = SCHEMA.from_records(rows)
    cells = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    typed = pa.table({name: pa.array(values, ARROW[name]) for name, values in cells.items()})
    text = pa.table(
        {name: pa.array(map(as_text, values), pa.string()) for name, values in cells.items()}
    )
    for table in (typed, text, typed.combine_chunks()):
        batch = SCHEMA.from_arrow(table)
        assert batch.problems == from_records.problems == ()
        assert plainly(batch) == plainly(from_records)
        assert len(batch) == len(from_records) == len(rows)


def test_a_record_without_any_column_has_a_problem() -> None:
    batch = SCHEMA.from_records([{}, {"at": None}, {"id": 1, "Amounts": 3}, {"id": 2}, {}])
    assert [(problem.row, problem.column) for problem in batch.problems] == [
        (0, None), (2, None), (3, None), (4, None)
    ]  # fmt: skip
    found_nothing, other, plain, again = (problem.reason for problem in batch.problems)
    assert found_nothing == again
    assert found_nothing.endswith("expected 'amount', 'online', 'country', 'at', found nothing")
    assert other == plain == found_nothing.removesuffix(", found nothing")
    (problem,) = SCHEMA.from_records([{"id": 1, "Amounts": 3}]).problems
    assert problem.reason.endswith("found 'id', 'Amounts'; 'Amounts' may mean 'amount'")


def test_an_absent_column_or_key_is_missing_in_every_row() -> None:
    missing = {"online": [None] * 2, "country": [None] * 2, "at": [None] * 2}
    expected = {"amount": [1.0, 2.0], **missing}
    assert plainly(SCHEMA.from_arrow(pa.table({"amount": [1, 2]}))) == expected
    assert plainly(SCHEMA.from_records([{"amount": 1}, {"amount": 2}])) == expected


def test_the_order_of_the_columns_does_not_matter() -> None:
    table = pa.table({"at": ["2024-01-01"], "amount": [1.5], "country": ["de"], "online": [1]})
    turned = table.select(["online", "country", "amount", "at"])
    assert plainly(SCHEMA.from_arrow(table)) == plainly(SCHEMA.from_arrow(turned))


def test_what_the_schema_does_not_know_is_ignored_and_named() -> None:
    table = pa.table({"amount": [1], "zz": [1], "id": [1], "note": ["x"]})
    assert SCHEMA.from_arrow(table).ignored == ("note", "zz")
    assert SCHEMA.from_records([{"note": 1}, {"zz": 2, "id": 3}]).ignored == ("note", "zz")


def test_a_cell_that_does_not_fit_is_named_by_column_and_row() -> None:
    table = pa.table({"amount": ["1", "abc", "inf"], "online": ["0", "7", "1"]})
    batch = SCHEMA.from_arrow(table)
    assert [str(problem) for problem in batch.problems] == [
        "column 'amount', row 1: expected a number, got 'abc'",
        "column 'amount', row 2: infinity is not a value; leave it empty if it is missing",
        "column 'online', row 1: expected 0 or 1, got 7",
    ]
    assert batch.usable.tolist() == [True, False, False]
    assert plainly(batch)["amount"] == [1.0, None, None]


def test_a_problem_of_the_whole_row_names_the_row_alone() -> None:
    assert str(RowProblem(4, None, "expected an object")) == "row 4: expected an object"


def test_a_type_that_cannot_hold_the_column_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="column 'amount': expected numbers, found list") as caught:
        SCHEMA.from_arrow(pa.table({"amount": [[1]]}))
    assert caught.value.column == "amount"


def test_a_table_of_other_columns_is_refused_and_both_sides_are_listed() -> None:
    with pytest.raises(DataError) as caught:
        SCHEMA.from_arrow(pa.table({"a": [1], "b": [2]}))
    assert str(caught.value) == (
        "none of the model's columns found; expected 'amount', 'online', 'country', 'at', "
        "found 'a', 'b'"
    )


def test_no_rows_are_an_empty_batch() -> None:
    for batch in (SCHEMA.from_records([]), SCHEMA.from_arrow(pa.table({"amount": []}))):
        assert len(batch) == 0
        assert batch.usable.tolist() == []


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_rows_are_taken_alike_by_mask_and_by_position(mask: list[bool]) -> None:
    batch = SCHEMA.from_records([{"amount": 1, "country": "a"}, {"country": "b"}, {"amount": "x"}])
    by_mask = batch.take(np.array(mask))
    by_position = batch.take(np.flatnonzero(mask))
    assert plainly(by_mask) == plainly(by_position)
    assert len(by_mask) == len(by_position) == sum(mask)
    assert by_mask.problems == ()
    expected = [name for name, kept in zip(["a", "b", None], mask, strict=True) if kept]
    assert plainly(by_mask)["country"] == expected


@given(
    st.lists(st.tuples(st.text(max_size=5), st.sampled_from(ColumnType)), unique_by=lambda c: c[0]),
    st.frozensets(st.text(max_size=5)),
)
def test_a_schema_survives_the_manifest(
    columns: list[tuple[str, ColumnType]], known: frozenset[str]
) -> None:
    schema = TabularSchema(tuple(Column(name, kind) for name, kind in columns), known)
    assert TabularSchema.from_json(schema.to_json()) == schema


def test_texts_of_markers_are_levels_if_they_are_literal_and_the_format_has_types() -> None:
    columns = (Column("c", ColumnType.CATEGORICAL), Column("a", ColumnType.NUMERIC))
    literal, earlier = TabularSchema(columns, literal_text=True), TabularSchema(columns)
    cells = ["NA", "", "x", None]
    table = pa.table({"c": cells, "a": ["NA", "", "1", None]})

    def levels(batch: RawBatch) -> list[str | None]:
        values = batch.values["c"]
        assert isinstance(values, Levels)
        assert np.isnan(batch.values["a"][:2]).all()  # type: ignore[index]  # numbers
        return [None if code < 0 else values.names[code] for code in values.codes]

    assert levels(literal.from_arrow(table)) == cells
    assert levels(literal.from_records([{"c": c, "a": None} for c in cells])) == cells
    assert levels(earlier.from_arrow(table)) == [None, None, "x", None]
    assert levels(earlier.from_records([{"c": c, "a": None} for c in cells])) == [
        None, None, "x", None
    ]  # fmt: skip


def test_earlier_manifests_have_markers_and_new_ones_say_that_they_have_not() -> None:
    schema = TabularSchema((Column("c", ColumnType.CATEGORICAL),))
    assert "literal_text" not in schema.to_json()
    assert TabularSchema.from_json(schema.to_json()) == schema
    literal = TabularSchema(schema.columns, literal_text=True)
    assert TabularSchema.from_json(literal.to_json()) == literal


FORMATS = TabularSchema(
    (
        Column("ms", ColumnType.DATETIME, "epoch_ms"),
        Column("eu", ColumnType.DATETIME, "%d/%m/%Y"),
        Column("day", ColumnType.DATETIME, "%Y%m%d"),
    )
)


def test_times_are_read_in_their_format_from_every_source() -> None:
    record = {"ms": 86_400_000, "eu": "02/01/1970", "day": 19700102}
    texts = {"ms": ["86400000", "NA"], "eu": ["02/01/1970 00:00", ""], "day": ["19700102", None]}
    batches = [
        FORMATS.from_records([record, dict.fromkeys(record)]),
        FORMATS.from_arrow(pa.Table.from_pylist([record, dict.fromkeys(record)])),
        FORMATS.from_arrow(pa.table(texts)),
        FORMATS.from_arrow(pa.table({"ms": pa.array([86_400_000, None], pa.timestamp("ms"))})),
        FORMATS.from_records([dict.fromkeys(record, "1970-01-02"), dict.fromkeys(record)]),
    ]
    for batch in batches:
        assert not batch.problems
        for name in record if batch is not batches[3] else ("ms",):
            assert batch.values[name][0] == 86_400.0
            assert np.isnan(batch.values[name][1])


def test_the_format_of_a_time_is_named_where_a_value_does_not_fit() -> None:
    (problem,) = FORMATS.from_records([{"eu": "13/13/1970"}]).problems
    assert str(problem) == (
        "column 'eu', row 0: expected a time of the form %d/%m/%Y, got '13/13/1970'"
    )


def test_formats_are_kept_in_the_manifest_and_left_out_where_there_are_none() -> None:
    assert TabularSchema.from_json(FORMATS.to_json()) == FORMATS
    plain = TabularSchema((Column("a", ColumnType.DATETIME),))
    assert plain.to_json()["columns"] == [{"name": "a", "type": "datetime"}]


def test_signatures_and_schemas_follow_the_format() -> None:
    assert [column.mlflow_type for column in FORMATS.columns] == ["double", "string", "double"]
    assert Column("a", ColumnType.DATETIME).mlflow_type == "datetime"
    assert FORMATS.columns[0].json_schema["type"] == ["string", "number", "null"]
