"""Encode a lone row, for which a request waits, without operations on arrays.

Operations on arrays of one element take a microsecond each, and several where other work has taken
the processor's caches in the meantime.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from anomaly_vae.data.encoding import (
    EXTREME,
    Binary,
    Categorical,
    Cyclic,
    Matrix,
    Numeric,
    TabularEncoding,
)


class LinearCell(NamedTuple):
    """Where a linear column is in a row and in its encoding, and how it is encoded."""

    source: int
    target: int
    shift: float
    scale: float
    tail: Numeric | None
    """The column, if it is heavy-tailed."""


class RowEncoder:
    """An encoder of single rows, with the same result as `TabularEncoding.encode`, bit for bit.

    Args:
        encoding: the encoding.
        names: column of each cell of a row.

    >>> from anomaly_vae.data.encoding import Numeric
    >>> column = Numeric(name="a", center=1.0, scale=2.0)
    >>> RowEncoder(TabularEncoding((column,)), ["b", "a"]).encode([7.0, 4.0]).tolist()
    [[1.5]]
    """

    def __init__(self, encoding: TabularEncoding, names: Sequence[str]) -> None:
        sources = {name: source for source, name in enumerate(names)}
        places = [
            (column, sources[column.name], start)
            for column, start in zip(encoding.columns, encoding.starts.tolist(), strict=True)
        ]
        self._width = encoding.layout.n_columns
        self._linear = [
            LinearCell(source, target, *column.moments, _heavy_tailed(column))
            for column, source, target in places
            if isinstance(column, Numeric | Binary)
        ]
        self._levels = [
            (column, source, target)
            for column, source, target in places
            if isinstance(column, Categorical)
        ]
        self._times = [
            (column, source, target)
            for column, source, target in places
            if isinstance(column, Cyclic)
        ]

    def encode(self, row: Sequence[Any]) -> Matrix:
        """Encode a row as (1, F) float32.

        Args:
            row: numbers, times in seconds since 1970 and names of levels; None where missing.
        """
        out = [0.0] * self._width
        for source, target, shift, scale, tail in self._linear:
            out[target] = _standardised(_on_scale(tail, row[source]), shift, scale)
        for column, source, target in self._levels:
            name = row[source]
            out[target] = math.nan if name is None else column.code(name)
        for cycle, source, target in self._times:
            point = cycle.encode(np.array([row[source]], np.float64))
            out[target : target + cycle.width] = point[0].tolist()
        return np.array([out], np.float32)


def _heavy_tailed(column: Numeric | Binary) -> Numeric | None:
    return column if isinstance(column, Numeric) and column.unit is not None else None


def _on_scale(tail: Numeric | None, value: float | None) -> float | None:
    """Return a value on the asinh scale of a heavy-tailed column."""
    if tail is None or value is None:
        return value
    return tail.linearised(np.array([value], np.float64)).item()


def _standardised(value: float | None, shift: float, scale: float) -> float:
    """Compute (v − shift) / scale, clipped to ±`EXTREME`; NaN where missing."""
    if value is None:
        return math.nan
    encoded = (value - shift) / scale
    return EXTREME if encoded > EXTREME else max(encoded, -EXTREME)
