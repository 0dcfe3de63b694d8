"""Insert synthetic anomalies."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from anomaly_vae.images.encoding import STANDARDISED_STD
from anomaly_vae.training.augmentation import turned

TURN, ZOOM = math.radians(12), 0.12
"""How far images are turned to either side, and enlarged or reduced, before."""


SHARE = (0.01, 0.18)
"""Of the area, at least and at most; small ones are likelier."""


EDGE = (3.0, 16.0)
"""How sharp a shape's edge is, from soft to hard."""


AMPLITUDE = (0.35, 1.6)
"""By how many standard deviations of the image intensities are shifted."""


CLEAN, LOCAL, SHIFTED, FOREIGN = 0.15, 0.3, 0.5, 0.25
"""Share of images left clean, of shapes held in one place; of fillings that are shifted or foreign
tissue; the others are texture."""


BACKGROUND = 0.03
"""Pixels within this of an image's darkest are background, where nothing is inserted."""


VISIBLE = 0.15
"""A pixel counts as changed from this many standard deviations on."""


def synthetic(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) standardised → twice as many with something inserted, and where (2N, 1, H, W).

    Each is turned, mirrored and enlarged at random before: more of what is normal may be met than
    the training images show.
    """
    twice = images.repeat(2, 1, 1, 1)
    draws = torch.rand((3, len(twice)), generator=generator, device=images.device)
    angle, zoom = (2 * draws[0] - 1) * TURN, 1 + (2 * draws[1] - 1) * ZOOM
    mirror = torch.where(draws[2] < 0.5, -1.0, 1.0)
    return inserted(turned(twice, angle, mirror, zoom), generator)


def inserted(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) standardised → the same with something inserted, and where (N, 1, H, W)."""
    draw = _Draw(images, generator)
    darkest = images.amin((2, 3), keepdim=True)
    alpha = _shape(draw) * (images > darkest + BACKGROUND).amax(1, keepdim=True)
    alpha = alpha * (draw.uniform() >= CLEAN)
    corrupted = torch.maximum(images + alpha * (_filling(images, draw) - images), darkest)
    change = (corrupted - images).abs().amax(1, keepdim=True)
    changed = ((alpha > 0.5) & (change > VISIBLE * STANDARDISED_STD)).to(images.dtype)
    return corrupted, (_box(changed, 3) > 0.4).to(images.dtype)


class _Draw:
    """Random numbers for N images of side H."""

    def __init__(self, images: Tensor, generator: Generator) -> None:
        self.n, self.side = images.shape[0], images.shape[-1]
        self.generator, self.device = generator, images.device

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(N, 1, 1, 1)"""
        draws = torch.rand((self.n, 1, 1, 1), generator=self.generator, device=self.device)
        return low + (high - low) * draws

    def sign(self) -> Tensor:
        """(N, 1, 1, 1): −1 or 1"""
        return torch.where(self.uniform() < 0.5, -1.0, 1.0)

    def whole(self, low: int, high: int) -> int:
        """From low to high, both included."""
        place = torch.randint(low, high + 1, (1,), generator=self.generator, device=self.device)
        return int(place)

    def field(self, cells: int) -> Tensor:
        """(N, 1, H, W): a smooth standard normal field with so many bumps along a side."""
        shape = (self.n, 1, cells + 2, cells + 2)
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        wide = round(self.side * (cells + 2) / cells)
        large = F.interpolate(noise, (wide, wide), mode="bicubic", align_corners=False)
        top, left = (self.whole(0, wide - self.side) for _ in range(2))
        return large[..., top : top + self.side, left : left + self.side]


def _shape(draw: _Draw) -> Tensor:
    """(N, 1, H, W) on [0, 1]: smooth shapes that cover a random share of the area."""
    field = draw.field(draw.whole(4, 10))
    field = torch.where(draw.uniform() < LOCAL, _in_one_place(field, draw), field)
    share = SHARE[0] + (SHARE[1] - SHARE[0]) * draw.uniform() ** 1.5
    highest = field.flatten(1).sort(1, descending=True).values
    rank = (share.flatten(1) * highest.shape[1]).long()
    level = highest.gather(1, rank).view(-1, 1, 1, 1)
    spread = field.std((2, 3), keepdim=True)
    return torch.sigmoid((field - level) / spread * draw.uniform(*EDGE))


def _in_one_place(field: Tensor, draw: _Draw) -> Tensor:
    """The field under a window about a random place, so that it has one shape and not several."""
    place = torch.arange(draw.side, device=field.device) / draw.side
    rows = (place.view(1, 1, -1, 1) - draw.uniform(0.2, 0.8)) ** 2
    columns = (place.view(1, 1, 1, -1) - draw.uniform(0.2, 0.8)) ** 2
    window = torch.exp(-(rows + columns) / (2 * draw.uniform(0.06, 0.16) ** 2))
    return (1.5 + field.clamp_min(-1.2)) * window


def _filling(images: Tensor, draw: _Draw) -> Tensor:
    """(N, C, H, W): what fills the shapes."""
    kind = draw.uniform()
    other = torch.where(kind < SHIFTED + FOREIGN, _foreign(images, draw), _texture(images, draw))
    return torch.where(kind < SHIFTED, _shifted(images, draw), other)


def _shifted(images: Tensor, draw: _Draw) -> Tensor:
    """The tissue itself, brighter or darker, more or less blurred, with some unevenness."""
    blur = draw.uniform() * (draw.uniform() < 0.5)
    uneven = draw.field(draw.side // 4) * draw.uniform(0, 0.5)
    uneven = uneven + draw.field(draw.side // 8) * draw.uniform(0, 0.5)
    shift = draw.uniform(*AMPLITUDE) * draw.sign()
    return images * (1 - blur) + blur * _coarse(images) + STANDARDISED_STD * (shift + uneven)


def _foreign(images: Tensor, draw: _Draw) -> Tensor:
    """Tissue of another image of the batch, mirrored or not, or of another place of this one."""
    order = torch.randperm(draw.n, generator=draw.generator, device=images.device)
    others = images[order]
    others = torch.where(draw.uniform() < 0.5, others.flip(-1), others)
    reach = draw.side // 3
    near, far = ((draw.whole(-r, r), draw.whole(-r, r)) for r in (reach // 2, reach))
    moved = torch.roll(others, near, (-2, -1)), torch.roll(images, far, (-2, -1))
    return torch.where(draw.uniform() < 0.5, *moved)


def _texture(images: Tensor, draw: _Draw) -> Tensor:
    """Blurred tissue under noise, fine or coarse."""
    shape = (draw.n, 1, draw.side, draw.side)
    noise = torch.randn(shape, generator=draw.generator, device=images.device)
    fine = 3 * _box(noise, 3) * draw.uniform(0.2, 1.2) * (draw.uniform() < 0.5)
    return _coarse(images) + STANDARDISED_STD * (
        fine + draw.field(draw.side // 3) * draw.uniform(0.5, 2)
    )


def _coarse(images: Tensor) -> Tensor:
    """At a quarter of the resolution."""
    small = F.interpolate(images, scale_factor=0.25, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


def _box(images: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(images, window, 1, window // 2)
