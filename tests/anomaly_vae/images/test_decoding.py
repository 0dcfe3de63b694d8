"""Image files become the pixels they hold; what holds none is refused with its own reason."""

import gzip
import io
import logging
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from anomaly_vae.errors import ConfigError
from anomaly_vae.images import decoding
from anomaly_vae.images.decoding import SUFFIXES, is_image_file, read_bytes, read_file
from anomaly_vae.images.perceptual_hash import has_near_duplicate, perceptual_hash
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from tests.support.mutations import mutations
from tests.support.paths import ROOT

OPTIONS = DecodeOptions()
SHIPPED = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 17), np.uint8)
COLOUR = RNG.integers(0, 256, (12, 17, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (12, 17), np.uint16)


def saved(image: Image.Image | NDArray[Any], kind: str, **how: Any) -> bytes:
    """Encode an image with Pillow."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **how)
    return file.getvalue()


def only(content: bytes, options: DecodeOptions = OPTIONS) -> NDArray[np.uint16]:
    """Return the pixels of a file with one image."""
    [picture] = read_bytes(content, options)
    assert isinstance(picture, DecodedImage), picture
    assert picture.frame == 0
    assert picture.pixels.dtype == np.uint16
    assert picture.pixels.flags.c_contiguous
    return picture.pixels


def why(content: bytes, options: DecodeOptions = OPTIONS) -> str:
    """Return the reason why a file cannot be decoded."""
    results = list(read_bytes(content, options))
    assert results
    assert all(isinstance(result, DecodeFailure) for result in results)
    return results[0].reason


def tiff(pixels: NDArray[Any], order: str = "<", pages: int = 1, **tags: int) -> bytes:
    """Make an uncompressed grey TIFF with the given tags: `t262=0` sets tag 262."""
    height, width = pixels.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    standard = {
        256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 273: 8, 277: 1,
        278: height, 279: len(data), 339: kinds[pixels.dtype.kind],
    }  # fmt: skip
    entries = sorted((standard | {int(k[1:]): v for k, v in tags.items()}).items())
    start = 8 + len(data)
    directory = struct.pack(order + "H", len(entries))
    directory += b"".join(struct.pack(order + "HHII", tag, 4, 1, v) for tag, v in entries)
    chain = b""
    for page in range(pages):
        place = start + (page + 1) * (len(directory) + 4) if page + 1 < pages else 0
        chain += directory + struct.pack(order + "I", place)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + data + chain


def png_header(width: int, height: int) -> bytes:
    """Make a PNG with this size in its header and almost no data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


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


def test_frames_are_decoded_as_they_are_asked_for(monkeypatch):
    pages = [Image.fromarray(GREY)] * 3
    decoded = []
    decode = decoding._decode
    monkeypatch.setattr(decoding, "_decode", lambda f, n: decoded.append(n) or decode(f, n))
    images = read_bytes(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), OPTIONS)
    next(images)
    assert decoded == [0]


def test_what_comes_too_late_is_told_frame_by_frame():
    pages = [Image.fromarray(GREY)] * 3
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    results = list(read_bytes(content, DecodeOptions(max_seconds=0)))
    assert [result.frame for result in results] == [0, 1, 2]
    assert {result.reason for result in results} == {
        "decoding takes more than 0 s; raise max_seconds"
    }


# ---------------------------------------------------------------- files


def test_the_content_tells_the_format_whatever_the_name(tmp_path):
    path = tmp_path / "scan.jpg"
    path.write_bytes(saved(DEEP, "PNG"))
    [picture] = read_file(path, OPTIONS)
    np.testing.assert_array_equal(picture.pixels, DEEP)


