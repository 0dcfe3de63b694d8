"""Tell which pixels of a prepared image count, by a fixed region or by the image itself.

Only numpy and Pillow are used.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.images.heatmaps import components

Mask = NDArray[np.bool_]

FOREGROUND = "foreground"
"""Value of `data.mask` for the part of an image that is not its dark background."""
OWN = "own"
"""Value of `data.mask` for a mask that comes with each image."""
MaskRule = Literal["foreground", "own"]
"""How the pixels of an image that count are found, if they are no fixed region."""
OUTSIDE = np.float32(-1)
"""Value of prepared pixels that do not count; others lie on [0, 1]."""
ENCODED_OUTSIDE, LIMIT = np.float32(-4), -3.0
"""Value of such pixels in an encoded image, and a limit between it and all other values."""
DARK, BRIGHT_QUANTILE = 0.1, 0.99
"""Share of the brightness of an image, which is a quantile of its pixels, up to which they are
dark."""
MIN_SHARE = 0.01
"""Smallest share of an image's pixels that has to count."""
NOTHING = "data.mask leaves less than 1% of it; leave it out, or train without data.mask"
"""Reason why an image without enough pixels that count is refused."""
NO_MASK = (
    "it has no mask, which the model needs; name one in the column 'mask' of a manifest, or make "
    "the pixels that do not count transparent, in a PNG"
)
"""Reason why an image without its own mask is refused."""


@dataclass(frozen=True)
class Region:
    """A fixed region (S, S) in which pixels count, as bytes of packed bits, row by row.

    Example:
        >>> region = Region.of(np.eye(3, dtype=bool))
        >>> Region.from_json(region.to_json()).pixels.astype(int).tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """

    size: int
    bits: bytes

    @property
    def pixels(self) -> Mask:
        """The region as a mask (S, S)."""
        packed = np.frombuffer(self.bits, np.uint8)
        return np.unpackbits(packed, count=self.size**2).astype(bool).reshape(self.size, -1)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        return {"size": self.size, "bits": base64.b64encode(self.bits).decode()}

    @classmethod
    def of(cls, pixels: Mask) -> Self:
        """Pack a mask (S, S)."""
        return cls(len(pixels), np.packbits(pixels).tobytes())

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Restore a region from the content of the manifest."""
        return cls(content["size"], base64.b64decode(content["bits"]))


def counted(values: Matrix, mask: str | Region, place: tuple[slice, slice]) -> Mask:
    """Return which pixels (S, S) of a prepared image count.

    Args:
        values: the image (C, S, S).
        mask: a region, or `FOREGROUND`.
        place: rows and columns that show the image; the others are padding.
    """
    if isinstance(mask, Region):
        return mask.pixels
    inside = np.zeros(values.shape[1:], bool)
    inside[place] = foreground(values.mean(0)[place])
    return inside


def foreground(grey: Matrix) -> Mask:
    """Return a mask (S, S) of a grey image without the dark parts that reach its border.

    Pixels up to a tenth of the image's brightness are dark. Dark parts inside, such as ventricles,
    belong to the foreground, because no path of dark pixels leads from them to the border. Pixels
    that touch at corners are on one path.

    Example:
        >>> ring = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0],
        ...                  [0, 0, 0, 0, 0]], np.float32)
        >>> foreground(ring).astype(int).tolist()[2]
        [0, 1, 1, 1, 0]
    """
    dark = grey <= DARK * np.quantile(grey, BRIGHT_QUANTILE)
    framed = np.pad(dark, 1, constant_values=True)
    ys, xs = np.nonzero(framed)
    root = components(xs, ys)
    framed[ys, xs] = root == root[0]
    return ~framed[1:-1, 1:-1]
