"""Write maps in the pixels of their images, as files that other programs read: NPY, TIFF, NIfTI."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.images.formats import GZIP, recognise_format
from anomaly_vae.images.pixels import DecodeOptions, PixelSpacing, inflate

Maps = Mapping[int, NDArray[np.float32]]
"""Map (H, W) of each frame of a file; NaN where the model does not see the image."""


def npy_map(heat: NDArray[np.float32]) -> bytes:
    """Return a map (H, W) as an NPY file.

    Example:
        >>> np.load(BytesIO(npy_map(np.ones((2, 3), np.float32)))).shape
        (2, 3)
    """
    file = BytesIO()
    np.save(file, heat, allow_pickle=False)
    return file.getvalue()


def tiff_map(heat: NDArray[np.float32], description: str) -> bytes:
    """Return a map (H, W) as a TIFF file of 32-bit floats, with a description in ASCII."""
    import tifffile

    file = BytesIO()
    tifffile.imwrite(file, heat, compression="zlib", description=description, metadata=None)
    return file.getvalue()


def nifti_map(
    maps: Maps, content: bytes, options: DecodeOptions, spacing: PixelSpacing | None = None
) -> bytes:
    """Return the maps of a file as one NIfTI volume in gzip.

    Maps of a volume (NIfTI, MGH) are on its grid, with its affine: voxel by voxel beside it. Those
    of other files are slices in the order of the frames, which must have one shape; the volume
    states the spacing, and no orientation. Slices without a map are NaN.

    Args:
        maps: maps of at least one frame.
        content: the source file.
        options: how it was decoded.
        spacing: distances of rows and columns in mm; None if they are not known.
    """
    if content.startswith(GZIP):
        content = inflate(content, 31, options)
    if recognise_format(content) in {"NIfTI", "MGH"}:
        from anomaly_vae.images.decoders.nifti import volume_image

        return _packed(volume_image(content, maps, options))
    return _packed(_stack(maps, spacing or (1.0, 1.0)))


def _packed(image: Any) -> bytes:
    """Return a NIfTI image as a file in gzip, without the time at which it is made."""
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def _stack(maps: Maps, spacing: PixelSpacing) -> Any:
    """Return maps as a volume with x to the right and y down, as in the image."""
    from nibabel.nifti1 import Nifti1Image

    first = next(iter(maps.values()))
    volume = np.full((first.shape[1], first.shape[0], max(maps) + 1), np.nan, np.float32)
    for frame, heat in maps.items():
        volume[:, :, frame] = heat.T
    rows, columns = spacing
    make: Any = Nifti1Image
    image = make(volume, np.diag([columns, rows, 1.0, 1.0]))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.header.set_xyzt_units("mm")
    return image
