"""PNG, JPEG, GIF, BMP, WebP and JPEG 2000 become the pixels and frames they hold."""

import base64
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from anomaly_vae.images.decoding import read_bytes, read_file
from anomaly_vae.images.encoding import encode_png
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from tests.support.raster_files import COLOUR, DEEP, GREY, OPTIONS, RNG, only, saved, tiff

# ---------------------------------------------------------------- values


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9)))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG2000", "PPM"])
def test_eight_bits_become_257_times_their_value(kind, grey):
    np.testing.assert_array_equal(only(saved(grey, kind)), grey.astype(int) * 257)


def test_a_gif_holds_a_palette():
    pixels = only(saved(GREY, "GIF"))
    np.testing.assert_array_equal(
        pixels.T, np.broadcast_to(GREY.T.astype(int) * 257, pixels.T.shape)
    )


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_sixteen_bits_stay_as_they_are(deep):
    for content in (saved(deep, "PNG"), tiff(deep), tiff(deep, ">")):
        np.testing.assert_array_equal(only(content), deep)


def test_colour_keeps_its_channels():
    for kind in ("PNG", "TIFF", "BMP", "JPEG2000", "PPM"):
        np.testing.assert_array_equal(only(saved(COLOUR, kind)), COLOUR.astype(int) * 257)
    content = saved(COLOUR, "WEBP", lossless=True)
    np.testing.assert_array_equal(only(content), COLOUR.astype(int) * 257)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_jpeg_is_what_it_decodes_to(image):
    content = saved(image, "JPEG")
    decoded = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(only(content), decoded.astype(int) * 257)


def test_one_bit_is_black_and_white():
    bits = GREY > 128
    for kind in ("PNG", "TIFF", "BMP", "GIF", "PPM"):
        np.testing.assert_array_equal(only(saved(Image.fromarray(bits), kind)), bits * 65535)


def test_a_palette_becomes_its_colours():
    image = Image.fromarray(COLOUR).quantize(8)
    expected = np.asarray(image.convert("RGB")).astype(int) * 257
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        np.testing.assert_array_equal(only(saved(image, kind)), expected)


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


def test_the_transparent_value_of_a_deep_png_is_black():
    content = saved(DEEP, "PNG", transparency=int(DEEP[2, 3]))
    expected = np.where(DEEP[2, 3] == DEEP, 0, DEEP)
    np.testing.assert_array_equal(only(content), expected)


def test_sixteen_bits_of_jpeg_2000_stay_and_fewer_are_scaled():
    np.testing.assert_array_equal(only(saved(DEEP, "JPEG2000", no_jp2=True)), DEEP)
    frame = imagecodecs.jpeg2k_encode(DEEP >> 4, level=0, bitspersample=12)
    np.testing.assert_array_equal(only(frame), DEEP >> 4 << 4)


def test_high_throughput_jpeg_2000_is_read():
    np.testing.assert_array_equal(only(imagecodecs.htj2k_encode(GREY)), GREY.astype(int) * 257)


def test_cmyk_becomes_red_green_blue():
    image = Image.fromarray(np.full((8, 8, 3), (200, 40, 90), np.uint8)).convert("CMYK")
    pixels = only(saved(image, "TIFF"))
    np.testing.assert_allclose(pixels[0, 0] / 257, (200, 40, 90), atol=2)


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


def installed_images() -> list[Path]:
    """Return the images that installed packages ship, such as those of matplotlib."""
    folder = Path(np.__file__).parents[1]
    return [path for kind in KINDS for path in sorted(folder.rglob(f"*.{kind}"))]


KINDS = ("png", "jpg", "tif", "tiff", "gif", "bmp", "webp", "jp2", "ppm")


@pytest.mark.slow
def test_images_in_installed_packages_are_as_pillow_reads_them():
    compared = 0
    for path in installed_images():
        image = ImageOps.exif_transpose(Image.open(path))
        if image.has_transparency_data or image.mode.startswith(("I", "F")):
            continue
        grey = image.mode in {"1", "L"}
        expected = np.asarray(image.convert("L" if grey else "RGB")).astype(int) * 257
        result = next(iter(read_file(path, OPTIONS)))
        assert isinstance(result, DecodedImage), path
        np.testing.assert_array_equal(result.pixels, expected, err_msg=path.name)
        compared += 1
    assert compared


