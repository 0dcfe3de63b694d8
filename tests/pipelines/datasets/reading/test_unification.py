"""Types of several files become one type without loss, or an error names the files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from anomaly_vae.errors import DataError
from pipelines.datasets.reading.unification import read_as, unite_types


def unite(*kinds: pa.DataType) -> pa.DataType:
    return unite_types("x", {kind: Path(f"{i}.parquet") for i, kind in enumerate(kinds)})


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([pa.null()], pa.null()),
        ([pa.null(), pa.string()], pa.string()),
        ([pa.int8(), pa.int32()], pa.int32()),
        ([pa.uint8(), pa.uint16()], pa.uint16()),
        ([pa.uint8(), pa.int8()], pa.int64()),
        ([pa.uint64(), pa.int8()], pa.decimal128(20, 0)),
        ([pa.bool_(), pa.int32()], pa.int32()),
        ([pa.int64(), pa.float32()], pa.float64()),
        ([pa.decimal128(5, 2), pa.decimal128(7, 1)], pa.decimal128(8, 2)),
        ([pa.decimal128(5, 2), pa.int64()], pa.decimal128(22, 2)),
        ([pa.decimal128(38, 2), pa.int64()], pa.decimal128(38, 2)),
        ([pa.decimal128(38, 2), pa.decimal128(38, 4)], pa.decimal256(40, 4)),
        ([pa.decimal128(5, 2), pa.float64()], pa.float64()),
        ([pa.string(), pa.large_string()], pa.large_string()),
        ([pa.string(), pa.binary()], pa.binary()),
        ([pa.date32(), pa.timestamp("ms")], pa.timestamp("ms")),
        ([pa.timestamp("us"), pa.timestamp("ns")], pa.timestamp("ns")),
        ([pa.timestamp("us"), pa.timestamp("us", "UTC")], pa.timestamp("us", "UTC")),
        ([pa.timestamp("us", "Europe/Rome")] * 2, pa.timestamp("us", "Europe/Rome")),
        ([pa.date32(), pa.date64()], pa.timestamp("ms")),
        ([pa.time32("s"), pa.time64("us")], pa.time64("ns")),
        ([pa.duration("s"), pa.duration("us")], pa.duration("us")),
    ],
)
def test_types_have_a_union(kinds: list[pa.DataType], expected: pa.DataType) -> None:
    assert unite(*kinds) == unite(*reversed(kinds)) == expected


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (pa.float64(), pa.string()),
        (pa.timestamp("us"), pa.int64()),
        (pa.bool_(), pa.string()),
        (pa.list_(pa.int64()), pa.int64()),
        (pa.duration("s"), pa.timestamp("s")),
    ],
)
def test_contradictions_name_the_column_both_files_and_both_types(
    first: pa.DataType, other: pa.DataType
) -> None:
    with pytest.raises(DataError) as caught:
        unite(pa.null(), first, other)
    assert caught.value.column == "x"
    expected = f"column 'x' is {first} in '1.parquet' but {other} in '2.parquet'; "
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("cells", "others", "expected"),
    [
        (["1", " 2 ", None], [pa.int64()], [1, 2, None]),
        ([str(2**62 + 1)], [pa.int64()], [2**62 + 1]),
        (["1.5", "NA", "7"], [pa.int32(), pa.float64()], [1.5, None, 7.0]),
        (["1.5"], [pa.decimal128(5, 2)], [1.5]),
        (["true", "0", None], [pa.bool_()], [True, False, None]),
        (["2018-07-01", "2018-07-01 10:00:00.5", None], [pa.date32()],
         [dt.datetime(2018, 7, 1), dt.datetime(2018, 7, 1, 10, 0, 0, 500_000), None]),  # noqa: DTZ001
        ([None, None], [pa.float64()], [None, None]),
        (["1", "x"], [pa.int64()], ["1", "x"]),
        (["01", "02"], [pa.int64()], ["01", "02"]),
        (["1"], [pa.timestamp("us")], ["1"]),
        (["1"], [pa.int64(), pa.timestamp("us")], ["1"]),
        (["1"], [pa.duration("s")], ["1"]),
    ],
)  # fmt: skip
def test_text_is_read_as_other_files_have_the_column_or_stays(
    cells: list[str | None], others: list[pa.DataType], expected: list[Any]
) -> None:
    kinds = [pa.string(), pa.null(), *others]
    assert read_as(pa.array(cells, pa.string()), kinds).to_pylist() == expected
