"""Prepare training batches: hide cells, add noise, augment and corrupt images.

A `View` consists of the input of the encoder, ``encoder_input``, and the rows that the likelihood
has to explain, ``target``. In tables, cells are hidden in both, and noise is added to the numbers
of the encoder input only. Images are mirrored and rotated in both, and corrupted in the encoder
input only. In both cases the model learns to denoise (Vincent et al. 2008; Im et al. 2017).

All functions work on whole batches of tensors and draw from the generator that they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from anomaly_vae.config.training import AugmentationConfig, CorruptionConfig
from anomaly_vae.images.encoding import STANDARDISED_MEAN, ImageLayout

COARSE_CELL = 4
"""Side of a cell of the grid on which coarse noise is drawn, in pixels."""
MAX_VALUES_PER_DRAW = 1 << 16
"""Maximum number of values up to which drawing several batches in one call is faster."""

Insert = Callable[[Tensor, Generator], tuple[Tensor, Tensor]]
"""Function that inserts anomalies into images (N, C, S, S) and returns the changed images
(M, C, S, S) with the mask of the insertions (M, 1, S, S)."""


class SyntheticAnomalies(NamedTuple):
    """Images with inserted anomalies."""

    images: Tensor
    """(M, F): encoded images after the insertion."""
    mask: Tensor
    """(M, pixels): 1 where something was inserted, else 0."""


class View(NamedTuple):
    """The rows of a batch in the form that a training step receives."""

    encoder_input: Tensor
    """(N, F): encoded rows that the encoder receives."""
    target: Tensor
    """(N, F): encoded rows whose log-likelihood is maximised."""
    synthetic: SyntheticAnomalies | None = None
    """Images with inserted anomalies, for models with a localization head."""


class Views(Protocol):
    """A function that turns encoded rows into training views."""

    loss_scale: float
    """Divisor of each row's loss."""
    max_values: int
    """Maximum number of values that are drawn in one call; 0 draws each batch separately."""

    def __call__(self, x: Tensor, generator: Generator) -> View:
        """Return a view of the encoded rows ``x`` (N, F)."""


class Identity:
    """Rows without any change."""

    loss_scale = 1.0
    max_values = MAX_VALUES_PER_DRAW

    def __call__(self, x: Tensor, generator: Generator) -> View:
        """Return the rows as encoder input and as target; see `Views`."""
        del generator
        return View(x, x)


class NoisyCells:
    """Rows with hidden cells and, in the encoder input only, noise on the numbers.

    Args:
        hide: probability that a raw column of a row is hidden.
        units: (F,), index of the raw column that each encoded column comes from; encoded columns of
            one raw column are hidden together.
        noise: standard deviation of the noise, in units of a standardised column.
        n_numeric: number of leading encoded columns to which noise is added.
    """

    loss_scale = 1.0
    max_values = MAX_VALUES_PER_DRAW

    def __init__(
        self, hide: float, units: Sequence[int], noise: float = 0.0, n_numeric: int = 0
    ) -> None:
        self.hide, self.noise, self.n_numeric = hide, noise, n_numeric
        self.units = torch.as_tensor(units)
        self.n_units = max(units, default=-1) + 1

    def __call__(self, x: Tensor, generator: Generator) -> View:
        """Return a view of ``x`` (..., F), which may have any leading axes; see `Views`."""
        target = self._hidden(x, generator)
        if not self.noise or not self.n_numeric:
            return View(target, target)
        shape = (*x.shape[:-1], self.n_numeric)
        noise = self.noise * torch.randn(shape, generator=generator, device=x.device)
        return View(target + F.pad(noise, (0, x.shape[-1] - self.n_numeric)), target)

    def _hidden(self, x: Tensor, generator: Generator) -> Tensor:
        """Hide random cells of the rows (..., F)."""
        if not self.hide:
            return x
        shape = (*x.shape[:-1], self.n_units)
        draws = torch.rand(shape, generator=generator, device=x.device)
        hidden = draws.index_select(-1, self.units.to(x.device)) < self.hide
        return torch.where(hidden, torch.nan, x)


