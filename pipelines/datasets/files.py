"""Find CSV and Parquet files in folders and globs, and read them as a stream."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly_vae.errors import DataError

BATCH_ROWS = 65_536
"""Maximum number of rows read from Parquet at a time."""
CSV_BLOCK = 4 << 20
"""Size of the blocks in which CSV is read, in bytes."""
ENDING = READ_BUFFER = 1 << 16
"""Size of the examined end of a CSV file, and of the Parquet read buffer, in bytes."""
SUFFIXES = (".parquet", ".pq", ".csv")
"""Suffixes of the files that are read from folders and globs."""
UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""Errors raised for files that cannot be read."""


@dataclass(frozen=True)
class Chunk:
    """Rows of one file, with their positions (N,) in the file, counted from 0."""

    path: Path
    rows: NDArray[np.int64]
    table: pa.RecordBatch


@dataclass(frozen=True)
class Broken:
    """Rows that cannot be read; ``rows`` is None if the file's number of rows is unknown."""

    path: Path
    reason: str
    rows: range | None = None


@dataclass(frozen=True)
class Head:
    """The columns of a file and, if the file states it, its number of rows."""

    schema: pa.Schema
    n_rows: int | None


Select = Callable[[Sequence[str]], Sequence[str]]
"""Function that selects the needed columns from those of a file."""


def find_files(paths: Sequence[str]) -> list[Path]:
    """Return the files of these paths: files, folders (with subfolders) and globs, each sorted.

    Raises:
        DataError: a path leads to no CSV or Parquet file.
    """
    found: dict[Path, None] = {}
    for path in paths:
        matches = _matches(path)
        if not matches:
            raise DataError(f"'{path}': no CSV or Parquet file is there", path=path)
        found |= dict.fromkeys(matches)
    return list(found)


def _matches(path: str) -> list[Path]:
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        return [p for p in sorted(place.rglob("*")) if _is_table(p) and not _hidden(p, place)]
    names = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 absolute patterns too
    return [p for name in names if Path(name).exists() for p in _matches(name) if _is_table(p)]


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def read_heads(files: Sequence[Path]) -> Iterator[Head]:
    """Yield the heads of all readable files, in order."""
    for path in files:
        with suppress(*UNREADABLE):
            yield _csv_head(path) if _is_csv(path) else _parquet_head(path)


def read_chunks(
    files: Sequence[Path], batch_rows: int = BATCH_ROWS, select: Select = list
) -> Iterator[Chunk | Broken]:
    """Yield the rows of all files in order, and unreadable parts as `Broken`.

    ``select`` limits the columns that are read from Parquet; CSV is always read completely.
    """
    for path in files:
        try:
            yield from _read_csv(path) if _is_csv(path) else _read_parquet(path, batch_rows, select)
        except UNREADABLE as error:
            yield Broken(path, first_line(error))


def read_table(files: Sequence[Path]) -> pa.Table:
    """Read all rows of all files, for training.

    Raises:
        DataError: a file cannot be read, or the files have inconsistent columns.
    """
    tables: dict[Path, list[pa.RecordBatch]] = {}
    for part in read_chunks(files):
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
    if _is_csv(broken.path):
        return f" line {broken.rows.start + 2}"
    return f" from row {broken.rows.start} on"


REASONS = {
    "Empty CSV file": "it has no rows",
    "straddling object": "a row is too long, perhaps for want of a closing quote",
    "invalid UTF": "it is not UTF-8 text; save it as UTF-8",
    "codec can't decode": "its header is not UTF-8 text; save it as UTF-8",
    "Parquet magic bytes not found": "it is not Parquet, or was cut short",
}
"""Explanation of a library's error message, by a part of the message."""


def first_line(error: BaseException) -> str:
    """Return the explanation of an exception, or its text as one short line."""
    text = str(error).strip() or type(error).__name__
    matches = (reason for part, reason in REASONS.items() if part.lower() in text.lower())
    return next(matches, text.splitlines()[0][:200])


def _parquet_head(path: Path) -> Head:
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
    file = pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=READ_BUFFER)
    _refuse_duplicates(file.schema_arrow.names)
    return file


def _refuse_duplicates(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"column '{twice[0]}' appears more than once; rename one of them")


class _BadLines:
    """Lines with a wrong number of fields, collected while a CSV file is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.positions: set[int] = set()
        self.fresh: list[Broken] = []

    def __call__(self, line: Any) -> str:
        reason = f"expected {line.expected_columns} fields, found {line.actual_columns}"
        row = line.number - 2  # the reader counts from 1 and counts the header
        self.positions.add(row)
        self.fresh.append(Broken(self.path, reason, range(row, row + 1)))
        return "skip"

    def good_rows(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the positions of the next ``count`` rows from ``start`` that were not skipped."""
        rows = np.arange(start, start + count + len(self.positions))
        return rows[~np.isin(rows, list(self.positions))][:count]

    def drain(self) -> list[Broken]:
        """Return the lines found since the last call."""
        fresh, self.fresh = self.fresh, []
        return fresh


