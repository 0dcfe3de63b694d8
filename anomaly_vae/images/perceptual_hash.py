"""Find near-duplicate images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

HASH_SIDE, HASH_FREQUENCIES = 32, 8


MAX_DISTANCE = 6
"""Bits in which the hashes of near-twins differ at the most."""


def perceptual_hash(image: NDArray[Any]) -> int:
    """64 bits that near-twins of an image (H, W), of any scale and range, share but for a few.

    The signs, about their median, of the 8 × 8 lowest frequencies of the discrete cosine
    transform of the image shrunk to 32 × 32, without those that are constant along an axis
    (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, 3.2.1).
    """
    values = np.asarray(image, np.float64)
    plane = Image.fromarray((values - values.min()).astype(np.float32))
    side = (HASH_SIDE, HASH_SIDE)
    small = np.asarray(plane.resize(side, Image.Resampling.BILINEAR)).astype(np.float64)
    frequencies = np.arange(1, HASH_FREQUENCIES + 1)[:, None]
    cosines = np.cos(np.pi / HASH_SIDE * frequencies * (np.arange(HASH_SIDE) + 0.5))
    spectrum = cosines @ small @ cosines.T
    levels = np.round(spectrum / (np.abs(spectrum).max() or 1), 6)  # equal ones stay equal
    return int.from_bytes(np.packbits(levels > np.median(levels)).tobytes())


def hash_twins(
    hashes: ArrayLike, others: ArrayLike, max_distance: int = MAX_DISTANCE
) -> NDArray[np.bool_]:
    """Which of N images have a near-twin among M others: (N,).

    Args:
        hashes: (N,), or (N, V) of several views of each image, such as it and its mirror image.
        others: (M,) or (M, V), likewise; any two views may match.
        max_distance: how many bits near-twins may differ in.
    """
    rows = np.asarray(hashes, np.uint64)
    rows = rows if rows.ndim == 2 else rows[:, None]
    known = np.unique(np.asarray(others, np.uint64))
    twins = [(np.bitwise_count(row[:, None] ^ known) <= max_distance).any() for row in rows]
    return np.array(twins, bool)
