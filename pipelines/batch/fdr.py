"""Flag the rows of a whole batch with control of the false discovery rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anomaly_vae.calibration.conformal import Calibration, conformal_threshold, discovery_level
from anomaly_vae.errors import CalibrationError
from pipelines.batch.common import EXPLANATION_COLUMNS, ExplainRows
from pipelines.batch.results import Record, ResultFolder, parquet_writer, record_name

Thresholds = dict[str | None, float | None]
"""Threshold by group."""


def check_controllable(calibration: Calibration, fdr: float | None) -> None:
    """Check that a model's p-values allow control of the false discovery rate, if one is given.

    Raises:
        CalibrationError: weighted p-values need not be positively dependent (Jin & Candès 2023).
    """
    if fdr is not None and calibration.weights is not None:
        raise CalibrationError(
            "--fdr needs p-values that are positively dependent, and those of a model calibrated "
            "with calibration.density_ratio need not be; leave out --fdr, and the threshold keeps "
            "alpha"
        )


@dataclass(frozen=True)
class FdrPass:
    """A second pass that flags all rows together by Benjamini & Hochberg (1995).

    The flags depend on the p-values of the whole batch. Parts are therefore held until the last
    one is scored, and then written once more, with their flags. The p-values are counted anew from
    the finished parts. There are no more distinct ones than calibration scores, so that counting
    them takes little memory.
    """

    calibration: Calibration
    fdr: float
    explained: ExplainRows = ExplainRows.FLAGGED
    """The rows that keep their explanation."""

    def run(
        self, folder: ResultFolder, records: Sequence[Record]
    ) -> tuple[list[Record], dict[str, Any]]:
        """Write the parts with their flags; return their records and entries of the summary.

        The entries are the batch's alpha, threshold and flag count. The threshold is None if no
        row is flagged. Groups have a threshold each, which is None if the group's calibration
        sample is too small for a p-value of at most alpha.
        """
        counts = _p_value_counts(folder, records)
        p_values = np.array(sorted(counts))
        rows = np.array([counts[p] for p in p_values.tolist()], np.int64)
        alpha = discovery_level(p_values, rows, self.fdr) if len(rows) else 0.0
        thresholds = self._thresholds(alpha)
        records = [self._finished(folder, record, alpha, thresholds) for record in records]
        flagged = int(rows[p_values <= alpha].sum())
        entries = {"fdr": self.fdr, "alpha": alpha, "threshold": thresholds.pop(None)}
        groups = {"group_thresholds": thresholds} if self.calibration.groups else {}
        return records, {**entries, "flagged": flagged, **groups}

    def _finished(
        self, folder: ResultFolder, record: Record, alpha: float, thresholds: Thresholds
    ) -> Record:
        """Write a part with its flags, unless it is written already."""
        if not record.held:
            return record
        name = record.part_name
        with folder.create(name) as path, folder.open(record.held) as source:
            held = pq.ParquetFile(source)
            with parquet_writer(path, held.schema_arrow) as writer:
                for group in range(held.num_row_groups):
                    writer.write_table(self._flagged(held.read_row_group(group), alpha, thresholds))
        digests = {n: d for n, d in record.digests.items() if n != record.held}
        digests[name] = folder.digest(name) or ""
        done = replace(record, part=name, held=None, digests=digests)
        folder.write(record_name(record.unit, record.number), done.to_bytes())
        folder.remove(record.held)
        return done

    def _flagged(self, table: pa.Table, alpha: float, thresholds: Thresholds) -> pa.Table:
        """Return rows with their flags and, with groups, the threshold of each row."""
        flags = pa.array(table["p_value"].to_numpy() <= alpha)
        flagged = _replaced(table, "is_anomaly", flags)
        if self.explained == ExplainRows.FLAGGED:
            for name in {*EXPLANATION_COLUMNS} & {*table.column_names}:
                flagged = _replaced(flagged, name, pc.if_else(flags, table[name], None))
        if self.calibration.groups:
            row_thresholds = [thresholds[name] for name in table["group"].to_pylist()]
            flagged = _replaced(flagged, "threshold", pa.array(row_thresholds, pa.float64()))
        return flagged

    def _thresholds(self, alpha: float) -> Thresholds:
        """Return the threshold of each group at this alpha; the key None is for all other rows."""
        groups = self.calibration.groups.by_level if self.calibration.groups else {}
        thresholds: Thresholds = {None: _threshold(self.calibration, alpha)}
        return thresholds | {name: _threshold(group, alpha) for name, group in groups.items()}


def _p_value_counts(folder: ResultFolder, records: Sequence[Record]) -> Counter[float]:
    """Count the p-values of all parts."""
    counts: Counter[float] = Counter()
    for name in filter(None, (record.rows for record in records)):
        with folder.open(name) as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(columns=["p_value"], use_threads=False):
                values, rows = np.unique(batch.column(0).to_numpy(), return_counts=True)
                counts.update(dict(zip(values.tolist(), rows.tolist(), strict=True)))
    return counts


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _threshold(calibration: Calibration, alpha: float) -> float | None:
    """Return the score above which p-values are at most alpha; None if there is no such score."""
    is_reachable = alpha >= 1 / (len(calibration.scores) + 1)
    return conformal_threshold(calibration.scores, alpha) if is_reachable else None
