"""Compute the window features of all rows of files, in bounded memory.

DuckDB holds the events on disk, keeps the first of each id and sorts them by entity and time, more
of them than memory holds if need be. The sorted events are read in blocks, whose windows
`sliding` computes. The features are then sorted back into the order of the rows.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly_vae.config import validate_config
from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.data.dataframes import detect_container, from_table, to_table
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.features import sliding
from anomaly_vae.features.definition import MICROSECONDS, WindowDefinition, WindowFeature
from anomaly_vae.features.events import EventReader, Events
from anomaly_vae.messages import listed

__all__ = ["add_windows"]

MEMORY = "2GB"
"""Memory that DuckDB uses before it writes to disk."""
BLOCK_ROWS = 1 << 18
"""Number of sorted rows whose windows are computed at a time."""
GROUP_ROWS = 1 << 16
"""Number of rows per group of the files of features."""
MAX_CLOCK = 2**62
"""Largest time in microseconds on the clock of a block."""
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Span:
    """First and last time of events, in microseconds since 1970."""

    first: int
    last: int


@dataclass(frozen=True, eq=False)
class FeatureFiles:
    """Features of rows on disk, one file for each entity, in the order of the rows.

    Args:
        folder: the folder with the files.
        definition: the features.
        source: function that returns what Arrow reads a file from.
    """

    folder: Path
    definition: WindowDefinition
    source: Callable[[Path], Any] = str
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a file is read, because several threads score."""

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureFiles, (self.folder, self.definition, self.source)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [_file(self.folder, number) for number in range(len(self.definition.entities))]

    def read(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return the features (N,) of rows in ascending order, by name; NaN where missing."""
        values = {name: np.full(len(rows), np.nan) for name in self.definition.names}
        for names, file in self._files:
            for group in _groups_of(file, rows):
                with self._lock:
                    table = file.read_row_group(group)
                found = table.column("row").to_numpy()
                at = np.minimum(np.searchsorted(found, rows), len(found) - 1)
                here = found[at] == rows
                for i, name in enumerate(names):
                    values[name][here] = table.column(i + 1).to_numpy()[at[here]]
        return values

    @cached_property
    def _files(self) -> list[tuple[list[str], pq.ParquetFile]]:
        by_entity = self.definition.by_entity.values()
        return [
            ([feature.name for feature in features], pq.ParquetFile(self.source(path)))
            for features, path in zip(by_entity, self.paths, strict=True)
        ]


def _groups_of(file: pq.ParquetFile, rows: NDArray[np.int64]) -> Iterator[int]:
    """Yield the row groups that may hold some of these rows."""
    for group in range(file.num_row_groups if len(rows) else 0):
        extent = file.metadata.row_group(group).column(0).statistics
        if extent.min <= rows[-1] and extent.max >= rows[0]:
            yield group


def _file(folder: Path, number: int) -> Path:
    return folder / f"features-{number}.parquet"


class OfflineWindows:
    """A collection of events on disk, whose window features are then computed all at once.

    Use it as a context manager, which deletes all files at the end.

    Args:
        reader: the reader of the events.
        memory: the memory that DuckDB uses before it writes to disk.

    Example:
        >>> from anomaly_vae.config.windows import EntityWindows
        >>> definition = WindowDefinition({"card": EntityWindows(over=("1h",), count=True)})
        >>> table = pa.table({"card": [7, 7, 7], "at": ["2024-01-01T10:00"] * 2 + ["2024-01-01"]})
        >>> reader = EventReader(definition, time="at")
        >>> with OfflineWindows(reader) as windows:
        ...     windows.add(reader.read(table), np.arange(3))
        ...     windows.compute().read(np.arange(3))
        {'card_count_1h': array([0., 0., 0.])}
    """

    def __init__(self, reader: EventReader, memory: str = MEMORY) -> None:
        self._reader, self._definition = reader, reader.definition
        self._folder = Path(tempfile.mkdtemp(prefix="anomaly-vae-windows-"))
        self._history, self._has_stored = 0, False
        self._columns = {
            **{f"key:{name}": f"k{i}" for i, name in enumerate(reader.definition.keys)},
            **{f"number:{name}": f"n{i}" for i, name in enumerate(self._definition.numbers)},
            **{f"label:{name}": f"l{i}" for i, name in enumerate(reader.definition.labels)},
        }
        self._database = duckdb.connect(str(self._folder / "events.duckdb"), config=_config(memory))
        self._database.execute(f"SET temp_directory = '{self._folder}/spilled'")
        kinds = {"k": "VARCHAR", "n": "DOUBLE", "l": "BOOLEAN"}
        columns = [f"{name} {kinds[name[0]]}" for name in self._columns.values()]
        self._database.execute(
            "CREATE TABLE events (row BIGINT, id VARCHAR, t BIGINT, only_of TINYINT, known BIGINT, "
            f"{', '.join(columns)})"
        )

    def __enter__(self) -> OfflineWindows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, events: Events, rows: NDArray[np.int64]) -> None:
        """Add rows whose features are wanted, apart from those with problems.

        Args:
            events: N rows, which arrive after those that were added before.
            rows: (N,) their numbers, 0 or more and ascending, by which features are read.
        """
        usable = events.usable
        table = events.columns.filter(pa.array(usable))
        names = [self._columns.get(name, name) for name in table.column_names]
        table = table.rename_columns(["t" if name == "time" else name for name in names])
        table = table.add_column(0, "row", pa.array(rows[usable]))
        self._insert("events", table)

    def _insert(self, table: str, rows: pa.Table) -> None:
        with _explained():
            self._database.register("added", rows)
            self._database.execute(f"INSERT INTO {table} BY NAME SELECT * FROM added")  # noqa: S608
            self._database.unregister("added")

    def add_history(self, events: Events) -> None:
        """Add rows that only feed windows, before any whose features are wanted."""
        self.add(events, self._history_rows(len(events.columns)))

    def _history_rows(self, count: int) -> NDArray[np.int64]:
        start = self._history - 2**62
        self._history += count
        return np.arange(start, start + count)

    # ------------------------------------------------------------ events of a store

    def begin_stored(self) -> None:
        """Prepare for events of a store, which has hashes in place of texts."""
        self._has_stored = True
        self._database.execute("CREATE TABLE hashes (text VARCHAR, hash BIGINT)")
        self._database.execute("CREATE TABLE known_ids (id VARCHAR, hash BIGINT)")

    def texts(self, columns: Sequence[str], count: int) -> Iterator[list[str]]:
        """Yield the different texts of columns among the rows, up to ``count`` at a time.

        Args:
            columns: "id", or columns of `Events.columns` that begin with ``key:``.
            count: greatest number of texts that are yielded together.
        """
        names = [self._columns.get(column, column) for column in columns]
        own = [f"SELECT {name} AS text FROM events WHERE only_of IS NULL" for name in names]  # noqa: S608
        found = self._database.cursor().execute(
            f"SELECT DISTINCT text FROM ({' UNION ALL '.join(own)}) WHERE text IS NOT NULL"  # noqa: S608
        )
        while rows := found.fetchmany(count):
            yield [text for (text,) in rows]

    def add_hashes(self, table: Literal["hashes", "known_ids"], hashes: Mapping[str, int]) -> None:
        """Add the hashes by which `add_stored` knows values, or ids that the store knows."""
        name = "text" if table == "hashes" else "id"
        texts, numbers = pa.array(hashes, pa.string()), pa.array(hashes.values(), pa.int64())
        self._insert(table, pa.table({name: texts, "hash": numbers}))

    def add_stored(self, entity: str, stored: pa.Table) -> None:
        """Add past events that count for one entity alone, with hashes in place of texts.

        Their values and ids have texts only if `add_hashes` added these before.

        Args:
            entity: the column of the entity.
            stored: the columns ``key`` (texts), ``id`` (hashes), ``time`` and ``known`` (both in
                microseconds), and columns of `Events.columns` that begin with ``key:`` (hashes),
                ``number:`` and ``label:``.
        """
        number, own = self._definition.entities.index(entity), self._columns[f"key:{entity}"]
        stored = stored.append_column("row", pa.array(self._history_rows(len(stored))))
        stored = stored.rename_columns([self._columns.get(n, n) for n in stored.column_names])
        values = [name for name in stored.column_names if name[0] == "k" and name[1:].isdigit()]
        plain = [name for name in stored.column_names if name[0] in "nl" and name[1:].isdigit()]
        texts = [f"coalesce(of_{v}.text, chr(0) || s.{v}) AS {v}" for v in values if v != own]
        joins = [f"LEFT JOIN hashes AS of_{v} ON of_{v}.hash = s.{v}" for v in values if v != own]
        columns = ", ".join(["s.row, s.known, s.key AS " + own, *(f"s.{n}" for n in plain), *texts])
        with _explained():
            self._database.register("stored", stored)
            self._database.execute(f"""
                INSERT INTO events BY NAME
                SELECT {columns}, known_ids.id AS id, s.time AS t, {number} AS only_of
                FROM stored AS s LEFT JOIN known_ids ON known_ids.hash = s.id {" ".join(joins)}
            """)  # noqa: S608  # names of this module
            self._database.unregister("stored")

    def span(self, history: bool) -> Span | None:
        """Return the times of the history or of the other rows; None if there are none."""
        found = self._row("SELECT min(t), max(t) FROM events WHERE (row < 0) = ?", history)
        return None if found[0] is None else Span(*found)

    def _row(self, query: str, *values: Any) -> tuple[Any, ...]:
        with _explained():
            return self._database.execute(query, values).fetchall()[0]

    def compute(self) -> FeatureFiles:
        """Compute the features of all rows that are not history.

        Raises:
            DataError: the disk is full.
        """
        with _explained():
            self._find_duplicates()
            for number, entity in enumerate(self._definition.entities):
                self._compute_entity(number, entity)
        return FeatureFiles(self._folder, self._definition)

    def _find_duplicates(self) -> None:
        """List the rows whose id an earlier event has, with the number, time and keys of that one.

        Rows without a time or without any entity are no events.
        """
        keys = ", ".join(self._columns[f"key:{name}"] for name in self._definition.entities)
        self._database.execute(f"""
            CREATE TABLE firsts AS
            SELECT id, min(row) FILTER (t IS NOT NULL AND coalesce({keys}) IS NOT NULL) AS row
            FROM events WHERE id IS NOT NULL AND only_of IS NULL GROUP BY id HAVING count(*) > 1
        """)  # noqa: S608  # names of this module
        self._database.execute("""
            CREATE TABLE again AS
            SELECT events.row AS row, first.* EXCLUDE (row, id), first.row AS own
            FROM firsts JOIN events USING (id) JOIN events AS first ON first.row = firsts.row
            WHERE events.row > firsts.row AND events.only_of IS NULL
        """)
        if self._has_stored:
            self._database.execute(
                "DELETE FROM again WHERE row IN (SELECT row FROM events JOIN known_ids USING (id))"
            )
            for number in range(len(self._definition.entities)):
                self._find_recorded(number)

    def _find_recorded(self, number: int) -> None:
        """List the rows whose id the store knows, with its event of the entity of this number."""
        self._database.execute(f"""
            INSERT INTO again BY NAME
            SELECT e.row AS row, first.* EXCLUDE (row, id, only_of), first.row AS own,
            {number} AS only_of
            FROM events AS e JOIN known_ids USING (id)
            LEFT JOIN events AS first ON first.id = e.id AND first.only_of = {number}
            WHERE e.only_of IS NULL
        """)  # noqa: S608  # numbers of this module

    def _compute_entity(self, number: int, entity: str) -> None:
        block = _BlockFeatures.of(self._definition, entity, self._columns)
        columns = ", ".join(f"f{i} DOUBLE" for i in range(len(block.features)))
        self._database.execute(f"CREATE TABLE features (row BIGINT, {columns})")
        writer = self._database.cursor()
        for table, seen in self._sorted_blocks(number, self._columns[f"key:{entity}"], block):
            writer.register("block", block.compute(table, seen))
            writer.execute("INSERT INTO features SELECT * FROM block")
        writer.close()
        self._write(number)
        self._database.execute("DROP TABLE features")

    def _sorted_blocks(
        self, number: int, key: str, block: _BlockFeatures
    ) -> Iterator[tuple[pa.Table, int]]:
        """Yield rows by entity and time, and how many of each block the block before had already.

        A block begins with the rows that its other rows may look back on.
        """
        columns = "".join(f", e.{name}" for name in sorted(filter(None, {*block.columns})))
        sorted_rows = self._database.sql(f"""
            SELECT e.row AS row, e.t AS t, e.{key} AS entity, again.row IS NULL AS counts,
            coalesce(e.known, e.t) AS known,
            CASE WHEN again.t < e.t AND again.{key} = e.{key} THEN again.own END AS own {columns}
            FROM events AS e LEFT JOIN
            (SELECT * FROM again WHERE only_of IS NULL OR only_of = {number}) AS again
            ON again.row = e.row
            WHERE e.{key} IS NOT NULL AND e.t IS NOT NULL
            AND (e.only_of IS NULL OR e.only_of = {number}) {self._relevant(key, block.reach)}
            ORDER BY entity, t, row
        """)  # noqa: S608  # names and numbers of this module
        batches = sorted_rows.to_arrow_reader(max(min(BLOCK_ROWS, MAX_CLOCK // block.reach), 1))
        before: pa.Table | None = None
        for batch in batches:
            rows = pa.Table.from_batches([batch])
            table = rows if before is None else pa.concat_tables([before, rows])
            table = table.combine_chunks()
            yield table, len(table) - len(rows)
            before = _seen_later(table, block.reach)

    def _relevant(self, key: str, reach: int) -> str:
        """Return a condition for the history that the windows of some row may see."""
        if not self._history:
            return ""
        return f"""
            AND e.t >= (SELECT min(t) - {reach} FROM events WHERE row >= 0)
            AND e.{key} IN (SELECT {key} FROM events WHERE row >= 0)
        """  # noqa: S608  # names and numbers of this module

    def _write(self, number: int) -> None:
        """Write the features of an entity in the order of the rows."""
        reader = self._database.sql("SELECT * FROM features ORDER BY row").to_arrow_reader(
            GROUP_ROWS
        )
        with pq.ParquetWriter(_file(self._folder, number), reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch, row_group_size=GROUP_ROWS)


def _config(memory: str) -> dict[str, Any]:
    return {
        "memory_limit": memory,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": False,
    }


@contextmanager
def _explained() -> Iterator[None]:
    """Translate errors of the disk into the project's own."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"no room for the events of data.windows in {tempfile.gettempdir()}: {reason}; set "
            "TMPDIR to a folder with more room"
        ) from None


