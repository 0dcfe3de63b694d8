"""Write results to a folder of parts, rejects and a summary, which is replaced as a whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anomaly_vae.errors import DataError
from anomaly_vae.files import locked
from anomaly_vae.messages import printable

PART_ROWS = 1 << 20
"""Number of rows from which a part is complete."""
REJECT_ROWS = 1 << 16
"""Number of rejects that are written at a time."""
SUMMARY, REJECTS, INCOMPLETE = "summary.json", "rejects.parquet", ".incomplete"
HEATMAPS, DICOM = "heatmaps", "dicom"
RESULT_FILE = re.compile(
    r"part-\d{5,}\.parquet|rejects\.parquet|summary\.json"
    r"|heatmaps(/[\w.-]*-[0-9a-f]{16}-\d+\.png)?|dicom(/[\w.-]*-[0-9a-f]{16}-\d+\.dcm)?"
)
"""Pattern of the names of a result's files; those of heatmaps contain a digest."""
DICTIONARY_COLUMNS = [
    "p_value",
    *(f"contributions.list.element.{name}" for name in ("feature", "observed", "expected")),
]
"""Columns with many repeated values, for which dictionary encoding saves space."""
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


@contextmanager
def result_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder whose files replace those of ``output`` when the block succeeds.

    Nothing outside ``output`` is touched, so it may be a mount point. The previous result stays
    until the block ends without an error. Then the old files are deleted, the summary first, and
    the new ones are moved in, the summary last. A result with a summary is therefore complete; a
    crash between these renames leaves new files, some of them still in `INCOMPLETE`, without a
    summary.

    Raises:
        DataError: ``output`` is a file, holds anything but a previous result, or is in use.
    """
    if output.is_file():
        raise DataError(f"--output '{output}' is a file; give a folder")
    output.mkdir(parents=True, exist_ok=True)
    with _exclusive(output):
        _check_replaceable(output)
        staged = output / INCOMPLETE
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        try:
            yield staged
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        _publish(staged, output)


@contextmanager
def _exclusive(output: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(output, wait=False))
        except BlockingIOError:
            raise DataError(f"--output '{output}' is being written by another run") from None
        yield


def _check_replaceable(output: Path) -> None:
    names = set(_names(output))
    foreign = sorted(name for name in names if not RESULT_FILE.fullmatch(name))
    if foreign:
        raise DataError(
            f"--output '{output}' holds other files, such as '{foreign[0]}'; "
            "choose an empty or a new folder"
        )
    if names and SUMMARY not in names and not (output / INCOMPLETE).exists():
        raise DataError(
            f"--output '{output}' holds files without a {SUMMARY}; choose an empty or a new folder"
        )


def _publish(staged: Path, output: Path) -> None:
    (output / SUMMARY).unlink(missing_ok=True)
    for name in sorted(_names(output), reverse=True):  # the files of a folder before the folder
        path = output / name
        path.rmdir() if path.is_dir() else path.unlink()
    for path in sorted(staged.iterdir(), key=lambda path: path.name == SUMMARY):
        path.rename(output / path.name)
    staged.rmdir()


def _names(output: Path) -> Iterator[str]:
    """Yield the names in the folder and in its folders of heatmaps, except `INCOMPLETE`."""
    for path in output.iterdir():
        if path.name != INCOMPLETE:
            yield path.name
        if path.name in (HEATMAPS, DICOM) and path.is_dir():
            yield from (f"{path.name}/{inner.name}" for inner in path.iterdir())


class Sink:
    """A writer of scored rows, in parts of about `PART_ROWS` rows, and of rejects.

    Args:
        folder: the folder to write to.
        key: the column of ids of tables; None if rows have none.
    """

    def __init__(self, folder: Path, key: pa.Field | None = None) -> None:
        self.folder, self._key = folder, key
        self.parts: list[str] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0
        self._reject_schema = reject_schema(key)
        self._rejects = pq.ParquetWriter(folder / REJECTS, self._reject_schema)
        self._pending: list[tuple[Any, ...]] = []

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, table: pa.Table) -> None:
        """Append scored rows."""
        if self._writer is None:
            name = f"part-{len(self.parts):05d}.parquet"
            self.parts.append(name)
            self._writer = pq.ParquetWriter(
                self.folder / name,
                table.schema,
                compression="zstd",
                use_dictionary=DICTIONARY_COLUMNS,
            )
        self._writer.write_table(table)
        self._rows += len(table)
        if self._rows >= PART_ROWS:
            self._close_part()

    def reject(
        self,
        path: Path | str,
        rows: Sequence[int | None],
        reason: str,
        column: str | None = None,
        name: pa.Scalar | None = None,
    ) -> None:
        """Append rejected rows of a file that share one reason, and the id ``name``, if any."""
        for start in range(0, len(rows), REJECT_ROWS):
            chunk = rows[start : start + REJECT_ROWS]
            names = () if self._key is None else (name,)
            self._pending += [(printable(path), row, *names, column, reason) for row in chunk]
            if len(self._pending) >= REJECT_ROWS:
                self._flush_rejects()

    def finish(self) -> dict[str, Any]:
        """Complete every file after the last row; return additional entries of the summary."""
        self.close()
        return {}

    def close(self) -> None:
        """Close every file."""
        self._close_part()
        self._flush_rejects()
        self._rejects.close()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows = None, 0

    def _flush_rejects(self) -> None:
        if self._pending:
            columns = [list(column) for column in zip(*self._pending, strict=True)]
            self._rejects.write_table(pa.Table.from_arrays(
                [pa.array(c, t) for c, t in zip(columns, self._reject_schema.types, strict=True)],
                schema=self._reject_schema,
            ))  # fmt: skip
            self._pending = []
