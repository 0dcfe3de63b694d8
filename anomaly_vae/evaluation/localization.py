"""Measure how well the maps of images show where anomalies are, against masks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as connected_regions

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

OVERLAP_FPR = 0.3
"""Largest share of normal pixels up to which the overlap with regions is averaged, as in Bergmann
et al. 2021, sec. 5.2."""
EIGHT_NEIGHBOURS = np.ones((3, 3), int)
"""Pixels that touch at a side or a corner belong to the same region."""


@dataclass(frozen=True)
class PixelFigures:
    """How well a map ranks the pixels of anomalies above all others.

    Every figure is over all pixels of all images; None if there is no pixel of one of the kinds.
    """

    images: int
    """Number of images."""
    regions: int
    """Number of connected regions of the masks."""
    auroc: float | None
    """Area under the ROC curve of pixels."""
    average_precision: float | None
    """Average precision of pixels."""
    region_overlap: float | None
    """Mean share of a region that is found, averaged over shares of flagged normal pixels from 0
    to 0.3: the normalised area under the PRO curve (Bergmann et al. 2021, International Journal of
    Computer Vision 129, sec. 5.2)."""
    base_rate: float
    """Share of pixels that are in a mask, which is the average precision of a useless map."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def pixel_figures(heat: Sequence[Floats], masks: Sequence[Mask]) -> PixelFigures:
    """Compare maps with masks of anomalies.

    Args:
        heat: (H, W) score of each pixel of N images, in any unit; higher is more anomalous.
        masks: (H, W) True where a pixel belongs to an anomaly, for the same images.

    Example:
        >>> mask = np.zeros((4, 4), bool)
        >>> mask[1:3, 1:3] = True
        >>> figures = pixel_figures([mask.astype(float)], [mask])
        >>> figures.auroc, figures.average_precision, figures.region_overlap, figures.base_rate
        (1.0, 1.0, 1.0, 0.25)
    """
    numbers, count = _numbered_regions(masks)
    values, regions = (np.concatenate([part.ravel() for part in x]) for x in (heat, numbers))
    curve = _Curve.of(values, regions)
    both = curve.positives > 0 and curve.negatives > 0
    return PixelFigures(
        len(masks),
        count,
        curve.auroc if both else None,
        curve.average_precision if both else None,
        curve.region_overlap if both else None,
        curve.positives / max(curve.positives + curve.negatives, 1),
    )


def _numbered_regions(masks: Sequence[Mask]) -> tuple[list[NDArray[np.int32]], int]:
    """Give each region a number from 1, over all masks; pixels of none have 0."""
    numbers, count = [], 0
    for mask in masks:
        found, regions = connected_regions(mask, EIGHT_NEIGHBOURS)
        numbers.append(np.where(mask, found + count, 0).astype(np.int32))
        count += regions
    return numbers, count


@dataclass(frozen=True, eq=False)
class _Curve:
    """Shares of pixels that are found at each threshold, from the highest downwards."""

    true: Floats
    """Share of the pixels in masks."""
    false: Floats
    """Share of the other pixels."""
    overlap: Floats
    """Mean share of a region."""
    positives: int
    negatives: int

    @classmethod
    def of(cls, heat: Floats, regions: NDArray[np.int32]) -> _Curve:
        """Rank the pixels (M,) by their heat; ``regions`` (M,) is 0 outside masks."""
        order = np.argsort(-heat, kind="stable")
        last = np.append(np.diff(heat[order]) != 0, True)  # equal values share a threshold
        sizes = np.bincount(regions)
        shares = np.append(0.0, 1 / np.maximum(sizes[1:], 1) / max(len(sizes) - 1, 1))

        def found(weights: NDArray[Any]) -> Floats:
            return np.append(0.0, np.cumsum(weights[order])[last])

        positives, negatives = int((regions > 0).sum()), int((regions == 0).sum())
        return cls(
            found(regions > 0) / max(positives, 1),
            found(regions == 0) / max(negatives, 1),
            found(shares[regions]),
            positives,
            negatives,
        )

    @property
    def auroc(self) -> float:
        return float(np.trapezoid(self.true, self.false))

    @property
    def average_precision(self) -> float:
        true, false = self.true * self.positives, self.false * self.negatives
        precision = true[1:] / np.maximum(true[1:] + false[1:], 1)
        return float((np.diff(self.true) * precision).sum())

    @property
    def region_overlap(self) -> float:
        below = self.false <= OVERLAP_FPR
        end = np.interp(OVERLAP_FPR, self.false, self.overlap)
        x, y = np.append(self.false[below], OVERLAP_FPR), np.append(self.overlap[below], end)
        return float(np.trapezoid(y, x) / OVERLAP_FPR)
