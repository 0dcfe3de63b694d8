"""Vary images in place and in intensity, before anomalies are inserted.

A head that sees the same few hundred normal images in every epoch learns them by heart, and takes
what is new in other normal images for an anomaly. Rotation, stretch and elastic deformation
(Simard et al. 2003, Best Practices for Convolutional Neural Networks Applied to Visual Document
Analysis) and random tone curves show it more normal images than there are.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from anomaly_vae.images.encoding import STANDARDISED_MEAN, STANDARDISED_STD
from anomaly_vae.training.insertion.draws import Draw

MAX_ROTATION = math.radians(12)
"""Maximum rotation in either direction, in radians; turned further, the two sides of an image are
not opposite each other."""
MAX_ZOOM, MAX_STRETCH = 0.18, 0.09
"""Maximum relative change of scale, and of the height alone."""
MAX_SHIFT = 0.04
"""Maximum shift along each axis, as a fraction of the image's side."""
MAX_ELASTIC = 0.019
"""Maximum standard deviation of the elastic displacement along each axis, as a fraction of the
image's side."""
ELASTIC_CELLS = (3, 6)
"""Minimum and maximum number of bumps of the displacement along a side."""
MAX_GAMMA = 0.4
"""Maximum absolute logarithm of the exponent of a tone curve."""
WAVES = (0.16, 0.08, 0.053)
"""Maximum height of each wave of a tone curve; the k-th has k half-periods."""
UNEVENNESS = 0.15
"""Maximum standard deviation of the logarithm of a smooth factor of the intensities."""
MAX_GRAIN = 0.04
"""Maximum standard deviation of the factor of each pixel that makes half of the images grainy."""
TINY = 1e-6
"""Number that keeps divisors and bases of powers above 0."""


def warped(images: Tensor, generator: Generator) -> Tensor:
    """Rotate, mirror, stretch, shift and deform images (N, C, H, H)."""
    draw = _draw(images, generator)
    grid = F.affine_grid(_placing(draw), list(images.shape), align_corners=False)
    amount = draw.uniform(0, 2 * MAX_ELASTIC)  # a square has side 2 in the grid's unit
    cells = draw.integer(*ELASTIC_CELLS)
    moved = torch.cat([draw.field(cells), draw.field(cells)], 1) * amount
    grid = grid + moved.movedim(1, -1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _placing(draw: Draw) -> Tensor:
    """Draw an affine map for each image, (N, 2, 3)."""
    angle, mirror = (2 * draw.uniform() - 1) * MAX_ROTATION, draw.sign()
    across = 1 + (2 * draw.uniform() - 1) * MAX_ZOOM
    down = across * (1 + (2 * draw.uniform() - 1) * MAX_STRETCH)
    right, below = ((2 * draw.uniform() - 1) * 2 * MAX_SHIFT for _ in range(2))
    cos, sin = torch.cos(angle), torch.sin(angle)
    parts = mirror * across * cos, -down * sin, right, mirror * across * sin, down * cos, below
    return torch.stack(parts, -1).view(-1, 2, 3)


def toned(images: Tensor, generator: Generator) -> Tensor:
    """Apply a random tone curve, unevenness and grain to images (N, C, H, H).

    Each image keeps its mean and its standard deviation.
    """
    draw = _draw(images, generator)
    low, high = images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
    light = ((images - low) / (high - low).clamp_min(TINY)).clamp_min(TINY)
    light = light ** torch.exp(MAX_GAMMA * (2 * draw.uniform() - 1))
    for number, height in enumerate(WAVES, start=1):
        light = light + height * (2 * draw.uniform() - 1) * torch.sin(number * math.pi * light)
    light = light * torch.exp(UNEVENNESS * draw.uniform() * draw.field(2))
    grain = MAX_GRAIN * draw.uniform() * (draw.uniform() < 0.5) * draw.noise(draw.side)
    changed = standardised(light * (1 + grain)) - STANDARDISED_MEAN
    mean, deviation = images.mean((1, 2, 3), True), _deviation(images)
    return mean + changed * (deviation / STANDARDISED_STD)


def standardised(images: Tensor) -> Tensor:
    """Give each image (N, C, H, W) the mean and standard deviation of a standardised one."""
    centred = images - images.mean((1, 2, 3), True)
    return STANDARDISED_MEAN + STANDARDISED_STD * centred / _deviation(images).clamp_min(TINY)


def _deviation(images: Tensor) -> Tensor:
    return images.std((1, 2, 3), keepdim=True)


def _draw(images: Tensor, generator: Generator) -> Draw:
    everywhere = torch.ones_like(images[:, :1], dtype=torch.bool)
    return Draw(images, everywhere, images, everywhere, generator)
