"""Define decoded images, the limits of decoding, and the mapping of values to grey levels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.types import (
    MAX_BYTES,
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_SECONDS,
    MIN_WINDOW_WIDTH,
    Window,
    WindowPreset,
)

Pixels = NDArray[np.uint16]
Bounds = tuple[float, float]
PixelSpacing = tuple[float, float]

MAX_PIXEL = 65535
"""Largest value of a pixel."""

SPACING_KEYWORD, MASK_KEYWORD = "PixelSpacing", "Mask"
"""Keywords of the texts in a PNG with the distances between its rows and columns, in mm, and with
the pixels that count (packed bits in base64 of their zlib stream)."""

CT_WINDOWS: dict[WindowPreset, tuple[float, float]] = {
    "lung": (-600, 1500),
    "bone": (400, 1800),
    "brain": (40, 80),
    "soft_tissue": (50, 400),
}
"""Center and width of usual windows of CT images, in Hounsfield units. Values: Murphy et al.,
"Windowing (CT)", Radiopaedia.org, doi:10.53347/rID-52108 (lungs, spine bone, brain, abdomen)."""

PERCENTILES = (0.5, 99.5)
"""Percentiles of an image's values that become black and white."""
TRUNCATED = "it is cut short; copy the file again"


@dataclass(frozen=True)
class DecodedImage:
    """One image of a file.

    Args:
        pixels: (H, W) or (H, W, 3), 0 to 65535.
        frame: Index in its file, from 0.
        window: The window or table in the file that made its values pixels, in words; empty
            without one.
        spacing: Distances between the centres of rows and of columns in mm, by the file's header;
            None if it states none.
        in_mm: Whether these distances are in mm; if not, only their ratio is known.
        series: UID of the DICOM series that it belongs to; empty if none is stated.
        position: Position of its plane along the direction across it, in mm; None if not stated.
        mask: Pixels (H, W) that count for a model with `data.mask: own`; None if none are stated.
    """

    pixels: Pixels
    frame: int
    window: str = ""
    spacing: PixelSpacing | None = None
    in_mm: bool = True
    series: str = ""
    position: float | None = None
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class DecodeFailure:
    """A file (``frame`` None) or one of its frames, counted from 0, that cannot be decoded.

    ``reason`` is one line that states the fault and its remedy, and never names a patient.
    """

    reason: str
    frame: int | None


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode image files, and the limits they must keep.

    Args:
        intensity_window: The values that become black and white in files whose values have no
            fixed range (DICOM, NIfTI, float TIFF). "auto" uses the window or look-up table of a
            DICOM file, if it has one, and "percentile" otherwise; "percentile" uses the 0.5th and
            the 99.5th percentile; a pair is a center and a width in the values' own units (DICOM
            PS3.3 C.11.2.1.2.1).
        axis: Axis that NIfTI volumes are sliced across: 0 sagittal, 1 coronal, 2 axial.
        max_bytes: Maximum size of a file, packed and unpacked, in bytes.
        max_pixels: Maximum number of pixels of an image.
        max_frames: Maximum number of frames of a file.
        max_seconds: Maximum time for decoding one file, in seconds, checked between frames.
        windows: Three windows that give a grey image three channels of 256 levels each, in place of
            ``intensity_window``; empty for one channel.

    Raises:
        ConfigError: A value is out of range.
    """

    intensity_window: Literal["auto", "percentile"] | tuple[float, float] = "auto"
    axis: int = 2
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    max_frames: int = MAX_FRAMES
    max_seconds: float = MAX_SECONDS
    windows: tuple[Window, ...] = ()

    def __post_init__(self) -> None:
        if self.axis not in {0, 1, 2}:
            raise ConfigError("axis: choose 0, 1 or 2", key="axis")
        if isinstance(self.intensity_window, str):
            if self.intensity_window not in {"auto", "percentile"}:
                raise ConfigError(
                    "intensity_window: choose auto, percentile or a center and a width",
                    key="intensity_window",
                )
        elif not (
            all(map(math.isfinite, self.intensity_window))
            and self.intensity_window[1] >= MIN_WINDOW_WIDTH
        ):
            raise ConfigError(
                "intensity_window: the width must be 1 or more", key="intensity_window"
            )

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image by the size in its header, before it is decoded.

        Raises:
            DataError: It has no pixels or more than ``max_pixels``.
        """
        if height < 1 or width < 1:
            raise DataError("its header says that it has no pixels; export it again")
        if height * width > self.max_pixels:
            raise DataError(
                f"an image of {width} × {height} pixels is over the limit of {self.max_pixels}; "
                "make it smaller or raise max_pixels"
            )

    def check_frames(self, count: int) -> None:
        """Refuse a file by the number of frames in its header.

        Raises:
            DataError: It has no frames or more than ``max_frames``.
        """
        if count < 1:
            raise DataError("its header says that it has no frames; export it again")
        if count > self.max_frames:
            raise DataError(
                f"it has more than {self.max_frames} frames; split it or raise max_frames"
            )

    def check_bytes(self, count: int) -> None:
        """Refuse a file whose packed or unpacked content is empty or too large.

        Raises:
            DataError: It has no bytes or more than ``max_bytes``.
        """
        if count < 1:
            raise DataError("the file is empty; copy it again")
        if count > self.max_bytes:
            raise DataError(f"it has more than {self.max_bytes} bytes; split it or raise max_bytes")


