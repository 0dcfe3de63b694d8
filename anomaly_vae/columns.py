"""One column of outside data → one array, and what is wrong with which row.

Arrow arrays (files, data frames) and plain values (JSON records) give the same result for the
same content. Missing is NaN in numbers and code −1 in levels; a bad cell is a `CellProblem`, and
the array holds "missing" in its place.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.errors import DataError

Numbers = NDArray[np.float64]

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
WHOLE = re.compile(r"([+-]?\d+)\.0*")
INFINITE = r"^[+-]?[iI][nN][fF]([iI][nN][iI][tT][yY])?$"
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Levels:
    """A categorical column: ``codes`` (N,) int32 into ``names``, −1 where missing."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: NDArray[Any]) -> Levels:
        """The rows at these positions (or of this mask)."""
        return Levels(self.codes[rows], self.names)

    def recode(self, index: dict[str, int], unseen: int) -> NDArray[np.int32]:
        """Codes (N,) under another table of levels; −1 stays −1, unknown names → ``unseen``."""
        table = np.array([index.get(name, unseen) for name in self.names] + [-1], np.int32)
        return table[self.codes]


@dataclass(frozen=True, slots=True)
class CellProblem:
    """What is wrong with the cell of this row."""

    row: int
    reason: str


Converted = tuple[Numbers, list[CellProblem]]
ConvertedLevels = tuple[Levels, list[CellProblem]]


