"""Describe which files a result consists of, by the options of the command."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anomaly_vae.errors import DataError
from pipelines.batch import Format
from pipelines.batch.columns import check_columns
from pipelines.batch.result.layout import Layout
from pipelines.batch.result.ranking import FEATURES, Ranking
from pipelines.batch.top import TOP_COLUMNS


@dataclass(frozen=True)
class OutputOptions:
    """Options that decide which rows and columns are written, and how."""

    format: Format = Format.PARQUET
    only_flagged: bool = False
    """Whether parts have flagged rows only."""
    columns: tuple[str, ...] = ()
    """Columns of the input that are written beside the ids."""
    partition_by: str | None = None
    """Column of the input whose values name folders; None for no folders."""
    limit: int | None = None
    """Number of first rows, or of first image files, that are scored; None for all."""
    top: int | None = None
    """Number of highest rows to rank in a file of their own, a day or in total; None for none."""
    per_day: bool = False
    by: str | None = None
    """Column of which each value is ranked once a day, by its highest row; None for all rows."""

    @property
    def in_plan(self) -> dict[str, Any]:
        """The options by their names on the command line; None where they are not given."""
        return {
            "--format": None if self.format == Format.PARQUET else str(self.format),
            "--only-flagged": self.only_flagged or None,
            "--columns-out": list(self.columns) or None,
            "--partition-by": self.partition_by,
            "--limit": self.limit,
            "--top": self.top,
            "--per": "day" if self.per_day else None,
            "--by": self.by,
        }

    def carrying(self, names: Iterable[str], available: Collection[str]) -> OutputOptions:
        """Return the options with further columns of the input, of those that it has."""
        wanted = (name for name in names if name in available and name != self.partition_by)
        return replace(self, columns=tuple(dict.fromkeys((*self.columns, *wanted))))

    @property
    def part_columns(self) -> tuple[str, ...]:
        """Columns of the input in the parts or in the names of their folders."""
        also = (self.partition_by,) if self.partition_by else ()
        return tuple(dict.fromkeys((*self.columns, *also)))

    def top_columns(self, time: str | None = None) -> tuple[str, ...]:
        """Columns of the input in the file of the highest rows; ``time`` is that of their times."""
        if self.top is None:
            return ()
        first = (name for name in (time, self.by) if name)
        return tuple(dict.fromkeys((*first, *self.columns)))

    def check(
        self,
        available: Collection[str],
        reserved: Collection[str],
        id_: str | None,
        time: str | None = None,
    ) -> None:
        """Check that all columns exist, and that none has the name of a result column.

        Args:
            available: the columns of the input.
            reserved: the names of the result columns.
            id_: the column of ids, which every result has; None if there is none.
            time: the column of times, if the highest rows are ranked.

        Raises:
            DataError: a column is unknown, or has the name of a result column.
        """
        if self.top is not None:
            reserved = {*reserved, *TOP_COLUMNS, FEATURES}
            if {id_, time} & {*TOP_COLUMNS, FEATURES}:
                listed = ", ".join(TOP_COLUMNS)
                raise DataError(f"--top writes the columns {listed}; rename those of the input")
        given: dict[str, Sequence[str | None]] = {
            "--columns-out": self.columns,
            "--partition-by": [self.partition_by],
            "--by": [self.by],
        }
        for option, columns in given.items():
            check_columns(option, [n for n in columns if n], {*available}, {*reserved} - {id_})

    def layout(self, keys: Sequence[str]) -> Layout:
        """Return the files of the parts; ``keys`` are the columns that identify rows."""
        ranking = None
        if self.top is not None:
            ranking = Ranking(self.top, self.per_day, self.by, tuple(keys))
        return Layout(self.format, self.only_flagged, self.partition_by, ranking)


ALL_ROWS = OutputOptions()
