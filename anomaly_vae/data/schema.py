"""What a table looks like, and how records, tables and files become a `RawBatch`.

A `TabularSchema` names the columns a model reads and their types. Whatever comes from outside
passes through it once; rows that cannot be used leave as `RowProblem`s with a row, a column and a
reason, never silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.column_types import COLUMN_TYPES, TabularColumnSpec
from anomaly_vae.data.converters import Levels, Numbers
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from anomaly_vae.types import ColumnType

if TYPE_CHECKING:
    import pyarrow as pa

Values = Numbers | Levels


@dataclass(frozen=True, slots=True)
class Column:
    """One column that a model reads."""

    name: str
    type: ColumnType

    @property
    def spec(self) -> TabularColumnSpec:
        """The description of the column's type."""
        return COLUMN_TYPES[self.type]


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row cannot be scored."""

    row: int
    column: str | None
    reason: str

    def __str__(self) -> str:
        where = f"column '{self.column}', " if self.column else ""
        return f"{where}row {self.row}: {self.reason}"


@dataclass(frozen=True)
class RawBatch:
    """Columns as arrays, before encoding.

    ``values`` maps a column to (N,) float64 (NaN = missing) or `Levels`; ``problems`` lists the
    rows that cannot be scored; ``ignored`` names columns or keys the schema does not know.
    """

    values: Mapping[str, Values]
    n_rows: int
    problems: tuple[RowProblem, ...] = ()
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.n_rows

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """Mask (N,) of the rows without a problem."""
        mask = np.ones(self.n_rows, bool)
        mask[[problem.row for problem in self.problems]] = False
        return mask

    def take(self, rows: NDArray[Any]) -> RawBatch:
        """The rows at these positions (or of this mask), their problems left behind."""
        values = {
            name: column.take(rows) if isinstance(column, Levels) else column[rows]
            for name, column in self.values.items()
        }
        count = int(rows.sum()) if rows.dtype == bool else len(rows)
        return RawBatch(values, count, ignored=self.ignored)


@dataclass(frozen=True)
class TabularSchema:
    """The columns a tabular model reads, in the order of the file it was trained on."""

    columns: tuple[Column, ...]
    known: frozenset[str] = field(default_factory=frozenset)
    """Names that are no features but expected all the same: label, id, time, ignored columns."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The column names in order."""
        return tuple(column.name for column in self.columns)

    def from_arrow(self, table: pa.RecordBatch | pa.Table) -> RawBatch:
        """Read an Arrow table; an absent column is missing in every row.

        Raises:
            DataError: a column is of a type that cannot hold what the schema expects, or the
                table has none of the schema's columns.
        """
        import pyarrow as pa

        found = set(table.schema.names)
        if not found & set(self.names):
            raise DataError(
                f"none of the model's columns found; expected {listed(self.names)}, "
                f"found {listed(table.schema.names)}"
            )
        values: dict[str, Values] = {}
        problems: list[RowProblem] = []
        for column in self.columns:
            array = table.column(column.name) if column.name in found else pa.nulls(len(table))
            values[column.name] = _collect(column, column.spec.from_arrow, array, problems)
        return RawBatch(values, len(table), tuple(problems), self.unknown(found))

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> RawBatch:
        """Read JSON records; an absent key or null is missing."""
        cells = {name: [record.get(name) for record in records] for name in self.names}
        keys: set[str] = set().union(*records)
        return self._from_values(cells, len(records), keys)

    def from_columns(self, columns: Mapping[str, Sequence[Any]], n_rows: int) -> RawBatch:
        """Read columns of ``n_rows`` JSON values each; an absent column is missing in every row."""
        absent = [None] * n_rows
        cells = {name: columns.get(name, absent) for name in self.names}
        return self._from_values(cells, n_rows, set(columns))

    def _from_values(
        self, cells: Mapping[str, Sequence[Any]], n_rows: int, found: set[str]
    ) -> RawBatch:
        problems: list[RowProblem] = []
        values = {
            column.name: _collect(column, column.spec.from_values, cells[column.name], problems)
            for column in self.columns
        }
        return RawBatch(values, n_rows, tuple(problems), self.unknown(found))

    def unknown(self, names: set[str]) -> tuple[str, ...]:
        """Those names that mean nothing here, sorted."""
        return tuple(sorted(names - set(self.names) - self.known))

    def to_json(self) -> dict[str, Any]:
        """What the manifest keeps."""
        columns = [{"name": c.name, "type": str(c.type)} for c in self.columns]
        return {"columns": columns, "known": sorted(self.known)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TabularSchema:
        """The inverse of `to_json`."""
        columns = tuple(Column(c["name"], ColumnType(c["type"])) for c in content["columns"])
        return cls(columns, frozenset(content["known"]))


def _collect(
    column: Column, read: Callable[[Any], Any], cells: Any, into: list[RowProblem]
) -> Values:
    try:
        values, problems = read(cells)
    except DataError as error:
        raise DataError(f"column '{column.name}': {error}", column=column.name) from None
    into.extend(RowProblem(problem.row, column.name, problem.reason) for problem in problems)
    return values  # type: ignore[no-any-return]  # the converter fits the column's type
