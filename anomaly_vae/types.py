"""Types and constants that several packages share."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

MAX_LEVELS, MIN_COUNT = 64, 5
"""Levels a categorical column keeps, and how often each must be seen, unless declared."""


class ColumnType(StrEnum):
    """The types a column can have."""

    NUMERIC = "numeric"
    BINARY = "binary"
    CATEGORICAL = "categorical"
    DATETIME = "datetime"


Method = Literal[
    "conformal", "certified", "evt", "quantile", "budget", "cost", "fbeta", "recall_at_precision"
]
"""How a threshold was chosen; `thresholds` has those that take more than normal scores."""
