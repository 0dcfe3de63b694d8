"""Decode compressed DICOM frames, as a plugin of pydicom.

Pillow decodes 8-bit JPEG; imagecodecs decodes all other JPEG processes, JPEG-LS and JPEG 2000,
HTJ2K included; RLE (DICOM PS3.5 annex G) is decoded here. Each transfer syntax has exactly one
decoder, so that a damaged frame is never passed on to another library. The size and the number of
components that a frame declares must match the DICOM header before the frame is decoded.

Only those functions of imagecodecs are called that survive damaged input: libjpeg-turbo behind
``jpeg8_decode``, CharLS behind ``jpegls_decode`` and OpenJPEG behind ``jpeg2k_decode``. Its other
decoders of lossless JPEG (``ljpeg``, ``jpegsof3``) and of HTJ2K (``htj2k``) end the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.decoders import pillow
from pydicom.pixels.decoders.base import Decoder, DecodeRunner

from anomaly_vae.images.pixels import check_jpeg_scans

MAX_OVERHEAD = 1 << 16
"""Maximum size of a frame beyond twice its uncompressed pixels, in bytes."""

JPEG_BASELINE = (uid.JPEGBaseline8Bit,)
JPEG_EXTENDED = (uid.JPEGExtended12Bit,)
JPEG_LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (
    uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K,
)  # fmt: skip
IMAGECODECS = (*JPEG_EXTENDED, *JPEG_LOSSLESS, *JPEG_LS, *JPEG_2000)
"""Transfer syntaxes that need imagecodecs."""

DECODER_DEPENDENCIES: dict[uid.UID, tuple[str, ...]] = {
    **dict.fromkeys(JPEG_BASELINE, ("pillow",)),
    **dict.fromkeys(IMAGECODECS, ("imagecodecs", "pillow")),
    uid.RLELossless: ("numpy",),
}
"""Packages that decode each transfer syntax, as pydicom requires of a plugin."""

START_OF_IMAGE_2000 = b"\xff\x4f\xff\x51"
"""First four bytes of a JPEG 2000 codestream: markers SOC and SIZ."""
START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
"""Marker codes of JPEG frame headers, JPEG-LS included."""
END_OF_IMAGE, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""JPEG markers followed by a segment; TEM (01) and restart markers (D0 to D7) have none."""


def is_available(syntax: str) -> bool:
    """Return whether the package that decodes this transfer syntax is installed."""
    if syntax in IMAGECODECS:
        return find_spec("imagecodecs") is not None
    return syntax in DECODER_DEPENDENCIES


def decoder_for(syntax: uid.UID) -> Decoder:
    """Return pydicom's decoder of a transfer syntax with this module as its only plugin."""
    decoder = Decoder(syntax)
    decoder.add_plugin("anomaly_vae", (__name__, "decode_frame"))
    return decoder


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes | bytearray:
    """Decode one compressed frame to its samples; called by pydicom.

    Raises:
        ValueError: The frame is damaged, or its size is not the one in the DICOM header.
    """
    _check_length(frame, runner)
    if runner.transfer_syntax == uid.RLELossless:
        return decode_rle(frame, runner)
    _check_shape(frame, runner)
    return CODECS[runner.transfer_syntax](frame, runner)


def _check_length(frame: bytes, runner: DecodeRunner) -> None:
    samples = runner.rows * runner.columns * runner.samples_per_pixel
    if len(frame) > 2 * samples * runner.bits_allocated // 8 + MAX_OVERHEAD:
        raise ValueError("a frame is longer than its pixels would be uncompressed")


def _check_shape(frame: bytes, runner: DecodeRunner) -> None:
    shape = _shape_2000 if runner.transfer_syntax in JPEG_2000 else _shape_jpeg
    if shape(frame) != _shape_in_header(runner):
        raise ValueError("a frame is not of the shape in the DICOM header")


def _shape_in_header(runner: DecodeRunner) -> tuple[int, int, int]:
    """Return (height, width, samples per pixel) from the DICOM header."""
    return runner.rows, runner.columns, runner.samples_per_pixel


def _shape_2000(frame: bytes) -> tuple[int, int, int]:
    """Read (height, width, components) from the SIZ segment (ITU-T T.800 A.5.1)."""
    start = frame.index(START_OF_IMAGE_2000) + 8
    right, bottom, left, top = np.frombuffer(frame, ">u4", 4, start).tolist()
    return bottom - top, right - left, int.from_bytes(frame[start + 32 : start + 34])


