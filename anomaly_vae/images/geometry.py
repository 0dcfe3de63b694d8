"""Fit images of any shape into the square that a model sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.errors import DataError
from anomaly_vae.types import Fit, Spacing

Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]

SAME_SPACING = 1e-3
"""Relative difference up to which two distances between pixels count as equal."""
MAX_ASPECT = 100.0
"""Largest ratio of the sides of a pixel that is believed."""


class Grid(NamedTuple):
    """The size of an image, of its pixels, and their width relative to the one wanted."""

    height: int
    width: int
    aspect: float
    scale: float


@dataclass(frozen=True)
class Geometry:
    """The square that a model sees, and how an image is fitted into it.

    Args:
        size: Side of the square, in pixels.
        fit: "pad" scales the whole image into the square, and fills the rest with the mean of the
            image's border; "crop" takes the largest square around the centre; "stretch" scales both
            sides alike to ``size``, whatever their ratio.
        spacing: "auto" takes pixels to be as high and wide as the file says; "ignore" takes every
            pixel to be square; a number resamples pixels to so many mm, if the image then fits.

    Example:
        >>> import numpy as np
        >>> wide = np.ones((2, 4), np.float32)
        >>> Geometry(4, "pad", "auto").content(*wide.shape, aspect=1.0)  # height and width
        (2, 4)
        >>> Geometry(4, "pad", "auto").content(*wide.shape, aspect=2.0)
        (4, 4)
        >>> Geometry(4, "pad", 2.0).content(*wide.shape, aspect=1.0, scale=0.5)  # pixels of 1 mm
        (1, 2)
    """

    size: int
    fit: Fit = "crop"
    spacing: Spacing = "ignore"

    def apply(self, planes: Floats, aspect: float = 1.0, scale: float = math.inf) -> Floats:
        """Fit the planes (C, H, W) of an image into the square: (C, S, S).

        Resizing is bilinear over the area that a new pixel covers, so that every old pixel counts.

        Args:
            planes: Values of one image, for each channel.
            aspect: Height of a pixel, relative to its width.
            scale: Width of a pixel relative to the one wanted, which limits the enlargement.
        """
        if self.fit == "crop":
            planes = central_square(planes, self._used(aspect))
        _, height, width = planes.shape
        height, width = self.content(height, width, aspect, scale)
        resized = np.stack([resize(plane, height, width) for plane in planes])
        return resized if height == width == self.size else self._pad(resized)

    def to_source(
        self,
        heat: Floats,
        height: int,
        width: int,
        aspect: float = 1.0,
        outside: float = 0.0,
        scale: float = math.inf,
    ) -> Floats:
        """Enlarge a map (S, S) of the square to the pixels (H, W) of the image it is of.

        Args:
            heat: Value of each pixel of the square.
            height: Height of the image, in pixels.
            width: Width of the image, in pixels.
            aspect: Height of a pixel, relative to its width.
            outside: Value of the pixels that cropping leaves out.
            scale: See `apply`.

        Example:
            >>> import numpy as np
            >>> square = np.arange(16, dtype=np.float32).reshape(4, 4)
            >>> Geometry(4, "pad").to_source(square, 2, 4)
            array([[ 4.,  5.,  6.,  7.],
                   [ 8.,  9., 10., 11.]], dtype=float32)
        """
        if self.fit == "crop":
            rows, columns = _central(height, width, self._used(aspect))
            source = np.full((height, width), outside, np.float32)
            shape = rows.stop - rows.start, columns.stop - columns.start
            source[rows, columns] = resize(heat, *shape)
            return source
        return resize(heat[self.place(Grid(height, width, aspect, scale))], height, width)

    def box_to_source(
        self, box: Box, height: int, width: int, aspect: float = 1.0, scale: float = math.inf
    ) -> Box:
        """Return the smallest box in an image (H, W) that covers a box in the square.

        Args:
            box: (x0, y0, x1, y1), x1 and y1 just outside, in pixels.
            height: Height of the image, in pixels.
            width: Width of the image, in pixels.
            aspect: See `apply`.
            scale: See `apply`.

        Example:
            >>> Geometry(4, "pad").box_to_source((0, 1, 2, 2), height=4, width=8)
            (0, 0, 4, 2)
        """
        rows, columns = slice(0, height), slice(0, width)
        if self.fit == "crop":
            rows, columns = _central(height, width, self._used(aspect))
        inner_height, inner_width = self.content(height, width, aspect, scale)
        x0, x1 = _stretched(box[0], box[2], inner_width, self.size, columns)
        y0, y1 = _stretched(box[1], box[3], inner_height, self.size, rows)
        return x0, y0, x1, y1

    def place(self, grid: Grid) -> tuple[slice, slice]:
        """Return the rows and columns of the square that show an image, and are no padding."""
        return self._centred(*self.content(*grid))

    def content(
        self, height: int, width: int, aspect: float, scale: float = math.inf
    ) -> tuple[int, int]:
        """Return the height and width that an image has in the square, in pixels."""
        if self.fit != "pad":
            return self.size, self.size
        tall = height * self._used(aspect)
        scale = min(scale, self.size / max(tall, width))
        return max(1, round(tall * scale)), max(1, round(width * scale))

    def is_reduced(self, height: int, width: int, aspect: float, scale: float) -> bool:
        """Return whether an image is too large for the square at the scale that is wanted."""
        return scale < math.inf and self.size / max(height * aspect, width) < (1 - 1e-6) * scale

    def removed(self, height: int, width: int, aspect: float) -> float:
        """Return the share of an image that its central square leaves out."""
        tall = height * self._used(aspect)
        return 1 - min(tall, width) / max(tall, width)

    def _used(self, aspect: float) -> float:
        return 1.0 if self.spacing == "ignore" else aspect

    def _pad(self, content: Floats) -> Floats:
        """Centre content (C, h, w) in the square, which has the mean of the content's border."""
        rows, columns = self._centred(*content.shape[1:])
        square = np.empty((len(content), self.size, self.size), np.float32)
        square[:] = _border_mean(content)[:, None, None]
        square[:, rows, columns] = content
        return square

    def _centred(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of content (h, w) in the middle of the square."""
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return slice(top, top + height), slice(left, left + width)


def central_square(planes: Floats, aspect: float = 1.0) -> Floats:
    """Return the largest square (C, h, w) around the centre of planes (C, H, W)."""
    height, width = planes.shape[1:]
    rows, columns = _central(height, width, aspect)
    return planes[:, rows, columns]


def _central(height: int, width: int, aspect: float) -> tuple[slice, slice]:
    """Return the rows and columns of the largest square around the centre."""
    side = min(height * aspect, width)
    rows, columns = max(1, round(side / aspect)), max(1, round(side))
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def _stretched(low: int, high: int, inner: int, size: int, source: slice) -> tuple[int, int]:
    """Map an interval of the square to the pixels that its content, of ``inner`` pixels, shows."""
    before, length = (size - inner) // 2, source.stop - source.start
    low, high = (min(max(end - before, 0), inner) * length for end in (low, high))
    return source.start + low // inner, source.start - -high // inner


def aspect_of(row_spacing: float, column_spacing: float) -> float:
    """Return the height of a pixel relative to its width, given distances between centres in mm.

    Raises:
        DataError: The ratio is not believable.

    Example:
        >>> aspect_of(5.0, 1.0), aspect_of(0.5, 0.5000001)
        (5.0, 1.0)
    """
    aspect = row_spacing / column_spacing
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        raise DataError(
            f"its pixels are {row_spacing:g} × {column_spacing:g} mm by its header; mend the "
            "header or set data.spacing: ignore"
        )
    return 1.0 if abs(aspect - 1) <= SAME_SPACING else aspect


def _border_mean(content: Floats) -> Floats:
    """Return the mean of the outermost pixels of each channel (C,)."""
    edges = (content[:, 0], content[:, -1], content[:, :, 0], content[:, :, -1])
    mean: Floats = np.concatenate(edges, axis=1).mean(axis=1)
    return mean


def resize(plane: Floats, height: int, width: int) -> Floats:
    """Resize a plane (H, W), bilinearly over the area that a new pixel covers."""
    if plane.shape == (height, width):
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane), mode="F")
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
