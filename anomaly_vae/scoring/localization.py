"""What was found where in an image: the regions of its map, and the picture that shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.heatmaps import Region, Scale, overlay, regions
from anomaly_vae.scoring.detector import Detections
from anomaly_vae.scoring.scorer import ScoreParts


@dataclass(frozen=True, eq=False)
class Localization:
    """One image: its map (S, S), the regions above the scale's level, the scan and its twin."""

    heat: NDArray[np.float32]
    regions: tuple[Region, ...]
    scan: NDArray[np.float32]
    """(C, S, S) on [0, 1], as the model saw it"""
    expected: NDArray[np.float32]
    """(C, S, S) on [0, 1], as the model would have it"""
    scale: Scale

    def draw(self, title: str = "") -> Image.Image:
        """See `heatmaps.overlay`."""
        return overlay(self.scan, self.expected, self.heat, self.regions, self.scale, title)


def localizations(
    encoding: ImageEncoding, scale: Scale, explained: ScoreParts, rows: Sequence[int]
) -> Iterator[Localization]:
    """What these rows of an explained batch hold."""
    side = encoding.layout.size
    for row in rows:
        heat = explained.nats[row].reshape(side, side).astype(np.float32)
        scan, expected = encoding.to_images(
            np.stack([explained.observed[row], explained.expected[row]])
        )
        yield Localization(heat, regions(heat, scale), scan, expected, scale)


def title_of(found: Detections, row: int) -> str:
    """What was decided on an image."""
    return f"score {found.score[row]:.6g}, p = {found.p_value[row]:.2g}"
