"""Describe the input: where it is, what its columns mean and how it is split."""

from __future__ import annotations

import codecs
import datetime as dt
import itertools
import math
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from anomaly_vae.config.base import (
    SPAN_EXAMPLES,
    Fraction,
    Section,
    Seed,
    Span,
    TimeInterval,
    check_zone,
    span_seconds,
    utc,
)
from anomaly_vae.config.windows import Duration, EntityWindows, seconds
from anomaly_vae.messages import shown
from anomaly_vae.types import (
    MAX_BYTES,
    MAX_FRAMES,
    MAX_LEVELS,
    MAX_PIXELS,
    MAX_SECONDS,
    MIN_COUNT,
    MIN_WINDOW_WIDTH,
    RARITY,
    ColumnType,
    Fit,
    ImageLayout,
    Spacing,
    Window,
    WindowPreset,
)

EPOCHS = {"epoch_s": 1.0, "epoch_ms": 1e-3, "epoch_us": 1e-6, "epoch_ns": 1e-9}
"""Seconds per unit of each format that counts from 1970-01-01 00:00 UTC."""

MAX_SIDE = 512
"""Largest side in pixels of what an image model sees at once."""

FULL = "full"
"""Warm-up as long as the windows look back; see `TabularData.windows_warm_up`."""


class Feature(Section):
    """Type of a column, and how its levels are kept.

    Example:
        >>> Feature(type="categorical", min_count=2).max_levels
        64
    """

    type: ColumnType
    """Type of the column: numeric, categorical, binary or datetime."""
    max_levels: int = Field(MAX_LEVELS, ge=2, le=4096)
    """For categorical: number of most frequent levels kept."""
    min_count: int = Field(MIN_COUNT, ge=1)
    """For categorical: number of training rows that a level must occur in to be kept."""
    rarity: float | None = Field(RARITY, ge=0, le=1)
    """For categorical: how strongly the score of a value that is not kept depends on how rarely
    training saw it, from 0 to 1; null: such values become one level."""


class Splits(Section):
    """Assignment of rows to training, validation, calibration and test.

    Splits are fractions of the rows, in time order if there is a time column, half-open intervals
    of time ``[from, to)``, or spans of time that follow each other and end with the newest row.
    Rows that no split claims are left out and counted.
    """

    train: Fraction | Span | TimeInterval | None = None
    """Fraction of the rows, span such as `28d` or interval [from, to) to train on; null: all rows
    that calibration and test leave, with spans all earlier ones."""
    validation: Fraction = 0.1
    """Fraction of the training rows held out of the weight updates, to measure the fit."""
    calibration: Fraction | Span | TimeInterval = 0.2
    """Fraction of the rows, span or interval [from, to) that the threshold is chosen on."""
    test: Fraction | Span | TimeInterval = 0.2
    """Fraction of the rows, span or interval [from, to) to test on; with a time column, a fraction
    takes the last rows."""
    gap_days: float = Field(0.0, ge=0)
    """Days left out before the test split; needs a time column."""
    anomalies: float = Field(0.0, ge=0, lt=1)
    """Fraction of known anomalies used to choose the threshold instead of to test; only without a
    time column."""
    seed: Seed = 0
    """Seed of the random assignment of rows; unused with a time column."""

    @property
    def by_interval(self) -> bool:
        """Whether the splits are given as intervals of time."""
        return isinstance(self.test, tuple)

    @property
    def by_span(self) -> bool:
        """Whether the splits are given as spans of time before the newest row."""
        return isinstance(self.test, str)

    @field_validator("train", "calibration", "test", mode="before")
    @classmethod
    def _check_number(cls, value: Any) -> Any:
        if isinstance(value, int | float) and value >= 2:
            raise ValueError(
                f"expected a fraction between 0 and 1, {SPAN_EXAMPLES}, or [from, to], got {value}"
            )
        return value

    @model_validator(mode="after")
    def _check_forms(self) -> Splits:
        given = {"train": self.train, "calibration": self.calibration, "test": self.test}
        forms = {type(value) for value in given.values() if value is not None}
        if len(forms) > 1 or (self.by_interval and self.train is None):
            found = ", ".join(f"{name} is {_shown(value)}" for name, value in given.items())
            raise ValueError(
                "give train, calibration and test all as fractions, all as spans such as 28d, or "
                f"all as [from, to]; {found}"
            )
        for name, value in given.items():
            if isinstance(value, str) and not span_seconds(value):
                raise ValueError(f"{name} is {value}, which has no rows; give a longer span")
        if not self.by_interval and self._claimed > 1 + 1e-9:
            raise ValueError(
                f"train, calibration and test add up to {self._claimed:g}, more than 1"
            )
        if self.train is None and self._claimed >= 1:
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


