"""Score labelled rows with a detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.arrow import levels_from_arrow, numbers_from_arrow
from anomaly_vae.data.converters import Levels, as_levels
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.spans import young_labels
from anomaly_vae.data.splitting import thin_by_ratio
from anomaly_vae.data.times import Period, parse_time
from anomaly_vae.data.type_inference import read_times
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation.label_maturity import LabelMaturity
from anomaly_vae.evaluation.metrics import DEFAULT_TOP, Evaluation, Slice, evaluate, time_slices
from anomaly_vae.messages import listed
from anomaly_vae.scoring.detector import Detections, Detector
from pipelines import console
from pipelines.datasets.labels import group_codes, label_masks

Mask = NDArray[np.bool_]
MAX_SHOWN_LABELS = 5
"""Number of label values that a message lists when none of them means anomaly."""


@dataclass(frozen=True, eq=False)
class LabelAges:
    """The age from which labels are final, such as ``7d``, and a mask (N,) of younger rows."""

    delay: str
    young: Mask


@dataclass(frozen=True, eq=False)
class Labelled:
    """A table of N rows with their labels, groups and times."""

    table: pa.Table
    anomaly: Mask
    unlabelled: Mask
    group: NDArray[np.int32] | None = None
    seconds: NDArray[np.float64] | None = None
    batch: RawBatch | None = None
    """Images as the model reads them; None for a table, which contains its rows."""
    typical: Mask | None = None
    """Mask (N,) of the rows that represent traffic by their density ratio; None if all do."""
    files: tuple[Path, ...] = ()
    """File of each row (N,) for images; empty for tables."""
    ages: LabelAges | None = None
    """Which labels are not final yet; None if all are."""

    @classmethod
    def of(
        cls,
        table: pa.Table,
        policy: Mapping[str, Any],
        batch: RawBatch | None = None,
        files: tuple[Path, ...] = (),
    ) -> Labelled:
        """Read labels, groups, times and density ratios from the columns that ``policy`` names.

        Without a label column every row counts as normal. If no row of a label column is an
        anomaly, a message is printed.

        Args:
            table: N rows.
            policy: the column names ``label``, ``group``, ``time`` and ``density_ratio``, all
                optional, ``time_format``, the format of times if they need one, ``positive``, the
                label that means anomaly, ``label_delay``, the age from which labels are final, and
                ``newest``, the time from which ages are counted, if not that of the newest row.
            batch: see `Labelled.batch`.
            files: see `Labelled.files`.

        Raises:
            DataError: the table has no such label column.
        """
        anomaly, unlabelled = _masks(table, policy.get("label"), policy.get("positive"))
        group, time = policy.get("group"), policy.get("time")
        seconds = read_times(table.column(time), policy.get("time_format")) if time else None
        typical = represents_traffic(table, policy.get("density_ratio"))
        group = group_codes(table, group)
        ages = label_ages(seconds, policy.get("label_delay"), policy.get("newest"))
        return cls(table, anomaly, unlabelled, group, seconds, batch, typical, files, ages)

    @property
    def final(self) -> Mask:
        """Mask (N,) of the rows whose labels are final if they have one."""
        return ~self.ages.young if self.ages else np.ones(len(self.table), bool)

    def units(self, rows: Mask) -> NDArray[np.int32] | None:
        """Return the exchangeable unit of each of these rows (N,); None if each row is one."""
        return None if self.group is None else self.group[rows]


@dataclass(frozen=True, eq=False)
class Judged:
    """A detector's decisions on labelled rows."""

    detector: Detector
    labelled: Labelled
    scored: Mask
    """Mask (N,) of the rows that the detector can score."""
    problem: str
    """Reason why the first of the other rows cannot be scored; empty if there are none."""
    detections: Detections
    """Decisions on the rows in `scored`."""
    batch: RawBatch | None = None
    """The rows as the model reads them; None if it cannot read the table."""

    @cached_property
    def score(self) -> NDArray[np.float64]:
        """Scores (N,), NaN for rows that cannot be scored."""
        score = np.full(len(self.scored), np.nan)
        score[self.scored] = self.detections.score
        return score

    @cached_property
    def known(self) -> Mask:
        """Mask (N,) of the rows that have a score and a final label and represent traffic."""
        known = self.scored & ~self.labelled.unlabelled & self.labelled.final
        return known if self.labelled.typical is None else known & self.labelled.typical

    @property
    def period(self) -> Period | None:
        """Period of the `known` rows; None if they have no time."""
        seconds = self.labelled.seconds
        return Period.of(None if seconds is None else seconds[self.known])

    @cached_property
    def labels(self) -> LabelMaturity | None:
        """How many labels are final; None without a delay of labels or without times."""
        labelled = self.labelled
        if labelled.ages is None or labelled.seconds is None:
            return None
        rows = self.scored & ~labelled.unlabelled
        return LabelMaturity.of(labelled.ages.delay, labelled.ages.young, rows, labelled.seconds)

    @cached_property
    def levels(self) -> dict[str, Levels]:
        """Levels (N,) of each categorical or binary column that the model reads."""
        if self.batch is None:
            return {}
        columns = self.detector.scorer.schema.columns
        names = [column.name for column in columns if column.spec.has_levels]
        return {name: as_levels(self.batch.values[name]) for name in names}

    def decisions(self, rows: Mask) -> Detections:
        """Return the decisions on these rows (N,), all of which can be scored."""
        return self.detections.part(rows[self.scored])

    def evaluate(
        self, rows: Mask | None = None, confidence: float = 0.95, top: int = DEFAULT_TOP
    ) -> Evaluation:
        """Evaluate the decisions on the `known` rows, or on those among ``rows`` (N,)."""
        known = self.known if rows is None else self.known & rows
        decisions, anomaly = self.decisions(known), self.labelled.anomaly[known]
        calibration, units = self.detector.calibration, self.labelled.units(known)
        figures = evaluate(decisions, anomaly, calibration, confidence, units, top)
        rejected, skipped = ~self.scored, self.scored & self.labelled.unlabelled
        return replace(figures, rejected=int(rejected.sum()), unlabelled=int(skipped.sum()))

    def drifted(self, confidence: float) -> list[Slice]:
        """Return the periods in which more normal rows are flagged than chance explains."""
        labelled, known = self.labelled, self.known
        if labelled.seconds is None:
            return []
        slices = time_slices(
            self.decisions(known).is_anomaly,
            labelled.anomaly[known],
            labelled.seconds[known],
            self.detector.calibration,
            confidence,
            labelled.units(known),
        )
        return [period for period in slices if period.drifted]


