"""Describe the input: where it is, what its columns mean and how it is split."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from anomaly_vae.config.base import Fraction, Section, Seed, TimeInterval, utc
from anomaly_vae.types import (
    MAX_BYTES,
    MAX_FRAMES,
    MAX_LEVELS,
    MAX_PIXELS,
    MAX_SECONDS,
    MIN_COUNT,
    ColumnType,
)


class Feature(Section):
    """How to read one column."""

    type: ColumnType
    """numeric, categorical, binary or datetime"""
    max_levels: int = Field(MAX_LEVELS, ge=2, le=4096)
    """categorical: keep this many frequent levels, pool the others"""
    min_count: int = Field(MIN_COUNT, ge=1)
    """categorical: pool levels seen less often in training"""


class Splits(Section):
    """Which rows train, stop, calibrate and test the model.

    Fractions of the rows (in time order where there is a time column), or half-open intervals
    of time ``[from, to)``. What no split claims is left out and counted.
    """

    train: Fraction | TimeInterval | None = None
    """fraction or [from, to); absent: what the others leave"""
    validation: Fraction = 0.1
    """share of the training rows that the fit leaves out, to measure itself on"""
    calibration: Fraction | TimeInterval = 0.2
    """fraction or [from, to)"""
    test: Fraction | TimeInterval = 0.2
    """fraction or [from, to); the last rows where there is a time column"""
    gap_days: float = Field(0.0, ge=0)
    """with a time column: leave out this many days before the test split"""
    anomalies: float = Field(0.0, ge=0, lt=1)
    """without a time column: share of the known anomalies that help to choose a threshold"""
    seed: Seed = 0
    """of the random assignment, where there is one"""

    @property
    def by_interval(self) -> bool:
        """Whether the splits are given as intervals of time."""
        return isinstance(self.test, tuple)

    @model_validator(mode="after")
    def _one_kind(self) -> Splits:
        kinds = {type(s) for s in (self.train, self.calibration, self.test) if s is not None}
        if len(kinds) > 1 or (self.by_interval and self.train is None):
            raise ValueError(
                "give train, calibration and test all as fractions or all as [from, to]"
            )
        if not self.by_interval and self._claimed > 1 + 1e-9:
            raise ValueError(
                f"train, calibration and test add up to {self._claimed:g}, more than 1"
            )
        if not self.by_interval and self.train is None and self._claimed >= 1:
            raise ValueError("calibration and test leave nothing to train on")
        if self.by_interval:
            self._refuse_overlap()
        return self

    def _refuse_overlap(self) -> None:
        named = {"train": self.train, "calibration": self.calibration, "test": self.test}
        order = sorted(
            (utc(span[0]), utc(span[1]), name)
            for name, span in named.items()
            if isinstance(span, tuple)
        )
        for start, stop, name in order:
            if start >= stop:
                raise ValueError(f"{name} ends before it begins; write it as [from, to]")
        for (_, stop, earlier), (start, _, later) in itertools.pairwise(order):
            if start < stop:
                raise ValueError(f"{earlier} and {later} overlap; end one where the other begins")

    @property
    def _claimed(self) -> float:
        parts = (self.train or 0.0, self.calibration, self.test)
        return sum(part for part in parts if isinstance(part, float))


class DataConfig(Section):
    """What every kind of data says: where it is, what is known of it, how it is split."""

    path: str | tuple[str, ...]
    """files, folders or globs: CSV or Parquet; images, or a CSV manifest of them"""
    label: str | None = None
    """column that marks known anomalies; they never train"""
    positive: Annotated[int | float | str | bool, Field(union_mode="left_to_right")] = 1
    """the label value that means anomaly"""
    group: str | None = None
    """unit that no split may cut: customer, patient"""
    splits: Splits = Splits()
    """train, validation, calibration, test"""

    @property
    def paths(self) -> tuple[str, ...]:
        """The path or paths as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


class TabularData(DataConfig):
    """Where the rows are and what their columns mean."""

    id: str | None = None
    """column that names a row in the output"""
    time: str | None = None
    """column that orders the rows; splits follow it"""
    features: tuple[str, ...] | dict[str, Feature] | None = None
    """columns to read, plain or with their types; absent: inferred"""
    ignore: tuple[str, ...] = ()
    """columns to leave out; names that are not there are tolerated"""

    @model_validator(mode="after")
    def _time_is_named(self) -> TabularData:
        if self.splits.gap_days and not self.time:
            raise ValueError("splits.gap_days needs a time column; name it in time")
        if self.splits.anomalies and self.time:
            raise ValueError("splits.anomalies is for rows in no order; splits follow time here")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Columns with a part other than feature."""
        return tuple(name for name in (self.label, self.id, self.group) if name)


class ImageData(DataConfig):
    """Where the images are and how they are read."""

    size: int = Field(64, ge=16, le=512)
    """side in pixels of the square that each image is cropped and resized to"""
    channels: Literal[1, 3] = 1
    """1 is grey, 3 is colour"""
    intensity: Literal["standardise", "unit"] = "standardise"
    """standardise: each image by its own mean and deviation; unit: as it is, on [0, 1]"""
    intensity_window: Literal["auto", "percentile"] | tuple[float, float] = "auto"
    """grey levels of DICOM and NIfTI: the file's window, percentiles, or [center, width]"""
    axis: Literal[0, 1, 2] = 2
    """NIfTI: the axis along which a volume is cut into slices"""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """of one image; more are refused before they are decoded"""
    max_bytes: int = Field(MAX_BYTES, ge=1)
    """of one file"""
    max_frames: int = Field(MAX_FRAMES, ge=1)
    """images in one file; more are refused"""
    max_seconds: float = Field(MAX_SECONDS, gt=0)
    """for decoding one file; what is not done by then is refused"""

    @model_validator(mode="after")
    def _no_time(self) -> ImageData:
        if self.splits.by_interval or self.splits.gap_days:
            raise ValueError("images have no time column; give splits as fractions, without gap")
        return self

    @property
    def time(self) -> None:
        """Images come in no order."""

    @property
    def id(self) -> None:
        """An image is named by its path."""
