"""Data frames of any library ⇄ Arrow tables, whatever their columns hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import pandas as pd
import pyarrow as pa

from anomaly_vae.data.column_types import ColumnSpec
from anomaly_vae.data.converters import level_name
from anomaly_vae.errors import DataError


class _Column(Protocol):
    """A column that a model reads."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> ColumnSpec: ...


class Schema(Protocol):
    """What says which columns a model reads: of a table or of images."""

    @property
    def columns(self) -> Sequence[_Column]:
        """The columns, in the order of the model."""


Container = Literal["array", "frame", "polars", "table"]
"""What data come in: an array, a data frame of pandas or polars, or another table of Arrow's."""


def container_of(X: Any) -> Container:
    """What X is; a data frame whose columns have no names counts as an array.

    Raises:
        DataError: a lazy frame.
    """
    if isinstance(X, pd.DataFrame):
        return "frame" if all(isinstance(name, str) for name in X.columns) else "array"
    if hasattr(X, "__arrow_c_stream__") and hasattr(X, "columns"):  # a Series has the first alone
        return "polars" if type(X).__module__.startswith("polars.") else "table"
    if hasattr(X, "collect"):
        kind = type(X).__name__
        raise DataError(f"X is a {kind}, whose rows are not there yet; give X.collect()")
    return "array"


def as_table(X: Any) -> pa.Table | None:
    """Data with named columns as an Arrow table; None for arrays.

    Anything that hands out an Arrow stream will do: polars, pyarrow, DuckDB and others
    (the Arrow PyCapsule interface).

    Raises:
        DataError: a lazy frame, two columns of one name, or a column of a type unknown to pyarrow.
    """
    container = container_of(X)
    if container == "array":
        return None
    if container == "frame":
        return table_of(X)
    try:
        table = pa.table(X)
    except pa.ArrowException as error:
        raise DataError(f"X cannot be read as a table: {error}; cast such a column first") from None
    _refuse_twins(table.column_names)
    return table


def from_table(table: pa.Table, container: Container | None) -> Any:
    """An Arrow table with named columns in the container; a data frame of pandas where unknown."""
    if container == "table":
        return table
    if container == "polars":
        import polars as pl

        return pl.from_arrow(table)
    return table.to_pandas()


def table_of(frame: pd.DataFrame) -> pa.Table:
    """An Arrow table of the same columns; a column of mixed objects becomes text.

    Raises:
        DataError: two columns of one name.
    """
    _refuse_twins(frame.columns.map(str).to_list())
    return pa.table({str(name): _array_of(frame[name]) for name in frame.columns})


def _array_of(column: pd.Series) -> pa.Array:
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert(None)  # the same moments; pandas 3.1 warns of the zone
    try:
        return pa.array(column, from_pandas=True)
    except pa.ArrowException:
        names = [level_name(value) for value in column.where(column.notna(), None)]
        return pa.array(names, pa.string())


def _refuse_twins(names: Sequence[str]) -> None:
    for name in names if len(set(names)) < len(names) else ():
        if names.count(name) > 1:
            raise DataError(
                f"column '{name}' appears more than once; rename one of them", column=name
            )


def frame_of(record: Mapping[str, Any], schema: Schema) -> pd.DataFrame:
    """One record as a data frame whose types an MLflow signature accepts."""
    frame = pd.DataFrame([record])
    for column in schema.columns:
        if column.spec.storage == "time":
            frame[column.name] = pd.to_datetime(frame[column.name])
        elif column.spec.storage == "number":
            frame[column.name] = frame[column.name].astype("float64")
    return frame
