"""Score tables as a stream, in constant memory: each row is scored or rejected with a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.schema import RawBatch, RowProblem, TabularSchema
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.features.store import StoreOptions
from anomaly_vae.masking import masked
from anomaly_vae.messages import printable
from anomaly_vae.scoring.detector import Detections, Explanation
from anomaly_vae.scoring.wording import Wording
from pipelines import console
from pipelines.batch import ExplainedRows
from pipelines.batch.columns import NOTHING, Carried, carry, check_columns
from pipelines.batch.common import (
    GROUP_COLUMNS,
    NO_HEATMAPS,
    RESULT_COLUMNS,
    UNREADABLE,
    Explain,
    Explaining,
    HeatmapOptions,
    Reject,
    counts_of,
    exclude_output,
    max_contributions,
    model_entry,
    reject_table,
    result_table,
    summary_of,
    warn_missing_group,
)
from pipelines.batch.fdr import FdrPass, check_controllable
from pipelines.batch.keys import Keys, find_keys
from pipelines.batch.options import ALL_ROWS, OutputOptions
from pipelines.batch.result import folder as results
from pipelines.batch.result.candidates import Candidates
from pipelines.batch.result.counts import Counts
from pipelines.batch.result.folder import Record, ResultFolder
from pipelines.batch.result.highest import show_highest
from pipelines.batch.result.layout import Layout
from pipelines.batch.result.plan import Piece, Place, Plan, Unit, cut, input_of
from pipelines.batch.result.shared_windows import shared_windows
from pipelines.batch.run import DEFAULTS, Batch, RunOptions, run_batch
from pipelines.batch.times import Times
from pipelines.batch.top import TopPass, explain_tables, features
from pipelines.batch.units import Scored
from pipelines.datasets.files import (
    BATCH_ROWS,
    absent_columns,
    find_files,
    heads_by_file,
    read_file,
)
from pipelines.datasets.loading import NO_OPTIONS
from pipelines.datasets.reading.objects import place
from pipelines.datasets.reading.partitions import Partitions
from pipelines.datasets.reading.parts import Broken, Chunk, Head, Reading
from pipelines.datasets.reading.plain_text import is_pipe
from pipelines.datasets.windows import (
    WindowColumns,
    expected_columns,
    open_windows,
)
from pipelines.registry.model_uri import LoadedModel

TEXT_ROW_BYTES = 64
"""Assumed size of a row of text, in bytes, by which small text files are combined to parts."""
LEFT_OUT = "rows_left_out"
"""Count of the places at which the input is longer than the limit."""


def score_files(
    source: LoadedModel,
    paths: Sequence[str],
    output: str | Path,
    explain: Explain = None,
    heatmaps: HeatmapOptions = NO_HEATMAPS,
    fdr: float | None = None,
    csv: Mapping[str, Any] = NO_OPTIONS,
    explain_rows: ExplainedRows = ExplainedRows.FLAGGED,
    run: RunOptions = DEFAULTS,
    highest: bool = True,
    history: Sequence[str] = (),
    outputs: OutputOptions = ALL_ROWS,
    windows_store: StoreOptions | None = None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Score every row of every file into a folder and return the summary.

    Args:
        source: the model.
        paths: CSV or Parquet files, folders or globs; files in ``output`` are ignored.
        output: the folder; an unfinished result in it is continued, a finished one is left.
        explain: number of largest contributions to list per row, or "all".
        heatmaps: must be `NO_HEATMAPS`, as only images have heatmaps.
        fdr: false discovery rate at which to flag rows, instead of by the threshold.
        csv: keys of `CsvConfig` that differ from the training configuration.
        explain_rows: the rows whose contributions are listed.
        run: options that do not affect the result.
        highest: whether to print the highest scores, if they are explained.
        history: files, folders or globs with earlier rows, which feed windows and are not scored.
        outputs: the rows and columns that are written, and how.
        windows_store: the window store that has the earlier rows, in place of ``history``.
        also: columns that are written beside those of ``outputs`` if the input has them.

    Raises:
        ConfigError: heatmaps are requested, ``csv`` is invalid, there is history for a model
            without windows or besides a store, or rows are to be ranked by day although the model
            has no column of times.
        DataError: a column of ``outputs`` is unknown, no file is found, one lies in ``output``, or
            ``output`` holds other files or a result of another model, other options or other files.
        CalibrationError: the model's p-values do not allow control of the false discovery rate.
    """
    if heatmaps != NO_HEATMAPS:
        raise ConfigError("--heatmaps, --maps and --dicom-out are for image models; leave them out")
    output = place(output)
    check_controllable(source.bundle.detector.calibration, fdr)
    tables = _find_tables(source, paths, output, csv)
    result = _choose_result(tables, outputs, also)
    explaining = Explaining(explain, explain_rows, fdr)
    past = _past_in_plan(history, windows_store)
    options = {"--csv": dict(csv) or None, **past, **result.outputs.in_plan}
    plan = _plan(tables, explaining.in_plan | options, outputs.limit)
    wording = Wording.of(source.bundle.scorer.encoding, source.data)
    with open_windows(
        source.bundle, tables.heads, tables.files, history, csv, windows_store
    ) as windows:
        job = _job(tables, result, plan, explaining, windows)
        summary = run_batch(_batch(job, tables, result, plan, wording), output, run)
    if highest:
        show_highest(output, summary["parts"], wording)
    return summary


