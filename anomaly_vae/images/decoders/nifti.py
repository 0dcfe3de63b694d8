"""Decode the slices of volumes: NIfTI, and FreeSurfer's MGH."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import nibabel.orientations
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from numpy.typing import NDArray

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoders.netpbm import blended
from anomaly_vae.images.formats import recognise_format
from anomaly_vae.images.pixels import (
    TRUNCATED,
    Bounds,
    DecodeOptions,
    Frames,
    Pixels,
    PixelSpacing,
    check_finite,
    percentile_bounds,
    spacing_of,
    stretch,
    window_bounds,
)

apply_orientation: Any = nibabel.orientations.apply_orientation
io_orientation: Any = nibabel.orientations.io_orientation
inv_ornt_aff: Any = nibabel.orientations.inv_ornt_aff
ornt_transform: Any = nibabel.orientations.ornt_transform

RAS = np.array([[0, 1], [1, 1], [2, 1]])
"""Orientation of voxels (R, A, S)."""

MAGIC_1, MAGIC_2 = slice(344, 348), slice(4, 8)
MGH_FIELDS, MGH_HEADER = 90, MGHHeader.template_dtype.itemsize
"""Size of the fields before and around the voxels of MGH, in bytes; those after are not read."""
COLOURS = ("R", "G", "B"), ("R", "G", "B", "A")
"""Fields of voxels that are colours."""
SINGLE_FILE, PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")


def open_nifti(content: bytes, options: DecodeOptions) -> Frames:
    """Open a 3-D or 4-D volume; its frames are its slices in ascending order.

    The voxel axes are permuted and flipped to the nearest patient axes (right, anterior, superior).
    Volumes are sliced one after another across ``options.axis``: from left to right, back to front
    or bottom to top. Slices are oriented as radiologists view them: axial slices have the front at
    the top, the others the head; sagittal slices face left, the others have the patient's right on
    the left. All slices of a volume share one grey scale; 8-bit RGB voxels keep their colours, and
    alpha is blended with black. A slice with NaN voxels is refused alone.

    Raises:
        DataError: The file is no single-file NIfTI of numbers or colours, exceeds a limit or
            is truncated.
    """
    header = _header(content)
    slope, intercept = header.get_slope_inter()
    scale = 1.0 if slope is None else float(slope), float(intercept or 0)
    return _frames(content, header, scale, options)


def open_mgh(content: bytes, options: DecodeOptions) -> Frames:
    """Open a volume of FreeSurfer (MGH, unpacked), sliced as by `open_nifti`.

    Raises:
        DataError: The file exceeds a limit or is truncated.
    """
    return _frames(content, _mgh_header(content), (1.0, 0.0), options)


def _mgh_header(content: bytes) -> Any:
    make_header: Any = MGHHeader
    return make_header(content[:MGH_FIELDS].ljust(MGH_HEADER, b"\0"), check=False)


def volume_image(
    content: bytes, slices: Mapping[int, NDArray[np.float32]], options: DecodeOptions
) -> Any:
    """Return values of slices as a NIfTI image on the grid of the volume that they are slices of.

    Args:
        content: the volume, unpacked.
        slices: values (H, W) of frames, as `open_nifti` numbers and orients them; NaN elsewhere.
        options: how the volume was sliced.
    """
    mgh = recognise_format(content) == "MGH"
    header = _mgh_header(content) if mgh else _header(content)
    shape = _voxels(content, header).shape
    orientation = io_orientation(header.get_best_affine())
    turned = apply_orientation(np.full(shape, np.nan, np.float32), orientation)
    across = np.moveaxis(turned, options.axis, 0)
    for frame, values in slices.items():
        volume, index = divmod(frame, len(across))
        across[index, ..., volume] = values.T[::-1, ::-1]
    stored = apply_orientation(turned, ornt_transform(RAS, orientation))
    make: Any = Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image
    image = make(stored if shape[3] > 1 else stored[..., 0], header.get_best_affine())
    for form in () if mgh else ("sform", "qform"):
        getattr(image, f"set_{form}")(*getattr(header, f"get_{form}")(coded=True))
    image.header.set_xyzt_units(*(("mm",) if mgh else header.get_xyzt_units()))
    return image


def _frames(
    content: bytes, header: Any, scale: tuple[float, float], options: DecodeOptions
) -> Frames:
    voxels = _voxels(content, header)
    orientation = io_orientation(header.get_best_affine())
    if np.isnan(orientation).any():
        raise DataError("it does not say how the patient lies; set its sform or qform")
    several = np.moveaxis(voxels, 3, 0)
    volumes = [Volume(apply_orientation(each, orientation), *scale, options) for each in several]
    first = volumes[0]
    options.check_size(*first.shape)
    options.check_frames(first.count * len(volumes))
    spacing = _spacing(header, orientation, options.axis)

    def decode(frame: int) -> Pixels:
        volume, index = divmod(frame, first.count)
        return volumes[volume].slice(index)

    places = _positions(header, orientation, voxels.shape[:3], options.axis)

    def position(frame: int) -> float | None:
        return places[frame % first.count]

    count = first.count * len(volumes)
    return Frames(range(count), decode, spacing=lambda _: spacing, position=position)


def _spacing(header: Any, orientation: NDArray[Any], axis: int) -> PixelSpacing | None:
    """Return the distances between the rows and the columns of a slice, None if not stated."""
    zooms = dict(zip(orientation[:, 0].astype(int).tolist(), header.get_zooms(), strict=False))
    columns, rows = (zooms[i] for i in range(3) if i != axis)
    return spacing_of((rows, columns))


def _positions(
    header: Any, orientation: NDArray[Any], shape: tuple[int, ...], axis: int
) -> list[float | None]:
    """Return the position of each slice along the direction across the slices, in mm."""
    turned = header.get_best_affine() @ inv_ornt_aff(orientation, shape)
    step, origin = turned[:3, axis], turned[:3, 3]
    length = float(np.linalg.norm(step))
    count = shape[int(np.flatnonzero(orientation[:, 0] == axis)[0])]
    if not (0 < length < math.inf and np.isfinite(origin).all()):
        return [None] * count
    first = float(origin @ step) / length
    return [first + i * length for i in range(count)]


@dataclass(frozen=True)
class Volume:
    """Stored voxels (R, A, S), the scale of their values, and how they are sliced."""

    voxels: NDArray[Any]
    slope: float
    intercept: float
    options: DecodeOptions

    @property
    def count(self) -> int:
        """Number of slices."""
        return int(self.voxels.shape[self.options.axis])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a slice, in pixels."""
        width, height = (n for i, n in enumerate(self.voxels.shape) if i != self.options.axis)
        return height, width

    @cached_property
    def bounds(self) -> Bounds:
        """Values that are black and white in every slice."""
        if isinstance(self.options.intensity_window, tuple):
            return window_bounds(*self.options.intensity_window)
        stored = self.voxels[np.isfinite(self.voxels)]
        ends = percentile_bounds(stored) if stored.size else (0.0, 0.0)
        low, high = sorted(self.slope * end + self.intercept for end in ends)
        return low, high

    def slice(self, index: int) -> Pixels:
        """Return the pixels (H, W) of one slice.

        Raises:
            DataError: Some of its voxels are NaN.
        """
        plane = np.moveaxis(self.voxels, self.options.axis, 0)[index][::-1, ::-1].T
        if plane.dtype.names:
            return _colours(plane)
        values = plane.astype(np.float64) * self.slope + self.intercept
        check_finite(values)
        return stretch(values, self.bounds)


