"""A detector on labelled rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.arrow import levels_from_arrow, numbers_from_arrow, times_from_arrow
from anomaly_vae.data.converters import Levels, as_levels
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import thin_by_ratio
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation.metrics import TOP, Evaluation, Slice, evaluate, time_slices
from anomaly_vae.messages import listed
from anomaly_vae.scoring.detector import Detections, Detector
from pipelines import console
from pipelines.datasets.labels import anomaly_mask, group_codes, unlabelled_mask

Mask = NDArray[np.bool_]
MOST_VALUES = 5
"""Of a label, that are named where none of them is the one of anomalies."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A table and what is known of its N rows."""

    table: pa.Table
    anomaly: Mask
    unlabelled: Mask
    group: NDArray[np.int32] | None = None
    seconds: NDArray[np.float64] | None = None
    batch: RawBatch | None = None
    """what the model reads, where that is not in the table"""
    typical: Mask | None = None
    """rows that are as dense as in traffic, where the table tells; absent: all are"""
    files: tuple[Path, ...] = ()
    """(N,) what it was read from, where that is known"""

    @classmethod
    def of(
        cls,
        table: pa.Table,
        policy: Mapping[str, Any],
        batch: RawBatch | None = None,
        files: tuple[Path, ...] = (),
    ) -> Labelled:
        """``policy`` names the columns of label, group, time and density ratio.

        Without a label column every row counts as normal; that no row is an anomaly is told.

        Raises:
            DataError: no such label column.
        """
        anomaly, unlabelled = _labels(table, policy.get("label"), policy.get("positive"))
        group, time = policy.get("group"), policy.get("time")
        seconds = times_from_arrow(table.column(time))[0] if time else None
        typical = like_traffic(table, policy.get("density_ratio"))
        group = group_codes(table, group)
        return cls(table, anomaly, unlabelled, group, seconds, batch, typical, files)

    def units(self, rows: Mask) -> NDArray[np.int32] | None:
        """What is exchangeable, of these rows (N,); None: each row is."""
        return None if self.group is None else self.group[rows]


@dataclass(frozen=True, eq=False)
class Judged:
    """A detector's decisions on labelled rows."""

    detector: Detector
    truth: Labelled
    scored: Mask
    """rows (N,) that it can score"""
    problem: str
    """why it cannot score another"""
    found: Detections
    """on those that it can score"""
    batch: RawBatch | None = None
    """the rows as the model reads them, where it can"""

    @cached_property
    def score(self) -> NDArray[np.float64]:
        """(N,), NaN where it cannot score."""
        score = np.full(len(self.scored), np.nan)
        score[self.scored] = self.found.score
        return score

    @cached_property
    def known(self) -> Mask:
        """Rows (N,) with a score and a label, as dense as in traffic."""
        known = self.scored & ~self.truth.unlabelled
        return known if self.truth.typical is None else known & self.truth.typical

    @cached_property
    def levels(self) -> dict[str, Levels]:
        """(N,) of each column with levels that the model reads."""
        if self.batch is None:
            return {}
        columns = self.detector.scorer.schema.columns
        names = [column.name for column in columns if column.spec.has_levels]
        return {name: as_levels(self.batch.values[name]) for name in names}

    def decisions(self, rows: Mask) -> Detections:
        """On these rows (N,), which it can score."""
        return self.found.part(rows[self.scored])

    def evaluate(
        self, rows: Mask | None = None, confidence: float = 0.95, top: int = TOP
    ) -> Evaluation:
        """The figures on those of these rows (N,) that are known; absent: on all."""
        known = self.known if rows is None else self.known & rows
        decisions, anomaly = self.decisions(known), self.truth.anomaly[known]
        calibration, units = self.detector.calibration, self.truth.units(known)
        found = evaluate(decisions, anomaly, calibration, confidence, units, top)
        rejected, skipped = ~self.scored, self.scored & self.truth.unlabelled
        return replace(found, rejected=int(rejected.sum()), unlabelled=int(skipped.sum()))

    def drifted(self, confidence: float) -> list[Slice]:
        """The stretches of time that flag more normal rows than chance explains."""
        truth, known = self.truth, self.known
        if truth.seconds is None:
            return []
        slices = time_slices(
            self.decisions(known).is_anomaly,
            truth.anomaly[known],
            truth.seconds[known],
            self.detector.calibration,
            confidence,
            truth.units(known),
        )
        return [one for one in slices if one.drifted]


def like_traffic(table: pa.Table, ratio: str | None) -> Mask | None:
    """Rows (N,) that are as dense as in traffic by the column of their ratio; None: all are."""
    if ratio is None or ratio not in table.column_names:
        return None
    return thin_by_ratio(numbers_from_arrow(table.column(ratio))[0])


def judge(detector: Detector, truth: Labelled) -> Judged:
    """Score every row of a table that can be scored: none, where its columns do not fit."""
    batch, problem = _read(detector, truth)
    if batch is None:
        nothing = detector.detect(detector.scorer.schema.from_records([]))
        return Judged(detector, truth, np.zeros(len(truth.table), bool), problem, nothing)
    found = detector.detect(batch.take(batch.usable))
    return Judged(detector, truth, batch.usable, problem, found, batch)


def _read(detector: Detector, truth: Labelled) -> tuple[RawBatch | None, str]:
    """The rows as the model reads them, None where it cannot, and a problem with them."""
    try:
        batch = truth.batch or detector.scorer.schema.from_arrow(truth.table)
    except DataError as error:
        return None, str(error)
    return batch, str(batch.problems[0]) if batch.problems else ""


def _labels(table: pa.Table, label: str | None, positive: Any) -> tuple[Mask, Mask]:
    """Which rows are anomalies, and which have no label."""
    if label is None:
        return np.zeros(len(table), bool), np.zeros(len(table), bool)
    if label not in table.column_names:
        raise DataError(
            f"the label column '{label}' is not there; found {listed(table.column_names)}",
            column=label,
        )
    labels = table.column(label)
    anomaly, unlabelled = anomaly_mask(labels, positive, label), unlabelled_mask(labels, label)
    if not anomaly.any():
        found = listed(levels_from_arrow(labels)[0].names, most=MOST_VALUES)
        note = f"no row has {positive!r} in column '{label}': none is a known anomaly"
        console.say(f"{note}; found {found}")
    return anomaly, unlabelled