# ---------------------------------------------------------------- the input and the result


@dataclass(frozen=True)
class _Tables:
    """Files to score, and what is known of them before their rows are read."""

    source: LoadedModel
    files: tuple[Path, ...]
    heads: Mapping[Path, Head]
    """Columns and numbers of rows of the files that can be read."""
    reading: Reading
    keys: Keys

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the columns of all files."""
        return _names(self.heads)


@dataclass(frozen=True)
class _Result:
    """Rows and columns that a result has."""

    outputs: OutputOptions
    layout: Layout
    carried: Carried
    times: Times | None
    """Times of the rows that are ranked; None if there are none."""

    @property
    def candidates(self) -> Candidates | None:
        """Choice of the rows that may be among the highest; None if none are ranked."""
        return Candidates.of_layout(self.layout, self.outputs.top_columns(self.time))

    @property
    def time(self) -> str | None:
        """Name of the column of times."""
        return None if self.times is None else self.times.name

    @property
    def zone(self) -> str | None:
        """Time zone of the days; None for UTC."""
        return None if self.times is None else self.times.zone


def _names(heads: Mapping[Path, Head]) -> frozenset[str]:
    return frozenset(name for head in heads.values() for name in head.schema.names)


def _find_tables(
    source: LoadedModel, paths: Sequence[str], output: Path, csv: Mapping[str, Any]
) -> _Tables:
    """Find the files and read their columns; print which of the model's columns are absent."""
    reading = Reading.of_model(source.bundle, csv, score=True)
    files = exclude_output(paths, find_files(paths), output, lambda path: path)
    heads = heads_by_file(files, reading)
    warn_missing_group(source.bundle.detector.calibration, _names(heads))
    for note in absent_columns(heads, expected_columns(source.bundle)):
        console.info(note)
    id_ = source.bundle.manifest["config"]["data"].get("id")
    keys = find_keys(id_, heads, _result_columns(source))
    return _Tables(source, tuple(files), heads, reading, keys)


def _result_columns(source: LoadedModel) -> tuple[str, ...]:
    """Return the names of the columns that the scores of a model have."""
    groups = GROUP_COLUMNS if source.bundle.detector.calibration.groups else ()
    return (*RESULT_COLUMNS, *groups)


def _choose_result(tables: _Tables, outputs: OutputOptions, also: Sequence[str]) -> _Result:
    """Check the columns that are asked for; ``also`` are taken if the input has them."""
    times = _times(tables.source, outputs, tables.names)
    time = None if times is None else times.name
    reserved = (*_result_columns(tables.source), *tables.keys.names)
    outputs = outputs.carrying(also, tables.names - {*reserved})
    outputs.check(tables.names, reserved, tables.keys.id, time)
    carried = carry((*outputs.part_columns, *outputs.top_columns(time)), tables.heads)
    return _Result(outputs, outputs.layout(tables.keys.names), carried, times)


