"""Decode the bodies of table requests fast, with a type that is generated from the schema.

msgspec decodes directly into a struct with one field per column. Bodies that do not fit this type,
because of an invalid value, an unknown key or an explanation, are decoded by `requests`, which
names unknown keys and describes errors. Both decoders return the same rows. msgspec stops at the
first unknown key, which most records that have any contain, so few bodies are decoded twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from anomaly_vae.client.types import ResultId
from anomaly_vae.data.column_types import Storage
from anomaly_vae.data.converters import MISSING, Levels, level_name, levels_from_values
from anomaly_vae.data.schema import Column, RawBatch, TabularSchema, Values
from serving.scoring import schemas

Row: TypeAlias = tuple[Any, ...]
"""Cells of a row, in the order of `RowDecoder.names`, followed by unused ones."""
Rows: TypeAlias = list[Row]
Ids: TypeAlias = list[Any]
"""Ids of N rows; None where a row has none."""


class DecodedRequest(NamedTuple):
    """The rows of a body with their ids, if any has one, and the id of the request."""

    rows: Rows
    ids: Ids | None = None
    request_id: schemas.RequestId = None


UNSUPPORTED_NAME = re.compile(r'[\\"\x00-\x1f]')
"""Pattern of characters that msgspec does not support in field names."""
ORDER: tuple[Storage, ...] = ("number", "time", "level")
"""Order of the cells of a row, which keeps columns with the same storage adjacent."""


class RowDecoder:
    """A decoder of scoring requests for one schema."""

    def __init__(self, schema: TabularSchema, id_column: str | None = None) -> None:
        columns = sorted(schema.columns, key=lambda column: ORDER.index(column.spec.storage))
        self.names = [column.name for column in columns]
        self._interpret, self._literal_text = schema.interpret, schema.literal_text
        unused = sorted(name for name in schema.known - set(self.names) if is_supported(name))
        self._cells, self._empty = itemgetter(slice(len(columns))), (None,) * len(columns)
        positions = {name: position for position, name in enumerate([*self.names, *unused])}
        self._id = positions.get(id_column or "")
        storages = [column.spec.storage for column in columns]
        self._numbers = sum(storage != "level" for storage in storages)
        self._times = range(storages.count("number"), self._numbers)
        self._columns = columns
        self._decoder = (
            all(map(is_supported, self.names))
            and not schema.again
            and msgspec.json.Decoder(_request_type(columns, unused, id_column))
        )

    def decode(self, body: bytes) -> DecodedRequest | None:
        """Return the rows of a body; None if `requests` has to decode it.

        This is the case if the body has errors, unknown keys, explanations or a record without a
        value in any column.
        """
        if not self._decoder:
            return None
        try:
            request = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        rows: Rows | None = [msgspec.structs.astuple(record) for record in request.records]
        if not rows or self._empty in map(self._cells, rows):
            return None
        ids = self._ids(rows)
        if self._times:
            rows = self._parse_times(rows)
        return DecodedRequest(rows, ids, request.id) if rows else None

    def _ids(self, rows: Rows) -> Ids | None:
        """Return the ids of the rows; None if no row has one."""
        ids = [row[self._id] for row in rows] if self._id is not None else []
        return None if ids.count(None) == len(ids) else ids

    def _parse_times(self, rows: Rows) -> Rows | None:
        """Convert times to seconds; None if one of them cannot be read."""
        first, last = self._times.start, self._times.stop
        parsed = [self._columns[i].from_values([row[i] for row in rows]) for i in self._times]
        if any(problems for _, problems in parsed):
            return None
        times = np.array([seconds for seconds, _ in parsed]).T.tolist()
        pairs = zip(rows, times, strict=True)
        return [(*row[:first], *seconds, *row[last:]) for row, seconds in pairs]

    def plain(self, row: Row) -> list[Any]:
        """Return numbers and the names of levels of a row, in the order of `names`."""
        count, last = self._numbers, len(self.names)
        names = [level_name(cell) for cell in row[count:last]]
        if not self._literal_text:
            names = [None if name in MISSING else name for name in names]
        return [*row[:count], *names]

    def times(self, row: Row) -> RawBatch | None:
        """Return a batch of the times in a row; None if there are none."""
        if not self._times:
            return None
        return RawBatch({self.names[i]: np.array([row[i]], np.float64) for i in self._times}, 1)

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


def is_supported(name: str) -> bool:
    """Return whether msgspec supports a key of this name."""
    return not UNSUPPORTED_NAME.search(name)


def _cell_type(column: Column) -> Any:
    """Return the type of a cell; a time that has a format may be a number."""
    if column.limit is not None:
        return Annotated[float, msgspec.Meta(ge=-column.limit, le=column.limit)] | None
    return str | int | float | None if column.format else column.spec.json_type


def _request_type(columns: Sequence[Column], unused: Sequence[str], id_column: str | None) -> Any:
    """Create the type of a request with these columns; unused keys may have any value."""
    fields = [(f"c{i}", _cell_type(column), None) for i, column in enumerate(columns)]
    fields += [
        (f"k{i}", ResultId if name == id_column else Any, None) for i, name in enumerate(unused)
    ]
    keys = [*(column.name for column in columns), *unused]
    rename = dict(zip((name for name, *_ in fields), keys, strict=True))
    options: dict[str, Any] = {"forbid_unknown_fields": True, "gc": False}
    record = msgspec.defstruct("Record", fields, rename=rename, **options)
    parts: list[tuple[str, Any, Any]] = [
        ("records", list[record], msgspec.NODEFAULT),  # type: ignore[valid-type]  # made at run time
        ("explain", Literal[0], 0),
        ("errors", schemas.ErrorMode, "refuse"),  # makes no difference to valid records
        ("id", schemas.RequestId, None),
    ]
    return msgspec.defstruct("Request", parts, **options)
