"""Choose the rows with the highest scores, each day or in total, each value of a column once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

DAY, FEATURES = "day", ".features"
"""Columns of rows to choose from: their day, and what is needed to explain them."""


@dataclass(frozen=True)
class Ranking:
    """A choice of rows, which may be made from parts of them first.

    The rows that are chosen from all rows are always among those that are chosen from each part.
    """

    n: int
    """Maximum number of rows of a day, or in total."""
    per_day: bool = False
    by: str | None = None
    """Column of which each value has one row a day, that with the highest score; rows without a
    value count each. None for all rows."""
    keys: tuple[str, ...] = field(default=())
    """Columns that decide between equal scores, in ascending order; then the input's order does."""

    def highest(self, table: pa.Table) -> pa.Table:
        """Return the chosen rows, by ascending day, the highest scores first.

        Args:
            table: rows in the order of the input, with their ``score`` and, per day, their `DAY`,
                null if it is not known.
        """
        table = table.take(self._order(table))
        day = _codes(table[DAY]) if self.per_day else np.zeros(len(table), np.int64)
        rows = self._first(day, table) if self.by else np.arange(len(table))
        return table.take(pa.array(rows[positions(day[rows]) < self.n]))

    def ranks(self, table: pa.Table) -> NDArray[np.int64]:
        """Return the rank (N,), from 1, of chosen rows on their day."""
        day = _codes(table[DAY]) if self.per_day else np.zeros(len(table), np.int64)
        return positions(day) + 1

    def _order(self, table: pa.Table) -> pa.Array:
        days = [(DAY, "ascending")] if self.per_day else []
        keys = [(name, "ascending") for name in self.keys]
        columns = {name: _sortable(table[name]) for name in (*dict(days), "score", *self.keys)}
        return pc.sort_indices(pa.table(columns), [*days, ("score", "descending"), *keys])

    def _first(self, day: NDArray[np.int64], table: pa.Table) -> NDArray[np.int64]:
        """Return the position of the first row of each value on each day, in order."""
        value = _codes(table[self.by])
        missing = table[self.by].is_null().to_numpy()
        value[missing] = value.max(initial=0) + 1 + np.arange(missing.sum())
        _, first = np.unique(day * (value.max(initial=0) + 1) + value, return_index=True)
        return np.sort(first)


def positions(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position (N,) of each row within its group; groups are in ascending order.

    >>> positions(np.array([0, 0, 0, 2, 2])).tolist()
    [0, 1, 2, 0, 1]
    """
    return np.arange(len(group)) - np.searchsorted(group, group)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return a code (N,) for each value, in the order of the first rows that have them."""
    codes = column.combine_chunks().dictionary_encode(null_encoding="encode").indices
    return np.asarray(codes.to_numpy(), np.int64).copy()


def _sortable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in a type that can be sorted."""
    return column.cast(pa.int64()) if pa.types.is_duration(column.type) else column
