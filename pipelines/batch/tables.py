"""Score tables as a stream, in constant memory: each row is scored or rejected with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from anomaly_vae.data.schema import RawBatch, RowProblem, TabularSchema
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.messages import printable
from anomaly_vae.scoring.detector import Detections, Explanation
from anomaly_vae.scoring.wording import Wording
from pipelines import console
from pipelines.batch import results
from pipelines.batch.common import (
    GROUP_COLUMNS,
    NO_HEATMAPS,
    RESULT_COLUMNS,
    UNREADABLE,
    Explain,
    Explaining,
    ExplainRows,
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
from pipelines.batch.counts import Counts
from pipelines.batch.fdr import FdrPass, check_controllable
from pipelines.batch.highest import show_highest
from pipelines.batch.keys import Keys, find_keys
from pipelines.batch.plan import Piece, Place, Plan, Unit, cut, input_of
from pipelines.batch.results import Record
from pipelines.batch.run import DEFAULTS, Batch, RunOptions, run_batch
from pipelines.batch.units import Scored
from pipelines.datasets.files import absent_columns, find_files, heads_by_file, read_file
from pipelines.datasets.loading import NO_OPTIONS
from pipelines.datasets.reading.objects import place
from pipelines.datasets.reading.partitions import Partitions
from pipelines.datasets.reading.parts import Broken, Chunk, Head, Reading
from pipelines.datasets.reading.plain_text import is_pipe
from pipelines.registry.model_uri import LoadedModel

TEXT_ROW_BYTES = 64
"""Assumed size of a row of text, in bytes, by which small text files are combined to parts."""


def score_files(
    source: LoadedModel,
    paths: Sequence[str],
    output: str | Path,
    explain: Explain = None,
    heatmaps: HeatmapOptions = NO_HEATMAPS,
    fdr: float | None = None,
    csv: Mapping[str, Any] = NO_OPTIONS,
    explain_rows: ExplainRows = ExplainRows.FLAGGED,
    run: RunOptions = DEFAULTS,
    highest: bool = True,
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

    Raises:
        ConfigError: heatmaps are requested, or ``csv`` is invalid.
        DataError: no file is found, one lies in ``output``, or ``output`` holds other files or a
            result of another model, of other options or of other files.
        CalibrationError: the model's p-values do not allow control of the false discovery rate.
    """
    if heatmaps != NO_HEATMAPS:
        raise ConfigError("--heatmaps and --dicom-out are for image models; leave them out")
    output, calibration = place(output), source.bundle.detector.calibration
    check_controllable(calibration, fdr)
    reading = Reading.of_model(source.bundle, csv, score=True)
    files = exclude_output(paths, find_files(paths), output, lambda path: path)
    by_file = heads_by_file(files, reading)
    names = {name for head in by_file.values() for name in head.schema.names}
    warn_missing_group(calibration, names)
    for note in absent_columns(by_file, source.bundle.scorer.schema.names):
        console.info(note)
    reserved = (*RESULT_COLUMNS, *GROUP_COLUMNS) if calibration.groups else RESULT_COLUMNS
    keys = find_keys(source.bundle.manifest["config"]["data"].get("id"), by_file, reserved)
    explaining = Explaining(explain, explain_rows, fdr)
    options = {
        "--explain": explain,
        "--explain-rows": explain_rows if explain else None,
        "--fdr": fdr,
        "--csv": dict(csv) or None,
    }
    plan = _plan(model_entry(source), options, files, by_file, keys)
    job = TableJob(source, tuple(files), rows_of(plan), keys, explaining, reading)

    def summarise(counts: Counts, records: Sequence[Record]) -> dict[str, Any]:
        summary = summary_of(source, len(files), counts, records)
        summary["ignored_columns"] = list(source.bundle.scorer.schema.unknown(names))
        return summary | _show_notes(reading.separate(), counts)

    batch = Batch(
        job,
        plan,
        keys.field,
        [printable(path) for path in files],
        lambda counts: job.starts(counts.rows_of_files),
        summarise,
        None if fdr is None else FdrPass(calibration, fdr, explain_rows),
        _total_rows(plan),
    )
    summary = run_batch(batch, output, run)
    if highest:
        show_highest(output, summary["parts"], Wording.of(source.bundle.scorer.encoding))
    return summary


def _show_notes(reading: Reading, counts: Counts) -> dict[str, Any]:
    """Print the notes on text files; return them as an entry of the summary, if there are any."""
    for notes in counts.notes:
        reading.absorb(notes)
    for note in reading.notes:
        console.info(note)
    return {"notes": list(reading.notes)} if reading.notes else {}


# ---------------------------------------------------------------- the plan


