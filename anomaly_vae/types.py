"""Define types and constants that several packages share."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

SERIES, VOLUME = "series", "volume"
"""Kinds of groups of images that files state themselves: a DICOM series, and a file with its
images."""
MAX_PIXELS, MAX_BYTES, MAX_FRAMES, MAX_SECONDS = 1 << 25, 1 << 28, 4096, 120.0
"""Default limits of an image file: pixels per image, bytes, images, seconds of decoding."""

MAX_LEVELS, MIN_COUNT = 64, 5
"""Defaults of a categorical column: number of levels kept, training rows per kept level."""
RARITY = 0.25
"""Default weight of the rarity of values of a categorical column that are not kept."""


class ColumnType(StrEnum):
    """Type of a column."""

    NUMERIC = "numeric"
    BINARY = "binary"
    CATEGORICAL = "categorical"
    DATETIME = "datetime"


Method = Literal[
    "conformal", "certified", "evt", "quantile", "budget", "cost", "fbeta", "recall_at_precision"
]
"""Method of choosing a threshold; see docs/thresholds.md."""

REGION, KNOWN_ANOMALIES = "region", "known_anomalies"
"""Features of reasons that are no columns: a region of an image, and the likeness to anomalies that
a model has learned from."""

Fit = Literal["pad", "crop", "stretch"]
"""How an image that is not square becomes a square."""
Spacing = Literal["auto", "ignore"] | float
"""Whether the distances between pixels that a file states are used, or the distance in mm that
pixels are resampled to."""
Window = tuple[float, float]
"""Center and width of the values that become grey levels between black and white."""
MIN_WINDOW_WIDTH = 1
"""Smallest width of such a window, as in DICOM."""
WindowPreset = Literal["lung", "bone", "brain", "soft_tissue"]
"""Name of a usual window of CT images; see `images.pixels.CT_WINDOWS`."""
ImageLayout = Literal["auto", "mvtec", "folder"]
"""Which names of folders are taken for splits and labels of images."""
