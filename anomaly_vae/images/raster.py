"""Decode PNG, JPEG and TIFF.

8-bit values k become 257·k; 16-bit grey values are kept. Palettes, CMYK and other colour spaces
become RGB; 16-bit colours keep their upper 8 bits. Transparent pixels are blended with black. EXIF
orientation is applied. Every page of a TIFF is a frame, except reduced copies of another page; a
JPEG is one frame, and its previews are ignored. Values without a fixed range (float, signed or
32-bit TIFF) are mapped by the window of the options, or by percentiles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from anomaly_vae.images.pixels import (
    MAX_PIXEL,
    DecodeOptions,
    Frames,
    Pixels,
    check_finite,
    check_jpeg_scans,
    percentile_bounds,
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
"""Function that turns an image upright, by its EXIF orientation."""
SUBFILE, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT = 254, 262, 322, 323
"""TIFF tags."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16-bit grey images."""
GREY = ("1", "L", "LA", "La")
"""Pillow's modes of grey images with at most 8 bits."""


def open_raster(content: bytes, options: DecodeOptions, kind: str) -> Frames:
    """Open a file of a format that Pillow calls ``kind``.

    Raises:
        DataError: The file exceeds a limit.
        Exception: Pillow raises other errors on damaged bytes.
    """
    if kind == "JPEG":
        check_jpeg_scans(content)
    try:
        image = Image.open(BytesIO(content), formats=[kind])
    except Image.DecompressionBombError:  # raised before the size is known
        factory, _ = Image.OPEN[kind]
        image = factory(BytesIO(content), "")
        options.check_size(image.height, image.width)
        raise
    return Frames(_pages(image, kind, options), partial(_page, image, options))


def _pages(image: Image.Image, kind: str, options: DecodeOptions) -> list[int]:
    """Return the numbers of the frames."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_pages(image, options)
    count = getattr(image, "n_frames", 1) if kind == "PNG" else 1
    options.check_frames(count)
    return list(range(count))


def _tiff_pages(image: TiffImagePlugin.TiffImageFile, options: DecodeOptions) -> list[int]:
    """Return the numbers of the pages, counting to the limit only: empty pages cost few bytes."""
    pages: list[int] = []
    for page in range(options.max_frames + 1):
        try:
            image.seek(page)
        except EOFError:
            break
        if not (page and image.tag_v2.get(SUBFILE, 0) & 1):
            pages.append(page)
    else:
        options.check_frames(options.max_frames + 1)
    options.check_frames(len(pages))
    return pages


def _page(image: Image.Image, options: DecodeOptions, number: int) -> Pixels:
    image.seek(number)
    options.check_size(image.height, image.width)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        options.check_size(tags.get(TILE_HEIGHT, 1), tags.get(TILE_WIDTH, 1))
        negative = tags.get(PHOTOMETRIC) == 0
        return _pixels(image, options, negative)  # Pillow has applied its orientation
    pixels = _pixels(image, options)
    upright = ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return upright(pixels) if upright else pixels


def _pixels(image: Image.Image, options: DecodeOptions, negative: bool = False) -> Pixels:
    """Return the pixels; ``negative``: 0 is white, which Pillow inverts for 8-bit images only."""
    if image.mode in DEEP:
        deep = np.asarray(image).astype(np.uint16)
    elif image.mode in {"I", "F"}:
        deep = _windowed(np.asarray(image, np.float64), options)
    else:
        return _eight_bits(image)
    return MAX_PIXEL - deep if negative else deep


def _windowed(values: NDArray[np.float64], options: DecodeOptions) -> Pixels:
    check_finite(values)
    if isinstance(options.intensity_window, tuple):
        return stretch(values, window_bounds(*options.intensity_window))
    return stretch(values, percentile_bounds(values))


def _eight_bits(image: Image.Image) -> Pixels:
    grey = image.mode in GREY
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if grey else "RGB")).astype(np.uint16) * 257
    layers = np.asarray(image.convert("LA" if grey else "RGBA")).astype(np.float64)
    on_black = np.rint(layers[..., :-1] * layers[..., -1:] * (257 / 255)).astype(np.uint16)
    return on_black[..., 0] if grey else on_black
