"""Localize anomalies in images: find regions of the anomaly map and draw them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.heatmaps import Region, Scale, overlay, regions
from anomaly_vae.scoring.detector import Detections, Explanation, RegionContribution
from anomaly_vae.scoring.scorer import ScoreParts

MIN_AUROC = 0.7
"""AUROC of pixels that the lower bound has to exceed for maps to be drawn."""
MIN_LIFT = 3.0
"""Average precision of pixels, relative to the share of pixels in lesions, to be exceeded."""


@dataclass(frozen=True)
class LocalizationTest:
    """How well a model's maps show lesions that were inserted into held-out normal images."""

    images: int
    """Number of images with an inserted lesion, of which several may be copies of one."""
    auroc: float
    """AUROC of pixels."""
    auroc_low: float
    """Lower end of its 95% interval, by a bootstrap over images."""
    average_precision: float
    """Average precision of pixels."""
    base_rate: float
    """Share of pixels in lesions."""

    @property
    def localizes(self) -> bool:
        """Whether maps show where anomalies are, so that they may be drawn."""
        return self.auroc_low > MIN_AUROC and self.average_precision > MIN_LIFT * self.base_rate

    @staticmethod
    def remedy(config: Mapping[str, Any]) -> str:
        """Return what may help if maps do not show where anomalies are.

        Args:
            config: the configuration that the model was trained with.
        """
        backbone = config["model"].get("backbone", "none") != "none"
        if backbone or config["score"]["type"] == "contamination":
            return "train with more normal images"
        return "train with model.localization_head: true and score: contamination"

    def __str__(self) -> str:
        return (
            f"of {self.images} inserted lesions, pixel AUROC {self.auroc:.2f} (95% interval from "
            f"{self.auroc_low:.2f}), average precision {self.average_precision:.2f} with "
            f"{self.base_rate:.1%} of the pixels in lesions"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LocalizationTest:
        """Restore the figures from the content of the manifest."""
        return cls(**content)


@dataclass(frozen=True, eq=False)
class Localization:
    """The anomaly map (S, S) of an image, in nats, and its regions above the scale's level."""

    heat: NDArray[np.float32]
    regions: tuple[Region, ...]
    scan: NDArray[np.float32]
    """Image (C, S, S), in [0, 1], as the model received it."""
    expected: NDArray[np.float32]
    """Image (C, S, S), in [0, 1], that the model expected."""
    scale: Scale

    def draw(self, title: str = "") -> Image.Image:
        """Draw the image, the map and the regions; see `heatmaps.overlay`."""
        return overlay(self.scan, self.expected, self.heat, self.regions, self.scale, title)


def localizations(
    encoding: ImageEncoding, scale: Scale, explained: ScoreParts, rows: Sequence[int]
) -> Iterator[Localization]:
    """Yield the localization of the given rows of an explained batch."""
    side = encoding.layout.size
    for row in rows:
        heat = explained.nats[row].reshape(side, side).astype(np.float32)
        scan, expected = encoding.to_images(
            np.stack([explained.observed[row], explained.expected[row]])
        )
        yield Localization(heat, regions(heat, scale), scan, expected, scale)


def region_explanations(
    encoding: ImageEncoding, scale: Scale, explained: ScoreParts, limit: int | None
) -> list[Explanation]:
    """Return an explanation of each image's score by its regions, largest contributions first.

    An image without a pixel above the scale's level has no region: all of its score is in ``rest``
    and ``kl``. With tiles, regions of all tiles are listed, and ``rest`` is the difference to the
    score, which is that of one tile; it may be negative.

    Args:
        encoding: The model's encoding.
        scale: The model's scale.
        explained: Scores of N images and their parts.
        limit: Maximum number of regions per image; None for all.
    """
    maps = explained.nats.reshape(-1, encoding.layout.size, encoding.layout.size)
    pixels = explained.unknown - explained.kl if encoding.tiling else maps.sum((1, 2))
    return [
        _region_explanation(heat, regions(heat, scale, limit), float(total), float(kl))
        for heat, total, kl in zip(maps, pixels, explained.kl, strict=True)
    ]


def _region_explanation(
    heat: NDArray[np.float64], found: Sequence[Region], pixels: float, kl: float
) -> Explanation:
    """Return the explanation of a score whose pixels add ``pixels`` to it."""
    positive = float(heat[heat > 0].sum())
    listed = tuple(_contribution(region, positive) for region in found)
    rest = pixels - sum(region.nats for region in listed)
    return Explanation((), rest, kl, listed)


def _contribution(region: Region, positive: float) -> RegionContribution:
    box = region.x, region.y, region.x + region.width, region.y + region.height
    share = region.total / positive if region.total > 0 else 0.0
    return RegionContribution(box, region.total, share)


def decision_title(detections: Detections, row: int) -> str:
    """Return a title with the score and the p-value of an image."""
    return f"score {detections.score[row]:.6g}, p = {detections.p_value[row]:.2g}"
