"""Data frames → Arrow tables, whatever their columns hold."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from anomaly_vae.columns import level_name


def table_of(frame: pd.DataFrame) -> pa.Table:
    """An Arrow table of the same columns; a column of mixed objects becomes text."""
    return pa.table({str(name): _array_of(frame[name]) for name in frame.columns})


def _array_of(column: pd.Series) -> pa.Array:
    try:
        return pa.array(column, from_pandas=True)
    except pa.ArrowException:
        return pa.array([level_name(value) for value in column], pa.string())