def _past_in_plan(history: Sequence[str], store: StoreOptions | None) -> dict[str, Any]:
    """Return the options about earlier rows by their names; None where they are not given."""
    files = [list(input_of(path, None)) for path in find_files(history)] if history else None
    return {"--history": files, "--windows-store": masked(store.url) if store else None}


def _times(source: LoadedModel, outputs: OutputOptions, names: Collection[str]) -> Times | None:
    """Return the times of the model, if rows are ranked and the input has them.

    Raises:
        ConfigError: rows are to be ranked by day, and the model has no column of times.
        DataError: rows are to be ranked by day, and the input has no such column.
    """
    schema = cast("TabularSchema", source.bundle.scorer.schema)
    formats = {column.name: column.format for column in schema.columns}
    times = Times.of_model(source.bundle.manifest["config"], formats)
    if outputs.per_day and times is None:
        raise ConfigError(
            "--per day needs the time of each row, and the model was trained without data.time; "
            "leave --per out, or train with data.time"
        )
    if times is not None and times.name not in names:
        if outputs.per_day:
            check_columns("--per day", [times.name], names, ())
        return None
    return times if outputs.top is not None else None


# ---------------------------------------------------------------- the plan


def _plan(tables: _Tables, options: Mapping[str, Any], limit: int | None) -> Plan:
    """Plan the scoring of the files, or of their first rows.

    Args:
        tables: the files.
        options: the options that affect the result.
        limit: number of first rows that are scored; None for all.
    """
    files, heads = tables.files, tables.heads
    inputs = tuple(input_of(path, _n_rows(heads.get(path))) for path in files)
    pieces = [
        Piece(Place(index, group), share)
        for index, path in enumerate(files)
        for group, share in enumerate(_shares(heads.get(path), inputs[index].bytes))
    ]
    # rows behind a text file have no position until it is read
    ordered = tables.keys.rows or limit is not None
    text = next((i for i, item in enumerate(inputs) if ordered and item.rows is None), None)
    if limit is not None:
        pieces = _first(pieces, _positions(files, heads), limit, text)
    units = cut(pieces, Place(len(files)), text)
    pipes = map(str, filter(is_pipe, files))
    return Plan(model_entry(tables.source), options, inputs, tuple(units), next(pipes, None))


def _n_rows(head: Head | None) -> int | None:
    """Return the number of rows that a file states; 0 for a file that cannot be read."""
    return 0 if head is None else head.n_rows


def _positions(files: Sequence[Path], heads: Mapping[Path, Head]) -> Iterator[int]:
    """Yield the number of rows before each piece, as far as these are known."""
    before = 0
    for path in files:
        head = heads.get(path)
        for rows in head.groups if head and head.groups else [_n_rows(head) or 0]:
            yield before
            before += rows


def _first(
    pieces: Sequence[Piece], positions: Iterable[int], limit: int, text: int | None
) -> list[Piece]:
    """Return the pieces with the first rows; those behind a text file may have some."""
    pairs = zip(pieces, positions, strict=True)
    return [
        p for p, before in pairs if before < limit or (text is not None and p.start.file > text)
    ]


def _shares(head: Head | None, size: int) -> Sequence[float]:
    """Return the share of a full part that each row group, or a file without any, makes."""
    if head is not None and head.groups:
        return [rows / results.PART_ROWS for rows in head.groups]
    return [size / TEXT_ROW_BYTES / results.PART_ROWS if head and head.n_rows is None else 0.0]


def rows_of(plan: Plan) -> tuple[int | None, ...]:
    """Return the number of rows of each file; None for those that must be read to tell it."""
    return tuple(item.rows for item in plan.inputs)


def _total_rows(plan: Plan, limit: int | None) -> int | None:
    """Return the number of rows, None if a file does not say; an unreadable file counts as one."""
    counts = rows_of(plan)
    if None in counts:
        return limit
    total = sum(count or 1 for count in counts if count is not None)
    return total if limit is None else min(total, limit)


