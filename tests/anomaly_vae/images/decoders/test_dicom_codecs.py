"""Compressed frames decode to what an encoder put in, or are refused; none ends the process."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from imagecodecs import htj2k_encode, jpeg2k_encode, jpeg8_encode, jpegls_encode
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import encapsulate

from anomaly_vae.images.decoders import dicom_codecs
from tests.support.jpeg_lossless import encoded, segment, table

# pydicom warns that a JFIF stream should be YBR_FULL.
pytestmark = pytest.mark.filterwarnings("ignore:.*JFIF APP marker")

RNG = np.random.default_rng(1)
SMOOTH = np.cumsum(np.cumsum(RNG.integers(-2, 3, (40, 33)), 0), 1)
GREY = (SMOOTH % 4096).astype(np.uint16)
COLOUR = np.stack([GREY * 16, GREY[::-1] * 16, GREY[:, ::-1] * 16], -1)


def decoded(
    frame: bytes,
    shape: tuple[int, ...],
    syntax: uid.UID = uid.JPEGLosslessSV1,
    bits: int = 16,
    photometric: str = "",
) -> NDArray[Any]:
    """Decode a frame whose DICOM header declares this shape, (H, W) or (H, W, C)."""
    samples = shape[2] if len(shape) > 2 else 1
    values, _ = dicom_codecs.decoder_for(syntax).as_array(
        encapsulate([frame]),
        index=0,
        rows=shape[0],
        columns=shape[1],
        samples_per_pixel=samples,
        number_of_frames=1,
        bits_allocated=8 if bits <= 8 else 16,
        bits_stored=bits,
        pixel_representation=0,
        photometric_interpretation=photometric or ("RGB" if samples > 1 else "MONOCHROME2"),
        planar_configuration=0,
        pixel_keyword="PixelData",
        raw=True,
    )
    return values


# ---------------------------------------------------------------- JPEG Lossless

some_samples = arrays(
    np.uint16, array_shapes(min_dims=3, max_dims=3, max_side=5).filter(lambda s: s[2] in {1, 3})
)


@given(some_samples, st.integers(1, 7), st.integers(0, 3), st.booleans())
def test_samples_come_back_as_they_were(samples, selection, restart, interleaved):
    stream = encoded(samples, selection=selection, restart=restart, interleaved=interleaved)
    np.testing.assert_array_equal(decoded(stream, samples.shape).reshape(samples.shape), samples)


@pytest.mark.parametrize("selection", range(1, 8))
def test_a_larger_image_of_every_predictor_comes_back(selection):
    stream = encoded(GREY[..., None], 12, selection)
    np.testing.assert_array_equal(decoded(stream, GREY.shape, bits=12), GREY)


def test_extremes_of_sixteen_bits_wrap_around():
    samples = np.array([[0, 65535, 0], [32768, 0, 32767]], np.uint16)
    np.testing.assert_array_equal(decoded(encoded(samples[..., None]), (2, 3)), samples)


@pytest.mark.parametrize("precision", [2, 8, 12])
def test_a_point_transform_shifts_the_samples(precision):
    samples = RNG.integers(0, 1 << precision, (6, 5))
    stream = encoded(samples[..., None], precision, shift=1)
    np.testing.assert_array_equal(decoded(stream, (6, 5), bits=precision), samples >> 1 << 1)


def test_colours_are_left_as_they_are_stored():
    """libjpeg-turbo would convert the colours of a JFIF stream; that is left to pydicom."""
    samples = RNG.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    stream = encoded(samples, 8)
    stream = stream[:2] + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") + stream[2:]
    np.testing.assert_array_equal(decoded(stream, samples.shape, bits=8), samples)


SAMPLES = RNG.integers(0, 4096, (8, 8, 1))
STREAM = encoded(SAMPLES, 12)
DAMAGED = {
    "nothing": b"",
    "no scan": STREAM[: STREAM.rindex(b"\xff\xda")],
    "half a scan": STREAM[:-60],
    "a byte too few": STREAM[:-4],
    "half a line of restarts": encoded(SAMPLES, 12, restart=2).replace(
        struct.pack(">HHH", 0xFFDD, 4, 16), struct.pack(">HHH", 0xFFDD, 4, 12)
    ),
    "a component twice": STREAM[:-3] + STREAM[STREAM.rindex(b"\xff\xda") :],
    "two frames": STREAM.replace(b"\xff\xc4", segment(0xC3, bytes(9)) + b"\xff\xc4", 1),
    "another process": STREAM.replace(b"\xff\xc3", b"\xff\xc1"),
    "no table": STREAM.replace(b"\xff\xc4", b"\xff\xe4"),
    "a table of too many codes": STREAM.replace(table(0, 5)[:17], b"\0\x11" + bytes(15)),
    "a category of 17": STREAM.replace(bytes(range(17)), bytes(range(1, 18))),
    "an unknown predictor": STREAM.replace(b"\1\1\0\1\0\0", b"\1\1\0\x08\0\0"),
    "no component": STREAM.replace(b"\1\1\0\1\0\0", b"\0\1\0\1\0\0"),
    "scans without end": STREAM[:-3] + b"\xff\xda" * 101 + STREAM[-3:],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_stream_is_refused(name):
    assert DAMAGED[name] != STREAM
    with pytest.raises((RuntimeError, ValueError)):
        decoded(DAMAGED[name], (8, 8), bits=12)


def test_a_header_hidden_behind_a_marker_without_a_segment_is_the_one_that_counts():
    """TEM (FF 01) has no segment: a decoder reads the next marker, and so must the size check."""
    decoy = b"\xff\xd8\xff\x01" + segment(0xC3, struct.pack(">BHHB", 12, 60_000, 60_000, 1))
    with pytest.raises(RuntimeError, match="not of the shape"):
        decoded(decoy + STREAM[2:], (8, 8), bits=12)


# ---------------------------------------------------------------- other syntaxes


def test_jpeg_of_twelve_bits_comes_back_nearly_as_it_was():
    frame = bytes(jpeg8_encode(GREY, level=100, bitspersample=12))
    values = decoded(frame, GREY.shape, uid.JPEGExtended12Bit, bits=12)
    assert values.dtype == np.uint16
    assert abs(values.astype(int) - GREY).max() < 32


def test_jpeg_of_twelve_bits_that_is_cut_short_is_refused():
    frame = bytes(jpeg8_encode(GREY, level=100, bitspersample=12))
    with pytest.raises(RuntimeError, match="truncated"):
        decoded(frame[: len(frame) // 2], GREY.shape, uid.JPEGExtended12Bit, bits=12)


@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K])
@pytest.mark.parametrize("values", [GREY, COLOUR, (COLOUR >> 8).astype(np.uint8)])
def test_htj2k_comes_back_as_it_was(syntax, values):
    frame = bytes(htj2k_encode(values, reversible=True))
    bits = 8 * values.itemsize
    np.testing.assert_array_equal(decoded(frame, values.shape, syntax, bits), values)


@pytest.mark.parametrize("form", ["J2K", "JP2"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_RCT"])
def test_sixteen_bits_of_colour_in_jpeg_2000_come_back_as_they_were(form, photometric):
    frame = bytes(jpeg2k_encode(COLOUR, codecformat=form, reversible=True, level=0))
    values = decoded(frame, COLOUR.shape, uid.JPEG2000Lossless, photometric=photometric)
    np.testing.assert_array_equal(values, COLOUR)


@pytest.mark.parametrize("values", [GREY, COLOUR])
def test_jpeg_ls_comes_back_as_it_was(values):
    frame = bytes(jpegls_encode(values))
    np.testing.assert_array_equal(decoded(frame, values.shape, uid.JPEGLSLossless), values)


@pytest.mark.parametrize("shape", [(40, 33, 3), (33, 40), (40, 32)])
@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (uid.JPEG2000Lossless, bytes(jpeg2k_encode(GREY, codecformat="J2K"))),
        (uid.HTJ2K, bytes(htj2k_encode(GREY))),
        (uid.JPEGLSLossless, bytes(jpegls_encode(GREY))),
        (uid.JPEGLossless, bytes(jpeg8_encode(GREY, lossless=True, bitspersample=16))),
        (uid.JPEGExtended12Bit, bytes(jpeg8_encode(GREY, bitspersample=12))),
    ],
)
def test_a_frame_of_another_shape_is_refused_before_it_is_decoded(
    monkeypatch, syntax, frame, shape
):
    monkeypatch.setattr(dicom_codecs, "CODECS", {})
    with pytest.raises(RuntimeError, match="not of the shape"):
        decoded(frame, shape, syntax)


# ---------------------------------------------------------------- damage

FRAMES = {
    "lossless": (uid.JPEGLossless, STREAM, (8, 8)),
    "twelve bits": (
        uid.JPEGExtended12Bit, bytes(jpeg8_encode(GREY, bitspersample=12)), GREY.shape),
    "JPEG-LS": (uid.JPEGLSLossless, bytes(jpegls_encode(GREY)), GREY.shape),
    "JPEG 2000": (uid.JPEG2000, bytes(jpeg2k_encode(COLOUR, codecformat="J2K")), COLOUR.shape),
    "HTJ2K": (uid.HTJ2K, bytes(htj2k_encode(COLOUR)), COLOUR.shape),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
@given(data=st.data())
def test_any_damage_ends_in_samples_or_a_plain_error(name, data):
    syntax, frame, shape = FRAMES[name]
    stream = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 5))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    del stream[data.draw(st.integers(len(stream) // 2, len(stream))) :]
    try:
        values = decoded(bytes(stream), shape, syntax, bits=12)
    except (RuntimeError, ValueError):
        return
    assert values.shape == shape