@dataclass(frozen=True)
class Frames:
    """A file whose header is valid: the ``numbers`` of its frames and a function to decode one.

    ``decode`` raises `DataError` with a reason, or any error of the libraries on damaged bytes.
    The other fields describe a frame, see `DecodedImage`; None if the format has none.
    """

    numbers: Sequence[int]
    decode: Callable[[int], Pixels]
    window: Callable[[int], str] | None = None
    spacing: Callable[[int], PixelSpacing | None] | None = None
    in_mm: Callable[[int], bool] | None = None
    series: str = ""
    position: Callable[[int], float | None] | None = None
    mask: Callable[[int], NDArray[np.bool_] | None] | None = None


def spacing_of(values: Iterable[object]) -> PixelSpacing | None:
    """Return two distances that a header states, None unless they are two numbers above 0.

    Example:
        >>> spacing_of(["5.0", "1"]), spacing_of([5.0, 0.0]), spacing_of(["wide"])
        ((5.0, 1.0), None, None)
    """
    with suppress(ValueError, TypeError, ArithmeticError):
        rows, columns = map(float, values)  # type: ignore[arg-type]  # TypeError is suppressed
        return (rows, columns) if all(0 < d < math.inf for d in (rows, columns)) else None
    return None


def percentile_bounds(values: NDArray[Any]) -> Bounds:
    """Return the 0.5th and 99.5th percentile, or the extremes if both percentiles are equal."""
    low, high = np.percentile(values, PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def window_bounds(center: float, width: float) -> Bounds:
    """Return the values that a window makes black and white (DICOM PS3.3 C.11.2.1.2.1, LINEAR)."""
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def stretch(values: NDArray[Any], bounds: Bounds) -> Pixels:
    """Map values linearly to pixels: 0 at or below the lower bound, 65535 at or above the upper."""
    low, high = bounds
    if high <= low:
        return np.where(values > low, MAX_PIXEL, 0).astype(np.uint16)
    fractions = (values.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(fractions, 0, 1) * MAX_PIXEL).astype(np.uint16)


def full_range(values: NDArray[Any], bits: int) -> Pixels:
    """Scale unsigned values of ``bits`` bits to 0 to 65535."""
    return stretch(values, (0, (1 << bits) - 1))


def joined_windows(layers: Sequence[Pixels]) -> Pixels:
    """Return the pixels of a grey image under several windows as channels (H, W, C).

    Channels have 256 levels, since a PNG in colour keeps no more. Colours are kept as they are.
    """
    if layers[0].ndim == 3:
        return layers[0]
    joined: Pixels = (np.stack(layers, -1) >> 8).astype(np.uint16) * np.uint16(257)
    return joined


def check_finite(values: NDArray[Any]) -> None:
    """Refuse an image with NaN or infinite values.

    Raises:
        DataError: Some value is NaN or infinite.
    """
    count = values.size - np.count_nonzero(np.isfinite(values))
    if count:
        raise DataError(f"{count} of its values are NaN or infinite; replace them")


def inflate(content: bytes, wbits: int, options: DecodeOptions) -> bytes:
    """Unpack consecutive gzip members (``wbits`` 31) or a raw deflate stream (−15).

    Raises:
        DataError: The content is truncated, or unpacks to more than ``max_bytes``.
    """
    parts: list[bytes] = []
    while content:
        member = zlib.decompressobj(wbits)
        limit = options.max_bytes + 1 - sum(map(len, parts))
        parts.append(member.decompress(content, limit))
        options.check_bytes(max(1, sum(map(len, parts))))
        if not member.eof:
            raise DataError(TRUNCATED)
        content = member.unused_data if wbits > 0 else b""
        content = content if content.startswith(b"\x1f\x8b") else b""
    return b"".join(parts)