class DistortedImages:
    """Images that are mirrored and rotated, and corrupted in the encoder input only.

    Args:
        layout: shape of the images.
        augmentation: how to mirror and rotate.
        corruption: how to corrupt the encoder input.
        insert: how to insert synthetic anomalies; None inserts none.
    """

    max_values = 0  # each batch has a separate shift of the coarse noise

    def __init__(
        self,
        layout: ImageLayout,
        augmentation: AugmentationConfig,
        corruption: CorruptionConfig,
        insert: Insert | None = None,
    ) -> None:
        self.layout, self.augmentation, self.corruption = layout, augmentation, corruption
        self.insert = insert
        self.loss_scale = float(layout.n_columns)  # makes the loss nats per value; images have many

    def __call__(self, x: Tensor, generator: Generator) -> View:
        """Return a view of the images ``x`` (N, F); see `Views`."""
        target = augmented(x.view(-1, *self.layout.shape), self.augmentation, generator)
        corrupt = corrupted(target, self.corruption, generator)
        synthetic = None
        if self.insert:
            changed, mask = self.insert(target, generator)
            synthetic = SyntheticAnomalies(changed.flatten(1), mask.flatten(1))
        return View(corrupt.flatten(1), target.flatten(1), synthetic)


def augmented(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Mirror and rotate images (N, C, H, W), each with its configured probability."""
    if not config.flip and not config.rotation:
        return images
    draws = torch.rand((3, len(images)), generator=generator, device=images.device)
    mirror = torch.where(draws[0] < config.flip, -1.0, 1.0)
    angle = math.radians(config.degrees) * (2 * draws[2] - 1) * (draws[1] < config.rotation)
    return turned(images, angle, mirror)


def turned(images: Tensor, angle: Tensor, mirror: Tensor) -> Tensor:
    """Rotate and mirror images by bilinear sampling.

    Args:
        images: (N, C, H, W).
        angle: (N,), rotation in radians.
        mirror: (N,), −1 to mirror left to right, else 1.
    """
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    rows = torch.stack([mirror * cos, -sin, zero, mirror * sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def corrupted(images: Tensor, config: CorruptionConfig, generator: Generator) -> Tensor:
    """Apply the configured corruption to images (N, C, H, W)."""
    if config.type == "none" or not config.strength:
        return images
    return CORRUPTIONS[config.type](images, config.strength, generator)


def coarse_noise(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Add normal noise, drawn on a coarse grid, enlarged and shifted (Kascenas et al. 2022)."""
    cells = max(images.shape[-1] // COARSE_CELL, 2)
    shape = (len(images), images.shape[1], cells, cells)
    noise = torch.randn(shape, generator=generator, device=images.device)
    noise = F.interpolate(noise, images.shape[-2:], mode="bilinear", align_corners=True)
    shift = torch.randint(images.shape[-1], (2,), generator=generator, device=images.device)
    return images + strength * torch.roll(noise, shift.tolist(), (-2, -1))


def pixel_noise(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Add independent normal noise to every pixel."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images + strength * noise


def masked(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Set a random square of each image to the mean; its side is ``strength`` times the image's."""
    side = images.shape[-1]
    width = min(max(round(strength * side), 1), side)
    corner = torch.rand((2, len(images), 1), generator=generator, device=images.device)
    place = torch.arange(side, device=images.device)
    start = (corner * (side - width + 1)).floor()
    inside = (place >= start) & (place < start + width)
    hidden = (inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)).unsqueeze(1)
    return torch.where(hidden, STANDARDISED_MEAN, images)


def downsampled(images: Tensor, strength: float, generator: Generator) -> Tensor:  # noqa: ARG001  # there is nothing to draw
    """Reduce the resolution by the fraction ``strength``, then enlarge to the original size."""
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
"""Corruption function of images (N, C, H, W), by its type in the configuration."""
