"""Insert synthetic anomalies into images, with a mask of their position."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from anomaly_vae.images.encoding import STANDARDISED_STD
from anomaly_vae.training.augmentation import turned

MAX_ROTATION, MAX_ZOOM = math.radians(12), 0.12
"""Maximum rotation in either direction, in radians, and maximum relative change of scale, before
anomalies are inserted."""
AREA = (0.01, 0.18)
"""Minimum and maximum area of a shape, as a fraction of the image; small areas are more likely."""
EDGE_STEEPNESS = (3.0, 16.0)
"""Minimum and maximum steepness of a shape's edge, from soft to hard."""
AMPLITUDE = (0.35, 1.6)
"""Minimum and maximum shift, in standard deviations of the image intensities."""
CLEAN, LOCAL, SHIFTED, FOREIGN = 0.15, 0.3, 0.5, 0.25
"""Fraction of images left clean, of shapes confined to one place, of fillings with shifted tissue,
and of fillings with foreign tissue; all other fillings are texture."""
BACKGROUND = 0.03
"""Maximum difference from an image's minimum at which a pixel is background, where nothing is
inserted."""
VISIBLE = 0.15
"""Minimum change of a pixel in the mask, in standard deviations of the image intensities."""


def synthetic(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Insert anomalies into two copies of each image, after random geometric changes.

    Each copy is rotated, mirrored and zoomed at random, so that the network sees more normal
    variation than the training images contain.

    Args:
        images: (N, C, H, W), standardised.
        generator: source of all randomness.

    Returns:
        changed images (2N, C, H, W) and the mask of the insertions (2N, 1, H, W).
    """
    twice = images.repeat(2, 1, 1, 1)
    draws = torch.rand((3, len(twice)), generator=generator, device=images.device)
    angle, zoom = (2 * draws[0] - 1) * MAX_ROTATION, 1 + (2 * draws[1] - 1) * MAX_ZOOM
    mirror = torch.where(draws[2] < 0.5, -1.0, 1.0)
    return inserted(turned(twice, angle, mirror, zoom), generator)


def inserted(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Insert anomalies into images (N, C, H, W), standardised.

    Returns:
        changed images (N, C, H, W) and the mask of the insertions (N, 1, H, W).
    """
    draw = _Draw(images, generator)
    darkest = images.amin((2, 3), keepdim=True)
    alpha = _shape(draw) * (images > darkest + BACKGROUND).amax(1, keepdim=True)
    alpha = alpha * (draw.uniform() >= CLEAN)
    corrupted = torch.maximum(images + alpha * (_filling(images, draw) - images), darkest)
    change = (corrupted - images).abs().amax(1, keepdim=True)
    changed = ((alpha > 0.5) & (change > VISIBLE * STANDARDISED_STD)).to(images.dtype)
    return corrupted, (_box_blur(changed, 3) > 0.4).to(images.dtype)


class _Draw:
    """A source of random numbers for N images of side H."""

    def __init__(self, images: Tensor, generator: Generator) -> None:
        self.n, self.side = images.shape[0], images.shape[-1]
        self.generator, self.device = generator, images.device

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw one number per image, (N, 1, 1, 1)."""
        draws = torch.rand((self.n, 1, 1, 1), generator=self.generator, device=self.device)
        return low + (high - low) * draws

    def sign(self) -> Tensor:
        """Draw −1 or 1 per image, (N, 1, 1, 1)."""
        return torch.where(self.uniform() < 0.5, -1.0, 1.0)

    def integer(self, low: int, high: int) -> int:
        """Draw one integer from low to high, both included."""
        place = torch.randint(low, high + 1, (1,), generator=self.generator, device=self.device)
        return int(place)

    def field(self, cells: int) -> Tensor:
        """Draw a smooth standard normal field (N, 1, H, W) with ``cells`` bumps along a side."""
        shape = (self.n, 1, cells + 2, cells + 2)
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        wide = round(self.side * (cells + 2) / cells)
        large = F.interpolate(noise, (wide, wide), mode="bicubic", align_corners=False)
        top, left = (self.integer(0, wide - self.side) for _ in range(2))
        return large[..., top : top + self.side, left : left + self.side]


def _shape(draw: _Draw) -> Tensor:
    """Draw smooth shapes (N, 1, H, W) on [0, 1] that cover a random fraction of the area."""
    field = draw.field(draw.integer(4, 10))
    field = torch.where(draw.uniform() < LOCAL, _localized(field, draw), field)
    share = AREA[0] + (AREA[1] - AREA[0]) * draw.uniform() ** 1.5
    highest = field.flatten(1).sort(1, descending=True).values
    rank = (share.flatten(1) * highest.shape[1]).long()
    level = highest.gather(1, rank).view(-1, 1, 1, 1)
    spread = field.std((2, 3), keepdim=True)
    return torch.sigmoid((field - level) / spread * draw.uniform(*EDGE_STEEPNESS))


def _localized(field: Tensor, draw: _Draw) -> Tensor:
    """Weight a field (N, 1, H, W) by a window at a random place, so that it has a single shape."""
    place = torch.arange(draw.side, device=field.device) / draw.side
    rows = (place.view(1, 1, -1, 1) - draw.uniform(0.2, 0.8)) ** 2
    columns = (place.view(1, 1, 1, -1) - draw.uniform(0.2, 0.8)) ** 2
    window = torch.exp(-(rows + columns) / (2 * draw.uniform(0.06, 0.16) ** 2))
    return (1.5 + field.clamp_min(-1.2)) * window


def _filling(images: Tensor, draw: _Draw) -> Tensor:
    """Draw the content of the shapes (N, C, H, W)."""
    kind = draw.uniform()
    other = torch.where(kind < SHIFTED + FOREIGN, _foreign(images, draw), _texture(images, draw))
    return torch.where(kind < SHIFTED, _shifted(images, draw), other)


def _shifted(images: Tensor, draw: _Draw) -> Tensor:
    """Return the image itself, brighter or darker, optionally blurred, with some unevenness."""
    blur = draw.uniform() * (draw.uniform() < 0.5)
    uneven = draw.field(draw.side // 4) * draw.uniform(0, 0.5)
    uneven = uneven + draw.field(draw.side // 8) * draw.uniform(0, 0.5)
    shift = draw.uniform(*AMPLITUDE) * draw.sign()
    return images * (1 - blur) + blur * _blurred(images) + STANDARDISED_STD * (shift + uneven)


def _foreign(images: Tensor, draw: _Draw) -> Tensor:
    """Return tissue of another image of the batch, or of another place of the same image."""
    order = torch.randperm(draw.n, generator=draw.generator, device=images.device)
    others = images[order]
    others = torch.where(draw.uniform() < 0.5, others.flip(-1), others)
    span = draw.side // 3
    near, far = ((draw.integer(-r, r), draw.integer(-r, r)) for r in (span // 2, span))
    moved = torch.roll(others, near, (-2, -1)), torch.roll(images, far, (-2, -1))
    return torch.where(draw.uniform() < 0.5, *moved)


def _texture(images: Tensor, draw: _Draw) -> Tensor:
    """Return blurred tissue with fine or coarse noise."""
    shape = (draw.n, 1, draw.side, draw.side)
    noise = torch.randn(shape, generator=draw.generator, device=images.device)
    fine = 3 * _box_blur(noise, 3) * draw.uniform(0.2, 1.2) * (draw.uniform() < 0.5)
    return _blurred(images) + STANDARDISED_STD * (
        fine + draw.field(draw.side // 3) * draw.uniform(0.5, 2)
    )


def _blurred(images: Tensor) -> Tensor:
    """Return images at a quarter of their resolution."""
    small = F.interpolate(images, scale_factor=0.25, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


def _box_blur(images: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(images, window, 1, window // 2)
