"""Carry columns of the input into a result, beside the ids and the scores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from anomaly_vae.data.arrow import is_bytes, normalise_array
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed, nearest
from pipelines.batch.keys import cast_cells, common_type
from pipelines.datasets.reading.parts import Head


@dataclass(frozen=True)
class Carried:
    """Columns that are read beside the model's, each with one type in all files."""

    types: Mapping[str, pa.DataType] = field(default_factory=dict)

    def of(self, table: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the columns of N rows; a column that the table lacks is null."""
        return {name: _cells(table, name, kind) for name, kind in self.types.items()}


NOTHING = Carried()


def _cells(table: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    if name not in table.schema.names:
        return pa.nulls(len(table), kind)
    cells = normalise_array(table.column(name))
    if is_bytes(cells.type) and not is_bytes(kind):
        cells = pa.array([_decoded(cell) for cell in cells.to_pylist()], pa.string())
    return cast_cells(cells, kind)


def _decoded(cell: bytes | None) -> str | None:
    """Return bytes as text, with a replacement character for what is not UTF-8."""
    return None if cell is None else cell.decode(errors="replace")


def carry(names: Iterable[str], heads: Mapping[Path, Head]) -> Carried:
    """Return columns with the types that they have in all files.

    Raises:
        DataError: a column holds lists or records.
    """
    types = {}
    for name in dict.fromkeys(names):
        having = {path: head for path, head in heads.items() if name in head.schema.names}
        for path, head in having.items():
            if pa.types.is_nested(head.schema.field(name).type):
                raise DataError(
                    f"column '{name}' of '{path}' holds lists or records, which a result cannot "
                    "carry; name a plain column",
                    column=name,
                )
        types[name] = _type(name, having)
    return Carried(types)


def _type(name: str, heads: Mapping[Path, Head]) -> pa.DataType:
    """Return the type of a column in a result: text if files write it with contradictory types."""
    try:
        return common_type(name, heads) if heads else pa.null()
    except DataError:
        return pa.string()


def check_columns(
    option: str, names: Sequence[str], available: Collection[str], reserved: Collection[str]
) -> None:
    """Check that columns named by an option exist and are not named like result columns.

    Raises:
        DataError: a column is unknown, or has the name of a result column.
    """
    for name in names:
        if name not in available:
            near = nearest(name, available)
            hint = f"; did you mean '{near}'" if near else ""
            found = listed(sorted(available))
            raise DataError(f"{option}: no column '{name}' in the input, found {found}{hint}")
        if name in reserved:
            raise DataError(f"{option}: column '{name}' has the name of a result column; rename it")
