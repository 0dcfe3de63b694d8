"""Pictures → float32 matrix: the schema and the encoding of an image model; numpy and Pillow.

An `ImageSchema` makes every picture the same: grey or colour, its centre cropped to a square,
resized. An `ImageEncoding` puts the intensities on the model's scale. A row of the matrix (N, F)
is a picture's pixels, channel by channel, row by row: F = channels · size².
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

from anomaly_vae.data.arrow import normalise_array
from anomaly_vae.data.column_types import IMAGE_COLUMN, ColumnSpec
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch, RowProblem
from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import read_bytes, read_file
from anomaly_vae.images.encoding import FLAT, IMAGE
from anomaly_vae.images.pixels import FULL, DecodedImage, DecodeFailure, DecodeOptions
from anomaly_vae.messages import listed

if TYPE_CHECKING:
    from anomaly_vae.config import ImageData

NO_IMAGE, NO_BYTES = "no image is given", "expected the bytes of an image file"
CELLS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_null,
)
"""Types of columns that can hold images."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Grey of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """The one column that an image model reads."""

    name: str = IMAGE
    type: str = IMAGE

    @property
    def spec(self) -> ColumnSpec:
        """The description of the column."""
        return IMAGE_COLUMN


@dataclass(frozen=True)
class ImageSchema:
    """What an image model looks at, and how pictures of any kind become that."""

    size: int
    channels: int
    reading: DecodeOptions = field(default_factory=DecodeOptions)

    names = (IMAGE,)
    known: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[ImageColumn, ...]:
        """The one column."""
        return (ImageColumn(),)

    def from_pictures(self, pictures: Iterable[DecodedImage | DecodeFailure]) -> RawBatch:
        """N pictures → (N, C, S, S) float32 on [0, 1]; what shows nothing is a problem."""
        images: list[Matrix] = []
        problems: list[RowProblem] = []
        for row, picture in enumerate(pictures):
            image, reason = self._prepared(picture)
            images.append(image)
            if reason:
                problems.append(RowProblem(row, IMAGE, reason))
        stacked = np.stack(images) if images else np.zeros((0, *self._shape), np.float32)
        return batch_of(stacked, problems)

    def from_arrow(self, table: pa.RecordBatch | pa.Table) -> RawBatch:
        """Read a table whose column ``image`` holds paths or the bytes of files, one image each.

        Raises:
            DataError: there is no such column, or it holds neither.
        """
        if IMAGE not in table.schema.names:
            raise DataError(
                f"expected a column '{IMAGE}' of paths or of the bytes of files, "
                f"found {listed(table.schema.names)}",
                column=IMAGE,
            )
        cells = normalise_array(table.column(IMAGE))
        if not any(kind(cells.type) for kind in CELLS):
            reason = f"column '{IMAGE}': expected paths or bytes, found {cells.type}"
            raise DataError(reason, column=IMAGE)
        batch = self.from_pictures(map(self._of_cell, cells.to_pylist()))
        ignored = tuple(sorted(set(table.schema.names) - {IMAGE} - self.known))
        return RawBatch(batch.values, len(batch), batch.problems, ignored)

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> RawBatch:
        """Records whose ``image`` is the bytes of a file; a path is refused, whosever it is."""
        cells = (record.get(IMAGE) for record in records)
        return self.from_pictures(
            self.read(cell) if isinstance(cell, bytes) else DecodeFailure(NO_BYTES, None)
            for cell in cells
        )

    def read(self, file: Path | bytes) -> DecodedImage | DecodeFailure:
        """The one picture of a file, given by its path or its content."""
        reader = (
            read_bytes(file, self.reading)
            if isinstance(file, bytes)
            else read_file(file, self.reading)
        )
        first, more = next(reader), next(reader, None)
        return (
            first
            if more is None
            else DecodeFailure("holds several images; give one at a time", None)
        )

    def unknown(self, names: set[str]) -> tuple[str, ...]:
        """Nothing: whatever else a manifest says is not for the model."""
        del names
        return ()

    @classmethod
    def of(cls, data: ImageData) -> ImageSchema:
        """What a configuration says."""
        reading = DecodeOptions(
            window=data.window,
            axis=data.axis,
            max_pixels=data.max_pixels,
            max_bytes=data.max_bytes,
            max_frames=data.max_frames,
            max_seconds=data.max_seconds,
        )
        return cls(data.size, data.channels, reading)

    def to_json(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {"size": self.size, "channels": self.channels, "reading": asdict(self.reading)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ImageSchema:
        """The inverse of `to_json`."""
        reading = dict(content["reading"])
        if isinstance(reading["window"], list):
            reading["window"] = tuple(reading["window"])
        return cls(content["size"], content["channels"], DecodeOptions(**reading))

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def _of_cell(self, cell: str | bytes | None) -> DecodedImage | DecodeFailure:
        if cell is None:
            return DecodeFailure(NO_IMAGE, None)
        return self.read(Path(cell) if isinstance(cell, str) else cell)

    def _prepared(self, picture: DecodedImage | DecodeFailure) -> tuple[Matrix, str]:
        """(C, S, S) on [0, 1], and what is wrong with it."""
        if isinstance(picture, DecodeFailure):
            return np.zeros(self._shape, np.float32), picture.reason
        image = fitted_to(picture.pixels, self.size, self.channels)
        flat = float(image.std()) < FLAT
        return image, "all pixels are alike: the image shows nothing" if flat else ""


def batch_of(images: Matrix, problems: Sequence[RowProblem] = ()) -> RawBatch:
    """Prepared images (N, C, S, S) as a batch."""
    column: Any = images  # the other columns there are have one axis
    return RawBatch({IMAGE: column}, len(images), tuple(problems))


def fitted_to(pixels: NDArray[np.uint16], size: int, channels: int) -> Matrix:
    """(H, W) or (H, W, 3) → (C, size, size) on [0, 1]: centre cropped, then resized.

    Resizing is bilinear over the area that a new pixel covers, so that shrinking loses no detail
    to chance.
    """
    cropped = centre(pixels)
    planes = np.moveaxis(cropped, -1, 0) if cropped.ndim == 3 else cropped[None]
    resized = np.stack([_resized(plane.astype(np.float32) / FULL, size) for plane in planes])
    if channels == 1 and len(resized) == 3:
        resized = np.tensordot(LUMA, resized, 1)[None]
    return np.broadcast_to(resized, (channels, size, size)).copy()


def centre(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The largest square around the centre."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _resized(plane: Matrix, size: int) -> Matrix:
    if plane.shape == (size, size):
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane), mode="F")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32)
