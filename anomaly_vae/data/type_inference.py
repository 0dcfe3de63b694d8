"""Infer which columns of a table are features, and their types."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.config import Feature
from anomaly_vae.config.data import TabularData
from anomaly_vae.data.arrow import (
    INDEX_NAME,
    NOT_UTF8,
    NUMBER,
    is_bytes,
    is_missing,
    is_numeric,
    is_text,
    is_time,
    normalise_array,
    refuse_far_times,
    times_from_arrow,
)
from anomaly_vae.data.identifiers import named_like_things, seems_to_name_things, words
from anomaly_vae.data.schema import Column, TabularSchema
from anomaly_vae.data.times import LIKE_A_TIME, TimeColumn, recognise_times
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed, shown
from anomaly_vae.types import ColumnType

NEARLY_UNIQUE = 0.5
"""Share of distinct values above which a text column is taken for a row identifier."""
MOSTLY_NUMBERS = 0.9
"""Minimum share of numbers for a text column to be taken for a damaged numeric column."""
EXPECTED_REPEATS = 10
"""Minimum number of expected repetitions for distinct integers to be taken for identifiers."""
MIN_VALUES = 20
"""Minimum number of values for a column to be taken for an identifier."""
MARKERS = words(
    r"\n #n/a #na n/a n.a. n.a na - -- --- ? ?? . null nil none nan unknown missing undefined "
    r"<null> (null) [null] #null! #div/0! #value! #ref! <na> k.a. unbekannt blank empty *"
)
"""Lower-case texts that mark a missing value in a column of numbers or times."""
HALF = 0.5
"""Share of numbers or times above which another text is taken for a marker of missing values."""
FEW_NUMBERS = 10
"""Number of distinct numbers up to which they may be names of levels, beside another text."""
PADDED = r"^0\d+$"
"""Pattern of a whole number with leading zeros, which names something."""
OTHER_NUMBER = (
    r"^(\p{Sc}|[A-Z]{3})?\s*[+-]?(\d+|[1-9]\d{0,2}([.,'’\s\x{a0}\x{202f}]\d{3})+)([.,]\d+)?"
    r"\s*(%|\p{Sc}|[A-Z]{3})?$"
)
"""Pattern of a number with a decimal comma, thousands separators, a currency or a percent sign."""
PLAIN_NAME = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_]\w*", re.IGNORECASE)
"""Pattern of a column name that YAML reads as text without quotes."""


@dataclass(frozen=True)
class Inferred:
    """An inferred schema, with notes for the user."""

    schema: TabularSchema
    notes: tuple[str, ...]


def infer_schema(table: pa.Table, data: TabularData) -> Inferred:
    """Infer a schema from the training rows; types declared in ``data.features`` take precedence.

    Raises:
        DataError: a column mixes numbers and text, or no column is left.
    """
    declared = data.declared
    candidates = dict.fromkeys(table.column_names if data.features is None else data.features)
    columns: list[Column] = []
    notes: list[str] = []
    for name in candidates:
        if name in data.roles or name in data.ignore:
            continue
        if data.features is None and name not in declared and INDEX_NAME.fullmatch(name):
            notes.append(f"column '{name}': left out, it is pandas' index, which numbers the rows")
            continue
        kind, note = _type_of(name, table.column(name), data)
        times = TimeColumn()
        if kind is ColumnType.DATETIME:
            times = time_column(table.column(name), data.time_format)
            note = note or times.note
        if name in declared and times.problem and " may be " in times.problem:
            raise DataError(f"column '{name}': {times.problem}; set data.time_format", column=name)
        columns += [Column(name, kind, times.format)] if kind else []
        notes += [f"column '{name}': {note}"] if note else []
    if not columns:
        raise DataError(f"no column is left to learn from; found {listed(table.column_names)}")
    known = {*data.roles, *data.ignore, *([data.time] if data.time else []), *data.window_columns}
    schema = TabularSchema(tuple(columns), frozenset(known), literal_text=True)
    return Inferred(schema, tuple(notes))


Inference = tuple[ColumnType | None, str | None]
"""Type of a column, None to leave it out, and a note for the user."""


def _type_of(name: str, column: pa.ChunkedArray, data: TabularData) -> Inference:
    if name in data.declared:
        return data.declared[name].type, None
    if name == data.time:
        return ColumnType.DATETIME, None
    return infer_type(name, column, data.time_format)


def time_column(column: pa.ChunkedArray, configured: str | None) -> TimeColumn:
    """Recognise the format of a column of times; typed times need none.

    Args:
        column: (N,) timestamps, dates, text or numbers.
        configured: the format that the configuration gives; None if it gives none.
    """
    values = _present(normalise_array(column))
    if is_text(values.type):
        values = _without_markers(values)
    elif not is_numeric(values.type):
        return TimeColumn()
    distinct = pc.unique(values).to_pylist()
    return recognise_times(distinct, configured) if distinct else TimeColumn(configured)


def read_times(column: pa.ChunkedArray, configured: str | None) -> NDArray[np.float64]:
    """Return a column of times (N,) as seconds since 1970, NaN where they cannot be read.

    Args:
        column: (N,) timestamps, dates, text or numbers.
        configured: the format that the configuration gives; None if it gives none.

    Raises:
        DataError: the type of the column cannot represent times.
    """
    return times_from_arrow(column, configured or time_column(column, None).format)[0]


def infer_type(
    name: str, column: pa.ChunkedArray, time_format: str | None = None
) -> tuple[ColumnType | None, str | None]:
    """Infer the type of a column (None: leave the column out), and a note for the user.

    Args:
        name: the name of the column.
        column: (N,) its cells.
        time_format: the format of times that the configuration gives, if any.

    Raises:
        DataError: the column mixes numbers or times with text.
    """
    values = _present(normalise_array(column))
    if not len(values):
        return None, "left out, it has no value in the training rows"
    kind, note = _by_arrow_type(name, values, time_format)
    if kind and pc.count_distinct(values).as_py() == 1:
        note = f"constant ({shown(values[0].as_py())}); any other value will look anomalous"
    return kind, note


def _present(values: pa.Array) -> pa.Array:
    """Return the values that are neither null nor NaN nor times that cannot be read."""
    values = refuse_far_times(values)[0].drop_null()
    if pa.types.is_floating(values.type):
        return values.filter(pc.invert(pc.is_nan(values)))
    return values


def _by_arrow_type(name: str, values: pa.Array, time_format: str | None) -> Inference:
    kind = values.type
    tests: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
        (pa.types.is_boolean, lambda _: (ColumnType.BINARY, None)),
        (is_numeric, partial(_numeric, name)),
        (is_time, lambda _: (ColumnType.DATETIME, None)),
        (is_text, lambda v: _text(name, v, time_format)),
    )
    for matches, decide in tests:
        if matches(kind):
            result: Inference = decide(values)
            return result
    if is_bytes(kind):
        return None, f"left out, it holds {NOT_UTF8}"
    return None, f"left out, {kind} is not a type it can learn from"


def _numeric(name: str, values: pa.Array) -> Inference:
    distinct = pc.unique(values)
    if len(distinct) == 2 and set(distinct.cast(pa.float64(), safe=False).to_pylist()) == {
        0.0,
        1.0,
    }:
        return ColumnType.BINARY, None
    unique = pa.types.is_integer(values.type) and len(distinct) == len(values) >= MIN_VALUES
    if unique and (_counts_up(values) or _are_identifiers(values)):
        return None, "left out, it numbers the rows; declare it under data.types to keep it"
    return ColumnType.NUMERIC, _note_on_numbers(name, values, distinct)


def _note_on_numbers(name: str, values: pa.Array, distinct: pa.Array) -> str | None:
    """Return a note on numbers that seem to be times or names; None if they measure something."""
    if pa.types.is_integer(values.type) and len(distinct) > 2 and not named_like_things(name):
        times = recognise_times(distinct.to_pylist())
        if times.format:
            return (
                f"its numbers look like times ({times.format}) but are read as amounts; if so, set "
                f"{_declaration(name, ColumnType.DATETIME)}"
            )
    if len(distinct) > 2 and seems_to_name_things(name, values):
        return (
            "its numbers seem to name things but are read as amounts; if so, set "
            f"{_declaration(name)} or data.ignore: [{_yaml(name)}]"
        )
    return None


def _declaration(name: str, kind: ColumnType = ColumnType.CATEGORICAL) -> str:
    """Return the line of a configuration that declares a type."""
    return f"data.types: {{{_yaml(name)}: {{type: {kind}}}}}"


def _yaml(name: str) -> str:
    return name if PLAIN_NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _counts_up(values: pa.Array) -> bool:
    """Return whether every value is larger than the one before."""
    later = pc.greater(values.slice(1), values.slice(0, len(values) - 1))
    return bool(pc.all(later).as_py())


def _are_identifiers(values: pa.Array) -> bool:
    """Return whether distinct integers are identifiers, judged by the lack of repetitions.

    Among n random integers from a range, about n² / (2 · range) repetitions are expected.
    """
    extremes = pc.min_max(values).as_py()
    spread = extremes["max"] - extremes["min"] + 1
    return bool(len(values) ** 2 / (2 * spread) >= EXPECTED_REPEATS)


def _text(name: str, values: pa.Array, time_format: str | None) -> Inference:
    text = _without_markers(values)
    if not len(text):
        return None, "left out, it has no value in the training rows"
    numbers = pc.match_substring_regex(text, NUMBER)
    if pc.any(pc.match_substring_regex(text, PADDED)).as_py():
        return _padded(name, text)
    if pc.all(numbers).as_py():
        return _numeric(name, _narrowest(text))
    _refuse_markers(name, text, numbers, "numbers")
    times = pc.match_substring_regex(text, LIKE_A_TIME)
    if time_format or pc.any(times).as_py():
        column = recognise_times(pc.unique(text).to_pylist(), time_format)
        if not column.problem:
            return ColumnType.DATETIME, None
        if pc.all(times).as_py():
            return None, f"left out, {column.problem}; set data.time_format"
        _refuse_markers(name, text, times, "times")
    return _non_numeric_text(text, _note_on_text(text, numbers))


def _without_markers(values: pa.Array) -> pa.Array:
    """Return trimmed texts without those that mean a missing value."""
    return pc.utf8_trim_whitespace(values.filter(pc.invert(is_missing(values))))


def _padded(name: str, text: pa.Array) -> Inference:
    kind, note = _non_numeric_text(text, None)
    padded = (
        "its zero-padded numbers are read as names; if they are amounts, set "
        f"{_declaration(name, ColumnType.NUMERIC)}"
    )
    return kind, f"{note}; {padded}" if note else padded


def _refuse_markers(name: str, text: pa.Array, matches: pa.Array, what: str) -> None:
    """Refuse text that marks missing values among numbers or times.

    Raises:
        DataError: nearly all texts match; or all others are markers; or most match and all others
            are the same text.
    """
    share = pc.mean(matches.cast(pa.float64())).as_py()
    others = text.filter(pc.invert(matches))
    distinct = {value.lower() for value in pc.unique(others).to_pylist()}
    many = pc.count_distinct(text.filter(matches)).as_py() > FEW_NUMBERS
    single = share >= HALF and len(distinct) == 1 and many
    if share >= MOSTLY_NUMBERS or (share > 0 and distinct <= MARKERS) or single:
        raise _mixed_column(name, others, len(text), what)


def _note_on_text(text: pa.Array, numbers: pa.Array) -> str | None:
    """Return a note on text that is mostly numbers, in a form that is not read as numbers."""
    others = text.filter(pc.invert(numbers))
    written = pc.match_substring_regex(others, OTHER_NUMBER)
    share = (len(text) - len(others) + pc.sum(written).as_py()) / len(text)
    if share >= MOSTLY_NUMBERS and pc.any(written).as_py():
        example = shown(others.filter(written)[0].as_py())
        return (
            f"numbers such as {example} are not read as numbers; write them without currency, "
            "percent sign and separators of thousands, and with a decimal point, or set "
            "data.csv.decimal for a CSV file"
        )
    if len(text) - len(others) >= HALF * len(text):
        return (
            f"{len(text) - len(others)} of {len(text)} values are numbers, others are text such as "
            f"{shown(others[0].as_py())}; where these mean a missing value, add them to "
            "data.csv.null_values"
        )
    return None


def _narrowest(text: pa.Array) -> pa.Array:
    """Convert text into integers if possible, else into floating-point numbers."""
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text.cast(pa.float64())


def _non_numeric_text(text: pa.Array, note: str | None) -> Inference:
    lower = set(pc.unique(pc.utf8_lower(text)).to_pylist()) if len(text) else set()
    if lower == {"true", "false"}:
        return ColumnType.BINARY, None
    distinct = pc.count_distinct(text).as_py()
    if len(text) >= MIN_VALUES and distinct > NEARLY_UNIQUE * len(text):
        left_out = f"left out, nearly every value is its own ({distinct} of {len(text)})"
        return None, f"{left_out}: {note}" if note else left_out
    return ColumnType.CATEGORICAL, f"read as categories: {note}" if note else None


def _mixed_column(name: str, texts: pa.Array, total: int, what: str) -> DataError:
    kind = ColumnType.NUMERIC if what == "numbers" else ColumnType.DATETIME
    return DataError(
        f"column '{name}' mixes {what} with text: {len(texts)} of {total} values are no {what}, "
        f"such as {shown(texts[0].as_py())}; correct them, add those that mean a missing value to "
        f"data.csv.null_values, or declare data.types.{name}.type as {kind} (such rows are "
        "rejected) or categorical",
        column=name,
    )


def check_present(table: pa.Table, data: TabularData) -> None:
    """Check that the table has every column that the configuration names.

    Raises:
        DataError: a column is absent.
    """
    named: Mapping[str, str | None] = {
        "label": data.label,
        "id": data.id,
        "time": data.time,
        "group": data.group,
    }
    for key, name in named.items():
        if name and name not in table.column_names:
            raise DataError(
                f"data.{key} names the column '{name}', which is not there; "
                f"found {listed(table.column_names)}",
                column=name,
            )
    for key, names in (("features", data.features or ()), ("types", data.types)):
        for name in names:
            if name not in table.column_names:
                raise DataError(
                    f"data.{key} names the column '{name}', which is not there; "
                    f"found {listed(table.column_names)}",
                    column=name,
                )


def feature_options(data: TabularData) -> dict[str, Feature]:
    """Return the declared limits on the levels of categorical columns, for the encoding."""
    return data.declared
