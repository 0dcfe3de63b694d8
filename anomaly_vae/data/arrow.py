"""Convert Arrow arrays (from files and data frames) into the arrays of a `RawBatch`.

For the same content, the results equal those of `converters`. The modules are separate so that a
process that reads only JSON records does not load Arrow.

The same content arrives in many types: text as `string`, as a dictionary, as a view or as bytes
(files by Impala, Hive and old Spark do not mark text). `normalise_array` is the one function that
makes them equal.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
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
INDEX_NAME = re.compile(r"(__index_level_\d+__|Unnamed: \d+(_level_\d+)?)?")
"""Pattern of the names under which pandas writes an index without a name."""
NOT_UTF8 = "bytes that are not UTF-8 text"
"""Description of bytes that cannot be read as text."""
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
"""First second of the year 1 and last second of the year 9999, in seconds since 1970."""
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Number of ticks per second of a timestamp, by its unit."""
DAY = 86_400


def numbers_from_arrow(array: pa.Array) -> Converted:
    """Convert an Arrow array (N,) of numbers, booleans or text into float64; NaN where missing.

    Raises:
        DataError: the array is of another type.
    """
    array, problems = text_from_arrow(array)
    values, found = _numbers(array)
    return values, problems + found


def _numbers(array: pa.Array) -> Converted:
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
    array, problems = text_from_arrow(array)
    if is_text(array.type):
        lower = pc.utf8_lower(pc.utf8_trim_whitespace(array))
        array = pc.if_else(pc.equal(lower, "true"), "1", array)
        array = pc.if_else(pc.equal(lower, "false"), "0", array)
    values, found = _numbers(array)
    invalid = np.flatnonzero(~np.isnan(values) & (values != 0) & (values != 1))
    found += [CellProblem(int(i), f"expected 0 or 1, got {values[i]:g}") for i in invalid]
    values[invalid] = np.nan
    return values, problems + found


def levels_from_arrow(array: pa.Array) -> ConvertedLevels:
    """Convert an Arrow array (N,) into levels; 5, 5.0 and "5" become the same level.

    Only null and NaN are missing; a text such as "NA" is a level (see `Levels.without_markers`).

    Raises:
        DataError: the array is nested or of another type that cannot be categorical.
    """
    array, problems = text_from_arrow(array)
    array, found = refuse_far_times(array)
    try:
        encoded = array.dictionary_encode()
    except pa.ArrowNotImplementedError:
        raise DataError(f"expected categories, found {array.type}") from None
    names = [level_name(value) for value in encoded.dictionary.to_pylist()]
    raw = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return merge_levels(raw, names), problems + found


def times_from_arrow(array: pa.Array, time_format: str | None = None) -> Converted:
    """Convert timestamps, dates, or text or numbers (N,) into seconds since 1970.

    Times without a zone are read as UTC. Text is read as `times.parse_time` reads it; numbers need
    a format. Times outside the years 1 to 9999 are problems.

    Raises:
        DataError: the array is of another type.
    """
    array, problems = text_from_arrow(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan), []
    if is_text(kind) or (time_format and is_numeric(kind)):
        values, found = times_from_values(_present_values(without_markers(array)), time_format)
        return values, problems + found
    if not is_time(kind):
        remedy = "; for numbers, train with data.time_format" if is_numeric(kind) else ""
        raise DataError(f"expected dates or times, found {kind}{remedy}")
    array, found = refuse_far_times(array)
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    micros = array.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
    return _to_numpy(micros.cast(pa.float64(), safe=False)) / 1e6, found


def refuse_far_times(array: pa.Array) -> tuple[pa.Array, list[CellProblem]]:
    """Replace times outside the years 1 to 9999 by null and report them."""
    if not is_time(array.type):
        return array, []
    ticks, first, last = _ticks(array)
    far = pc.fill_null(pc.or_(pc.less(ticks, first), pc.greater(ticks, last)), False)
    if not pc.any(far).as_py():
        return array, []
    rows = np.flatnonzero(_to_mask(far))
    reason = "the time lies outside the years 1 to 9999"
    cleared = pc.if_else(far, pa.scalar(None, array.type), array)
    return cleared, [CellProblem(int(row), reason) for row in rows]


def _ticks(array: pa.Array) -> tuple[pa.Array, int, int]:
    """Return times as integers, with the first and last tick that lie in the years 1 to 9999."""
    if pa.types.is_date32(array.type):
        ticks = array.cast(pa.int32()).cast(pa.int64())
        return ticks, FIRST_SECOND // DAY, LAST_SECOND // DAY
    per_second = PER_SECOND["ms" if pa.types.is_date64(array.type) else array.type.unit]
    limit = 2**63 - 1  # nanoseconds that fit into 64 bits always lie in these years
    first, last = FIRST_SECOND * per_second, (LAST_SECOND + 1) * per_second - 1
    return array.cast(pa.int64()), max(first, -limit), min(last, limit)


# ---------------------------------------------------------------- one type for equal content


def _present_values(array: pa.Array) -> list[Any]:
    """Return plain values (N,), None where missing."""
    return [None if value != value else value for value in array.to_pylist()]  # noqa: PLR0124 NaN


def normalise_array(array: pa.Array) -> pa.Array:
    """Return one contiguous array of a type that all compute kernels accept.

    Dictionaries, run-end encoded arrays, views and extension types are replaced by their values,
    and bytes by text if all of them are UTF-8.
    """
    array = plain_array(array)
    if not is_bytes(array.type):
        return array
    try:
        return _bytes_to_text(array)
    except pa.ArrowInvalid:
        return array


