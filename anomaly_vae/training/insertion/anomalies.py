"""Insert synthetic anomalies of several kinds into images, with a label of every pixel.

Islands, ellipses and thin lines are filled with shifted, foreign or textured tissue; patches of
other images are blended in without an edge. Labels are between 0 and 1: the logistic function of
how much a pixel was changed (Schlüter et al. 2022, Natural Synthetic Anomalies, sec. 3.3).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from anomaly_vae.images.encoding import STANDARDISED_STD
from anomaly_vae.training.insertion.blending import with_patches
from anomaly_vae.training.insertion.draws import Choices, Draw, box_blur, mixed
from anomaly_vae.training.insertion.fillings import filling
from anomaly_vae.training.insertion.shapes import ellipses, islands, lines
from anomaly_vae.training.insertion.variation import standardised, toned, warped

BACKGROUND = 0.03
"""Maximum difference from an image's minimum at which a pixel is background, where nothing is
inserted."""
VISIBLE = 0.15
"""Change of a pixel at which its label is 1/2, in standard deviations of the image intensities."""
LABEL_STEEPNESS = 20.0
"""Steepness of the label, per standard deviation of the image intensities."""


def synthetic(
    images: Tensor, generator: Generator, standardise: bool = False
) -> tuple[Tensor, Tensor]:
    """Insert anomalies into two copies of each image, which are first varied at random.

    Args:
        images: (N, C, H, W), of about the standard deviation of standardised images.
        generator: source of all randomness.
        standardise: whether the changed images are standardised, as those that are scored are.

    Returns:
        changed images (2N, C, H, W) and the labels of their pixels (2N, 1, H, W).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> changed, labels = synthetic(torch.randn(3, 1, 16, 16, generator=generator), generator)
        >>> changed.shape[0], bool(((labels >= 0) & (labels <= 1)).all())
        (6, True)
    """
    placed = warped(images.repeat(2, 1, 1, 1), generator)
    changed, labels = inserted(toned(placed, generator), generator, tissue_of(placed))
    return (standardised(changed) if standardise else changed), labels


def inserted(
    images: Tensor, generator: Generator, tissue: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Insert anomalies into images (N, C, H, W), standardised.

    Args:
        images: (N, C, H, W).
        generator: source of all randomness.
        tissue: (N, 1, H, W), True where something may be inserted; None finds it.

    Returns:
        changed images (N, C, H, W) and the labels of their pixels (N, 1, H, W).
    """
    tissue = tissue_of(images) if tissue is None else tissue
    darkest = images.amin((2, 3), keepdim=True)
    made = mixed(Draw(images, tissue, images, tissue, generator), KINDS)
    changed = torch.maximum(made[:, 1:], darkest)
    return changed, _labels(changed - images) * made[:, :1]


def tissue_of(images: Tensor) -> Tensor:
    """Return where images (N, C, H, W) are no background, (N, 1, H, W)."""
    darkest = images.amin((2, 3), keepdim=True)
    return (images > darkest + BACKGROUND).amax(1, keepdim=True)


def _clean(draw: Draw) -> Tensor:
    """Return the images unchanged."""
    return torch.cat([torch.zeros_like(draw.images[:, :1]), draw.images], 1)


def _patched(draw: Draw) -> Tensor:
    """Return images with a blended patch, which may be anywhere."""
    return torch.cat([torch.ones_like(draw.images[:, :1]), with_patches(draw)], 1)


def _drawn(draw: Draw) -> Tensor:
    """Return images with a filled shape, after the mask of the shape."""
    alpha = mixed(draw, SHAPES) * draw.tissue
    return torch.cat([(alpha > 0.5).to(alpha), torch.lerp(draw.images, filling(draw), alpha)], 1)


KINDS: Choices = ((0.1, _clean), (0.2, _patched), (0.7, _drawn))
"""What is done with an image, with its probability; the results (N, 1 + C, H, W) are a mask of the
pixels that may count as anomalous, and the changed image."""
SHAPES: Choices = ((0.5, islands), (0.35, ellipses), (0.15, lines))
"""Shapes that are drawn, with their probabilities."""


def _labels(change: Tensor) -> Tensor:
    """Return the label of every pixel (N, 1, H, W) of a change (N, C, H, W)."""
    size = box_blur(change.abs().amax(1, keepdim=True), 3) / STANDARDISED_STD
    return torch.sigmoid(LABEL_STEEPNESS * (size - VISIBLE)) * (size > 0)
