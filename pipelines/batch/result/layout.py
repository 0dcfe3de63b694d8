"""Write rows of a result to files: all or the flagged, as Parquet or CSV, in folders or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from anomaly_vae.data.arrow import is_bytes, is_text
from anomaly_vae.errors import DataError
from anomaly_vae.messages import shown
from pipelines.batch import Format
from pipelines.batch.result.ranking import Ranking

MAX_FOLDERS = 1_000
"""Maximum number of folders that the rows of one part are divided into."""
MAX_FOLDER_BYTES = 200
"""Maximum length of a folder's name, which leaves room for the names of unfinished files."""
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""Value in the name of a folder for rows without a value, as Hive writes it."""
FORMULA = r"\A[=+\-@\t\r\n＝＋－＠]"
"""Pattern of text that a spreadsheet may run as a formula."""
PLAIN_NUMBER = r"\A[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\z"
"""Pattern of text that is a number and therefore no formula."""
DICTIONARY_COLUMNS = [
    "p_value",
    *(f"contributions.list.element.{name}" for name in ("feature", "observed", "expected")),
]
"""Columns with many repeated values, for which dictionary encoding saves space."""


@dataclass(frozen=True)
class Layout:
    """Which rows the parts of a result have, and in which files they are.

    >>> Layout(Format.CSV, partition_by="day").file_name("00003", "day=1")
    'day=1/part-00003.csv'
    """

    format: Format = Format.PARQUET
    only_flagged: bool = False
    partition_by: str | None = None
    """Column whose values name the folders of the rows; None for no folders."""
    ranking: Ranking | None = None
    """Choice of the rows that may be among the highest; None if none are chosen."""

    def file_name(self, stem: str, folder: str = "") -> str:
        """Return the name of a part's file."""
        name = f"part-{stem}.{self.format}"
        return f"{folder}/{name}" if folder else name

    def shown(self, rows: pa.Table) -> pa.Table:
        """Return the rows that are written."""
        return rows.filter(rows["is_anomaly"]) if self.only_flagged else rows

    def folders(self, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Yield the name of each folder with its rows, which do not repeat the value.

        Raises:
            DataError: there are more than `MAX_FOLDERS`, or a value is too long for a name.
        """
        column = str(self.partition_by)
        codes = rows[column].combine_chunks().dictionary_encode(null_encoding="encode")
        names = [folder_name(column, value) for value in _texts(codes.dictionary)]
        if len(set(names)) > MAX_FOLDERS:
            raise DataError(
                f"--partition-by {column}: it has more than {MAX_FOLDERS:,} values, such as "
                f"'{names[-1]}'; name a column with fewer values"
            )
        rest, unique = rows.drop_columns([column]), sorted(set(names))
        position = np.array([unique.index(name) for name in names], np.int64)
        folder = position[codes.indices.to_numpy()]
        for index, name in enumerate(unique):
            yield name, rest.take(pa.array(np.flatnonzero(folder == index)))


PLAIN = Layout()


def folder_name(column: str, value: str | None) -> str:
    """Return the name of the folder of a value, in the form of Hive.

    >>> folder_name("city", "São Paulo/SP"), folder_name("city", None)
    ('city=S%C3%A3o%20Paulo%2FSP', 'city=__HIVE_DEFAULT_PARTITION__')

    Raises:
        DataError: the name is longer than `MAX_FOLDER_BYTES`.
    """
    name = f"{quote(column, safe='')}={quote(value, safe='') if value else NO_VALUE}"
    if len(name) > MAX_FOLDER_BYTES:
        raise DataError(
            f"--partition-by {column}: the value {shown(value)} is too long for the name of a "
            "folder; name a column with shorter values"
        )
    return name


def _texts(values: pa.Array) -> list[str | None]:
    """Return values as texts."""
    try:
        texts = values.cast(pa.string())
    except pa.ArrowException:
        return [None if value is None else str(value) for value in values.to_pylist()]
    found: list[str | None] = texts.to_pylist()
    return found


# ---------------------------------------------------------------- files


class RowFile(Protocol):
    """A file to which rows are written."""

    def write_table(self, table: pa.Table) -> None:
        """Append rows."""

    def close(self) -> None:
        """Complete the file."""


def row_file(path: Path, kind: str, schema: pa.Schema) -> RowFile:
    """Open a file for result rows.

    Args:
        path: the path to write to.
        kind: "csv", or anything else for Parquet.
        schema: the columns of the rows.
    """
    return CsvFile(path, schema) if kind == Format.CSV else parquet_file(path, schema)


def parquet_file(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file for result rows."""
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=DICTIONARY_COLUMNS)


class CsvFile:
    """A CSV file of result rows, which a spreadsheet can open without running formulas.

    The file is UTF-8 with a header; texts are in double quotes, missing values are empty without
    quotes, lists are JSON, and bytes are hexadecimal. Numbers keep all their digits.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pyarrow.csv.CSVWriter(path, csv_ready(schema.empty_table()).schema)

    def write_table(self, table: pa.Table) -> None:
        """Append rows."""
        self._writer.write_table(csv_ready(table))

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


def csv_ready(table: pa.Table) -> pa.Table:
    """Return rows with columns that CSV can hold, and with an apostrophe before formulas.

    >>> csv_ready(pa.table({"note": ["=1+1", "-5", "fine"]}))["note"].to_pylist()
    ["'=1+1", '-5', 'fine']
    """
    columns = [_csv_column(column) for column in table.columns]
    names = without_formulas(pa.chunked_array([table.column_names], pa.string())).to_pylist()
    return pa.Table.from_arrays(columns, names)


def _csv_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_nested(kind):
        rows = column.to_pylist()
        texts = [None if row is None else json.dumps(row, ensure_ascii=False) for row in rows]
        return pa.chunked_array([texts], pa.string())
    if is_bytes(kind):
        cells = column.to_pylist()
        return pa.chunked_array([[c if c is None else c.hex() for c in cells]], pa.string())
    if pa.types.is_duration(kind):
        return column.cast(pa.int64())
    return without_formulas(column) if is_text(kind) else column


def without_formulas(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts (N,) with an apostrophe before those that a spreadsheet may run."""
    begins = pc.match_substring_regex(texts, FORMULA)
    if not pc.any(begins).as_py():
        return texts
    formula = pc.and_not(begins, pc.match_substring_regex(texts, PLAIN_NUMBER))
    mark, end = pa.scalar("'", texts.type), pa.scalar("", texts.type)
    quoted = pc.binary_join_element_wise(mark, texts, end)
    return pc.if_else(formula, quoted, texts)
