"""Scale the intensities of images to those a model expects."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anomaly_vae.data.converters import Levels
from anomaly_vae.data.encoding import EncodedColumn, Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.images.masking import ENCODED_OUTSIDE, LIMIT, OWN
from anomaly_vae.images.pixels import MASK_KEYWORD, MAX_PIXEL, SPACING_KEYWORD, DecodedImage
from anomaly_vae.images.tiling import Tiling

IMAGE = "image"
"""Name of the only column of an image model, which holds paths or the bytes of files."""
MIN_STD = 1e-3
"""Standard deviation on [0, 1] below which an image counts as uniform."""
STANDARDISED_MEAN = 0.5
"""Mean of a standardised image."""
STANDARDISED_STD = 0.25
"""Standard deviation of a standardised image."""
MAX_DEVIATION = 8.0
"""Limit to which standardised pixels are clipped, in standard deviations from the mean."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """The shape of one encoded image."""

    channels: int
    size: int

    @property
    def n_columns(self) -> int:
        """Number F of values in an image."""
        return self.channels * self.size**2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, S, S)."""
        return self.channels, self.size, self.size


def encode_png(image: DecodedImage) -> bytes:
    """Return a PNG that `decoding.read_bytes` decodes to the same pixels, spacing and mask.

    It holds no other metadata. Colours must have 8 bits, since Pillow's PNGs have no more.
    """
    pixels = image.pixels
    if pixels.ndim == 3 or not (pixels % 257).any():
        pixels = (pixels >> 8).astype(np.uint8)
    buffer, text = io.BytesIO(), PngInfo()
    if image.spacing:
        text.add_text(SPACING_KEYWORD, " ".join(map(repr, image.spacing)))
    if image.mask is not None:
        packed = zlib.compress(np.packbits(image.mask).tobytes())
        text.add_text(MASK_KEYWORD, base64.b64encode(packed).decode())
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


