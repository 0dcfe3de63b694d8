"""Sources and sinks: CSV and Parquet, files, folders and globs, read as a stream."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly_vae.errors import DataError

BATCH_ROWS = 65_536
CSV_BLOCK = 4 << 20
SUFFIXES = (".parquet", ".pq", ".csv")


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file, with their positions (N,) within it, from 0."""

    path: Path
    rows: NDArray[np.int64]
    table: pa.RecordBatch


@dataclass(frozen=True)
class Broken:
    """A place in a file that cannot be read: a whole file (``row`` None) or one line."""

    path: Path
    reason: str
    row: int | None = None


def find_files(paths: Sequence[str]) -> list[Path]:
    """Files behind files, folders (searched throughout) and globs, sorted within each.

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


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def read_chunks(files: Sequence[Path], batch_rows: int = BATCH_ROWS) -> Iterator[Chunk | Broken]:
    """Stream every file in order; what cannot be read comes as `Broken`, and the rest goes on."""
    for path in files:
        try:
            if path.suffix.lower() == ".csv":
                yield from _read_csv(path)
            else:
                yield from _read_parquet(path, batch_rows)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield Broken(path, first_line(error))


def read_table(files: Sequence[Path]) -> pa.Table:
    """All rows of all files, for training.

    Raises:
        DataError: a file that cannot be read, or files whose columns contradict each other.
    """
    tables: dict[Path, list[pa.RecordBatch]] = {}
    for part in read_chunks(files):
        if isinstance(part, Broken):
            where = f" line {part.row + 2}" if part.row is not None else ""
            raise DataError(f"'{part.path}'{where}: {part.reason}", path=str(part.path))
        tables.setdefault(part.path, []).append(part.table)
    whole = [pa.Table.from_batches(batches) for batches in tables.values()]
    if not whole:
        raise DataError(f"no rows in {', '.join(repr(str(f)) for f in files)}")
    try:
        return pa.concat_tables(whole, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the files' columns contradict each other: {first_line(error)}") from None


REASONS = {
    "Empty CSV file": "it has no rows",
    "straddling object": "a row is too long, perhaps for want of a closing quote",
    "invalid UTF": "it is not UTF-8 text; save it as UTF-8",
    "codec can't decode": "its header is not UTF-8 text; save it as UTF-8",
    "Parquet magic bytes not found": "it is not Parquet, or was cut short",
}
"""What the libraries' messages mean to those who did not write the readers."""


def first_line(error: BaseException) -> str:
    """An exception's text as one short line."""
    text = str(error).strip() or type(error).__name__
    known = (reason for message, reason in REASONS.items() if message in text)
    return next(known, text.splitlines()[0][:200])


def _read_parquet(path: Path, batch_rows: int) -> Iterator[Chunk]:
    with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
        _refuse_duplicates(file.schema_arrow.names)
        row = 0
        for batch in file.iter_batches(batch_rows, use_threads=False):
            yield Chunk(path, np.arange(row, row + len(batch)), batch)
            row += len(batch)


def _refuse_duplicates(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"column '{twice[0]}' appears more than once; rename one of them")


class _BadLines:
    """Lines with a wrong number of fields, collected as the CSV reader meets them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.positions: set[int] = set()
        self.fresh: list[Broken] = []

    def __call__(self, line: Any) -> str:
        reason = f"expected {line.expected_columns} fields, found {line.actual_columns}"
        row = line.number - 2  # the reader counts from 1 and counts the header
        self.positions.add(row)
        self.fresh.append(Broken(self.path, reason, row))
        return "skip"

    def good_rows(self, start: int, count: int) -> NDArray[np.int64]:
        """Positions of the next ``count`` rows from ``start`` on that were not skipped."""
        rows = np.arange(start, start + count + len(self.positions))
        return rows[~np.isin(rows, list(self.positions))][:count]

    def drain(self) -> list[Broken]:
        """The lines met since the last call."""
        fresh, self.fresh = self.fresh, []
        return fresh


def _read_csv(path: Path) -> Iterator[Chunk | Broken]:
    """Every cell as text: types are the schema's business, so that a bad cell is one bad row."""
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    names = _header(path)
    _refuse_duplicates(names)
    bad = _BadLines(path)
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=True, null_values=[""]
    )
    with _open_csv(path, bad, convert) as reader:
        row = 0
        for batch in reader:
            rows = bad.good_rows(row, len(batch))
            if len(batch):
                row = int(rows[-1]) + 1
                yield from _as_text(Chunk(path, rows, batch))
            yield from bad.drain()
    yield from bad.drain()


def _as_text(chunk: Chunk) -> Iterator[Chunk | Broken]:
    """The rows whose cells are UTF-8, and the others as `Broken`."""
    table = chunk.table
    text = pa.schema([(name, pa.string()) for name in table.schema.names])
    try:
        yield Chunk(chunk.path, chunk.rows, table.cast(text))
    except pa.ArrowInvalid:
        wrong = {i: name for name in text.names for i in _not_utf8(table.column(name))}
        good = np.setdiff1d(np.arange(len(table)), list(wrong))
        if len(good):
            yield Chunk(chunk.path, chunk.rows[good], table.take(pa.array(good)).cast(text))
        for i, name in sorted(wrong.items()):
            reason = f"column '{name}' is not UTF-8 text; save the file as UTF-8"
            yield Broken(chunk.path, reason, int(chunk.rows[i]))


def _not_utf8(cells: pa.BinaryArray) -> Iterator[int]:
    for i, cell in enumerate(cells.to_pylist()):
        try:
            (cell or b"").decode()
        except UnicodeDecodeError:
            yield i


def _header(path: Path) -> list[str]:
    """Column names of a CSV file."""
    with _open_csv(path, lambda _: "skip", pa.csv.ConvertOptions()) as reader:
        return list(reader.schema.names)


def _open_csv(path: Path, bad_line: Callable[[Any], str], convert: pa.csv.ConvertOptions) -> Any:
    return pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=bad_line),
        convert_options=convert,
    )
