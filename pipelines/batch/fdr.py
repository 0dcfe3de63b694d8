"""Flags that control the false discovery rate of a whole batch, once all of it is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly_vae.calibration.conformal import Calibration, conformal_threshold, discovery_level
from anomaly_vae.errors import CalibrationError
from pipelines.batch.results import open_part


def control(
    folder: Path, parts: Sequence[str], calibration: Calibration, q: float
) -> dict[str, Any]:
    """Decide on all rows of these parts by Benjamini & Hochberg (1995), in constant memory.

    There are no more p-values than calibration scores. What is flagged are the rows up to one of
    them, which is the batch's own alpha; the summary says so, and its threshold on the score (null
    where none is flagged). With groups each has its threshold; rows of those name it (null where
    so small a p-value is out of the group's reach).
    """
    counts = _counts(folder / name for name in parts)
    p_values = np.array(sorted(counts))
    rows = np.array([counts[p] for p in p_values.tolist()], np.int64)
    level = discovery_level(p_values, rows, q) if len(rows) else 0.0
    own = calibration.groups.own if calibration.groups else {}
    thresholds: dict[str | None, float | None] = {None: _threshold(calibration, level)}
    thresholds |= {name: _threshold(one, level) for name, one in own.items()}
    for name in parts:
        _decide(folder / name, level, thresholds if calibration.groups else {})
    flagged = int(rows[p_values <= level].sum())
    found = {"fdr": q, "alpha": level, "threshold": thresholds.pop(None), "flagged": flagged}
    return {**found, "group_thresholds": thresholds} if calibration.groups else found


def check_controllable(calibration: Calibration) -> None:
    """Whether the p-values of a batch allow for it.

    Raises:
        CalibrationError: weighted ones need not be positively dependent (Jin & Candès 2023).
    """
    if calibration.weights is not None:
        raise CalibrationError(
            "--fdr needs p-values that are positively dependent, and those of a model calibrated "
            "with calibration.density_ratio need not be; leave --fdr out: its threshold keeps alpha"
        )


def _threshold(calibration: Calibration, level: float) -> float | None:
    """The score above which p-values are up to this level; None where none is."""
    reached = level >= 1 / (len(calibration.scores) + 1)
    return conformal_threshold(calibration.scores, level) if reached else None


def _counts(paths: Iterable[Path]) -> Counter[float]:
    """How many rows have each p-value."""
    counts: Counter[float] = Counter()
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["p_value"]):
                values, rows = np.unique(batch.column(0).to_numpy(), return_counts=True)
                counts.update(dict(zip(values.tolist(), rows.tolist(), strict=True)))
    return counts


def _decide(path: Path, level: float, thresholds: Mapping[str | None, float | None]) -> None:
    """The same part with other flags, and thresholds by group, row group by row group."""
    redone = path.with_suffix(".redone")
    with pq.ParquetFile(path) as old, open_part(redone, old.schema_arrow) as new:
        column = old.schema_arrow.get_field_index("is_anomaly")
        for group in range(old.num_row_groups):
            table = old.read_row_group(group)
            flags = pa.array(table["p_value"].to_numpy() <= level)
            table = table.set_column(column, "is_anomaly", flags)
            if thresholds:
                own = [thresholds[name] for name in table["group"].to_pylist()]
                place = table.column_names.index("threshold")
                table = table.set_column(place, "threshold", pa.array(own, pa.float64()))
            new.write_table(table)
    redone.replace(path)