def label_ages(
    seconds: NDArray[np.float64] | None, delay: str | None, newest: str | None = None
) -> LabelAges | None:
    """Return which labels are not final yet; None if all are, or if rows have no times.

    Args:
        seconds: (N,) times of the rows.
        delay: the age from which labels are final.
        newest: the time from which ages are counted; None for that of the newest row.
    """
    if seconds is None or delay is None:
        return None
    return LabelAges(delay, young_labels(seconds, delay, parse_time(newest) if newest else None))


def represents_traffic(table: pa.Table, ratio: str | None) -> Mask | None:
    """Sample rows (N,) so that they are as dense as in traffic; None if there is no ratio column.

    Args:
        table: N rows.
        ratio: the column with the density of traffic relative to the table's.
    """
    if ratio is None or ratio not in table.column_names:
        return None
    return thin_by_ratio(numbers_from_arrow(table.column(ratio))[0])


def judge(detector: Detector, labelled: Labelled) -> Judged:
    """Score every row that can be scored; none can if the table lacks the model's columns."""
    batch, problem = _read(detector, labelled)
    if batch is None:
        nothing = detector.detect(detector.scorer.schema.from_records([]))
        none = np.zeros(len(labelled.table), bool)
        return Judged(detector, labelled, none, problem, nothing)
    detections = detector.detect(batch.take(batch.usable))
    return Judged(detector, labelled, batch.usable, problem, detections, batch)


def _read(detector: Detector, labelled: Labelled) -> tuple[RawBatch | None, str]:
    """Return the rows as the model reads them, None if it cannot, and a problem with them."""
    try:
        batch = labelled.batch or detector.scorer.schema.from_arrow(labelled.table)
    except DataError as error:
        return None, str(error)
    return batch, str(batch.problems[0]) if batch.problems else ""


def _masks(table: pa.Table, label: str | None, positive: Any) -> tuple[Mask, Mask]:
    """Return masks of anomalies and of unlabelled rows; print a message without anomalies."""
    if label is None:
        return np.zeros(len(table), bool), np.zeros(len(table), bool)
    if label not in table.column_names:
        raise DataError(
            f"the label column '{label}' is not there; found {listed(table.column_names)}",
            column=label,
        )
    labels = table.column(label)
    anomaly, unlabelled = label_masks(labels, positive, label)
    if not anomaly.any():
        found = listed(levels_from_arrow(labels)[0].names, most=MAX_SHOWN_LABELS)
        where = f"none of {len(table):,} rows has {positive!r} in column '{label}'"
        console.info(f"{where}: no known anomaly; found {found}")
    return anomaly, unlabelled
