"""Encode a lone row, for which a request waits, without operations on arrays.

Operations on arrays of one element take a microsecond each, and several where other work has taken
the processor's caches in the meantime.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
        linear = [
            (column, source, target)
            for column, source, target in places
            if isinstance(column, Numeric | Binary)
        ]
        self._sources = [source for _, source, _ in linear]
        self._targets = [target for *_, target in linear]
        self._shifts = [column.moments[0] for column, *_ in linear]
        self._scales = [column.moments[1] for column, *_ in linear]
        self._tails = [
            (position, column)
            for position, (column, *_) in enumerate(linear)
            if isinstance(column, Numeric) and column.unit is not None
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
        for target, value in zip(self._targets, self._numbers(row), strict=True):
            out[target] = value
        for column, source, target in self._levels:
            name = row[source]
            out[target] = math.nan if name is None else column.code(name)
        for cycle, source, target in self._times:
            point = cycle.encode(np.array([row[source]], np.float64))
            out[target : target + cycle.width] = point[0].tolist()
        return np.array([out], np.float32)

    def _numbers(self, row: Sequence[Any]) -> list[float]:
        """Encode the linear columns (n,) of a row."""
        values = list(map(row.__getitem__, self._sources))
        for i, column in self._tails:
            values[i] = _on_scale(column, values[i])
        if None in values:
            values = [math.nan if value is None else value for value in values]
        triples = zip(values, self._shifts, self._scales, strict=True)
        encoded = [(value - shift) / scale for value, shift, scale in triples]
        if encoded and not (min(encoded) >= -EXTREME and max(encoded) <= EXTREME):
            return list(map(_limited, encoded))
        return encoded


def _on_scale(tail: Numeric, value: float | None) -> float | None:
    """Return a value on the asinh scale of a heavy-tailed column."""
    return None if value is None else tail.linearised(np.array([value], np.float64)).item()


def _limited(value: float) -> float:
    """Clip a value to ±`EXTREME`; NaN remains."""
    return EXTREME if value > EXTREME else max(value, -EXTREME)
