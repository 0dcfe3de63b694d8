"""Add window features to tables: to whole ones for training, to chunks of files for scoring."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.data import Feature, TabularData
from anomaly_vae.data.arrow import levels_from_arrow, normalise_array, numbers_from_arrow
from anomaly_vae.data.schema import RawBatch, RowProblem, TabularSchema
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.features.definition import MICROSECONDS, WindowDefinition
from anomaly_vae.features.events import EventReader
from anomaly_vae.features.inputs import WindowInputs
from anomaly_vae.features.store import StoreOptions
from anomaly_vae.features.store.past import add_past, open_filled
from anomaly_vae.features.wording import span
from anomaly_vae.masking import masked
from anomaly_vae.messages import explain_foreign, listed, nearest, shown
from anomaly_vae.types import MAX_LEVELS, ColumnType
from pipelines import console
from pipelines.datasets.files import find_files, heads_by_file, read_chunks
from pipelines.datasets.reading.parts import Broken, Chunk, Head, Reading
from pipelines.datasets.warm_up import Past

if TYPE_CHECKING:
    from anomaly_vae.features.offline import FeatureFiles, OfflineWindows

HISTORY, STORE = "--history", "--windows-store"
"""Options that give the past of windows."""
GAP = 86_400 * MICROSECONDS
"""Time between a store's last event and the first row from which on events seem to be missing."""
MOSTLY_NUMBERS = 0.9
"""Minimum share of numbers in a column that statistics are of."""


# ---------------------------------------------------------------- definitions


def windows_of(bundle: Bundle) -> EventReader | None:
    """Return the reader of the events of a model; None if it has no windows."""
    manifest = bundle.manifest
    found = manifest["data"].get("windows", {}).get("time_format")
    return EventReader.of_config(manifest["config"]["data"], found)


def refuse_computed(names: Collection[str], definition: WindowDefinition, where: str = "") -> None:
    """Refuse columns that have the name of a window feature.

    Args:
        names: the columns of the input.
        definition: the features.
        where: the words that place the columns, such as the file.

    Raises:
        DataError: such a column exists.
    """
    for name in definition.names:
        if name in names:
            raise DataError(
                f"column '{name}'{where} has the name of a feature that data.windows computes; "
                "rename or remove the column",
                column=name,
            )


def _check_columns(table: pa.Table, data: TabularData) -> None:
    """Check that the windows of a configuration fit the table.

    Raises:
        DataError: a column is absent, or statistics are of one that has no numbers.
    """
    for entity, windows in data.windows.items():
        for key, name in (("", entity), *windows.columns):
            if name not in table.column_names:
                raise _absent(".".join(filter(None, ("data.windows", entity, key))), name, table)
        for name in windows.of:
            _check_numbers(entity, name, table.column(name))


def _absent(key: str, name: str, table: pa.Table) -> DataError:
    near = nearest(name, table.column_names)
    remedy = f"; write {near}" if near else f"; found {listed(table.column_names)}"
    return DataError(f"{key} names the column '{name}', which is not there{remedy}", column=name)


def _check_numbers(entity: str, name: str, column: pa.ChunkedArray) -> None:
    key, remedy = f"data.windows.{entity}", f"count its values with distinct: [{name}]"
    try:
        values, problems = numbers_from_arrow(column)
    except DataError as error:
        reason = f"{key}.of names the column '{name}': {error}; {remedy}"
        raise DataError(reason, column=name) from None
    present = int((~np.isnan(values)).sum()) + len(problems)
    if len(problems) > (1 - MOSTLY_NUMBERS) * present:
        example = shown(normalise_array(column)[problems[0].row].as_py())
        raise DataError(
            f"{key}.of names the column '{name}', whose values are no numbers, such as {example}; "
            f"{remedy}",
            column=name,
        )


# ---------------------------------------------------------------- whole tables


@dataclass(frozen=True, eq=False)
class WithWindows:
    """A table with its window features, and the rows whose entity, time or numbers are wrong."""

    table: pa.Table
    data: TabularData
    """Configuration in which the features are ordinary numeric columns."""
    problems: tuple[RowProblem, ...] = ()
    notes: tuple[str, ...] = ()
    past: Past | None = None
    """What the windows see; None if there are no windows or no events."""


def with_windows(table: pa.Table, data: TabularData, time_format: str | None) -> WithWindows:
    """Add the window features of a configuration to its table, after the other columns.

    Raises:
        DataError: a column of the windows is absent, has no numbers, or has a feature's name.
    """
    reader = EventReader.of_config(data.model_dump(), time_format)
    if reader is None:
        return WithWindows(table, data)
    _check_columns(table, data)
    refuse_computed(table.column_names, reader.definition)
    events = reader.read(table)
    with _offline(reader) as windows:
        windows.add(events, np.arange(len(table)))
        times = windows.span(history=False)
        values = windows.compute().read(np.arange(len(table)))
    features = _with_features(data, reader.definition.names)
    reach = reader.definition.longest / MICROSECONDS
    past = Past(times.first / MICROSECONDS, reach) if times else None
    notes = _notes(table, data)
    return WithWindows(_append(table, values), features, events.problems, notes, past)