def test_a_file_that_is_not_there_or_is_a_folder_is_told(tmp_path):
    for path in (tmp_path / "nothing.png", tmp_path):
        [result] = read_file(path, OPTIONS)
        assert result == DecodeFailure("it is no file; give the path of an image file", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every file")
def test_a_file_that_may_not_be_opened_is_told(tmp_path):
    path = tmp_path / "secret.png"
    path.touch(0)
    [result] = read_file(path, OPTIONS)
    assert result.reason == "it cannot be opened: Permission denied; check its path"


def test_a_file_over_the_limit_is_not_read_whole(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of holes
    [result] = read_file(path, DecodeOptions(max_bytes=1000))
    assert result.reason == "it has more than 1000 bytes; split it or raise max_bytes"


def test_images_are_known_by_suffix_and_without_one_by_how_they_begin(tmp_path):
    for suffix in SUFFIXES:
        assert is_image_file(tmp_path / f"a{suffix.upper()}")
    for name in ("1.2.840.10008.5", "IM0001"):
        path = tmp_path / name
        path.write_bytes(bytes(128) + b"DICM")
        assert is_image_file(path)
        path.write_bytes(bytes(128) + b"DIC")
        assert not is_image_file(path)
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        path.write_bytes(start)
        assert is_image_file(path)
    path.write_bytes(b"\x08\0\x05\0")
    assert not is_image_file(path)
    (tmp_path / "notes.txt").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "folder").mkdir()
    assert not any(is_image_file(tmp_path / name) for name in ("notes.txt", "folder", "absent"))


def test_a_pipe_without_a_suffix_is_no_image_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not is_image_file(tmp_path / "pipe")


# ---------------------------------------------------------------- hostile files


def tile_bomb() -> bytes:
    """Make a page of 16 × 16 pixels in one tile of 60,000 × 60,000."""
    return tiff(GREY[:16, :16], t322=60_000, t323=60_000, t324=8, t325=256)


def many_scans() -> bytes:
    content = saved(COLOUR, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 200 + content[-2:]


HOSTILE = {
    "empty": (b"", "the file is empty; copy it again"),
    "text": (b"patient,label\n1,0\n" * 30, "it is no PNG, JPEG, TIFF, DICOM or NIfTI"),
    "one byte": (b"\x89", "it is no PNG, JPEG, TIFF, DICOM or NIfTI"),
    "GIF": (saved(GREY, "GIF"), "it is no PNG, JPEG, TIFF, DICOM or NIfTI"),
    "wide": (png_header(60_000, 1_000), "60000 × 1000 pixels is over the limit of 33554432"),
    "wide and high": (
        png_header(60_000, 60_000),
        "60000 × 60000 pixels is over the limit of 33554432",
    ),
    "no width": (png_header(0, 5), "it is damaged"),
    "too few bytes": (png_header(500, 500), "it is cut short; copy the file again"),
    "tile": (tile_bomb(), "60000 × 60000 pixels is over the limit of 33554432"),
    "scans": (many_scans(), "its JPEG data has more than 100 scans; export it again"),
    "signature alone": (b"\x89PNG\r\n\x1a\n", "it is damaged; export it again"),
    "cut PNG": (saved(DEEP, "PNG")[:200], "it is cut short; copy the file again"),
    "cut JPEG": (saved(COLOUR, "JPEG")[:700], "it is cut short; copy the file again"),
    "cut TIFF": (saved(DEEP, "TIFF")[:-40], "it is cut short; copy the file again"),
    "bad checksum": (saved(DEEP, "PNG").replace(b"IHDR", b"IHDR\1", 1), "it is damaged"),
    "NaN": (tiff(np.full((3, 3), np.nan, np.float32)), "9 of its values are NaN or infinite"),
    "gzip": (gzip.compress(b"text"), "it is gzip but holds no NIfTI volume; unpack it"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_each_hostile_file_has_its_reason(name, capfd):
    content, reason = HOSTILE[name]
    assert reason in why(content)
    assert capfd.readouterr() == ("", "")


def test_more_pages_than_the_limit_are_refused_before_any_is_decoded():
    content = tiff(GREY, pages=51)
    assert why(content, DecodeOptions(max_frames=50)).startswith(
        "it has more than 50 frames; split it"
    )
    assert len(list(read_bytes(content, DecodeOptions(max_frames=51)))) == 51


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1)])
def test_odd_sizes_are_fine(size):
    assert only(saved(DEEP[: size[0], : size[1]], "PNG")).shape == size


def test_a_picture_just_within_the_limits_is_read():
    content = saved(GREY, "PNG")
    reading = DecodeOptions(max_pixels=GREY.size, max_bytes=len(content), max_frames=1)
    assert only(content, reading).shape == GREY.shape
    assert "bytes" in why(content, DecodeOptions(max_bytes=len(content) - 1))
    assert "pixels" in why(content, DecodeOptions(max_pixels=GREY.size - 1))


def test_a_png_whose_text_unpacks_to_much_is_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "0" * (1 << 23), zip=True)
    assert why(saved(GREY, "PNG", pnginfo=info)) == "it is damaged; export it again"


