"""Decode compressed DICOM frames, as a plugin of pydicom.

Pillow decodes 8-bit JPEG; imagecodecs decodes all other JPEG processes, JPEG-LS, JPEG 2000, HTJ2K
and JPEG XL; RLE (DICOM PS3.5 annex G) and deflated frames are decoded here. Each transfer syntax
has exactly one decoder, so that a damaged frame is never passed on to another library. The size and
the number of components that a frame declares must match the DICOM header before the frame is
decoded.

Only those functions of imagecodecs are called that survive damaged input: libjpeg-turbo behind
``jpeg8_decode``, CharLS behind ``jpegls_decode``, OpenJPEG behind ``jpeg2k_decode`` and libjxl
behind ``jpegxl_decode``. Its other decoders of lossless JPEG (``ljpeg``, ``jpegsof3``) and of HTJ2K
(``htj2k``) end the process.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.decoders import pillow
from pydicom.pixels.decoders.base import Decoder, DecodeRunner

from anomaly_vae.images.decoders.jpeg import (
    check_jpeg_scans,
    decode_deep_jpeg,
    decode_jpeg_ls,
    frame_header,
)
from anomaly_vae.images.decoders.jpeg_xl import decode_jpeg_xl, read_header

MAX_OVERHEAD = 1 << 16
"""Maximum size of a frame beyond twice its uncompressed pixels, in bytes."""

JPEG_BASELINE = (uid.JPEGBaseline8Bit,)
JPEG_EXTENDED = (uid.JPEGExtended12Bit,)
JPEG_LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (
    uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K,
)  # fmt: skip
JPEG_XL = (
    uid.UID("1.2.840.10008.1.2.4.110"),
    uid.UID("1.2.840.10008.1.2.4.111"),
    uid.UID("1.2.840.10008.1.2.4.112"),
)
"""JPEG XL Lossless, JPEG XL JPEG Recompression, JPEG XL."""
DEFLATED = (uid.UID("1.2.840.10008.1.2.8.1"),)
"""Deflated Image Frame Compression."""
UNCOMPRESSED = (uid.UID("1.2.840.10008.1.2.1.98"),)
"""Encapsulated Uncompressed Explicit VR Little Endian."""
IMAGECODECS = (*JPEG_EXTENDED, *JPEG_LOSSLESS, *JPEG_LS, *JPEG_2000, *JPEG_XL)
"""Transfer syntaxes that need imagecodecs."""

DECODER_DEPENDENCIES: dict[uid.UID, tuple[str, ...]] = {
    **dict.fromkeys(JPEG_BASELINE, ("pillow",)),
    **dict.fromkeys(IMAGECODECS, ("imagecodecs", "pillow")),
    **dict.fromkeys((uid.RLELossless, *DEFLATED, *UNCOMPRESSED), ("numpy",)),
}
"""Packages that decode each transfer syntax, as pydicom requires of a plugin."""

START_OF_IMAGE_2000 = b"\xff\x4f\xff\x51"
"""First four bytes of a JPEG 2000 codestream: markers SOC and SIZ."""


def is_available(syntax: str) -> bool:
    """Return whether the package that decodes this transfer syntax is installed."""
    if syntax in IMAGECODECS:
        return find_spec("imagecodecs") is not None
    return syntax in DECODER_DEPENDENCIES


def decoder_for(syntax: uid.UID) -> Decoder:
    """Return pydicom's decoder of a transfer syntax with this module as its only plugin.

    Transfer syntaxes that pydicom does not know are decoded as the uncompressed one, whose frames
    need no correction.
    """
    function = FUNCTIONS.get(syntax, "decode_frame")
    decoder = Decoder(UNCOMPRESSED[0] if syntax in FUNCTIONS else syntax)
    decoder.add_plugin("anomaly_vae", (__name__, function))
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


def decode_uncompressed(frame: bytes, runner: DecodeRunner) -> bytes:
    """Unpack a frame of single bits; return any other as it is, without its padding.

    Raises:
        ValueError: The frame is truncated.
    """
    size = _frame_bytes(runner)
    if len(frame) < size:
        raise ValueError("a frame is truncated")
    if runner.bits_allocated > 1:
        return frame[:size]
    count = runner.rows * runner.columns * runner.samples_per_pixel
    runner.set_option("bits_allocated", 8)
    return np.unpackbits(np.frombuffer(frame, np.uint8), count=count, bitorder="little").tobytes()


def decode_deflated(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode a frame that is a deflate stream (DICOM PS3.5 A.4.13).

    Raises:
        ValueError: The frame is truncated or damaged.
    """
    unpacked = zlib.decompressobj(-15).decompress(frame, _frame_bytes(runner) + 1)
    return decode_uncompressed(unpacked, runner)


def decode_xl(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode a frame of JPEG XL; libjxl converts its colours to RGB.

    Raises:
        ValueError: The frame is damaged, or its size is not the one in the DICOM header.
    """
    header = read_header(frame)
    if (header.height, header.width) != (runner.rows, runner.columns) or header.extra_channels:
        raise ValueError("a frame is not of the shape in the DICOM header")
    if runner.samples_per_pixel == 3:
        runner.set_option("photometric_interpretation", "RGB")
    return _samples(decode_jpeg_xl(frame), runner)


def _frame_bytes(runner: DecodeRunner) -> int:
    """Return the size of an uncompressed frame."""
    samples = runner.rows * runner.columns * runner.samples_per_pixel
    return (samples * runner.bits_allocated + 7) // 8


def _check_length(frame: bytes, runner: DecodeRunner) -> None:
    if len(frame) > 2 * _frame_bytes(runner) + MAX_OVERHEAD:
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
    header = frame_header(frame)
    if header is None:
        raise ValueError("a frame has no header")
    return header[2:]


def _decode_jpeg(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode 8-bit JPEG with Pillow."""
    check_jpeg_scans(frame)
    return pillow._decode_frame(frame, runner)


def _decode_extended(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode JPEG Extended, whose samples have 8 or 12 bits."""
    decode = _decode_jpeg if runner.bits_stored == 8 else _decode_deep_jpeg
    return decode(frame, runner)


def _decode_deep_jpeg(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode 12-bit or lossless JPEG without converting colours."""
    check_jpeg_scans(frame)
    colours = "RGB" if runner.samples_per_pixel == 3 else None
    return _samples(decode_deep_jpeg(frame, colours), runner)


def _decode_jpeg_ls(frame: bytes, runner: DecodeRunner) -> bytes:
    return _samples(decode_jpeg_ls(frame), runner)


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
    shape = decoded.reshape(*decoded.shape[:2], -1).shape
    if shape != _shape_in_header(runner) or decoded.dtype.kind not in "iu":
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
FUNCTIONS: dict[str, str] = {
    **dict.fromkeys(UNCOMPRESSED, "decode_uncompressed"),
    **dict.fromkeys(DEFLATED, "decode_deflated"),
    **dict.fromkeys(JPEG_XL, "decode_xl"),
}
"""Functions that decode the frames of transfer syntaxes that pydicom does not know."""
