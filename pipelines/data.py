"""Files → a data set split for training: columns, labels, times, groups."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.columns import Levels, level_name, levels_from_arrow, plain, times_from_arrow
from anomaly_vae.config import Splits, TabularData
from anomaly_vae.errors import DataError
from anomaly_vae.inference import infer_schema
from anomaly_vae.schema import RawBatch, TabularSchema, listed
from anomaly_vae.splits import TEST, Assignment, Rows, assign
from pipelines.io import find_files, read_table

BOOLEAN = {"0": "false", "1": "true", "false": "0", "true": "1"}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everything the flows need of the input: N rows, their schema and their split."""

    table: pa.Table
    schema: TabularSchema
    batch: RawBatch
    rows: Rows
    assignment: Assignment
    duplicate_ids: int
    notes: tuple[str, ...]

    def part(self, split: int) -> RawBatch:
        """The rows of one split."""
        return self.batch.take(self.assignment.rows(split))

    @property
    def test_table(self) -> pa.Table:
        """The rows of the test split as they came."""
        return self.table.take(pa.array(self.assignment.rows(TEST)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every column the model reads, of the labels and of the split."""
        total = hashlib.sha256(self.assignment.digest.encode())
        for name in self.schema.names:
            total.update(name.encode())
            _hash_into(total, self.batch.values[name])
        total.update(self.rows.anomaly.tobytes())
        return total.hexdigest()

    def summary(self) -> dict[str, Any]:
        """What the manifest says of the data; no path, no values."""
        return {
            "digest": self.digest,
            "split_digest": self.assignment.digest,
            "rows": len(self.rows),
            "anomalies": int(self.rows.anomaly.sum()),
            "splits": self.assignment.counts,
            "unused": dict(self.assignment.unused),
            "duplicate_ids": self.duplicate_ids,
        }


def load_dataset(data: TabularData) -> Dataset:
    """Read, infer, check and split.

    Raises:
        DataError: unreadable input, contradicting columns or an empty split.
    """
    table = read_table(find_files(data.paths))
    if not len(table):
        raise DataError(f"no rows in {listed(data.paths)}; the header alone cannot train a model")
    inferred = infer_schema(table, data)
    batch = inferred.schema.from_arrow(table)
    rows = _rows(table, data, unfit=~batch.usable)
    return Dataset(
        table=table,
        schema=inferred.schema,
        batch=batch,
        rows=rows,
        assignment=_assign(rows, data.splits, batch),
        duplicate_ids=_duplicates(table, data.id),
        notes=(*inferred.notes, *_unfit_note(batch)),
    )


def anomaly_mask(labels: pa.ChunkedArray, positive: Any, column: str) -> NDArray[np.bool_]:
    """Which rows carry the label that means anomaly, (N,).

    Raises:
        DataError: there are no labels, or they are words and none of them is ``positive``.
    """
    levels = _levels(labels, column)
    if len(levels) and not levels.names:
        raise DataError(f"column '{column}' has no label in any row; leave it out", column=column)
    wanted = level_name(positive) or ""
    names = {wanted, BOOLEAN.get(wanted, wanted)}
    hits = [code for code, name in enumerate(levels.names) if name in names]
    if not hits and not set(levels.names) <= set(BOOLEAN):
        raise DataError(
            f"column '{column}' never has the value {wanted!r} that data.positive names; "
            f"found {listed(levels.names)}",
            column=column,
        )
    return np.isin(levels.codes, hits)


def unlabelled_mask(labels: pa.ChunkedArray, column: str) -> NDArray[np.bool_]:
    """Which rows carry no label at all, (N,)."""
    return _levels(labels, column).codes < 0


def _rows(table: pa.Table, data: TabularData, unfit: NDArray[np.bool_]) -> Rows:
    nothing = np.zeros(len(table), bool)
    anomaly = unlabelled = nothing
    if data.label:
        anomaly = anomaly_mask(table.column(data.label), data.positive, data.label)
        unlabelled = unlabelled_mask(table.column(data.label), data.label)
    return Rows(anomaly, unlabelled, unfit, _times(table, data.time), _groups(table, data.group))


def _assign(rows: Rows, config: Splits, batch: RawBatch) -> Assignment:
    try:
        return assign(rows, config)
    except DataError as error:
        raise DataError("; ".join((str(error), *_unfit_note(batch)))) from None


def _levels(cells: pa.ChunkedArray, column: str) -> Levels:
    try:
        return levels_from_arrow(cells)[0]
    except DataError as error:
        raise DataError(f"column '{column}': {error}", column=column) from None


def _times(table: pa.Table, name: str | None) -> NDArray[np.float64] | None:
    if not name:
        return None
    try:
        seconds, problems = times_from_arrow(table.column(name))
    except DataError as error:
        raise DataError(f"data.time names the column '{name}': {error}", column=name) from None
    if problems:
        reason = f"row {problems[0].row}: {problems[0].reason}"
        raise DataError(f"data.time names the column '{name}', {reason}", column=name)
    return seconds


def _groups(table: pa.Table, name: str | None) -> NDArray[np.int32] | None:
    """Codes of the groups; a row without one is a group of its own."""
    if not name:
        return None
    levels = _levels(table.column(name), name)
    alone = levels.codes < 0
    return np.where(alone, len(levels.names) + np.cumsum(alone) - 1, levels.codes).astype(np.int32)


def _duplicates(table: pa.Table, name: str | None) -> int:
    """Rows whose id an earlier row already has."""
    if not name:
        return 0
    ids = plain(table.column(name)).drop_null()
    try:
        return len(ids) - len(ids.unique())
    except pa.ArrowNotImplementedError:
        reason = f"data.id names the column '{name}', whose values ({ids.type}) name no rows"
        raise DataError(reason, column=name) from None


def _unfit_note(batch: RawBatch) -> tuple[str, ...]:
    if not batch.problems:
        return ()
    count = int((~batch.usable).sum())
    return (f"{count} rows left out, their cells do not fit, such as {batch.problems[0]}",)


def _hash_into(total: Any, values: Any) -> None:
    if hasattr(values, "codes"):
        total.update("\0".join(values.names).encode())
        values = values.codes
    total.update(np.ascontiguousarray(values).tobytes())