def _shape_jpeg(frame: bytes) -> tuple[int, int, int]:
    """Read (height, width, components) from the frame header of a JPEG or JPEG-LS stream."""
    header = next(body for code, body in _segments(frame) if code in START_OF_FRAME)
    return int.from_bytes(header[1:3]), int.from_bytes(header[3:5]), header[5]


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the code and the body of each marker segment of a JPEG stream (ITU-T T.81 annex B)."""
    position = 2
    while (found := MARKER.search(stream, position)) and found[0] != END_OF_IMAGE:
        position = found.end()
        stop = position + int.from_bytes(stream[position : position + 2])
        yield stream[position - 1], stream[position + 2 : stop]
        position = max(stop, position + 2)


def _decode_jpeg(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode 8-bit JPEG with Pillow."""
    check_jpeg_scans(frame)
    return pillow._decode_frame(frame, runner)


def _decode_extended(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode JPEG Extended, whose samples have 8 or 12 bits."""
    decode = _decode_jpeg if runner.bits_stored == 8 else _decode_deep_jpeg
    return decode(frame, runner)


def _decode_deep_jpeg(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode 12-bit or lossless JPEG with libjpeg-turbo, without converting colours.

    libjpeg-turbo fills the rest of a truncated frame with grey, so that the end of the frame is
    checked first. Like Pillow, it does not report damage between its markers.
    """
    from imagecodecs import jpeg8_decode

    check_jpeg_scans(frame)
    if frame.rfind(END_OF_IMAGE) < frame.rfind(START_OF_SCAN):
        raise ValueError("a frame is truncated")
    colours = "RGB" if runner.samples_per_pixel == 3 else None
    return _samples(jpeg8_decode(frame, colorspace=colours, outcolorspace=colours), runner)


def _decode_jpeg_ls(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode JPEG-LS with CharLS.

    CharLS searches a stream without an end marker for up to ten seconds, so one is appended.
    """
    from imagecodecs import jpegls_decode

    return _samples(jpegls_decode(frame + END_OF_IMAGE), runner)


def _decode_2000(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode JPEG 2000 or HTJ2K with OpenJPEG, from the codestream whose size was checked."""
    from imagecodecs import jpeg2k_decode

    if runner.photometric_interpretation in {"YBR_ICT", "YBR_RCT"}:
        runner.set_option("photometric_interpretation", "RGB")  # OpenJPEG has converted it
    return _samples(jpeg2k_decode(frame[frame.index(START_OF_IMAGE_2000) :]), runner)


def _samples(decoded: NDArray[Any], runner: DecodeRunner) -> bytes:
    """Return decoded pixels (H, W) or (H, W, C) as bytes, and tell pydicom how they are laid out.

    Raises:
        ValueError: The shape is not the one in the DICOM header.
    """
    if decoded.reshape(*decoded.shape[:2], -1).shape != _shape_in_header(runner):
        raise ValueError("a frame is not of the shape in the DICOM header")
    runner.set_option("bits_allocated", 8 * decoded.itemsize)
    runner.set_option("planar_configuration", 0)
    return decoded.tobytes()


def decode_rle(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame of byte planes, most significant first (DICOM PS3.5 annex G)."""
    size, depth = runner.rows * runner.columns, runner.bits_allocated // 8
    count = runner.samples_per_pixel * depth
    header = np.frombuffer(frame, "<u4", 16)
    if header[0] != count or not 0 < count < len(header):
        raise ValueError("an unexpected number of RLE segments")
    offsets = [*header[1 : count + 1].tolist(), len(frame)]
    planes = [_unpack(frame[start:stop], size) for start, stop in pairwise(offsets)]
    stacked = np.stack(planes).reshape(runner.samples_per_pixel, depth, size)
    runner.set_option("planar_configuration", 1)
    return stacked[:, ::-1].transpose(0, 2, 1).tobytes()


def _unpack(segment: bytes, size: int) -> NDArray[np.uint8]:
    """Decode PackBits, stopping at ``size`` bytes."""
    unpacked, position = bytearray(), 0
    while len(unpacked) < size:
        code = segment[position]
        if code < 128:
            unpacked += segment[position + 1 : position + 2 + code]
            position += 2 + code
        elif code > 128:
            unpacked += segment[position + 1 : position + 2] * (257 - code)
            position += 2
        else:
            position += 1
    return np.frombuffer(unpacked, np.uint8, size)


CODECS: dict[str, Callable[[bytes, DecodeRunner], bytes | bytearray]] = {
    **dict.fromkeys(JPEG_BASELINE, _decode_jpeg),
    **dict.fromkeys(JPEG_EXTENDED, _decode_extended),
    **dict.fromkeys(JPEG_LOSSLESS, _decode_deep_jpeg),
    **dict.fromkeys(JPEG_LS, _decode_jpeg_ls),
    **dict.fromkeys(JPEG_2000, _decode_2000),
}
