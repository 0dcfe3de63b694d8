"""Find tables in folders, globs and pipes, and read them as a stream."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.arrow import NOT_UTF8, is_bytes, is_text, normalise_array, not_utf8
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from pipelines.datasets.reading.csv_files import csv_head, read_csv
from pipelines.datasets.reading.json_files import json_head, read_json
from pipelines.datasets.reading.objects import (
    ObjectPath,
    glob_base,
    is_remote,
    matches,
    object_path,
    objects_in,
    refuse_foreign_address,
    refuse_outage,
    remedy_of,
)
from pipelines.datasets.reading.parquet_files import ALL_GROUPS, parquet_head, read_parquet
from pipelines.datasets.reading.partitions import Partitions, contradictions, with_columns
from pipelines.datasets.reading.parts import (
    UNREADABLE,
    Broken,
    Chunk,
    Head,
    Reading,
    Select,
    first_line,
)
from pipelines.datasets.reading.plain_text import (
    Format,
    format_of,
    has_types,
    is_parquet,
    is_readable,
    unpacked_name,
)
from pipelines.datasets.reading.unification import cast_to, contradiction, read_as, unite_types

BATCH_ROWS = 65_536
"""Maximum number of rows read from Parquet at a time."""
MOSTLY_TEXT = 0.9
"""Minimum share of UTF-8 text for a column of bytes to be taken for text."""
SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson")
"""Suffixes of the files that are read from folders and globs, also before one of a compression."""
STDIN = "/dev/stdin"
HEADS: dict[Format, Callable[[Path, Reading], Head]] = {
    "parquet": parquet_head,
    "json": json_head,
    "csv": csv_head,
}
"""Function that reads the columns of a file, by format."""


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
        except DataError:
            raise
        except (OSError, ValueError) as error:
            hint = remedy_of(path) if isinstance(error, OSError) else ""
            reason = f"{first_line(error)}{hint}"
            raise DataError(f"'{_failing(error, path)}': {reason}", path=path) from None
        if not matches:
            reason = f"no CSV, JSON or Parquet file is there{remedy_of(path)}"
            raise DataError(f"'{path}': {reason}", path=path)
        found |= dict.fromkeys(matches)
    return list(found)


def _failing(error: Exception, path: str) -> str:
    return str(getattr(error, "filename", None) or path)


def _matches(path: str) -> list[Path]:
    if not path:
        raise ValueError("the path is empty; name a file, a folder or a glob")
    refuse_foreign_address(path)
    if is_remote(path):
        return _objects(object_path(path))
    place = Path(STDIN if path == "-" and not Path(path).exists() else path)
    try:
        is_file = is_readable(place)
    except FileNotFoundError:
        if place.is_symlink():
            raise ValueError("it is a link to a file that is not there") from None
        return _glob(path)
    return [place] if is_file else _tables_in(place)


def _objects(path: ObjectPath) -> list[Path]:
    """Return the tables at an address of an object store: an object, a folder or a glob."""
    if path.info().is_file:
        return [path]
    base = glob_base(path)
    found = [item for item in objects_in(base) if base == path or matches(item, path)]
    below = [item.parts[len(base.parts) :] for item in found]
    return [
        item
        for item, names in zip(found, below, strict=True)
        if not any(map(_is_hidden, names)) and _is_table(item)
    ]


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
    names = sorted(glob.glob(below, root_dir=base, recursive=True))  # noqa: PTH207 hidden files
    if not _is_hidden(Path(pattern).name):  # else it asks for hidden ones
        names = [name for name in names if not _is_hidden(Path(name).name)]
    found: list[Path] = []
    for name in names:
        path = base / name
        named = path.suffix and below.endswith(path.suffix)  # the pattern itself names the kind
        found += [path] if named and path.is_file() else []
        found += _tables_in(path) if path.is_dir() else [path] if _is_table(path) else []
    return list(dict.fromkeys(found))


def _is_table(path: Path) -> bool:
    """Return whether a path is a table by its suffix or, without one, is Parquet, as Hive writes.

    A broken link with the suffix of a table counts, so that it is not skipped silently.
    """
    if not path.suffix:
        return path.is_file() and is_parquet(path)
    if Path(unpacked_name(path.name)).suffix not in SUFFIXES:
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or made by a job for itself (_SUCCESS, not _day=1)."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


# ---------------------------------------------------------------- columns


def heads_by_file(files: Sequence[Path], reading: Reading | None = None) -> dict[Path, Head]:
    """Return the heads of all readable files, in order.

    Raises:
        OutageError: an object store does not answer.
    """
    partitions, heads = Partitions.of(files), dict[Path, Head]()
    for path in files:
        try:
            head = HEADS[format_of(path)](path, reading or Reading())
            heads[path] = _with_folders(head, partitions.columns(path))
        except UNREADABLE as error:
            refuse_outage(path, error)
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
    return replace(head, schema=pa.schema([*head.schema, *fields])) if fields else head


# ---------------------------------------------------------------- rows


def read_chunks(
    files: Sequence[Path],
    batch_rows: int = BATCH_ROWS,
    select: Select = list,
    reading: Reading | None = None,
) -> Iterator[Chunk | Broken]:
    """Yield the rows of all files in order, and unreadable parts as `Broken`.

    Folders such as ``day=2018-07-01`` are columns of the files in them.

    Args:
        files: the files.
        batch_rows: maximum number of rows read from Parquet at a time.
        select: limits the columns that are read from Parquet; text is always read completely.
        reading: how text is read; it collects notes.
    """
    partitions, reading = Partitions.of(files), reading or Reading()
    for path in files:
        yield from read_file(path, partitions, reading, select, batch_rows)


def read_file(
    path: Path,
    partitions: Partitions,
    reading: Reading,
    select: Select = list,
    batch_rows: int = BATCH_ROWS,
    groups: slice = ALL_GROUPS,
) -> Iterator[Chunk | Broken]:
    """Yield the rows of one of several files, and unreadable parts as `Broken`.

    Args:
        path: the file.
        partitions: the columns that the folders of all files name.
        reading: how text is read; it collects notes.
        select: limits the columns that are read from Parquet; text is always read completely.
        batch_rows: maximum number of rows read from Parquet at a time.
        groups: row groups to read of a Parquet file.

    Raises:
        OutageError: the object store of the file does not answer.
    """
    folders = partitions.columns(path)
    try:
        for part in _read_file(path, batch_rows, _besides(folders, select), reading, groups):
            yield from _in_folders(part, folders, select) if folders else (part,)
    except UNREADABLE as error:
        refuse_outage(path, error)
        yield Broken(path, first_line(error))


def _besides(folders: Iterable[str], select: Select) -> Select:
    """Return a selection from the columns of a file and of its folders."""
    return lambda names: select([*names, *folders])


def _read_file(
    path: Path, batch_rows: int, select: Select, reading: Reading, groups: slice
) -> Iterator[Chunk | Broken]:
    match format_of(path):
        case "parquet":
            yield from read_parquet(path, batch_rows, select, groups)
        case "json":
            yield from read_json(path, reading)
        case "csv":
            yield from read_csv(path, reading)


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


# ---------------------------------------------------------------- one table


def read_table(
    files: Sequence[Path],
    reading: Reading | None = None,
    used: Callable[[str], bool] = lambda _: True,
) -> pa.Table:
    """Read all rows of all files, for training.

    Columns that differ in type are united without loss. A column of text in a CSV or JSON file is
    read as numbers or times if other files have such a column and all its cells can be read so. A
    column that is not ``used`` is left out if its types contradict each other.

    Raises:
        DataError: a file cannot be read, or the files have inconsistent columns.
    """
    parts: list[_Columns] = []
    for part in read_chunks(files, reading=reading):
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
        columns = zip(part.table.schema.names, part.table.columns, strict=True)
        arrays = {name: normalise_array(column) for name, column in columns}
        return cls(part.path, part.rows, arrays)

    def typed(self, name: str, kinds: Sequence[pa.DataType]) -> _Columns:
        """Return the columns with the text of one read as these types, if its cells allow that."""
        if name not in self.arrays or not is_text(self.arrays[name].type):
            return self
        return replace(self, arrays=self.arrays | {name: read_as(self.arrays[name], kinds)})

    def cast(self, name: str, kind: pa.DataType) -> pa.Array:
        """Return a column in a type that can hold it; nulls if it is absent."""
        if name not in self.arrays:
            return pa.nulls(len(self.rows), kind)
        return cast_to(self.arrays[name], kind)


def _united(name: str, parts: Sequence[_Columns], used: bool) -> pa.ChunkedArray | None:
    """Unite a column of all files; None if it is not used and its types contradict each other."""
    types = _types(name, parts)
    if any(map(is_text, types)) and not all(map(is_text, types)):
        untyped = {path for path in {part.path for part in parts} if not has_types(path)}
        parts = [p.typed(name, list(types)) if p.path in untyped else p for p in parts]
        types = _types(name, parts)
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


def _types(name: str, parts: Sequence[_Columns]) -> dict[pa.DataType, Path]:
    """Return the types of a column, each with the first file that has it."""
    types: dict[pa.DataType, Path] = {}
    for part in parts:
        if name in part.arrays:
            types.setdefault(part.arrays[name].type, part.path)
    return types


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
    if broken.line is not None:
        return f" line {broken.line}"
    return f" from row {broken.rows.start} on"
