"""Types and constants that several packages share."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

MAX_PIXELS, MAX_BYTES, MAX_FRAMES, MAX_SECONDS = 1 << 25, 1 << 28, 4096, 120.0
"""Default limits for reading one image file: pixels per image, bytes, images, decoding time."""

MAX_LEVELS, MIN_COUNT = 64, 5
"""Levels a categorical column keeps, and how often each must be seen, unless declared."""


class ColumnType(StrEnum):
    """The types a column can have."""

    NUMERIC = "numeric"
    BINARY = "binary"
    CATEGORICAL = "categorical"
    DATETIME = "datetime"


DISCRETE = frozenset({ColumnType.BINARY, ColumnType.CATEGORICAL})
"""The types of column that have levels."""


Method = Literal[
    "conformal", "certified", "evt", "quantile", "budget", "cost", "fbeta", "recall_at_precision"
]
"""How a threshold was chosen; `thresholds` has those that take more than normal scores."""
