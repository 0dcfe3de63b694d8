"""Make decoded images of random pixels, and a small image schema."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.images.pixels import MAX_PIXEL
from anomaly_vae.images.schema import ImageSchema

SCHEMA = ImageSchema(size=16, channels=1)


def deep(pixels: NDArray[Any]) -> NDArray[np.uint16]:
    """Convert 8 bits to 16 as the decoders do."""
    return pixels.astype(np.uint16) * 257


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return random pixels of this shape."""
    return np.random.default_rng(seed).integers(0, MAX_PIXEL + 1, shape).astype(np.uint16)
