"""Flag the rows of a whole batch with control of the false discovery rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anomaly_vae.calibration.conformal import Calibration, conformal_threshold, discovery_level
from anomaly_vae.errors import CalibrationError
from pipelines.batch import ExplainedRows
from pipelines.batch.common import EXPLANATION_COLUMNS
from pipelines.batch.result.folder import (
    RUN,
    PartFiles,
    Record,
    ResultFolder,
    record_name,
    write_parquet,
)
from pipelines.batch.result.layout import PLAIN, Layout

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
    one is scored, and then written once more, with their flags. The p-values of each part are
    counted and kept beside it, because the part itself may contain only flagged rows. There are no
    more distinct ones than calibration scores, so that counting them takes little memory.
    """

    calibration: Calibration
    fdr: float
    explained: ExplainedRows = ExplainedRows.FLAGGED
    """The rows that keep their explanation."""
    layout: Layout = PLAIN
    """The files of the parts."""

    @classmethod
    def of(
        cls,
        calibration: Calibration,
        fdr: float | None,
        explained: ExplainedRows,
        layout: Layout,
    ) -> FdrPass | None:
        """Return the pass for a result; None if the threshold flags its rows."""
        return None if fdr is None else cls(calibration, fdr, explained, layout)

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
        counts = Counter[float]()
        files = PartFiles(folder, record.stem, self.layout)
        try:
            for table in _held_rows(folder, record.held):
                counts.update(_distinct(table["p_value"]))
                files.write(self._flagged(table, alpha, thresholds))
            parts = files.finish()
        finally:
            files.close()
        p_values = f"{RUN}/{record.stem}.p_values.parquet"
        write_parquet(folder, p_values, _counts_table(counts))
        digests = {n: d for n, d in record.digests.items() if n != record.held}
        digests |= {name: folder.digest(name) or "" for name in (*parts, p_values)}
        done = replace(record, parts=parts, held=None, p_values=p_values, digests=digests)
        folder.write(record_name(record.unit, record.number), done.to_bytes())
        folder.remove(record.held)
        return done

    def _flagged(self, table: pa.Table, alpha: float, thresholds: Thresholds) -> pa.Table:
        """Return rows with their flags and, with groups, the threshold of each row."""
        flagged = with_flags(table, alpha)
        flags = flagged["is_anomaly"]
        if self.explained == ExplainedRows.FLAGGED:
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


def with_flags(rows: pa.Table, alpha: float) -> pa.Table:
    """Return rows that are flagged if their p-value is at most alpha."""
    return _replaced(rows, "is_anomaly", pa.array(rows["p_value"].to_numpy() <= alpha))


def _p_value_counts(folder: ResultFolder, records: Sequence[Record]) -> Counter[float]:
    """Count the p-values of all parts."""
    counts: Counter[float] = Counter()
    for record in records:
        if record.p_values:
            with folder.open(record.p_values) as source:
                values, rows = (column.to_pylist() for column in pq.read_table(source).columns)
            counts.update(dict(zip(values, rows, strict=True)))
        elif record.held:
            for table in _held_rows(folder, record.held, ["p_value"]):
                counts.update(_distinct(table["p_value"]))
    return counts


def _held_rows(
    folder: ResultFolder, name: str, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of a held part, one row group at a time."""
    with folder.open(name) as source, pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns, use_threads=False)


def _distinct(p_values: pa.ChunkedArray) -> dict[float, int]:
    """Return how often each p-value occurs."""
    values, rows = np.unique(p_values.to_numpy(), return_counts=True)
    return dict(zip(values.tolist(), rows.tolist(), strict=True))


def _counts_table(counts: Counter[float]) -> pa.Table:
    ordered = sorted(counts)
    rows = pa.array([counts[p] for p in ordered], pa.int64())
    return pa.table({"p_value": pa.array(ordered, pa.float64()), "rows": rows})


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _threshold(calibration: Calibration, alpha: float) -> float | None:
    """Return the score above which p-values are at most alpha; None if there is no such score."""
    is_reachable = alpha >= 1 / (len(calibration.scores) + 1)
    return conformal_threshold(calibration.scores, alpha) if is_reachable else None