def _with_features(data: TabularData, names: Sequence[str]) -> TabularData:
    types = {name: Feature(type=ColumnType.NUMERIC) for name in names}
    if isinstance(data.features, dict):
        return data.model_copy(update={"features": data.features | types})
    listed_names = None if data.features is None else (*data.features, *names)
    return data.model_copy(update={"features": listed_names, "types": data.types | types})


def _notes(table: pa.Table, data: TabularData) -> tuple[str, ...]:
    """Return a note on each entity that is a feature itself and has many values."""
    features = [n for n in data.windows if data.reads(n) and n not in data.roles]
    many = [n for n in features if len(normalise_array(table.column(n)).unique()) > MAX_LEVELS]
    return tuple(
        f"column '{name}': names entities of data.windows, and is a feature itself; unless its "
        f"values mean something, set data.ignore: [{name}]"
        for name in many
    )


def with_model_windows(
    table: pa.Table, bundle: Bundle, history: Sequence[str] = (), csv: Mapping[str, Any] = {}
) -> tuple[pa.Table, tuple[RowProblem, ...]]:
    """Add the window features of a model to a table, and print what they do not see.

    Args:
        table: N rows.
        bundle: the model.
        history: files with the rows before; see `open_windows`.
        csv: keys of `CsvConfig` that differ from the training configuration.

    Returns:
        The table, and the rows whose entity, time or numbers cannot be read.
    """
    reader = windows_of(bundle)
    _refuse_history(reader, history)
    if reader is None:
        return table, ()
    refuse_computed(table.column_names, reader.definition)
    _check_known(table.column_names, cast("TabularSchema", bundle.scorer.schema), reader)
    with _offline(reader) as windows:
        past = _History(reader, bundle, history, csv)
        past.add_to(windows)
        events = reader.read(table)
        windows.add(events, np.arange(len(table)))
        for warning in past.warnings(windows, table.column_names):
            console.info(f"Warning: {warning}")
        values = windows.compute().read(np.arange(len(table)))
    return _append(table, values), events.problems


def _append(table: Any, values: Mapping[str, NDArray[np.float64]]) -> Any:
    """Return a table or record batch with further columns."""
    columns = {name: table.column(name) for name in table.schema.names}
    found = {name: pa.array(column, from_pandas=True) for name, column in values.items()}
    return type(table).from_pydict(columns | found)


def _offline(reader: EventReader) -> OfflineWindows:
    try:
        from anomaly_vae.features.offline import OfflineWindows
    except ImportError as error:
        raise ConfigError(f"{error}; install it with: pip install 'anomaly-vae[train]'") from None
    return OfflineWindows(reader)


def _refuse_history(
    reader: EventReader | None, history: Sequence[str], store: StoreOptions | None = None
) -> None:
    option = HISTORY if history else STORE if store else None
    if option and reader is None:
        raise ConfigError(f"{option} is for models with data.windows; leave it out")
    if history and store:
        raise ConfigError(f"{HISTORY} and {STORE} both give the past of windows; leave one out")


def _check_known(names: Collection[str], schema: TabularSchema, reader: EventReader) -> None:
    """Refuse a table with none of the columns that the model and its windows are computed of.

    Raises:
        DataError: there is none.
    """
    expected = _expected(schema, reader)
    if not set(expected) & set(names):
        raise DataError(explain_foreign(names, expected))


def _expected(schema: TabularSchema, reader: EventReader) -> tuple[str, ...]:
    """Return the columns of which the features of a model with windows are read or computed."""
    computed = set(reader.definition.names)
    return tuple(dict.fromkeys([*(n for n in schema.names if n not in computed), *reader.needed]))


# ---------------------------------------------------------------- history


class _UnknownLabels:
    """Labels of events that mean neither an anomaly nor normal, and count as no label."""

    def __init__(self, bundle: Bundle) -> None:
        self._inputs = cast("WindowInputs", WindowInputs.from_manifest(bundle.manifest))
        self._count, self._first = 0, ""

    def look(self, part: Chunk) -> None:
        """Look for such labels in the rows of a file."""
        for problem in self._problems(part.table):
            place = f"'{part.path}', column '{problem.column}', row {part.rows[problem.row]}"
            self._first = self._first or f"{place}: {problem.reason}"
            self._count += 1

    def _problems(self, table: pa.Table) -> Iterator[RowProblem]:
        for name in self._inputs.normal.keys() & set(table.schema.names):
            levels = levels_from_arrow(table.column(name))[0]
            yield from self._inputs.unknown_in(name, levels)

    def warnings(self) -> Iterator[str]:
        """Yield how many there are, if any."""
        if self._count:
            yield f"{self._count:,} labels count as no label, the first: {self._first}"


