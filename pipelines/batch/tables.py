"""Files → scores: streamed, in constant memory, every row scored or rejected with a reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.arrow import normalise_array
from anomaly_vae.data.schema import RawBatch, RowProblem
from anomaly_vae.errors import DataError
from anomaly_vae.scoring.detector import Explanation
from pipelines import console
from pipelines.batch.common import (
    ANSWERS,
    OF_GROUPS,
    UNREADABLE,
    Explain,
    Tally,
    answer_columns,
    most_of,
    outside,
    summary_of,
    tell_without_groups,
)
from pipelines.batch.fdr import check_controllable, control
from pipelines.batch.results import SUMMARY, Sink, result_folder
from pipelines.datasets.files import Broken, Chunk, Head, find_files, read_chunks, read_heads
from pipelines.registry.model_uri import LoadedModel


def score_files(
    source: LoadedModel,
    paths: Sequence[str],
    output: str | Path,
    explain: Explain = None,
    fdr: float | None = None,
) -> dict[str, Any]:
    """Score every row of every file into a folder; returns the summary that lies in it.

    Args:
        source: the model.
        paths: CSV or Parquet files, folders or globs; what lies in ``output`` is left out.
        output: the folder; a previous result there is replaced once the new one is whole.
        explain: K largest contributions of each row, or "all".
        fdr: flag by the false discovery rate of the whole input, instead of by the threshold.

    Raises:
        DataError: no file found, one that lies in ``output``, or ``output`` holds something else.
        CalibrationError: ``fdr`` of a model whose p-values do not allow for it.
    """
    output, calibration = Path(output), source.bundle.detector.calibration
    if fdr is not None:
        check_controllable(calibration)
    files = outside(paths, find_files(paths), output, lambda path: path)
    heads = list(read_heads(files))
    tell_without_groups(calibration, {name for head in heads for name in head.schema.names})
    answers = (*ANSWERS, *OF_GROUPS) if calibration.groups else ANSWERS
    keys = _keys(source.bundle.manifest["config"]["data"].get("id"), heads, answers)
    with result_folder(output) as folder, Sink(folder) as sink:
        scoring = _Scoring(source.bundle, keys, sink, explain)
        scoring.take_all(files, _rows_known(files, heads))
        sink.close()
        summary = summary_of(source, len(files), scoring.tally, sink)
        if fdr is not None:
            summary |= control(folder, sink.parts, calibration, fdr)
        ignored = source.bundle.scorer.schema.unknown({n for h in heads for n in h.schema.names})
        summary["ignored_columns"] = list(ignored)
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


class _Scoring:
    """Takes chunks in order; knows the position of each row in the whole input."""

    def __init__(self, bundle: Bundle, keys: Keys, sink: Sink, explain: Explain) -> None:
        self.detector, self.keys, self.sink, self.tally = (
            bundle.detector,
            keys,
            sink,
            Tally(bundle.monitor),
        )
        self.schema = bundle.scorer.schema
        self.explain, self.most = explain is not None, most_of(explain)
        self.path: Path | None = None
        self.start = self.rows_of_file = 0

    def take_all(self, files: Sequence[Path], total: int | None) -> None:
        """Score or reject every row of these files."""
        with console.progress("Scoring", total) as (bar, task):
            for part in read_chunks(files, select=self._needed):
                count = self.take(part)
                note = f"{self.tally.flagged:,} flagged, {self.tally.rejected:,} rejected"
                bar.update(task, advance=count, note=note)

    def take(self, part: Chunk | Broken) -> int:
        """Score or reject; returns how many rows that were."""
        if part.path != self.path:
            self.start += self.rows_of_file
            self.path, self.rows_of_file = part.path, 0
        if isinstance(part, Broken):
            return self._take_broken(part)
        self.rows_of_file = max(self.rows_of_file, int(part.rows[-1]) + 1)
        try:
            batch = self.schema.from_arrow(part.table)
        except DataError as error:
            problem = RowProblem(0, error.column, str(error))
            self._reject(part, dict.fromkeys(range(len(part.rows)), problem))
        else:
            self._reject(part, {p.row: p for p in reversed(batch.problems)})
            self._score(batch, self.keys.of(part.table, self.start + part.rows))
        return len(part.rows)

    def _take_broken(self, broken: Broken) -> int:
        rows: Sequence[int | None] = [None]
        if broken.rows is not None:
            self.rows_of_file = max(self.rows_of_file, broken.rows.stop)
            rows = range(self.start + broken.rows.start, self.start + broken.rows.stop)
        self.tally.places[UNREADABLE] += len(rows)
        self.sink.reject(broken.path, rows, broken.reason)
        return len(rows)

    def _reject(self, part: Chunk, problems: dict[int, RowProblem]) -> None:
        for i, problem in sorted(problems.items()):
            row, name = self.start + int(part.rows[i]), self.keys.name(part.table, i)
            self.tally.places[problem.column or UNREADABLE] += 1
            self.sink.reject(part.path, [row], problem.reason, problem.column, name)

    def _score(self, batch: RawBatch, keys: dict[str, pa.Array]) -> None:
        if batch.problems:
            mask = pa.array(batch.usable)
            keys = {name: key.filter(mask) for name, key in keys.items()}
            batch = batch.take(batch.usable)
        if not len(batch):
            return
        reasons: Sequence[Explanation] = ()
        x = self.detector.scorer.encoding.encode(batch)
        if self.explain:
            found, reasons = self.detector.detect_and_explain(batch, self.most)
        else:
            found = self.detector.decide(self.detector.scorer.score_encoded(x), x)
        self.sink.write(answer_columns(keys, found, reasons))
        self.tally.take(found, x)

    def _needed(self, names: Sequence[str]) -> Sequence[str]:
        """The model's columns and the id; all, for the error message, where the model has none."""
        features = set(names) & set(self.schema.names)
        return [name for name in names if name in features | {self.keys.id}] if features else names


