"""Decode image files from outside, whose format is recognised by their content.

This is the only place where bytes become pixels. Nothing that a file holds makes it raise, warn or
log: a file or frame that cannot be decoded yields a `DecodeFailure`, whose reason never quotes the
file. The libraries that read a format are imported when the first such file arrives.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from anomaly_vae.errors import DataError
from anomaly_vae.images.jpeg import open_jpeg
from anomaly_vae.images.jpeg_xl import open_jpeg_xl
from anomaly_vae.images.netpbm import open_netpbm
from anomaly_vae.images.pixels import (
    TRUNCATED,
    DecodedImage,
    DecodeFailure,
    DecodeOptions,
    Frames,
    inflate,
)
from anomaly_vae.images.raster import open_raster

T = TypeVar("T")
Opener = Callable[[bytes, DecodeOptions], Frames]

LIBRARIES = ("PIL", "pydicom", "nibabel", "imagecodecs", "tifffile")
"""Libraries whose warnings and logs may quote a file."""
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
NOT_READ = {
    re.compile(rb"%PDF"): "PDF",
    re.compile(rb"PK\x03\x04"): "a ZIP archive",
    re.compile(rb"\x1f[\x8b\x9d]|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!"): "an archive",
    re.compile(rb"8BPS"): "a Photoshop file",
    re.compile(rb".{4}ftypavi[fs]", re.DOTALL): "AVIF",
    re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL): "HEIF",
    re.compile(rb".{4}ftyp", re.DOTALL): "a video",
    re.compile(rb"NRRD"): "NRRD",
    re.compile(rb"ObjectType\s*="): "MetaImage",
    re.compile(rb"\x89HDF"): "HDF5",
    re.compile(rb"\x93NUMPY"): "a NumPy array",
    re.compile(rb"v/1\x01"): "OpenEXR",
    re.compile(rb"P[Ff]\s"): "PFM",
    re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!DOCTYPE)", re.IGNORECASE): "SVG, XML or HTML",
    re.compile(rb"\x5c\x01\0\0|\0\0\x01\x5c"): "Analyze 7.5 or half of a NIfTI pair",
}
"""Patterns of the first bytes of formats that are named but not read."""
NIFTI_MAGIC = {b"n+1", b"ni1", b"n+2", b"ni2"}
MGH_TYPES = {0, 1, 3, 4, 10}
"""Numbers of the data types in MGH files."""
GZIP = b"\x1f\x8b"
HEAD_BYTES = 1024
"""Number of first bytes of a file that identify its format."""


def read_file(path: Path, options: DecodeOptions) -> Iterator[DecodedImage | DecodeFailure]:
    """Yield the images of a file in the order of its frames, or why a frame has none."""
    return _read(partial(_content, path, options), options)


def read_bytes(content: bytes, options: DecodeOptions) -> Iterator[DecodedImage | DecodeFailure]:
    """Yield the images of a file's content, whose format is recognised by the content alone.

    The modules `raster`, `dicom` and `nifti` describe how values become pixels.
    """
    return _read(lambda: content, options)


def count_images(content: bytes, options: DecodeOptions) -> int:
    """Return the number of images that `read_bytes` yields, by the header of a file.

    A file that cannot be opened yields one failure, and counts as one.
    """
    frames = _attempt(lambda: _open(content, options), None)
    return 1 if isinstance(frames, DecodeFailure) else len(frames.numbers)


def _content(path: Path, options: DecodeOptions) -> bytes:
    try:
        if not path.is_file():
            raise DataError("it is no file; give the path of an image file")
        with path.open("rb") as file:
            return file.read(options.max_bytes + 1)
    except OSError as error:
        raise DataError(f"it cannot be opened: {error.strerror}; check its path") from None


def _read(
    fetch: Callable[[], bytes], options: DecodeOptions
) -> Iterator[DecodedImage | DecodeFailure]:
    start = time.monotonic()
    frames = _attempt(lambda: _open(fetch(), options), None)
    if isinstance(frames, DecodeFailure):
        yield frames
        return
    elapsed = time.monotonic() - start
    for number in frames.numbers:
        start = time.monotonic()
        if elapsed > options.max_seconds:
            late = f"decoding takes more than {options.max_seconds:g} s; raise max_seconds"
            yield DecodeFailure(late, number)
            continue
        decoded = _attempt(partial(_decode, frames, number), number)
        elapsed += time.monotonic() - start
        yield decoded


def _attempt(action: Callable[[], T], frame: int | None) -> T | DecodeFailure:
    """Return the result of an action, or the reason why it failed."""
    try:
        return action()
    except DataError as error:
        return DecodeFailure(str(error), frame)
    except Image.DecompressionBombError:
        return DecodeFailure("it has too many pixels; make it smaller", frame)
    except MemoryError:
        return DecodeFailure("it needs more memory than there is; make it smaller", frame)
    except Exception as error:  # noqa: BLE001 the libraries raise anything on damaged bytes
        truncated = "truncated" in str(error)
        return DecodeFailure(TRUNCATED if truncated else "it is damaged; export it again", frame)


def _decode(frames: Frames, number: int) -> DecodedImage:
    with LIBRARIES_SILENCED, np.errstate(all="ignore"):
        pixels = np.ascontiguousarray(frames.decode(number))
        return DecodedImage(pixels, number, frames.window(number) if frames.window else "")


def _open(content: bytes, options: DecodeOptions) -> Frames:
    options.check_bytes(len(content))
    if content.startswith(GZIP):
        content = inflate(content, 31, options)
    opener = _opener(content)
    with LIBRARIES_SILENCED, np.errstate(all="ignore"):
        return opener(content, options)


def _opener(content: bytes) -> Opener:
    """Import the function that opens files of this format."""
    file_format = recognise_format(content)
    if file_format not in OPENERS:
        raise DataError(refusal(content))
    try:
        return OPENERS[file_format]()
    except ImportError:
        raise DataError(
            f"the libraries that read {file_format} are missing; install anomaly-vae[images]"
        ) from None


def refusal(content: bytes) -> str:
    """Name the format of a file that is not read, as far as it is known."""
    for pattern, name in NOT_READ.items():
        if pattern.match(content):
            return f"it is {name}, which is not read; convert it to PNG, TIFF, DICOM or NIfTI"
    *others, last = OPENERS
    return f"it is no {', '.join(others)} or {last}; convert it to one of them"


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
    with suppress(zlib.error):
        packed = recognise_format(zlib.decompressobj(31).decompress(head, HEAD_BYTES))
        return f"{packed} in gzip" if packed else None
    return None


def _is_mgh(head: bytes) -> bool:
    """Return whether the first bytes are version 1, four positive lengths and a data type."""
    if len(head) < 24:
        return False
    version, *lengths, kind = np.frombuffer(head, ">i4", 6).tolist()
    return version == 1 and min(lengths) > 0 and kind in MGH_TYPES


def _dicom() -> Opener:
    from anomaly_vae.images.dicom import open_dicom

    return open_dicom


def _nifti() -> Opener:
    from anomaly_vae.images.nifti import open_nifti

    return open_nifti


def _mgh() -> Opener:
    from anomaly_vae.images.nifti import open_mgh

    return open_mgh


def _tiff() -> Opener:
    from anomaly_vae.images.tiff import open_tiff

    return open_tiff


class _Silence:
    """A context manager that hides the libraries' warnings and logs, which may quote a file.

    `warnings.catch_warnings` alone is not safe for threads: when two overlap, the first one to
    enter silences and the last one to leave restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._loggers = [logging.getLogger(name) for name in LIBRARIES]
        for logger in self._loggers:
            logger.addHandler(logging.NullHandler())  # without a handler, records go to stderr

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._silence()
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._restore()

    def _silence(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES)}|anomaly_vae)\b")
        self._silenced = [logger for logger in self._loggers if logger.propagate]
        for logger in self._silenced:
            logger.propagate = False

    def _restore(self) -> None:
        for logger in self._silenced:
            logger.propagate = True
        self._warnings.__exit__(None, None, None)


LIBRARIES_SILENCED = _Silence()


OPENERS: dict[str, Callable[[], Opener]] = {
    "PNG": lambda: partial(open_raster, kind="PNG"),
    "JPEG": lambda: open_jpeg,
    "TIFF": _tiff,
    "GIF": lambda: partial(open_raster, kind="GIF"),
    "BMP": lambda: partial(open_raster, kind="BMP"),
    "WebP": lambda: partial(open_raster, kind="WEBP"),
    "JPEG 2000": lambda: partial(open_raster, kind="JPEG2000"),
    "JPEG XL": lambda: open_jpeg_xl,
    "PNM": lambda: open_netpbm,
    "DICOM": _dicom,
    "NIfTI": _nifti,
    "MGH": _mgh,
}
