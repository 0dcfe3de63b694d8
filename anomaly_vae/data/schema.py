"""Read records, columns and Arrow tables into batches that a model can encode.

A `TabularSchema` lists the columns that a model reads, with their types. All input data pass
through a schema exactly once. Rows that cannot be used are reported as `RowProblem`s with a row, a
column and a reason; no row is dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.config.data import EPOCHS
from anomaly_vae.data.column_types import COLUMN_TYPES, TabularColumnSpec
from anomaly_vae.data.converters import CellProblem, Levels, Numbers, too_large
from anomaly_vae.data.times import DIGITS
from anomaly_vae.errors import DataError
from anomaly_vae.messages import explain_foreign, listed
from anomaly_vae.types import ColumnType

if TYPE_CHECKING:
    import pyarrow as pa

Values = Numbers | Levels


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a model reads."""

    name: str
    type: ColumnType
    format: str | None = None
    """Format of times that `times.parse_time` cannot read without; None for all other columns."""
    limit: float | None = None
    """Largest size of a number; None for any."""

    @property
    def spec(self) -> TabularColumnSpec:
        """Description of the column's type."""
        return COLUMN_TYPES[self.type]

    @property
    def json_schema(self) -> Mapping[str, Any]:
        """JSON schema of a cell in a JSON record."""
        return {"type": ["string", "number", "null"]} if self.format else self.spec.json_schema

    @property
    def mlflow_type(self) -> str:
        """Name of the member of MLflow's ``DataType`` in a model signature."""
        if self.format is None:
            return self.spec.mlflow_type
        return "double" if self.format in (DIGITS, *EPOCHS) else "string"

    def from_values(self, cells: Sequence[Any]) -> tuple[Values, list[CellProblem]]:
        """Convert N plain values; see `TabularColumnSpec.from_values`."""
        return self._limited(*self.spec.from_values(cells, *self._options))

    def from_arrow(self, array: pa.Array) -> tuple[Values, list[CellProblem]]:
        """Convert an Arrow array (N,); see `TabularColumnSpec.from_arrow`."""
        return self._limited(*self.spec.from_arrow(array, *self._options))

    def _limited(
        self, values: Values, problems: list[CellProblem]
    ) -> tuple[Values, list[CellProblem]]:
        if self.limit is None or isinstance(values, Levels):
            return values, problems
        return values, [*problems, *too_large(values, self.limit)]

    @property
    def _options(self) -> tuple[str, ...]:
        return (self.format,) if self.format else ()

    def to_json(self) -> dict[str, str]:
        """Return the column as plain JSON values, for the manifest."""
        content = {"name": self.name, "type": str(self.type)}
        return content | ({"format": self.format} if self.format else {})


@dataclass(frozen=True, slots=True)
class RowProblem:
    """The reason why a row cannot be scored; ``column`` is None if it concerns the whole row.

    >>> str(RowProblem(2, "amount", "expected a number, got 'much'"))
    "column 'amount', row 2: expected a number, got 'much'"
    """

    row: int
    column: str | None
    reason: str

    def __str__(self) -> str:
        where = f"column '{self.column}', " if self.column else ""
        return f"{where}row {self.row}: {self.reason}"


@dataclass(frozen=True)
class RawBatch:
    """Rows as one array per column, before encoding.

    ``values`` maps each column to (N,) float64 (NaN where missing) or to `Levels`; images are (N,
    C, S, S) float32. ``problems`` lists the rows that cannot be scored. ``ignored`` names the
    columns or keys that the schema does not know.

    >>> import numpy as np
    >>> batch = RawBatch({"amount": np.array([3.5, np.nan])}, 2, (RowProblem(1, "amount", "?"),))
    >>> len(batch), batch.usable.tolist()
    (2, [True, False])
    >>> batch.take(batch.usable).values
    {'amount': array([3.5])}
    """

    values: Mapping[str, Values]
    n_rows: int
    problems: tuple[RowProblem, ...] = ()
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.n_rows

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """Mask (N,) of the rows without problems."""
        mask = np.ones(self.n_rows, bool)
        mask[[problem.row for problem in self.problems]] = False
        return mask

    def take(self, rows: NDArray[Any]) -> RawBatch:
        """Return the rows at these positions, or in a mask (N,), without their problems."""
        values = {
            name: column.take(rows) if isinstance(column, Levels) else column[rows]
            for name, column in self.values.items()
        }
        count = int(rows.sum()) if rows.dtype == bool else len(rows)
        return RawBatch(values, count, ignored=self.ignored)