# ---------------------------------------------------------------- the run


def _job(
    tables: _Tables,
    result: _Result,
    plan: Plan,
    explaining: Explaining,
    windows: WindowColumns | None,
) -> TableJob:
    outputs = result.outputs
    return TableJob(
        tables.source,
        tables.files,
        rows_of(plan),
        tables.keys,
        explaining,
        tables.reading,
        windows,
        result.carried,
        outputs.part_columns,
        result.candidates,
        result.times if outputs.per_day else None,
        outputs.limit,
    )


def _batch(job: TableJob, tables: _Tables, result: _Result, plan: Plan, wording: Wording) -> Batch:
    detector, explaining, layout = job.source.bundle.detector, job.explaining, result.layout
    return Batch(
        job,
        plan,
        job.keys.field,
        [printable(path) for path in job.files],
        lambda counts: job.starts(counts.rows_of_files),
        partial(_summarise, job, tables.names),
        FdrPass.of(detector.calibration, explaining.fdr, explaining.rows, layout),
        layout,
        TopPass.of_layout(layout, explain_tables(detector), wording, explaining.most, result.zone),
        _total_rows(plan, job.limit),
    )


def _summarise(
    job: TableJob, names: Collection[str], counts: Counts, records: Sequence[Record]
) -> dict[str, Any]:
    """Print the notes on the input, and return the summary; ``names`` are those of its columns."""
    return {
        **summary_of(job.source, len(job.files), counts, records),
        **_limit_entries(job, counts),
        "ignored_columns": list(job.source.bundle.scorer.schema.unknown({*names})),
        **_show_notes(job.reading.separate(), counts),
        **_window_entries(job.windows),
    }


def _limit_entries(job: TableJob, counts: Counts) -> dict[str, Any]:
    """Return the entries of the summary about the limit on rows; empty without one."""
    if job.limit is None:
        return {}
    known = sum(filter(None, job.rows))
    limited = bool(counts.others[LEFT_OUT]) or known > job.limit
    return {"limit": job.limit, "limited": limited}


def _window_entries(windows: WindowColumns | None) -> dict[str, Any]:
    if windows is None:
        return {}
    store = {"windows_store": windows.store} if windows.store else {}
    return {**store, "warnings": list(windows.warnings)}


def _show_notes(reading: Reading, counts: Counts) -> dict[str, Any]:
    """Print the notes on text files; return them as an entry of the summary, if there are any."""
    for notes in counts.notes:
        reading.absorb(notes)
    for note in reading.notes:
        console.info(note)
    return {"notes": list(reading.notes)} if reading.notes else {}


# ---------------------------------------------------------------- scoring


@dataclass(frozen=True)
class TableTask:
    """Rows of a file that are scored at once, and the position of its first row, if needed."""

    file: int
    part: Chunk | Broken
    start: int

    @property
    def share(self) -> float:
        """Share of a full part."""
        rows = self.part.rows
        return (1 if rows is None else len(rows)) / results.PART_ROWS


@dataclass(frozen=True)
class EndTask:
    """End of a unit, with the sizes of its text files and the notes on them."""

    counts: Counts
    share: float = 0.0


