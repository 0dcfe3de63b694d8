"""Infer which columns of a table are features, and their types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anomaly_vae.config import Feature
from anomaly_vae.config.data import TabularData
from anomaly_vae.data.arrow import (
    INDEX_NAME,
    NOT_UTF8,
    NUMBER,
    is_bytes,
    is_numeric,
    is_text,
    normalise_array,
    refuse_far_times,
)
from anomaly_vae.data.converters import MISSING
from anomaly_vae.data.schema import Column, TabularSchema
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
ISO_TIME = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"


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
    declared = data.features if isinstance(data.features, dict) else {}
    candidates = dict.fromkeys(table.column_names if data.features is None else data.features)
    columns: list[Column] = []
    notes: list[str] = []
    for name in candidates:
        if name in data.roles or name in data.ignore:
            continue
        if name in declared:
            columns.append(Column(name, declared[name].type))
            continue
        if data.features is None and INDEX_NAME.fullmatch(name):
            notes.append(f"column '{name}': left out, it is pandas' index, which numbers the rows")
            continue
        kind, note = infer_type(name, table.column(name))
        columns += [Column(name, kind)] if kind else []
        notes += [f"column '{name}': {note}"] if note else []
    if not columns:
        raise DataError(f"no column is left to learn from; found {listed(table.column_names)}")
    known = {*data.roles, *data.ignore, *([data.time] if data.time else [])}
    schema = TabularSchema(tuple(columns), frozenset(known), literal_text=True)
    return Inferred(schema, tuple(notes))


def infer_type(name: str, column: pa.ChunkedArray) -> tuple[ColumnType | None, str | None]:
    """Infer the type of a column (None: leave the column out), and a note for the user."""
    values = _present(normalise_array(column))
    if not len(values):
        return None, "left out, it has no value in the training rows"
    kind, note = _by_arrow_type(name, values)
    if kind and pc.count_distinct(values).as_py() == 1:
        note = f"constant ({shown(values[0].as_py())}); any other value will look anomalous"
    return kind, note


def _present(values: pa.Array) -> pa.Array:
    """Return the values that are neither null nor NaN nor times that cannot be read."""
    values = refuse_far_times(values)[0].drop_null()
    if pa.types.is_floating(values.type):
        return values.filter(pc.invert(pc.is_nan(values)))
    return values


def _by_arrow_type(name: str, values: pa.Array) -> tuple[ColumnType | None, str | None]:
    kind = values.type
    tests: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
        (pa.types.is_boolean, lambda _: (ColumnType.BINARY, None)),
        (is_numeric, _numeric),
        (
            lambda k: pa.types.is_timestamp(k) or pa.types.is_date(k),
            lambda _: (ColumnType.DATETIME, None),
        ),
        (is_text, lambda v: _text(name, v)),
    )
    for matches, decide in tests:
        if matches(kind):
            result: tuple[ColumnType | None, str | None] = decide(values)
            return result
    if is_bytes(kind):
        return None, f"left out, it holds {NOT_UTF8}"
    return None, f"left out, {kind} is not a type it can learn from"


def _numeric(values: pa.Array) -> tuple[ColumnType | None, str | None]:
    distinct = pc.unique(values)
    if len(distinct) == 2 and set(distinct.cast(pa.float64(), safe=False).to_pylist()) == {
        0.0,
        1.0,
    }:
        return ColumnType.BINARY, None
    unique = pa.types.is_integer(values.type) and len(distinct) == len(values) >= MIN_VALUES
    if unique and (_counts_up(values) or _are_identifiers(values)):
        return None, "left out, it numbers the rows; declare it under data.features to keep it"
    return ColumnType.NUMERIC, None


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


def _text(name: str, values: pa.Array) -> tuple[ColumnType | None, str | None]:
    text = pc.utf8_trim_whitespace(values)
    text = text.filter(pc.invert(pc.is_in(text, value_set=pa.array(MISSING, text.type))))
    if not len(text):
        return None, "left out, it has no value in the training rows"
    numbers = pc.match_substring_regex(text, NUMBER)
    share = pc.mean(numbers.cast(pa.float64())).as_py()
    if share == 1:
        return _numeric(_narrowest(text))
    if share >= MOSTLY_NUMBERS:
        raise _mixed_column(name, text.filter(pc.invert(numbers)), len(text))
    return _non_numeric_text(text)


def _narrowest(text: pa.Array) -> pa.Array:
    """Convert text into integers if possible, else into floating-point numbers."""
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text.cast(pa.float64())


def _non_numeric_text(text: pa.Array) -> tuple[ColumnType | None, str | None]:
    lower = set(pc.unique(pc.utf8_lower(text)).to_pylist()) if len(text) else set()
    if lower == {"true", "false"}:
        return ColumnType.BINARY, None
    if pc.all(pc.match_substring_regex(text, ISO_TIME)).as_py():
        return ColumnType.DATETIME, None
    distinct = pc.count_distinct(text).as_py()
    if len(text) >= MIN_VALUES and distinct > NEARLY_UNIQUE * len(text):
        return None, f"left out, nearly every value is its own ({distinct} of {len(text)})"
    return ColumnType.CATEGORICAL, None


def _mixed_column(name: str, texts: pa.Array, total: int) -> DataError:
    return DataError(
        f"column '{name}' mixes numbers with text: {len(texts)} of {total} values are no numbers, "
        f"such as {shown(texts[0].as_py())}; correct them, or declare "
        f"data.features.{name}.type as numeric (such rows are rejected) or categorical",
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
    for name in data.features or ():
        if name not in table.column_names:
            raise DataError(
                f"data.features names the column '{name}', which is not there; "
                f"found {listed(table.column_names)}",
                column=name,
            )


def feature_options(data: TabularData) -> dict[str, Feature]:
    """Return the declared limits on the levels of categorical columns, for the encoding."""
    return dict(data.features) if isinstance(data.features, dict) else {}