@dataclass(frozen=True)
class ImageEncoding:
    """Intensities on the model's scale, and the tiles that the model sees of an image."""

    layout: ImageLayout
    intensity: Literal["standardise", "unit"]
    tiling: Tiling | None = None
    """Tiles of a large image; None if the model sees the whole image at once."""
    masked: bool = False
    """Whether some pixels do not count, which are `ENCODED_OUTSIDE`."""

    tile = 1
    """Number of images scored at a time: batches are no faster, and scores must not depend on
    neighbours."""

    columns: ClassVar[tuple[EncodedColumn, ...]] = ()
    """Columns that groups and drift reports can refer to: an image has none."""
    first_positions: ClassVar[Mapping[str, int]] = {}
    """Index of the first cell of each of these columns."""

    @property
    def model_layout(self) -> ImageLayout:
        """The shape of what the model sees at once: an image or a tile of it."""
        side = self.tiling.side if self.tiling else self.layout.size
        return ImageLayout(self.layout.channels, side)

    @property
    def standardises_pieces(self) -> bool:
        """Whether all pixels that the model sees at once are standardised together."""
        return self.intensity == "standardise" and not self.tiling and not self.masked

    def pieces(self, x: Matrix) -> Matrix:
        """Return what the model sees of N encoded images (N, F): the images or all tiles of them.

        Tiles are not standardised again, so that they differ in brightness as in the image.
        """
        x = self.fill(x)
        return self.tiling.cut(x, self.layout.channels) if self.tiling else x

    def fill(self, x: Matrix, value: float = STANDARDISED_MEAN) -> Matrix:
        """Return encoded images with a value in place of the pixels that do not count."""
        return np.where(x > LIMIT, x, np.float32(value)) if self.masked else x

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
        """Encode N images (N, C, S, S) on [0, 1]; returns (N, F) float32.

        Standardised by its own mean m and standard deviation s, an image is ½ + ¼ (x − m) / s.
        Abnormal scans often differ in contrast, and a squared error on raw intensities would
        prefer the image of lower contrast.
        """
        images = np.asarray(batch.values[IMAGE], np.float32)
        images = images.reshape(len(batch), self.layout.n_columns)
        if self.masked:
            return self._encode_masked(images)
        if self.intensity == "unit" or not len(images):
            return images
        mean = images.mean(1, keepdims=True, dtype=np.float64)
        return _standardised(images, mean, images.std(1, keepdims=True, dtype=np.float64))

    def _encode_masked(self, images: Matrix) -> Matrix:
        """Encode images (N, F) of which only pixels of 0 or more count."""
        outside = images < 0
        if self.intensity == "standardise":
            seen = np.ma.array(images, np.float64, mask=outside)
            mean, std = (part.filled(0)[:, None] for part in (seen.mean(1), seen.std(1)))
            images = _standardised(images, mean, std)
        encoded: Matrix = np.where(outside, ENCODED_OUTSIDE, images)
        return encoded

    def encode_training(self, batch: RawBatch) -> Matrix:
        """Return the result of `encode`; see `TabularEncoding.encode_training`."""
        return self.encode(batch)

    def to_images(self, x: NDArray[Any]) -> Matrix:
        """Convert encoded or expected images or tiles (N, F) to (N, C, S, S) on [0, 1]."""
        whole = x.shape[1] == self.layout.n_columns
        shape = self.layout.shape if whole else self.model_layout.shape
        images: Matrix = np.clip(x.reshape(-1, *shape), 0, 1).astype(np.float32)
        return images

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Name of each pixel in explanations: its row and column from the top left."""
        side = range(self.layout.size)
        return tuple(f"pixel {row},{column}" for row in side for column in side)

    @property
    def sources(self) -> NDArray[np.intp]:
        """Number of the pixel that each encoded value belongs to, (F,)."""
        return np.tile(np.arange(self.layout.size**2), self.layout.channels)

    def per_column(self, nats: NDArray[Any]) -> NDArray[Any]:
        """Sum the channels of each pixel: (N, F) to (N, S²)."""
        pixels: NDArray[Any] = nats.reshape(*self._by_channel).sum(1)
        return pixels

    @property
    def _by_channel(self) -> tuple[int, int, int]:
        """Shape (N, C, S²) for any N."""
        return -1, self.layout.channels, self.layout.size**2

    def observed(self, batch: RawBatch) -> list[list[float]]:
        """Return for each pixel its N encoded values, averaged over channels."""
        return self.decode(self.encode(batch))

    def expected(self, batch: RawBatch, x: NDArray[Any]) -> list[list[float]]:
        """Return the result of `decode`; see `TabularEncoding.expected`."""
        del batch
        return self.decode(x)

    def decode(self, x: NDArray[Any]) -> list[list[float]]:
        """Return for each pixel its N values in x (N, F), averaged over channels."""
        pixels = x.reshape(*self._by_channel).mean(1, dtype=np.float64)
        columns: list[list[float]] = pixels.round(6).T.tolist()
        return columns

    def typical_record(self, schema: Any) -> dict[str, Any]:
        """Return a record with a synthetic image: a disc with a soft edge.

        It states the spacing and the mask that the model needs, and has no uniform part where not
        all counts.
        """
        grid = np.linspace(-1, 1, schema.size)
        radius = np.hypot(grid[:, None], grid)
        disc = MAX_PIXEL / (1 + np.exp(12 * (radius - 0.7)))
        if schema.mask:
            disc = 0.5 * disc + 0.5 * MAX_PIXEL * np.linspace(0.2, 1, schema.size)
        spacing = (schema.spacing,) * 2 if isinstance(schema.spacing, float) else None
        mask = radius < 1 if schema.mask == OWN else None
        image = DecodedImage(disc.astype(np.uint16), 0, spacing=spacing, mask=mask)
        return {IMAGE: encode_png(image)}

    def to_json(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        tiles = {"tiles": self.tiling.to_json()} if self.tiling else {}
        masked = {"masked": True} if self.masked else {}
        return {"intensity": self.intensity, **asdict(self.layout), **tiles, **masked}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ImageEncoding:
        """Restore an encoding from the content of the manifest."""
        size, tiles = content["size"], content.get("tiles")
        tiling = Tiling(size, **tiles) if tiles else None
        layout = ImageLayout(content["channels"], size)
        return cls(layout, content["intensity"], tiling, content.get("masked", False))


def _standardised(images: Matrix, mean: NDArray[np.float64], std: NDArray[np.float64]) -> Matrix:
    """Shift and scale images (N, F) with these means and standard deviations (N, 1)."""
    deviation = (images - mean) / np.maximum(std, MIN_STD)
    clipped = np.clip(deviation, -MAX_DEVIATION, MAX_DEVIATION)
    encoded: Matrix = (STANDARDISED_MEAN + STANDARDISED_STD * clipped).astype(np.float32)
    return encoded
