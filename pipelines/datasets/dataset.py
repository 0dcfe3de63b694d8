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

from anomaly_vae.data.arrow import normalise_array
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.schema import RawBatch, Values
from anomaly_vae.data.splitting import (
    CALIBRATION,
    TEST,
    TRAIN,
    UNUSED,
    Assignment,
    Rows,
    contained_in,
    one_row_per_group,
)
from anomaly_vae.errors import DataError
from anomaly_vae.scoring.modality import Encoding, Schema

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
        return one_row_per_group(self.assignment.rows(CALIBRATION), self.rows.group)

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
        return contained_in(test, train)

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


def rows_in(batch: RawBatch, others: RawBatch) -> NDArray[np.bool_]:
    """Which rows (N,) of a batch are equal, in every column, to a row of another."""
    pairs = [_comparable(values, others.values[name]) for name, values in batch.values.items()]
    mine, theirs = zip(*pairs, strict=True)
    return contained_in(np.column_stack(mine), np.column_stack(theirs))


def _comparable(mine: Values, theirs: Values) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two columns as numbers that are equal where the cells are."""
    if isinstance(mine, Levels) and isinstance(theirs, Levels):
        index = {level: code for code, level in enumerate(mine.names)}
        return mine.codes.astype(float), theirs.recode(index, unseen=-2).astype(float)
    return np.asarray(mine), np.asarray(theirs)


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
    return normalise_array(ids).cast(pa.string())


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
