"""Import labels from files into a label store, export those that count, and count them."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from anomaly_vae.data.arrow import is_numeric, levels_from_arrow, text_from_arrow, times_from_arrow
from anomaly_vae.data.converters import CellProblem
from anomaly_vae.errors import AnomalyVAEError, ConfigError, DataError
from anomaly_vae.files import atomic_path
from anomaly_vae.messages import listed, shown
from anomaly_vae.review import CurrentLabel, Label, LabelStore
from pipelines import console
from pipelines.datasets.files import find_files, heads_by_file, read_chunks
from pipelines.datasets.reading.parts import Broken, Chunk, Reading

WORDS = {"1": "anomaly", "true": "anomaly", "0": "normal", "false": "normal"}
"""Verdicts of label values that are none of the words, by their names."""
BATCH = 5_000
"""Number of labels that are stored, and of rows that are written, at a time."""
MAX_REJECTS = 100
"""Maximum number of rejected rows that a result lists."""
MODEL, WHO, NOTE = "model", "who", "note"
"""Columns that a file of labels may have besides those that options name."""
EXPORTED = pa.schema(
    [
        pa.field(MODEL, pa.string()),
        pa.field("id", pa.string()),
        pa.field("label", pa.string()),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field(WHO, pa.string()),
        pa.field(NOTE, pa.string()),
        pa.field("conflicts", pa.string()),
    ]
)
"""Columns of an export."""
WRITERS = {".parquet": pq.ParquetWriter, ".csv": pa.csv.CSVWriter}


# ---------------------------------------------------------------- import


@dataclass(frozen=True)
class Columns:
    """The columns of a file of labels, and what holds for rows that do not say it."""

    id: str = "id"
    label: str = "label"
    at: str | None = None
    """Column with the times of the verdicts; None for ``at``, which may be absent."""
    model: str | None = None
    """Model of all rows; None for the column ``model``."""
    who: str = "import"
    """Reviewer of rows without one."""

    @property
    def time(self) -> str:
        """Column with the times of the verdicts."""
        return self.at or "at"

    @property
    def names(self) -> frozenset[str]:
        """All columns that are read."""
        return frozenset({self.id, self.label, self.time, MODEL, WHO, NOTE})

    def check(self, path: Path, found: Sequence[str]) -> None:
        """Check that a file has the columns that it needs.

        Raises:
            DataError: it lacks one.
        """
        needed = {"--id": self.id, "--label": self.label}
        needed |= {"--at": self.at} if self.at else {}
        for option, name in needed.items():
            if name not in found:
                reason = f"there is no column '{name}'; name one with {option}, of {listed(found)}"
                raise DataError(f"'{path}': {reason}", path=str(path))
        if self.model is None and MODEL not in found:
            reason = "the model of the labels is unknown; give --model NAME, or a column 'model'"
            raise DataError(f"'{path}': {reason}", path=str(path))


@dataclass(frozen=True)
class Reject:
    """A row, or a part of a file, that is no label."""

    path: str
    row: int | None
    column: str | None
    reason: str


@dataclass
class Import:
    """The state of an import; each row is counted once."""

    store: LabelStore
    rows: int = 0
    stored: int = 0
    unchanged: int = 0
    superseded: int = 0
    """Rows without a time that a later row about the same id contradicts or repeats."""
    unlabelled: int = 0
    """Rows without a label."""
    rejected: int = 0
    rejects: list[Reject] = field(default_factory=list)
    _timed: list[Label] = field(default_factory=list)
    _untimed: dict[tuple[str, str, str], Label] = field(default_factory=dict)

    def add(self, label: Label) -> None:
        """Store a label, soon if it has a time, otherwise at the end, if it is the last one."""
        if label.at is None:
            key = label.model, label.id, label.who
            self.superseded += key in self._untimed
            self._untimed[key] = label
            return
        self._timed.append(label)
        if len(self._timed) == BATCH:
            self._store(self._timed)
            self._timed = []

    def reject(self, reject: Reject, rows: int = 1) -> None:
        """Count rows that are no labels."""
        self.rejected += rows
        if len(self.rejects) < MAX_REJECTS:
            self.rejects.append(reject)

    def finish(self) -> None:
        """Store the labels that are left."""
        rest = iter([*self._timed, *self._untimed.values()])
        while some := list(islice(rest, BATCH)):
            self._store(some)

    def _store(self, labels: Sequence[Label]) -> None:
        added = self.store.add(labels)
        self.stored += sum(added)
        self.unchanged += len(added) - sum(added)

    def result(self) -> dict[str, Any]:
        """Return the counts, and the first rejected rows."""
        names = ("rows", "stored", "unchanged", "superseded", "unlabelled", "rejected")
        counts = {name: getattr(self, name) for name in names}
        return {"store": str(self.store), **counts, "rejects": list(map(asdict, self.rejects))}


def import_labels(address: str, paths: Sequence[str], columns: Columns) -> dict[str, Any]:
    """Store the labels in files; the same files may be imported again.

    Raises:
        ConfigError: the address is wrong, or the extra `review` is missing.
        DataError: a file is not there or lacks a column; nothing is stored.
        StoreError: the store cannot be used.
        AnomalyVAEError: all rows were rejected.
    """
    files = find_files(paths)
    reading = Reading(id=columns.id, text=columns.names, numbers=frozenset())
    for path, head in heads_by_file(files, reading).items():
        columns.check(path, head.schema.names)
    with LabelStore(address) as store:
        state = Import(store)
        store.prepare()
        for part in read_chunks(files, reading=reading):
            if isinstance(part, Broken):
                _reject_part(state, part)
            else:
                _add_chunk(state, part, columns)
        state.finish()
    _report(state, reading)
    return state.result()


def _report(state: Import, reading: Reading) -> None:
    """Print what was stored, and why rows were rejected.

    Raises:
        AnomalyVAEError: all rows were rejected.
    """
    for note in reading.notes:
        console.info(note)
    console.info(
        f"{state.rows:,} rows: {state.stored:,} labels stored, {state.unchanged:,} unchanged, "
        f"{state.superseded:,} superseded, {state.unlabelled:,} without a label, "
        f"{state.rejected:,} rejected"
    )
    for reject in state.rejects[:5]:
        console.info(f"rejected: {_describe(reject)}")
    if state.rows and state.rejected == state.rows:
        first = _describe(state.rejects[0])
        raise AnomalyVAEError(f"all {state.rows:,} rows were rejected; the first one: {first}")


def _describe(reject: Reject) -> str:
    row = "" if reject.row is None else f", row {reject.row}"
    column = f", column '{reject.column}'" if reject.column else ""
    return f"'{reject.path}'{row}{column}: {reject.reason}"


def _reject_part(state: Import, part: Broken) -> None:
    rows = part.count
    state.rows += rows
    first = part.rows.start if part.rows else None
    state.reject(Reject(str(part.path), first, None, part.reason), rows)


class Cells(NamedTuple):
    """Values of one row of a file, as text; None where it has none."""

    id: str | None
    label: str | None
    at: float | None
    model: str | None
    who: str | None
    note: str | None


def _add_chunk(state: Import, chunk: Chunk, columns: Columns) -> None:
    cells, problems = _read(chunk, columns)
    state.rows += len(cells)
    for row, one in enumerate(cells):
        number = int(chunk.rows[row])
        if found := problems.get(row):
            state.reject(Reject(str(chunk.path), number, *found))
        elif one.label is None:
            state.unlabelled += 1
        else:
            try:
                state.add(_label(one, columns))
            except DataError as error:
                column = {"id": columns.id, "label": columns.label, "at": columns.time}.get(
                    error.column or "", error.column
                )
                state.reject(Reject(str(chunk.path), number, column, str(error)))


def _label(cells: Cells, columns: Columns) -> Label:
    name = (cells.label or "").strip().casefold()
    label = WORDS.get(name, name)
    if cells.id is None:
        raise DataError("there is no id", column="id")
    if label not in {*WORDS.values(), "unsure"}:
        reason = f"expected anomaly, normal or unsure (or 1, 0), got {shown(cells.label)}"
        raise DataError(reason, column="label")
    model, who = columns.model or cells.model or "", cells.who or columns.who
    return Label.of(model, cells.id, label, who, cells.at, cells.note)


Problems = dict[int, tuple[str, str]]
"""Column and reason of rows that cannot be read, by position."""


def _read(chunk: Chunk, columns: Columns) -> tuple[list[Cells], Problems]:
    """Read the cells of a chunk."""
    problems: Problems = {}
    ids = _levels(chunk, columns.id, problems)
    labels = _levels(chunk, columns.label, problems, markers=True)
    times = _times(chunk, columns.time, problems)
    texts = [_texts(chunk, name, problems) for name in (MODEL, WHO, NOTE)]
    return list(map(Cells, ids, labels, times, *texts)), problems


def _levels(chunk: Chunk, name: str, problems: Problems, markers: bool = False) -> list[str | None]:
    with _naming(chunk, name):
        levels, found = levels_from_arrow(chunk.table.column(name))
    _note(problems, name, found)
    levels = levels.without_markers() if markers else levels
    names = [*levels.names, None]
    return [names[code] for code in levels.codes.tolist()]


def _times(chunk: Chunk, name: str, problems: Problems) -> list[float | None]:
    if name not in chunk.table.schema.names:
        return [None] * len(chunk.table)
    cells = chunk.table.column(name)
    if is_numeric(cells.type):
        reason = "write times as 2024-01-31T12:00:00Z, not as numbers"
        raise DataError(f"'{chunk.path}', column '{name}': {reason}", path=str(chunk.path))
    with _naming(chunk, name):
        seconds, found = times_from_arrow(cells)
    _note(problems, name, found)
    return [None if np.isnan(value) else value for value in seconds.tolist()]


def _texts(chunk: Chunk, name: str, problems: Problems) -> list[str | None]:
    if name not in chunk.table.schema.names:
        return [None] * len(chunk.table)
    texts, found = text_from_arrow(chunk.table.column(name))
    _note(problems, name, found)
    return [None if text is None else str(text) for text in texts.to_pylist()]


@contextmanager
def _naming(chunk: Chunk, column: str) -> Iterator[None]:
    """Name the file and the column in errors about a whole column."""
    try:
        yield
    except DataError as error:
        raise DataError(f"'{chunk.path}', column '{column}': {error}") from None


def _note(problems: Problems, column: str, found: Iterable[CellProblem]) -> None:
    for problem in found:
        problems.setdefault(problem.row, (column, problem.reason))


# ---------------------------------------------------------------- export and statistics


def export_labels(address: str, out: Path, model: str | None) -> dict[str, Any]:
    """Write the label of each id that counts to a file.

    Raises:
        ConfigError: the address or the suffix of the file is wrong.
        StoreError: there is no store, or it cannot be used.
    """
    if out.suffix.lower() not in WRITERS:
        raise ConfigError(f"--out '{out}': the file must end in {' or '.join(WRITERS)}")
    counts, conflicts = Counter[str](), 0
    with LabelStore(address) as store, atomic_path(out) as whole:
        with WRITERS[out.suffix.lower()](str(whole), EXPORTED) as writer:
            for labels in _batches(store.newest(model)):
                writer.write_table(pa.Table.from_pylist(list(map(_row, labels)), EXPORTED))
                counts.update(one.label for one in labels)
                conflicts += sum(bool(one.conflicts) for one in labels)
        name = str(store)
    return {"store": name, "out": str(out), "ids": counts.total(), "conflicts": conflicts}


def _batches(labels: Iterator[CurrentLabel]) -> Iterator[list[CurrentLabel]]:
    while some := list(islice(labels, BATCH)):
        yield some


def _row(label: CurrentLabel) -> dict[str, Any]:
    conflicts = "; ".join(f"{who}: {verdict}" for who, verdict in label.conflicts.items())
    return {
        MODEL: label.model, "id": label.id, "label": label.label, "at": _moment(label.at),
        WHO: label.who, NOTE: label.note or None, "conflicts": conflicts or None,
    }  # fmt: skip


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=round(seconds * 1e6))


def count_labels(address: str, model: str | None) -> dict[str, Any]:
    """Count the labels of a store by verdict and by reviewer.

    Raises:
        ConfigError: the address is wrong, or the extra `review` is missing.
        StoreError: there is no store, or it cannot be used.
    """
    with LabelStore(address) as store:
        stats, name = store.stats(model), str(store)
    times = {"oldest": stats.oldest, "newest": stats.newest}
    console.table("labels by reviewer", ("reviewer", "labels"), list(stats.reviewers.items()))
    return {
        "store": name, "labels": stats.labels, "ids": stats.ids, **stats.verdicts,
        "conflicts": stats.conflicts, "reviewers": dict(stats.reviewers),
        **{key: _moment(at).isoformat() if at is not None else None for key, at in times.items()},
    }  # fmt: skip
