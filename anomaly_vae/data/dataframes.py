"""Convert data frames of any library to Arrow tables and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
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
    @property
    def mlflow_type(self) -> str: ...


class Schema(Protocol):
    """A schema of tables or of images."""

    @property
    def columns(self) -> Sequence[_Column]:
        """The columns, in the order of the model."""


Container = Literal["array", "frame", "polars", "table"]
"""Type of container: an array, a pandas or polars data frame, or another Arrow table."""


def detect_container(X: Any) -> Container:
    """Return the type of the container X; a data frame without column names is an array.

    Raises:
        DataError: X is a lazy frame.
    """
    if isinstance(X, pd.DataFrame):
        return "frame" if all(isinstance(name, str) for name in X.columns) else "array"
    if hasattr(X, "__arrow_c_stream__") and hasattr(X, "columns"):  # a Series has no columns
        return "polars" if type(X).__module__.startswith("polars.") else "table"
    if hasattr(X, "collect"):
        kind = type(X).__name__
        raise DataError(f"X is a {kind}, whose rows are not computed yet; pass X.collect()")
    return "array"


def to_table(X: Any) -> pa.Table | None:
    """Convert data with named columns into an Arrow table; return None for arrays.

    Any object that exports an Arrow stream is accepted: polars, pyarrow, DuckDB and others (the
    Arrow PyCapsule interface).

    Raises:
        DataError: X is a lazy frame, has duplicate column names, or has a column of a type that
            pyarrow does not know.
    """
    container = detect_container(X)
    if container == "array":
        return None
    if container == "frame":
        return frame_to_table(X)
    try:
        table = pa.table(X)
    except pa.ArrowException as error:
        raise DataError(f"X cannot be read as a table: {error}; cast such a column first") from None
    _refuse_duplicate_names(table.column_names)
    return table


def from_table(table: pa.Table, container: Container | None) -> Any:
    """Convert an Arrow table into a container of this type; None means a pandas data frame."""
    if container == "table":
        return table
    if container == "polars":
        import polars as pl

        return pl.from_arrow(table)
    return table.to_pandas()


def frame_to_table(frame: pd.DataFrame) -> pa.Table:
    """Convert a pandas data frame into an Arrow table; a column of mixed objects becomes text.

    Raises:
        DataError: two columns have the same name.
    """
    _refuse_duplicate_names(frame.columns.map(str).to_list())
    return pa.table({str(name): _series_to_array(frame[name]) for name in frame.columns})


def _series_to_array(column: pd.Series) -> pa.Array:
    """Convert a column; values of a type that Arrow or the model does not know become text."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        # pandas 3.1 warns about zones; the instants are unchanged
        column = column.dt.tz_convert(None)
    if isinstance(column.dtype, pd.SparseDtype):
        column = column.astype(column.dtype.subtype)
    if column.dtype == np.longdouble:
        column = column.astype(np.float64)
    try:
        array = pa.array(column, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return _texts(column)
    return _texts(column) if _is_extension(array.type) else array


def _is_extension(kind: pa.DataType) -> bool:
    """Return whether values are intervals, periods or others that only a library knows."""
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return isinstance(values, pa.BaseExtensionType)


def _texts(column: pd.Series) -> pa.Array:
    """Write each value as text, null where it is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy()
        levels = _texts(pd.Series(column.cat.categories))
        return levels.take(pa.array(codes, pa.int64(), mask=codes < 0))
    texts = (
        None if missing else _text(value)
        for value, missing in zip(column, column.isna(), strict=True)
    )
    return pa.array(texts, pa.string())


def _text(value: object) -> str | None:
    """Return a value as the text of a level, without characters that UTF-8 does not have."""
    try:
        text = level_name(value)
    except (TypeError, ValueError):  # of an array, whose truth is ambiguous
        text = " ".join(str(value).split())
    return text and text.encode("utf-8", "backslashreplace").decode()


def _refuse_duplicate_names(names: Sequence[str]) -> None:
    for name in names if len(set(names)) < len(names) else ():
        if names.count(name) > 1:
            raise DataError(
                f"column '{name}' appears more than once; rename one of them", column=name
            )


def record_to_frame(record: Mapping[str, Any], schema: Schema) -> pd.DataFrame:
    """Return one record as a data frame whose types an MLflow signature accepts."""
    frame = pd.DataFrame([record])
    for column in schema.columns:
        if column.mlflow_type == "datetime":
            frame[column.name] = pd.to_datetime(frame[column.name])
        elif column.spec.storage == "number":
            frame[column.name] = frame[column.name].astype("float64")
    return frame
