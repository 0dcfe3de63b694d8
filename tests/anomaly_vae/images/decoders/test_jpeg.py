"""JPEG of every process is read, and streams are taken apart by their markers."""

import imagecodecs
import numpy as np
import pytest

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoders.jpeg import FrameHeader, check_jpeg_scans, frame_header, segments
from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.pixels import DecodeOptions
from tests.support.jpeg_lossless import encoded
from tests.support.raster_files import COLOUR, DEEP, GREY, OPTIONS, only, saved

SMOOTH = np.add.outer(np.arange(24) * 90, np.arange(40) * 40).astype(np.uint16)
"""Values of 12 bits."""


def test_a_jpeg_stream_may_have_a_hundred_scans():
    check_jpeg_scans(b"\xff\xda" * 100)
    with pytest.raises(DataError, match="more than 100 scans"):
        check_jpeg_scans(b"\xff\xda" * 101)


def test_segments_are_told_apart_from_coded_data():
    found = [code for code, _ in segments(encoded(np.full((3, 3, 1), 7, np.uint16)))]
    assert found == [0xE0, 0xC4, 0xC3, 0xDA]


def test_the_header_of_a_stream_is_read():
    assert frame_header(saved(COLOUR, "JPEG")) == FrameHeader(0xC0, 8, 12, 17, 3)
    assert frame_header(b"\xff\xd8\xff\xd9") is None


def test_twelve_bits_are_scaled_to_the_full_range():
    content = imagecodecs.jpeg8_encode(SMOOTH, level=98, bitspersample=12)
    np.testing.assert_allclose(only(content), SMOOTH * (65535 / 4095), atol=20 * 16)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_jpeg_comes_back_as_it_was(image):
    content = imagecodecs.jpeg8_encode(image, lossless=True)
    np.testing.assert_array_equal(only(content), image.astype(int) * 257)


def test_sixteen_bits_stay_as_they_are():
    for content in (
        imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=16),
        imagecodecs.jpegls_encode(DEEP),
    ):
        np.testing.assert_array_equal(only(content), DEEP)


def test_a_deep_stream_that_is_cut_or_too_large_is_refused():
    for content in (
        imagecodecs.jpeg8_encode(SMOOTH, bitspersample=12),
        imagecodecs.jpegls_encode(DEEP),
    ):
        [cut] = read_bytes(content[: len(content) // 2], OPTIONS)
        assert cut.reason in {
            "it is cut short; copy the file again",
            "it is damaged; export it again",
        }
        [large] = read_bytes(content, DecodeOptions(max_pixels=100))
        assert "pixels is over the limit of 100" in large.reason