def _seen_later(table: pa.Table, reach: int) -> pa.Table:
    """Return the rows at the end that rows of the same entity after them may look back on."""
    times = table.column("t").to_numpy()
    first = int(np.flatnonzero(_begins(table))[-1])
    return table.slice(first + int(np.searchsorted(times[first:], times[-1] - reach)))


def _begins(table: pa.Table) -> NDArray[np.bool_]:
    """Return a mask (N,) of the rows that are the first of their entity."""
    entity = table.column("entity").combine_chunks()
    changes = pc.not_equal(entity.slice(1), entity.slice(0, len(entity) - 1))
    return np.concatenate([[True], changes.to_numpy(zero_copy_only=False)])


@dataclass(frozen=True)
class _BlockFeatures:
    """The features of one entity, each with the column that it is of, if any."""

    features: tuple[WindowFeature, ...]
    columns: tuple[str | None, ...]
    reach: int
    """Age in microseconds up to which events matter."""

    @classmethod
    def of(
        cls, definition: WindowDefinition, entity: str, columns: Mapping[str, str]
    ) -> _BlockFeatures:
        """Find the columns of an entity's features, by their names in `Events.columns`."""
        features = definition.by_entity[entity]
        risk = definition.windows[entity].risk
        sources = {"count": None, "since_last": None, "risk": f"label:{risk and risk.label}"}
        named = [
            sources.get(f.kind, f"{'key' if f.kind == 'distinct' else 'number'}:{f.column}")
            for f in features
        ]
        found = tuple(columns[name] if name else None for name in named)
        return cls(features, found, definition.reach[entity])

    def compute(self, table: pa.Table, seen: int) -> pa.Table:
        """Return the features of the wanted rows after the first ``seen``, with their numbers."""
        rows = self._arrays(table)
        wanted = np.flatnonzero(rows["row"] >= 0)
        wanted = wanted[wanted >= seen]
        asked = {name: values[wanted] for name, values in rows.items()}
        events = {name: values[rows["counts"]] for name, values in rows.items()}
        values = self._values(events, asked)
        for i in np.flatnonzero(asked["own"] != NO_ROW):
            self._correct(values, i, events, {n: v[i : i + 1] for n, v in asked.items()})
        return pa.table({"row": asked["row"], **{str(i): v for i, v in enumerate(values)}})

    def _arrays(self, table: pa.Table) -> Columns:
        """Return the columns as arrays, texts as codes, -1 if missing, and a clock."""
        names = {"row", "t", "counts", "known", *self.columns} - {None}
        arrays = {str(name): _array(table.column(name).combine_chunks()) for name in names}
        own = pc.fill_null(table.column("own"), NO_ROW).to_numpy()
        return {**arrays, "own": own, "clock": _clock(arrays["t"], _begins(table), self.reach)}

    def _values(self, events: Columns, asked: Columns) -> list[NDArray[np.float64]]:
        """Return each feature (R,) of the rows asked for."""
        edges = {
            (span, delay): np.searchsorted(
                events["clock"], asked["clock"] - delay - np.array([[span], [0]])
            )
            for span, delay in {(f.span, f.delay) for f in self.features}
        }
        return [
            _known_share(events, asked, str(column), f.delay, *edges[f.span, f.delay])
            if f.kind == "risk"
            else _value(f.kind, events, asked["t"], column, *edges[f.span, f.delay])
            for f, column in zip(self.features, self.columns, strict=True)
        ]

    def _correct(
        self, values: list[NDArray[np.float64]], at: Any, events: Columns, row: Columns
    ) -> None:
        """Compute the values of a row again, without the event of its own id."""
        edges = row["clock"] - np.array([self.reach, 0])
        first, stop = np.searchsorted(events["clock"], edges)
        others = first + np.flatnonzero(events["row"][first:stop] != row["own"])
        right = self._values({name: column[others] for name, column in events.items()}, row)
        for value, single in zip(values, right, strict=True):
            value[at] = single[0]