# ---------------------------------------------------------------- frames


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


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_every_frame_of_an_animation_counts_as_it_is_shown(kind):
    first = np.full((12, 17, 3), (250, 0, 0), np.uint8)
    second = first.copy()
    second[3:6, 4:9] = (0, 250, 0)  # GIF stores this rectangle alone
    frames = [Image.fromarray(first), Image.fromarray(second)]
    how = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    results = list(read_bytes(content, OPTIONS))
    assert [result.frame for result in results] == [0, 1]
    for result, expected in zip(results, (first, second), strict=True):
        np.testing.assert_array_equal(result.pixels, expected.astype(int) * 257)


def gif(width: int, height: int, frames: int, frame_width: int = 1) -> bytes:
    """Make a GIF whose frames have one pixel of data each."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, frame_width, 1, 0) + b"\2\2\x44\1\0"
    return head + frame * frames + b";"


def test_the_limits_of_a_gif_are_checked_before_a_frame_is_composed():
    assert len(list(read_bytes(gif(9, 9, 50), DecodeOptions(max_frames=50)))) == 50
    [many] = read_bytes(gif(9, 9, 51), DecodeOptions(max_frames=50))
    assert many.reason == "it has more than 50 frames; split it or raise max_frames"
    [wide] = read_bytes(gif(9, 9, 2, frame_width=60_000), DecodeOptions(max_pixels=1000))
    assert "60000 × 1 pixels is over the limit of 1000" in wide.reason
    [large] = read_bytes(gif(60_000, 60_000, 1), OPTIONS)
    assert "60000 × 60000 pixels is over the limit" in large.reason


def webp_header(width: int, height: int) -> bytes:
    """Make an extended WebP with this canvas and nothing on it."""
    canvas = struct.pack("<I", 2) + (width - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + canvas + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


LARGE = {
    "BMP": saved(GREY, "BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + saved(GREY, "BMP")[26:],
    "JPEG2000": saved(GREY, "JPEG2000", no_jp2=True).replace(
        struct.pack(">II", 17, 12), struct.pack(">II", 60_000, 60_000)
    ),
    "WEBP": webp_header(16_000, 16_000),
    "PPM": b"P5 60000 60000 255\n",
    "JPEG": saved(GREY, "JPEG").replace(
        struct.pack(">HH", 12, 17), struct.pack(">HH", 60_000, 60_000)
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_size_over_the_limit_is_refused_before_anything_is_decoded(name, capfd):
    tracemalloc.start()
    [result] = read_bytes(LARGE[name], OPTIONS)
    assert "pixels is over the limit" in result.reason or name == "WEBP"
    assert isinstance(result, DecodeFailure)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- masks


def mask_of(content):
    (image,) = read_bytes(content, OPTIONS)
    return image.mask


def test_transparent_pixels_do_not_count():
    alpha = np.where(GREY > 128, 255, 0).astype(np.uint8)
    for kind, layers in (("PNG", [GREY, alpha]), ("PNG", [*COLOUR[:, :, :3].T, alpha.T])):
        joined = np.stack(layers, -1)
        shown = joined if len(layers) == 2 else joined.swapaxes(0, 1)
        np.testing.assert_array_equal(mask_of(saved(shown, kind)), alpha > 0)
    assert mask_of(saved(GREY, "PNG")) is None
    assert mask_of(saved(GREY, "JPEG")) is None


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_a_mask_survives_encoding(mask):
    deep = np.arange(mask.size, dtype=np.uint16).reshape(mask.shape)
    content = encode_png(DecodedImage(deep, 0, mask=mask))
    np.testing.assert_array_equal(mask_of(content), mask)
    np.testing.assert_array_equal(only(content), deep)


LONG, BOMB = b"x" * 99, zlib.compress(b"\xff" * 10**7)


@pytest.mark.parametrize(
    "text", ["", "no base64!", *(base64.b64encode(c).decode() for c in (LONG, BOMB))]
)
def test_a_text_that_is_no_mask_is_none(text):
    info = PngInfo()
    info.add_text("Mask", text)
    content = saved(GREY, "PNG", pnginfo=info)
    assert mask_of(content) is None
    np.testing.assert_array_equal(only(content), GREY.astype(int) * 257)
