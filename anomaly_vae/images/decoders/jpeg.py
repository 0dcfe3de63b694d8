"""Read JPEG and JPEG-LS streams: their markers, their sizes, and the processes that Pillow lacks.

Pillow decodes 8-bit JPEG. imagecodecs decodes JPEG of 12 bits and lossless JPEG with
libjpeg-turbo, and JPEG-LS with CharLS. It is imported when the first such stream arrives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoders.raster import open_raster
from anomaly_vae.images.pixels import DecodeOptions, Frames, Pixels, full_range

MAX_SCANS = 100
"""Maximum number of scans in a JPEG stream; real images have about ten."""
START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
"""Marker codes of JPEG frame headers, JPEG-LS included."""
LOSSLESS, JPEG_LS = 0xC3, 0xF7
"""Marker codes of the frame headers of lossless JPEG (Huffman) and JPEG-LS."""
END_OF_IMAGE, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""JPEG markers followed by a segment; TEM (01) and restart markers (D0 to D7) have none."""


class FrameHeader(NamedTuple):
    """The marker code of a JPEG frame, its bits per sample and its size."""

    code: int
    precision: int
    height: int
    width: int
    components: int


def open_jpeg(content: bytes, options: DecodeOptions) -> Frames:
    """Open a JPEG or JPEG-LS file. Samples of more than 8 bits are scaled to the full range.

    Raises:
        DataError: The file exceeds a limit.
        Exception: The libraries raise other errors on damaged bytes.
    """
    check_jpeg_scans(content)
    header = frame_header(content)
    if header is None or (header.precision == 8 and header.code not in {LOSSLESS, JPEG_LS}):
        return open_raster(content, options, "JPEG")
    options.check_size(header.height, header.width)
    decode = decode_jpeg_ls if header.code == JPEG_LS else decode_deep_jpeg

    def pixels(_: int) -> Pixels:
        return full_range(decode(content), header.precision)

    return Frames(range(1), pixels)


def check_jpeg_scans(stream: bytes) -> None:
    """Refuse a JPEG stream with many scans; decoding each is a pass over all pixels.

    Raises:
        DataError: The stream has more than 100 scans.
    """
    if stream.count(START_OF_SCAN) > MAX_SCANS:
        raise DataError(f"its JPEG data has more than {MAX_SCANS} scans; export it again")


def frame_header(stream: bytes) -> FrameHeader | None:
    """Return the first frame header of a JPEG or JPEG-LS stream, None without one."""
    for code, body in segments(stream):
        if code in START_OF_FRAME and len(body) > 5:
            height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
            return FrameHeader(code, body[0], height, width, body[5])
    return None


def segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the code and the body of each marker segment of a JPEG stream (ITU-T T.81 annex B)."""
    position = 2
    while (found := MARKER.search(stream, position)) and found[0] != END_OF_IMAGE:
        position = found.end()
        stop = position + int.from_bytes(stream[position : position + 2])
        yield stream[position - 1], stream[position + 2 : stop]
        position = max(stop, position + 2)


def decode_deep_jpeg(stream: bytes, colours: str | None = None) -> NDArray[Any]:
    """Decode 12-bit or lossless JPEG with libjpeg-turbo to (H, W) or (H, W, C).

    libjpeg-turbo fills the rest of a truncated stream with grey, so that the end of the stream is
    checked first. Like Pillow, it does not report damage between its markers.

    Args:
        stream: The JPEG stream.
        colours: The colour space of the stream and of the result; None converts YCbCr to RGB.
    """
    from imagecodecs import jpeg8_decode

    if stream.rfind(END_OF_IMAGE) < stream.rfind(START_OF_SCAN):
        raise ValueError("the stream is truncated")
    return np.asarray(jpeg8_decode(stream, colorspace=colours, outcolorspace=colours))


def decode_jpeg_ls(stream: bytes) -> NDArray[Any]:
    """Decode JPEG-LS with CharLS to (H, W) or (H, W, C).

    CharLS searches a stream without an end marker for up to ten seconds, so one is appended.
    """
    from imagecodecs import jpegls_decode

    return np.asarray(jpegls_decode(stream + END_OF_IMAGE))