def test_want_of_memory_is_told(monkeypatch):
    def picture(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_decode", picture)
    expected = "it needs more memory than there is; make it smaller"
    assert why(saved(GREY, "PNG")) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"axis": 3},
        {"intensity_window": (40, 0.5)},
        {"intensity_window": (float("nan"), 5)},
        {"intensity_window": "wide"},
    ],
)
def test_a_reading_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DecodeOptions(**wrong)


SEEDS = {
    "grey.png": saved(GREY, "PNG"),
    "deep.png": saved(DEEP, "PNG"),
    "palette.png": saved(Image.fromarray(COLOUR).quantize(9), "PNG"),
    "colour.jpg": saved(COLOUR, "JPEG"),
    "progressive.jpg": saved(COLOUR, "JPEG", progressive=True),
    "plain.tif": tiff(DEEP),
    "float.tif": tiff(GREY.astype(np.float32), ">"),
    "pages.tif": saved(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(DEEP)]),
}


def check_is_safe(content: bytes) -> None:
    results = list(
        read_bytes(content, DecodeOptions(max_bytes=1 << 22, max_pixels=1 << 20, max_frames=64))
    )
    assert results
    for result in results:
        if isinstance(result, DecodeFailure):
            assert result.reason
            assert "\n" not in result.reason
        else:
            assert result.pixels.dtype == np.uint16
            assert result.pixels.ndim in {2, 3}


@pytest.mark.parametrize("name", SEEDS)
def test_damage_anywhere_raises_nothing(name):
    for content in mutations(SEEDS[name], name, 60):
        check_is_safe(content)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_damage_anywhere_in_dicom_raises_nothing(path):
    content = path.read_bytes()
    for damaged in mutations(content, path.name, 6 if len(content) < 1e5 else 2):
        check_is_safe(damaged)


@given(st.binary(max_size=400), st.sampled_from(sorted(decoding.SIGNATURES)))
@settings(max_examples=150)
def test_any_bytes_after_a_signature_raise_nothing(rest, signature):
    check_is_safe(signature + rest)


# ---------------------------------------------------------------- in company


def test_readers_in_many_threads_do_not_disturb_each_other():
    contents = [path.read_bytes() for path in SHIPPED[::3] if path.stat().st_size < 10_000]
    contents += [*SEEDS.values(), *(content for content, _ in HOSTILE.values())]
    before = list(warnings.filters)

    def read(content: bytes) -> list[tuple[int | None, bytes | str]]:
        return [
            (r.frame, r.reason if isinstance(r, DecodeFailure) else r.pixels.tobytes())
            for r in read_bytes(content, OPTIONS)
        ]

    alone = [read(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, contents)) == alone
    assert warnings.filters == before
    assert logging.getLogger("pydicom").propagate


def test_nothing_is_heard_of_the_libraries_while_others_are(caplog, recwarn):
    quiet = decoding._Silence()
    with quiet:
        with quiet:
            logging.getLogger("pydicom.values").error("a name")
        logging.getLogger("pydicom.values").error("a name")
        logging.getLogger("serving").error("a fact")
        exec(  # a warning that is ascribed to a library
            compile("import warnings; warnings.warn('a name')", "x", "exec"),
            {"__name__": "pydicom.values"},
        )
    assert [record.message for record in caplog.records] == ["a fact"]
    assert not recwarn.list
    logging.getLogger("pydicom.values").error("after")
    assert caplog.records[-1].message == "after"


