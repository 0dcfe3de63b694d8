"""Image files from outside → pictures: PNG, JPEG, TIFF, DICOM and NIfTI.

The one place where bytes become pixels. Nothing a file holds raises, warns or is logged: what
gives no picture is a `DecodeFailure`, whose reason never quotes the file. What reads DICOM and
NIfTI is imported when the first such file comes.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from anomaly_vae.errors import DataError
from anomaly_vae.images.pixels import CUT_SHORT, DecodedImage, DecodeFailure, DecodeOptions, Frames
from anomaly_vae.images.raster import open_raster

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".nii", ".nii.gz")
"""How the names of image files end, in lower case."""

T = TypeVar("T")
Opener = Callable[[bytes, DecodeOptions], Frames]

LIBRARIES = ("PIL", "pydicom", "nibabel")
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"\x08\0": "DICOM", b"\2\0": "DICOM", b"\0\x08": "DICOM",  # without its preamble
}  # fmt: skip
"""How the content of a file begins → its format."""
RASTER = tuple(start for start, kind in SIGNATURES.items() if kind != "DICOM")
NIFTI = (b"n+1", b"ni1", b"n+2", b"ni2")
GZIP = b"\x1f\x8b"


def is_picture(path: Path) -> bool:
    """Whether this is an image file by its name or, if that has no suffix, by how it begins.

    Digits after a dot are no suffix: files are often called after a DICOM UID. NIfTI and DICOM
    without its preamble begin like much else, and need a suffix.
    """
    name = path.name.lower()
    if name.endswith(SUFFIXES):
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        return path.is_file() and _begins_as_picture(path)
    except OSError:
        return False


def _begins_as_picture(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head.startswith(RASTER)


def read_file(path: Path, reading: DecodeOptions) -> Iterator[DecodedImage | DecodeFailure]:
    """The pictures of a file in the order of its frames; each frame gives one or its reason."""
    return _read(partial(_content, path, reading), reading)


def read_bytes(content: bytes, reading: DecodeOptions) -> Iterator[DecodedImage | DecodeFailure]:
    """The pictures of a file's content, whose format is told by the content alone.

    What becomes of the values: `pictures_raster`, `pictures_dicom`, `pictures_nifti`.
    """
    return _read(lambda: content, reading)


def _content(path: Path, reading: DecodeOptions) -> bytes:
    try:
        if not path.is_file():
            raise DataError("it is no file; give the path of an image file")
        with path.open("rb") as file:
            return file.read(reading.max_bytes + 1)
    except OSError as error:
        raise DataError(f"it cannot be opened: {error.strerror}; check its path") from None


def _read(
    fetch: Callable[[], bytes], reading: DecodeOptions
) -> Iterator[DecodedImage | DecodeFailure]:
    start = time.monotonic()
    frames = _attempt(lambda: _open(fetch(), reading), None)
    if isinstance(frames, DecodeFailure):
        yield frames
        return
    spent = time.monotonic() - start
    for number in frames.numbers:
        start = time.monotonic()
        if spent > reading.max_seconds:
            late = f"decoding takes more than {reading.max_seconds:g} s; raise max_seconds"
            yield DecodeFailure(late, number)
            continue
        step = _attempt(partial(_picture, frames, number), number)
        spent += time.monotonic() - start
        yield step


def _attempt(action: Callable[[], T], frame: int | None) -> T | DecodeFailure:
    """What the action gives, or why it gives nothing."""
    try:
        return action()
    except DataError as error:
        return DecodeFailure(str(error), frame)
    except Image.DecompressionBombError:
        return DecodeFailure("it has too many pixels; make it smaller", frame)
    except MemoryError:
        return DecodeFailure("it needs more memory than there is; make it smaller", frame)
    except Exception as error:  # noqa: BLE001 damaged bytes make the libraries raise anything
        short = "truncated" in str(error)
        return DecodeFailure(CUT_SHORT if short else "it is damaged; export it again", frame)


def _picture(frames: Frames, number: int) -> DecodedImage:
    with QUIET, np.errstate(all="ignore"):
        return DecodedImage(np.ascontiguousarray(frames.decode(number)), number)


def _open(content: bytes, reading: DecodeOptions) -> Frames:
    reading.check_bytes(len(content))
    opener = _opener(content)
    with QUIET, np.errstate(all="ignore"):
        return opener(content, reading)


def _opener(content: bytes) -> Opener:
    """What opens a file that begins like this; libraries are imported here."""
    begins = (kind for signature, kind in SIGNATURES.items() if content.startswith(signature))
    kind = "DICOM" if content[128:132] == b"DICM" else next(begins, "")
    if not kind and (content.startswith(GZIP) or {content[344:347], content[4:7]} & {*NIFTI}):
        kind = "NIfTI"
    if not kind:
        raise DataError("it is no PNG, JPEG, TIFF, DICOM or NIfTI; convert it to one of them")
    try:
        return OPENERS[kind]()
    except ImportError:
        raise DataError(
            f"the libraries that read {kind} are missing; install anomaly-vae[images]"
        ) from None


def _dicom() -> Opener:
    from anomaly_vae.images.dicom import open_dicom

    return open_dicom


def _nifti() -> Opener:
    from anomaly_vae.images.nifti import open_nifti

    return open_nifti


class _Quiet:
    """Nobody hears the libraries' warnings and logs, which quote files, while somebody reads.

    `warnings.catch_warnings` alone is not for threads: of those that overlap, the first to come
    silences and the last to leave restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._loggers = [logging.getLogger(name) for name in LIBRARIES]
        for logger in self._loggers:
            logger.addHandler(logging.NullHandler())  # or what is not heard goes to stderr

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._hush()
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._restore()

    def _hush(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES)}|anomaly_vae)\b")
        self._heard = [logger for logger in self._loggers if logger.propagate]
        for logger in self._heard:
            logger.propagate = False

    def _restore(self) -> None:
        for logger in self._heard:
            logger.propagate = True
        self._warnings.__exit__(None, None, None)


QUIET = _Quiet()


OPENERS: dict[str, Callable[[], Opener]] = {
    "PNG": lambda: partial(open_raster, kind="PNG"),
    "JPEG": lambda: partial(open_raster, kind="JPEG"),
    "TIFF": lambda: partial(open_raster, kind="TIFF"),
    "DICOM": _dicom,
    "NIfTI": _nifti,
}


# ---------------------------------------------------------------- near-twins
