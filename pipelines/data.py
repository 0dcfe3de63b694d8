"""Tables → a data set split for training: columns, labels, times, groups."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.arrow import levels_from_arrow, plain, times_from_arrow
from anomaly_vae.columns import Levels, level_name
from anomaly_vae.config import ImageData, TabularData
from anomaly_vae.errors import DataError
from anomaly_vae.inference import check_present, infer_schema
from anomaly_vae.modality import Encoding, Schema
from anomaly_vae.schema import RawBatch, Values, listed
from anomaly_vae.splits import (
    CALIBRATION,
    TEST,
    TRAIN,
    UNUSED,
    Assignment,
    Rows,
    assign,
    one_of_each,
    twins,
)
from pipelines.io import find_files, read_table

BOOLEAN = {"0": "false", "1": "true", "false": "0", "true": "1"}
GROUP = "group"
"""What an index of images calls the unit of each."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everything the flows need of the input: N rows, their schema and their split."""

    table: pa.Table
    schema: Schema
    batch: RawBatch
    rows: Rows
    assignment: Assignment
    notes: tuple[str, ...]
    label: str | None = None
    """the column of the table that marks known anomalies"""
    group: str | None = None
    """the column of units that no split may cut"""
    id: str | None = None
    """the column that names a row"""
    duplicate_ids: int = 0
    origin: str | None = None
    """the digest before rows were excluded, where some were"""
    files: tuple[Path, ...] = ()
    """(N,) what each row was read from, where it has a file of its own"""

    TWINS: ClassVar[str] = "are exact twins of training rows"
    """what is said of `test_twins`"""

    def part(self, split: int) -> RawBatch:
        """The rows of one split."""
        return self.batch.take(self.assignment.rows(split))

    @property
    def calibration_rows(self) -> NDArray[np.intp]:
        """Positions of the rows that calibrate: exchangeable ones, so one of each group."""
        return one_of_each(self.assignment.rows(CALIBRATION), self.rows.group)

    @property
    def anomaly_odds(self) -> float:
        """Known anomalies of all rows for each row that is none."""
        share = self.rows.anomaly.mean()
        return float(share / (1 - share))

    @property
    def units(self) -> str:
        """What each of `calibration_rows` stands for."""
        return "groups of normal calibration rows" if self.group else "normal calibration rows"

    @property
    def test_table(self) -> pa.Table:
        """The rows of the test split as they came."""
        return self.table.take(pa.array(self.assignment.rows(TEST)))

    @property
    def rules(self) -> dict[str, Any]:
        """By what rules a later model must read its input to be judged on these test rows."""
        return {}

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

    def test_twins(self, encoding: Encoding) -> NDArray[np.bool_]:
        """Test rows (N,) that are equal, as encoded, to a row that trains."""
        train, test = (encoding.encode(self.part(split)) for split in (TRAIN, TEST))
        return twins(test, train)

    def without(self, frozen: pa.Table) -> Dataset:
        """The same data, but no row of ``frozen`` trains, validates or calibrates.

        Rows are the same where their ids are, or, without an id, all that the model reads. Twins
        of the data's own test split stay what they were: counted and told.
        """
        return self.excluding(self._known(frozen) & ~self._known(self.test_table))

    def excluding(self, known: NDArray[np.bool_]) -> Self:
        """Without these rows (N,) of a frozen test split."""
        assignment = self.assignment.without(known, "in the frozen test split")
        return replace(self, assignment=assignment, origin=self.origin or self.digest)

    def _known(self, frozen: pa.Table) -> NDArray[np.bool_]:
        if self.id and self.id in frozen.column_names:
            ids, theirs = (_texts(table.column(self.id)) for table in (self.table, frozen))
            return np.asarray(pc.is_in(ids, value_set=theirs.drop_null()).to_numpy(False), bool)
        return rows_in(self.batch, self.schema.from_arrow(frozen))


def load_dataset(data: TabularData | ImageData) -> Dataset:
    """Read and split whatever the configuration names.

    Raises:
        DataError: see `load_table` and `images.load_images`.
    """
    if isinstance(data, TabularData):
        return load_table(data)
    from pipelines.images import load_images

    return load_images(data)