def _plan(
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Sequence[Path],
    heads: Mapping[Path, Head],
    keys: Keys,
) -> Plan:
    """Plan the scoring of these files."""
    inputs = tuple(input_of(path, _n_rows(heads.get(path))) for path in files)
    pieces = [
        Piece(Place(index, group), share)
        for index, path in enumerate(files)
        for group, share in enumerate(_shares(heads.get(path), inputs[index].bytes))
    ]
    # where rows are named by position, those behind a text file have none until it is read
    text = (index for index, item in enumerate(inputs) if keys.rows and item.rows is None)
    units = cut(pieces, Place(len(files)), next(text, None))
    pipes = map(str, filter(is_pipe, files))
    return Plan(model, options, inputs, tuple(units), next(pipes, None))


def _n_rows(head: Head | None) -> int | None:
    """Return the number of rows that a file states; 0 for a file that cannot be read."""
    return 0 if head is None else head.n_rows


def _shares(head: Head | None, size: int) -> Sequence[float]:
    """Return the share of a full part that each row group, or a file without any, makes."""
    if head is not None and head.groups:
        return [rows / results.PART_ROWS for rows in head.groups]
    return [size / TEXT_ROW_BYTES / results.PART_ROWS if head and head.n_rows is None else 0.0]


def rows_of(plan: Plan) -> tuple[int | None, ...]:
    """Return the number of rows of each file; None for those that must be read to tell it."""
    return tuple(item.rows for item in plan.inputs)


def _total_rows(plan: Plan) -> int | None:
    """Return the number of rows, None if a file does not say; an unreadable file counts as one."""
    counts = rows_of(plan)
    return None if None in counts else sum(count or 1 for count in counts if count is not None)


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
    """What is known once a unit is read: the sizes of its text files and the notes on them."""

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

    def read(self, unit: Unit) -> Iterator[TableTask | EndTask]:
        """Yield the rows of a unit, and then what is known at its end."""
        reading, counts = self.reading.separate(), Counts()
        for file, groups in unit.files:
            start = self._known_starts[file] + sum(counts.rows_of_files.values())
            rows = 0
            path, select = self.files[file], self._needed
            for part in read_file(path, self._partitions, reading, select, groups=groups):
                yield TableTask(file, part, start)
                rows = rows if part.rows is None else max(rows, int(part.rows[-1]) + 1)
            if self.rows[file] is None:
                counts.rows_of_files[file] = rows
        counts.notes = list(filter(None, [reading.collected()]))
        if counts.notes or counts.rows_of_files:
            yield EndTask(counts)

    def size(self, file: int) -> int:
        """Return the size of a file in bytes; -1 if it is not there."""
        return input_of(self.files[file], None).bytes

    def _needed(self, names: Sequence[str]) -> Sequence[str]:
        """Select the model's columns and the id, or all columns if none of the model's exists."""
        features = set(names) & set(self._schema.names)
        return [name for name in names if name in features | {self.keys.id}] if features else names

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
            batch = self._schema.from_arrow(chunk.table)
        except DataError as error:
            problem = RowProblem(0, error.column, str(error))
            return self._rejected(
                _rejects(task.file, chunk, dict.fromkeys(range(len(chunk.rows)), problem), ids)
            )
        batch = replace(batch, problems=(*batch.problems, *problems))
        first = {problem.row: problem for problem in reversed(batch.problems)}
        rejected = self._rejected(_rejects(task.file, chunk, first, ids))
        rows, counts = self._score_batch(batch, self.keys.of(ids, task.start + chunk.rows))
        counts.add(rejected.counts)
        return Scored(rows, rejected.rejects, counts)

    def _rejected(self, rejects: Sequence[Reject]) -> Scored:
        counts = Counts()
        counts.rejects_by_column.update(reject.column or UNREADABLE for reject in rejects)
        return Scored(None, reject_table(rejects, self.keys.field), counts)

    def _score_batch(
        self, batch: RawBatch, keys: dict[str, pa.Array]
    ) -> tuple[pa.Table | None, Counts]:
        if batch.problems:
            mask = pa.array(batch.usable)
            keys = {name: key.filter(mask) for name, key in keys.items()}
            batch = batch.take(batch.usable)
        if not len(batch):
            return None, Counts()
        detector = self.source.bundle.detector
        x = detector.scorer.encoding.encode(batch)
        detections = detector.detect_encoded(x)
        column = self.explaining.column(detections, self._explain(batch, detections))
        counts = counts_of(self.source.bundle.monitor, detections, x, batch)
        return result_table(keys, detections, column), counts

    def _explain(self, batch: RawBatch, detections: Detections) -> dict[int, Explanation]:
        rows = self.explaining.of(detections)
        if not len(rows):
            return {}
        most = max_contributions(self.explaining.most)
        _, explanations = self.source.bundle.detector.detect_and_explain(batch.take(rows), most)
        return dict(zip(rows.tolist(), explanations, strict=True))


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