class _History:
    """Rows that feed windows and are not scored."""

    def __init__(
        self,
        reader: EventReader,
        bundle: Bundle,
        paths: Sequence[str],
        csv: Mapping[str, Any],
        inputs: Collection[Path] = (),
    ) -> None:
        self._reader, self._paths = reader, paths
        self._reading = Reading.of_model(bundle, csv, score=True)
        found = find_files(paths) if paths else []
        known = {path.resolve() for path in inputs}
        self._files = [path for path in found if path.resolve() not in known]
        self._labels = _UnknownLabels(bundle)
        heads = heads_by_file(self._files, self._reading)
        self._columns = {name for head in heads.values() for name in head.schema.names}
        self._problems: list[str] = []
        self._wrong = 0

    def add_to(self, windows: OfflineWindows) -> None:
        """Add the rows in the order of the files.

        Raises:
            DataError: a file cannot be read, since windows without its rows would be wrong.
        """
        for part in read_chunks(self._files, select=self._select, reading=self._reading):
            if isinstance(part, Broken):
                raise DataError(
                    f"--history '{part.path}': {part.reason}; mend the file or leave it out",
                    path=str(part.path),
                )
            events = self._reader.read(part.table)
            windows.add_history(events)
            self._labels.look(part)
            self._wrong += int((~events.usable).sum())
            self._problems += [
                f"'{part.path}', column '{p.column}', row {part.rows[p.row]}: {p.reason}"
                for p in events.problems[: 1 - len(self._problems)]
            ]
        for note in self._reading.notes:
            console.info(note)

    def _select(self, names: Sequence[str]) -> Sequence[str]:
        return _selected(self._reader, names)

    def warnings(self, windows: OfflineWindows, columns: Collection[str]) -> Iterator[str]:
        """Yield what the windows do not see.

        Args:
            windows: the windows with all rows.
            columns: the columns of the rows to be scored.
        """
        yield from self._short(windows)
        for label in self._reader.definition.labels:
            if label not in self._columns and label not in columns:
                yield f"there is no column '{label}': no past event counts as a known anomaly"
        if self._wrong:
            yield f"{self._wrong:,} history rows are left out, the first: {self._problems[0]}"
        yield from self._labels.warnings()

    def _short(self, windows: OfflineWindows) -> Iterator[str]:
        past, rows = windows.span(history=True), windows.span(history=False)
        reach = self._reader.definition.longest
        if rows is None:
            return
        if past is None:
            yield (
                f"windows see the rows from {_moment(rows.first)} on and none before; give the "
                f"{span(reach / MICROSECONDS)} before them with --history PATH"
            )
        elif past.first > rows.first - reach:
            yield (
                f"the history begins at {_moment(past.first)}, but the windows look back "
                f"{span(reach / MICROSECONDS)} from {_moment(rows.first)}: the first rows see less"
            )
        if past is not None and past.last >= rows.first and self._reader.id is None:
            yield ("history and input overlap in time; without data.id, rows in both count twice")


class _Stored:
    """Past events in a window store, which feed windows; none is recorded."""

    def __init__(self, bundle: Bundle, reader: EventReader, options: StoreOptions) -> None:
        inputs = WindowInputs.from_manifest(bundle.manifest)
        assert inputs is not None
        self._store, self._reader = open_filled(options, inputs), reader
        self._state = self._store.state()
        self.summary = {
            "url": masked(options.url),
            "since": _moment(self._state.since or 0),
            "until": _moment(self._state.newest or 0),
        }

    def add_to(self, windows: OfflineWindows) -> None:
        """Add the events of all entities that the rows name.

        Raises:
            WindowStoreError: the store cannot be used.
        """
        add_past(windows, self._store)

    def warnings(self, windows: OfflineWindows, _: Collection[str]) -> Iterator[str]:
        """Yield what the windows do not see."""
        rows, complete = windows.span(history=False), self._store.complete_from(self._state)
        newest = self._state.newest
        if rows is None or complete is None or newest is None:
            return
        remedy = "fill it with: anomaly-vae windows load"
        if rows.first < complete:
            yield (
                f"the window store has all that windows of rows from {_moment(complete)} on see, "
                f"but the input begins at {_moment(rows.first)}: earlier rows see less; {remedy}"
            )
        if newest < rows.first - GAP:
            yield (
                f"the last event in the window store is of {_moment(newest)}, and the first row of "
                f"{_moment(rows.first)}: windows see no event between them; {remedy}"
            )
        if self._reader.id is None and newest >= rows.first:
            yield ("store and input overlap in time; without data.id, rows in both count twice")


