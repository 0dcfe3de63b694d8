"""Decode the bodies of table requests fast, with a type that is generated from the schema.

msgspec decodes directly into a struct with one field per column. Bodies that do not fit this type,
because of an invalid value, an unknown key or an explanation, are decoded by `requests`, which
counts unknown keys and describes errors. Both decoders return the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from anomaly_vae.data.column_types import Storage
from anomaly_vae.data.converters import Levels, levels_from_values
from anomaly_vae.data.schema import Column, RawBatch, TabularSchema, Values

Rows: TypeAlias = list[tuple[Any, ...]]
"""Cells of N rows, in the order of `RowDecoder.names`."""

UNSUPPORTED_NAME = re.compile(r'[\\"\x00-\x1f]')
"""Pattern of characters that msgspec does not support in field names."""
ORDER: tuple[Storage, ...] = ("number", "time", "level")
"""Order of the cells of a row, which keeps columns with the same storage adjacent."""


class RowDecoder:
    """A decoder of scoring requests for one schema."""

    def __init__(self, schema: TabularSchema) -> None:
        columns = sorted(schema.columns, key=lambda column: ORDER.index(column.spec.storage))
        self.names = [column.name for column in columns]
        self._interpret = schema.interpret
        storages = [column.spec.storage for column in columns]
        self._numbers = sum(storage != "level" for storage in storages)
        self._times = range(storages.count("number"), self._numbers)
        self._columns = columns
        supported = not any(map(UNSUPPORTED_NAME.search, self.names))
        self._decoder = supported and msgspec.json.Decoder(_request_type(columns, schema))

    def decode(self, body: bytes) -> Rows | None:
        """Return the rows of a body; None if it has errors, unknown keys or explanations."""
        if not self._decoder:
            return None
        try:
            records = self._decoder.decode(body).records
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        rows = [msgspec.structs.astuple(record) for record in records]
        return self._parse_times(rows) if self._times else rows

    def _parse_times(self, rows: Rows) -> Rows | None:
        """Convert times to seconds; None if one of them cannot be read."""
        first, last = self._times.start, self._times.stop
        parsed = [self._columns[i].from_values([row[i] for row in rows]) for i in self._times]
        if any(problems for _, problems in parsed):
            return None
        times = np.array([seconds for seconds, _ in parsed]).T.tolist()
        pairs = zip(rows, times, strict=True)
        return [(*row[:first], *seconds, *row[last:]) for row, seconds in pairs]

    def batch(self, rows: Rows) -> RawBatch:
        """Convert rows, which may come from several bodies, into a batch."""
        count = self._numbers
        numbers = np.array([row[:count] for row in rows], np.float64).reshape(len(rows), count)
        values: dict[str, Values] = dict(zip(self.names, numbers.T, strict=False))
        for index, name in enumerate(self.names[count:], start=count):
            values[name] = self._interpret(_levels([row[index] for row in rows]))
        return RawBatch(values, len(rows))


def _levels(cells: Sequence[Any]) -> Levels:
    return levels_from_values(cells)[0]  # without problems, as the request type has none


def _cell_type(column: Column) -> Any:
    """Return the type of a cell; a time that has a format may be a number."""
    return str | int | float | None if column.format else column.spec.json_type


def _request_type(columns: Sequence[Column], schema: TabularSchema) -> Any:
    """Create the type of a request with these columns; unused known keys may have any value."""
    names = [column.name for column in columns]
    unused = schema.known - set(names)
    unused_names = sorted(name for name in unused if not UNSUPPORTED_NAME.search(name))
    fields = [(f"c{i}", _cell_type(column), None) for i, column in enumerate(columns)]
    fields += [(f"k{i}", Any, None) for i in range(len(unused_names))]
    rename = dict(zip((name for name, *_ in fields), [*names, *unused_names], strict=True))
    options: dict[str, Any] = {"forbid_unknown_fields": True, "gc": False}
    record = msgspec.defstruct("Record", fields, rename=rename, **options)
    parts: list[tuple[str, Any, Any]] = [
        ("records", list[record], msgspec.NODEFAULT),  # type: ignore[valid-type]  # made at run time
        ("explain", Literal[0], 0),
    ]
    return msgspec.defstruct("Request", parts, **options)
