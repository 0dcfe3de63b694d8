"""Write a result: a folder of parts, the rejects and, last of all, the summary.

Every file is written in the hidden folder `RUN` and moved to its name when it is complete and on
the disk. `RUN` also contains the plan of the run, and a record of each finished part with its
counts and the digests of its files. A run that was killed is continued by means of these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anomaly_vae.errors import DataError
from anomaly_vae.files import locked, strict_json
from pipelines.batch.result.counts import Counts
from pipelines.batch.result.layout import Layout, RowFile, row_file
from pipelines.batch.result.plan import Plan

PART_ROWS = 1 << 18
"""Number of rows from which a part is complete."""
REJECT_ROWS = 1 << 16
"""Number of rejects that are written at a time."""
SUMMARY, REJECTS = "summary.json", "rejects.parquet"
RUN = ".run"
"""Folder with the plan, the records and unfinished files."""
PLAN = f"{RUN}/plan.json"
FEATURES = "features-*.parquet"
"""Pattern of the window features that a run shares among machines, in `RUN`."""
INCOMPLETE = ".incomplete"
"""Folder in which older versions kept an unfinished result."""
HEATMAPS, DICOM, MAPS = "heatmaps", "dicom", "maps"
TOP, TOP_CSV, REJECTS_CSV = "top.parquet", "top.csv", "rejects.csv"
GROUPS = "groups.parquet"
PART = r"part-\d{5,}(_\d{5,})?\.(parquet|csv)"
RESULT_FILE = re.compile(
    rf"{PART}|[^/=]+=[^/]+(/{PART})?|(rejects|top|groups)\.(parquet|csv)|summary\.json"
    r"|heatmaps(/[\w.-]*-[0-9a-f]{16}-\d+\.png)?|dicom(/[\w.-]*-[0-9a-f]{16}-\d+\.dcm)?"
    r"|maps(/[\w.-]*-[0-9a-f]{16}-\d+\.(npy|tiff|nii\.gz))?"
)
"""Pattern of the names of a result's files; those of heatmaps contain a digest."""
FILE = "file"
"""Column of the rejects of a part: the index of the file."""
REJECT_FIELDS = (
    ("path", pa.string()),
    ("row", pa.int64()),
    ("column", pa.string()),
    ("reason", pa.string()),
)
"""Columns of the rejects, except the id."""


def reject_schema(key: pa.Field | None) -> pa.Schema:
    """Return the columns of the rejects; the id has the name and type that it has in the parts.

    A column of `REJECT_FIELDS` that has the id's name is written as ``reject_`` and its name.
    """
    own = [
        pa.field(f"reject_{name}" if key is not None and name == key.name else name, kind)
        for name, kind in REJECT_FIELDS
    ]
    return pa.schema(own if key is None else [*own[:2], key, *own[2:]])


# ---------------------------------------------------------------- the folder


