"""Prepare images of any kind for a model: crop, resize and convert them to grey or colour.

A row of the resulting matrix (N, F) holds the pixels of an image, channel by channel and row by
row: F = channels · size². Only numpy and Pillow are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.data.arrow import plain_array
from anomaly_vae.data.column_types import IMAGE_COLUMN, ColumnSpec
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch, RowProblem
from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import read_bytes, read_file
from anomaly_vae.images.encoding import IMAGE, MIN_STD
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage, DecodeFailure, DecodeOptions
from anomaly_vae.messages import listed

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

MIN_COLOUR = 16 * 257
"""Difference between the channels of a pixel in colour; JPEG makes grey ones differ by less."""
SATURATED = 0.98
"""Share of black and white pixels from which on a window shows nearly nothing."""
SAMPLE_SIDE = 128
"""Number of rows and columns of an image that tell whether it is in colour or saturated."""
UNIFORM = "all pixels are alike: the image shows nothing"


@dataclass(frozen=True)
class ImageBatch(RawBatch):
    """Prepared images, and how many of them were in colour or saturated by a window."""

    in_colour: int = 0
    saturated: int = 0


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

    Every image is cropped to its central square, resized to ``size`` × ``size`` pixels and
    converted to grey (``channels`` 1) or RGB (3).

    Args:
        size: Side of a prepared image, in pixels.
        channels: 1 for grey, 3 for colour.
        options: How to decode files, and the limits that files must keep.

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
        in_colour = saturated = 0
        for row, image in enumerate(images):
            values, reason = self._prepare(image)
            prepared.append(values)
            if reason:
                problems.append(RowProblem(row, IMAGE, reason))
            elif isinstance(image, DecodedImage):
                in_colour += is_in_colour(image.pixels)
                saturated += is_saturated(image)
        stacked = np.stack(prepared) if prepared else np.zeros((0, *self._shape), np.float32)
        return image_batch(stacked, problems, in_colour, saturated)

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

    def unknown(self, names: set[str]) -> tuple[str, ...]:
        """Return no names: an image model does not read the other columns of a manifest."""
        del names
        return ()

    @classmethod
    def from_config(cls, data: ImageData) -> ImageSchema:
        """Build the schema that a configuration describes."""
        options = DecodeOptions(
            intensity_window=data.intensity_window,
            axis=data.axis,
            max_pixels=data.max_pixels,
            max_bytes=data.max_bytes,
            max_frames=data.max_frames,
            max_seconds=data.max_seconds,
        )
        return cls(data.size, data.channels, options)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        return {"size": self.size, "channels": self.channels, "reading": asdict(self.options)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ImageSchema:
        """Restore a schema from the content of the manifest."""
        options = dict(content["reading"])
        if isinstance(options["intensity_window"], list):
            options["intensity_window"] = tuple(options["intensity_window"])
        return cls(content["size"], content["channels"], DecodeOptions(**options))

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
        values = crop_and_resize(image.pixels, self.size, self.channels)
        uniform = float(values.std()) < MIN_STD
        return values, _nothing_shown(image) if uniform else ""


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
    images: Matrix, problems: Sequence[RowProblem] = (), in_colour: int = 0, saturated: int = 0
) -> ImageBatch:
    """Return prepared images (N, C, S, S) as a batch."""
    column: Any = images  # columns of tables have one axis
    return ImageBatch({IMAGE: column}, len(images), tuple(problems), (), in_colour, saturated)


def crop_and_resize(pixels: NDArray[np.uint16], size: int, channels: int) -> Matrix:
    """Crop (H, W) or (H, W, 3) to its central square and resize it; returns (C, S, S) on [0, 1].

    Resizing is bilinear over the area that a new pixel covers, so that every old pixel counts.
    """
    cropped = central_square(pixels)
    planes = np.moveaxis(cropped, -1, 0) if cropped.ndim == 3 else cropped[None]
    resized = np.stack([_resize(plane.astype(np.float32) / MAX_PIXEL, size) for plane in planes])
    if channels == 1 and len(resized) == 3:
        resized = np.tensordot(LUMA, resized, 1)[None]
    return np.broadcast_to(resized, (channels, size, size)).copy()


def central_square(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the largest square around the centre."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _resize(plane: Matrix, size: int) -> Matrix:
    if plane.shape == (size, size):
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane), mode="F")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32)
