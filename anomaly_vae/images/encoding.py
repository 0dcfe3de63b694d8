"""Image encoding."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.data.converters import Levels
from anomaly_vae.data.encoding import EncodedColumn, Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.images.pixels import FULL, DecodedImage

IMAGE = "image"
"""The one column of an image model: paths, or the bytes of files."""


FLAT = 1e-3
"""An image whose standard deviation on [0, 1] is below this shows nothing."""


CENTER, SPREAD = 0.5, 0.25
"""Where a standardised image has its mean, and what one standard deviation becomes."""


EXTREME = 8.0
"""Standardised pixels are held within ± so many standard deviations."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """The shape of one encoded image."""

    channels: int
    size: int

    @property
    def n_columns(self) -> int:
        """Number F of values of an image."""
        return self.channels * self.size**2

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S)"""
        return self.channels, self.size, self.size


def encode_picture(picture: DecodedImage) -> bytes:
    """A PNG from which `pictures.read_bytes` gives the same pixels; nothing else is in it."""
    pixels = picture.pixels
    if pixels.ndim == 3 or not (pixels % 257).any():  # colours have 8 bits in a PNG of Pillow's
        pixels = (pixels >> 8).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class ImageEncoding:
    """Intensities on the model's scale."""

    layout: ImageLayout
    intensity: Literal["standardise", "unit"]

    tile = 1
    """Images are scored one at a time: batching gains nothing, and alone is as among others."""

    columns: ClassVar[tuple[EncodedColumn, ...]] = ()
    """Columns that groups and drift reports can refer to: an image has none."""
    first_positions: ClassVar[Mapping[str, int]] = {}
    """Index of the first cell of each of these columns."""

    @property
    def cells(self) -> NDArray[np.bool_]:
        """Mask (0, F) of the cells of each column: pixels are not hidden to explain a score."""
        return np.zeros((0, self.layout.n_columns), bool)

    def levels(self, name: str, x: Matrix) -> Levels:
        """Raise an error, since an image has no column with levels.

        Raises:
            KeyError: always.
        """
        del x
        raise KeyError(name)

    def encode(self, batch: RawBatch) -> Matrix:
        """N images (N, C, S, S) on [0, 1] → (N, F) float32.

        Standardised by its own mean m and standard deviation s, an image is ½ + ¼ (x − m) / s:
        abnormal scans tend to have another contrast, and a squared error on raw intensities then
        calls the flatter image the better one.
        """
        images = np.asarray(batch.values[IMAGE], np.float32)
        images = images.reshape(len(batch), self.layout.n_columns)
        if self.intensity == "unit" or not len(images):
            return images
        mean = images.mean(1, keepdims=True, dtype=np.float64)
        scale = np.maximum(images.std(1, keepdims=True, dtype=np.float64), FLAT)
        standardised = np.clip((images - mean) / scale, -EXTREME, EXTREME)
        encoded: Matrix = (CENTER + SPREAD * standardised).astype(np.float32)
        return encoded

    def pictures(self, x: NDArray[Any]) -> Matrix:
        """(N, F) as encoded or as the model expects it → (N, C, S, S) on [0, 1], to be shown."""
        pictures: Matrix = np.clip(x.reshape(-1, *self.layout.shape), 0, 1).astype(np.float32)
        return pictures

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What each pixel is called in an explanation: its row and column from the top left."""
        side = range(self.layout.size)
        return tuple(f"pixel {row},{column}" for row in side for column in side)

    @property
    def sources(self) -> NDArray[np.intp]:
        """(F,): which pixel each value is of, by number."""
        return np.tile(np.arange(self.layout.size**2), self.layout.channels)

    def per_column(self, nats: NDArray[Any]) -> NDArray[Any]:
        """(N, F) → (N, S²): a pixel's channels belong together."""
        pixels: NDArray[Any] = nats.reshape(*self._by_channel).sum(1)
        return pixels

    @property
    def _by_channel(self) -> tuple[int, int, int]:
        """(N, C, S²), whatever N is."""
        return -1, self.layout.channels, self.layout.size**2

    def observed(self, batch: RawBatch) -> list[list[float]]:
        """For each pixel the N values as the model saw them, the mean over channels."""
        return self.decode(self.encode(batch))

    def decode(self, x: NDArray[Any]) -> list[list[float]]:
        """(N, F) → for each pixel the N values, the mean over channels."""
        pixels = x.reshape(*self._by_channel).mean(1, dtype=np.float64)
        columns: list[list[float]] = pixels.round(6).T.tolist()
        return columns

    def typical_record(self, schema: Any) -> dict[str, Any]:
        """A made-up image, a soft disc; nobody's scan."""
        grid = np.linspace(-1, 1, schema.size)
        radius = np.hypot(grid[:, None], grid)
        disc = (FULL / (1 + np.exp(12 * (radius - 0.7)))).astype(np.uint16)
        return {IMAGE: encode_picture(DecodedImage(disc, 0))}

    def to_json(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {"intensity": self.intensity, **asdict(self.layout)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ImageEncoding:
        """The inverse of `to_json`."""
        return cls(ImageLayout(content["channels"], content["size"]), content["intensity"])