def shown(value: object) -> str:
    """A value as an error message quotes it, cut to a length that is safe to print."""
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    text = text or (repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= 40 else text[:37] + "..."


# ---------------------------------------------------------------- Arrow arrays


def numbers_from_arrow(array: pa.Array) -> Converted:
    """Numbers of an Arrow array of any numeric, boolean or text type."""
    array = plain(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan), []
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _numbers_from_text(array)
    if not (pa.types.is_boolean(kind) or is_numeric(kind)):
        raise DataError(f"expected numbers, found {kind}")
    values = _to_numpy(array.cast(pa.float64(), safe=False))
    return _refuse_infinite(values)


def binary_from_arrow(array: pa.Array) -> Converted:
    """Zeros and ones of an Arrow array of booleans, numbers or text."""
    array = plain(array)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        lower = pc.utf8_lower(pc.utf8_trim_whitespace(array))
        array = pc.if_else(pc.equal(lower, "true"), "1", array)
        array = pc.if_else(pc.equal(lower, "false"), "0", array)
    values, problems = numbers_from_arrow(array)
    odd = np.flatnonzero(~np.isnan(values) & (values != 0) & (values != 1))
    problems += [CellProblem(int(i), f"expected 0 or 1, got {values[i]:g}") for i in odd]
    values[odd] = np.nan
    return values, problems


def levels_from_arrow(array: pa.Array) -> ConvertedLevels:
    """Levels of an Arrow array; whole numbers read the same from integers, floats and text."""
    try:
        encoded = plain(array).dictionary_encode()
    except pa.ArrowNotImplementedError:
        raise DataError(f"expected categories, found {array.type}") from None
    names = [level_name(value) for value in encoded.dictionary.to_pylist()]
    raw = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return _merge_levels(raw, names), []


def times_from_arrow(array: pa.Array) -> Converted:
    """Seconds since 1970 (UTC where a zone is given) of timestamps, dates or ISO 8601 text."""
    array = plain(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan), []
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return times_from_values(array.to_pylist())
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise DataError(f"expected dates or times, found {kind}")
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    micros = array.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
    return _to_numpy(micros.cast(pa.float64(), safe=False)) / 1e6, []


def plain(array: pa.Array) -> pa.Array:
    """One contiguous array of a type that every compute kernel takes."""
    if pa.types.is_dictionary(array.type):
        if pa.types.is_string_view(array.type.value_type):  # no kernel decodes these
            array = array.cast(pa.dictionary(array.type.index_type, pa.string()))
        array = array.cast(array.type.value_type)
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def is_numeric(kind: pa.DataType) -> bool:
    """Whether this Arrow type holds numbers."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _numbers_from_text(array: pa.Array) -> Converted:
    text = pc.utf8_trim_whitespace(array)
    good = pc.match_substring_regex(text, NUMBER)
    missing = pc.or_kleene(pc.is_null(text), pc.is_in(text, value_set=pa.array(MISSING, text.type)))
    values = _to_numpy(pc.if_else(good, text, None).cast(pa.float64()))
    bad = _to_mask(pc.invert(pc.or_kleene(pc.fill_null(good, False), missing)))
    problems = [
        CellProblem(int(i), _not_a_number(array[int(i)].as_py())) for i in np.flatnonzero(bad)
    ]
    values, infinite = _refuse_infinite(values)
    return values, problems + infinite


def _not_a_number(value: str) -> str:
    if pc.match_substring_regex(pa.scalar(value.strip()), INFINITE).as_py():
        return "infinity is not a value; leave it empty if it is missing"
    return f"expected a number, got {shown(value)}"


def _refuse_infinite(values: Numbers) -> Converted:
    rows = np.flatnonzero(np.isinf(values))
    if len(rows):
        values = np.where(np.isinf(values), np.nan, values)
    reason = "infinity is not a value; leave it empty if it is missing"
    return values, [CellProblem(int(row), reason) for row in rows]


def _to_numpy(array: pa.Array) -> Numbers:
    return np.array(array.to_numpy(zero_copy_only=False), np.float64)


def _to_mask(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)


# ---------------------------------------------------------------- plain values


def numbers_from_values(values: Sequence[Any]) -> Converted:
    """Numbers of JSON values; text is never read as a number here."""
    return _each(values, _number)


def binary_from_values(values: Sequence[Any]) -> Converted:
    """Zeros and ones of JSON values: 0, 1, true, false."""
    return _each(values, _bit)


def times_from_values(values: Sequence[Any]) -> Converted:
    """Seconds since 1970 of ISO 8601 texts or `datetime` objects."""
    return _each(values, _seconds)


def levels_from_values(values: Sequence[Any]) -> ConvertedLevels:
    """Levels of JSON values: text, whole numbers or booleans."""
    problems: list[CellProblem] = []
    names: list[str | None] = []
    for row, value in enumerate(values):
        nested = isinstance(value, list | dict)
        names.append(None if nested else level_name(value))
        if nested:
            problems.append(CellProblem(row, f"expected a category, got {shown(value)}"))
    return _merge_levels(np.arange(len(values)), names), problems


def level_name(value: object) -> str | None:
    """The one spelling of a level; None where missing, markers such as "NA" included.

    5, 5.0, "5" and "5.0" are one, and so are true and "True": the same content is written in
    each of these ways, depending on whether the column around it has missing values.
    """
    if value is None or value != value:  # noqa: PLR0124 NaN of any library, NaT too
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if text in MISSING:
        return None
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _merge_levels(codes: NDArray[Any], names: Sequence[str | None]) -> Levels:
    unique = dict.fromkeys(name for name in names if name is not None)
    index = {name: code for code, name in enumerate(unique)}
    table = np.array([-1 if n is None else index[n] for n in names] + [-1], np.int32)
    return Levels(table[codes], tuple(unique))


def _each(values: Sequence[Any], convert: Callable[[Any], float]) -> Converted:
    out = np.empty(len(values))
    problems: list[CellProblem] = []
    for row, value in enumerate(values):
        try:
            out[row] = math.nan if value is None else convert(value)
        except (ValueError, OverflowError) as error:
            out[row] = math.nan
            problems.append(CellProblem(row, str(error)))
    return out, problems


def _number(value: object) -> float:
    if type(value) is float or type(value) is int:
        number = float(value)
        if math.isfinite(number):
            return number
        raise ValueError("NaN and infinity are not values; leave the field out if it is missing")
    raise ValueError(f"expected a number, got {shown(value)}")


def _bit(value: object) -> float:
    if value in (0, 1) and isinstance(value, bool | int | float):
        return float(value)
    raise ValueError(f"expected 0 or 1, got {shown(value)}")


def _seconds(value: object) -> float:
    if isinstance(value, str) and value.strip() in MISSING:
        return math.nan
    try:
        moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        moment = None
    if not isinstance(moment, dt.datetime):
        raise ValueError(f"expected an ISO 8601 date or time, got {shown(value)}")
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (zoned - EPOCH).total_seconds()
