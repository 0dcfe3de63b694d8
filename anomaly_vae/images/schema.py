"""Prepare images of any kind for a model: fit them into a square, in grey or colour.

A row of the resulting matrix (N, F) holds the pixels of an image, channel by channel and row by
row: F = channels · size². Only numpy and Pillow are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.arrow import plain_array
from anomaly_vae.data.column_types import IMAGE_COLUMN, ColumnSpec
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch, RowProblem
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.images.decoding import read_bytes, read_file
from anomaly_vae.images.encoding import IMAGE, MIN_STD
from anomaly_vae.images.geometry import Box, Geometry, Grid, aspect_of
from anomaly_vae.images.masking import (
    FOREGROUND,
    MIN_SHARE,
    NO_MASK,
    NOTHING,
    OUTSIDE,
    OWN,
    Mask,
    MaskRule,
    Region,
    counted,
)
from anomaly_vae.images.pixels import (
    CT_WINDOWS,
    MAX_PIXEL,
    DecodedImage,
    DecodeFailure,
    DecodeOptions,
)
from anomaly_vae.messages import listed
from anomaly_vae.types import Fit, Spacing, Window, WindowPreset

if TYPE_CHECKING:
    from anomaly_vae.config.data import ImageData

NO_IMAGE, NO_BYTES = "no image is given", "expected the bytes of an image file"
IMAGE_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_null,
)
"""Tests for the Arrow types of columns that can hold images."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

ORIGINAL_GEOMETRY: dict[str, Any] = {"fit": "crop", "spacing": "ignore"}
"""Geometry of models whose manifest states none."""
MIN_COLOUR = 16 * 257
"""Difference between the channels of a pixel in colour; JPEG makes grey ones differ by less."""
SATURATED = 0.98
"""Share of black and white pixels from which on a window shows nearly nothing."""
SAMPLE_SIDE = 128
"""Number of rows and columns of an image that tell whether it is in colour or saturated."""
NO_SPACING = (
    "its file states no distance between pixels in mm, which data.spacing {wanted:g} needs; set "
    "data.spacing: auto, or convert it to DICOM or NIfTI with its spacing"
)
UNIFORM = "all pixels are alike: the image shows nothing"


