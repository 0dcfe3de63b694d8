"""Convert plain values (from JSON records) into the arrays of a `RawBatch`.

Missing cells are NaN in numbers and code −1 in levels. A cell that cannot be converted is reported
as a `CellProblem` and treated as missing. For Arrow arrays of the same content, `arrow` gives the
same results.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.times import parse_time
from anomaly_vae.errors import DataError
from anomaly_vae.messages import shown

Numbers = NDArray[np.float64]

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>")
"""Texts that mean a missing value, in text formats and in numbers, times and labels."""
WHOLE = re.compile(r"([+-]?\d+)\.0*")
"""Pattern of a whole number written with decimals, such as 5.0."""


@dataclass(frozen=True, slots=True)
class Levels:
    """A categorical column. ``codes`` (N,), int32, are indices into ``names``; −1 means missing."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: NDArray[Any]) -> Levels:
        """Return the rows at the given positions, or those where a mask (N,) is true."""
        return Levels(self.codes[rows], self.names)

    def without_markers(self) -> Levels:
        """Return the levels with those that mean a missing value, such as "NA", as missing."""
        if not any(name in MISSING for name in self.names):
            return self
        return merge_levels(self.codes, [None if n in MISSING else n for n in self.names])

    def recode(
        self, index: Mapping[str, int], unseen: int | Mapping[str, int]
    ) -> NDArray[np.int32]:
        """Return codes (N,) according to ``index``, which maps level names to codes.

        Missing values keep the code −1. ``unseen`` is the code of the levels that are not in
        ``index``, or maps each of them to its code.
        """
        if isinstance(unseen, int):
            codes = [index.get(name, unseen) for name in self.names]
        else:
            codes = [index[name] if name in index else unseen[name] for name in self.names]
        return np.array([*codes, -1], np.int32)[self.codes]


def as_levels(values: Levels | NDArray[np.floating[Any]]) -> Levels:
    """Return a categorical or binary column as `Levels`; zeros and ones (N,) become 0 and 1."""
    if isinstance(values, Levels):
        return values
    return Levels(np.nan_to_num(values, nan=-1.0).astype(np.int32), ("0", "1"))


def slice_name(column: str, level: str | None) -> str:
    """Return the name of the slice of rows with a level; None means that the value is missing."""
    return f"{column} = {'(missing)' if level is None else level}"


@dataclass(frozen=True, slots=True)
class CellProblem:
    """The reason why a cell could not be converted."""

    row: int
    reason: str


def too_large(values: Numbers, limit: float) -> list[CellProblem]:
    """Return a problem for each number (N,) that is larger than a limit in size."""
    reason = f"expected a number of at most {limit:g} in size"
    return [CellProblem(row, reason) for row in np.flatnonzero(np.abs(values) > limit).tolist()]


Converted = tuple[Numbers, list[CellProblem]]
ConvertedLevels = tuple[Levels, list[CellProblem]]


def numbers_from_values(values: Sequence[Any]) -> Converted:
    """Convert JSON numbers (N,); text is never read as a number."""
    return _convert_each(values, _number)


def binary_from_values(values: Sequence[Any]) -> Converted:
    """Convert the JSON values 0, 1, true and false (N,) into zeros and ones."""
    return _convert_each(values, _bit)


def times_from_values(values: Sequence[Any], time_format: str | None = None) -> Converted:
    """Convert times (N,), as `parse_time` reads them, into seconds since 1970.

    Only None is a missing value: texts that mean one in files, such as NA, are problems.
    """
    return _convert_each(values, partial(parse_time, time_format=time_format))


def levels_from_values(values: Sequence[Any]) -> ConvertedLevels:
    """Convert JSON texts, numbers or booleans (N,) into levels."""
    problems: list[CellProblem] = []
    names: list[str | None] = []
    for row, value in enumerate(values):
        nested = isinstance(value, list | dict)
        names.append(None if nested else level_name(value))
        if nested:
            problems.append(CellProblem(row, f"expected a category, got {shown(value)}"))
    index: dict[str, int] = {}
    codes = [-1 if name is None else index.setdefault(name, len(index)) for name in names]
    return Levels(np.array(codes, np.int32), tuple(index)), problems


def level_name(value: object) -> str | None:
    """Return the canonical name of a level; None if missing.

    5, 5.0, "5" and "5.0" are the same level, and so are true and "True", because missing values in
    a column can change the form in which the same data arrive. Texts such as "NA" are levels, which
    `Levels.without_markers` removes.

    Raises:
        DataError: the value is bytes that are not UTF-8 text.
    """
    if type(value) is int:
        return str(value)
    if value is None or value != value:  # noqa: PLR0124 NaN or NaT of any library
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = (_text(value) if isinstance(value, bytes) else str(value)).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DataError("expected text, got bytes that are not UTF-8 text") from None


BOOLEAN = {"0": "false", "1": "true", "false": "0", "true": "1"}
"""Equivalent spelling of each boolean label."""


def label_spellings(label: object) -> frozenset[str]:
    """Return the names of levels that mean a label, such as 1 and true.

    >>> sorted(label_spellings(1)), sorted(label_spellings("fraud"))
    (['1', 'true'], ['fraud'])
    """
    name = level_name(label) or ""
    return frozenset({name, BOOLEAN.get(name, name)})


def merge_levels(codes: NDArray[Any], names: Sequence[str | None]) -> Levels:
    """Merge equal names and drop missing ones.

    ``codes`` (N,) are indices into ``names``; those of missing names become −1.
    """
    unique = dict.fromkeys(name for name in names if name is not None)
    index = {name: code for code, name in enumerate(unique)}
    table = np.array([-1 if n is None else index[n] for n in names] + [-1], np.int32)
    return Levels(table[codes], tuple(unique))


def _convert_each(values: Sequence[Any], convert: Callable[[Any], float]) -> Converted:
    """Convert values one by one; None becomes NaN, and a `ValueError` becomes a problem."""
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
