"""Identify the rows of tables in a result: by their ids, by their positions, or by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.arrow import (
    is_bytes,
    is_numeric,
    is_text,
    normalise_array,
    not_utf8,
    text_from_arrow,
)
from anomaly_vae.data.schema import RowProblem
from anomaly_vae.errors import DataError
from pipelines.datasets.files import MOSTLY_TEXT, read_chunks
from pipelines.datasets.reading.parts import Chunk, Head
from pipelines.datasets.reading.unification import contradiction, unite_types


@dataclass(frozen=True)
class Keys:
    """The columns that identify a row in the output: its id, its position, or both.

    Positions are needed if a file has no ids. All ids have the same type, so that the parts and
    the rejects fit together and no id is changed: the type that all files share, else the widest
    integer, the finest time, or text.
    """

    id: str | None
    type: pa.DataType
    rows: bool
    """Whether positions are written."""

    @property
    def field(self) -> pa.Field | None:
        """Name and type of the ids; None if there are none."""
        return None if self.id is None else pa.field(self.id, self.type)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the key columns, in order."""
        return (*(() if self.id is None else (self.id,)), *(("row",) if self.rows else ()))

    def of(self, ids: pa.Array | None, rows: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Return the key columns of the rows with these ids and positions (N,)."""
        columns = {} if self.id is None else {self.id: ids}
        return columns | ({"row": pa.array(rows)} if self.rows else {})

    def ids(self, table: pa.RecordBatch) -> tuple[pa.Array | None, list[RowProblem]]:
        """Return the ids of N rows, and the rows whose ids cannot be read."""
        if self.id is None:
            return None, []
        if self.id not in table.schema.names:
            return pa.nulls(len(table), self.type), []
        column = table.column(self.id)
        if is_bytes(self.type):
            return normalise_array(column).cast(self.type), []
        ids, problems = text_from_arrow(column)
        return cast_cells(ids, self.type), [RowProblem(p.row, self.id, p.reason) for p in problems]


def cast_cells(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return cells (N,) in the type that `common_type` gives."""
    try:
        return cells.cast(kind)
    except pa.ArrowException:  # Arrow cannot write every type as text
        return pa.array([None if v is None else str(v) for v in cells.to_pylist()], kind)


def find_keys(name: str | None, heads: Mapping[Path, Head], reserved: Sequence[str]) -> Keys:
    """Return the keys of the rows of these files.

    Args:
        name: the id column of the model; None if it has none.
        heads: the columns of each file.
        reserved: the names of the result columns.

    Raises:
        DataError: the ids of two files have types that contradict each other, or the id column
            has the name of a result column.
    """
    having = {path: head for path, head in heads.items() if name in head.schema.names}
    keys = Keys(
        name if having else None,
        common_type(name or "", having),
        rows=len(having) < len(heads) or not having,
    )
    if keys.id in reserved or (keys.id == "row" and keys.rows):
        raise DataError(f"the id column '{name}' has the name of a result column; rename it")
    return keys


def common_type(name: str, heads: Mapping[Path, Head]) -> pa.DataType:
    """Return the type that holds a column of all these files without changing any value.

    Raises:
        DataError: the types of two files contradict each other.
    """
    types: dict[pa.DataType, Path] = {}
    for path, head in heads.items():
        types.setdefault(_type(path, name, head.schema.field(name).type), path)
    types.pop(pa.null(), None)
    if len(types) == 1:
        return next(iter(types))
    for integers in (pa.types.is_signed_integer, pa.types.is_unsigned_integer):
        if types and all(map(integers, types)):
            return max(types, key=lambda kind: kind.bit_width)
    if all(is_text(kind) or is_numeric(kind) for kind in types):
        return pa.string()  # which changes no id, unlike a wider type of numbers
    try:
        united = unite_types(name, types)
    except DataError:
        united = pa.binary()
    if is_bytes(united):
        raise contradiction(name, types, remedy="write the column with one type")
    return united


def _type(path: Path, name: str, kind: pa.DataType) -> pa.DataType:
    """Return the type of a file's ids; bytes are text unless most of the first ones are not."""
    plain = normalise_array(pa.nulls(0, kind)).type
    return _bytes_type(path, name) if is_text(plain) and not _declared_text(kind) else plain


def _declared_text(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_string_view(kind)


def _bytes_type(path: Path, name: str) -> pa.DataType:
    first = next(read_chunks([path], select=lambda names: [n for n in names if n == name]), None)
    if not isinstance(first, Chunk):
        return pa.string()
    ids = normalise_array(first.table.column(name))
    values = len(ids) - ids.null_count
    mostly = not_utf8(ids).sum() <= (1 - MOSTLY_TEXT) * values
    return pa.string() if not is_bytes(ids.type) or mostly else ids.type
