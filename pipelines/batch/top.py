"""Write the rows with the highest scores to files for those who review them, with reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly_vae.data.converters import Levels
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.detector import Detector, Explanation
from anomaly_vae.scoring.wording import Wording
from pipelines import console
from pipelines.batch import Format
from pipelines.batch.common import Explain, max_contributions
from pipelines.batch.fdr import with_flags
from pipelines.batch.result.folder import TOP, TOP_CSV, Record, ResultFolder
from pipelines.batch.result.layout import CsvFile, Layout
from pipelines.batch.result.ranking import DAY, FEATURES, Ranking

REASONS = 3
"""Number of reasons for each row, unless ``--explain`` gives another one."""
EXPLAINED_ROWS = 1_024
"""Number of rows that are explained and written at a time."""
CSV_ROWS = 65_536
"""Number of rows of a Parquet file that are written as CSV at a time."""
RANK, REASONS_COLUMN = "rank", "reasons"
TOP_COLUMNS = (RANK, DAY, REASONS_COLUMN)
"""Columns that only the highest rows have."""

ExplainRows = Callable[[pa.Table], Sequence[Explanation | None]]
"""Function that explains rows by their `FEATURES`; None for a row that can no longer be read."""


@dataclass(frozen=True)
class TopPass:
    """A last pass that ranks the highest rows of all parts.

    Each part keeps those of its own rows that may be among them. Memory therefore depends on the
    number of days and of rows a day, and not on the size of the input.
    """

    ranking: Ranking
    explain: ExplainRows
    wording: Wording
    most: Explain = None
    """Number of reasons for each row."""
    format: Format = Format.PARQUET
    zone: str | None = None
    """Time zone of the days; None for UTC."""

    @classmethod
    def of_layout(
        cls,
        layout: Layout,
        explain: ExplainRows,
        wording: Wording,
        most: Explain = None,
        zone: str | None = None,
    ) -> TopPass | None:
        """Return the pass for a result; None if no rows are ranked in it."""
        if layout.ranking is None:
            return None
        return cls(layout.ranking, explain, wording, most, layout.format, zone)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files."""
        return (TOP, TOP_CSV) if self.format == Format.CSV else (TOP,)

    def run(
        self, folder: ResultFolder, records: Sequence[Record], alpha: float | None
    ) -> dict[str, Any]:
        """Write the highest rows; return entries of the summary.

        Args:
            folder: the folder of the result.
            records: the records of all parts.
            alpha: the p-value up to which rows are flagged; None if they have their flags.
        """
        table = self._highest(folder, records)
        undated = table[DAY].null_count if self.ranking.per_day and len(table) else 0
        if undated:
            console.info(
                f"{undated:,} of the highest rows have no time that can be read; they are ranked "
                "as a day of their own, with null as their day"
            )
        if len(table):
            table = table.add_column(0, RANK, pa.array(self.ranking.ranks(table), pa.int32()))
        self._write(folder, table, alpha)
        return {"top": self._entry(table, undated)}

    def _entry(self, table: pa.Table, undated: int) -> dict[str, Any]:
        by_day: dict[str, Any] = {}
        if self.ranking.per_day:
            by_day = {"per": "day", "timezone": self.zone or "UTC"}
        if by_day and len(table):
            by_day |= {"days": len(table[DAY].drop_null().unique()), "rows_without_time": undated}
        entry = {"n": self.ranking.n, **by_day, "by": self.ranking.by}
        return {**entry, "rows": len(table), "files": list(self.files)}

    def _highest(self, folder: ResultFolder, records: Sequence[Record]) -> pa.Table:
        chosen: list[pa.Table] = []
        for record in records:
            if record.top:
                with folder.open(record.top) as source:
                    chosen.append(pq.ParquetFile(source).read(use_threads=False))
                chosen = [self.ranking.highest(pa.concat_tables(chosen))]
        return chosen[0] if chosen else pa.table({RANK: pa.array([], pa.int32())})

    def _write(self, folder: ResultFolder, table: pa.Table, alpha: float | None) -> None:
        slices = range(0, len(table), EXPLAINED_ROWS)
        with folder.create(TOP) as path:
            shown = self._shown(table.slice(0, 0), alpha)
            with pq.ParquetWriter(path, shown.schema, compression="zstd") as writer:
                for start in slices:
                    rows = self._shown(table.slice(start, EXPLAINED_ROWS), alpha)
                    writer.write_table(rows)
        if self.format == Format.CSV:
            parquet_as_csv(folder, TOP, TOP_CSV)

    def _shown(self, rows: pa.Table, alpha: float | None) -> pa.Table:
        """Return rows with their flags and reasons, and without what explains them."""
        explained = self.explain(rows) if len(rows) else []
        reasons = [self._reasons(explanation) for explanation in explained]
        if alpha is not None and len(rows):
            rows = with_flags(rows, alpha)
        names = [name for name in (RANK, DAY, *rows.column_names) if name in rows.column_names]
        shown = rows.select([name for name in dict.fromkeys(names) if name != FEATURES])
        return shown.append_column(REASONS_COLUMN, pa.array(reasons, pa.string()))

    def _reasons(self, explanation: Explanation | None) -> str | None:
        if explanation is None:
            return None
        most = REASONS if self.most is None else max_contributions(self.most)
        return "; ".join(self.wording.reasons(explanation, most)) or "no region stands out"


def parquet_as_csv(folder: ResultFolder, source: str, target: str) -> None:
    """Write the rows of a Parquet file to a CSV file beside it."""
    with folder.open(source) as content, folder.create(target) as path:
        file = pq.ParquetFile(content)
        writer = CsvFile(path, file.schema_arrow)
        for batch in file.iter_batches(CSV_ROWS, use_threads=False):
            writer.write_table(pa.Table.from_batches([batch]))
        writer.close()


# ---------------------------------------------------------------- what explains the rows of tables


def features(batch: RawBatch) -> pa.Array:
    """Return rows (N,) of a table in a form that can be stored, without loss."""
    arrays = [_stored(values) for values in batch.values.values()]
    return pa.StructArray.from_arrays(arrays, list(batch.values))


def _stored(values: Any) -> pa.Array:
    if not isinstance(values, Levels):
        return pa.array(values, pa.float64())
    codes = pa.array(values.codes, mask=values.codes < 0)
    return pa.array(values.names, pa.string()).take(codes)


def batch_of(stored: pa.ChunkedArray) -> RawBatch:
    """Return the rows (N,) that `features` has stored."""
    rows = stored.combine_chunks()
    names = [field.name for field in rows.type]
    values = {name: _restored(rows.field(i)) for i, name in enumerate(names)}
    return RawBatch(values, len(rows))


def _restored(column: pa.Array) -> Any:
    if not pa.types.is_string(column.type):
        return column.to_numpy(zero_copy_only=False)
    encoded = column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy().astype(np.int32)
    return Levels(codes, tuple(encoded.dictionary.to_pylist()))


def explain_tables(detector: Detector) -> ExplainRows:
    """Return a function that explains rows of tables."""
    return lambda rows: detector.detect_and_explain(batch_of(rows[FEATURES]), None)[1]