@dataclass(frozen=True)
class TableJob:
    """How tables are read and scored."""

    source: LoadedModel
    files: tuple[Path, ...]
    rows: tuple[int | None, ...]
    """Number of rows of each file; None for those that must be read to tell it."""
    keys: Keys
    explaining: Explaining
    reading: Reading
    windows: WindowColumns | None = None
    """Window features of the rows; None for a model without windows."""
    carried: Carried = NOTHING
    """Columns of the input that are written, read for the days, or ranked by."""
    columns: tuple[str, ...] = ()
    """Those of the columns that the parts have."""
    candidates: Candidates | None = None
    """Choice of the rows that may be among the highest; None if none are ranked."""
    times: Times | None = None
    """The times that give the days of rows; None if rows are not ranked by day."""
    limit: int | None = None
    """Number of first rows that are scored; None for all."""

    @property
    def _schema(self) -> TabularSchema:
        return cast("TabularSchema", self.source.bundle.scorer.schema)

    @cached_property
    def _partitions(self) -> Partitions:
        return Partitions.of(self.files)

    @cached_property
    def _known_starts(self) -> list[int]:
        """Number of rows before each file, without those of text files."""
        return list(accumulate((rows or 0 for rows in self.rows), initial=0))

    def starts(self, read: Mapping[int, int]) -> list[int]:
        """Return the position of each file's first row; ``read`` has the rows of text files."""
        text = accumulate((read.get(file, 0) for file in range(len(self.files))), initial=0)
        return [known + rows for known, rows in zip(self._known_starts, text, strict=True)]

    @contextmanager
    def shared(self, folder: ResultFolder) -> Iterator[TableJob]:
        """Put the window features where all machines see them; yield a job that reads them there.

        Raises:
            OSError: they cannot be written.
        """
        if self.windows is None:
            yield self
            return
        with shared_windows(self.windows, folder) as windows:
            yield replace(self, windows=windows)

    def read(self, unit: Unit) -> Iterator[TableTask | EndTask]:
        """Yield the rows of a unit, and then what is known at its end."""
        reading, counts = self.reading.separate(), Counts()
        for file, groups in unit.files:
            start = self._known_starts[file] + sum(counts.rows_of_files.values())
            rows = 0
            path, select = self.files[file], self._needed
            parts = read_file(path, self._partitions, reading, select, groups=groups)
            for part in self._first(parts, start, counts):
                yield TableTask(file, part, start)
                rows = rows if part.rows is None else max(rows, int(part.rows[-1]) + 1)
            if self.rows[file] is None:
                counts.rows_of_files[file] = rows
        counts.notes = list(filter(None, [reading.collected()]))
        if counts.notes or counts.rows_of_files or counts.others:
            yield EndTask(counts)

    def _first(
        self, parts: Iterator[Chunk | Broken], start: int, counts: Counts
    ) -> Iterator[Chunk | Broken]:
        """Yield the rows of a file that are among the first of the input, or all.

        Args:
            parts: the rows of the file.
            start: position of its first row in the input.
            counts: counts that are told if rows are left out.
        """
        if self.limit is None:
            yield from parts
        elif start >= self.limit:
            counts.others[LEFT_OUT] = 1
        else:
            yield from _first_rows(parts, self.limit - start, counts)

    def size(self, file: int) -> int:
        """Return the size of a file in bytes; -1 if it is not there."""
        return input_of(self.files[file], None).bytes

    def _needed(self, names: Sequence[str]) -> Sequence[str]:
        """Select the columns that are used, or all if none of the model's exists."""
        windows = self.windows.reader.names if self.windows else ()
        features = set(names) & {*self._schema.names, *windows}
        used = features | {self.keys.id, *self.carried.types}
        return [name for name in names if name in used] if features else names

    def score(self, task: TableTask | EndTask) -> Scored:
        """Score or reject the rows of a task."""
        if isinstance(task, EndTask):
            return Scored(None, None, task.counts)
        if isinstance(task.part, Broken):
            return self._rejected(_broken(task.file, task.part))
        return self._score_chunk(task, task.part)

    def _score_chunk(self, task: TableTask, chunk: Chunk) -> Scored:
        ids, problems = self.keys.ids(chunk.table)
        try:
            batch = self._read(chunk)
        except DataError as error:
            problem = RowProblem(0, error.column, str(error))
            return self._rejected(
                _rejects(task.file, chunk, dict.fromkeys(range(len(chunk.rows)), problem), ids)
            )
        batch = replace(batch, problems=(*batch.problems, *problems))
        columns = self.keys.of(ids, task.start + chunk.rows) | self.carried.of(chunk.table)
        first = {problem.row: problem for problem in reversed(batch.problems)}
        rejected = self._rejected(_rejects(task.file, chunk, first, ids))
        scored = self._score_batch(batch, columns)
        scored.counts.add(rejected.counts)
        return scored._replace(rejects=rejected.rejects)

    def _read(self, chunk: Chunk) -> RawBatch:
        if self.windows is None:
            return self._schema.from_arrow(chunk.table)
        return self.windows.read(chunk, self._schema)

    def _rejected(self, rejects: Sequence[Reject]) -> Scored:
        counts = Counts()
        counts.rejects_by_column.update(reject.column or UNREADABLE for reject in rejects)
        return Scored(None, reject_table(rejects, self.keys.field), counts)

    def _score_batch(self, batch: RawBatch, columns: Mapping[str, pa.Array]) -> Scored:
        """Score the rows of a batch that have no problem.

        Args:
            batch: N rows.
            columns: their ids and positions, and the columns that are carried.
        """
        if batch.problems:
            mask = pa.array(batch.usable)
            columns = {name: cells.filter(mask) for name, cells in columns.items()}
            batch = batch.take(batch.usable)
        if not len(batch):
            return Scored(None, None, Counts())
        detector = self.source.bundle.detector
        x = detector.scorer.encoding.encode(batch)
        detections = detector.detect_encoded(x)
        explanations = self.explaining.column(detections, self._explain(batch, detections))
        counts = counts_of(self.source.bundle.monitor, detections, x, batch)
        shown = {name: columns[name] for name in (*self.keys.names, *self.columns)}
        rows = result_table(shown, detections, explanations)
        return Scored(rows, None, counts, self._candidates(columns, detections, batch))

    def _candidates(
        self, columns: Mapping[str, pa.Array], detections: Detections, batch: RawBatch
    ) -> pa.Table | None:
        if self.candidates is None:
            return None
        days = self.times and self.times.days(batch, columns[self.times.name])
        return self.candidates.of(
            columns, detections, days, lambda rows: features(batch.take(rows))
        )

    def _explain(self, batch: RawBatch, detections: Detections) -> dict[int, Explanation]:
        rows = self.explaining.of(detections)
        if not len(rows):
            return {}
        most = max_contributions(self.explaining.most)
        _, explanations = self.source.bundle.detector.detect_and_explain(batch.take(rows), most)
        return dict(zip(rows.tolist(), explanations, strict=True))


