"""Define convolutional encoders and decoders of images.

An image is a row (N, F). Encoders reshape it to (N, C, S, S) and replicate its border until the
side can be halved as often as the network requires. Decoders map latents (..., L) to (...,
outputs), channel by channel in the order of the rows. Neither knows about intensities or losses.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.networks import Encoder

LEAKY_SLOPE = 0.1
"""Slope of the leaky rectifier for negative inputs."""
MAX_COARSEST_SIDE = 7
"""Maximum side of the coarsest feature maps, in pixels; larger maps are halved."""
MAX_WIDENING = 4
"""Maximum number of channels, as a multiple of the width of the finest convolutions."""


class Geometry:
    """The number of halvings, the padded side and the channels at each resolution.

    Args:
        layout: shape of the images.
        width: channels of the finest convolutions.
        halvings: number of times the side is halved; None chooses it by `MAX_COARSEST_SIDE`.
    """

    def __init__(self, layout: ImageLayout, width: int, halvings: int | None = None) -> None:
        self.layout = layout
        self.halvings = halvings or max(2, math.ceil(math.log2(layout.size / MAX_COARSEST_SIDE)))
        step = 2**self.halvings
        self.side = math.ceil(layout.size / step) * step
        self.coarsest = self.side // step
        self.widths = [width * min(2**i, MAX_WIDENING) for i in range(self.halvings)]

    @property
    def flat(self) -> int:
        """Number of values at the coarsest resolution."""
        return int(self.widths[-1] * self.coarsest**2)

    def pad(self, x: Tensor) -> Tensor:
        """Convert rows (N, F) into padded images (N, C, side, side)."""
        images = x.unflatten(1, self.layout.shape)
        before = (self.side - self.layout.size) // 2
        after = self.side - self.layout.size - before
        return F.pad(images, (before, after, before, after), mode="replicate")

    def crop(self, images: Tensor) -> Tensor:
        """Convert padded images (N, O, side, side) into rows (N, O · S²)."""
        start, size = (self.side - self.layout.size) // 2, self.layout.size
        return images[:, :, start : start + size, start : start + size].flatten(1)


class ImageEncoder(nn.Module):
    """An encoder of images: pixel unshuffle, halving convolutions, dense layers.

    It returns mean and log-variance of q(z|x).
    """

    def __init__(
        self, geometry: Geometry, latent_dim: int, hidden_dim: int, residual: bool
    ) -> None:
        super().__init__()
        self.geometry, self.latent_dim = geometry, latent_dim
        widths = [4 * geometry.layout.channels, *geometry.widths]
        halve = ResidualDown if residual else Down
        first = SameSize(widths[0], widths[1])
        rest = [halve(a, b) for a, b in itertools.pairwise(widths[1:])]
        self.halvings = nn.Sequential(nn.PixelUnshuffle(2), first, *rest)
        self.dense = nn.Sequential(
            nn.Linear(geometry.flat, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Linear(hidden_dim, 2 * latent_dim),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Convert rows (N, F) into mean (N, L) and log-variance (N, L)."""
        coarse = self.halvings(self.geometry.pad(x)).flatten(1)
        mean, log_var = self.dense(coarse).chunk(2, dim=-1)
        return mean, torch.clamp(log_var, *Encoder.LOG_VAR_BOUNDS)


class ImageDecoder(nn.Module):
    """A decoder that mirrors `ImageEncoder`: it maps latents to ``planes`` values per pixel."""

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
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Linear(hidden_dim, geometry.flat),
        )
        double = ResidualUp if residual else Up
        self.doublings = nn.Sequential(
            *(double(a, b, upsampling) for a, b in itertools.pairwise(widths)),
            upsample(widths[-1], planes, upsampling),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Convert latents (..., L) into outputs (..., planes · S²)."""
        coarse: Tensor = self.dense(z.flatten(0, -2))
        side = self.geometry.coarsest
        images: Tensor = self.doublings(coarse.unflatten(1, (-1, side, side)))
        return self.geometry.crop(images).view(*z.shape[:-1], -1)


class SameSize(nn.Sequential):
    """A 3×3 convolution, batch norm and leaky rectifier that keep the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(LEAKY_SLOPE),
        )


class Down(nn.Sequential):
    """A 4×4 convolution of stride 2, batch norm and leaky rectifier that halve the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(LEAKY_SLOPE),
        )


def upsample(inputs: int, outputs: int, upsampling: str) -> nn.Module:
    """Return a layer that doubles the side.

    It enlarges linearly before a convolution, which leaves no grid in images (Odena et al. 2016),
    if ``upsampling`` is "resize"; with "shuffle" it uses pixel shuffle (Shi et al. 2016), and with
    "transposed" a transposed convolution.
    """
    if upsampling == "resize":
        convolution = nn.Conv2d(inputs, outputs, 3, 1, 1, padding_mode="replicate")
        return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="bilinear"), convolution)
    if upsampling == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 3, 1, 1), nn.PixelShuffle(2))


class Up(nn.Sequential):
    """A layer that doubles the side, followed by batch norm and leaky rectifier."""

    def __init__(self, inputs: int, outputs: int, upsampling: str) -> None:
        super().__init__(
            upsample(inputs, outputs, upsampling),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(LEAKY_SLOPE),
        )


class Residual(nn.Module):
    """A residual block (He et al. 2016).

    It returns x plus two 3×3 convolutions of x, each after batch norm and rectifier.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x + branch(x) for x (N, width, H, W)."""
        y: Tensor = x + self.branch(x)
        return y


class ResidualDown(nn.Sequential):
    """A convolution that halves the side, followed by a residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 4, 2, 1), Residual(outputs))


class ResidualUp(nn.Sequential):
    """A residual block, followed by a layer that doubles the side."""

    def __init__(self, inputs: int, outputs: int, upsampling: str) -> None:
        super().__init__(Residual(inputs), upsample(inputs, outputs, upsampling))
