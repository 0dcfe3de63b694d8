"""Flags that control the false discovery rate of a whole batch, once all of it is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly_vae.calibration import Calibration, conformal_threshold, discovery_level
from pipelines.results import open_part


def control(
    folder: Path, parts: Sequence[str], calibration: Calibration, q: float
) -> dict[str, Any]:
    """Decide on all rows of these parts by Benjamini & Hochberg (1995), in constant memory.

    There are no more p-values than calibration scores. What is flagged are the rows up to one of
    them, which is the batch's own alpha; the summary says so, and its threshold on the score (null
    where none is flagged).
    """
    counts = _counts(folder / name for name in parts)
    p_values = np.array(sorted(counts))
    rows = np.array([counts[p] for p in p_values.tolist()], np.int64)
    level = discovery_level(p_values, rows, q) if len(rows) else 0.0
    for name in parts:
        _decide(folder / name, level)
    threshold = conformal_threshold(calibration.scores, level) if level else None
    flagged = int(rows[p_values <= level].sum())
    return {"fdr": q, "alpha": level, "threshold": threshold, "flagged": flagged}


def _counts(paths: Iterable[Path]) -> Counter[float]:
    """How many rows have each p-value."""
    counts: Counter[float] = Counter()
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["p_value"]):
                values, rows = np.unique(batch.column(0).to_numpy(), return_counts=True)
                counts.update(dict(zip(values.tolist(), rows.tolist(), strict=True)))
    return counts


def _decide(path: Path, level: float) -> None:
    """The same part with other flags, row group by row group."""
    redone = path.with_suffix(".redone")
    with pq.ParquetFile(path) as old, open_part(redone, old.schema_arrow) as new:
        column = old.schema_arrow.get_field_index("is_anomaly")
        for group in range(old.num_row_groups):
            table = old.read_row_group(group)
            flags = pa.array(table["p_value"].to_numpy() <= level)
            new.write_table(table.set_column(column, "is_anomaly", flags))
    redone.replace(path)
