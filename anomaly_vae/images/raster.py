"""PNG, JPEG and TIFF → pictures.

8-bit values k become 257·k, 16-bit grey ones stay as they are. Palettes become colours, and so do
CMYK and the like; 16-bit colour keeps its upper 8 bits. Transparency is laid on black. EXIF
orientation is applied. Every page of a TIFF is a frame, except smaller copies of another; of a
JPEG there is one, whatever previews it holds. Numbers without a fixed range (float, signed or
32-bit TIFF) are shown by the reading's window, or by percentiles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from anomaly_vae.images.pixels import (
    FULL,
    DecodeOptions,
    Frames,
    Pixels,
    check_scans,
    percentile_bounds,
    refuse_nan,
    stretch,
    window_bounds,
)

ORIENTATIONS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p[:, ::-1].swapaxes(0, 1),
}
"""EXIF orientation → what makes the picture upright."""
SUBFILE, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT = 254, 262, 322, 323
"""Tags of TIFF."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
GREY = ("1", "L", "LA", "La")
"""Modes of Pillow: 16 bits; 8 bits or fewer without colour."""


def open_raster(content: bytes, reading: DecodeOptions, kind: str) -> Frames:
    """The frames of a file that Pillow calls by this kind.

    Raises:
        DataError: it is over a limit. And whatever Pillow raises on damaged bytes.
    """
    if kind == "JPEG":
        check_scans(content)
    try:
        image = Image.open(BytesIO(content), formats=[kind])
    except Image.DecompressionBombError:  # raised before the size can be asked for
        factory, _ = Image.OPEN[kind]
        image = factory(BytesIO(content), "")
        reading.check_size(image.height, image.width)
        raise
    return Frames(_pages(image, kind, reading), partial(_page, image, reading))


def _pages(image: Image.Image, kind: str, reading: DecodeOptions) -> list[int]:
    """The numbers of the frames."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_pages(image, reading)
    count = getattr(image, "n_frames", 1) if kind == "PNG" else 1
    reading.check_frames(count)
    return list(range(count))


def _tiff_pages(image: TiffImagePlugin.TiffImageFile, reading: DecodeOptions) -> list[int]:
    """Counted no further than the limit: directories cost next to nothing to write."""
    pages: list[int] = []
    for page in range(reading.max_frames + 1):
        try:
            image.seek(page)
        except EOFError:
            break
        if not (page and image.tag_v2.get(SUBFILE, 0) & 1):
            pages.append(page)
    else:
        reading.check_frames(reading.max_frames + 1)
    reading.check_frames(len(pages))
    return pages


def _page(image: Image.Image, reading: DecodeOptions, number: int) -> Pixels:
    image.seek(number)
    reading.check_size(image.height, image.width)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        reading.check_size(tags.get(TILE_HEIGHT, 1), tags.get(TILE_WIDTH, 1))
        negative = tags.get(PHOTOMETRIC) == 0
        return _pixels(image, reading, negative)  # Pillow has turned it upright
    pixels = _pixels(image, reading)
    upright = ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return upright(pixels) if upright else pixels


def _pixels(image: Image.Image, reading: DecodeOptions, negative: bool = False) -> Pixels:
    """All modes of Pillow; ``negative`` says that 0 is white, which it heeds in 8 bits only."""
    if image.mode in DEEP:
        deep = np.asarray(image).astype(np.uint16)
    elif image.mode in {"I", "F"}:
        deep = _windowed(np.asarray(image, np.float64), reading)
    else:
        return _eight_bits(image)
    return FULL - deep if negative else deep


def _windowed(values: NDArray[np.float64], reading: DecodeOptions) -> Pixels:
    refuse_nan(values)
    if isinstance(reading.intensity_window, tuple):
        return stretch(values, window_bounds(*reading.intensity_window))
    return stretch(values, percentile_bounds(values))


def _eight_bits(image: Image.Image) -> Pixels:
    grey = image.mode in GREY
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if grey else "RGB")).astype(np.uint16) * 257
    layers = np.asarray(image.convert("LA" if grey else "RGBA")).astype(np.float64)
    on_black = np.rint(layers[..., :-1] * layers[..., -1:] * (257 / 255)).astype(np.uint16)
    return on_black[..., 0] if grey else on_black
