"""Flag the rows of a whole batch with control of the false discovery rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from anomaly_vae.calibration.conformal import Calibration, conformal_threshold, discovery_level
from anomaly_vae.errors import CalibrationError
from pipelines.batch.results import Sink

HELD_ROWS = ".held.arrow"
"""Name of the temporary file with the rows whose flags are not known yet."""


def open_sink(
    folder: Path, calibration: Calibration, fdr: float | None, key: pa.Field | None = None
) -> Sink:
    """Return a sink that keeps the flags, or one that sets them at the false discovery rate.

    ``key`` is the column of ids; see `Sink`.
    """
    return Sink(folder, key) if fdr is None else FdrSink(folder, calibration, fdr, key)


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


class FdrSink(Sink):
    """A sink that flags all rows together by Benjamini & Hochberg (1995), in constant memory.

    The flags depend on the p-values of the whole batch. Rows are therefore held in an Arrow file
    until the last one is scored, and then written to the parts once, with their flags. There are
    no more distinct p-values than calibration scores, so counting them takes little memory.
    """

    def __init__(
        self, folder: Path, calibration: Calibration, fdr: float, key: pa.Field | None = None
    ) -> None:
        super().__init__(folder, key)
        self._calibration, self._fdr = calibration, fdr
        self._counts: Counter[float] = Counter()
        self._held = folder / HELD_ROWS
        self._holding: pa.RecordBatchFileWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Hold back scored rows, and count their p-values."""
        values, rows = np.unique(table["p_value"].to_numpy(), return_counts=True)
        self._counts.update(dict(zip(values.tolist(), rows.tolist(), strict=True)))
        if self._holding is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._holding = pa.ipc.new_file(self._held, table.schema, options=options)
        self._holding.write_table(table)

    def finish(self) -> dict[str, Any]:
        """Write the rows with their flags; return the batch's alpha, threshold and flag count.

        The threshold is None if no row is flagged. Groups have a threshold each, which is None if
        the group's calibration sample is too small for a p-value of at most alpha.
        """
        p_values = np.array(sorted(self._counts))
        rows = np.array([self._counts[p] for p in p_values.tolist()], np.int64)
        alpha = discovery_level(p_values, rows, self._fdr) if len(rows) else 0.0
        thresholds = self._thresholds(alpha)
        self._release(alpha, thresholds)
        super().finish()
        flagged = int(rows[p_values <= alpha].sum())
        entries = {"fdr": self._fdr, "alpha": alpha, "threshold": thresholds.pop(None)}
        groups = {"group_thresholds": thresholds} if self._calibration.groups else {}
        return {**entries, "flagged": flagged, **groups}

    def close(self) -> None:
        """Close every file and remove the held rows."""
        if self._holding is not None:
            self._holding.close()
        self._held.unlink(missing_ok=True)
        super().close()

    def _thresholds(self, alpha: float) -> dict[str | None, float | None]:
        """Return the threshold of each group at this alpha; the key None is for all other rows."""
        groups = self._calibration.groups.by_level if self._calibration.groups else {}
        thresholds: dict[str | None, float | None] = {None: _threshold(self._calibration, alpha)}
        return thresholds | {name: _threshold(group, alpha) for name, group in groups.items()}

    def _release(self, alpha: float, thresholds: dict[str | None, float | None]) -> None:
        """Write the held rows with their flags and, with groups, the threshold of each row."""
        for table in self._held_tables():
            flags = pa.array(table["p_value"].to_numpy() <= alpha)
            flagged = _replaced(table, "is_anomaly", flags)
            if self._calibration.groups:
                row_thresholds = [thresholds[name] for name in table["group"].to_pylist()]
                column = pa.array(row_thresholds, pa.float64())
                flagged = _replaced(flagged, "threshold", column)
            super().write(flagged)

    def _held_tables(self) -> Iterator[pa.Table]:
        if self._holding is None:
            return
        self._holding.close()
        with pa.ipc.open_file(self._held) as file:
            for index in range(file.num_record_batches):
                yield pa.Table.from_batches([file.get_batch(index)])


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _threshold(calibration: Calibration, alpha: float) -> float | None:
    """Return the score above which p-values are at most alpha; None if there is no such score."""
    is_reachable = alpha >= 1 / (len(calibration.scores) + 1)
    return conformal_threshold(calibration.scores, alpha) if is_reachable else None