def _first_rows(
    parts: Iterator[Chunk | Broken], count: int, counts: Counts
) -> Iterator[Chunk | Broken]:
    """Yield the rows at the first ``count`` positions of a file; note if rows are left out.

    Rows that cannot be read may come after those behind them. Reading therefore ends when all rows
    are there, or when those that come are far behind.
    """
    found = 0
    for part in parts:
        if part.rows is None:  # the file cannot be read from here on
            yield part
            continue
        rows = np.asarray(part.rows, np.int64)
        inside = rows < count
        found += int(inside.sum())
        if not inside.all():
            counts.others[LEFT_OUT] = 1
        if inside.any() or not len(rows):
            yield _taken(part, inside)
        elif found >= count or rows[0] >= count + 2 * BATCH_ROWS:
            break


def _taken(part: Chunk | Broken, mask: NDArray[np.bool_]) -> Chunk | Broken:
    """Return the rows of a part in a mask (N,)."""
    if mask.all():
        return part
    if isinstance(part, Broken):
        rows = np.asarray(part.rows)[mask]
        return replace(part, rows=range(int(rows[0]), int(rows[-1]) + 1))
    return replace(part, rows=part.rows[mask], table=part.table.filter(pa.array(mask)))


def _broken(file: int, broken: Broken) -> list[Reject]:
    """Return the rejects of rows that cannot be read, or of a file."""
    rows = [None] if broken.rows is None else broken.rows
    return [Reject(file, row, None, None, broken.reason) for row in rows]


def _rejects(
    file: int, chunk: Chunk, problems: Mapping[int, RowProblem], ids: pa.Array | None
) -> list[Reject]:
    return [
        Reject(file, int(chunk.rows[i]), None if ids is None else ids[i], p.column, p.reason)
        for i, p in sorted(problems.items())
    ]