def _csv_head(path: Path) -> Head:
    return Head(pa.schema([(name, pa.string()) for name in _header(path)]), None)


def _read_csv(path: Path) -> Iterator[Chunk | Broken]:
    """Read every cell as text, so that a cell that does not fit the schema rejects only its row."""
    names = _header(path)
    bad, ending = _BadLines(path), _ending(path)
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=True, null_values=[""]
    )
    with _open_csv(path, bad, convert, empty_lines=len(names) == 1) as reader:
        if reader.schema.names != names:
            raise ValueError("it begins with an empty line; remove it")
        row = 0
        for batch in reader:
            rows = bad.good_rows(row, len(batch))
            if len(batch):
                row = int(rows[-1]) + 1
                yield from _as_text(Chunk(path, rows, batch), ending)
            yield from bad.drain()
    yield from bad.drain()


def _as_text(chunk: Chunk, ending: bytes) -> Iterator[Chunk | Broken]:
    """Yield the rows whose cells are UTF-8 and contain no other lines; the others as `Broken`."""
    table = chunk.table
    text = pa.schema([(name, pa.string()) for name in table.schema.names])
    wrong = _with_lines(table, ending)
    try:
        cast = table.cast(text)
    except pa.ArrowInvalid:
        wrong |= _not_utf8(table)
    if not wrong:
        yield Chunk(chunk.path, chunk.rows, cast)
        return
    good = np.setdiff1d(np.arange(len(table)), list(wrong))
    if len(good):
        yield Chunk(chunk.path, chunk.rows[good], table.take(pa.array(good)).cast(text))
    for i, reason in sorted(wrong.items()):
        row = int(chunk.rows[i])
        yield Broken(chunk.path, reason, range(row, row + 1))


def _not_utf8(table: pa.RecordBatch) -> dict[int, str]:
    """Find rows with a cell that is not UTF-8; return the reason by row."""
    wrong = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        for i, cell in enumerate(column.to_pylist()):
            try:
                (cell or b"").decode()
            except UnicodeDecodeError:
                wrong[i] = f"column '{name}' is not UTF-8 text; save the file as UTF-8"
    return wrong


def _with_lines(table: pa.RecordBatch, ending: bytes) -> dict[int, str]:
    """Find rows in which an unclosed quote made a cell swallow lines; return the reason by row."""
    wrong = {}
    for index, (name, column) in enumerate(zip(table.schema.names, table.columns, strict=True)):
        for i in _several_lines(column):
            lines = column[i].as_py().rstrip(b"\r\n").splitlines()
            if _until_a_quote(lines, index, table.num_columns) or _until_the_end(lines, ending):
                wrong[i] = f"column '{name}' holds lines of the file; a quote is not closed"
    return wrong


def _several_lines(column: pa.BinaryArray) -> list[int]:
    """Return the positions of cells in which text follows a line end."""
    content = column.buffers()[2]
    text = content.to_pybytes() if content else b""
    if b"\n" not in text and b"\r" not in text:  # the usual case, which this test decides fastest
        return []
    several = pc.match_substring_regex(column, r"[\r\n].*[^\r\n]").fill_null(False)
    found: list[int] = np.flatnonzero(several.to_numpy(zero_copy_only=False)).tolist()
    return found


def _until_a_quote(lines: Sequence[bytes], index: int, columns: int) -> bool:
    """Return whether an unclosed quote made a cell swallow lines up to the next quoted cell.

    The CSV reader mistakes the opening quote of a cell in a later line for the closing quote. The
    cell then contains the rest of its own line, whole lines, and a line up to the same column,
    which ends with a quote. Other text of several lines hardly ever has exactly these delimiters.

    Args:
        lines: the lines of the cell.
        index: the position of the cell's column.
        columns: the number of columns.
    """
    first, *whole, last = (line.count(b",") for line in lines)
    fields = (first, last) == (columns - 1 - index, index) and set(whole) <= {columns - 1}
    return fields and lines[-1].endswith(b'"') and lines[-1].count(b'"') % 2 == 1


def _until_the_end(lines: Sequence[bytes], ending: bytes) -> bool:
    """Return whether a cell ends where the file ends, which a closing quote would prevent."""
    return ending.endswith(b"\n" + lines[-1])


def _ending(path: Path) -> bytes:
    """Return the last bytes of a file, without trailing line breaks."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - ENDING))
        return b"\n".join(file.read().rstrip(b"\r\n").splitlines())


def _header(path: Path) -> list[str]:
    """Read the column names of a CSV file."""
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with _open_csv(path, lambda _: "skip", pa.csv.ConvertOptions()) as reader:
        names: list[str] = reader.schema.names
    _refuse_duplicates(names)
    return names


def _open_csv(
    path: Path,
    bad_line: Callable[[Any], str],
    convert: pa.csv.ConvertOptions,
    empty_lines: bool = False,
) -> Any:
    parse = pa.csv.ParseOptions(
        newlines_in_values=True,
        invalid_row_handler=bad_line,
        ignore_empty_lines=not empty_lines,  # with one column, such a line is a missing value
    )
    read = pa.csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK)
    return pa.csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert)
