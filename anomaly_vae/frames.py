"""Data frames → Arrow tables, whatever their columns hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from anomaly_vae.columns import level_name
from anomaly_vae.errors import DataError
from anomaly_vae.modality import Schema
from anomaly_vae.schema import ColumnType


def table_of(frame: pd.DataFrame) -> pa.Table:
    """An Arrow table of the same columns; a column of mixed objects becomes text.

    Raises:
        DataError: two columns of one name.
    """
    names = frame.columns.map(str)
    for name in names[names.duplicated()]:
        raise DataError(f"column '{name}' appears more than once; rename one of them", column=name)
    return pa.table({str(name): _array_of(frame[name]) for name in frame.columns})


def _array_of(column: pd.Series) -> pa.Array:
    try:
        return pa.array(column, from_pandas=True)
    except pa.ArrowException:
        names = [level_name(value) for value in column.where(column.notna(), None)]
        return pa.array(names, pa.string())


def frame_of(record: Mapping[str, Any], schema: Schema) -> pd.DataFrame:
    """One record as a data frame whose types an MLflow signature accepts."""
    frame = pd.DataFrame([record])
    for column in schema.columns:
        if column.type is ColumnType.DATETIME:
            frame[column.name] = pd.to_datetime(frame[column.name])
        elif column.type in {ColumnType.NUMERIC, ColumnType.BINARY}:
            frame[column.name] = frame[column.name].astype("float64")
    return frame
