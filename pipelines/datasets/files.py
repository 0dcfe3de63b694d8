"""Find CSV and Parquet files in folders and globs, and read them as a stream."""

from __future__ import annotations

import glob
import importlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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

from anomaly_vae.data.arrow import (
    NOT_UTF8,
    is_bytes,
    is_text,
    normalise_array,
    not_utf8,
    plain_array,
    without_markers,
)
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from pipelines.datasets.partitions import Partitions, contradictions, with_columns
from pipelines.datasets.unification import cast_to, contradiction, unite_types

BATCH_ROWS = 65_536
"""Maximum number of rows read from Parquet at a time."""
CSV_BLOCK = 4 << 20
"""Size of the blocks in which CSV is read, in bytes."""
ENDING = READ_BUFFER = 1 << 16
"""Size of the examined end of a CSV file, and of the Parquet read buffer, in bytes."""
MOSTLY_TEXT = 0.9
"""Minimum share of UTF-8 text for a column of bytes to be taken for text."""
MAX_EXPANSION, MAX_UNPACKED = 1_000, 1 << 28
"""Limits on a row group: ratio of its unpacked bytes to the bytes of the file, and unpacked bytes;
a file with a group that exceeds both is not read further."""
MAX_BATCH = 1 << 28
"""Maximum size of the texts of a batch of rows, in bytes; longer texts are read in fewer rows."""
PARQUET = b"PAR1"
"""First bytes of a Parquet file."""
SUFFIXES = (".parquet", ".pq", ".csv")
"""Suffixes of the files that are read from folders and globs."""
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)
"""Errors raised for files that cannot be read."""


@dataclass(frozen=True)
class Chunk:
    """Rows of one file, with their positions (N,) in the file, counted from 0."""

    path: Path
    rows: NDArray[np.int64]
    table: pa.RecordBatch

    @property
    def markers(self) -> bool:
        """Whether texts such as "NA" are missing values, because the file has no types."""
        return has_markers(self.path)


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
    found = (p for name in names if Path(name).exists() for p in _matches(name) if _is_table(p))
    wants_hidden = Path(path).name.startswith((".", "_"))
    return [p for p in found if wants_hidden or not _hidden(p, p.parent)]


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def has_markers(path: Path) -> bool:
    """Return whether a file has no types, so that texts such as "NA" are missing values."""
    return _is_csv(path)


def _is_table(path: Path) -> bool:
    """Return whether a file is a table, by its suffix or, without one, as Hive writes it."""
    if not path.is_file():
        return False
    return path.suffix.lower() in SUFFIXES or (not path.suffix and _begins(path) == PARQUET)


