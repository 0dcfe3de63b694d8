"""Decode the formats that Pillow reads: PNG, JPEG, GIF, BMP, WebP and JPEG 2000.

8-bit values k become 257·k; 16-bit grey values are kept. Palettes, CMYK and other colour spaces
become RGB; 16-bit colours keep their upper 8 bits. Transparent pixels are blended with black, and
do not count for a model with `data.mask: own`. EXIF orientation is applied. Every frame of an
animation counts, as it is shown; a JPEG is one frame, and its previews are ignored. The module
`tiff` decodes pages of TIFF with the same functions.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from anomaly_vae.errors import DataError
from anomaly_vae.images.pixels import (
    MASK_KEYWORD,
    SPACING_KEYWORD,
    TRUNCATED,
    DecodeOptions,
    Frames,
    Pixels,
    check_finite,
    joined_windows,
    percentile_bounds,
    spacing_of,
    stretch,
    window_bounds,
)

Values = NDArray[Any]

ORIENTATIONS: dict[int, Callable[[Values], Values]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p[:, ::-1].swapaxes(0, 1),
}
"""Function that turns an image upright, by its EXIF orientation."""
ANIMATED = {"PNG", "GIF", "WEBP"}
"""Formats whose files can hold several frames."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16-bit grey images."""
GREY = ("1", "L", "LA", "La")
"""Pillow's modes of grey images with at most 8 bits."""
GIF_EXTENSION = 0x21
"""First byte of an extension block of a GIF."""


def open_raster(content: bytes, options: DecodeOptions, kind: str) -> Frames:
    """Open a file of a format that Pillow calls ``kind``.

    Raises:
        DataError: The file exceeds a limit.
        Exception: Pillow raises other errors on damaged bytes.
    """
    if kind == "GIF":
        check_gif(content, options)
    image = open_with_pillow(content, options, kind)
    count = getattr(image, "n_frames", 1) if kind in ANIMATED else 1
    options.check_frames(count)
    spacing = spacing_of(str(image.info.get(SPACING_KEYWORD, "")).split())
    decode, mask = partial(_frame, image, options), partial(_mask, image)
    return Frames(range(count), decode, spacing=lambda _: spacing, mask=mask)


def open_with_pillow(content: bytes, options: DecodeOptions, kind: str) -> Image.Image:
    """Open a file, and check the size of one that is too large for Pillow.

    Raises:
        DataError: The image has more pixels than the limit.
        DecompressionBombError: The image has too many pixels for Pillow.
    """
    try:
        return Image.open(BytesIO(content), formats=[kind])
    except Image.DecompressionBombError:  # raised before the size is known
        factory, _ = Image.OPEN[kind]
        image = factory(BytesIO(content), "")
        options.check_size(image.height, image.width)
        raise


def check_gif(content: bytes, options: DecodeOptions) -> None:
    """Refuse a GIF by the number and the size of its frames, before Pillow composes any.

    Raises:
        DataError: It exceeds a limit or is truncated.
    """
    position = 13 + _palette_bytes(content[10])
    count = 0
    while content[position : position + 1] in {b"!", b","}:
        if content[position] == GIF_EXTENSION:
            position = _after_blocks(content, position + 2)
            continue
        left, top, width, height = np.frombuffer(content, "<u2", 4, position + 1).tolist()
        options.check_size(top + height, left + width)
        options.check_frames(count := count + 1)
        start = position + 10 + _palette_bytes(content[position + 9])
        position = _after_blocks(content, start + 1)


def _palette_bytes(flags: int) -> int:
    """Return the size of a colour table in a GIF, by the flags of its descriptor."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(content: bytes, position: int) -> int:
    """Return the position after a chain of data blocks of a GIF."""
    while position < len(content):
        size = content[position]
        position += size + 1
        if not size:
            return position
    raise DataError(TRUNCATED)


def _frame(image: Image.Image, options: DecodeOptions, number: int) -> Pixels:
    image.seek(number)
    options.check_size(image.height, image.width)
    return _upright(image, pillow_pixels(image))


def _upright(image: Image.Image, values: Values) -> Values:
    """Return values (H, W, …) of a frame as its EXIF orientation says."""
    turn = ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return turn(values) if turn else values


def _mask(image: Image.Image, number: int) -> NDArray[np.bool_] | None:
    """Return the pixels (H, W) that count in a frame: those in its text, or not transparent ones.

    None if the file states none, or a text that is no mask of this size.
    """
    if text := image.info.get(MASK_KEYWORD):
        return _packed_mask(str(text), image.height, image.width)
    if not image.has_transparency_data:
        return None
    image.seek(number)
    if image.mode in DEEP:
        return _upright(image, np.asarray(image) != image.info.get("transparency"))
    return _upright(image, np.asarray(image.convert("RGBA"))[..., 3] > 0)


def _packed_mask(text: str, height: int, width: int) -> NDArray[np.bool_] | None:
    size = height * width
    try:
        stream = base64.b64decode(text, validate=True)
        content = zlib.decompressobj().decompress(stream, -(-size // 8) + 1)
    except (ValueError, zlib.error):
        return None
    if len(content) != -(-size // 8):
        return None
    bits = np.unpackbits(np.frombuffer(content, np.uint8), count=size)
    return bits.astype(bool).reshape(height, width)


def pillow_pixels(image: Image.Image) -> Pixels:
    """Return the pixels of an open image, (H, W) or (H, W, 3)."""
    return _deep_pixels(image) if image.mode in DEEP else _eight_bits(image)


def _deep_pixels(image: Image.Image) -> Pixels:
    deep = np.asarray(image).astype(np.uint16)
    transparent = image.info.get("transparency")
    return np.where(deep == transparent, 0, deep) if isinstance(transparent, int) else deep


def _eight_bits(image: Image.Image) -> Pixels:
    grey = image.mode in GREY
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if grey else "RGB")).astype(np.uint16) * 257
    layers = np.asarray(image.convert("LA" if grey else "RGBA")).astype(np.float64)
    on_black = np.rint(layers[..., :-1] * layers[..., -1:] * (257 / 255)).astype(np.uint16)
    return on_black[..., 0] if grey else on_black


def windowed(values: NDArray[np.float64], options: DecodeOptions) -> Pixels:
    """Map values without a fixed range by the window of the options, or by percentiles.

    Several windows of a grey image become channels (H, W, C).

    Raises:
        DataError: Some value is NaN or infinite.
    """
    check_finite(values)
    if options.windows and values.ndim == 2:
        each = (stretch(values, window_bounds(*window)) for window in options.windows)
        return joined_windows(list(each))
    if isinstance(options.intensity_window, tuple):
        return stretch(values, window_bounds(*options.intensity_window))
    return stretch(values, percentile_bounds(values))