def _colours(plane: NDArray[Any]) -> Pixels:
    """Return the colours (H, W, 3) of voxels with the fields R, G, B and perhaps A."""
    layers = np.stack([plane[name] for name in plane.dtype.names or ()], -1)
    return blended(layers, 255)


def _header(content: bytes) -> Any:
    magics = content[MAGIC_1], content[MAGIC_2]
    if any(magic in PAIR for magic in magics):
        raise DataError("it is half of a NIfTI pair; save it as a single .nii file")
    if not any(magic in SINGLE_FILE for magic in magics):
        raise DataError("its header is invalid; export it again")
    kind: Any = Nifti1Header if magics[0] in SINGLE_FILE else Nifti2Header
    return kind.from_fileobj(BytesIO(content[: kind.template_dtype.itemsize]), check=False)


def _voxels(content: bytes, header: Any) -> NDArray[Any]:
    """Return the stored voxels (I, J, K, T) as a view of the content."""
    shape = [int(length) for length in header.get_data_shape()]
    while shape[3:] and shape[-1] == 1:
        shape.pop()
    kind = header.get_data_dtype()
    if not 2 <= len(shape) <= 4:
        raise DataError(f"it has {len(shape)} dimensions; save 3, or 4 with time as the last")
    if min(shape) < 1:
        raise DataError("its header says that it has no voxels; export it again")
    if kind.kind not in "iuf" and kind.names not in COLOURS:
        found = header.get_value_label("datatype")
        raise DataError(f"its voxels are {found}, which is not read; save them as plain numbers")
    count, start = math.prod(shape), int(header.get_data_offset())
    if start + count * kind.itemsize > len(content):
        raise DataError(TRUNCATED)
    shape += [1] * (4 - len(shape))
    return np.frombuffer(content, kind, count, start).reshape(shape, order="F")
