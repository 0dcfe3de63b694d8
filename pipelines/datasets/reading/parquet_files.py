"""Read Parquet files of any writer, up to any damage."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anomaly_vae.data.arrow import is_bytes, is_text, plain_array
from pipelines.datasets.reading.objects import refuse_outage
from pipelines.datasets.reading.parts import (
    UNREADABLE,
    Broken,
    Chunk,
    Head,
    Reading,
    Select,
    first_line,
    refuse_duplicates,
)
from pipelines.datasets.reading.plain_text import content_of, refuse_foreign, source_of

ALL_GROUPS = slice(0, None)
READ_BUFFER = 1 << 16
"""Size of the read buffer, in bytes."""
MAX_EXPANSION, MAX_UNPACKED = 1_000, 1 << 28
"""Limits on a row group: ratio of its unpacked bytes to the bytes of the file, and unpacked bytes;
a file with a group that exceeds both is not read further."""
MAX_BATCH = 1 << 28
"""Maximum size of the texts of a batch of rows, in bytes; longer texts are read in fewer rows."""


def parquet_head(path: Path, _: Reading) -> Head:
    """Return the columns of a Parquet file, and the number of its rows.

    Raises:
        pyarrow.ArrowException: the file is damaged.
        OSError: the file cannot be read.
        ValueError: the file has another format, no columns, or two of the same name.
    """
    with _open_parquet(path) as file:
        fields = [pa.field(index.name, pa.int64()) for index in _named_range(file)]
        groups = tuple(_group_sizes(file))
        return Head(pa.schema([*file.schema_arrow, *fields]), file.metadata.num_rows, groups)


def _group_sizes(file: pq.ParquetFile) -> Iterator[int]:
    """Yield the number of rows of each row group."""
    return (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))


def read_parquet(
    path: Path, batch_rows: int, select: Select, groups: slice = ALL_GROUPS
) -> Iterator[Chunk | Broken]:
    """Yield the selected columns of a Parquet file's rows, and unreadable rows as `Broken`.

    ``groups`` limits the row groups that are read.

    Raises:
        pyarrow.ArrowException: the file is damaged.
        OSError: the file cannot be read.
        ValueError: the file has another format, unpacks to implausibly many bytes, or its columns
            cannot be told apart.
    """
    with _open_parquet(path) as file:
        index = _named_range(file)
        wanted = set(select([*file.schema_arrow.names, *(one.name for one in index)]))
        columns = [name for name in file.schema_arrow.names if name in wanted]
        index = [one for one in index if one.name in wanted]
        texts = [name for name in columns if _holds_text(file, name)]
        probe = _Probe(path, texts)
        ends = list(itertools.accumulate(_group_sizes(file), initial=0))
        for group in range(file.num_row_groups)[groups]:
            rows = range(ends[group], ends[group + 1])
            _refuse_bomb(file.metadata.row_group(group), content_of(path).stat().st_size)
            count = min(batch_rows, probe.rows_within_limit(group))
            batches = file.iter_batches(count, [group], columns, use_threads=False)
            for part in _read_group(path, rows, batches, columns):
                yield _with_index(part, index)


@dataclass(frozen=True)
class _NamedRange:
    """A pandas index that counts, and of which a file contains only the description."""

    name: str
    start: int
    step: int


def _named_range(file: pq.ParquetFile) -> list[_NamedRange]:
    """Return the file's counting index, if it has a name; else an empty list."""
    try:
        described = json.loads((file.schema_arrow.metadata or {}).get(b"pandas", b"{}"))
        found = [one for one in described.get("index_columns", ()) if isinstance(one, dict)]
        return [
            _NamedRange(one["name"], one["start"], one["step"])
            for one in found
            if one["name"] and one["name"] not in file.schema_arrow.names
            if len(range(one["start"], one["stop"], one["step"])) == file.metadata.num_rows
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # other software wrote it


def _with_index(part: Chunk | Broken, index: Sequence[_NamedRange]) -> Chunk | Broken:
    if isinstance(part, Broken):
        return part
    table = part.table
    for one in index:
        table = table.append_column(one.name, pa.array(one.start + one.step * part.rows))
    return Chunk(part.path, part.rows, table)


def _refuse_bomb(group: pq.RowGroupMetaData, packed: int) -> None:
    """Refuse a row group that unpacks to far more than real data in a file of this size would.

    The sizes of single columns are not asked for: if a column is encrypted, Arrow ends the process.
    """
    unpacked = group.total_byte_size
    if unpacked > MAX_UNPACKED and unpacked > MAX_EXPANSION * packed:
        raise ValueError(
            f"its {packed:,} bytes unpack to {unpacked:,}, which no real data do; it is not read"
        )


def _holds_text(file: pq.ParquetFile, name: str) -> bool:
    """Return whether a column is stored as text or bytes, and not in parts, as intervals are."""
    plain = plain_array(pa.nulls(0, file.schema_arrow.field(name).type)).type
    stored = {file.schema.column(i).path for i in range(len(file.schema))}
    return name in stored and (is_text(plain) or is_bytes(plain))


class _Probe:
    """A second view of a Parquet file, whose texts are dictionaries; it is opened once at most."""

    def __init__(self, path: Path, texts: Sequence[str]) -> None:
        self._path, self._texts = path, texts

    def rows_within_limit(self, group: int) -> int:
        """Return how many rows of a row group fit into `MAX_BATCH`, by its longest texts.

        A dictionary with a long text is small in the file, and large once each row has its own
        copy.
        """
        longest = 0
        with suppress(*UNREADABLE):  # damage is found when the rows are read
            for batch in self._first_rows(group) if self._texts else ():
                longest = sum(map(_longest, batch.columns))
                break
        return max(1, MAX_BATCH // max(longest, 1))

    def _first_rows(self, group: int) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(1, [group], self._texts, use_threads=False)

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return _parquet_file(self._path, self._texts)


def _longest(array: pa.Array) -> int:
    values = array.dictionary if pa.types.is_dictionary(array.type) else array
    return pc.max(pc.binary_length(plain_array(values))).as_py() or 0


def _read_group(
    path: Path, rows: range, batches: Iterator[pa.RecordBatch], columns: Sequence[str]
) -> Iterator[Chunk | Broken]:
    """Read a row group up to any damage, and yield its remaining rows as `Broken`."""
    reason = "the file says that there are more rows than it holds"
    try:
        for batch in batches:
            # the reader takes 'a.b' for a part of 'a' as well
            table = _valid(batch.select(columns) if columns else batch)
            yield Chunk(path, np.arange(rows.start, rows.start + len(batch)), table)
            rows = rows[len(batch) :]
    except UNREADABLE as error:
        refuse_outage(path, error)
        reason = first_line(error)
    if rows:
        yield Broken(path, reason, rows)


def _valid(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose text is UTF-8; a column with other text becomes bytes.

    Raises:
        pyarrow.ArrowException: the batch is damaged otherwise.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "utf8" not in str(error).lower():
            raise
        columns = [_as_bytes(column) for column in batch.columns]
        batch = pa.RecordBatch.from_arrays(columns, batch.schema.names)
        batch.validate(full=True)
    return batch


def _as_bytes(column: pa.Array) -> pa.Array:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        plain = plain_array(column)
        return plain.cast(pa.large_binary()) if is_text(plain.type) else column
    return column


def _open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file; its INT96 times are read as microseconds, which hold every date."""
    try:
        file = _parquet_file(path)
        if _has_pandas_types(file.schema_arrow):
            file = _parquet_file(path)
    except pa.ArrowInvalid:
        refuse_foreign(path)
        raise
    refuse_duplicates(file.schema_arrow.names)
    if not file.schema_arrow.names:
        raise ValueError("it has no columns")
    return file


def _parquet_file(path: Path, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    return pq.ParquetFile(
        source_of(path),
        read_dictionary=list(dictionaries),
        memory_map=False,
        pre_buffer=False,
        buffer_size=READ_BUFFER,
        coerce_int96_timestamp_unit="us",
    )


def _has_pandas_types(schema: pa.Schema) -> bool:
    """Return whether a file has periods or intervals, whose types pandas has to register first."""
    names = [(field.metadata or {}).get(b"ARROW:extension:name", b"") for field in schema]
    if not any(name.startswith(b"pandas.") for name in names):
        return False
    importlib.import_module("pandas.core.arrays.arrow.extension_types")
    return True