class ResultFolder:
    """The folder of a result; file names are relative to it, with ``/``.

    Args:
        path: the folder, which may be a mount point: nothing outside it is touched.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder, and hold a lock on it that ends with the process.

        Raises:
            DataError: the path is a file, it cannot be created, or another run holds the lock.
        """
        if self.path.is_file():
            raise DataError(f"--output '{self.path}' is a file; give a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"--output '{self.path}' cannot be created: {error.strerror}; give another folder"
            ) from None
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path, wait=False))
            except BlockingIOError:
                raise DataError(
                    f"--output '{self.path}' is being written by another run; wait until it has "
                    "ended, or choose another folder"
                ) from None
            yield

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self.path / name).read_bytes()
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is either complete or absent."""
        with self.create(name) as path:
            path.write_bytes(content)

    @contextmanager
    def create(self, name: str) -> Iterator[Path]:
        """Yield a path to write to; move the file to its name if the block succeeds.

        The content is on the disk before the file has its name.
        """
        target = self.path / name
        unique = f"unfinished-{name.replace('/', '-')}-{uuid.uuid4().hex}"
        unfinished = self.path / RUN / unique  # an engine may have the same part written twice
        for folder in (unfinished.parent, target.parent):
            folder.mkdir(exist_ok=True)
        try:
            yield unfinished
            _sync(unfinished)
            unfinished.replace(target)
            _sync(target.parent)
        finally:
            unfinished.unlink(missing_ok=True)

    def digest(self, name: str) -> str | None:
        """Return the digest of a file; None if there is none."""
        with suppress(FileNotFoundError, IsADirectoryError), self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return None

    def open(self, name: str) -> Any:
        """Open a file for reading."""
        return (self.path / name).open("rb")

    def has(self, name: str) -> bool:
        """Return whether there is such a file or folder."""
        return (self.path / name).exists()

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        (self.path / name).unlink(missing_ok=True)

    def names(self, pattern: str) -> list[str]:
        """Return the names of the files that a glob matches, sorted."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.glob(pattern))

    def check(self, restart: bool) -> None:
        """Check that the folder is empty, or contains a result that may be continued or replaced.

        Raises:
            DataError: it contains other files, or a result of another origin.
        """
        names = set(self._visible())
        foreign = sorted(name for name in names if not RESULT_FILE.fullmatch(name))
        if foreign:
            raise DataError(
                f"--output '{self.path}' holds other files, such as '{foreign[0]}'; "
                "choose an empty or a new folder"
            )
        if not names or self.has(PLAN):
            return
        if SUMMARY not in names:
            if self.has(INCOMPLETE):
                return
            raise DataError(
                f"--output '{self.path}' holds files without a {SUMMARY}; choose an empty or a "
                "new folder"
            )
        if not restart:
            raise DataError(
                f"--output '{self.path}' holds a result that another version wrote; choose "
                "another folder, or add --restart, which replaces it"
            )

    def clear(self) -> None:
        """Remove a result: the summary first, the plan last."""
        self.remove(SUMMARY)
        for name in sorted(self._visible(), reverse=True):  # the files of a folder before it
            path = self.path / name
            path.rmdir() if path.is_dir() else path.unlink()
        shutil.rmtree(self.path / INCOMPLETE, ignore_errors=True)
        for path in sorted((self.path / RUN).glob("*"), key=lambda path: path.name == "plan.json"):
            path.unlink()

    def tidy(self) -> None:
        """Remove what only a live run needs, and a killed one leaves."""
        for pattern in ("unfinished-*", FEATURES):
            for name in self.names(f"{RUN}/{pattern}"):
                self.remove(name)

    def _visible(self) -> Iterator[str]:
        """Yield the names in the folder and in those that a result has, except hidden ones."""
        for path in self.path.iterdir():
            if path.name not in (INCOMPLETE, RUN):
                yield path.name
            if holds_results(path.name) and path.is_dir():
                yield from (f"{path.name}/{inner.name}" for inner in path.iterdir())


def holds_results(folder: str) -> bool:
    """Return whether files in a folder of this name may belong to a result.

    >>> holds_results("heatmaps"), holds_results("day=1"), holds_results("notes")
    (True, True, False)
    """
    return folder in (HEATMAPS, DICOM, MAPS) or "=" in folder


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- records


@dataclass(frozen=True)
class Record:
    """A finished part: the files that it consists of and its counts.

    A part is identified by its unit and, as a unit may be large, by its number within the unit.
    """

    unit: int
    number: int
    last: bool
    """Whether it is the last part of its unit."""
    plan: str
    """Digest of the run's plan."""
    parts: list[str] = field(default_factory=list)
    """Names of the files with the scored rows; empty without any."""
    held: str | None = None
    """Name of the file with the scored rows, until a second pass writes the part."""
    rejects: str | None = None
    """Name of the file with the rejected rows; None without any."""
    top: str | None = None
    """Name of the file with the rows that may be among the highest; None without any."""
    p_values: str | None = None
    """Name of the file with the p-values that a second pass has counted; None before it."""
    digests: dict[str, str] = field(default_factory=dict)
    """Digest of each file, by name."""
    counts: Counts = field(default_factory=Counts)

    @property
    def stem(self) -> str:
        """Stem of the names of the part's files."""
        return stem(self.unit, self.number)

    def to_bytes(self) -> bytes:
        """Return the record as it is stored."""
        content = {**vars(self), "counts": self.counts.to_json()}
        return f"{json.dumps(content)}\n".encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a stored record."""
        found = strict_json(content)
        return cls(**found | {"counts": Counts.from_json(found["counts"])})


def stem(unit: int, number: int) -> str:
    """Return the stem of a part's file names; these sort in the order of the rows.

    >>> stem(3, 0), stem(3, 1)
    ('00003', '00003_00001')
    """
    return f"{unit:05d}" + (f"_{number:05d}" if number else "")


def record_name(unit: int, number: int) -> str:
    """Return the name of a part's record."""
    return f"{RUN}/{stem(unit, number)}.json"