def _begins(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(4)
    return b""


def _hidden(path: Path, root: Path) -> bool:
    """Return whether a part of the path is hidden, or made by a job for itself (_SUCCESS)."""
    parts = path.relative_to(root).parts
    return any(part.startswith(".") or (part[0] == "_" and "=" not in part) for part in parts)


def read_heads(files: Sequence[Path]) -> Iterator[Head]:
    """Yield the heads of all readable files, in order."""
    yield from heads_by_file(files).values()


def heads_by_file(files: Sequence[Path]) -> dict[Path, Head]:
    """Return the heads of all readable files, in order."""
    partitions, heads = Partitions.of(files), dict[Path, Head]()
    for path in files:
        with suppress(*UNREADABLE):
            head = _csv_head(path) if _is_csv(path) else _parquet_head(path)
            heads[path] = _with_folders(head, partitions.columns(path))
    return heads


def absent_columns(heads: Mapping[Path, Head], names: Iterable[str]) -> list[str]:
    """Return a note on each of the columns that some files lack, and one on those all lack."""
    present = {name for head in heads.values() for name in head.schema.names}
    notes, nowhere = [], []
    for name in names:
        without = [path for path, head in heads.items() if name not in head.schema.names]
        if without and name in present:
            notes.append(
                f"column '{name}' is not in {len(without)} of {len(heads)} files, such as "
                f"'{without[0]}'; its values there are missing"
            )
        elif without:
            nowhere.append(name)
    return [*notes, *_absent_everywhere(nowhere, present)]


def _absent_everywhere(names: Sequence[str], present: Collection[str]) -> Iterator[str]:
    if not names:
        return
    wanted = {name.casefold() for name in names}
    similar = sorted(name for name in present if name.casefold() in wanted)
    hint = f"; {listed(similar)} differ only in upper and lower case" if similar else ""
    yield f"columns that no file has, so that their values are missing: {listed(names)}{hint}"


def _with_folders(head: Head, columns: Mapping[str, pa.Scalar]) -> Head:
    fields = [pa.field(n, v.type) for n, v in columns.items() if n not in head.schema.names]
    return Head(pa.schema([*head.schema, *fields]), head.n_rows) if fields else head


def read_chunks(
    files: Sequence[Path], batch_rows: int = BATCH_ROWS, select: Select = list
) -> Iterator[Chunk | Broken]:
    """Yield the rows of all files in order, and unreadable parts as `Broken`.

    Folders such as ``day=2018-07-01`` are columns of the files in them.

    ``select`` limits the columns that are read from Parquet; CSV is always read completely.
    """
    partitions = Partitions.of(files)
    for path in files:
        folders = partitions.columns(path)
        try:
            parts = (
                _read_csv(path)
                if _is_csv(path)
                else _read_parquet(path, batch_rows, lambda names: select([*names, *folders]))  # noqa: B023 called in this turn
            )
            for part in parts:
                yield from _in_folders(part, folders, select) if folders else (part,)
        except UNREADABLE as error:
            yield Broken(path, first_line(error))


def _in_folders(
    part: Chunk | Broken, folders: Mapping[str, pa.Scalar], select: Select
) -> Iterator[Chunk | Broken]:
    """Yield rows with the columns of their folders; rows that contradict them as `Broken`."""
    if isinstance(part, Broken):
        yield part
        return
    selected = set(select(list(dict.fromkeys([*part.table.schema.names, *folders]))))
    columns = {name: value for name, value in folders.items() if name in selected}
    wrong = dict(contradictions(part.table, columns))
    good = np.setdiff1d(np.arange(len(part.table)), list(wrong))
    if len(good):
        table = part.table.take(pa.array(good)) if wrong else part.table
        yield Chunk(part.path, part.rows[good], with_columns(table, columns))
    for i, reason in sorted(wrong.items()):
        row = int(part.rows[i])
        yield Broken(part.path, reason, range(row, row + 1))


def read_table(files: Sequence[Path], used: Callable[[str], bool] = lambda _: True) -> pa.Table:
    """Read all rows of all files, for training.

    Columns that differ in type are united without loss, and texts that mean a missing value in a
    file without types, such as "NA", are nulls. A column that is not ``used`` is left out if its
    types contradict each other.

    Raises:
        DataError: a file cannot be read, or the files have inconsistent columns.
    """
    parts: list[_Columns] = []
    for part in read_chunks(files):
        if isinstance(part, Broken):
            raise DataError(f"'{part.path}'{_where(part)}: {part.reason}", path=str(part.path))
        parts.append(_Columns.of(part))
    if not parts:
        raise DataError(f"no rows in {', '.join(repr(str(f)) for f in files)}")
    names = dict.fromkeys(name for part in parts for name in part.arrays)
    columns = {name: _united(name, parts, used(name)) for name in names}
    return pa.table({name: column for name, column in columns.items() if column is not None})


@dataclass(frozen=True)
class _Columns:
    """Normalised columns of rows (N,) of one file."""

    path: Path
    rows: NDArray[np.int64]
    arrays: dict[str, pa.Array]

    @classmethod
    def of(cls, part: Chunk) -> _Columns:
        """Normalise the columns of a chunk."""
        clean = without_markers if part.markers else lambda array: array
        columns = zip(part.table.schema.names, part.table.columns, strict=True)
        arrays = {name: clean(normalise_array(column)) for name, column in columns}
        return cls(part.path, part.rows, arrays)

    def cast(self, name: str, kind: pa.DataType) -> pa.Array:
        """Return a column in a type that can hold it; nulls if it is absent."""
        if name not in self.arrays:
            return pa.nulls(len(self.rows), kind)
        return cast_to(self.arrays[name], kind)


def _united(name: str, parts: Sequence[_Columns], used: bool) -> pa.ChunkedArray | None:
    """Unite a column of all files; None if it is not used and its types contradict each other."""
    types: dict[pa.DataType, Path] = {}
    for part in parts:
        if name in part.arrays:
            types.setdefault(part.arrays[name].type, part.path)
    if used and any(map(is_bytes, types)):
        _refuse_damaged_text(name, [part for part in parts if name in part.arrays])
    try:
        kind = unite_types(name, types)
        return pa.chunked_array([part.cast(name, kind) for part in parts], kind)
    except DataError:
        if used:
            raise
        return None
    except pa.ArrowException as error:
        if used:
            raise contradiction(name, types, first_line(error)) from None
        return None


def _refuse_damaged_text(name: str, parts: Sequence[_Columns]) -> None:
    """Refuse a column of bytes most of which are text, as they must be before they are used.

    Raises:
        DataError: a cell is not UTF-8; the message names its file and row.
    """
    arrays = [part.arrays[name] for part in parts]
    masks = list(map(not_utf8, arrays))
    values = sum(len(array) - array.null_count for array in arrays)
    wrong = sum(int(mask.sum()) for mask in masks)
    if not wrong or wrong > (1 - MOSTLY_TEXT) * values:
        return
    part, mask = next((p, m) for p, m in zip(parts, masks, strict=True) if m.any())
    row = int(part.rows[mask][0])
    raise DataError(
        f"'{part.path}': column '{name}', row {row}: {NOT_UTF8}, as are {wrong:,} of "
        f"{values:,} cells; write the column as UTF-8, or list it under data.ignore",
        path=str(part.path),
        column=name,
    )


def _where(broken: Broken) -> str:
    if broken.rows is None:
        return ""
    if _is_csv(broken.path):
        return f" line {broken.rows.start + 2}"
    return f" from row {broken.rows.start} on"


REASONS = {
    "Empty CSV file": "it has no rows",
    "straddling object": "a row is too long, perhaps for want of a closing quote",
    "no decryption found": "it is encrypted; decrypt it first",
    "decrypt": "it is encrypted; decrypt it first",
    "smaller than the minimum file footer": "it is not Parquet, or was cut short",
    "size reported by footer": "its footer is damaged; write the file again",
    "deserialize thrift": "its footer is damaged; write the file again",
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
        fields = [pa.field(index.name, pa.int64()) for index in _named_range(file)]
        return Head(pa.schema([*file.schema_arrow, *fields]), file.metadata.num_rows)


def _read_parquet(path: Path, batch_rows: int, select: Select) -> Iterator[Chunk | Broken]:
    with _open_parquet(path) as file:
        index = _named_range(file)
        wanted = set(select([*file.schema_arrow.names, *(one.name for one in index)]))
        columns = [name for name in file.schema_arrow.names if name in wanted]
        index = [one for one in index if one.name in wanted]
        texts = [name for name in columns if _holds_text(file.schema_arrow.field(name).type)]
        start = 0
        for group in range(file.num_row_groups):
            rows = range(start, start + file.metadata.row_group(group).num_rows)
            _refuse_bomb(file.metadata.row_group(group), path.stat().st_size)
            count = min(batch_rows, _rows_within_limit(path, group, texts))
            batches = file.iter_batches(count, [group], columns, use_threads=False)
            for part in _read_group(path, rows, batches, columns):
                yield _with_index(part, index)
            start = rows.stop


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


def _holds_text(kind: pa.DataType) -> bool:
    plain = plain_array(pa.nulls(0, kind)).type
    return is_text(plain) or is_bytes(plain)


def _rows_within_limit(path: Path, group: int, texts: Sequence[str]) -> int:
    """Return how many rows of a row group fit into `MAX_BATCH`, by its longest texts.

    A dictionary with a long text is small in the file, and large once each row has its own copy.
    """
    longest = 0
    with suppress(*UNREADABLE), _parquet_file(path, texts) as file:  # damage is found when read
        for batch in file.iter_batches(1, [group], texts, use_threads=False) if texts else ():
            longest = sum(map(_longest, batch.columns))
            break
    return max(1, MAX_BATCH // max(longest, 1))


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
        _refuse_other_format(path)
        raise
    _refuse_duplicates(file.schema_arrow.names)
    if not file.schema_arrow.names:
        raise ValueError("it has no columns")
    return file


def _parquet_file(path: Path, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    return pq.ParquetFile(
        path,
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


FORMATS = {
    b"ARROW1": "an Arrow or Feather file",
    b"FEA1": "a Feather file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"SQLite format 3": "an SQLite database",
}
"""Name of a format that is not read, by the first bytes of its files."""


def _refuse_other_format(path: Path) -> None:
    """Name the format of a file that is not Parquet.

    Raises:
        ValueError: the file is empty or has another format.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise ValueError("the file is empty")
    found = (name for start, name in FORMATS.items() if head.startswith(start))
    for name in found:
        raise ValueError(f"it is {name}, not Parquet; convert it to Parquet or CSV")


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