@dataclass(frozen=True)
class TabularSchema:
    """The columns that a tabular model reads, in the order of its training data.

    >>> from anomaly_vae.types import ColumnType
    >>> columns = (Column("amount", ColumnType.NUMERIC), Column("city", ColumnType.CATEGORICAL))
    >>> schema = TabularSchema(columns, known=frozenset({"id"}))
    >>> batch = schema.from_records([{"id": 1, "amount": 3.5, "tip": 1}, {"city": "Rome"}])
    >>> batch.values["amount"], batch.values["city"].codes, batch.ignored
    (array([3.5, nan]), array([-1,  0], dtype=int32), ('tip',))
    >>> schema.from_records([{"amount": "much"}]).problems[0].reason
    "expected a number, got 'much'"
    """

    columns: tuple[Column, ...]
    known: frozenset[str] = field(default_factory=frozenset)
    """Names of expected columns that are not features: label, id, time and ignored columns."""
    literal_text: bool = False
    """Whether texts such as "NA" are levels, except in text formats such as CSV; in models of
    earlier versions they are missing in every format."""
    again: Mapping[str, Column] = field(default_factory=dict, hash=False)
    """Columns that are read once more as another type, by the name of these values in a batch."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return tuple(column.name for column in self.columns)

    def from_arrow(self, table: pa.RecordBatch | pa.Table) -> RawBatch:
        """Read an Arrow table; the values of an absent column are missing.

        Args:
            table: N rows. In text formats such as CSV, missing values are null already.

        Raises:
            DataError: the type of a column cannot represent what the schema expects, or the table
                has none of the schema's columns.
        """
        import pyarrow as pa

        present = set(table.schema.names)
        if not present & set(self.names):
            raise DataError(explain_foreign(table.schema.names, self.names))
        values: dict[str, Values] = {}
        problems: list[RowProblem] = []
        for name, column in self._reads.items():
            array = table.column(column.name) if column.name in present else pa.nulls(len(table))
            cells = _collect(column, column.from_arrow, array, problems)
            values[name] = self.interpret(cells)
        return RawBatch(values, len(table), tuple(problems), self.unknown(present))

    @cached_property
    def _reads(self) -> Mapping[str, Column]:
        """Columns by the names of their values."""
        return {**{column.name: column for column in self.columns}, **self.again}

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> RawBatch:
        """Read JSON records; an absent key or a null is a missing value.

        A record with none of the schema's columns, not even as a null, has a problem.
        """
        cells = {name: [record.get(name) for record in records] for name in self.names}
        keys: set[str] = set().union(*records)
        batch = self._from_values(cells, len(records), keys)
        if self.names and (foreign := self._foreign(records)):
            return replace(batch, problems=(*foreign, *batch.problems))
        return batch

    def _foreign(self, records: Sequence[Mapping[str, Any]]) -> list[RowProblem]:
        """Return a problem for each record that has none of the schema's columns."""
        names = frozenset(self.names)
        rows = [row for row, record in enumerate(records) if names.isdisjoint(record)]
        reasons = {
            tuple(records[row]): explain_foreign(records[row], self.names) for row in rows[:1]
        }
        plain = f"none of the model's columns found; expected {listed(self.names)}"
        return [RowProblem(row, None, reasons.get(tuple(records[row]), plain)) for row in rows]

    def from_columns(self, columns: Mapping[str, Sequence[Any]], n_rows: int) -> RawBatch:
        """Read columns of ``n_rows`` JSON values; the values of an absent column are missing."""
        absent = [None] * n_rows
        cells = {name: columns.get(name, absent) for name in self.names}
        return self._from_values(cells, n_rows, set(columns))

    def _from_values(
        self, cells: Mapping[str, Sequence[Any]], n_rows: int, present: set[str]
    ) -> RawBatch:
        problems: list[RowProblem] = []
        values = {
            name: self.interpret(_collect(column, column.from_values, cells[column.name], problems))
            for name, column in self._reads.items()
        }
        return RawBatch(values, n_rows, tuple(problems), self.unknown(present))

    def interpret(self, values: Values) -> Values:
        """Return a column's values (N,), in which texts such as "NA" are levels or missing."""
        if isinstance(values, Levels) and not self.literal_text:
            return values.without_markers()
        return values

    def unknown(self, names: set[str]) -> tuple[str, ...]:
        """Return those of the names that the schema does not know, sorted."""
        return tuple(sorted(names - set(self.names) - self.known))

    def to_json(self) -> dict[str, Any]:
        """Return the schema as plain JSON values, for the manifest."""
        literal = {"literal_text": True} if self.literal_text else {}
        columns = [column.to_json() for column in self.columns]
        return {"columns": columns, "known": sorted(self.known), **literal}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TabularSchema:
        """Restore a schema from the result of `to_json`."""
        columns = tuple(
            Column(c["name"], ColumnType(c["type"]), c.get("format")) for c in content["columns"]
        )
        return cls(columns, frozenset(content["known"]), content.get("literal_text", False))


def _collect(
    column: Column, convert: Callable[[Any], Any], cells: Any, row_problems: list[RowProblem]
) -> Values:
    """Convert the cells of a column and append its problems to ``row_problems``."""
    try:
        values, problems = convert(cells)
    except DataError as error:
        raise DataError(f"column '{column.name}': {error}", column=column.name) from None
    row_problems.extend(
        RowProblem(problem.row, column.name, problem.reason) for problem in problems
    )
    return values  # type: ignore[no-any-return]  # the converter fits the column's type
