"""Encoders and decoders of images. They know shapes, not intensities or losses.

An image comes as a row (N, F) and is laid out as (N, C, S, S), its border repeated until the side
can be halved as often as the network does. Decoders take latents (..., L) and give (..., outputs),
channel by channel like the rows.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.networks import Encoder

SLOPE = 0.1
"""Of the leaky rectifier below zero."""
COARSEST = 7
"""Convolutions halve the side until it is at most this."""
WIDEST = 4
"""Channels grow to this many times the width."""


class Geometry:
    """How often a side is halved, what it is padded to, and the channels at each resolution."""

    def __init__(self, layout: ImageLayout, width: int, halvings: int | None = None) -> None:
        self.layout = layout
        self.halvings = halvings or max(2, math.ceil(math.log2(layout.size / COARSEST)))
        step = 2**self.halvings
        self.side = math.ceil(layout.size / step) * step
        self.coarsest = self.side // step
        self.widths = [width * min(2**i, WIDEST) for i in range(self.halvings)]

    @property
    def flat(self) -> int:
        """Values at the coarsest resolution."""
        return int(self.widths[-1] * self.coarsest**2)

    def pad(self, x: Tensor) -> Tensor:
        """(N, F) → (N, C, side, side)"""
        images = x.unflatten(1, self.layout.shape)
        before = (self.side - self.layout.size) // 2
        after = self.side - self.layout.size - before
        return F.pad(images, (before, after, before, after), mode="replicate")

    def crop(self, images: Tensor) -> Tensor:
        """(N, O, side, side) → (N, O · S²)"""
        start, size = (self.side - self.layout.size) // 2, self.layout.size
        return images[:, :, start : start + size, start : start + size].flatten(1)


class ImageEncoder(nn.Module):
    """Images → mean and log-variance of q(z|x): a pixel unshuffle, then halvings, then dense."""

    def __init__(
        self, geometry: Geometry, latent_dim: int, hidden_dim: int, residual: bool
    ) -> None:
        super().__init__()
        self.geometry, self.latent_dim = geometry, latent_dim
        widths = [4 * geometry.layout.channels, *geometry.widths]
        halve = ResidualDown if residual else Down
        first = Same(widths[0], widths[1])
        rest = [halve(a, b) for a, b in itertools.pairwise(widths[1:])]
        self.halvings = nn.Sequential(nn.PixelUnshuffle(2), first, *rest)
        self.dense = nn.Sequential(
            nn.Linear(geometry.flat, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden_dim, 2 * latent_dim),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F) → mean (N, L), log-variance (N, L)"""
        coarse = self.halvings(self.geometry.pad(x)).flatten(1)
        mean, log_var = self.dense(coarse).chunk(2, dim=-1)
        return mean, torch.clamp(log_var, *Encoder.LOG_VAR)


class ImageDecoder(nn.Module):
    """Latents → ``planes`` values per pixel: the encoder's mirror image."""

    def __init__(
        self,
        geometry: Geometry,
        latent_dim: int,
        hidden_dim: int,
        planes: int,
        upsampling: str,
        residual: bool,
    ) -> None:
        super().__init__()
        self.geometry, widths = geometry, geometry.widths[::-1]
        self.dense = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden_dim, geometry.flat),
        )
        double = ResidualUp if residual else Up
        self.doublings = nn.Sequential(
            *(double(a, b, upsampling) for a, b in itertools.pairwise(widths)),
            doubling(widths[-1], planes, upsampling),
        )

    def forward(self, z: Tensor) -> Tensor:
        """(..., L) → (..., planes · S²)"""
        coarse: Tensor = self.dense(z.flatten(0, -2))
        side = self.geometry.coarsest
        images: Tensor = self.doublings(coarse.unflatten(1, (-1, side, side)))
        return self.geometry.crop(images).view(*z.shape[:-1], -1)


class Same(nn.Sequential):
    """3×3 convolution, batch norm, leaky rectifier; the side stays."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(SLOPE),
        )


class Down(nn.Sequential):
    """4×4 convolution of stride 2, batch norm, leaky rectifier: half the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(SLOPE),
        )


def doubling(inputs: int, outputs: int, upsampling: str) -> nn.Module:
    """Twice the side, by pixel shuffle (Shi et al. 2016) or by transposed convolution."""
    if upsampling == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 3, 1, 1), nn.PixelShuffle(2))


class Up(nn.Sequential):
    """Twice the side, batch norm, leaky rectifier."""

    def __init__(self, inputs: int, outputs: int, upsampling: str) -> None:
        super().__init__(
            doubling(inputs, outputs, upsampling), nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE)
        )


class Residual(nn.Module):
    """x + two 3×3 convolutions of it, each after batch norm and rectifier (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) → the same shape"""
        y: Tensor = x + self.branch(x)
        return y


class ResidualDown(nn.Sequential):
    """Half the side, then a residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 4, 2, 1), Residual(outputs))


class ResidualUp(nn.Sequential):
    """A residual block, then twice the side."""

    def __init__(self, inputs: int, outputs: int, upsampling: str) -> None:
        super().__init__(Residual(inputs), doubling(inputs, outputs, upsampling))
