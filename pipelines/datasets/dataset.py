"""Define a data set that is split for training, with its columns, labels, times and groups."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.data.converters import Levels
from anomaly_vae.data.schema import RawBatch, Values
from anomaly_vae.data.spans import ResolvedSpans, iso_time, young_labels
from anomaly_vae.data.splitting import (
    CALIBRATION,
    NAMES,
    TEST,
    TRAIN,
    UNUSED,
    Assignment,
    Rows,
    contained_in,
    one_row_per_group,
)
from anomaly_vae.errors import DataError
from anomaly_vae.messages import counted
from anomaly_vae.scoring.modality import Encoding, Schema
from pipelines.datasets.verdicts import id_texts

GROUP = "group"
"""Name of the group column in an index of images."""
FIT_DIGEST = "fit_digest"
"""Manifest key: digest of the rows that are not in the test split, if labels arrive late."""
TRAINED_UNTIL = "trained_until"
"""Manifest key: time of the last row that trained the model or one of its start models."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """N input rows with their schema and split, for training and calibration."""

    table: pa.Table
    schema: Schema
    batch: RawBatch
    rows: Rows
    assignment: Assignment
    notes: tuple[str, ...]
    label: str | None = None
    """Column of the table that marks known anomalies."""
    group: str | None = None
    """Column of units, such as customers, whose rows must be in the same split."""
    id: str | None = None
    """Column with the id of each row."""
    time: str | None = None
    """Column with the time of each row."""
    time_format: str | None = None
    """Format of the time column, if its values need one."""
    spans: ResolvedSpans | None = None
    """Intervals that splits given as spans of time mean; None for other splits."""
    label_delay: str | None = None
    """Age from which labels are final, such as ``7d``; None if all are."""
    duplicate_ids: int = 0
    """Number of rows whose id an earlier row has."""
    windows: str | None = None
    """Digest of the definition of window features; None if there are none."""
    window_labels: Mapping[str, list[str]] = field(default_factory=dict)
    """Values that mean normal in each label column of windows, unless they are very many."""
    origin: str | None = None
    """Digest before rows were excluded; None if none were."""
    files: tuple[Path, ...] = ()
    """File of each row (N,) for images; empty for tables."""
    label_notes: tuple[str, ...] = ()
    """Notes on labels that arrived late."""
    in_frozen_test: NDArray[np.bool_] | None = None
    """Mask (N,) of the rows that are in the frozen test split; None if there is none."""
    excluded_test: str | None = None
    """SHA-256 of the frozen test split; None if there is none."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files in the folders that hold no image, by reason; empty for tables."""

    TWINS: ClassVar[str] = "are exact twins of training rows"
    """Text of messages about `test_twins`, after the number of test rows."""

    def part(self, split: int) -> RawBatch:
        """Return the rows of one split."""
        return self.batch.take(self.assignment.rows(split))

    @property
    def calibration_rows(self) -> NDArray[np.intp]:
        """Positions of the calibration rows, one per group, so that they are exchangeable."""
        return one_row_per_group(self.assignment.rows(CALIBRATION), self.rows.group)

    @property
    def known_rows(self) -> NDArray[np.intp]:
        """Positions of the labelled anomalies of the training period whose labels are final."""
        return self.mature(self.assignment.training_anomalies)

    @property
    def anomaly_odds(self) -> float:
        """Number of known anomalies divided by the number of other rows, over all splits."""
        share = self.rows.anomaly.mean()
        return float(share / (1 - share))

    @property
    def units(self) -> str:
        """Name of the calibration rows in messages, where each may represent a group of rows."""
        return "groups of normal calibration rows" if self.group else "normal calibration rows"

    @property
    def test_table(self) -> pa.Table:
        """Rows of the test split, with all columns of the input."""
        return self.table.take(pa.array(self.assignment.rows(TEST)))

    @property
    def read_options(self) -> dict[str, Any]:
        """Options with which the test rows were read, and which later models must use as well."""
        return {"time_format": self.time_format} if self.time_format else {}

    @cached_property
    def young(self) -> NDArray[np.bool_]:
        """Mask (N,) of the rows that are younger than the delay of labels."""
        if self.label_delay is None or self.rows.time is None:
            return np.zeros(len(self.rows), bool)
        return young_labels(self.rows.time, self.label_delay)

    @property
    def label_policy(self) -> dict[str, Any]:
        """The delay of labels and the time from which ages count; empty if all labels are final."""
        if self.label_delay is None or self.rows.time is None:
            return {}
        return {
            "label_delay": self.label_delay,
            "newest": iso_time(float(np.nanmax(self.rows.time))),
        }

    def mature(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return those of the rows at these positions whose labels are final."""
        return rows[~self.young[rows]]

    @cached_property
    def digest(self) -> str:
        """SHA-256 digest of the columns that the model reads, the labels and the split."""
        total = hashlib.sha256(self.assignment.digest.encode())
        for name in self.schema.names:
            total.update(name.encode())
            _hash_into(total, self.batch.values[name])
        total.update(self.rows.anomaly.tobytes())
        return total.hexdigest()

    @property
    def fit_digest(self) -> str:
        """SHA-256 digest of the columns that the model reads, and the other splits.

        Late labels of test rows do not change it.
        """
        codes = np.where(self.assignment.codes == TEST, UNUSED, self.assignment.codes)
        total = hashlib.sha256(codes.tobytes())
        for name in self.schema.names:
            total.update(name.encode())
            _hash_into(total, self.batch.values[name])
        return total.hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return the manifest's section about the data, which contains no path and no values."""
        late = {FIT_DIGEST: self.fit_digest} if self.label_notes else {}
        return {
            "digest": self.digest,
            "split_digest": self.assignment.digest,
            "rows": len(self.rows),
            "anomalies": int(self.rows.anomaly.sum()),
            "splits": self.assignment.counts,
            "unused": dict(self.assignment.unused),
            "duplicate_ids": self.duplicate_ids,
            **({"intervals": self.spans.to_json()} if self.spans else {}),
            **({"labels": self._label_summary()} if self.label_delay else {}),
            **({"windows": self._windows} if self.windows else {}),
            **late,
        }

    def _label_summary(self) -> dict[str, Any]:
        """Return the delay of labels, and the number of younger rows in each split."""
        counts = np.bincount(self.assignment.codes[self.young], minlength=len(NAMES))
        return {**self.label_policy, "young": dict(zip(NAMES, counts.tolist(), strict=True))}

    @property
    def _windows(self) -> dict[str, Any]:
        """Digest of the window features, values of their labels, and the format of their times."""
        assert self.windows is not None
        labels = {"labels": dict(self.window_labels)} if self.window_labels else {}
        return {"digest": self.windows, **labels, **self.read_options}

    def test_twins(self, encoding: Encoding) -> NDArray[np.bool_]:
        """Return a mask (N,) of the test rows that equal a training row once encoded."""
        train, test = (encoding.encode(self.part(split)) for split in (TRAIN, TEST))
        return contained_in(test, train)

    def without(self, frozen: pa.Table) -> Dataset:
        """Return the data set with rows of ``frozen`` excluded from training and calibration.

        Rows are the same if their ids are equal or, without ids, all columns that the model reads.
        Rows that equal a row of this data set's test split are kept, and reported as twins.
        """
        same = self._rows_of(frozen)
        rest = self.excluding(same & ~self._rows_of(self.test_table))
        return replace(rest, in_frozen_test=same)

    def excluding(self, in_frozen_test: NDArray[np.bool_]) -> Self:
        """Return the data set with the rows in a mask (N,) unused."""
        assignment = self.assignment.without(in_frozen_test, "in the frozen test split")
        return replace(self, assignment=assignment, origin=self.origin or self.digest)

    def _rows_of(self, frozen: pa.Table) -> NDArray[np.bool_]:
        """Return a mask (N,) of the rows that are in a frozen test split."""
        if self.id and self.id in frozen.column_names:
            ids, theirs = (id_texts(t.column(self.id)) for t in (self.table, frozen))
            return np.asarray(pc.is_in(ids, value_set=theirs.drop_null()).to_numpy(False), bool)
        return rows_in(self.batch, self.schema.from_arrow(frozen))


def rows_in(batch: RawBatch, others: RawBatch) -> NDArray[np.bool_]:
    """Return a mask (N,) of the rows of a batch that equal a row of another batch."""
    pairs = [_comparable(values, others.values[name]) for name, values in batch.values.items()]
    columns, other_columns = zip(*pairs, strict=True)
    return contained_in(np.column_stack(columns), np.column_stack(other_columns))


def _comparable(values: Values, others: Values) -> tuple[NDArray[Any], NDArray[Any]]:
    """Convert two columns into numbers that are equal if and only if the cells are equal."""
    if isinstance(values, Levels) and isinstance(others, Levels):
        index = {level: code for code, level in enumerate(values.names)}
        return values.codes.astype(float), others.recode(index, unseen=-2).astype(float)
    return np.asarray(values), np.asarray(others)


def without_unreadable(planned: Assignment, batch: RawBatch) -> Assignment:
    """Return the split without the rows that cannot be read.

    Raises:
        DataError: a split would be empty.
    """
    try:
        return planned.without(~batch.usable, "cells that do not fit")
    except DataError as error:
        raise DataError("; ".join((str(error), *unreadable_note(batch)))) from None


def unreadable_note(batch: RawBatch) -> tuple[str, ...]:
    """Return a note on the rows that cannot be read, with an example; empty if there are none."""
    if not batch.problems:
        return ()
    count = int((~batch.usable).sum())
    return (f"{count} rows left out, their cells do not fit, such as {batch.problems[0]}",)


def unlabelled_note(rows: Rows, assignment: Assignment) -> tuple[str, ...]:
    """Return a note on unlabelled rows that are used as normal; empty if there are none."""
    used = rows.unlabelled & (assignment.codes != UNUSED)
    if not used.any():
        return ()
    found = counted(int(used.sum()), "rows")
    return (f"{found} without a label among those that train and calibrate as normal rows",)


def _hash_into(total: Any, values: Any) -> None:
    if hasattr(values, "codes"):
        total.update("\0".join(values.names).encode())
        values = values.codes
    total.update(np.ascontiguousarray(values).tobytes())
