"""JPEG XL is decoded once its header has been read as libjxl writes it."""

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_vae.images.decoders.jpeg_xl import CONTAINER, Header, read_header
from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.pixels import DecodeOptions
from tests.support.raster_files import COLOUR, DEEP, GREY, OPTIONS, RNG, only


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(["u1", "u2", "f4"]))
@settings(max_examples=40)
def test_the_header_is_that_of_the_image(height, width, kind):
    content = imagecodecs.jpegxl_encode(np.zeros((height, width), kind), effort=1)
    bits = {"u1": 8, "u2": 16, "f4": 32}[kind]
    assert read_header(content) == Header(height, width, bits, kind == "f4", 0)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_eight_bits_become_257_times_their_value(image):
    content = imagecodecs.jpegxl_encode(image, lossless=True)
    np.testing.assert_array_equal(only(content), image.astype(int) * 257)


def test_sixteen_bits_stay_and_twelve_are_scaled():
    np.testing.assert_array_equal(only(imagecodecs.jpegxl_encode(DEEP, lossless=True)), DEEP)
    content = imagecodecs.jpegxl_encode(DEEP >> 4, lossless=True, bitspersample=12)
    np.testing.assert_allclose(only(content), (DEEP >> 4) * (65535 / 4095), atol=0.51)


def test_alpha_is_laid_on_black():
    values = RNG.integers(0, 256, (12, 17, 4), np.uint8)
    content = imagecodecs.jpegxl_encode(values, lossless=True)
    expected = np.rint(values[..., :3] * (values[..., 3:] / 255) * 257)
    np.testing.assert_array_equal(only(content), expected)


def test_floats_are_shown_by_a_window():
    values = RNG.random((12, 17), np.float32)
    content = imagecodecs.jpegxl_encode(values, lossless=True)
    pixels = only(content, DecodeOptions(intensity_window=(1, 2)))  # from 0 to 1
    np.testing.assert_allclose(pixels, values * 65535, atol=1)


def test_a_file_that_is_animated_cut_or_too_large_is_refused():
    content = imagecodecs.jpegxl_encode(DEEP, lossless=True)
    for damaged, reason in [
        (b"\xff\x0a\x98", "it is cut short; copy the file again"),
        (CONTAINER + bytes(20), "it is cut short; copy the file again"),
        (content[: len(content) // 2], "it is damaged; export it again"),
        (imagecodecs.jpegxl_encode(np.stack([COLOUR] * 3)), "it is animated or has a preview"),
    ]:
        [result] = read_bytes(damaged, OPTIONS)
        assert reason in result.reason
    [large] = read_bytes(content, DecodeOptions(max_pixels=100))
    assert "17 × 12 pixels is over the limit of 100" in large.reason