def _shown(split: float | str | TimeInterval | None) -> str:
    """Return a split as a configuration has it."""
    if isinstance(split, tuple):
        return f"[{split[0].isoformat()}, {split[1].isoformat()}]"
    return "null" if split is None else str(split)


class CsvConfig(Section):
    """How text files write their fields, numbers and missing values.

    Example:
        >>> CsvConfig(separator=";", decimal=",").encoding is None
        True
    """

    separator: str | None = None
    """Character between fields; null: the comma, semicolon, tab or vertical bar that the header
    line has most of."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of numbers; null: a comma where the file leaves no doubt, else a point."""
    encoding: str | None = None
    """Encoding of files that are not UTF-8, such as `latin-1` or `cp1252`; null: such files are
    refused, unless they have a byte-order mark."""
    null_values: tuple[str, ...] = ()
    """Further texts that mean a missing value, such as `unknown`."""

    @field_validator("separator", mode="before")
    @classmethod
    def _check_separator(cls, value: Any) -> Any:
        value = {"tab": "\t", "\\t": "\t"}.get(value, value) if isinstance(value, str) else value
        if isinstance(value, str) and (
            len(value) != 1 or not value.isascii() or value.isalnum() or value in '"\r\n.+-'
        ):
            raise ValueError("give one character that no number contains, such as ';' or tab")
        return value

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                codecs.lookup(value)
                "".encode(value)  # refuses codecs that are no encodings of text, such as zlib
        except LookupError:
            raise ValueError(
                "Python knows no such encoding; try latin-1, cp1252 or utf-16"
            ) from None
        return value


