"""The decoders of compressed DICOM frames, as a plugin of pydicom.

JPEG and JPEG 2000 are decoded by Pillow, JPEG-LS by pyjpegls, RLE (DICOM PS3.5 annex G) here
and JPEG Lossless in `jpeg_lossless`. Each syntax has one decoder and no other, so that a damaged
frame meets no code that it was not meant for; and first it must be of the size that the header
says.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.decoders import pillow, pyjpegls
from pydicom.pixels.decoders.base import Decoder, DecodeRunner

from anomaly_vae.images.jpeg_lossless import END, START_OF_FRAME, samples_of, segments
from anomaly_vae.images.pixels import check_scans

OVERHEAD = 1 << 16
"""Bytes that a frame may have beside its pixels."""

JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)

DECODER_DEPENDENCIES = {
    **pillow.DECODER_DEPENDENCIES,
    **pyjpegls.DECODER_DEPENDENCIES,
    **dict.fromkeys((*JPEG_LOSSLESS, uid.RLELossless), ("numpy",)),
}
"""What pydicom asks of a plugin: the packages behind each transfer syntax."""


def is_available(syntax: str) -> bool:
    """Whether the package that decodes this transfer syntax is there."""
    if syntax in JPEG_LS:
        return pyjpegls.is_available(syntax)
    if syntax in {*JPEG, *JPEG_2000}:
        return pillow.is_available(syntax)
    return syntax in DECODER_DEPENDENCIES


def decoder_of(syntax: uid.UID) -> Decoder:
    """The decoder of a transfer syntax that this module knows, with no other plugin in it."""
    decoder = Decoder(syntax)
    decoder.add_plugin("anomaly_vae", (__name__, "decode_frame"))
    return decoder


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes | bytearray:
    """One compressed frame → its samples; called by pydicom.

    Raises:
        ValueError: it is not of the size that the header says, or damaged.
    """
    _check_length(frame, runner)
    if runner.transfer_syntax == uid.RLELossless:
        return decode_rle(frame, runner)
    _check_size(frame, runner)
    return CODECS[runner.transfer_syntax](frame, runner)


def _check_length(frame: bytes, runner: DecodeRunner) -> None:
    samples = runner.rows * runner.columns * runner.samples_per_pixel
    if len(frame) > 2 * samples * runner.bits_allocated // 8 + OVERHEAD:
        raise ValueError("a frame is longer than its pixels would be uncompressed")


def _check_size(frame: bytes, runner: DecodeRunner) -> None:
    size = _size_2000 if runner.transfer_syntax in JPEG_2000 else _size_jpeg
    if size(frame) != (runner.rows, runner.columns):
        raise ValueError("a frame is not of the size that the header says")


def _size_2000(frame: bytes) -> tuple[int, int]:
    """(height, width) by the SIZ segment of a JPEG 2000 codestream (ITU-T T.800 A.5.1)."""
    start = frame.index(b"\xff\x4f\xff\x51") + 8
    right, bottom, left, top = np.frombuffer(frame, ">u4", 4, start).tolist()
    return bottom - top, right - left


def _size_jpeg(frame: bytes) -> tuple[int, int]:
    """(height, width) by the frame header of a JPEG or JPEG-LS stream."""
    return next(
        (int.from_bytes(body[1:3]), int.from_bytes(body[3:5]))
        for code, body, _ in segments(frame)
        if code in START_OF_FRAME
    )


def _decode_jpeg(frame: bytes, runner: DecodeRunner) -> bytes:
    check_scans(frame)
    return pillow._decode_frame(frame, runner)


def _decode_jpeg_ls(frame: bytes, runner: DecodeRunner) -> bytearray:
    """By CharLS, which looks for the end of a stream that has none for up to ten seconds."""
    return pyjpegls._decode_frame(frame + bytes((0xFF, END)), runner)


def decode_rle(frame: bytes, runner: DecodeRunner) -> bytes:
    """One frame of byte planes, most significant first (DICOM PS3.5 annex G)."""
    size, depth = runner.rows * runner.columns, runner.bits_allocated // 8
    count = runner.samples_per_pixel * depth
    header = np.frombuffer(frame, "<u4", 16)
    if header[0] != count or not 0 < count < len(header):
        raise ValueError("an unexpected number of RLE segments")
    places = [*header[1 : count + 1].tolist(), len(frame)]
    planes = [_unpack(frame[a:b], size) for a, b in pairwise(places)]
    stacked = np.stack(planes).reshape(runner.samples_per_pixel, depth, size)
    runner.set_option("planar_configuration", 1)
    return stacked[:, ::-1].transpose(0, 2, 1).tobytes()


def _unpack(segment: bytes, size: int) -> NDArray[np.uint8]:
    """PackBits, to ``size`` bytes and no further."""
    unpacked, place = bytearray(), 0
    while len(unpacked) < size:
        code = segment[place]
        if code < 128:
            unpacked += segment[place + 1 : place + 2 + code]
            place += 2 + code
        elif code > 128:
            unpacked += segment[place + 1 : place + 2] * (257 - code)
            place += 2
        else:
            place += 1
    return np.frombuffer(unpacked, np.uint8, size)


def decode_lossless(frame: bytes, runner: DecodeRunner) -> bytes:
    """One frame of JPEG Lossless with Huffman codes."""
    check_scans(frame)
    samples, precision = samples_of(frame)
    if samples.shape != (runner.rows, runner.columns, runner.samples_per_pixel):
        raise ValueError("a frame is not of the shape that the header says")
    runner.set_option("bits_allocated", 8 if precision <= 8 else 16)
    runner.set_option("planar_configuration", 0)
    return samples.astype("<u1" if precision <= 8 else "<u2").tobytes()


CODECS: dict[str, Callable[[bytes, DecodeRunner], bytes | bytearray]] = {
    **dict.fromkeys(JPEG, _decode_jpeg),
    **dict.fromkeys(JPEG_2000, pillow._decode_frame),
    **dict.fromkeys(JPEG_LS, _decode_jpeg_ls),
    **dict.fromkeys(JPEG_LOSSLESS, decode_lossless),
}