def _moment(micros: int) -> str:
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=micros)  # noqa: DTZ001
    return moment.isoformat(" ", "seconds")


def _selected(reader: EventReader, names: Sequence[str]) -> Sequence[str]:
    """Select the columns of events, or any one column if a file has none."""
    return [name for name in names if name in reader.names] or names[:1]


# ---------------------------------------------------------------- chunks of files


@dataclass(frozen=True, eq=False)
class WindowColumns:
    """Window features of the rows of files, to be added to each chunk in any order."""

    reader: EventReader
    features: FeatureFiles
    starts: Mapping[Path, int]
    """Number of the first row of each file."""
    warnings: tuple[str, ...]
    """What the windows do not see."""
    store: Mapping[str, str] | None = None
    """URL of the window store that gave the past, and the times between which it has events."""

    def read(self, part: Chunk, schema: TabularSchema) -> RawBatch:
        """Read a chunk with its window features; unreadable entities and times are problems.

        Raises:
            DataError: the chunk has none of the columns needed, or one of the wrong type.
        """
        _check_known(part.table.schema.names, schema, self.reader)
        problems = self.reader.read(part.table).problems
        values = self.features.read(self.starts[part.path] + part.rows)
        batch = schema.from_arrow(_append(part.table, values))
        return replace(batch, problems=(*batch.problems, *problems))


@contextmanager
def open_windows(
    bundle: Bundle,
    inputs: Mapping[Path, Head],
    files: Sequence[Path],
    history: Sequence[str] = (),
    csv: Mapping[str, Any] = {},
    store: StoreOptions | None = None,
) -> Iterator[WindowColumns | None]:
    """Compute the window features of all rows of files; None for a model without windows.

    The features lie on disk until the context ends.

    Args:
        bundle: the model.
        inputs: the columns of the files that can be read.
        files: the files to be scored.
        history: files, folders or globs with rows that feed windows and are not scored; files that
            are to be scored are left out of it.
        csv: keys of `CsvConfig` that differ from the training configuration.
        store: the window store that has the past, in place of ``history``; None for none.

    Raises:
        ConfigError: there is history, but the model has no windows, or a store, too.
        DataError: the history cannot be read, or a column has the name of a feature.
        WindowStoreError: the store cannot be used, or has no events for the model.
    """
    reader = windows_of(bundle)
    _refuse_history(reader, history, store)
    if reader is None:
        yield None
        return
    for path, head in inputs.items():
        refuse_computed(head.schema.names, reader.definition, f" of '{path}'")
    stored = _Stored(bundle, reader, store) if store else None
    with _offline(reader) as windows:
        past = stored or _History(reader, bundle, history, csv, files)
        if not stored:
            past.add_to(windows)
        labels = _UnknownLabels(bundle)
        reading = Reading.of_model(bundle, csv, score=True)
        starts = _add_files(windows, reader, files, reading, labels)
        if stored:  # it is asked for the entities of the files
            past.add_to(windows)
        names = {name for head in inputs.values() for name in head.schema.names}
        warnings = (*past.warnings(windows, names), *labels.warnings())
        for warning in warnings:
            console.info(f"Warning: {warning}")
        summary = stored.summary if stored else None
        yield WindowColumns(reader, windows.compute(), starts, warnings, summary)


def _add_files(
    windows: OfflineWindows,
    reader: EventReader,
    files: Sequence[Path],
    reading: Reading,
    labels: _UnknownLabels,
) -> dict[Path, int]:
    """Add the rows of files, and look at their labels; return the number of each's first row."""
    starts: dict[Path, int] = {}
    end = 0
    for part in read_chunks(files, select=lambda n: _selected(reader, n), reading=reading):
        start = starts.setdefault(part.path, end)
        if isinstance(part, Broken):
            end = max(end, start + (part.rows.stop if part.rows else 0))
            continue
        end = max(end, start + int(part.rows[-1]) + 1)
        try:
            windows.add(reader.read(part.table), start + part.rows)
            labels.look(part)
        except DataError as error:
            if error.column is None:  # not the column's fault, which rejects the rows later
                raise
    return starts


def expected_columns(bundle: Bundle) -> tuple[str, ...]:
    """Return the columns of input files from which a model is scored."""
    reader = windows_of(bundle)
    schema = cast("TabularSchema", bundle.scorer.schema)
    return schema.names if reader is None else _expected(schema, reader)
