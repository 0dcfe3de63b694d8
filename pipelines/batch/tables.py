"""Score tables as a stream, in constant memory: each row is scored or rejected with a reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.schema import RawBatch, RowProblem, TabularSchema
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.scoring.detector import Explanation
from pipelines import console
from pipelines.batch.common import (
    GROUP_COLUMNS,
    NO_HEATMAPS,
    RESULT_COLUMNS,
    UNREADABLE,
    Explain,
    HeatmapOptions,
    Tally,
    exclude_output,
    max_contributions,
    result_table,
    summary_of,
    warn_missing_group,
)
from pipelines.batch.fdr import check_controllable, open_sink
from pipelines.batch.keys import Keys, find_keys
from pipelines.batch.results import SUMMARY, Sink, result_folder
from pipelines.datasets.files import absent_columns, find_files, heads_by_file, read_chunks
from pipelines.datasets.loading import NO_OPTIONS
from pipelines.datasets.reading.parts import Broken, Chunk, Head, Reading
from pipelines.datasets.windows import WindowColumns, expected_columns, open_windows
from pipelines.registry.model_uri import LoadedModel


def score_files(
    source: LoadedModel,
    paths: Sequence[str],
    output: str | Path,
    explain: Explain = None,
    heatmaps: HeatmapOptions = NO_HEATMAPS,
    fdr: float | None = None,
    csv: Mapping[str, Any] = NO_OPTIONS,
    history: Sequence[str] = (),
) -> dict[str, Any]:
    """Score every row of every file into a folder and return the summary.

    Args:
        source: the model.
        paths: CSV or Parquet files, folders or globs; files in ``output`` are ignored.
        output: the folder, whose previous result is replaced once the new one is complete.
        explain: number of largest contributions to list per row, or "all".
        heatmaps: must be `NO_HEATMAPS`, as only images have heatmaps.
        fdr: false discovery rate at which to flag rows, instead of by the threshold.
        csv: keys of `CsvConfig` that differ from the training configuration.
        history: files, folders or globs with earlier rows, which feed windows and are not scored.

    Raises:
        ConfigError: heatmaps are requested, ``csv`` is invalid, or there is history for a model
            without windows.
        DataError: no file is found, one lies in ``output``, or ``output`` holds other files.
        CalibrationError: the model's p-values do not allow control of the false discovery rate.
    """
    if heatmaps != NO_HEATMAPS:
        raise ConfigError("--heatmaps and --dicom-out are for image models; leave them out")
    output, calibration = Path(output), source.bundle.detector.calibration
    check_controllable(calibration, fdr)
    reading = Reading.of_model(source.bundle, csv, score=True)
    files = exclude_output(paths, find_files(paths), output, lambda path: path)
    by_file = heads_by_file(files, reading)
    heads = list(by_file.values())
    names = {name for head in heads for name in head.schema.names}
    warn_missing_group(calibration, names)
    for note in absent_columns(by_file, expected_columns(source.bundle)):
        console.info(note)
    reserved = (*RESULT_COLUMNS, *GROUP_COLUMNS) if calibration.groups else RESULT_COLUMNS
    keys = find_keys(source.bundle.manifest["config"]["data"].get("id"), by_file, reserved)
    with (
        result_folder(output) as folder,
        open_windows(source.bundle, by_file, files, history, csv) as windows,
        open_sink(folder, calibration, fdr, keys.field) as sink,
    ):
        scoring = _Scoring(source.bundle, keys, sink, explain, reading, windows)
        scoring.score_all(files, _total_rows(files, heads))
        entries = sink.finish()
        summary = summary_of(source, len(files), scoring.tally, sink) | entries
        summary["ignored_columns"] = list(source.bundle.scorer.schema.unknown(names))
        summary |= _show_notes(reading) | ({"warnings": list(windows.warnings)} if windows else {})
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _show_notes(reading: Reading) -> dict[str, Any]:
    """Print the notes on text files; return them as an entry of the summary, if there are any."""
    for note in reading.notes:
        console.info(note)
    return {"notes": list(reading.notes)} if reading.notes else {}


class _Scoring:
    """A run over a sequence of files, with its position in the whole input."""

    def __init__(
        self,
        bundle: Bundle,
        keys: Keys,
        sink: Sink,
        explain: Explain,
        reading: Reading,
        windows: WindowColumns | None,
    ) -> None:
        self.detector = bundle.detector
        self.schema = cast("TabularSchema", bundle.scorer.schema)
        self.keys, self.sink, self.tally = keys, sink, Tally(bundle.monitor)
        self.explain, self.max_contributions = explain is not None, max_contributions(explain)
        self.reading, self.windows = reading, windows
        self.path: Path | None = None
        self.start = self.rows_of_file = 0

    def score_all(self, files: Sequence[Path], total: int | None) -> None:
        """Score or reject every row of these files."""
        with console.progress("Scoring", total) as (bar, task):
            for part in read_chunks(files, select=self._needed, reading=self.reading):
                count = self.score(part)
                note = f"{self.tally.flagged:,} flagged, {self.tally.rejected:,} rejected"
                bar.update(task, advance=count, note=note)

    def score(self, part: Chunk | Broken) -> int:
        """Score or reject the rows of a part, in the order of the files; return their number."""
        if part.path != self.path:
            self.start += self.rows_of_file
            self.path, self.rows_of_file = part.path, 0
        if isinstance(part, Broken):
            return self._reject_broken(part)
        self.rows_of_file = max(self.rows_of_file, int(part.rows[-1]) + 1)
        ids, problems = self.keys.ids(part.table)
        try:
            batch = self._read(part)
        except DataError as error:
            problem = RowProblem(0, error.column, str(error))
            self._reject(part, dict.fromkeys(range(len(part.rows)), problem), ids)
        else:
            batch = replace(batch, problems=(*batch.problems, *problems))
            self._reject(part, {p.row: p for p in reversed(batch.problems)}, ids)
            self._score_batch(batch, self.keys.of(ids, self.start + part.rows))
        return len(part.rows)

    def _read(self, part: Chunk) -> RawBatch:
        if self.windows is None:
            return self.schema.from_arrow(part.table)
        return self.windows.read(part, self.schema)

    def _reject_broken(self, broken: Broken) -> int:
        rows: Sequence[int | None] = [None]
        if broken.rows is not None:
            self.rows_of_file = max(self.rows_of_file, broken.rows.stop)
            rows = range(self.start + broken.rows.start, self.start + broken.rows.stop)
        self.tally.rejects_by_column[UNREADABLE] += len(rows)
        self.sink.reject(broken.path, rows, broken.reason)
        return len(rows)

    def _reject(self, part: Chunk, problems: dict[int, RowProblem], ids: pa.Array | None) -> None:
        for i, problem in sorted(problems.items()):
            row, name = self.start + int(part.rows[i]), None if ids is None else ids[i]
            self.tally.rejects_by_column[problem.column or UNREADABLE] += 1
            self.sink.reject(part.path, [row], problem.reason, problem.column, name)

    def _score_batch(self, batch: RawBatch, keys: dict[str, pa.Array]) -> None:
        if batch.problems:
            mask = pa.array(batch.usable)
            keys = {name: key.filter(mask) for name, key in keys.items()}
            batch = batch.take(batch.usable)
        if not len(batch):
            return
        explanations: Sequence[Explanation] = ()
        x = self.detector.scorer.encoding.encode(batch)
        if self.explain:
            detections, explanations = self.detector.detect_and_explain(
                batch, self.max_contributions
            )
        else:
            detections = self.detector.decide(self.detector.scorer.score_encoded(x), x)
        self.sink.write(result_table(keys, detections, explanations))
        self.tally.count(detections, x, batch)

    def _needed(self, names: Sequence[str]) -> Sequence[str]:
        """Select the model's columns and the id, or all columns if none of the model's exists."""
        windows = self.windows.reader.names if self.windows else ()
        features = set(names) & {*self.schema.names, *windows}
        return [name for name in names if name in features | {self.keys.id}] if features else names


def _total_rows(files: Sequence[Path], heads: Sequence[Head]) -> int | None:
    """Return the number of rows, None if a file does not say; an unreadable file counts as one."""
    counts = [head.n_rows for head in heads if head.n_rows is not None]
    return sum(counts) + len(files) - len(heads) if len(counts) == len(heads) else None
