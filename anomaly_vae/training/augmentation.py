"""What a model is shown of a batch in training, and what it has to explain.

A `View` is a pair: ``seen`` goes into the encoder, ``target`` into the likelihood. Rows of a
table have cells hidden in both, and noise on the numbers in ``seen``. Images are turned and
mirrored in both, and then corrupted in ``seen`` alone. Either makes a denoiser of the model
(Vincent et al. 2008; Im et al. 2017).
Everything works on whole batches as tensors and draws from the generator it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from anomaly_vae.config import AugmentationConfig, CorruptionConfig
from anomaly_vae.images.encoding import STANDARDISED_MEAN, ImageLayout

COARSE = 4
"""Pixels along a side of a cell of the grid on which coarse noise is drawn."""

TOGETHER = 1 << 16
"""Values of rows for which it pays to draw in one call."""

Insert = Callable[[Tensor, Generator], tuple[Tensor, Tensor]]
"""Images (N, C, S, S) → the same with something inserted, and where (N, 1, S, S)."""


class Tampered(NamedTuple):
    """Images with something inserted."""

    seen: Tensor
    """(N, F)"""
    where: Tensor
    """(N, pixels): 1 where it is"""


class View(NamedTuple):
    """A batch as a model meets it in training."""

    seen: Tensor
    """(N, F): what the encoder sees"""
    target: Tensor
    """(N, F): what is to be explained"""
    tampered: Tampered | None = None
    """the same images with something inserted, for models that learn to tell where"""


class Views(Protocol):
    """How batches are shown, and what a row's loss is divided by."""

    loss_scale: float
    together: int
    """Batches may be shown several at once, up to so many values."""

    def __call__(self, x: Tensor, generator: Generator) -> View:
        """(N, F) → a view of it."""


class Identity:
    """Rows as they came."""

    loss_scale = 1.0
    together = TOGETHER

    def __call__(self, x: Tensor, generator: Generator) -> View:
        """See `Views`."""
        del generator
        return View(x, x)


class NoisyCells:
    """Rows with cells hidden and, for the encoder alone, noise on their numbers.

    Each raw column of each row is missing with probability ``hide``: ``units`` (F,) numbers the
    raw column of each encoded one, as what belongs together hides together. The first
    ``n_numeric`` columns are seen with noise of standard deviation ``noise``.
    """

    loss_scale = 1.0
    together = TOGETHER

    def __init__(
        self, hide: float, units: Sequence[int], noise: float = 0.0, n_numeric: int = 0
    ) -> None:
        self.hide, self.noise, self.n_numeric = hide, noise, n_numeric
        self.units = torch.as_tensor(units)
        self.n_units = max(units, default=-1) + 1

    def __call__(self, x: Tensor, generator: Generator) -> View:
        """See `Views`; any axes may come before the columns."""
        target = self._hidden(x, generator)
        if not self.noise or not self.n_numeric:
            return View(target, target)
        shape = (*x.shape[:-1], self.n_numeric)
        noise = self.noise * torch.randn(shape, generator=generator, device=x.device)
        return View(target + F.pad(noise, (0, x.shape[-1] - self.n_numeric)), target)

    def _hidden(self, x: Tensor, generator: Generator) -> Tensor:
        if not self.hide:
            return x
        shape = (*x.shape[:-1], self.n_units)
        draws = torch.rand(shape, generator=generator, device=x.device)
        hidden = draws.index_select(-1, self.units.to(x.device)) < self.hide
        return torch.where(hidden, torch.nan, x)


class DistortedImages:
    """Images mirrored and turned, then corrupted for the encoder."""

    together = 0  # each batch has its own shift of the noise

    def __init__(
        self,
        layout: ImageLayout,
        augmentation: AugmentationConfig,
        corruption: CorruptionConfig,
        insert: Insert | None = None,
    ) -> None:
        self.layout, self.augmentation, self.corruption = layout, augmentation, corruption
        self.insert = insert
        self.loss_scale = float(layout.n_columns)  # nats per value: images have thousands

    def __call__(self, x: Tensor, generator: Generator) -> View:
        """See `Views`."""
        target = augmented(x.view(-1, *self.layout.shape), self.augmentation, generator)
        seen = corrupted(target, self.corruption, generator)
        tampered = None
        if self.insert:
            tampered = Tampered(*(t.flatten(1) for t in self.insert(target, generator)))
        return View(seen.flatten(1), target.flatten(1), tampered)


def augmented(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """(N, C, H, W): mirrored with probability ``flip``, turned with probability ``rotation``."""
    if not config.flip and not config.rotation:
        return images
    draws = torch.rand((3, len(images)), generator=generator, device=images.device)
    mirror = torch.where(draws[0] < config.flip, -1.0, 1.0)
    angle = math.radians(config.degrees) * (2 * draws[2] - 1) * (draws[1] < config.rotation)
    return turned(images, angle, mirror)


def turned(images: Tensor, angle: Tensor, mirror: Tensor, zoom: Tensor | None = None) -> Tensor:
    """(N, C, H, W) turned by ``angle`` (N,), in radians, where ``mirror`` (N,) is −1 mirrored.

    Where ``zoom`` (N,) is above 1, more of the surroundings is seen.
    """
    scale = torch.ones_like(angle) if zoom is None else zoom
    cos, sin, zero = scale * torch.cos(angle), scale * torch.sin(angle), torch.zeros_like(angle)
    rows = torch.stack([mirror * cos, -sin, zero, mirror * sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def corrupted(images: Tensor, config: CorruptionConfig, generator: Generator) -> Tensor:
    """(N, C, H, W) → the same with the configured corruption."""
    if config.type == "none" or not config.strength:
        return images
    return CORRUPTIONS[config.type](images, config.strength, generator)


def coarse_noise(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Normal noise on a coarse grid, enlarged and shifted (Kascenas et al. 2022)."""
    cells = max(images.shape[-1] // COARSE, 2)
    shape = (len(images), images.shape[1], cells, cells)
    noise = torch.randn(shape, generator=generator, device=images.device)
    noise = F.interpolate(noise, images.shape[-2:], mode="bilinear", align_corners=True)
    shift = torch.randint(images.shape[-1], (2,), generator=generator, device=images.device)
    return images + strength * torch.roll(noise, shift.tolist(), (-2, -1))


def pixel_noise(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Normal noise, each pixel its own."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images + strength * noise


def masked(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """In each image a square of this share of the side set to the mean."""
    side = images.shape[-1]
    width = min(max(round(strength * side), 1), side)
    corner = torch.rand((2, len(images), 1), generator=generator, device=images.device)
    place = torch.arange(side, device=images.device)
    start = (corner * (side - width + 1)).floor()
    inside = (place >= start) & (place < start + width)
    hidden = (inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)).unsqueeze(1)
    return torch.where(hidden, STANDARDISED_MEAN, images)


def downsampled(images: Tensor, strength: float, generator: Generator) -> Tensor:  # noqa: ARG001  # there is nothing to draw
    """Resolution lowered by this share, then enlarged again."""
    side = images.shape[-1]
    small = max(round((1 - min(strength, 1.0)) * side), 1)
    low = F.interpolate(images, (small, small), mode="bilinear", antialias=True)
    return F.interpolate(low, (side, side), mode="bilinear")


CORRUPTIONS = {
    "coarse": coarse_noise,
    "pixel": pixel_noise,
    "mask": masked,
    "downsample": downsampled,
}
