"""Recognise the format of a file by its first bytes, and name the formats that are not read."""

from __future__ import annotations

import re
import zlib
from codecs import getincrementaldecoder
from contextlib import suppress

import numpy as np

READ = (
    "PNG", "JPEG", "TIFF", "GIF", "BMP", "WebP", "JPEG 2000", "JPEG XL", "PNM", "DICOM", "NIfTI",
    "MGH",
)  # fmt: skip
"""Names of the formats that are read."""
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"GIF87a": "GIF", b"GIF89a": "GIF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\x08\0": "DICOM", b"\2\0": "DICOM", b"\0\x08": "DICOM",  # without its preamble
}  # fmt: skip
"""First bytes of a file, and its format."""
PATTERNS = {
    re.compile(rb"RIFF.{4}WEBP", re.DOTALL): "WebP",
    re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL): "BMP",
    re.compile(rb"P[1-7]\s[\s#0-9A-Z]"): "PNM",
}
"""Patterns of the first bytes of other formats."""
UNPACK = "; unpack it and give the folder"
EXPORT = " and no image; export its images"
CONVERT = ", which is not read; convert it to PNG, TIFF, DICOM or NIfTI"
LEAVE = " and no image"
"""What to do with a file of a format that is not read."""
NOT_READ = {
    re.compile(pattern, re.DOTALL): (name, remedy)
    for pattern, name, remedy in (
        (rb"PK\x03\x04|PK\x05\x06", "a ZIP archive", UNPACK),
        (rb"Rar!", "a RAR archive", UNPACK),
        (rb"7z\xbc\xaf", "a 7z archive", UNPACK),
        (rb".{257}ustar", "a tar archive", UNPACK),
        (rb"\x1f[\x8b\x9d]|BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file", "; unpack it"),
        (rb"%PDF", "a PDF document", EXPORT),
        (rb"\xd0\xcf\x11\xe0", "an Office document or a cache of thumbnails", LEAVE),
        (rb"8BPS", "a Photoshop file", CONVERT),
        (rb"%!PS", "PostScript", CONVERT),
        (rb".{4}ftypavi[fs]", "AVIF", CONVERT),
        (rb".{4}ftyp(hei|hev|mif1|msf1)", "HEIF", CONVERT),
        (rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3", "a video", EXPORT),
        (rb"\0\0\x01\0[\x01-\xff]\0|icns", "an icon", CONVERT),
        (rb"II\xbc", "JPEG XR", CONVERT),
        (rb"qoif", "QOI", CONVERT),
        (rb"DDS ", "DDS", CONVERT),
        (rb"\n[\0-\x05]\x01[\x01\x02\x04\x08]", "PCX", CONVERT),
        (rb"\x01\xda[\0\x01][\x01\x02]\0[\x01-\x03]", "SGI", CONVERT),
        (rb"SIMPLE  =", "FITS", CONVERT),
        (rb"CDF[\x01\x02\x05]", "MINC or NetCDF", CONVERT),
        (rb"NRRD", "NRRD", CONVERT),
        (rb"ObjectType\s*=", "MetaImage", CONVERT),
        (rb"\x89HDF", "HDF5", CONVERT),
        (rb"\x93NUMPY", "a NumPy array", CONVERT),
        (rb"MATLAB 5\.0 MAT", "a MATLAB file", CONVERT),
        (rb"v/1\x01", "OpenEXR", CONVERT),
        (rb"#\?R", "Radiance HDR", CONVERT),
        (rb"P[Ff]\s", "PFM", CONVERT),
        (rb"(\xef\xbb\xbf)?\s*<([sS][vV][gG]|\?xml|!(?i:doctype))", "SVG, XML or HTML", CONVERT),
        (rb"\x5c\x01\0\0|\0\0\x01\x5c", "Analyze 7.5 or half of a NIfTI pair", CONVERT),
    )
}
"""Patterns of the first bytes of formats that are not read, their names and what to do."""
NIFTI_MAGIC = {b"n+1", b"ni1", b"n+2", b"ni2"}
MGH_TYPES = {0, 1, 3, 4, 10}
"""Numbers of the data types in MGH files."""
GZIP = b"\x1f\x8b"
HEAD_BYTES = 1024
"""Number of first bytes of a file that identify its format."""


def recognise_format(head: bytes) -> str | None:
    """Return the format of a file by its first `HEAD_BYTES` bytes, or None if it is not read."""
    if head.startswith(GZIP):
        return _recognise_gzip(head)
    if head[128:132] == b"DICM":
        return "DICOM"
    if {head[344:347], head[4:7]} & NIFTI_MAGIC:
        return "NIfTI"
    for signature, file_format in SIGNATURES.items():
        if head.startswith(signature):
            return file_format
    for pattern, file_format in PATTERNS.items():
        if pattern.match(head):
            return file_format
    return "MGH" if _is_mgh(head) else None


def _recognise_gzip(head: bytes) -> str | None:
    """Return the format of a file in gzip, followed by "in gzip"."""
    packed = recognise_format(_unpacked(head))
    return f"{packed} in gzip" if packed else None


def _unpacked(head: bytes) -> bytes:
    """Return the first bytes of a file in gzip; empty if it is damaged."""
    with suppress(zlib.error):
        return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    return b""


def _is_mgh(head: bytes) -> bool:
    """Return whether the first bytes are version 1, four positive lengths and a data type."""
    if len(head) < 24:
        return False
    version, *lengths, kind = np.frombuffer(head, ">i4", 6).tolist()
    return version == 1 and min(lengths) > 0 and kind in MGH_TYPES


def refusal(head: bytes) -> str:
    """Return why a file of a format that is not read is refused, by its first bytes."""
    inside = _unpacked(head) if head.startswith(GZIP) else b""
    for content in (inside, head):
        for pattern, (name, remedy) in NOT_READ.items():
            if pattern.match(content):
                return f"it is {name}{remedy}"
        if _is_text(content):
            return "it is text and no image"
    *others, last = READ
    return f"it is no {', '.join(others)} or {last}; convert it to one of them"


def _is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are UTF-8 text, of which a character may be cut."""
    try:
        return b"\0" not in head and bool(getincrementaldecoder("utf-8")().decode(head))
    except UnicodeDecodeError:
        return False