def load_table(data: TabularData) -> Dataset:
    """Read, split, infer and check. Types are inferred from the training rows alone.

    Raises:
        DataError: unreadable input, contradicting columns or an empty split.
    """
    table = read_table(find_files(data.paths))
    if not len(table):
        raise DataError(f"no rows in {listed(data.paths)}; the header alone cannot train a model")
    check_present(table, data)
    rows = _rows(table, data)
    planned = assign(rows, data.splits)
    inferred = infer_schema(table.take(pa.array(planned.rows(TRAIN))), data)
    batch = inferred.schema.from_arrow(table)
    return Dataset(
        table=table,
        schema=inferred.schema,
        batch=batch,
        rows=rows,
        assignment=only_fit(planned, batch),
        notes=(*inferred.notes, *unfit_note(batch), *unlabelled_note(rows, planned)),
        label=data.label,
        group=data.group,
        id=data.id,
        duplicate_ids=_duplicates(table, data.id),
    )


def anomaly_mask(labels: pa.ChunkedArray, positive: Any, column: str) -> NDArray[np.bool_]:
    """Which rows carry the label that means anomaly, (N,); it may be none."""
    levels = _levels(labels, column)
    meant = _names(positive)
    return np.isin(levels.codes, [c for c, name in enumerate(levels.names) if name in meant])


def check_positive(labels: pa.ChunkedArray, positive: Any, column: str) -> None:
    """Labels without a single anomaly are fine where they are 0 and 1; else a slip of the pen.

    Raises:
        DataError: there are no labels, or none of them is ``positive``, which is no 0 or 1.
    """
    names = set(_levels(labels, column).names)
    meant = _names(positive)
    if not names:
        raise DataError(f"column '{column}' has no label in any row; leave it out", column=column)
    if not names & meant and not names | meant <= set(BOOLEAN):
        raise DataError(
            f"column '{column}' never has the value {level_name(positive)!r} that data.positive "
            f"names (quote words such as 'yes' in YAML); found {listed(sorted(names))}",
            column=column,
        )


def _names(positive: Any) -> set[str]:
    """A label value and its boolean twin."""
    wanted = level_name(positive) or ""
    return {wanted, BOOLEAN.get(wanted, wanted)}


def unlabelled_mask(labels: pa.ChunkedArray, column: str) -> NDArray[np.bool_]:
    """Which rows carry no label at all, (N,)."""
    return _levels(labels, column).codes < 0


def rows_in(batch: RawBatch, others: RawBatch) -> NDArray[np.bool_]:
    """Which rows (N,) of a batch are equal, in every column, to a row of another."""
    pairs = [_comparable(values, others.values[name]) for name, values in batch.values.items()]
    mine, theirs = zip(*pairs, strict=True)
    return twins(np.column_stack(mine), np.column_stack(theirs))


def _comparable(mine: Values, theirs: Values) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two columns as numbers that are equal where the cells are."""
    if isinstance(mine, Levels) and isinstance(theirs, Levels):
        index = {level: code for code, level in enumerate(mine.names)}
        return mine.codes.astype(float), theirs.recode(index, unseen=-2).astype(float)
    return np.asarray(mine), np.asarray(theirs)


def _rows(table: pa.Table, data: TabularData) -> Rows:
    anomaly = unlabelled = np.zeros(len(table), bool)
    if data.label:
        labels = table.column(data.label)
        check_positive(labels, data.positive, data.label)
        anomaly = anomaly_mask(labels, data.positive, data.label)
        unlabelled = unlabelled_mask(labels, data.label)
    return Rows(anomaly, unlabelled, _times(table, data.time), group_codes(table, data.group))


def only_fit(planned: Assignment, batch: RawBatch) -> Assignment:
    """Without the rows that cannot be read.

    Raises:
        DataError: that leaves a split empty.
    """
    try:
        return planned.without(~batch.usable, "cells that do not fit")
    except DataError as error:
        raise DataError("; ".join((str(error), *unfit_note(batch)))) from None


def _texts(ids: pa.ChunkedArray) -> pa.Array:
    return plain(ids).cast(pa.string())


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


def group_codes(table: pa.Table, name: str | None) -> NDArray[np.int32] | None:
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


def unfit_note(batch: RawBatch) -> tuple[str, ...]:
    """How many rows cannot be read, and one of them."""
    if not batch.problems:
        return ()
    count = int((~batch.usable).sum())
    return (f"{count} rows left out, their cells do not fit, such as {batch.problems[0]}",)


def unlabelled_note(rows: Rows, assignment: Assignment) -> tuple[str, ...]:
    """How many rows of unknown label are taken for normal."""
    used = rows.unlabelled & (assignment.codes != UNUSED)
    if not used.any():
        return ()
    return (f"{int(used.sum())} rows without a label train and calibrate as if they were normal",)


def _hash_into(total: Any, values: Any) -> None:
    if hasattr(values, "codes"):
        total.update("\0".join(values.names).encode())
        values = values.codes
    total.update(np.ascontiguousarray(values).tobytes())