NO_ROW = np.iinfo(np.int64).min
"""Number that no row has."""


def _array(column: pa.Array) -> NDArray[Any]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        codes = column.dictionary_encode().indices
        return np.asarray(pc.fill_null(codes, -1).to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_boolean(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False), bool)
    return np.asarray(column.to_numpy(zero_copy_only=False))  # missing numbers are NaN


def _clock(times: NDArray[np.int64], begins: NDArray[np.bool_], reach: int) -> NDArray[np.int64]:
    """Return times (N,) on one clock that ascends over all entities.

    Gaps that no window spans are shortened, so that the clock has room for many entities.

    Raises:
        DataError: the windows are too long for the clock.
    """
    gaps = np.minimum(np.diff(times, prepend=times[:1]), reach + 1)
    gaps[begins] = reach + 1
    if gaps.sum(dtype=np.float64) > MAX_CLOCK:
        raise DataError("the windows of data.windows are too long; name at most 50 years")
    return gaps.cumsum()


def _value(
    kind: str,
    events: Columns,
    now: NDArray[np.int64],
    column: str | None,
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return a feature (R,) of rows whose windows are the ranges [start, stop) of the events."""
    count = stop - start
    match kind:
        case "count":
            return count.astype(np.float64)
        case "since_last":
            last = events["t"][np.maximum(stop, 1) - 1] if len(events["t"]) else now
            return np.where(count > 0, (now - last) / MICROSECONDS, np.nan)
        case "distinct":
            return sliding.distinct(events[str(column)], start, stop).astype(np.float64)
    values = events[str(column)]
    present = ~np.isnan(values)
    before = _before(present)
    return _statistic(kind, values[present], before[start], before[stop])


def _known_share(
    events: Columns,
    asked: Columns,
    label: str,
    delay: int,
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the share of known anomalies (R,) in the windows [start, stop) of rows."""
    count, known = stop - start, _before(events[label])
    anomalies = known[stop] - known[start] - _known_later(events, asked, label, delay, start, stop)
    return np.where(count > 0, anomalies / np.maximum(count, 1), np.nan)


def _known_later(
    events: Columns,
    asked: Columns,
    label: str,
    delay: int,
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Count the anomalies (R,) in windows that became known only after their rows.

    A window that an event is in has no shortened gap of the clock behind this event.
    """
    late = np.flatnonzero(events[label] & (events["known"] - delay > events["t"]))
    wait = events["known"][late] - events["t"][late]
    enters, leaves = (np.searchsorted(edge, late, side="right") for edge in (stop, start))
    wait = np.minimum(wait, MAX_CLOCK - events["clock"][late])
    counts = np.searchsorted(asked["clock"], events["clock"][late] + wait)
    ends = np.maximum(enters, np.minimum(leaves, counts))
    change = [np.bincount(edge, minlength=len(start) + 1) for edge in (enters, ends)]
    found: NDArray[np.int64] = (change[0] - change[1]).cumsum()[: len(start)]
    return found


def _before(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the values of a mask (N,) that are true before each position (N + 1,)."""
    return np.concatenate([[0], mask.cumsum()])


def _statistic(
    kind: str,
    values: NDArray[np.float64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> NDArray[np.float64]:
    match kind:
        case "sum":
            return sliding.sums(values, start, stop)
        case "mean":
            count = stop - start
            total = sliding.sums(values, start, stop)
            return np.where(count > 0, total / np.maximum(count, 1), np.nan)
        case "max":
            return sliding.maxima(values, start, stop)
    return sliding.deviations(values, start, stop)


def add_windows(
    X: Any,
    windows: Mapping[str, EntityWindows | Mapping[str, Any]],
    *,
    time: str,
    id: str | None = None,  # noqa: A002  # the key of the configuration
    time_format: str | None = None,
    positive: Any = 1,
    history: Any = None,
) -> Any:
    """Add the features of windows to a data frame, as training with `data.windows` does.

    Args:
        X: N rows: a data frame of pandas or polars, or an Arrow table.
        windows: the windows of each entity column, as in `data.windows`.
        time: the column with the time of each row.
        id: the column with the id of each row; rows with the id of an earlier row are no events.
        time_format: the format of times that need one, as in `data.time_format`.
        positive: the value of the label columns of `risk` that means anomaly.
        history: earlier rows, which feed the windows only.

    Returns:
        X with one further column per feature, NaN where a feature is missing.

    Raises:
        ConfigError: the windows are not valid.
        DataError: a column is absent or has the name of a feature, or a cell cannot be read.

    Example:
        >>> import pandas as pd
        >>> rows = pd.DataFrame({"card": [7, 7], "at": ["2024-01-01 10:00", "2024-01-01 10:30"]})
        >>> add_windows(rows, {"card": {"over": ["1h"], "count": True}}, time="at")
           card                at  card_count_1h
        0     7  2024-01-01 10:00            0.0
        1     7  2024-01-01 10:30            1.0
    """
    data = {"time": time, "id": id, "time_format": time_format, "positive": positive}
    reader = _reader(windows, data)
    events = _events(X, reader)
    with OfflineWindows(reader) as offline:
        if history is not None:
            offline.add_history(_events(history, reader))
        offline.add(events, np.arange(len(events.columns)))
        values = offline.compute().read(np.arange(len(events.columns)))
    container = detect_container(X)
    if container == "frame":
        return X.assign(**values)
    table: Any = to_table(X)
    columns = {name: table.column(name) for name in table.column_names}
    return from_table(pa.table({**columns, **values}), container)


def _reader(windows: Mapping[str, Any], data: Mapping[str, Any]) -> EventReader:
    plain = {
        entity: each.model_dump() if isinstance(each, EntityWindows) else dict(each)
        for entity, each in windows.items()
    }
    content = {**data, "path": "", "windows": plain}
    config = validate_config({"name": "windows", "data": content})
    reader = EventReader.of_config(config.data.model_dump())
    if reader is None:
        raise ConfigError(
            "windows names no entity; write {'card': {'over': ['1h'], 'count': True}}"
        )
    return reader


def _events(X: Any, reader: EventReader) -> Events:
    """Read rows that must all be usable.

    Raises:
        DataError: they are not, lack a column or have one with the name of a feature.
    """
    table = to_table(X)
    if table is None:
        raise DataError("X has no column names; pass a data frame or an Arrow table")
    for name in [*reader.needed, *([reader.id] if reader.id else [])]:
        if name not in table.column_names:
            raise DataError(f"X lacks the column '{name}'; found {listed(table.column_names)}")
    for name in reader.definition.names:
        if name in table.column_names:
            raise DataError(f"X has a column '{name}' already; drop it", column=name)
    events = reader.read(table)
    if events.problems:
        raise DataError(str(events.problems[0]), column=events.problems[0].column)
    return events