def test_reading_png_imports_neither_pydicom_nor_nibabel():
    code = (
        "import io, sys; from PIL import Image; from anomaly_vae.images.decoding import *;"
        "from anomaly_vae.images.pixels import *;"
        "f = io.BytesIO(); Image.new('L', (3, 3)).save(f, 'PNG');"
        "[p] = read_bytes(f.getvalue(), DecodeOptions());"
        "assert p.pixels.shape == (3, 3); print({'pydicom', 'nibabel', 'torch'} & {*sys.modules})"
    )
    root = ROOT
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert answer.stdout.strip() == "set()", answer.stderr


@pytest.mark.parametrize(
    ("kind", "begin"), [("DICOM", bytes(128) + b"DICM"), ("NIfTI", b"\x1f\x8b")]
)
def test_a_library_that_is_missing_is_named_with_its_remedy(monkeypatch, kind, begin):
    module = "dicom" if kind == "DICOM" else "nifti"
    monkeypatch.setitem(sys.modules, f"anomaly_vae.images.{module}", None)
    expected = f"the libraries that read {kind} are missing; install anomaly-vae[images]"
    assert why(begin) == expected


# ---------------------------------------------------------------- near-twins


def scene(size: int = 64) -> NDArray[np.float64]:
    """Make a smooth image without symmetry."""
    y, x = np.mgrid[0 : 1 : 1j * size, 0 : 1 : 1j * size]
    blobs = [
        (0.2, 0.3, 0.1, 1.0),
        (0.7, 0.6, 0.2, 0.8),
        (0.5, 0.9, 0.05, -0.6),
        (0.9, 0.1, 0.15, 0.5),
    ]
    return sum(a * np.exp(-((x - u) ** 2 + (y - v) ** 2) / s**2) for u, v, s, a in blobs)


def slow_hash(image: NDArray[np.float64]) -> int:
    """Hash a 32 × 32 image with explicit sums."""
    values = image - image.mean()
    place = (np.arange(32) + 0.5) * np.pi / 32
    spectrum = [
        sum(
            values[i, j] * np.cos(u * place[i]) * np.cos(v * place[j])
            for i in range(32)
            for j in range(32)
        )
        for u in range(1, 9)
        for v in range(1, 9)
    ]
    middle = np.median(spectrum)
    return sum(int(value > middle) << (63 - n) for n, value in enumerate(spectrum))


def test_the_hash_is_that_of_the_definition():
    image = np.random.default_rng(3).normal(size=(32, 32)).astype(np.float32)
    assert perceptual_hash(image) == slow_hash(image.astype(np.float64))


def test_the_hash_heeds_neither_scale_nor_brightness_nor_type():
    image = scene()
    value = perceptual_hash(image)
    assert perceptual_hash(image * 7 + 3) == value
    assert perceptual_hash(image.astype(np.float32)) == value
    assert perceptual_hash(np.kron(image, np.ones((2, 2)))).__xor__(value).bit_count() <= 2
    assert 0 <= value < 1 << 64


def test_constant_images_have_one_hash():
    assert {perceptual_hash(np.full((9, 5), value)) for value in (0, 0.1, 1e9)} == {0}


def test_a_noisy_copy_is_a_twin_and_another_image_is_not():
    image = scene()
    noisy = image + np.random.default_rng(1).normal(0, 0.05, image.shape)
    hashes = [perceptual_hash(noisy), perceptual_hash(image.T), perceptual_hash(image[:, ::-1])]
    known = [perceptual_hash(image)]
    np.testing.assert_array_equal(has_near_duplicate(hashes, known), [True, False, False])


def test_a_mirrored_twin_is_found_by_either_view():
    image = scene()
    views = np.array([[perceptual_hash(image), perceptual_hash(image[:, ::-1])]], np.uint64)
    mirrored = np.array([perceptual_hash(image[:, ::-1])], np.uint64)
    assert has_near_duplicate(views, mirrored).all()
    assert has_near_duplicate(mirrored, views).all()
    assert not has_near_duplicate(views[:, 0], mirrored).any()


hashes = st.integers(0, (1 << 64) - 1)


@given(st.lists(hashes, max_size=6), st.lists(hashes, max_size=6), st.integers(20, 40))
def test_twins_differ_in_few_bits(mine, theirs, most):
    expected = [any((a ^ b).bit_count() <= most for b in theirs) for a in mine]
    np.testing.assert_array_equal(has_near_duplicate(mine, theirs, most), expected)
