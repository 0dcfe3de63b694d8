"""Files → scores: streamed, in constant memory, every row scored or rejected with a reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly_vae.bundle import Bundle
from anomaly_vae.detector import Detections, Explanation
from anomaly_vae.errors import DataError
from anomaly_vae.files import atomic_folder, recover
from anomaly_vae.schema import Problem, RawBatch
from pipelines import console
from pipelines.io import Broken, Chunk, find_files, read_chunks
from pipelines.models import Source

PART_ROWS = 1 << 20
SUMMARY, REJECTS = "summary.json", "rejects.parquet"
CONTRIBUTION = pa.struct(
    [
        ("feature", pa.string()),
        ("nats", pa.float64()),
        ("observed", pa.string()),
        ("expected", pa.string()),
    ]
)
REJECT_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("column", pa.string()),
        ("reason", pa.string()),
    ]
)
UNREADABLE = "(unreadable)"
ANSWERS = ("score", "p_value", "is_anomaly", "contributions", "rest", "kl")


@dataclass
class Tally:
    """Counts that add up: rows = scored + rejected."""

    scored: int = 0
    flagged: int = 0
    places: Counter[str] = field(default_factory=Counter)
    """rejected rows, lines and files by column, or as unreadable"""
    ignored: set[str] = field(default_factory=set)

    @property
    def rejected(self) -> int:
        """Rows, lines and files that could not be scored."""
        return self.places.total()


def score_files(
    source: Source, paths: Sequence[str], output: str | Path, explain: int | str | None = None
) -> dict[str, Any]:
    """Score every row of every file into a folder; returns the summary that lies in it.

    Args:
        source: the model.
        paths: CSV or Parquet files, folders or globs; what lies in ``output`` is left out.
        output: the folder; a previous result there is replaced once the new one is whole.
        explain: K largest contributions of each row, or "all".

    Raises:
        DataError: no file found, or ``output`` holds something else.
    """
    output = Path(output)
    files = [path for path in find_files(paths) if output.resolve() not in path.resolve().parents]
    _check_output(output)
    with atomic_folder(output) as folder, ExitStack() as stack:
        sink = stack.enter_context(_Sink(folder))
        scoring = _Scoring(source.bundle, sink, explain)
        bar, task = stack.enter_context(console.progress("Scoring", _rows_known(files)))
        for part in read_chunks(files):
            bar.advance(task, scoring.take(part))
            note = f"{scoring.tally.flagged:,} flagged, {scoring.tally.rejected:,} rejected"
            bar.update(task, note=note)
        sink.close()
        summary = _summary(source, files, scoring.tally, sink)
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


class _Scoring:
    """Takes chunks in order; knows the position of each row in the whole input."""

    def __init__(self, bundle: Bundle, sink: _Sink, explain: int | str | None) -> None:
        self.detector, self.sink, self.tally = bundle.detector, sink, Tally()
        self.id = bundle.manifest["config"]["data"].get("id")
        if self.id in ANSWERS:
            raise DataError(
                f"the id column '{self.id}' is called like one of the answers; rename it"
            )
        self.explain = explain is not None
        self.most = None if explain == "all" else explain
        self.path: Path | None = None
        self.start = self.rows_of_file = 0

    def take(self, part: Chunk | Broken) -> int:
        """Score or reject; returns how many rows that were."""
        if part.path != self.path:
            self.start += self.rows_of_file
            self.path, self.rows_of_file = part.path, 0
        if isinstance(part, Broken):
            self._reject_place(part)
            return 1
        self.rows_of_file = max(self.rows_of_file, int(part.rows[-1]) + 1)
        rows = self.start + part.rows
        try:
            batch = self.detector.scorer.schema.from_arrow(part.table)
        except DataError as error:
            problem = Problem(0, error.column, str(error))
            self._reject(part, rows, dict.fromkeys(range(len(rows)), problem))
            return len(rows)
        self.tally.ignored.update(batch.ignored)
        self._reject(part, rows, {p.row: p for p in reversed(batch.problems)})
        self._score(batch, rows, self._ids(part.table))
        return len(rows)

    def _score(self, batch: RawBatch, rows: NDArray[np.int64], ids: pa.Array | None) -> None:
        usable, good = batch.usable, batch.take(batch.usable)
        if not len(good):
            return
        reasons: Sequence[Explanation] = ()
        if self.explain:
            found, reasons = self.detector.detect_and_explain(good, self.most)  # type: ignore[arg-type]  # an int or None by now
        else:
            found = self.detector.detect(good)
        key = pa.array(rows[usable]) if ids is None else ids.filter(pa.array(usable))
        self.sink.write(_columns(self.id if ids is not None else "row", key, found, reasons))
        self.tally.scored += len(good)
        self.tally.flagged += int(found.is_anomaly.sum())

    def _ids(self, table: pa.RecordBatch) -> pa.Array | None:
        if self.id is None or self.id not in table.schema.names:
            return None
        return self.sink.same_type(table.column(self.id))

    def _reject(self, part: Chunk, rows: NDArray[np.int64], problems: dict[int, Problem]) -> None:
        known = self.id in part.table.schema.names
        for i, problem in sorted(problems.items()):
            name = str(part.table.column(self.id)[i].as_py()) if known else None
            self.tally.places[problem.column or UNREADABLE] += 1
            self._write_reject(part.path, int(rows[i]), name, problem.column, problem.reason)

    def _reject_place(self, broken: Broken) -> None:
        row = None
        if broken.row is not None:
            row = self.start + broken.row
            self.rows_of_file = max(self.rows_of_file, broken.row + 1)
        self.tally.places[UNREADABLE] += 1
        self._write_reject(broken.path, row, None, None, broken.reason)

    def _write_reject(
        self, path: Path, row: int | None, name: str | None, column: str | None, reason: str
    ) -> None:
        content = {"path": str(path), "row": row, "id": name, "column": column, "reason": reason}
        self.sink.reject(content)


class _Sink:
    """Parts of at most `PART_ROWS` rows, and the rejects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[str] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0
        self._id_type: pa.DataType | None = None
        self._rejects = pq.ParquetWriter(folder / REJECTS, REJECT_SCHEMA)
        self._pending: list[dict[str, Any]] = []

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def same_type(self, ids: pa.Array) -> pa.Array:
        """Ids in the type of the first ones; those that cannot be keep theirs, in other parts."""
        self._id_type = self._id_type or ids.type
        try:
            return ids.cast(self._id_type)
        except pa.ArrowException:
            return ids

    def write(self, table: pa.Table) -> None:
        """Append scored rows."""
        if self._writer is not None and self._writer.schema != table.schema:
            self._close_part()  # ids came or went between two files
        if self._writer is None:
            name = f"part-{len(self.parts):05d}.parquet"
            self.parts.append(name)
            self._writer = pq.ParquetWriter(self.folder / name, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._rows += len(table)
        if self._rows >= PART_ROWS:
            self._close_part()

    def reject(self, row: dict[str, Any]) -> None:
        """Append a rejected row."""
        self._pending.append(row)
        if len(self._pending) >= 10_000:
            self._flush_rejects()

    def close(self) -> None:
        """Finish every file."""
        self._close_part()
        self._flush_rejects()
        self._rejects.close()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows = None, 0

    def _flush_rejects(self) -> None:
        if self._pending:
            self._rejects.write_table(pa.Table.from_pylist(self._pending, REJECT_SCHEMA))
            self._pending = []


def _columns(
    key_name: str, key: pa.Array, found: Detections, reasons: Sequence[Explanation]
) -> pa.Table:
    columns = {
        key_name: key,
        "score": pa.array(found.score),
        "p_value": pa.array(found.p_value),
        "is_anomaly": pa.array(found.is_anomaly),
    }
    if reasons:
        columns["contributions"] = pa.array(
            [list(_contributions(reason)) for reason in reasons], pa.list_(CONTRIBUTION)
        )
        columns["rest"] = pa.array([reason.rest for reason in reasons])
        columns["kl"] = pa.array([reason.kl for reason in reasons])
    return pa.table(columns)


def _contributions(reason: Explanation) -> Iterator[dict[str, Any]]:
    for c in reason.contributions:
        observed, expected = _text(c.observed), _text(c.expected)
        yield {"feature": c.feature, "nats": c.nats, "observed": observed, "expected": expected}


def _text(value: Any) -> str | None:
    return f"{value:.6g}" if isinstance(value, float) else value


def _check_output(output: Path) -> None:
    recover(output.resolve())
    if output.is_file():
        raise DataError(f"--output '{output}' is a file; give a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / SUMMARY).is_file():
        raise DataError(f"--output '{output}' holds other files; choose an empty or a new folder")


def _rows_known(files: Sequence[Path]) -> int | None:
    """How many rows there are, where the files say so beforehand."""
    total = 0
    for path in files:
        if path.suffix.lower() == ".csv":
            return None
        try:
            total += pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError, ValueError):
            total += 1
    return total


def _summary(source: Source, files: Sequence[Path], tally: Tally, sink: _Sink) -> dict[str, Any]:
    calibration = source.bundle.detector.calibration
    return {
        "model": source.to_json(),
        "alpha": calibration.alpha,
        "threshold": calibration.threshold,
        "files": len(files),
        "rows": tally.scored + tally.rejected,
        "scored": tally.scored,
        "flagged": tally.flagged,
        "rejected": tally.rejected,
        "rejected_by_column": dict(tally.places.most_common()),
        "ignored_columns": sorted(tally.ignored),
        "parts": sink.parts,
    }
