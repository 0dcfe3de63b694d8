"""Every kind of TIFF becomes the values that its tags describe, by whichever library reads them."""

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from tests.support.raster_files import COLOUR, DEEP, GREY, OPTIONS, RNG, only, saved, tiff

SHAPE = (24, 33)
WINDOW = DecodeOptions(intensity_window=(0.5, 70_001))
"""The window from -35,000 to 35,000."""
RGB = {"photometric": "rgb"}
LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "grey": (SHAPE, {"photometric": "minisblack"}),
    "white": (SHAPE, {"photometric": "miniswhite"}),
    "colour": ((*SHAPE, 3), RGB),
    "planes": ((3, *SHAPE), RGB | {"planarconfig": "separate"}),
    "colour and alpha": ((*SHAPE, 4), RGB | {"extrasamples": ["unassalpha"]}),
    "grey and alpha": (
        (*SHAPE, 2),
        {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
    ),
}
COMPRESSIONS = [None, "lzw", "deflate", "zstd", "packbits", "lzma"]


def packed(values: NDArray[Any], **how: Any) -> bytes:
    """Encode an image with tifffile."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **how)
    return file.getvalue()


def shown(values: NDArray[Any], layout: str) -> NDArray[np.float64]:
    """Compute the pixels of these values independently."""
    values = np.moveaxis(values, 0, -1) if layout == "planes" else values
    layers = values.reshape(*SHAPE, -1).astype(float)
    colours = layers[..., : layers.shape[-1] - ("alpha" in layout)]
    if values.dtype in (np.uint8, np.uint16):
        if values.dtype == np.uint8 or colours.shape[-1] == 3:  # upper bits alone
            layers, top = layers // (256 if values.itemsize == 2 else 1), 255
        else:
            top = 65535
        colours = layers[..., : colours.shape[-1]]
        share = layers[..., -1:] / top if "alpha" in layout else 1
        pixels = np.rint(colours * share * (65535 / top))
    else:
        pixels = np.rint(np.clip((colours + 35_000) / 70_000, 0, 1) * 65535)
    pixels = 65535 - pixels if layout == "white" else pixels
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def some(kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if kind[0] == "f":
        return RNG.uniform(-9999, 9999, shape).astype(kind)
    limits = np.iinfo(kind)
    return RNG.integers(max(limits.min, -40_000), min(limits.max, 70_000), shape).astype(kind)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_numbers_of_every_kind_are_read_in_either_order(kind, layout):
    shape, how = LAYOUTS[layout]
    values = some(kind, shape)
    for order in "<>":
        for extra in ({}, {"bigtiff": True}, {"tile": (16, 16)}, {"compression": "lzw"}):
            content = packed(values, byteorder=order, **how, **extra)
            np.testing.assert_allclose(only(content, WINDOW), shown(values, layout), atol=1)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f2", "f4", "f8"])
def test_numbers_are_read_however_they_are_compressed(kind, compression):
    values = some(kind, SHAPE)
    for predictor in (False, True) if compression not in {None, "packbits"} else (False,):
        for how in ({"rowsperstrip": 7}, {"tile": (16, 16)}):
            content = packed(values, compression=compression, predictor=predictor, **how)
            np.testing.assert_allclose(only(content, WINDOW), shown(values, "grey"), atol=1)


def test_packed_bits_are_scaled_by_their_depth():
    for bits in (10, 12, 14):
        values = DEEP >> (16 - bits)
        content = packed(values, bitspersample=bits)
        expected = values * 65535.0 / ((1 << bits) - 1)
        np.testing.assert_allclose(only(content), expected, atol=0.51)


def test_a_palette_of_either_order_becomes_its_colours():
    colours = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    for how in ({}, {"byteorder": ">", "bigtiff": True}):
        content = packed(GREY, photometric="palette", colormap=colours, **how)
        expected = (colours >> 8).T[GREY].astype(int) * 257
        np.testing.assert_array_equal(only(content), expected)


def test_alpha_that_colours_are_multiplied_by_already_is_left_out():
    values = np.dstack([DEEP, DEEP])
    how = {"photometric": "minisblack", "planarconfig": "contig"}
    content = packed(values, extrasamples=["assocalpha"], **how)
    np.testing.assert_array_equal(only(content), DEEP)


def test_jpeg_and_fax_in_tiff_are_what_pillow_reads():
    for image, how in [(COLOUR, {"compression": "jpeg"}), (GREY > 128, {"compression": "group4"})]:
        content = saved(Image.fromarray(image), "TIFF", **how)
        expected = np.asarray(Image.open(io.BytesIO(content))).astype(int)
        np.testing.assert_array_equal(only(content), expected * (65535 if image.ndim == 2 else 257))


REFUSED = {
    "channels": (
        packed(np.zeros((9, 9, 5), np.uint16), photometric="minisblack", planarconfig="contig"),
        "its pages have 5 channels; save a page for each"),
    "channels of 8 bits": (
        packed(np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig"),
        "its pages have 5 channels; save a page for each"),
    "two channels": (
        packed(np.zeros((9, 9, 2), np.uint16), photometric="minisblack", planarconfig="contig"),
        "its pages have 2 channels"),
    "volume": (
        packed(np.zeros((4, 16, 16), np.uint16), volumetric=True, tile=(4, 16, 16),
               photometric="minisblack"),
        "its pages are volumes of 4 slices; save a page for each"),
    "volume of 8 bits": (
        packed(np.zeros((4, 16, 16), np.uint8), volumetric=True, tile=(4, 16, 16),
               photometric="minisblack"),
        "its pages are volumes of 4 slices; save a page for each"),
    "JPEG XL": (
        packed(GREY, compression="jpegxl", photometric="minisblack"),
        "its compression is JPEGXL, which is not read; save it with Deflate"),
    "complex": (packed(np.ones((9, 9), np.complex64)), "its pixels are complex numbers"),
    "CIELAB": (
        packed(np.ones((9, 9, 3), np.int16), photometric="cielab"),
        "its pixels are CIELAB in 16 bits, which are not read; save them as 8 bits"),
    "cut header": (tiff(DEEP)[:-9], "it is cut short; copy the file again"),
    "head alone": (b"II*\0", "it is damaged; export it again"),
    "no page": (b"II*\0" + bytes(12), "its header says that it has no frames"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named(name):
    content, reason = REFUSED[name]
    [result] = read_bytes(content, OPTIONS)
    assert isinstance(result, DecodeFailure)
    assert reason in result.reason


@pytest.mark.parametrize("order", ["<", ">"])
def test_where_zero_is_white_values_are_turned_over(order):
    np.testing.assert_array_equal(only(tiff(GREY, order, t262=0)), 65535 - GREY.astype(int) * 257)
    np.testing.assert_array_equal(only(tiff(DEEP, order, t262=0)), 65535 - DEEP)


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


def test_pages_that_lead_back_to_an_earlier_one_are_counted_once():
    content = bytearray(tiff(GREY, pages=2))
    second = int.from_bytes(content[4:8], "little")
    size = 2 + 12 * int.from_bytes(content[second : second + 2], "little")
    content[-4:] = (second + size + 4).to_bytes(4, "little")  # the second page leads to itself
    results = list(read_bytes(bytes(content), OPTIONS))
    assert [result.frame for result in results] == [0, 1]


def test_too_large_a_number_of_bytes_is_harmless():
    np.testing.assert_array_equal(only(tiff(DEEP, t279=1 << 30)), DEEP)
    np.testing.assert_array_equal(only(tiff(GREY, t279=1 << 30)), GREY.astype(int) * 257)
