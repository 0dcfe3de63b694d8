"""Read the X of the image estimator: arrays, volumes and paths of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.errors import DataError
from anomaly_vae.estimators.base import Data, usable
from anomaly_vae.images.decoders.raster import windowed
from anomaly_vae.images.masking import OWN
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage, DecodeFailure, DecodeOptions
from anomaly_vae.images.schema import ImageBatch, ImageSchema

MAX_CHANNELS = 4
"""Length up to which an axis of an array is taken for channels, and not for rows or columns."""
CHANNELS_FIRST = "move its channels to the last axis: np.moveaxis(X, 1, -1)"
NOTHING_COUNTS = "all of its pixels are masked; leave it out"
NO_MASK = (
    "it has no mask, which the model needs; give a numpy masked array, whose masked pixels do not "
    "count"
)
"""Reason why an array without mask is refused by a model with `data.mask: own`."""
MASKED = "its masked pixels would count; fit with mask='own', or give X.filled(value)"
"""Reason why a masked array is refused by any other model."""
FLOAT_RANGE = (
    "images of floats must lie on [0, 1] and be finite; scale them, or give the window of their "
    "values as intensity_window=(center, width)"
)


def prepare_images(
    schema: ImageSchema, images: Iterable[DecodedImage | DecodeFailure]
) -> ImageBatch:
    """Prepare images as a model with this schema sees them.

    Raises:
        DataError: there is no image, or one cannot be used.
    """
    batch = schema.from_images(images)
    if not len(batch):
        raise DataError("X holds no image; give at least one")
    usable(batch, "; mend it or leave it out")
    return batch


def decoded_images(schema: ImageSchema, X: Data) -> Iterator[DecodedImage | DecodeFailure]:
    """Yield the images of X, or why one cannot be read.

    Raises:
        DataError: X is a single image or path, or something else.
    """
    return (_decoded(schema, image) for image in _one_by_one(X))


def unranged(X: Data) -> str:
    """Return the type of images whose integers state no range, such as "int16"; else ""."""
    first = X[0] if isinstance(X, list | tuple) else X
    kind = first.dtype if isinstance(first, np.ndarray) else np.dtype(object)
    return kind.name if kind.kind in "iu" and not _has_range(kind) else ""


def holds_volumes(X: Data) -> bool:
    """Return whether X is an array (N, D, H, W) of volumes."""
    return isinstance(X, np.ndarray) and X.ndim == 4 and X.shape[3] > MAX_CHANNELS


def _decoded(schema: ImageSchema, image: Any) -> DecodedImage | DecodeFailure:
    if isinstance(image, str | os.PathLike):
        return schema.read(Path(image))
    try:
        return _with_mask(decoded_image(np.asanyarray(image), schema.options), schema)
    except ValueError as error:  # a DataError, or numpy's of rows that differ in length
        return DecodeFailure(str(error), None)


def _with_mask(image: DecodedImage, schema: ImageSchema) -> DecodedImage:
    """Return an image that has a mask if, and only if, the model needs one.

    Raises:
        DataError: it has none that is needed, or one that would be ignored.
    """
    if schema.mask == OWN and image.mask is None:
        raise DataError(NO_MASK)
    if schema.mask != OWN and image.mask is not None and not image.mask.all():
        raise DataError(MASKED)
    return image


def _one_by_one(X: Data) -> Iterable[Any]:
    """Return X with one entry per image."""
    if isinstance(X, str | bytes | os.PathLike) or not isinstance(X, Iterable):
        raise DataError("X must be images or their paths; put a single one into a list")
    if not isinstance(X, np.ndarray) or X.dtype.kind in "OU":
        return X
    _check_shape(X.shape)
    return X.reshape(-1, *X.shape[2:]) if holds_volumes(X) else X


def _check_shape(shape: tuple[int, ...]) -> None:
    """Refuse an array that is neither images nor volumes beyond doubt."""
    expected = f"X must be of shape (N, H, W), (N, H, W, C) or (N, D, H, W), got {shape}"
    if len(shape) == 3 and shape[2] <= MAX_CHANNELS:
        raise DataError(f"{expected}; put a single image in colour into a list")
    if len(shape) == 4 and shape[3] > MAX_CHANNELS and 1 < shape[1] <= MAX_CHANNELS:
        raise DataError(
            f"{expected}, which may be channels or slices; {CHANNELS_FIRST}, or for slices "
            "X.reshape(-1, *X.shape[2:])"
        )
    if len(shape) not in {3, 4}:
        raise DataError(f"{expected}; put a single image into a list, and one axis per dimension")


def decoded_image(
    image: NDArray[Any],
    options: DecodeOptions = DecodeOptions(),  # noqa: B008  # frozen
) -> DecodedImage:
    """Convert an array to a decoded image of 16-bit pixels.

    Values of uint8 and uint16 are scaled by the range of their type, and floats on [0, 1] as they
    are. Other integers have no fixed range: the window of the options maps them, or percentiles
    of the image, as in a TIFF. So it does floats beyond [0, 1], if it has a center and a width.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3); if it is a numpy masked array, its masked pixels do
            not count, and their values do not matter.
        options: options of files, of which the intensity window is used.

    Raises:
        DataError: the shape or type is another, or a value is outside [0, 1] or not finite.
    """
    if image.ndim not in {2, 3} or image.shape[2:] not in {(), (1,), (3,)} or 0 in image.shape:
        expected = f"an image must be (H, W), (H, W, 1) or (H, W, 3), got {image.shape}"
        raise DataError(f"{expected}{_shape_remedy(image.shape)}")
    pixels = image[..., 0] if image.shape[2:] == (1,) else image
    if not isinstance(pixels, np.ma.MaskedArray):
        return DecodedImage(_to_pixels(pixels, options), 0)
    outside = np.ma.getmaskarray(pixels)
    counts = ~np.asarray(outside.any(-1) if pixels.ndim == 3 else outside)
    if not counts.any():
        raise DataError(NOTHING_COUNTS)
    filled = np.where(outside, pixels.min(), pixels.data)  # the darkest value, as the air of scans
    return DecodedImage(_to_pixels(filled, options), 0, mask=counts)


def _to_pixels(values: NDArray[Any], options: DecodeOptions) -> NDArray[np.uint16]:
    """Convert the values of an image to 16 bits; see `decoded_image`."""
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * 257
    if _has_range(values.dtype):
        return values.astype(np.uint16)
    if values.dtype.kind in "iu":
        return windowed(values.astype(np.float64), options)
    if values.dtype.kind != "f":
        raise DataError(f"images must be integers or floats on [0, 1], got {values.dtype}")
    return _from_floats(values.astype(np.float64), options)


def _shape_remedy(shape: tuple[int, ...]) -> str:
    """Return what to do with an array that has too many axes or channels; else ""."""
    if len(shape) != 3 or 0 in shape:
        return ""
    if shape[2] <= MAX_CHANNELS:
        return "; drop alpha and other channels"
    return "; give the slices of volumes one by one: np.concatenate(volumes)"


def _has_range(kind: np.dtype[Any]) -> bool:
    """Return whether images of this type use all of its values."""
    return kind.newbyteorder("=") in {np.dtype(np.uint8), np.dtype(np.uint16)}


def _from_floats(values: NDArray[np.float64], options: DecodeOptions) -> NDArray[np.uint16]:
    """Scale floats on [0, 1], or map others by the window that the options name."""
    if values.min() >= 0 and values.max() <= 1:  # NaN is neither
        return np.rint(values * MAX_PIXEL).astype(np.uint16)
    if options.windows or isinstance(options.intensity_window, tuple):
        return windowed(values, options)
    raise DataError(FLOAT_RANGE)
