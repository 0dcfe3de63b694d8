"""PBM, PGM, PPM and PAM become the values they hold, in text and in binary."""

import numpy as np
import pytest

from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.pixels import DecodeOptions
from tests.support.raster_files import COLOUR, DEEP, GREY, OPTIONS, RNG, only

BITS = RNG.random((5, 13)) < 0.5


def text(values: np.ndarray) -> bytes:
    return b" ".join(b"%d" % value for value in values.ravel())


def test_values_are_scaled_by_the_largest_one():
    deep = DEEP.astype(">u2")
    for content, expected in [
        (b"P5 17 12 255\n" + GREY.tobytes(), GREY * 257.0),
        (b"P5\n# a comment\n17 12\n65535\n" + deep.tobytes(), DEEP),
        (b"P5 17 12 4095\n" + (deep >> 4).astype(">u2").tobytes(), (DEEP >> 4) * (65535 / 4095)),
        (b"P6 17 12 255\n" + COLOUR.tobytes(), COLOUR * 257.0),
        (b"P2 17 12 255\n" + text(GREY) + b"\n# the end", GREY * 257.0),
        (b"P3\n17 12\n65535\n" + text(COLOUR), COLOUR),
    ]:
        np.testing.assert_allclose(only(content), expected, atol=0.51)


def test_ones_are_black_in_bitmaps():
    rows = np.packbits(BITS, axis=1).tobytes()
    digits = text(BITS).replace(b" ", b"")
    for content in (b"P4 13 5\n" + rows, b"P1 13 5\n" + text(BITS), b"P1 13 5 # 1\n" + digits):
        np.testing.assert_array_equal(only(content), ~BITS * 65535)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_of_arbitrary_maps_are_grey_or_colour_and_alpha(channels):
    values = RNG.integers(0, 256, (12, 17, channels), np.uint8)
    head = b"P7\nWIDTH 17\nHEIGHT 12\nDEPTH %d\nMAXVAL 255\nTUPLTYPE X\nENDHDR\n" % channels
    layers = values.astype(float)
    share = layers[..., -1:] / 255 if channels % 2 == 0 else 1
    colours = layers[..., : 1 if channels < 3 else 3] * share * 257
    expected = np.rint(colours[..., 0] if channels < 3 else colours)
    np.testing.assert_array_equal(only(head + values.tobytes()), expected)


REFUSED = {
    "no size": (b"P5 17\nabc", "its header is invalid; export it again"),
    "no maximum": (b"P5 17 12 ", "its header is invalid; export it again"),
    "maximum 0": (b"P5 17 12 0\n" + bytes(300), "its header is invalid; export it again"),
    "no end": (b"P7\nWIDTH 17\nHEIGHT 12\n", "its header is invalid; export it again"),
    "nine channels": (
        b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 9\nMAXVAL 255\nENDHDR\n" + bytes(9),
        "its header is invalid; export it again"),
    "no width": (b"P5 0 12 255\n", "its header says that it has no pixels"),
    "cut": (b"P5 17 12 255\n" + bytes(99), "it is cut short; copy the file again"),
    "cut text": (b"P2 17 12 255\n 3 4 5", "it is cut short; copy the file again"),
    "billions": (b"P5 999999999 999999999 255\n", "is over the limit"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(name):
    content, reason = REFUSED[name]
    [result] = read_bytes(content, OPTIONS)
    assert reason in result.reason


def test_a_size_over_the_limit_is_refused():
    [result] = read_bytes(b"P5 17 12 255\n" + GREY.tobytes(), DecodeOptions(max_pixels=100))
    assert "17 × 12 pixels is over the limit of 100" in result.reason
