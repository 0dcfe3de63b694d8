"""Read columns from the names of folders, such as ``day=2018-07-01/part.parquet`` (Hive)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.data.arrow import normalise_array, numbers_from_arrow
from anomaly_vae.errors import DataError
from anomaly_vae.messages import printable, shown

FOLDER = re.compile(r"([^=]+)=(.*)")
"""Pattern of a folder that names a column and the value of its rows."""
NO_VALUE = ("", "__HIVE_DEFAULT_PARTITION__")
"""Values that mean a missing value."""
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
"""Pattern of an integer that is written as integers are; 007 is text."""

Values = Mapping[str, str | None]


def folder_values(path: Path) -> dict[str, str | None]:
    """Return the columns that the folders of a path name, each with its value or None.

    >>> folder_values(Path("pay/day=2018-07-01/shop=A%2FB/part.parquet"))
    {'day': '2018-07-01', 'shop': 'A/B'}
    """
    matches = filter(None, map(FOLDER.fullmatch, path.parent.parts))
    pairs = (map(printable, map(unquote, match.groups())) for match in matches)
    return {name: None if value in NO_VALUE else value for name, value in pairs}


@dataclass(frozen=True)
class Partitions:
    """The columns that are read from the folders of several files.

    A column is of integers if all its values are, else of text, which is read like the cells of
    CSV.
    """

    types: Mapping[str, pa.DataType]

    @classmethod
    def of(cls, files: Sequence[Path]) -> Partitions:
        """Read the folders of these files."""
        found: dict[str, set[str]] = {}
        for folder in dict.fromkeys(path.parent for path in files):
            for name, value in folder_values(folder / "file").items():
                found.setdefault(name, set()).update([] if value is None else [value])
        return cls({name: _type(values) for name, values in found.items()})

    def columns(self, path: Path) -> dict[str, pa.Scalar]:
        """Return the columns of a file's folders, each with the value of its rows."""
        return {
            name: pa.scalar(value, pa.string()).cast(self.types[name])
            for name, value in folder_values(path).items()
        }


def _type(values: set[str]) -> pa.DataType:
    return pa.int64() if values and all(map(WHOLE.fullmatch, values)) else pa.string()


def with_columns(table: pa.RecordBatch, columns: Mapping[str, pa.Scalar]) -> pa.RecordBatch:
    """Return rows (N,) with the columns of their folders; a column that is there stays."""
    added = {
        name: pa.repeat(value, len(table))
        for name, value in columns.items()
        if name not in table.schema.names
    }
    for name, values in added.items():
        table = table.append_column(name, values)
    return table


def contradictions(
    table: pa.RecordBatch, columns: Mapping[str, pa.Scalar]
) -> Iterator[tuple[int, str]]:
    """Yield the rows whose cells contradict the names of their folders, each with the reason."""
    for name, value in columns.items():
        if name not in table.schema.names:
            continue
        cells = normalise_array(table.column(name))
        for row in np.flatnonzero(_differs(cells, value)).tolist():
            folder, cell = f"{name}={value.as_py()}", shown(cells[row].as_py())
            yield row, f"column '{name}' is {cell}, which contradicts the folder '{folder}'"


def _differs(cells: pa.Array, value: pa.Scalar) -> NDArray[np.bool_]:
    """Return a mask (N,) of the cells that are not equal to a value."""
    if not value.is_valid:
        return _mask(cells.is_valid())
    number = numbers_from_arrow(pa.array([value.as_py()]).cast(pa.string()))[0][0]
    try:
        if not np.isnan(number):
            return np.asarray(numbers_from_arrow(cells)[0] != number)
        return _mask(pc.fill_null(pc.not_equal(cells, value.cast(cells.type)), True))
    except (DataError, pa.ArrowException):
        return np.ones(len(cells), bool)


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)
