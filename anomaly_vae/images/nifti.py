"""NIfTI volumes → pictures of their slices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import nibabel.orientations
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from anomaly_vae.errors import DataError
from anomaly_vae.images.pixels import (
    CUT_SHORT,
    Bounds,
    DecodeOptions,
    Frames,
    Pixels,
    inflate,
    percentile_bounds,
    refuse_nan,
    stretch,
    window_bounds,
)

apply_orientation: Any = nibabel.orientations.apply_orientation
io_orientation: Any = nibabel.orientations.io_orientation

GZIP = b"\x1f\x8b"
MAGIC_1, MAGIC_2 = slice(344, 348), slice(4, 8)
WHOLE, PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")


def open_nifti(content: bytes, reading: DecodeOptions) -> Frames:
    """The slices of a 3-D or 4-D volume, gzipped or not, in ascending order.

    Voxels are brought to the nearest patient axes (right, anterior, superior) and cut across
    ``reading.axis``, volume by volume, from left to right, back to front or bottom to top. A slice
    is shown as radiologists see it: axial ones with the front at the top, the others with the
    head at the top; sagittal ones face left, the others have the patient's right at the left.
    All slices of a volume share their grey scale; NaN costs the slices that hold it.

    Raises:
        DataError: it is no single-file NIfTI of plain numbers, is over a limit or cut short.
    """
    packed = content.startswith(GZIP)
    volumes = _volumes(inflate(content, 31, reading) if packed else content, reading)
    first = volumes[0]
    reading.check_size(*first.shape)
    reading.check_frames(first.count * len(volumes))

    def decode(frame: int) -> Pixels:
        volume, place = divmod(frame, first.count)
        return volumes[volume].slice(place)

    return Frames(range(first.count * len(volumes)), decode)


@dataclass(frozen=True)
class Volume:
    """Voxels (R, A, S) as stored, what they stand for, and how they are cut and shown."""

    voxels: NDArray[Any]
    slope: float
    intercept: float
    reading: DecodeOptions

    @property
    def count(self) -> int:
        """How many slices it has."""
        return int(self.voxels.shape[self.reading.axis])

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of a slice."""
        width, height = (n for i, n in enumerate(self.voxels.shape) if i != self.reading.axis)
        return height, width

    @cached_property
    def bounds(self) -> Bounds:
        """What is black and what white in every slice."""
        if isinstance(self.reading.intensity_window, tuple):
            return window_bounds(*self.reading.intensity_window)
        stored = self.voxels[np.isfinite(self.voxels)]
        ends = percentile_bounds(stored) if stored.size else (0.0, 0.0)
        low, high = sorted(self.slope * end + self.intercept for end in ends)
        return low, high

    def slice(self, place: int) -> Pixels:
        """One slice.

        Raises:
            DataError: some of its voxels are NaN.
        """
        plane = np.moveaxis(self.voxels, self.reading.axis, 0)[place].astype(np.float64)
        values = plane * self.slope + self.intercept
        refuse_nan(values)
        return stretch(values[::-1, ::-1].T, self.bounds)


def _volumes(content: bytes, reading: DecodeOptions) -> list[Volume]:
    header = _header(content)
    voxels = _voxels(content, header)
    slope, intercept = header.get_slope_inter()
    orientation = io_orientation(header.get_best_affine())
    if np.isnan(orientation).any():
        raise DataError("it does not say how the patient lies; set its sform or qform")
    scale = 1.0 if slope is None else float(slope), float(intercept or 0)
    several = np.moveaxis(voxels, 3, 0)
    return [Volume(apply_orientation(volume, orientation), *scale, reading) for volume in several]


def _header(content: bytes) -> Any:
    magics = content[MAGIC_1], content[MAGIC_2]
    if any(magic in PAIR for magic in magics):
        raise DataError("it is half of a NIfTI pair; save it as a single .nii file")
    if not any(magic in WHOLE for magic in magics):
        raise DataError("it is gzip but holds no NIfTI volume; unpack it")
    kind: Any = Nifti1Header if magics[0] in WHOLE else Nifti2Header
    return kind.from_fileobj(BytesIO(content[: kind.template_dtype.itemsize]), check=False)


def _voxels(content: bytes, header: Any) -> NDArray[Any]:
    """Voxels (I, J, K, T) as stored: a view of the content."""
    shape = [int(length) for length in header.get_data_shape()]
    while shape[3:] and shape[-1] == 1:
        shape.pop()
    kind = header.get_data_dtype()
    if not 2 <= len(shape) <= 4:
        raise DataError(f"it has {len(shape)} dimensions; save 3, or 4 with time as the last")
    if min(shape) < 1:
        raise DataError("its header says that it has no voxels; export it again")
    if kind.kind not in "iuf":
        raise DataError("its voxels are colours or complex numbers; save them as plain numbers")
    count, start = math.prod(shape), int(header.get_data_offset())
    if start + count * kind.itemsize > len(content):
        raise DataError(CUT_SHORT)
    shape += [1] * (4 - len(shape))
    return np.frombuffer(content, kind, count, start).reshape(shape, order="F")