class DataConfig(Section):
    """Location, labels, groups and splits of the data, common to tables and images."""

    path: str | tuple[str, ...]
    """Files, folders or globs: CSV, JSON or Parquet for tables; images, or a CSV manifest of
    images."""
    label: str | None = None
    """Column that marks known anomalies, which never train as normal rows; null: every row counts
    as normal."""
    positive: Annotated[int | float | str | bool, Field(union_mode="left_to_right")] = 1
    """Value of the label column that means anomaly."""
    group: str | None = None
    """Column naming the unit that no split may divide, such as a customer or a patient; null: each
    row is a unit of its own."""
    splits: Splits = Splits()
    """Rows used to train, validate, calibrate and test."""

    @property
    def unset(self) -> set[str]:
        """Keys that the manifest leaves out, because they have their defaults."""
        return set()

    @property
    def paths(self) -> tuple[str, ...]:
        """The path or paths as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


class TabularData(DataConfig):
    """Location of a table, and the meaning of its columns."""

    id: str | None = None
    """Column that identifies a row in the output; null: rows are numbered from 0."""
    time: str | None = None
    """Column that the splits follow in time; null: rows are split at random."""
    label_delay: Span | None = None
    """Age, counted from the newest row, from which a label is final, such as `7d`; labels of
    younger rows do not count. null: all labels are final."""
    features: tuple[str, ...] | dict[str, Feature] | None = None
    """Columns to read, as a list or with their types; null: all, with inferred types."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out; names that the table lacks are allowed."""
    types: dict[str, Feature] = Field(default_factory=dict)
    """Types of single columns, in the form of `features`; all other types are inferred."""
    time_format: str | None = None
    """Format of times that are not ISO 8601: as in `strptime`, such as `%d/%m/%Y %H:%M`, or
    `epoch_s`, `epoch_ms`, `epoch_us`, `epoch_ns`; null: recognised where the column leaves no
    doubt."""
    timezone: str | None = None
    """Time zone of the days by which rows are counted or ranked, such as `Europe/Berlin`, unless
    `calibration.time_zone` names another; null: UTC."""
    csv: CsvConfig = CsvConfig()
    """Form of CSV files."""
    labels: str | tuple[str, ...] | None = None
    """Labels that arrive late: the URL of a label store, or files, folders or globs with the
    columns `data.id`, `data.label` (or `label`) and optionally `at`; they override labels in the
    data. Needs `data.id`; null: none."""
    windows: dict[str, EntityWindows] = Field(default_factory=dict)
    """Columns that name entities, such as cards, each with the features computed of its past
    events; see docs/windows.md."""
    windows_horizon: Duration = "1d"
    """Greatest delay with which an event may arrive and still be placed at its own time."""
    windows_warm_up: str | None = None
    """Time after the first event whose rows feed windows and belong to no split, because their own
    windows lack a past: `full`, as far as the windows look back, or a duration such as `30d`; null:
    none."""

    @field_validator("windows_warm_up")
    @classmethod
    def _check_warm_up(cls, value: str | None) -> str | None:
        if value not in (None, FULL):
            try:
                seconds(value)
            except ValueError as error:
                raise ValueError(f"{error}, or {FULL}") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str | None) -> str | None:
        return check_zone(value)

    @field_validator("time_format")
    @classmethod
    def _check_time_format(cls, value: str | None) -> str | None:
        moment = dt.datetime(2024, 1, 31, 12)  # noqa: DTZ001  # formats may have no zone
        if value is None or value in EPOCHS:
            return value
        try:
            again = dt.datetime.strptime(moment.strftime(value), value)  # noqa: DTZ007
        except ValueError:
            again = None
        if not again or again.date() != moment.date():
            raise ValueError(
                "give year, month and day, such as %d/%m/%Y %H:%M:%S, or epoch_s, epoch_ms, "
                "epoch_us or epoch_ns"
            )
        return value

    @model_validator(mode="after")
    def _check_types(self) -> TabularData:
        twice = set(self.types) & set(self.features if isinstance(self.features, dict) else ())
        if twice:
            raise ValueError(f"'{min(twice)}' has a type in features and in types; keep one")
        return self

    @field_validator("label_delay", mode="before")
    @classmethod
    def _check_label_delay(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            raise ValueError(f"expected {SPAN_EXAMPLES}, got {value}")
        return value

    @model_validator(mode="after")
    def _check_labels(self) -> TabularData:
        if self.labels and not self.id:
            raise ValueError("labels are matched with rows by their ids; name their column in id")
        return self

    @model_validator(mode="after")
    def _check_time(self) -> TabularData:
        if self.splits.by_span and not self.time:
            raise ValueError(
                f"splits.test {self.splits.test} counts back from the newest row, which needs a "
                "time column; name it in time"
            )
        if self.label_delay and not (self.time and self.label):
            missing = "time" if self.label else "label"
            raise ValueError(f"label_delay needs a {missing} column; name it in {missing}")
        if self.splits.gap_days and not self.time:
            raise ValueError("splits.gap_days needs a time column; name it in time")
        if self.splits.anomalies and self.time:
            raise ValueError("splits.anomalies is for rows in no order; splits follow time here")
        return self

    @model_validator(mode="after")
    def _check_windows(self) -> TabularData:
        if self.windows and not self.time:
            raise ValueError("windows needs a time column; name it in time")
        if self.windows_warm_up and not self.windows:
            raise ValueError("windows_warm_up needs windows; add them or leave it out")
        for entity, windows in self.windows.items():
            self._refuse_roles(entity, windows)
        return self

    def _refuse_roles(self, entity: str, windows: EntityWindows) -> None:
        """Refuse windows that read the label before it is known, and entities without a past."""
        if entity in (self.id, self.time):
            reason = "never repeats; name a column such as a card or a terminal"
            raise ValueError(
                f"windows.{entity}: the {'id' if entity == self.id else 'time'} {reason}"
            )
        names = [entity, *(name for key, name in windows.columns if key != "risk.label")]
        if self.label in names:
            raise ValueError(
                f"windows.{entity} reads the label, which is not known at once; use "
                f"risk: {{label: {self.label}, delay: 7d}}"
            )

    @field_validator("labels")
    @classmethod
    def _refuse_passwords(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        places = (value,) if isinstance(value, str) else value or ()
        if any("://" in place and urlsplit(place).password for place in places):
            raise ValueError(
                "contains a password, which would be recorded with the model; leave it out and set "
                "PGPASSWORD in the environment"
            )
        return value

    @property
    def label_places(self) -> tuple[str, ...]:
        """Where late labels are; empty without any."""
        return (self.labels,) if isinstance(self.labels, str) else self.labels or ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Columns that are a label, an id or a group, and so no features."""
        return tuple(name for name in (self.label, self.id, self.group) if name)

    def reads(self, name: str) -> bool:
        """Return whether a column may be a feature."""
        return name not in self.ignore and (self.features is None or name in self.features)

    @property
    def window_columns(self) -> frozenset[str]:
        """Columns that the windows are computed of."""
        named = (name for windows in self.windows.values() for _, name in windows.columns)
        return frozenset({*self.windows, *named})

    @property
    def unset(self) -> set[str]:
        """Keys that the manifest leaves out, because they have their defaults."""
        optional: dict[str, Any] = {
            "types": {},
            "time_format": None,
            "timezone": None,
            "csv": CsvConfig(),
            "label_delay": None,
            "windows": {},
            "windows_horizon": "1d",
            "windows_warm_up": None,
        }
        return {name for name, default in optional.items() if getattr(self, name) == default}

    @property
    def declared(self) -> dict[str, Feature]:
        """Declared types of columns, from ``features`` and ``types``."""
        return {**self.types, **(self.features if isinstance(self.features, dict) else {})}


class ImageData(DataConfig):
    """Location of images, and how they are read."""

    size: int = Field(64, ge=16, le=4096)
    """Side in pixels of the square that each image is fitted into; above 512 only with `tiles`."""
    tiles: int | None = Field(None, ge=16, le=512)
    """Side in pixels of the tiles of that square which the model sees, one at a time; an image's
    score is that of its highest tile. null: the model sees the whole square."""
    tile_overlap: float = Field(0.25, ge=0, le=0.5)
    """Least share of a tile's side that it has in common with the next tile."""
    fit: Fit = "pad"
    """How images that are not square are fitted: `pad` keeps all of an image and fills the rest of
    the square with the mean of its border, `crop` keeps the central square, `stretch` changes the
    ratio of the sides."""
    spacing: Spacing = "auto"
    """Distance between pixels: `auto` takes the one in DICOM, NIfTI and MGH files, so that voxels
    that are not cubes keep their shape; `ignore` takes pixels to be square; a number resamples all
    images to pixels of so many mm, with `fit: pad`."""
    mask: str | None = None
    """Pixels that count for the score and the map: `foreground`, all but the dark parts that reach
    the border of an image; `own`, those of a mask that comes with each image; or an image file with
    a region in white, the same in all images; null: all pixels."""
    channels: Literal[1, 3] = 1
    """Number of channels: 1 for grey, 3 for colour."""
    intensity: Literal["standardise", "unit"] = "standardise"
    """Scale of pixel values: `standardise` subtracts the mean of each image and divides by its
    standard deviation, `unit` keeps them on [0, 1]."""
    intensity_window: (
        Literal["auto", "percentile"]
        | WindowPreset
        | Window
        | tuple[WindowPreset | Window, WindowPreset | Window, WindowPreset | Window]
    ) = "auto"
    """Values of DICOM, NIfTI and float TIFF files that become black and white: `auto` takes the
    window in a DICOM file, else percentiles; `percentile` takes the 0.5th and 99.5th; or
    [center, width]; or, for CT, that of `lung`, `bone`, `brain` or `soft_tissue`; or three of the
    latter, which become the channels of `channels: 3`."""
    axis: Literal[0, 1, 2] = 2
    """Axis along which a NIfTI volume is cut into slices: 0 sagittal, 1 coronal, 2 axial."""
    layout: ImageLayout = "auto"
    """Meaning of folders: `auto` recognises `train/good`, `test/<defect>`, `ground_truth/<defect>`,
    and folders named like labels, such as `normal` and `tumour`; `mvtec` requires the former;
    `folder` takes all images as normal, whatever their folders are called."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Largest number of pixels of one image; larger images are refused before decoding."""
    max_bytes: int = Field(MAX_BYTES, ge=1)
    """Largest size of one file in bytes, packed and unpacked."""
    max_frames: int = Field(MAX_FRAMES, ge=1)
    """Largest number of images in one file; files with more are refused."""
    max_seconds: float = Field(MAX_SECONDS, gt=0)
    """Longest time in seconds for decoding one file; images not decoded by then are refused."""

    @field_validator("intensity_window", mode="wrap")
    @classmethod
    def _check_window(cls, value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
        """Say at once all that a window may be, as pydantic says it for each alternative."""
        try:
            window = validated(value)
        except ValidationError:
            window = None
        if window is None or not all(_is_window(one) for one in _each_window(window)):
            names = ", ".join(get_args(WindowPreset))
            raise ValueError(
                f"expected auto, percentile, {names}, [center, width] with a width of at least "
                f"{MIN_WINDOW_WIDTH}, or three of the latter five, got {shown(value)}"
            )
        return window

    @model_validator(mode="after")
    def _check_windows(self) -> ImageData:
        windows = self.intensity_window
        if isinstance(windows, tuple) and len(windows) == 3 and self.channels != 3:
            raise ValueError(
                f"three intensity windows become three channels, not {self.channels}; set "
                "channels: 3, or give one window"
            )
        return self

    @field_validator("spacing")
    @classmethod
    def _check_spacing(cls, value: Spacing) -> Spacing:
        if isinstance(value, float) and not 0 < value < math.inf:
            raise ValueError(f"expected auto, ignore or a distance above 0 in mm, got {value:g}")
        return value

    @model_validator(mode="after")
    def _check_fit(self) -> ImageData:
        if isinstance(self.spacing, float) and self.fit != "pad":
            raise ValueError(
                f"spacing {self.spacing:g} keeps the size of what an image shows, which only fit: "
                f"pad does, not {self.fit}; set fit: pad or spacing: auto"
            )
        return self

    @model_validator(mode="after")
    def _check_tiles(self) -> ImageData:
        if self.tiles is None and self.size > MAX_SIDE:
            raise ValueError(
                f"size {self.size} is above {MAX_SIDE}; set tiles, such as tiles: 128, to score "
                "large images tile by tile"
            )
        if self.tiles is not None and self.tiles >= self.size:
            raise ValueError(
                f"tiles {self.tiles} must be smaller than size {self.size}; leave tiles out to "
                "score images as a whole"
            )
        return self

    @property
    def unset(self) -> set[str]:
        """Keys that the manifest leaves out, because they have their defaults."""
        tiles = {"tiles", "tile_overlap"} if self.tiles is None else set()
        rule = self.mask in ("foreground", "own")  # a file is in the schema
        return tiles if rule else {*tiles, "mask"}

    @model_validator(mode="after")
    def _check_no_time(self) -> ImageData:
        if self.splits.by_interval or self.splits.by_span or self.splits.gap_days:
            raise ValueError("images have no time column; give splits as fractions, without gap")
        return self

    @property
    def time(self) -> None:
        """No time column: images come in no order."""

    @property
    def label_delay(self) -> None:
        """No delay of labels, which is measured by times."""

    @property
    def id(self) -> None:
        """No id column: an image is identified by its path."""


def _each_window(window: Any) -> tuple[Any, ...]:
    """Return the windows of a value of `intensity_window`: one or three."""
    return window if isinstance(window, tuple) and len(window) == 3 else (window,)


def _is_window(window: Any) -> bool:
    """Return whether a window has a name, or a finite center and a sufficient width."""
    return isinstance(window, str) or (
        all(map(math.isfinite, window)) and window[1] >= MIN_WINDOW_WIDTH
    )