def text_from_arrow(array: pa.Array) -> tuple[pa.Array, list[CellProblem]]:
    """Normalise an array (N,), with bytes that are not UTF-8 as nulls and problems."""
    array = normalise_array(array)
    if not is_bytes(array.type):
        return array, []
    wrong = not_utf8(array)
    cleared = pc.if_else(pa.array(wrong), pa.scalar(None, array.type), array)
    problems = [
        CellProblem(int(row), f"expected text, got {NOT_UTF8}") for row in np.flatnonzero(wrong)
    ]
    return _bytes_to_text(cleared), problems


def not_utf8(array: pa.Array) -> NDArray[np.bool_]:
    """Return a mask (N,) of the bytes that are not UTF-8; all False for other types."""
    if not is_bytes(array.type):
        return np.zeros(len(array), bool)
    return np.array([not _is_utf8(cell) for cell in array.to_pylist()], bool)


def _is_utf8(cell: bytes | None) -> bool:
    try:
        return (cell or b"").decode() is not None
    except UnicodeDecodeError:
        return False


def _bytes_to_text(array: pa.Array) -> pa.Array:
    """Convert bytes into text, without NUL characters that fill up a fixed width."""
    large = pa.types.is_large_binary(array.type)
    text = array.cast(pa.large_string() if large else pa.string())
    return pc.utf8_rtrim(text, characters="\0")


def plain_array(array: pa.Array) -> pa.Array:
    """Return one contiguous array of plain values, in which bytes remain bytes."""
    if not isinstance(array, pa.ChunkedArray):
        return _plain(array)
    chunks = [_plain(chunk) for chunk in array.chunks or [pa.nulls(0, array.type)]]
    if pa.types.is_string(chunks[0].type) and sum(chunk.nbytes for chunk in chunks) >= 2**31:
        chunks = [chunk.cast(pa.large_string()) for chunk in chunks]  # offsets exceed 32 bits
    return pa.chunked_array(chunks).combine_chunks()


def _plain(array: pa.Array) -> pa.Array:
    """Replace each layer of an array by its values until a plain type is left."""
    for applies, replace in LAYERS:
        if applies(array.type):
            return _plain(replace(array))
    return array


def _decoded_dictionary(array: pa.DictionaryArray) -> pa.Array:
    # no kernel decodes dictionaries of views or of extension types
    return _plain(array.dictionary).take(array.indices)


def _decoded_runs(array: pa.RunEndEncodedArray) -> pa.Array:
    positions = np.arange(array.offset, array.offset + len(array))
    runs = np.searchsorted(array.run_ends.to_numpy(), positions, side="right")
    return _plain(array.values).take(pa.array(runs))


def _storage(array: pa.ExtensionArray) -> pa.Array:
    """Return the values of an extension type: UUIDs, periods and intervals become text."""
    name = array.type.extension_name
    if name == "arrow.uuid":
        cells = array.storage.to_pylist()
        texts = [None if cell is None else str(uuid.UUID(bytes=cell)) for cell in cells]
        return pa.array(texts, pa.string())
    if name == "arrow.bool8":
        return array.storage.cast(pa.bool_())
    if name.startswith("pandas."):
        values = array.to_pandas()
        return pa.array(values.astype(str).where(values.notna(), None), pa.string())
    return array.storage


def _is_small_decimal(kind: pa.DataType) -> bool:
    return bool(pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind))


LAYERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], pa.Array]], ...] = (
    (lambda kind: isinstance(kind, pa.BaseExtensionType), _storage),
    (pa.types.is_dictionary, _decoded_dictionary),
    (pa.types.is_run_end_encoded, _decoded_runs),
    (pa.types.is_string_view, lambda array: array.cast(pa.string())),
    (pa.types.is_binary_view, lambda array: array.cast(pa.binary())),
    (pa.types.is_fixed_size_binary, lambda array: array.cast(pa.binary())),
    (pa.types.is_float16, lambda array: array.cast(pa.float32())),
    (
        _is_small_decimal,
        lambda array: array.cast(pa.decimal128(array.type.precision, array.type.scale)),
    ),
)
"""Function that replaces an array by one of a simpler type, by the types it applies to."""


def without_markers(array: pa.Array) -> pa.Array:
    """Return an array of text (N,) with nulls for texts that mean a missing value, such as NA."""
    if not is_text(array.type):
        return array
    return pc.if_else(is_missing(array), pa.scalar(None, array.type), array)


def is_missing(text: pa.Array, markers: Sequence[str] = ()) -> pa.Array:
    """Return a mask (N,) of texts that mean a missing value; False for nulls.

    Args:
        text: (N,) texts.
        markers: texts that mean a missing value, besides those of `MISSING`.
    """
    values = pa.array([*MISSING, *markers], text.type)
    return pc.is_in(pc.utf8_trim_whitespace(text), value_set=values)


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether an Arrow type holds bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_time(kind: pa.DataType) -> bool:
    """Return whether an Arrow type holds moments or dates."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def is_numeric(kind: pa.DataType) -> bool:
    """Return whether an Arrow type holds numbers."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _numbers_from_text(array: pa.Array) -> Converted:
    text = pc.utf8_trim_whitespace(array)
    good = pc.match_substring_regex(text, NUMBER)
    missing = pc.or_kleene(pc.is_null(text), is_missing(text))
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
