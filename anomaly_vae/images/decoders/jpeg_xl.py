"""Decode JPEG XL (ISO/IEC 18181) with libjxl, once its header has been checked.

The header is read here, because libjxl allocates memory for everything that a header declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoders.netpbm import blended
from anomaly_vae.images.decoders.raster import windowed
from anomaly_vae.images.pixels import TRUNCATED, DecodeOptions, Frames, Pixels

CODESTREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
DIMENSION_BITS, DEPTHS, FLOAT_DEPTHS = (9, 13, 18, 30), (8, 10, 12), (32, 16, 24)
RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Ratios of width to height that a header can name."""
MAX_HEADER = 64
"""Number of bytes that hold the size and the depth of an image."""


class Header(NamedTuple):
    """The size, the bits per sample and the channels beside colours, such as alpha."""

    height: int
    width: int
    bits: int
    is_float: bool
    extra_channels: int


class _Bits:
    """A reader of little-endian bits."""

    def __init__(self, content: bytes) -> None:
        self._bits, self._left = int.from_bytes(content, "little"), 8 * len(content)

    def take(self, count: int) -> int:
        """Return the next bits as a number.

        Raises:
            DataError: There are no more.
        """
        self._left -= count
        if self._left < 0:
            raise DataError(TRUNCATED)
        value = self._bits & (1 << count) - 1
        self._bits >>= count
        return value


def open_jpeg_xl(content: bytes, options: DecodeOptions) -> Frames:
    """Open a file of one image; alpha is blended with black, and floats are mapped by a window.

    Raises:
        DataError: The file exceeds a limit, is truncated, is animated or has further channels.
    """
    header = read_header(content)
    options.check_size(header.height, header.width)
    if header.extra_channels > 1:
        raise DataError(f"it has {header.extra_channels} extra channels; save it without them")

    def pixels(_: int) -> Pixels:
        decoded = decode_jpeg_xl(content)
        layers = decoded.reshape(header.height, header.width, -1)
        if decoded.dtype.kind != "f":
            return blended(layers, (1 << header.bits) - 1)
        colours = layers[..., 0] if layers.shape[-1] < 3 else layers[..., :3]
        return windowed(colours.astype(np.float64), options)

    return Frames(range(1), pixels)


def decode_jpeg_xl(stream: bytes) -> NDArray[Any]:
    """Decode an image whose header was checked to (H, W) or (H, W, C)."""
    from imagecodecs import jpegxl_decode

    return np.asarray(jpegxl_decode(stream))


def read_header(stream: bytes) -> Header:
    """Read the header of a codestream, in its container or not (ISO/IEC 18181-1 annex D).

    Raises:
        DataError: It is truncated, or the image is animated or has a preview.
    """
    bits = _Bits(_codestream(stream)[2:MAX_HEADER])
    height, width = _size(bits)
    if bits.take(1):  # all further fields have their defaults
        return Header(height, width, 8, False, 0)
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(1):
            _size(bits)  # intrinsic size
        if bits.take(2):
            raise DataError("it is animated or has a preview; save a single image")
    is_float = bool(bits.take(1))
    depth = _depth(bits, is_float)
    bits.take(1)  # whether 16 bits suffice for its buffers
    extra = (0, 1, 2, 1)[kind := bits.take(2)] + bits.take((0, 0, 4, 12)[kind])
    return Header(height, width, depth, is_float, extra)


def _size(bits: _Bits) -> tuple[int, int]:
    """Return a height and a width."""
    small = bits.take(1)
    height = _dimension(bits, small)
    if not (ratio := bits.take(3)):
        return height, _dimension(bits, small)
    numerator, denominator = RATIOS[ratio - 1]
    return height, height * numerator // denominator


def _dimension(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (bits.take(5) + 1)
    return bits.take(DIMENSION_BITS[bits.take(2)]) + 1


def _depth(bits: _Bits, is_float: bool) -> int:
    """Return the bits per sample, and skip the bits of the exponent."""
    kind = bits.take(2)
    depths = FLOAT_DEPTHS if is_float else DEPTHS
    depth = depths[kind] if kind < len(depths) else bits.take(6) + 1
    if is_float:
        bits.take(4)
    return depth


def _codestream(stream: bytes) -> bytes:
    """Return the first part of the codestream in a container.

    Raises:
        DataError: There is none.
    """
    if stream.startswith(CODESTREAM):
        return stream
    for kind, body in _boxes(stream):
        if kind in {b"jxlc", b"jxlp"}:
            return body if kind == b"jxlc" else body[4:]
    raise DataError(TRUNCATED)


def _boxes(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the body of each box of a container (ISO/IEC 14496-12 4.2)."""
    position = 0
    while position + 8 <= len(stream):
        size, start = int.from_bytes(stream[position : position + 4]), position + 8
        if size == 1:
            size, start = int.from_bytes(stream[start : start + 8]), start + 8
        end = position + size if size else len(stream)
        yield stream[position + 4 : position + 8], stream[start:end]
        position = max(end, start)
