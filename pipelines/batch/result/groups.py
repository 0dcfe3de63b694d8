"""Write the scores of groups of images: of patients, series or volumes, by their highest image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly_vae.calibration.conformal import Calibration
from pipelines.batch.result.counts import Counts, Highest
from pipelines.batch.result.folder import GROUPS, ResultFolder

SCHEMA = pa.schema(
    [
        ("group_by", pa.string()),
        ("group", pa.string()),
        ("images", pa.int64()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("is_anomaly", pa.bool_()),
        ("path", pa.string()),
        ("frame", pa.int32()),
    ]
)
"""Columns of the groups; ``path`` and ``frame`` are those of the highest image."""


@dataclass(frozen=True)
class GroupPass:
    """A last pass that decides on groups of images, by kind, with calibrations of their own."""

    calibrations: Mapping[str, Calibration]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files."""
        return (GROUPS,) if self.calibrations else ()

    def run(self, folder: ResultFolder, counts: Counts) -> dict[str, Any]:
        """Write one row for each group, highest scores first; return entries of the summary."""
        if not self.calibrations:
            return {}
        tables, entries = [SCHEMA.empty_table()], {}
        for kind, calibration in self.calibrations.items():
            table = _table(kind, counts.groups.get(kind, {}), calibration)
            tables.append(table)
            entries[kind] = {
                "scored": len(table),
                "flagged": sum(table["is_anomaly"].to_pylist()),
                "alpha": calibration.alpha,
                "threshold": calibration.threshold,
            }
        with folder.create(GROUPS) as path:
            pq.write_table(pa.concat_tables(tables), path, compression="zstd")
        return {"groups": entries}


NO_GROUPS = GroupPass({})
"""The pass of a model without thresholds for groups, such as one of tables."""


def _table(kind: str, groups: Mapping[str, Highest], calibration: Calibration) -> pa.Table:
    """Return the rows of the groups of one kind."""
    ordered = sorted(groups.items(), key=lambda item: (-item[1].score, item[0]))
    scores = np.array([one.score for _, one in ordered], np.float64)
    decided = zip(calibration.p_values(scores), calibration.flags(scores), strict=True)
    rows = [
        (kind, name, one.images, one.score, float(p_value), bool(flag), one.path, one.frame)
        for (name, one), (p_value, flag) in zip(ordered, decided, strict=True)
    ]
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def missing_kinds(counts: Counts, kinds: Mapping[str, Calibration]) -> Iterator[str]:
    """Yield a note on each kind of groups that the scored images do not name."""
    for kind in kinds:
        if counts.scored and not counts.groups.get(kind):
            yield (
                f"no image names its {kind}, by which the model has a threshold; score a manifest "
                f"with the column '{kind}'"
            )
