"""Bodies → rows of numbers, by a type made from the schema: the quick way in for tables.

msgspec decodes straight into a struct with one field per column. What that does not take, from a
wrong value to an unknown key, is `None` here and goes the careful way (`wire`), which knows what to
count and what to say; what it takes means the same either way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from anomaly_vae.data.column_types import Storage
from anomaly_vae.data.converters import Levels, levels_from_values, times_from_values
from anomaly_vae.data.schema import Column, RawBatch, TabularSchema, Values

Rows: TypeAlias = list[tuple[Any, ...]]

UNFIT = re.compile(r'[\\"\x00-\x1f]')
"""What msgspec has not in the name of a field."""
ORDER: tuple[Storage, ...] = ("number", "time", "level")
"""Order of the cells of a row, so that columns stored alike lie side by side."""


class RowDecoder:
    """Reads the bodies of scoring requests against one schema."""

    def __init__(self, schema: TabularSchema) -> None:
        columns = sorted(schema.columns, key=lambda column: ORDER.index(column.spec.storage))
        self.names = [column.name for column in columns]
        stored = [column.spec.storage for column in columns]
        self._numbers = sum(storage != "level" for storage in stored)
        self._times = slice(stored.count("number"), self._numbers)
        plain = not any(map(UNFIT.search, self.names))
        self._decoder = plain and msgspec.json.Decoder(_request_type(columns, schema))

    def read(self, body: bytes) -> Rows | None:
        """The rows of a body that asks for nothing but scores; None for anything else."""
        if not self._decoder:
            return None
        try:
            records = self._decoder.decode(body).records
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        rows = [msgspec.structs.astuple(record) for record in records]
        return self._timed(rows) if self._times.start < self._times.stop else rows

    def _timed(self, rows: Rows) -> Rows | None:
        """The same with times as seconds."""
        at = self._times
        width = at.stop - at.start
        seconds, problems = times_from_values([cell for row in rows for cell in row[at]])
        if problems:
            return None
        times = seconds.reshape(-1, width).tolist()
        return [(*row[: at.start], *t, *row[at.stop :]) for row, t in zip(rows, times, strict=True)]

    def batch(self, rows: Rows) -> RawBatch:
        """Rows of any number of bodies as one batch."""
        count = self._numbers
        numbers = np.array([row[:count] for row in rows], np.float64).reshape(len(rows), count)
        values: dict[str, Values] = dict(zip(self.names, numbers.T, strict=False))
        for index, name in enumerate(self.names[count:], start=count):
            values[name] = _levels([row[index] for row in rows])
        return RawBatch(values, len(rows))


def _levels(cells: Sequence[Any]) -> Levels:
    return levels_from_values(cells)[0]  # which takes all that the type lets through


def _request_type(columns: Sequence[Column], schema: TabularSchema) -> Any:
    """A request of records with these columns; names that mean nothing may hold anything."""
    names = [column.name for column in columns]
    idle = sorted(name for name in schema.known - set(names) if not UNFIT.search(name))
    fields = [(f"c{i}", column.spec.json_type, None) for i, column in enumerate(columns)]
    fields += [(f"k{i}", Any, None) for i in range(len(idle))]
    spelled = dict(zip((name for name, *_ in fields), [*names, *idle], strict=True))
    strict: dict[str, Any] = {"forbid_unknown_fields": True, "gc": False}
    record = msgspec.defstruct("Record", fields, rename=spelled, **strict)
    parts: list[tuple[str, Any, Any]] = [
        ("records", list[record], msgspec.NODEFAULT),  # type: ignore[valid-type]  # made at run time
        ("explain", Literal[0], 0),
    ]
    return msgspec.defstruct("Request", parts, **strict)