def records_of(folder: ResultFolder, plan: Plan, unit: int | None = None) -> list[Record]:
    """Return the records of the finished parts, of all units or of one, in order."""
    patterns = ["[0-9]*.json"] if unit is None else [f"{unit:05d}.json", f"{unit:05d}_*.json"]
    names = [name for pattern in patterns for name in folder.names(f"{RUN}/{pattern}")]
    found = map(_record, filter(None, map(folder.read, names)))
    digest = plan.digest
    records = [record for record in found if record is not None and record.plan == digest]
    return sorted(records, key=lambda record: (record.unit, record.number))


def _record(content: bytes) -> Record | None:
    """Return a record; None if it is damaged."""
    try:
        return Record.from_bytes(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def is_sound(folder: ResultFolder, record: Record) -> bool:
    """Return whether the files of a part are as they were when it was finished."""
    return all(folder.digest(name) == digest for name, digest in record.digests.items())


# ---------------------------------------------------------------- writing


class PartWriter:
    """A writer of one part, whose files and record are complete or absent.

    Args:
        folder: the folder to write to.
        unit: index of the unit.
        number: number of the part within the unit.
        held: whether a second pass will write the part itself.
        layout: the files of the part.
    """

    def __init__(
        self,
        folder: ResultFolder,
        unit: int,
        number: int,
        held: bool,
        layout: Layout,
    ) -> None:
        self.unit, self.number = unit, number
        self.counts = Counts()
        self._folder, self._layout = folder, layout
        name = f"{RUN}/{stem(unit, number)}"
        self._rejects = _Table(folder, f"{name}.rejects.parquet")
        self._top = _Table(folder, f"{name}.top.parquet")
        self._candidates: pa.Table | None = None
        """Rows that may be among the highest."""
        self._held = _Table(folder, f"{name}.held.parquet")
        self._parts = PartFiles(folder, stem(unit, number), layout)
        self._rows = self._held if held else self._parts

    def write(
        self,
        rows: pa.Table | None,
        rejects: pa.Table | None,
        counts: Counts,
        candidates: pa.Table | None = None,
    ) -> None:
        """Append scored and rejected rows, their counts, and rows that may be the highest."""
        self.counts.add(counts)
        if rows is not None and len(rows):
            self._rows.write(rows)
        if rejects is not None and len(rejects):
            self._rejects.write(rejects)
        if candidates is not None and self._layout.ranking is not None:
            both = [table for table in (self._candidates, candidates) if table is not None]
            self._candidates = self._layout.ranking.highest(pa.concat_tables(both))

    def finish(self, plan: str, last: bool) -> Record:
        """Complete the files, then write the record."""
        if self._candidates is not None:
            self._top.write(self._candidates)
        parts = self._parts.finish()
        files = {
            kind: table.finish()
            for kind, table in (
                ("held", self._held),
                ("rejects", self._rejects),
                ("top", self._top),
            )
        }
        names = [*parts, *filter(None, files.values())]
        digests = {name: self._folder.digest(name) or "" for name in names}
        record = Record(
            self.unit,
            self.number,
            last,
            plan,
            parts,
            digests=digests,
            counts=self.counts,
            **files,
        )
        self._folder.write(record_name(self.unit, self.number), record.to_bytes())
        return record

    def close(self) -> None:
        """Remove the files that are not finished."""
        for files in (self._parts, self._held, self._rejects, self._top):
            files.close()


class PartFiles:
    """The files with the scored rows of one part.

    Rows that are divided into folders are kept until all are there, so that few files are open.

    Args:
        folder: the folder to write to.
        part: stem of the part.
        layout: the files of the part.
    """

    def __init__(self, folder: ResultFolder, part: str, layout: Layout) -> None:
        self._folder, self._stem, self._layout = folder, part, layout
        self._file = _Table(folder, layout.file_name(part))
        self._waiting: list[pa.Table] = []

    def write(self, rows: pa.Table) -> None:
        """Append rows."""
        rows = self._layout.shown(rows)
        if self._layout.partition_by:
            self._waiting.append(rows)
        else:
            self._file.write(rows)

    def finish(self) -> list[str]:
        """Complete the files and return their names.

        Raises:
            DataError: the rows have too many folders.
        """
        if not self._waiting:
            return list(filter(None, [self._file.finish()]))
        folders = self._layout.folders(pa.concat_tables(self._waiting))
        return [self._in_folder(name, rows) for name, rows in folders]

    def _in_folder(self, name: str, rows: pa.Table) -> str:
        file = _Table(self._folder, self._layout.file_name(self._stem, name))
        try:
            file.write(rows)
            return str(file.finish())
        finally:
            file.close()

    def close(self) -> None:
        """Remove the file that is not finished."""
        self._file.close()


class _Table:
    """A file of rows, which is begun with the first of them."""

    def __init__(self, folder: ResultFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._stack = ExitStack()
        self._writer: RowFile | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if self._writer is None:
            path = self._stack.enter_context(self._folder.create(self._name))
            self._writer = row_file(path, self._name.rpartition(".")[2], table.schema)
        self._writer.write_table(table)

    def finish(self) -> str | None:
        """Complete the file and return its name; None if nothing was written."""
        if self._writer is None:
            return None
        self._writer.close()
        self._stack.close()
        return self._name

    def close(self) -> None:
        """Discard the file, unless it is finished."""
        with suppress(_Discarded, OSError), self._stack:
            if self._writer is not None:
                self._writer.close()
            raise _Discarded


class _Discarded(Exception):  # noqa: N818  # no error
    """Raised within the block that writes a file, so that the file is not kept."""


def write_parquet(folder: ResultFolder, name: str, table: pa.Table) -> None:
    """Write a Parquet file that is either complete or absent."""
    with folder.create(name) as path:
        pq.write_table(table, path, compression="zstd")


# ---------------------------------------------------------------- rejects


def merge_rejects(
    folder: ResultFolder,
    records: Iterable[Record],
    key: pa.Field | None,
    names: Sequence[str],
    starts: Sequence[int] | None,
) -> None:
    """Combine the rejects of all parts to one file.

    Args:
        folder: the folder of the result.
        records: the records of all parts.
        key: the column of ids; None if rows have none.
        names: the name of each file.
        starts: the position of each file's first row in the whole input, which is added to the
            row's position in its file; None to leave the positions as they are.
    """
    schema = reject_schema(key)
    with folder.create(REJECTS) as path, pq.ParquetWriter(path, schema) as writer:
        pending: list[pa.Table] = []
        for table in rejects_of(folder, records):
            pending.append(_placed(table, schema, names, starts))
            if sum(map(len, pending)) >= REJECT_ROWS:
                writer.write_table(pa.concat_tables(pending), row_group_size=REJECT_ROWS)
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending), row_group_size=REJECT_ROWS)


def rejects_of(folder: ResultFolder, records: Iterable[Record]) -> Iterator[pa.Table]:
    """Yield the rejects of all parts, with the index of the file and the position in it."""
    for record in records:
        if record.rejects:
            with folder.open(record.rejects) as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(REJECT_ROWS, use_threads=False):
                    yield pa.Table.from_batches([batch])


def part_reject_schema(key: pa.Field | None) -> pa.Schema:
    """Return the columns of a part's rejects: as those of the result, with `FILE` for the path."""
    return reject_schema(key).set(0, pa.field(FILE, pa.int64()))


def _placed(
    table: pa.Table, schema: pa.Schema, names: Sequence[str], starts: Sequence[int] | None
) -> pa.Table:
    files, rows = table.column(0).to_pylist(), table.column(1)
    if starts is not None:
        rows = pc.add(rows, pa.array([starts[file] for file in files], pa.int64()))
    paths = pa.array([names[file] for file in files], pa.string())
    return pa.Table.from_arrays([paths, rows, *table.columns[2:]], schema=schema)