@dataclass(frozen=True)
class Keys:
    """What names a row in the output: its id, its position where a file has no ids, or both.

    One type for the ids of all files: their own if it is common, the widest of integers, else
    text, so that no id is changed and all parts are one table.
    """

    id: str | None
    type: pa.DataType
    rows: bool

    def of(self, table: pa.RecordBatch, rows: NDArray[np.int64]) -> dict[str, pa.Array]:
        """The key columns of these rows, at these positions (N,)."""
        ids = {self.id: self._ids(table)} if self.id is not None else {}
        return ids | ({"row": pa.array(rows)} if self.rows else {})

    def name(self, table: pa.RecordBatch, i: int) -> str | None:
        """The id of one row as text."""
        known = self.id is not None and self.id in table.schema.names
        value = table.column(self.id)[i].as_py() if known else None
        return None if value is None else str(value)

    def _ids(self, table: pa.RecordBatch) -> pa.Array:
        if self.id not in table.schema.names:
            return pa.nulls(len(table), self.type)
        ids = normalise_array(table.column(self.id))
        try:
            return ids.cast(self.type)
        except pa.ArrowException:  # Arrow cannot write every type as text
            return pa.array([None if v is None else str(v) for v in ids.to_pylist()], self.type)


def _keys(name: str | None, heads: Sequence[Head], answers: Sequence[str]) -> Keys:
    schemas = [head.schema for head in heads]
    having = [schema for schema in schemas if name in schema.names]
    keys = Keys(
        name if having else None,
        _common_type(
            {normalise_array(pa.nulls(0, schema.field(name).type)).type for schema in having}
        ),
        rows=len(having) < len(schemas) or not having,
    )
    if keys.id in answers or (keys.id == "row" and keys.rows):
        raise DataError(f"the id column '{name}' is called like one of the answers; rename it")
    return keys


def _common_type(types: set[pa.DataType]) -> pa.DataType:
    types = types - {pa.null()}
    if len(types) == 1:
        return types.pop()
    for integers in (pa.types.is_signed_integer, pa.types.is_unsigned_integer):
        if types and all(map(integers, types)):
            return max(types, key=lambda kind: kind.bit_width)
    return pa.string()


def _rows_known(files: Sequence[Path], heads: Sequence[Head]) -> int | None:
    """How many rows there are, where the files say so beforehand; one for an unreadable file."""
    counts = [head.n_rows for head in heads if head.n_rows is not None]
    return sum(counts) + len(files) - len(heads) if len(counts) == len(heads) else None
