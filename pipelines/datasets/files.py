"""Find tables in folders, globs and pipes, and read them as a stream."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly_vae.errors import DataError
from pipelines.datasets.csv_files import csv_head, read_csv
from pipelines.datasets.json_files import json_head, read_json
from pipelines.datasets.parts import (
    UNREADABLE,
    Broken,
    Chunk,
    Head,
    Reading,
    first_line,
    refuse_duplicates,
)
from pipelines.datasets.plain_text import (
    PACKED_SUFFIXES,
    Format,
    content_of,
    format_of,
    is_readable,
)

BATCH_ROWS = 65_536
"""Maximum number of rows read from Parquet at a time."""
READ_BUFFER = 1 << 16
"""Size of the Parquet read buffer, in bytes."""
SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson")
"""Suffixes of the files that are read from folders and globs, also before one of a compression."""
STDIN = "/dev/stdin"

Select = Callable[[Sequence[str]], Sequence[str]]
"""Function that selects the needed columns from those of a file."""


# ---------------------------------------------------------------- finding


def find_files(paths: Sequence[str]) -> list[Path]:
    """Return the files of these paths: files, folders (with subfolders) and globs, each sorted.

    A single file may have any name. A pipe is copied to a temporary file; ``-`` is the standard
    input.

    Raises:
        DataError: a path leads to no table, or cannot be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        try:
            matches = _matches(path)
        except (OSError, ValueError) as error:
            raise DataError(f"'{_failing(error, path)}': {first_line(error)}", path=path) from None
        if not matches:
            raise DataError(f"'{path}': no CSV, JSON or Parquet file is there", path=path)
        found |= dict.fromkeys(matches)
    return list(found)


def _failing(error: Exception, path: str) -> str:
    return str(getattr(error, "filename", None) or path)


def _matches(path: str) -> list[Path]:
    if not path:
        raise ValueError("the path is empty; name a file, a folder or a glob")
    place = Path(STDIN if path == "-" and not Path(path).exists() else path)
    try:
        is_file = is_readable(place)
    except FileNotFoundError:
        if place.is_symlink():
            raise ValueError("it is a link to a file that is not there") from None
        return _glob(path)
    return [place] if is_file else _tables_in(place)


def _tables_in(folder: Path) -> list[Path]:
    """Return the tables of a folder and its subfolders, apart from hidden and temporary ones."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [Path(root, name) for name in names if not _is_hidden(name)]
    return sorted(path for path in found if _is_table(path))


def _glob(pattern: str) -> list[Path]:
    """Return the tables of a glob, below the longest beginning of it that is a folder."""
    base = next((parent for parent in Path(pattern).parents if parent.is_dir()), Path())
    below = str(Path(pattern).relative_to(base))
    found: list[Path] = []
    for name in sorted(glob.glob(below, root_dir=base, recursive=True)):  # noqa: PTH207 hidden files
        path = base / name
        named = path.suffix and below.endswith(path.suffix)  # the pattern itself names the kind
        found += [path] if named and path.is_file() else []
        found += _tables_in(path) if path.is_dir() else [path] if _is_table(path) else []
    return list(dict.fromkeys(found))


def _is_table(path: Path) -> bool:
    """Return whether a path has the suffix of a table, and is a file or a broken link."""
    packed = path.suffix.lower() in PACKED_SUFFIXES
    if (path.with_suffix("") if packed else path).suffix.lower() not in SUFFIXES:
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


# ---------------------------------------------------------------- reading


def read_heads(files: Sequence[Path], reading: Reading | None = None) -> Iterator[Head]:
    """Yield the heads of all readable files, in order."""
    for path in files:
        with suppress(*UNREADABLE):
            yield HEADS[format_of(path)](path, reading or Reading())


def read_chunks(
    files: Sequence[Path],
    batch_rows: int = BATCH_ROWS,
    select: Select = list,
    reading: Reading | None = None,
) -> Iterator[Chunk | Broken]:
    """Yield the rows of all files in order, and unreadable parts as `Broken`.

    Args:
        files: the files.
        batch_rows: maximum number of rows read from Parquet at a time.
        select: limits the columns that are read from Parquet; text is always read completely.
        reading: how text is read; it collects notes.
    """
    reading = reading or Reading()
    for path in files:
        try:
            match format_of(path):
                case "parquet":
                    yield from _read_parquet(path, batch_rows, select)
                case "json":
                    yield from read_json(path, reading)
                case "csv":
                    yield from read_csv(path, reading)
        except UNREADABLE as error:
            yield Broken(path, first_line(error))


def read_table(files: Sequence[Path], reading: Reading | None = None) -> pa.Table:
    """Read all rows of all files, for training.

    Raises:
        DataError: a file cannot be read, or the files have inconsistent columns.
    """
    tables: dict[Path, list[pa.RecordBatch]] = {}
    for part in read_chunks(files, reading=reading):
        if isinstance(part, Broken):
            raise DataError(f"'{part.path}'{_where(part)}: {part.reason}", path=str(part.path))
        tables.setdefault(part.path, []).append(part.table)
    whole = [pa.Table.from_batches(batches) for batches in tables.values()]
    if not whole:
        raise DataError(f"no rows in {', '.join(repr(str(f)) for f in files)}")
    try:
        return pa.concat_tables(whole, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the files' columns contradict each other: {first_line(error)}") from None


def _where(broken: Broken) -> str:
    if broken.rows is None:
        return ""
    if broken.line is not None:
        return f" line {broken.line}"
    return f" from row {broken.rows.start} on"


# ---------------------------------------------------------------- Parquet


def _parquet_head(path: Path, _: Reading) -> Head:
    with _open_parquet(path) as file:
        return Head(file.schema_arrow, file.metadata.num_rows)


def _read_parquet(path: Path, batch_rows: int, select: Select) -> Iterator[Chunk | Broken]:
    with _open_parquet(path) as file:
        columns = select(file.schema_arrow.names)
        start = 0
        for group in range(file.num_row_groups):
            rows = range(start, start + file.metadata.row_group(group).num_rows)
            batches = file.iter_batches(batch_rows, [group], columns, use_threads=False)
            yield from _read_group(path, rows, batches)
            start = rows.stop


def _read_group(
    path: Path, rows: range, batches: Iterator[pa.RecordBatch]
) -> Iterator[Chunk | Broken]:
    """Read a row group up to any damage, and yield its remaining rows as `Broken`."""
    reason = "the file says that there are more rows than it holds"
    try:
        for batch in batches:
            batch.validate(full=True)  # finds text that is not UTF-8, which would fail later
            yield Chunk(path, np.arange(rows.start, rows.start + len(batch)), batch)
            rows = rows[len(batch) :]
    except UNREADABLE as error:
        reason = first_line(error)
    if rows:
        yield Broken(path, reason, rows)


def _open_parquet(path: Path) -> pq.ParquetFile:
    content = content_of(path)
    file = pq.ParquetFile(content, memory_map=False, pre_buffer=False, buffer_size=READ_BUFFER)
    refuse_duplicates(file.schema_arrow.names)
    return file


HEADS: dict[Format, Callable[[Path, Reading], Head]] = {
    "parquet": _parquet_head,
    "json": json_head,
    "csv": csv_head,
}
"""Function that reads the columns of a file, by format."""
