"""Data frames are read as the same table, whatever types pandas gives their columns."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from anomaly_vae.data.arrow import levels_from_arrow, numbers_from_arrow, times_from_arrow
from anomaly_vae.data.dataframes import frame_to_table
from anomaly_vae.errors import DataError


def test_types_and_missing_values_are_kept() -> None:
    frame = pd.DataFrame(
        {
            "float": [1.5, np.nan],
            "nullable": pd.array([1, None], "Int64"),
            "text": ["a", None],
            "time": pd.to_datetime(["2024-01-01", None]),
            "flag": [True, False],
        }
    )
    table = frame_to_table(frame)
    assert table.to_pylist() == [
        {"float": 1.5, "nullable": 1, "text": "a", "time": dt.datetime(2024, 1, 1), "flag": True},  # noqa: DTZ001  # as in the frame
        {"float": None, "nullable": None, "text": None, "time": None, "flag": False},
    ]
    assert table.schema.field("nullable").type == pa.int64()


def test_times_with_a_zone_are_read_as_moments_and_without_a_warning() -> None:
    """pandas 3.1 warns when pyarrow reads a zone from it."""
    local = pd.Series(pd.to_datetime(["2024-07-01 12:00", None])).dt.tz_localize("Europe/Berlin")
    seconds, problems = times_from_arrow(frame_to_table(local.to_frame("at"))["at"])
    assert seconds[0] == dt.datetime(2024, 7, 1, 10, tzinfo=dt.UTC).timestamp()
    assert np.isnan(seconds[1])
    assert problems == []


def test_a_column_of_mixed_objects_becomes_text_that_spells_one_level_one_way() -> None:
    table = frame_to_table(pd.DataFrame({"mixed": [5, "5", 5.0, None, True, "a", np.nan]}))
    assert table["mixed"].to_pylist() == ["5", "5", "5", None, "true", "a", None]


def test_every_kind_of_missing_is_missing_among_objects() -> None:
    table = frame_to_table(pd.DataFrame({"mixed": [pd.NA, pd.NaT, None, np.nan, "a", 1]}))
    assert table["mixed"].to_pylist() == [None, None, None, None, "a", "1"]


def test_a_bad_number_among_objects_is_reported_at_its_row() -> None:
    table = frame_to_table(pd.DataFrame({"amount": [1.5, "abc", None]}))
    values, problems = numbers_from_arrow(table["amount"])
    assert values[0] == 1.5
    assert np.isnan(values[1:]).all()
    assert [(p.row, p.reason) for p in problems] == [(1, "expected a number, got 'abc'")]


def test_decimals_and_categories_are_read() -> None:
    frame = pd.DataFrame(
        {"price": [Decimal("1.50"), None], "kind": pd.Categorical(["a", "b"])}, index=[7, 9]
    )
    table = frame_to_table(frame)
    assert numbers_from_arrow(table["price"])[0][0] == 1.5
    assert levels_from_arrow(table["kind"])[0].names == ("a", "b")


def test_names_that_are_no_text_become_text() -> None:
    assert frame_to_table(pd.DataFrame({0: [1.0], "a": [2.0]})).column_names == ["0", "a"]


def test_an_empty_frame_keeps_its_columns() -> None:
    table = frame_to_table(pd.DataFrame({"a": pd.Series([], dtype="float64")}))
    assert (table.column_names, len(table)) == (["a"], 0)


@pytest.mark.parametrize("twice", [["a", "a"], [1, "1"]])
def test_two_columns_of_one_name_are_refused_by_name(twice: list[object]) -> None:
    frame = pd.DataFrame([[1.0, 2.0]], columns=twice)
    with pytest.raises(DataError, match=r"'[a1]' .*more than once"):
        frame_to_table(frame)


SHOP = pd.cut(np.array([1.0, 5.0, np.nan, 9.0]), [0, 4, 8, 12])
PERIODS = pd.PeriodIndex(["2024-01", "2024-02", None, "2024-01"], freq="M")


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (SHOP, ["(0, 4]", "(4, 8]", None, "(8, 12]"]),
        (pd.Series(SHOP).astype(object), ["(0, 4]", "(4, 8]", None, "(8, 12]"]),
        (pd.arrays.IntervalArray.from_tuples([(0, 1), None, (1, 2), (0, 1)]),
         ["(0.0, 1.0]", None, "(1.0, 2.0]", "(0.0, 1.0]"]),
        (PERIODS, ["2024-01", "2024-02", None, "2024-01"]),
        (pd.Categorical(PERIODS), ["2024-01", "2024-02", None, "2024-01"]),
        (pd.Categorical([(1, "x"), (2, "y"), None, (1, "x")]),
         ["(1, 'x')", "(2, 'y')", None, "(1, 'x')"]),
        ([UUID(int=1), UUID(int=2), None, UUID(int=1)],
         [str(UUID(int=1)), str(UUID(int=2)), None, str(UUID(int=1))]),
        ([10**30, 1, None, 2], [str(10**30), "1", None, "2"]),
        (pd.Series(["\ud800", "b", None, "NA"], dtype=object), ["\\ud800", "b", None, "NA"]),
        ([1 + 2j, 3j, None, 0j], ["(1+2j)", "3j", None, "0j"]),
        ([pd.Series([1, 2]), {1: {2}}, None, [1, "a"]],
         ["0 1 1 2 dtype: int64", "{1: {2}}", None, "[1, 'a']"]),
    ],
)  # fmt: skip
def test_values_that_arrow_does_not_know_become_text(column: Any, texts: list[str | None]) -> None:
    frame = pd.DataFrame({"a": pd.Series(column)})
    table = frame_to_table(frame)
    assert table.column("a").type in (pa.string(), pa.large_string())
    assert table.column("a").to_pylist() == texts


@pytest.mark.parametrize(
    "column",
    [
        pd.arrays.SparseArray([0.0, 1.0, 0.0]), pd.arrays.SparseArray([0, 1, 0]),
        np.array([0, 1, 0], np.longdouble), np.array([0, 1, 0], np.float16),
        pd.array([0, 1, 0], "Int64"), pd.array([0, 1, 0], pd.ArrowDtype(pa.int8())),
        pd.array([False, True, False], "boolean"), [Decimal(0), Decimal("1.0"), Decimal("0E+3")],
    ],
)  # fmt: skip
def test_numbers_of_any_type_are_numbers(column: Any) -> None:
    table = frame_to_table(pd.DataFrame({"a": column}))
    assert numbers_from_arrow(table.column("a"))[0].tolist() == [0, 1, 0]


def test_an_empty_column_of_intervals_is_text() -> None:
    table = frame_to_table(pd.DataFrame({"a": SHOP[:0]}))
    assert table.column("a").to_pylist() == []
