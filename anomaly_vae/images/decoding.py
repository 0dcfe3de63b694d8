"""Decode image files from outside, whose format is recognised by their content.

This is the only place where bytes become pixels. Nothing that a file holds makes it raise, warn or
log: a file or frame that cannot be decoded yields a `DecodeFailure`, whose reason never quotes the
file. The libraries that read a format are imported when the first such file arrives.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoders.jpeg import open_jpeg
from anomaly_vae.images.decoders.jpeg_xl import open_jpeg_xl
from anomaly_vae.images.decoders.netpbm import open_netpbm
from anomaly_vae.images.decoders.raster import open_raster
from anomaly_vae.images.formats import GZIP, HEAD_BYTES, recognise_format, refusal
from anomaly_vae.images.pixels import (
    TRUNCATED,
    DecodedImage,
    DecodeFailure,
    DecodeOptions,
    Frames,
    inflate,
    joined_windows,
)

T = TypeVar("T")
Opener = Callable[[bytes, DecodeOptions], Frames]

LIBRARIES = ("PIL", "pydicom", "nibabel", "imagecodecs", "tifffile")
"""Libraries whose warnings and logs may quote a file."""


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
        window = frames.window(number) if frames.window else ""
        spacing = frames.spacing(number) if frames.spacing else None
        in_mm = frames.in_mm(number) if frames.in_mm else True
        position = frames.position(number) if frames.position else None
        mask = frames.mask(number) if frames.mask else None
        return DecodedImage(pixels, number, window, spacing, in_mm, frames.series, position, mask)


def _open(content: bytes, options: DecodeOptions) -> Frames:
    options.check_bytes(len(content))
    if content.startswith(GZIP):
        content = inflate(content, 31, options)
    opener = _opener(content)
    with LIBRARIES_SILENCED, np.errstate(all="ignore"):
        if not options.windows:
            return opener(content, options)
        each = [replace(options, intensity_window=one, windows=()) for one in options.windows]
        return _channels([opener(content, one) for one in each])


def _channels(files: Sequence[Frames]) -> Frames:
    """Return a file whose grey frames have one channel for each way of opening it."""
    return replace(
        files[0], decode=lambda number: joined_windows([file.decode(number) for file in files])
    )


def _opener(content: bytes) -> Opener:
    """Import the function that opens files of this format."""
    file_format = recognise_format(content)
    if file_format not in OPENERS:
        raise DataError(refusal(content[:HEAD_BYTES]))
    try:
        return OPENERS[file_format]()
    except ImportError:
        raise DataError(
            f"the libraries that read {file_format} are missing; install anomaly-vae[images]"
        ) from None


def _dicom() -> Opener:
    from anomaly_vae.images.decoders.dicom import open_dicom

    return open_dicom


def _nifti() -> Opener:
    from anomaly_vae.images.decoders.nifti import open_nifti

    return open_nifti


def _mgh() -> Opener:
    from anomaly_vae.images.decoders.nifti import open_mgh

    return open_mgh


def _tiff() -> Opener:
    from anomaly_vae.images.decoders.tiff import open_tiff

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
