"""What reading an image file gives, the limits it keeps, and how numbers become grey levels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.types import MAX_BYTES, MAX_FRAMES, MAX_PIXELS, MAX_SECONDS

Pixels = NDArray[np.uint16]
Bounds = tuple[float, float]

FULL = 65535
"""The largest value of a pixel."""

PERCENTILES = (0.5, 99.5)
MAX_SCANS = 100
"""JPEG images have a handful."""
CUT_SHORT = "it is cut short; copy the file again"


@dataclass(frozen=True)
class DecodedImage:
    """One image: ``pixels`` (H, W) or (H, W, 3), 0 to 65535; ``frame`` its number in its file."""

    pixels: Pixels
    frame: int


@dataclass(frozen=True)
class DecodeFailure:
    """A file (``frame`` None) or one frame of it, from 0, that gives no picture, and why.

    The reason is one line that says what is wrong and how to mend it, and never names a patient.
    """

    reason: str
    frame: int | None


@dataclass(frozen=True)
class DecodeOptions:
    """How to read image files.

    Args:
        intensity_window: which values become black and white, in files whose values have no fixed
            range (DICOM, NIfTI, float TIFF): "auto" is a DICOM file's own window or table where it
            has one and otherwise "percentile", the 0.5th and 99.5th of them; or a center and a
            width in the values' own units (DICOM PS3.3 C.11.2.1.2.1).
        axis: NIfTI volumes are cut across this axis: 0 sagittal, 1 coronal, 2 axial.
        max_bytes: of a file, and of what it unpacks to.
        max_pixels: of one picture.
        max_frames: of a file.
        max_seconds: for decoding one file; looked at between frames.

    Raises:
        ConfigError: a value that cannot be used.
    """

    intensity_window: Literal["auto", "percentile"] | tuple[float, float] = "auto"
    axis: int = 2
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    max_frames: int = MAX_FRAMES
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        if self.axis not in {0, 1, 2}:
            raise ConfigError("axis: choose 0, 1 or 2", key="axis")
        if isinstance(self.intensity_window, str):
            if self.intensity_window not in {"auto", "percentile"}:
                raise ConfigError(
                    "intensity_window: choose auto, percentile or a center and a width",
                    key="intensity_window",
                )
        elif not (all(map(math.isfinite, self.intensity_window)) and self.intensity_window[1] >= 1):
            raise ConfigError(
                "intensity_window: the width must be 1 or more", key="intensity_window"
            )

    def check_size(self, height: int, width: int) -> None:
        """Refuse a picture by what its header says, before it is decoded.

        Raises:
            DataError: it has no pixels or more than ``max_pixels``.
        """
        if height < 1 or width < 1:
            raise DataError("its header says that it has no pixels; export it again")
        if height * width > self.max_pixels:
            raise DataError(
                f"a picture of {width} × {height} pixels is over the limit of {self.max_pixels}; "
                "make it smaller or raise max_pixels"
            )

    def check_frames(self, count: int) -> None:
        """Refuse a file by the number of frames that its header says.

        Raises:
            DataError: it has none or more than ``max_frames``.
        """
        if count < 1:
            raise DataError("its header says that it has no frames; export it again")
        if count > self.max_frames:
            raise DataError(
                f"it has more than {self.max_frames} frames; split it or raise max_frames"
            )

    def check_bytes(self, count: int) -> None:
        """Refuse a file that is empty or, as it is or unpacked, too large.

        Raises:
            DataError: it has no bytes or more than ``max_bytes``.
        """
        if count < 1:
            raise DataError("the file is empty; copy it again")
        if count > self.max_bytes:
            raise DataError(f"it has more than {self.max_bytes} bytes; split it or raise max_bytes")


@dataclass(frozen=True)
class Frames:
    """A file whose header is good: ``decode`` gives the pixels of any of its frames' ``numbers``.

    It raises whatever the libraries raise on damaged bytes, and DataError with a reason.
    """

    numbers: Sequence[int]
    decode: Callable[[int], Pixels]


def percentile_bounds(values: NDArray[Any]) -> Bounds:
    """The 0.5th and 99.5th percentile; the extremes where nearly all values are equal."""
    low, high = np.percentile(values, PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def window_bounds(center: float, width: float) -> Bounds:
    """What a window makes black and white (DICOM PS3.3 C.11.2.1.2.1, LINEAR)."""
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def stretch(values: NDArray[Any], bounds: Bounds) -> Pixels:
    """Values → 0 at the lower bound and below, 65535 at the upper and above, linear between."""
    low, high = bounds
    if high <= low:
        return np.where(values > low, FULL, 0).astype(np.uint16)
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(shares, 0, 1) * FULL).astype(np.uint16)


def refuse_nan(values: NDArray[Any]) -> None:
    """Refuse a picture with values that are no numbers.

    Raises:
        DataError: some value is NaN or infinite.
    """
    count = values.size - np.count_nonzero(np.isfinite(values))
    if count:
        raise DataError(f"{count} of its values are NaN or infinite; replace them")


def check_scans(stream: bytes) -> None:
    """Refuse a JPEG stream that costs far more time than its size tells.

    Raises:
        DataError: it has more than 100 scans; each is a pass over all pixels.
    """
    if stream.count(b"\xff\xda") > MAX_SCANS:
        raise DataError(f"its JPEG data has more than {MAX_SCANS} scans; export it again")


def inflate(content: bytes, wbits: int, reading: DecodeOptions) -> bytes:
    """Unpack gzip (``wbits`` 31, members in a row) or a raw deflate stream (−15).

    Raises:
        DataError: it is cut short, or unpacks to more than ``max_bytes``.
    """
    parts: list[bytes] = []
    while content:
        member = zlib.decompressobj(wbits)
        limit = reading.max_bytes + 1 - sum(map(len, parts))
        parts.append(member.decompress(content, limit))
        reading.check_bytes(max(1, sum(map(len, parts))))
        if not member.eof:
            raise DataError(CUT_SHORT)
        content = member.unused_data if wbits > 0 else b""
        content = content if content.startswith(b"\x1f\x8b") else b""
    return b"".join(parts)
