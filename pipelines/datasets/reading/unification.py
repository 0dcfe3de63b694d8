"""Unite the columns of several files into one table, without loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from anomaly_vae.data.arrow import (
    binary_from_arrow,
    is_bytes,
    is_numeric,
    is_text,
    is_time,
    numbers_from_arrow,
    times_from_arrow,
)
from anomaly_vae.errors import DataError

Types = Mapping[pa.DataType, Path]
"""Types of a column, each with the first file that has it."""
UNITS = ("s", "ms", "us", "ns")
"""Units of time, from the coarsest to the finest."""
PADDED = r"^\s*0\d"
"""Pattern of a number with leading zeros, which names something."""
MAX_DIGITS = 76
"""Largest number of digits of a decimal."""


def unite_types(name: str, types: Types) -> pa.DataType:
    """Return a type that holds the values of all these types of a column.

    Integers become the widest integer, integers and floating-point numbers doubles, dates and
    timestamps the finest timestamp (in UTC if any has a zone).

    Raises:
        DataError: there is no such type; the message names two files and their types.
    """
    present = [kind for kind in types if not pa.types.is_null(kind)]
    if len(present) <= 1:
        return present[0] if present else pa.null()
    for matches, unite in FAMILIES:
        if all(map(matches, present)):
            return unite(present)
    raise contradiction(name, types)


REMEDY = "write it with one type, or list it under data.ignore"
"""Remedy for types that contradict each other, in training."""


def contradiction(name: str, types: Types, detail: str = "", remedy: str = REMEDY) -> DataError:
    """Return the error about a column whose types contradict each other."""
    first, *others = [kind for kind in types if not pa.types.is_null(kind)]
    other = next((kind for kind in others if not _same_family(first, kind)), others[-1])
    return DataError(
        f"column '{name}' is {first} in '{types[first]}' but {other} in '{types[other]}'"
        f"{f' ({detail})' if detail else ''}; {remedy}",
        column=name,
    )


def _same_family(first: pa.DataType, other: pa.DataType) -> bool:
    return any(matches(first) and matches(other) for matches, _ in FAMILIES)


def cast_to(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert an array into a united type.

    Times that the finest unit cannot hold are an error, as are integers that a double cannot hold.

    Raises:
        pyarrow.ArrowException: a value would change.
    """
    return array if array.type == kind else array.cast(kind)


def read_as(text: pa.Array, kinds: Iterable[pa.DataType]) -> pa.Array:
    """Return text (N,) of a file without types as numbers or times, if other files have these.

    Args:
        text: (N,) texts.
        kinds: the types of the column in all files.

    Returns:
        (N,) numbers or times, or the text itself if a cell cannot be read so.
    """
    others = [kind for kind in kinds if not (is_text(kind) or pa.types.is_null(kind))]
    for matches, read in READERS:
        if all(map(matches, others)):
            values, problems = read(text)
            return text if problems else values
    return text


def _read_numbers(text: pa.Array) -> tuple[pa.Array, Any]:
    if pc.any(pc.match_substring_regex(text, PADDED)).as_py():
        return text, ("zero-padded numbers are names",)
    with suppress(pa.ArrowException):  # integers of any size
        return pc.utf8_trim_whitespace(text).cast(pa.int64()), ()
    values, problems = numbers_from_arrow(text)
    return pa.array(values, from_pandas=True), problems


def _read_booleans(text: pa.Array) -> tuple[pa.Array, Any]:
    values, problems = binary_from_arrow(text)
    return pa.array(values, from_pandas=True).cast(pa.bool_()), problems


def _read_times(text: pa.Array) -> tuple[pa.Array, Any]:
    seconds, problems = times_from_arrow(text)
    micros = pa.array(np.round(seconds * 1e6), from_pandas=True).cast(pa.int64())
    return micros.cast(pa.timestamp("us")), problems


def _is_number(kind: pa.DataType) -> bool:
    return is_numeric(kind) or bool(pa.types.is_boolean(kind))


def _numbers(kinds: list[pa.DataType]) -> pa.DataType:
    if any(map(pa.types.is_floating, kinds)):
        return pa.float64()
    if any(map(pa.types.is_decimal, kinds)):
        return _decimal(kinds)
    return _integer([pa.int8() if pa.types.is_boolean(kind) else kind for kind in kinds])


def _integer(kinds: list[pa.DataType]) -> pa.DataType:
    for same in (pa.types.is_signed_integer, pa.types.is_unsigned_integer):
        if all(map(same, kinds)):
            return max(kinds, key=lambda kind: kind.bit_width)
    return pa.decimal128(20, 0) if pa.uint64() in kinds else pa.int64()


def _decimal(kinds: list[pa.DataType]) -> pa.DataType:
    decimals = [kind for kind in kinds if pa.types.is_decimal(kind)]
    scale = max(kind.scale for kind in decimals)
    whole = max(kind.precision - kind.scale for kind in decimals)
    if len(decimals) < len(kinds):
        whole = max(whole, 20)  # digits of the largest 64-bit integer
    digits = whole + scale
    if digits > MAX_DIGITS:
        return pa.float64()
    return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale)


def _text(kinds: list[pa.DataType]) -> pa.DataType:
    return pa.large_string() if pa.large_string() in kinds else pa.string()


def _bytes(kinds: list[pa.DataType]) -> pa.DataType:
    large = {pa.large_string(), pa.large_binary()} & set(kinds)
    return pa.large_binary() if large else pa.binary()


def _time(kinds: list[pa.DataType]) -> pa.DataType:
    zones = {kind.tz for kind in kinds if pa.types.is_timestamp(kind)}
    zone = zones.pop() if len(zones) == 1 else "UTC"
    return pa.timestamp(_finest(map(_unit, kinds)), zone if any(map(_zone, kinds)) else None)


def _unit(kind: pa.DataType) -> str:
    if pa.types.is_date(kind):
        return "ms" if pa.types.is_date64(kind) else "s"
    return str(kind.unit)


def _zone(kind: pa.DataType) -> str | None:
    return kind.tz if pa.types.is_timestamp(kind) else None


def _finest(units: Iterable[str]) -> str:
    return max(units, key=UNITS.index)


def _time_of_day(_: list[pa.DataType]) -> pa.DataType:
    return pa.time64("ns")


def _duration(kinds: list[pa.DataType]) -> pa.DataType:
    return pa.duration(_finest(kind.unit for kind in kinds))


FAMILIES: tuple[
    tuple[Callable[[pa.DataType], bool], Callable[[list[pa.DataType]], pa.DataType]], ...
] = (
    (_is_number, _numbers),
    (is_text, _text),
    (lambda kind: is_text(kind) or is_bytes(kind), _bytes),
    (is_time, _time),
    (pa.types.is_time, _time_of_day),
    (pa.types.is_duration, _duration),
)
"""Function that unites the types of a family, by the test for its members."""
READERS: tuple[
    tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], tuple[pa.Array, Any]]], ...
] = (
    (pa.types.is_boolean, _read_booleans),
    (_is_number, _read_numbers),
    (is_time, _read_times),
)
"""Function that reads text as the type of other files, by the test for that type."""
