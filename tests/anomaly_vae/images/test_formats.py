"""Formats that are recognised but not read are named, with what to do."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
from PIL import Image

from anomaly_vae.images.formats import HEAD_BYTES, recognise_format, refusal
from tests.support.raster_files import saved


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return file.getvalue()


GREY = Image.new("RGB", (16, 16))
FOLDER, CONVERT = "; unpack it and give the folder", ", which is not read; convert it to PNG"
FILES = {
    "empty ZIP": (b"PK\5\6" + bytes(18), f"a ZIP archive{FOLDER}"),
    "RAR": (b"Rar!\x1a\x07\0", f"a RAR archive{FOLDER}"),
    "7z": (b"7z\xbc\xaf\x27\x1c", f"a 7z archive{FOLDER}"),
    "tar": (tar(), f"a tar archive{FOLDER}"),
    "tar in gzip": (gzip.compress(tar()), f"a tar archive{FOLDER}"),
    "ZIP in gzip": (gzip.compress(b"PK\3\4" + bytes(30)), f"a ZIP archive{FOLDER}"),
    "noise in gzip": (gzip.compress(bytes(range(128, 256))), "a compressed file; unpack it"),
    "bzip2": (b"BZh91AY&SY", "a compressed file; unpack it"),
    "thumbnails": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document or a cache"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(9), "a video and no image; export its images"),
    "icon": (saved(GREY, "ICO"), f"an icon{CONVERT}"),
    "icon of a Mac": (saved(GREY, "ICNS"), f"an icon{CONVERT}"),
    "PCX": (saved(GREY, "PCX"), f"PCX{CONVERT}"),
    "SGI": (saved(GREY, "SGI"), f"SGI{CONVERT}"),
    "DDS": (saved(GREY, "DDS"), f"DDS{CONVERT}"),
    "PostScript": (saved(GREY, "EPS"), f"PostScript{CONVERT}"),
    "JPEG XR": (b"II\xbc\1" + bytes(20), f"JPEG XR{CONVERT}"),
    "QOI": (b"qoif" + bytes(20), f"QOI{CONVERT}"),
    "FITS": (b"SIMPLE  =                    T", f"FITS{CONVERT}"),
    "MINC": (b"CDF\1" + bytes(9), f"MINC or NetCDF{CONVERT}"),
    "SVG": (b"<svg xmlns=''/>", f"SVG, XML or HTML{CONVERT}"),
    "HTML": (b"\xef\xbb\xbf\n<!DOCTYPE html>", f"SVG, XML or HTML{CONVERT}"),
    "text": (b"a;b", "text and no image"),
    "text in gzip": (gzip.compress(b"a;b"), "text and no image"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_format_that_is_not_read_is_named_with_a_remedy(name: str) -> None:
    content, said = FILES[name]
    assert recognise_format(content[:HEAD_BYTES]) is None
    assert refusal(content[:HEAD_BYTES]).startswith(f"it is {said}")


def test_what_is_unknown_is_told_which_formats_are_read() -> None:
    assert refusal(bytes(40)).startswith("it is no PNG, JPEG, TIFF, GIF, BMP, WebP, JPEG 2000")
