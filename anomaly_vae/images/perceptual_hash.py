"""Find near-duplicate images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly_vae.images.geometry import resize

HASH_SIDE = 32
"""Side of the image that is hashed, in pixels."""
HASH_FREQUENCIES = 8
"""Number of frequencies that are hashed along each axis."""
MAX_DISTANCE = 6
"""Maximum number of bits that differ between the hashes of near-duplicates."""


def perceptual_hash(image: NDArray[Any]) -> int:
    """Hash an image (H, W) of any size and range to 64 bits; near-duplicates differ in few bits.

    The image is shrunk to 32 × 32. Each bit tells whether one of the 8 × 8 lowest frequencies of
    its discrete cosine transform, those constant along an axis excluded, is above their median
    (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, 3.2.1).
    """
    values = np.asarray(image, np.float64)
    plane = (values - values.min()).astype(np.float32)
    small = resize(plane, HASH_SIDE, HASH_SIDE).astype(np.float64)
    frequencies = np.arange(1, HASH_FREQUENCIES + 1)[:, None]
    cosines = np.cos(np.pi / HASH_SIDE * frequencies * (np.arange(HASH_SIDE) + 0.5))
    spectrum = cosines @ small @ cosines.T
    scale = np.abs(spectrum).max() or 1
    levels = np.round(spectrum / scale, 6)  # equal levels must not differ by rounding errors
    return int.from_bytes(np.packbits(levels > np.median(levels)).tobytes())


def has_near_duplicate(
    hashes: ArrayLike, others: ArrayLike, max_distance: int = MAX_DISTANCE
) -> NDArray[np.bool_]:
    """Tell which of N images have a near-duplicate among M others; returns (N,).

    Args:
        hashes: (N,), or (N, V) for V views of each image, such as the image and its mirror image.
        others: (M,) or (M, V). Images are near-duplicates if any two of their views are.
        max_distance: Maximum number of bits that differ between near-duplicates.
    """
    rows = np.asarray(hashes, np.uint64)
    rows = rows if rows.ndim == 2 else rows[:, None]
    known = np.unique(np.asarray(others, np.uint64))
    found = [(np.bitwise_count(row[:, None] ^ known) <= max_distance).any() for row in rows]
    return np.array(found, bool)
