"""PNG, JPEG and TIFF become the pixels and frames they hold."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageOps

from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from tests.support.raster_files import COLOUR, DEEP, GREY, OPTIONS, RNG, only, saved, tiff

# ---------------------------------------------------------------- values


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9)))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_eight_bits_become_257_times_their_value(kind, grey):
    np.testing.assert_array_equal(only(saved(grey, kind)), grey.astype(int) * 257)


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_sixteen_bits_stay_as_they_are(deep):
    for content in (saved(deep, "PNG"), tiff(deep), tiff(deep, ">")):
        np.testing.assert_array_equal(only(content), deep)


def test_colour_keeps_its_channels():
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(only(saved(COLOUR, kind)), COLOUR.astype(int) * 257)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_jpeg_is_what_it_decodes_to(image):
    content = saved(image, "JPEG")
    decoded = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(only(content), decoded.astype(int) * 257)


def test_one_bit_is_black_and_white():
    bits = GREY > 128
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(only(saved(Image.fromarray(bits), kind)), bits * 65535)


def test_a_palette_becomes_its_colours():
    image = Image.fromarray(COLOUR).quantize(8)
    expected = np.asarray(image.convert("RGB")).astype(int) * 257
    np.testing.assert_array_equal(only(saved(image, "PNG")), expected)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_transparency_is_laid_on_black(image):
    alpha = RNG.integers(0, 256, (12, 17), np.uint8)
    shares = alpha if image.ndim == 2 else alpha[..., None]
    expected = np.rint(image * (shares / 255) * 257)
    np.testing.assert_array_equal(only(saved(np.dstack([image, alpha]), "PNG")), expected)


def test_the_transparent_colour_of_a_png_is_black():
    grey = np.array([[10, 200], [200, 30]], np.uint8)
    expected = np.where(grey == 200, 0, grey.astype(int) * 257)
    np.testing.assert_array_equal(only(saved(grey, "PNG", transparency=200)), expected)


def test_cmyk_becomes_red_green_blue():
    image = Image.fromarray(np.full((8, 8, 3), (200, 40, 90), np.uint8)).convert("CMYK")
    pixels = only(saved(image, "TIFF"))
    np.testing.assert_allclose(pixels[0, 0] / 257, (200, 40, 90), atol=2)


@pytest.mark.parametrize("order", ["<", ">"])
def test_where_zero_is_white_values_are_turned_over(order):
    np.testing.assert_array_equal(only(tiff(GREY, order, t262=0)), 65535 - GREY.astype(int) * 257)
    if order == "<":  # Pillow reads no such big-endian file of 16 bits
        np.testing.assert_array_equal(only(tiff(DEEP, order, t262=0)), 65535 - DEEP)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    for image in (DEEP, COLOUR):
        content = saved(image, "PNG", exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        scale = 257 if image.ndim == 3 else 1
        np.testing.assert_array_equal(only(content), np.asarray(upright).astype(int) * scale)
    turned = only(tiff(DEEP, t274=orientation))
    np.testing.assert_array_equal(turned, only(saved(DEEP, "PNG", exif=exif)))


def test_a_jpeg_on_its_side_is_turned_upright():
    exif = Image.Exif()
    exif[0x112] = 6
    dark_left = np.tile(np.repeat(np.array([20, 220], np.uint8), 16), (16, 1))
    pixels = only(saved(dark_left, "JPEG", exif=exif))
    assert pixels.shape == (32, 16)
    assert pixels[:16].mean() < pixels[16:].mean()


def test_numbers_without_a_range_are_shown_by_percentiles():
    values = np.linspace(-3, 5, 1001, dtype=np.float32).reshape(7, 143)
    pixels = only(tiff(values))
    low, high = -3 + 8 * 0.005, -3 + 8 * 0.995
    expected = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 65535
    np.testing.assert_allclose(pixels, expected, atol=1)


def test_signed_numbers_are_shown_by_a_window():
    values = np.array([[-40000, 0], [50, 101]], np.int32)
    pixels = only(tiff(values), DecodeOptions(intensity_window=(50.5, 101)))
    np.testing.assert_array_equal(pixels, [[0, 0], [round(65535 * 0.5), 65535]])


def test_a_mask_of_few_pixels_does_not_vanish():
    values = np.zeros((30, 30), np.float32)
    values[3, 4] = 7
    np.testing.assert_array_equal(only(tiff(values)), np.where(values == 7, 65535, 0))


# ---------------------------------------------------------------- frames


def test_every_page_of_a_tiff_is_a_frame():
    pages = [Image.fromarray(page) for page in (DEEP, DEEP[::-1], GREY)]
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    results = list(read_bytes(content, OPTIONS))
    assert [result.frame for result in results] == [0, 1, 2]
    for result, expected in zip(results, (DEEP, DEEP[::-1], GREY.astype(int) * 257), strict=True):
        np.testing.assert_array_equal(result.pixels, expected)


def test_a_smaller_copy_within_a_tiff_is_no_picture():
    pages = [Image.fromarray(DEEP), Image.fromarray(DEEP[::2, ::2]), Image.fromarray(GREY)]
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert [result.frame for result in read_bytes(content, OPTIONS)] == [0, 2]


def test_every_frame_of_an_animated_png_counts():
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    results = list(
        read_bytes(saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), OPTIONS)
    )
    assert [result.frame for result in results] == [0, 1]
    np.testing.assert_array_equal(results[1].pixels, (255 - COLOUR).astype(int) * 257)


def test_of_a_jpeg_with_previews_the_picture_is_taken():
    preview = Image.fromarray(COLOUR[::2, ::2])
    content = saved(COLOUR, "MPO", save_all=True, append_images=[preview])
    assert only(content).shape == COLOUR.shape


def test_one_page_too_large_costs_that_page():
    pages = [
        Image.fromarray(GREY),
        Image.fromarray(np.zeros((40, 40), np.uint8)),
        Image.fromarray(GREY),
    ]
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    results = list(read_bytes(content, DecodeOptions(max_pixels=1000)))
    assert [type(result) for result in results] == [DecodedImage, DecodeFailure, DecodedImage]
    assert results[1].frame == 1
    assert "40 × 40 pixels is over the limit of 1000" in results[1].reason
