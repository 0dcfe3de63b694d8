"""Equal content of Arrow arrays converts to equal values, whatever their type."""

import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.data.arrow import (
    binary_from_arrow,
    levels_from_arrow,
    normalise_array,
    numbers_from_arrow,
    times_from_arrow,
)
from anomaly_vae.data.converters import (
    MISSING,
    binary_from_values,
    level_name,
    levels_from_values,
    numbers_from_values,
    times_from_values,
)
from anomaly_vae.errors import DataError
from tests.support.levels import names

TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
    pa.dictionary(pa.uint32(), pa.string_view()),
]
WHOLE_TYPES = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
NUMBER_TYPES = [
    *WHOLE_TYPES,
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.decimal128(9, 2),
    pa.decimal256(40, 3),
    pa.dictionary(pa.int16(), pa.int64()),
]
small = st.lists(st.none() | st.integers(-100, 100), max_size=20)
texts = st.text(st.characters(codec="utf-8"), max_size=6)


def as_type(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return an Arrow array, via a type that can be cast to ``kind``."""
    if pa.types.is_dictionary(kind):
        return as_type(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_decimal(kind):
        return pa.array([None if v is None else Decimal(v) for v in values], kind)
    return pa.array(values, pa.int64()).cast(kind) if values else pa.array([], kind)


def text_array(values: list[str | None], kind: pa.DataType) -> pa.Array:
    array = pa.array(values, pa.string())
    if pa.types.is_dictionary(kind):
        encoded = array.dictionary_encode()
        index, levels = encoded.indices.cast(kind.index_type), encoded.dictionary
        return pa.DictionaryArray.from_arrays(index, levels.cast(kind.value_type))
    return array.cast(kind)


def in_chunks(array: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array([array[:3], array[3:]])


# ---------------------------------------------------------------- numbers


@given(small)
def test_numbers_are_the_same_from_every_type_from_text_and_from_json(
    values: list[int | None],
) -> None:
    expected = np.array([math.nan if v is None else float(v) for v in values])
    arrays = [as_type(values, kind) for kind in NUMBER_TYPES]
    for spelled in (str, lambda v: f" {float(v)}\t", lambda v: f"{v:e}"):
        text = [None if v is None else spelled(v) for v in values]
        arrays += [text_array(text, kind) for kind in TEXT_TYPES]
    read = [numbers_from_arrow(a) for array in arrays for a in (array, in_chunks(array))]
    read += [numbers_from_values(values)]
    read += [numbers_from_values([None if v is None else float(v) for v in values])]
    for found, problems in read:
        assert problems == []
        np.testing.assert_array_equal(found, expected)


@given(st.lists(st.floats(allow_infinity=False), max_size=20))
def test_doubles_survive_text_bit_by_bit(values: list[float]) -> None:
    from_text, problems = numbers_from_arrow(pa.array([repr(v) for v in values], pa.string()))
    from_doubles, _ = numbers_from_arrow(pa.array(values, pa.float64()))
    assert problems == []
    np.testing.assert_array_equal(from_text, from_doubles)


@pytest.mark.parametrize(
    ("kind", "largest"), [(pa.uint8(), 255), (pa.uint16(), 65_535), (pa.uint64(), 2**64 - 1)]
)
def test_unsigned_integers_are_numbers(kind: pa.DataType, largest: int) -> None:
    found, problems = numbers_from_arrow(pa.array([largest, None], kind))
    np.testing.assert_array_equal(found, [float(largest), math.nan])
    assert problems == []


@pytest.mark.parametrize("spelling", [*MISSING, "  ", " NA "])
def test_spellings_of_missing_are_missing_in_text(spelling: str) -> None:
    found, problems = numbers_from_arrow(pa.array([spelling, "1"]))
    np.testing.assert_array_equal(found, [math.nan, 1.0])
    assert problems == []


@pytest.mark.parametrize("read", [numbers_from_arrow, binary_from_arrow, times_from_arrow])
def test_a_column_without_values_is_missing_throughout(read: Callable[..., Any]) -> None:
    for array in (pa.nulls(3), pa.chunked_array([pa.nulls(3)]), pa.nulls(3, pa.string())):
        found, problems = read(array)
        assert np.isnan(found).tolist() == [True] * 3
        assert problems == []


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_infinity_is_refused_with_its_row(value: float, kind: pa.DataType) -> None:
    found, [problem] = numbers_from_arrow(pa.array([1.0, value], kind))
    assert problem.row == 1
    assert "infinity is not a value" in problem.reason
    np.testing.assert_array_equal(found, [1.0, math.nan])


@pytest.mark.parametrize("text", ["inf", "-Infinity", "+INF", " inf ", "1e400", "-1e999"])
def test_infinity_is_refused_in_text_however_it_is_written(text: str) -> None:
    found, [problem] = numbers_from_arrow(pa.array(["1", text]))
    assert problem.row == 1
    assert "infinity is not a value" in problem.reason
    assert math.isnan(found[1])


@pytest.mark.parametrize("text", ["12,50", "1_000", "0x10", "1 2", "--1", "e5", ".", "1e", "１"])
def test_text_that_is_no_number_is_one_bad_row_and_the_others_survive(text: str) -> None:
    found, [problem] = numbers_from_arrow(pa.array(["1", text, "3"]))
    assert (problem.row, problem.reason) == (1, f"expected a number, got {text!r}")
    np.testing.assert_array_equal(found, [1.0, math.nan, 3.0])


@pytest.mark.parametrize("text", ["+5", "5.", ".5", "-.5e-3", "1.E+2", "1e-400"])
def test_every_way_to_write_a_number_is_read(text: str) -> None:
    found, problems = numbers_from_arrow(pa.array([text]))
    assert problems == []
    assert found[0] == float(text)


# ---------------------------------------------------------------- zeros and ones


@given(st.lists(st.none() | st.booleans(), max_size=12))
def test_binary_is_the_same_from_booleans_numbers_text_and_json(bits: list[bool | None]) -> None:
    expected = np.array([math.nan if b is None else float(b) for b in bits])
    arrays = [pa.array(bits, pa.bool_())]
    arrays += [pa.array(bits, pa.bool_()).cast(kind) for kind in (pa.int8(), pa.float64())]
    for spelled in (str, lambda b: str(b).lower(), lambda b: str(int(b)), lambda b: f"{b:.1f}"):
        text = [None if b is None else spelled(b) for b in bits]
        arrays += [text_array(text, kind) for kind in TEXT_TYPES]
    read = [binary_from_arrow(in_chunks(array)) for array in arrays]
    read += [binary_from_values(bits)]
    read += [binary_from_values([None if b is None else int(b) for b in bits])]
    for found, problems in read:
        assert problems == []
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (pa.array([0, 2]), "expected 0 or 1, got 2"),
        (pa.array([0.0, 0.5]), "expected 0 or 1, got 0.5"),
        (pa.array(["0", "-1"]), "expected 0 or 1, got -1"),
        (pa.array(["true", "yes"]), "expected a number, got 'yes'"),
    ],
)
def test_other_values_are_not_binary(cells: pa.Array, reason: str) -> None:
    found, [problem] = binary_from_arrow(cells)
    assert (problem.row, problem.reason) == (1, reason)
    assert math.isnan(found[1])


# ---------------------------------------------------------------- levels


@given(st.lists(st.none() | texts, max_size=12))
def test_levels_are_the_same_from_every_text_type_and_from_json(values: list[str | None]) -> None:
    expected, problems = levels_from_values(values)
    assert problems == []
    for kind in TEXT_TYPES:
        array = text_array(values, kind)
        for cells in (array, in_chunks(array)):
            found, problems = levels_from_arrow(cells)
            assert problems == []
            assert names(found) == names(expected) == [level_name(v) for v in values]


@given(small)
def test_whole_levels_are_the_same_from_every_type_and_from_json(values: list[int | None]) -> None:
    expected = [None if v is None else str(v) for v in values]
    for kind in NUMBER_TYPES:
        assert names(levels_from_arrow(as_type(values, kind))[0]) == expected
    assert names(levels_from_values(values)[0]) == expected
    assert names(levels_from_values([v if v is None else float(v) for v in values])[0]) == expected


def test_dictionaries_that_differ_between_chunks_are_united() -> None:
    """Merging works even if each chunk fits its index type and all chunks together do not."""
    small_index = pa.dictionary(pa.int8(), pa.string())
    parts = [[f"v{i}" for i in range(start, start + 100)] for start in (0, 50, 200)]
    cells = pa.chunked_array([pa.array(p).dictionary_encode().cast(small_index) for p in parts])
    assert names(levels_from_arrow(cells)[0]) == [name for part in parts for name in part]


def test_nulls_within_a_dictionary_are_missing() -> None:
    cells = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array([None, "x"]))
    assert names(levels_from_arrow(cells)[0]) == [None, "x", None]


def test_dictionaries_without_rows_are_read() -> None:
    cells = pa.chunked_array([], pa.dictionary(pa.int8(), pa.string()))
    assert len(levels_from_arrow(cells)[0]) == 0


# ---------------------------------------------------------------- times


EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 the moments below have no zone either
CENTURIES = st.integers(-3_000_000_000_000_000, 6_000_000_000_000_000)  # microseconds
moments = st.lists(
    st.none() | CENTURIES.map(lambda us: EPOCH + dt.timedelta(microseconds=us)), max_size=10
)


@given(moments)
def test_times_are_the_same_from_timestamps_text_and_json(values: list[dt.datetime | None]) -> None:
    seconds = [math.nan if v is None else (v - EPOCH).total_seconds() for v in values]
    iso = [None if v is None else v.isoformat() for v in values]
    zoned = [None if v is None else v.isoformat(" ") + "+00:00" for v in values]
    arrays = [pa.array(values, pa.timestamp("us")), pa.array(values, pa.timestamp("us", "UTC"))]
    arrays += [arrays[0].cast(pa.timestamp("ns"))]
    arrays += [text_array(text, kind) for text in (iso, zoned) for kind in TEXT_TYPES]
    read = [times_from_arrow(in_chunks(array)) for array in arrays]
    read += [times_from_values(iso), times_from_values(values)]
    for found, problems in read:
        assert problems == []
        np.testing.assert_allclose(found, seconds, rtol=0, atol=1e-5)


def test_a_zone_moves_the_moment_to_utc() -> None:
    text = ["2024-01-01T01:00:00+01:00", "2024-01-01T00:00:00Z", "2024-01-01"]
    assert len(set(times_from_values(text)[0])) == 1
    paris = pa.array([dt.datetime(2024, 1, 1, tzinfo=dt.UTC)], pa.timestamp("s", "Europe/Paris"))
    assert times_from_arrow(paris)[0][0] == times_from_values(text)[0][0]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_a_date_is_its_midnight(kind: pa.DataType) -> None:
    found, _ = times_from_arrow(pa.array([dt.date(2024, 1, 1), None], kind))
    np.testing.assert_array_equal(found, [1_704_067_200.0, math.nan])


@pytest.mark.parametrize("value", ["", "NaN", " null ", None])
def test_a_missing_time_is_nan(value: str | None) -> None:
    found, problems = times_from_arrow(pa.array([value, "2024-01-01"]))
    assert math.isnan(found[0])
    assert problems == []


# ---------------------------------------------------------------- types, quotations


@pytest.mark.parametrize(
    "read", [numbers_from_arrow, binary_from_arrow, levels_from_arrow, times_from_arrow]
)
@pytest.mark.parametrize("cells", [pa.array([[1]]), pa.array([{"a": 1}])], ids=["list", "struct"])
def test_nested_types_are_refused_by_name(read: Callable[..., Any], cells: pa.Array) -> None:
    with pytest.raises(DataError, match=f"^expected .*, found {cells.type}".replace("<", ".")):
        read(cells)


def test_times_are_no_numbers_and_numbers_no_times() -> None:
    with pytest.raises(DataError, match=r"expected numbers, found timestamp\[us\]"):
        numbers_from_arrow(pa.array([EPOCH]))
    with pytest.raises(DataError, match="expected dates or times, found int64"):
        times_from_arrow(pa.array([1]))


@pytest.mark.parametrize("kind", [*TEXT_TYPES, *NUMBER_TYPES], ids=str)
def test_plain_arrays_are_contiguous_and_of_a_type_that_kernels_take(kind: pa.DataType) -> None:
    array = text_array(["1"] * 4, kind) if kind in TEXT_TYPES else as_type([1] * 4, kind)
    found = normalise_array(in_chunks(array))
    assert isinstance(found, pa.Array)
    assert len(found.unique()) == 1
