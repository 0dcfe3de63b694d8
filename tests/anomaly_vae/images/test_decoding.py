"""Image files become the pixels they hold; what holds none is refused with its own reason."""

import gzip
import io
import json
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

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from anomaly_vae.config.data import ImageData
from anomaly_vae.images import decoding, formats
from anomaly_vae.images.decoding import read_bytes, read_file
from anomaly_vae.images.encoding import encode_png
from anomaly_vae.images.formats import HEAD_BYTES, recognise_format
from anomaly_vae.images.pixels import CT_WINDOWS, DecodedImage, DecodeFailure, DecodeOptions
from anomaly_vae.images.schema import ImageSchema
from tests.support.mutations import mutations
from tests.support.paths import ROOT
from tests.support.raster_files import COLOUR, DEEP, GREY, OPTIONS, only, saved, tiff

SHIPPED = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))


def why(content: bytes, options: DecodeOptions = OPTIONS) -> str:
    """Return the reason why a file cannot be decoded."""
    results = list(read_bytes(content, options))
    assert results
    assert all(isinstance(result, DecodeFailure) for result in results)
    return results[0].reason


def png_header(width: int, height: int) -> bytes:
    """Make a PNG with this size in its header and almost no data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---------------------------------------------------------------- frames


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
    "text": (b"patient,label\n1,0\n" * 30, "it is text and no image"),
    "one byte": (b"\x89", "it is no PNG, JPEG, TIFF, GIF, BMP"),
    "PDF": (b"%PDF-1.7", "it is a PDF document and no image; export its images"),
    "ZIP": (b"PK\3\4" + bytes(40), "it is a ZIP archive; unpack it and give the folder"),
    "HEIF": (b"\0\0\0\x18ftypheic" + bytes(40), "it is HEIF, which is not read; convert it"),
    "AVIF": (b"\0\0\0\x18ftypavif" + bytes(40), "it is AVIF, which is not read; convert it"),
    "gzip in gzip": (
        gzip.compress(gzip.compress(saved(GREY, "PNG"))),
        "it is a compressed file; unpack it",
    ),
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
    "gzip": (gzip.compress(b"text"), "it is text and no image"),
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


COLOUR_IMAGE, OTHER_IMAGE = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)


def packed_tiff(pixels: NDArray[Any], **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **how)
    return file.getvalue()


SEEDS = {
    "grey.png": saved(GREY, "PNG"),
    "deep.png": saved(DEEP, "PNG"),
    "palette.png": saved(Image.fromarray(COLOUR).quantize(9), "PNG"),
    "colour.jpg": saved(COLOUR, "JPEG"),
    "progressive.jpg": saved(COLOUR, "JPEG", progressive=True),
    "plain.tif": tiff(DEEP),
    "float.tif": tiff(GREY.astype(np.float32), ">"),
    "pages.tif": saved(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(DEEP)]),
    "half.tif": tiff(GREY.astype(np.float16)),
    "signed.tif": tiff(DEEP.astype(np.int16), ">"),
    "lzw.tif": packed_tiff(GREY.astype(np.float32), compression="lzw", predictor=True),
    "zstd.tif": packed_tiff(DEEP.astype(np.int16), compression="zstd", tile=(16, 16)),
    "frames.gif": saved(COLOUR_IMAGE, "GIF", save_all=True, append_images=[OTHER_IMAGE]),
    "plain.bmp": saved(COLOUR, "BMP"),
    "frames.webp": saved(COLOUR_IMAGE, "WEBP", save_all=True, append_images=[OTHER_IMAGE]),
    "colour.jp2": saved(COLOUR, "JPEG2000"),
    "colour.jph": imagecodecs.htj2k_encode(COLOUR),
    "deep.jxl": imagecodecs.jpegxl_encode(DEEP, lossless=True),
    "deep.jls": imagecodecs.jpegls_encode(DEEP),
    "twelve.jpg": imagecodecs.jpeg8_encode(DEEP >> 4, bitspersample=12),
    "lossless.jpg": imagecodecs.jpeg8_encode(COLOUR, lossless=True),
    "binary.ppm": saved(COLOUR, "PPM"),
    "text.pgm": b"P2 17 12 255\n" + b" ".join(b"%d" % value for value in GREY.ravel()),
    "map.pam": b"P7\nWIDTH 17\nHEIGHT 12\nDEPTH 3\nMAXVAL 255\nENDHDR\n" + COLOUR.tobytes(),
    "volume.mgz": gzip.compress(nibabel.MGHImage(GREY[..., None], np.eye(4)).to_bytes()),
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


def test_every_format_that_is_read_is_recognised_by_its_content():
    found = {name: recognise_format(content) for name, content in SEEDS.items()}
    assert set(found.values()) | {"DICOM", "NIfTI", "MGH"} == {*decoding.OPENERS, "MGH in gzip"}
    assert found["volume.mgz"] == "MGH in gzip"
    head = {name: recognise_format(content[:HEAD_BYTES]) for name, content in SEEDS.items()}
    assert head == found
    assert tuple(decoding.OPENERS) == formats.READ


SIGNATURES = [*sorted(formats.SIGNATURES), b"RIFF\0\0\0\0WEBP", b"P5 ", b"P7\n", b"BM" + bytes(12)]


@given(st.binary(max_size=400), st.sampled_from(SIGNATURES))
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
    ("kind", "begin"),
    [
        ("DICOM", bytes(128) + b"DICM"),
        ("NIfTI", bytes(344) + b"n+1\0"),
        ("NIfTI", gzip.compress(bytes(344) + b"n+1\0", mtime=0)),
        ("TIFF", b"II*\0"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_remedy(monkeypatch, kind, begin):
    monkeypatch.setitem(sys.modules, f"anomaly_vae.images.decoders.{kind.lower()}", None)
    expected = f"the libraries that read {kind} are missing; install anomaly-vae[images]"
    assert why(begin) == expected


# ---------------------------------------------------------------- several windows


def test_three_windows_of_a_grey_file_are_its_channels(tmp_path: Path) -> None:
    values = np.linspace(-1000, 1000, 64).reshape(8, 8).astype(np.float32)
    tifffile.imwrite(tmp_path / "ct.tif", values)
    windows = ((-600.0, 1500.0), (400.0, 1800.0), (40.0, 80.0))
    (image,) = read_file(tmp_path / "ct.tif", DecodeOptions(windows=windows))
    assert isinstance(image, DecodedImage)
    assert image.pixels.shape == (8, 8, 3)
    for channel, window in enumerate(windows):
        (alone,) = read_file(tmp_path / "ct.tif", DecodeOptions(intensity_window=window))
        assert isinstance(alone, DecodedImage)
        np.testing.assert_array_equal(image.pixels[..., channel] >> 8, alone.pixels >> 8)
    again = next(read_bytes(encode_png(image), DecodeOptions(windows=windows)))
    assert isinstance(again, DecodedImage)
    np.testing.assert_array_equal(again.pixels, image.pixels)  # as the frozen test split keeps it
    schema = ImageSchema(8, 3, DecodeOptions(windows=windows))
    assert ImageSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    assert "windows" not in ImageSchema(8, 3).to_json()["reading"]


def test_windows_by_name_and_number_reach_the_options() -> None:
    data = ImageData(path="x", channels=3, intensity_window=("lung", (40, 80), "bone"))
    assert ImageSchema.from_config(data).options.windows == (
        CT_WINDOWS["lung"],
        (40, 80),
        CT_WINDOWS["bone"],
    )
    with pytest.raises(ValueError, match="three intensity windows become three channels, not 1"):
        ImageData(path="x", intensity_window=("lung", "bone", "brain"))
