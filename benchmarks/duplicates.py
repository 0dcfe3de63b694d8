"""Find near-duplicates among images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from anomaly_vae.images.schema import crop_and_resize

Images = NDArray[np.float32]

DUPLICATE_CORRELATION = 0.95
"""Correlation at 32×32, mirrored or not, above which two images count as near-duplicates."""


def near_duplicates(images: Images) -> NDArray[np.intp]:
    """Assign each image to a group of near-duplicates; return the group numbers (N,)."""
    small = np.stack([_small(image[0]) for image in images])
    flipped = small.reshape(-1, 32, 32)[:, :, ::-1].reshape(len(small), -1)
    alike = np.maximum(small @ small.T, small @ flipped.T) > DUPLICATE_CORRELATION
    return np.asarray(connected_components(alike)[1], np.intp)


def _small(image: Images) -> Images:
    pixels = crop_and_resize((image * 65_535).astype(np.uint16), 32, 1).ravel()
    centred = pixels - pixels.mean()
    return np.asarray(centred / np.linalg.norm(centred), np.float32)