@dataclass(frozen=True)
class Seen:
    """Counts of the images that were prepared."""

    in_colour: int = 0
    """Number of images in colour."""
    saturated: int = 0
    """Number of images that a window makes nearly black and white."""
    oblong: int = 0
    """Number of images that are not square."""
    outside: float = 0.0
    """Sum over images of the share of their pixels outside of their central square."""
    reduced: int = 0
    """Number of images that are too large for the square at the spacing that is wanted."""

    def __add__(self, other: Seen) -> Seen:
        return Seen(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class ImageBatch(RawBatch):
    """Prepared images, and what was seen of them before."""

    seen: Seen = Seen()


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """The only column that an image model reads."""

    name: str = IMAGE
    type: str = IMAGE

    @property
    def spec(self) -> ColumnSpec:
        """The description of the column."""
        return IMAGE_COLUMN

    @property
    def mlflow_type(self) -> str:
        """Name of the member of MLflow's ``DataType`` in a model signature."""
        return IMAGE_COLUMN.mlflow_type


@dataclass(frozen=True)
class ImageSchema:
    """The shape of the images that a model reads, and how files are decoded and prepared for it.

    Every image is fitted into a square of ``size`` × ``size`` pixels and converted to grey
    (``channels`` 1) or RGB (3).

    Args:
        size: Side of a prepared image, in pixels.
        channels: 1 for grey, 3 for colour.
        options: How to decode files, and the limits that files must keep.
        fit: How images that are not square are fitted, see `Geometry`.
        spacing: Whether pixels are as high and wide as a file says, see `Geometry`.
        mask: Which pixels count: a fixed region of the square, "foreground", or "own", the mask
            that comes with each image; None for all.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae.images import ImageSchema
        >>> from anomaly_vae.images.pixels import DecodedImage
        >>> schema = ImageSchema(size=2, channels=1)
        >>> gradient = np.arange(0, 60_000, 10_000, np.uint16).reshape(2, 3)
        >>> batch = schema.from_images([DecodedImage(gradient, frame=0)])
        >>> batch.values["image"].round(2)  # the left two columns, on [0, 1]
        array([[[[0.  , 0.15],
                 [0.46, 0.61]]]], dtype=float32)
        >>> uniform = DecodedImage(np.zeros((4, 4), np.uint16), frame=0)
        >>> schema.from_images([uniform]).problems[0].reason
        'all pixels are alike: the image shows nothing'
    """

    size: int
    channels: int
    options: DecodeOptions = field(default_factory=DecodeOptions)
    fit: Fit = "crop"
    spacing: Spacing = "ignore"
    mask: Region | MaskRule | None = None

    names = (IMAGE,)
    known: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[ImageColumn, ...]:
        """The only column."""
        return (ImageColumn(),)

    def from_images(self, images: Iterable[DecodedImage | DecodeFailure]) -> ImageBatch:
        """Prepare N images as (N, C, S, S) float32 on [0, 1].

        An image that could not be decoded, or is uniform, is black and has a problem.
        """
        prepared: list[Matrix] = []
        problems: list[RowProblem] = []
        seen = Seen()
        for row, image in enumerate(images):
            values, reason = self._prepare(image)
            prepared.append(values)
            if reason:
                problems.append(RowProblem(row, IMAGE, reason))
            elif isinstance(image, DecodedImage):
                seen += self._seen(image)
        stacked = np.stack(prepared) if prepared else np.zeros((0, *self._shape), np.float32)
        return image_batch(stacked, problems, seen)

    def from_arrow(self, table: pa.RecordBatch | pa.Table) -> RawBatch:
        """Read a table whose column ``image`` holds paths or the bytes of files, one image each.

        Raises:
            DataError: There is no such column, or it holds neither.
        """
        if IMAGE not in table.schema.names:
            raise DataError(
                f"expected a column '{IMAGE}' of paths or of the bytes of files, "
                f"found {listed(table.schema.names)}",
                column=IMAGE,
            )
        cells = plain_array(table.column(IMAGE))
        if not any(is_type(cells.type) for is_type in IMAGE_TYPES):
            reason = f"column '{IMAGE}': expected paths or bytes, found {cells.type}"
            raise DataError(reason, column=IMAGE)
        batch = self.from_images(map(self._read_cell, cells.to_pylist()))
        ignored = tuple(sorted(set(table.schema.names) - {IMAGE} - self.known))
        return RawBatch(batch.values, len(batch), batch.problems, ignored)

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> RawBatch:
        """Read records whose ``image`` is the bytes of a file; paths are refused."""
        cells = (record.get(IMAGE) for record in records)
        return self.from_images(
            self.read(cell) if isinstance(cell, bytes) else DecodeFailure(NO_BYTES, None)
            for cell in cells
        )

    def read(self, file: Path | bytes) -> DecodedImage | DecodeFailure:
        """Decode the only image of a file, given by its path or its content."""
        images = (
            read_bytes(file, self.options)
            if isinstance(file, bytes)
            else read_file(file, self.options)
        )
        first, second = next(images), next(images, None)
        return (
            first
            if second is None
            else DecodeFailure("holds several images; give one at a time", None)
        )

    def to_source(
        self, heat: Matrix, image: DecodedImage, outside: float = 0.0
    ) -> NDArray[np.float32]:
        """Enlarge a map (S, S) to the pixels (H, W) of the image it is of; as `Geometry` does.

        Raises:
            DataError: The spacing in the file is not believable.
        """
        height, width = image.pixels.shape[:2]
        aspect, scale = self._pixel(image)
        return self._geometry.to_source(heat, height, width, aspect, outside, scale)

    def grid(self, image: DecodedImage) -> Grid:
        """Return the size of an image and of its pixels.

        Raises:
            DataError: The spacing in the file is not believable, or missing if it is needed.
        """
        height, width = image.pixels.shape[:2]
        return Grid(height, width, *self._pixel(image))

    def box_to_source(self, box: Box, grid: Grid) -> Box:
        """Return the box in an image that covers a box in the square; as `Geometry` does."""
        return self._geometry.box_to_source(box, *grid)

    def unknown(self, names: set[str]) -> tuple[str, ...]:
        """Return no names: an image model does not read the other columns of a manifest."""
        del names
        return ()

    @classmethod
    def from_config(cls, data: ImageData) -> ImageSchema:
        """Build the schema that a configuration describes."""
        options = DecodeOptions(
            **_windows(data),
            axis=data.axis,
            max_pixels=data.max_pixels,
            max_bytes=data.max_bytes,
            max_frames=data.max_frames,
            max_seconds=data.max_seconds,
        )
        schema = cls(data.size, data.channels, options, data.fit, data.spacing)
        return replace(schema, mask=schema._mask(data.mask))

    def _mask(self, given: str | None) -> Region | MaskRule | None:
        """Return the mask that a configuration names, by a word or a file.

        Raises:
            ConfigError: The file is no image, or its region is empty.
        """
        if given is None or given in (FOREGROUND, OWN):
            return cast("MaskRule | None", given)
        image = replace(self, options=DecodeOptions()).read(Path(given))
        if isinstance(image, DecodeFailure):
            raise ConfigError(f"data.mask '{given}': {image.reason}", key="data.mask")
        white = _planes(image.pixels).max(0, keepdims=True) > 0
        region = Geometry(self.size, self.fit).apply(white.astype(np.float32))[0] > 0.5
        if region.mean() < MIN_SHARE:
            raise ConfigError(f"data.mask '{given}' is black; paint white what counts",
                              key="data.mask")  # fmt: skip
        return Region.of(region)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        reading = {k: v for k, v in asdict(self.options).items() if k != "windows" or v}
        content = {"size": self.size, "channels": self.channels, "reading": reading}
        if self.mask:
            content["mask"] = self.mask if isinstance(self.mask, str) else self.mask.to_json()
        geometry = {"fit": self.fit, "spacing": self.spacing}
        return content if geometry == ORIGINAL_GEOMETRY else content | geometry

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ImageSchema:
        """Restore a schema from the content of the manifest."""
        options = dict(content["reading"])
        if isinstance(options["intensity_window"], list):
            options["intensity_window"] = tuple(options["intensity_window"])
        options["windows"] = tuple(tuple(one) for one in options.get("windows", ()))
        geometry = {key: content.get(key, value) for key, value in ORIGINAL_GEOMETRY.items()}
        mask = content.get("mask")
        region = Region.from_json(mask) if isinstance(mask, Mapping) else mask
        head = content["size"], content["channels"], DecodeOptions(**options)
        return cls(*head, **geometry, mask=region)

    @property
    def _geometry(self) -> Geometry:
        return Geometry(self.size, self.fit, self.spacing)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def _read_cell(self, cell: str | bytes | None) -> DecodedImage | DecodeFailure:
        if cell is None:
            return DecodeFailure(NO_IMAGE, None)
        return self.read(Path(cell) if isinstance(cell, str) else cell)

    def _prepare(self, image: DecodedImage | DecodeFailure) -> tuple[Matrix, str]:
        """Return the values (C, S, S) on [0, 1] and the image's problem, empty if it has none."""
        if isinstance(image, DecodeFailure):
            return np.zeros(self._shape, np.float32), image.reason
        try:
            grid = self.grid(image)
            planes = self._geometry.apply(_planes(image.pixels), grid.aspect, grid.scale)
        except DataError as error:
            return np.zeros(self._shape, np.float32), str(error)
        values = _with_channels(planes, self.channels)
        if float(values.std()) < MIN_STD:
            return values, _nothing_shown(image)
        if self.mask is None:
            return values, ""
        inside = self._inside(values, image, grid)
        return (values, NO_MASK) if inside is None else self._masked(values, inside)

    def _inside(self, values: Matrix, image: DecodedImage, grid: Grid) -> Mask | None:
        """Return which pixels (S, S) of a prepared image count; None if its mask is missing."""
        place = self._geometry.place(grid)
        if self.mask != OWN:
            assert self.mask is not None
            return counted(values, self.mask, place)
        if image.mask is None or image.mask.shape != image.pixels.shape[:2]:
            return None
        fitted = self._geometry.apply(image.mask[None].astype(np.float32), grid.aspect, grid.scale)
        inside = np.zeros(values.shape[1:], bool)
        inside[place] = fitted[0][place] > 0.5
        return inside

    def _masked(self, values: Matrix, inside: Mask) -> tuple[Matrix, str]:
        """Return values (C, S, S) with `OUTSIDE` where pixels do not count, and their problem."""
        problem = ""
        if inside.mean() < MIN_SHARE:
            problem = NOTHING
        elif float(values[:, inside].std()) < MIN_STD:
            problem = UNIFORM
        return np.where(inside, values, OUTSIDE), problem

    def _pixel(self, image: DecodedImage) -> tuple[float, float]:
        """Return the height of a pixel relative to its width, and its width relative to the wanted.

        Raises:
            DataError: The spacing in the file is not believable, or missing if it is needed.
        """
        match self.spacing, image.spacing:
            case "auto", (float(rows), float(columns)):
                return aspect_of(rows, columns), math.inf
            case float(wanted), (float(rows), float(columns)) if image.in_mm:
                return aspect_of(rows, columns), columns / wanted
            case float(wanted), _:
                raise DataError(NO_SPACING.format(wanted=wanted))
        return 1.0, math.inf

    def _seen(self, image: DecodedImage) -> Seen:
        height, width = image.pixels.shape[:2]
        aspect, scale = self._pixel(image)
        outside = self._geometry.removed(height, width, aspect)
        reduced = self._geometry.is_reduced(height, width, aspect, scale)
        colour, saturated = is_in_colour(image.pixels), is_saturated(image)
        return Seen(colour, saturated, outside > 0, outside, reduced)


def _windows(data: ImageData) -> dict[str, Any]:
    """Return the options of the window or windows of a configuration."""
    match data.intensity_window:
        case "auto" | "percentile" as word:
            return {"intensity_window": word}
        case (first, second, third):
            return {"windows": tuple(map(_values, (first, second, third)))}
        case window:
            return {"intensity_window": _values(window)}


def _values(window: WindowPreset | Window) -> Window:
    """Return the center and width of a window that may be a preset."""
    return window if isinstance(window, tuple) else CT_WINDOWS[window]


def _nothing_shown(image: DecodedImage) -> str:
    """Return the reason why a uniform image is refused."""
    if not is_saturated(image):
        return UNIFORM
    return (
        f"{image.window} makes its pixels black or white, so that the image shows nothing; remove "
        "it from the file or train with data.intensity_window: percentile"
    )


def is_in_colour(pixels: NDArray[np.uint16]) -> bool:
    """Return whether an image (H, W) or (H, W, 3) has pixels that are not grey, by a sample."""
    if pixels.ndim == 2:
        return False
    return int(np.ptp(_sampled(pixels).astype(np.int32), axis=-1).max()) > MIN_COLOUR


def is_saturated(image: DecodedImage) -> bool:
    """Return whether the window in a file makes nearly all pixels black or white, by a sample."""
    extreme = np.isin(_sampled(image.pixels), (0, MAX_PIXEL))
    return bool(image.window) and float(extreme.mean()) >= SATURATED


def _sampled(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    rows, columns = (max(1, length // SAMPLE_SIDE) for length in pixels.shape[:2])
    return pixels[::rows, ::columns]


def image_batch(
    images: Matrix, problems: Sequence[RowProblem] = (), seen: Seen | None = None
) -> ImageBatch:
    """Return prepared images (N, C, S, S) as a batch."""
    column: Any = images  # columns of tables have one axis
    return ImageBatch({IMAGE: column}, len(images), tuple(problems), (), seen or Seen())


def crop_and_resize(pixels: NDArray[np.uint16], size: int, channels: int) -> Matrix:
    """Crop (H, W) or (H, W, 3) to its central square and resize it; returns (C, S, S) on [0, 1]."""
    return _with_channels(Geometry(size).apply(_planes(pixels)), channels)


def _planes(pixels: NDArray[np.uint16]) -> Matrix:
    """Return the channels (C, H, W) on [0, 1] of pixels (H, W) or (H, W, 3)."""
    planes = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None]
    return planes.astype(np.float32) / np.float32(MAX_PIXEL)


def _with_channels(planes: Matrix, channels: int) -> Matrix:
    """Convert one or three planes (C, S, S) to the channels that a model reads."""
    if channels == 1 and len(planes) == 3:
        planes = np.tensordot(LUMA, planes, 1)[None].astype(np.float32)
    return np.broadcast_to(planes, (channels, *planes.shape[1:])).astype(np.float32)
