"""Describe each column type in one place, for all readers and protocols.

The module does not import pyarrow, msgspec or MLflow, so that it is cheap to import everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from anomaly_vae.data import converters
from anomaly_vae.data.converters import CellProblem, Levels, Numbers
from anomaly_vae.types import ColumnType

if TYPE_CHECKING:
    import pyarrow as pa

Converted: TypeAlias = tuple[Numbers | Levels, list[CellProblem]]
Storage = Literal["number", "time", "level", "pixels"]
"""Content of a column's array in a `RawBatch`."""


class TensorFormat(NamedTuple):
    """The tensor that represents a column in the Open Inference Protocol."""

    datatype: str
    content_type: str | None = None
    """MLServer's content type, which gives the meaning of an element's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSpec:
    """The storage and exchange formats of a column, for models of any kind."""

    storage: Storage
    """Content of the array in a `RawBatch`: numbers, seconds since 1970, level codes or pixels."""
    tensor: TensorFormat
    mlflow_type: str
    """Name of the member of MLflow's ``DataType`` in a model signature."""
    required: bool = False
    """Whether a value must be present in every row."""
    has_levels: bool = False
    """Whether rows can be grouped by the column, because its set of values is finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularColumnSpec(ColumnSpec):
    """The converters and schemas of a table's column."""

    from_values: Callable[..., Converted]
    """Converter of N plain values, as JSON contains them; of times also a format."""
    arrow_converter: str
    """Name of the converter in `data.arrow`, a module that is imported when first needed."""
    json_type: Any
    """Python type of a cell in a JSON record, as msgspec reads it."""
    json_schema: Mapping[str, Any]
    """JSON schema of a cell in a JSON record."""

    def from_arrow(self, array: pa.Array, *options: str) -> Converted:
        """Convert an Arrow array (N,) into values (N,), and report cells with problems.

        Args:
            array: (N,) the cells.
            options: the format of times that need one.

        Raises:
            DataError: the array's type cannot represent such a column.
        """
        from anomaly_vae.data import arrow

        convert: Callable[..., Converted] = getattr(arrow, self.arrow_converter)
        return convert(array, *options)


COLUMN_TYPES: Mapping[ColumnType, TabularColumnSpec] = {
    ColumnType.NUMERIC: TabularColumnSpec(
        storage="number",
        from_values=converters.numbers_from_values,
        arrow_converter="numbers_from_arrow",
        json_type=float | None,
        json_schema={"type": ["number", "null"], "format": "double"},
        tensor=TensorFormat("FP64"),
        mlflow_type="double",
    ),
    ColumnType.BINARY: TabularColumnSpec(
        storage="number",
        has_levels=True,
        from_values=converters.binary_from_values,
        arrow_converter="binary_from_arrow",
        json_type=Literal[0, 1] | bool | None,
        json_schema={"type": ["boolean", "integer", "null"], "minimum": 0, "maximum": 1},
        tensor=TensorFormat("BOOL"),
        mlflow_type="double",
    ),
    ColumnType.DATETIME: TabularColumnSpec(
        storage="time",
        from_values=converters.times_from_values,
        arrow_converter="times_from_arrow",
        json_type=str | None,
        json_schema={"type": ["string", "null"], "format": "date-time"},
        tensor=TensorFormat("BYTES", "datetime"),
        mlflow_type="datetime",
    ),
    ColumnType.CATEGORICAL: TabularColumnSpec(
        storage="level",
        has_levels=True,
        from_values=converters.levels_from_values,
        arrow_converter="levels_from_arrow",
        json_type=str | int | float | bool | None,
        json_schema={"type": ["string", "number", "boolean", "null"]},
        tensor=TensorFormat("BYTES", "str"),
        mlflow_type="string",
    ),
}
"""Description of each type of table column."""

IMAGE_COLUMN = ColumnSpec(
    storage="pixels",
    tensor=TensorFormat("BYTES", "base64"),
    mlflow_type="binary",  # MLflow's binary type also accepts a path
    required=True,
)
"""Description of the only column that an image model reads."""
