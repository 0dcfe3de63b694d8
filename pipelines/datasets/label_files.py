"""Read late labels from files, with the readers of tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.config.data import CsvConfig
from anomaly_vae.data.arrow import levels_from_arrow, normalise_array, times_from_arrow
from anomaly_vae.data.type_inference import time_column
from anomaly_vae.data.vocabulary import Vocabulary
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from anomaly_vae.review.labels import MAX_CLOCK_DIFFERENCE
from pipelines.datasets.files import find_files, heads_by_file, read_chunks
from pipelines.datasets.reading.parts import Broken, Chunk, Reading
from pipelines.datasets.verdicts import Seconds, Verdicts, id_texts

LABEL, AT = "label", "at"
"""Default name of the label column, and name of the column of times."""


@dataclass(frozen=True)
class LabelSource:
    """Where late labels are, and how they are written."""

    places: tuple[str, ...]
    """Files, folders, globs, or addresses of stores."""
    id: str
    """Column with the ids of rows."""
    label: str | None = None
    """Column with the labels, if it is not called ``label``."""
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    csv: CsvConfig = field(default_factory=CsvConfig)
    time_format: str | None = None
    """Format of times that are not recognised."""
    model: str | None = None
    """Name of the model whose labels a store is asked for; None for those of all models."""
    named_by: str = "data.labels"
    """Configuration key, or option of a command, that names the places, for messages."""


def read_label_files(source: LabelSource) -> tuple[Verdicts, list[str]]:
    """Read all labels of all files in order, and return them with notes for people.

    Rows without an id or without a label are left out and counted. A folder without files holds no
    labels yet.

    Raises:
        DataError: a file cannot be read or lacks a column, or a label or a time cannot be read.
    """
    parts: list[Verdicts] = []
    notes: list[str] = []
    try:
        for path in _files(source.places):
            found, of_file = _read_file(path, source)
            parts += found
            notes += of_file
    except DataError as error:
        raise DataError(f"{source.named_by}: {error}", path=error.path) from None
    return Verdicts.joined(parts), notes


def _files(places: Sequence[str]) -> list[Path]:
    filled = [place for place in places if not _is_empty_folder(Path(place))]
    return find_files(filled) if filled else []


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _read_file(path: Path, source: LabelSource) -> tuple[list[Verdicts], list[str]]:
    reading = _reading(path, source)
    chunks = [_chunk(part) for part in read_chunks([path], reading=reading)]
    if not chunks:
        return [], []
    names = list(dict.fromkeys(name for c in chunks for name in c.table.schema.names))
    label = _label_column(path, names, source)
    seconds = _times(path, chunks, source)
    rows = np.concatenate([chunk.rows for chunk in chunks])
    _check_past(path, rows, seconds)
    ids = pa.concat_arrays([id_texts(_cells(chunk, source.id)) for chunk in chunks])
    codes = np.concatenate([_codes(chunk, label, source.vocabulary) for chunk in chunks])
    has_id = np.asarray(ids.is_valid().to_numpy(zero_copy_only=False), bool)
    notes = [*reading.notes, *_left_out(path, rows, ~has_id, codes < 0)]
    return [Verdicts(ids, codes, seconds).take(has_id & (codes >= 0))], notes


def _check_past(path: Path, rows: NDArray[np.int64], seconds: Seconds) -> None:
    """Refuse times in the future, which would outweigh all later labels.

    Raises:
        DataError: a label has such a time.
    """
    late = np.flatnonzero(seconds > time.time() + MAX_CLOCK_DIFFERENCE)
    if len(late):
        raise DataError(
            f"'{path}', row {rows[late[0]]}, column '{AT}': the time lies in the future, so no "
            "later label could replace this one; correct it, and add its zone if it is not UTC",
            path=str(path),
        )


def _reading(path: Path, source: LabelSource) -> Reading:
    """Return how a file is read: as the data, or by its own separator if that has no ids."""
    names = (source.id, source.label or LABEL, LABEL, AT)
    reading = Reading(source.csv, source.id, frozenset(names), numbers=frozenset())
    head = heads_by_file([path], reading).get(path)
    if head is None or source.id in head.schema.names:
        return reading
    return replace(reading, csv=source.csv.model_copy(update={"separator": None}))


def _chunk(part: Chunk | Broken) -> Chunk:
    if isinstance(part, Broken):
        line = f", line {part.line}" if part.line is not None else ""
        rows = f", row {part.rows.start}" if part.rows and not line else ""
        where = f"'{part.path}'{line or rows}"
        raise DataError(f"{where}: {part.reason}", path=str(part.path))
    return part


def _label_column(path: Path, names: Sequence[str], source: LabelSource) -> str:
    """Return the label column of a file.

    Raises:
        DataError: the file has no ids or no labels.
    """
    if source.id not in names:
        raise DataError(
            f"'{path}' has no column '{source.id}', which data.id names; found {listed(names)}",
            path=str(path),
        )
    wanted = list(dict.fromkeys(name for name in (source.label, LABEL) if name))
    label = next((name for name in wanted if name in names), None)
    if label is None:
        raise DataError(
            f"'{path}' has no label column {' or '.join(map(repr, wanted))}; found {listed(names)}",
            path=str(path),
        )
    return label


def _codes(chunk: Chunk, label: str, vocabulary: Vocabulary) -> NDArray[np.int8]:
    """Return the verdicts (N,) of a chunk, −1 where there is no label.

    Raises:
        DataError: a label has no meaning.
    """
    try:
        levels, problems = levels_from_arrow(_cells(chunk, label))
    except DataError as error:
        raise DataError(f"'{chunk.path}', column '{label}': {error}") from None
    if problems:
        raise _unreadable(chunk, problems[0].row, label, problems[0].reason)
    levels = levels.without_markers()
    meanings = [vocabulary.code(name) for name in levels.names]
    if None in meanings:
        row = int(np.flatnonzero(levels.codes == meanings.index(None))[0])
        reason = vocabulary.explain_unknown(levels.names[levels.codes[row]])
        raise _unreadable(chunk, row, label, reason)
    return np.array([*meanings, -1], np.int8)[levels.codes]


def _unreadable(chunk: Chunk, row: int, column: str, reason: str) -> DataError:
    where = f"'{chunk.path}', row {int(chunk.rows[row])}, column '{column}'"
    return DataError(f"{where}: {reason}; correct it", path=str(chunk.path))


def _times(path: Path, chunks: Sequence[Chunk], source: LabelSource) -> Seconds:
    """Return the times of all rows of a file, NaN where unknown.

    Raises:
        DataError: a time cannot be read.
    """
    cells = _of_one_type([_cells(chunk, AT) for chunk in chunks])
    if pa.types.is_null(cells.type):
        return np.full(len(cells), np.nan)
    recognised = time_column(cells, None)
    row, reason = 0, recognised.problem or ""
    for form in dict.fromkeys((recognised.format, source.time_format)):
        try:
            seconds, problems = times_from_arrow(cells, form)
        except DataError as error:
            reason = reason or str(error)
            continue
        if not problems:
            return seconds
        row, reason = problems[0].row, reason or problems[0].reason
    number = int(np.concatenate([chunk.rows for chunk in chunks])[row])
    raise DataError(
        f"'{path}', row {number}, column '{AT}': {reason}; write times as 2024-01-31T12:00:00Z",
        path=str(path),
    )


def _cells(chunk: Chunk, column: str) -> pa.Array:
    """Return a column of a chunk; nulls if the chunk lacks it."""
    if column not in chunk.table.schema.names:
        return pa.nulls(len(chunk.table))
    return normalise_array(chunk.table.column(column))


def _of_one_type(arrays: Sequence[pa.Array]) -> pa.ChunkedArray:
    """Join arrays; as text if their types differ."""
    kinds = {array.type for array in arrays} - {pa.null()}
    kind = pa.string() if len(kinds) > 1 else next(iter(kinds), pa.null())
    return pa.chunked_array([array.cast(kind) for array in arrays], kind)


def _left_out(
    path: Path, rows: NDArray[np.int64], no_id: NDArray[np.bool_], no_label: NDArray[np.bool_]
) -> Iterator[str]:
    """Yield notes on the rows of a file that say nothing."""
    for mask, what in ((no_id, "id"), (no_label & ~no_id, "label")):
        if mask.any():
            first = int(rows[mask][0])
            yield f"'{path}': {int(mask.sum()):,} rows without {what} left out, such as row {first}"
