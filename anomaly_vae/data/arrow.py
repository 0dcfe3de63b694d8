"""Convert Arrow arrays (from files and data frames) into the arrays of a `RawBatch`.

For the same content, the results equal those of `converters`. The modules are separate so that a
process that reads only JSON records does not load Arrow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.data.converters import (
    MISSING,
    CellProblem,
    Converted,
    ConvertedLevels,
    Numbers,
    level_name,
    merge_levels,
    times_from_values,
)
from anomaly_vae.errors import DataError
from anomaly_vae.messages import shown

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
"""Pattern of a finite decimal number in text."""
INFINITE = r"^[+-]?[iI][nN][fF]([iI][nN][iI][tT][yY])?$"
"""Pattern of an infinite number in text."""


def numbers_from_arrow(array: pa.Array) -> Converted:
    """Convert an Arrow array (N,) of numbers, booleans or text into float64; NaN where missing.

    Raises:
        DataError: the array is of another type.
    """
    array = normalise_array(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan), []
    if is_text(kind):
        return _numbers_from_text(array)
    if not (pa.types.is_boolean(kind) or is_numeric(kind)):
        raise DataError(f"expected numbers, found {kind}")
    values = _to_numpy(array.cast(pa.float64(), safe=False))
    return _refuse_infinite(values)


def binary_from_arrow(array: pa.Array) -> Converted:
    """Convert an Arrow array (N,) of booleans, numbers or text into zeros and ones.

    Raises:
        DataError: the array is of another type.
    """
    array = normalise_array(array)
    if is_text(array.type):
        lower = pc.utf8_lower(pc.utf8_trim_whitespace(array))
        array = pc.if_else(pc.equal(lower, "true"), "1", array)
        array = pc.if_else(pc.equal(lower, "false"), "0", array)
    values, problems = numbers_from_arrow(array)
    invalid = np.flatnonzero(~np.isnan(values) & (values != 0) & (values != 1))
    problems += [CellProblem(int(i), f"expected 0 or 1, got {values[i]:g}") for i in invalid]
    values[invalid] = np.nan
    return values, problems


def levels_from_arrow(array: pa.Array) -> ConvertedLevels:
    """Convert an Arrow array (N,) into levels; 5, 5.0 and "5" become the same level.

    Raises:
        DataError: the array is nested or of another type that cannot be categorical.
    """
    try:
        encoded = normalise_array(array).dictionary_encode()
    except pa.ArrowNotImplementedError:
        raise DataError(f"expected categories, found {array.type}") from None
    names = [level_name(value) for value in encoded.dictionary.to_pylist()]
    raw = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return merge_levels(raw, names), []


def times_from_arrow(array: pa.Array, time_format: str | None = None) -> Converted:
    """Convert timestamps, dates, or text or numbers (N,) into seconds since 1970.

    Times without a zone are read as UTC. Text is read as `times.parse_time` reads it; numbers need
    a format.

    Raises:
        DataError: the array is of another type.
    """
    array = normalise_array(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan), []
    if is_text(kind) or (time_format and is_numeric(kind)):
        return times_from_values(_present_values(array), time_format)
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise DataError(f"expected dates or times, found {kind}")
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    micros = array.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
    return _to_numpy(micros.cast(pa.float64(), safe=False)) / 1e6, []


def _present_values(array: pa.Array) -> list[Any]:
    """Return plain values (N,), None where missing."""
    return [None if value != value else value for value in array.to_pylist()]  # noqa: PLR0124 NaN


def normalise_array(array: pa.Array) -> pa.Array:
    """Return one contiguous array of a type that all compute kernels accept."""
    if pa.types.is_dictionary(array.type):
        if pa.types.is_string_view(
            array.type.value_type
        ):  # no kernel decodes dictionaries of string views
            array = array.cast(pa.dictionary(array.type.index_type, pa.string()))
        array = array.cast(array.type.value_type)
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_numeric(kind: pa.DataType) -> bool:
    """Return whether an Arrow type holds numbers."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _numbers_from_text(array: pa.Array) -> Converted:
    text = pc.utf8_trim_whitespace(array)
    good = pc.match_substring_regex(text, NUMBER)
    missing = pc.or_kleene(pc.is_null(text), pc.is_in(text, value_set=pa.array(MISSING, text.type)))
    values = _to_numpy(pc.if_else(good, text, None).cast(pa.float64()))
    invalid = _to_mask(pc.invert(pc.or_kleene(pc.fill_null(good, False), missing)))
    problems = [
        CellProblem(int(i), _not_a_number(array[int(i)].as_py())) for i in np.flatnonzero(invalid)
    ]
    values, infinite = _refuse_infinite(values)
    return values, problems + infinite


def _not_a_number(value: str) -> str:
    """Return the reason why a text is no finite number."""
    if pc.match_substring_regex(pa.scalar(value.strip()), INFINITE).as_py():
        return "infinity is not a value; leave it empty if it is missing"
    return f"expected a number, got {shown(value)}"


def _refuse_infinite(values: Numbers) -> Converted:
    """Replace infinite values by NaN and report them."""
    rows = np.flatnonzero(np.isinf(values))
    if len(rows):
        values = np.where(np.isinf(values), np.nan, values)
    reason = "infinity is not a value; leave it empty if it is missing"
    return values, [CellProblem(int(row), reason) for row in rows]


def _to_numpy(array: pa.Array) -> Numbers:
    return np.array(array.to_numpy(zero_copy_only=False), np.float64)


def _to_mask(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)
