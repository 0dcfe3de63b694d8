"""Define a VAE of images with latents at several resolutions (Sønderby et al. 2016; Child 2021).

The decoder passes a state from the coarsest level to the finest. At each level the state determines
a conditional prior N(m, s²) of the level's latents, and the latents are then merged into the state.
Latents are parameterised as offsets in units of that prior, z = m + s ε. The joint prior of all ε
is therefore N(0, I), the KL term is the closed form of a plain VAE, and the decoder is a function
of the vector ε (L,). Only the posterior is computed level by level: at each level it depends on the
encoder's features and on the state that results from the coarser levels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.convolutional import Geometry, upsample
from anomaly_vae.models.vae import VAE, Inference

LEVELS = 3
"""Number of resolutions."""
LOG_VAR_BOUNDS = (-8.0, 3.0)
"""Bounds of the posterior's log-variance, in units of the prior."""
LOG_SCALE_BOUNDS = (-4.0, 1.5)
"""Bounds of the prior's log-scale."""

Padding = Literal["zeros", "replicate"]
"""What convolutions see beyond the border."""
ChooseEps = Callable[[int, Tensor], Tensor]
"""Function (level, state (N, W, H, H)) that returns the ε of that level (N, C, H, H)."""


class Block(nn.Sequential):
    """A 3×3 convolution, batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, padding: Padding = "zeros") -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False, padding_mode=padding),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
        )


def channels_last(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W) with the channels of a pixel side by side in memory.

    Convolutions keep this order, in which they and their gradients take a third less time.
    """
    return maps.contiguous(memory_format=torch.channels_last)


class BottomUp(nn.Module):
    """An encoder that returns features at an eighth, a quarter and half of the side.

    Args:
        geometry: sides and channels.
        latent_dim: length of ε over all levels.
    """

    def __init__(self, geometry: Geometry, latent_dim: int) -> None:
        super().__init__()
        self.geometry, self.latent_dim = geometry, latent_dim
        fine, middle, coarse = geometry.widths
        self.fine = Block(4 * geometry.layout.channels, fine)
        self.middle = Block(fine, middle)
        self.coarse = nn.Sequential(Block(middle, coarse), Block(coarse, coarse))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Convert rows (N, F) into features, the coarsest first.

        Returns:
            [(N, 4W, S/8, S/8), (N, 2W, S/4, S/4), (N, W, S/2, S/2)]
        """
        images = F.pixel_unshuffle(self.geometry.pad(x), 2)
        fine = self.fine(channels_last(images) if self.training else images)
        middle = self.middle(F.avg_pool2d(fine, 2))
        return [self.coarse(F.avg_pool2d(middle, 2)), middle, fine]


class Level(nn.Module):
    """The prior and posterior of one resolution, and the layer that adds latents to the state."""

    def __init__(self, width: int, channels: int, padding: Padding) -> None:
        super().__init__()
        self.prior = nn.Conv2d(width, 2 * channels, 1)
        self.posterior = nn.Sequential(
            nn.Conv2d(2 * width, width, 1), nn.SiLU(), nn.Conv2d(width, 2 * channels, 1)
        )
        self.merge = Block(width + channels, width, padding)

    def infer(self, state: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(ε | state, features), each (N, C, H, H)."""
        mean, log_var = self.posterior(torch.cat([state, features], 1)).chunk(2, 1)
        return mean, log_var.clamp(*LOG_VAR_BOUNDS)

    def merge_latents(self, state: Tensor, eps: Tensor) -> Tensor:
        """Merge the latents given by ε (N, C, H, H) into the state (N, W, H, H)."""
        mean, log_scale = self.prior(state).chunk(2, 1)
        z = mean + torch.exp(log_scale.clamp(*LOG_SCALE_BOUNDS)) * eps
        merged: Tensor = self.merge(torch.cat([state, z], 1))
        return merged


class TopDown(nn.Module):
    """A decoder that maps the ε of all levels to ``planes`` values per pixel.

    With ``upsampling`` "resize", it enlarges linearly and repeats the values at the border, so that
    images have neither a grid nor a frame; otherwise it repeats pixels, and shuffles the last ones.
    """

    def __init__(
        self, geometry: Geometry, latent_dim: int, planes: int, upsampling: str = "shuffle"
    ) -> None:
        super().__init__()
        self.geometry = geometry
        widths = geometry.widths[::-1]
        self.sides = [geometry.coarsest * 2**level for level in range(LEVELS)]
        self.channels = [max(latent_dim // 2**level, 1) for level in range(LEVELS)]
        self.sizes = [c * s**2 for c, s in zip(self.channels, self.sides, strict=True)]
        self.start = nn.Parameter(torch.zeros(1, widths[0], self.sides[0], self.sides[0]))
        smooth = upsampling == "resize"
        self.enlargement = "bilinear" if smooth else "nearest"
        padding: Padding = "replicate" if smooth else "zeros"
        block = partial(Block, padding=padding)
        self.levels = nn.ModuleList(map(partial(Level, padding=padding), widths, self.channels))
        self.narrow = nn.ModuleList(map(block, widths, widths[1:]))
        self.deepen = nn.ModuleList(map(block, widths, widths))
        self.out = (
            upsample(widths[-1], planes, "resize")
            if smooth
            else nn.Conv2d(widths[-1], 4 * planes, 3, 1, 1)
        )
        self.arrange = nn.Identity() if smooth else nn.PixelShuffle(2)

    def forward(self, z: Tensor) -> Tensor:
        """Convert latents (..., L) into outputs (..., planes · S²)."""
        rows = z.flatten(0, -2)
        eps = [self.as_maps(part, i) for i, part in enumerate(rows.split(self.sizes, -1))]
        return self.descend(rows.shape[0], lambda level, _: eps[level]).view(*z.shape[:-1], -1)

    def descend(self, n: int, choose: ChooseEps) -> Tensor:
        """Decode from the coarsest level to the image.

        Args:
            n: number of images.
            choose: function that returns the ε of each level.

        Returns:
            (n, outputs)
        """
        state = self.start.expand(n, -1, -1, -1)
        state = channels_last(state) if self.training else state
        for number in range(LEVELS):
            state = self.deepen[number](
                self.level(number).merge_latents(state, choose(number, state))
            )
            if number < LEVELS - 1:
                narrow = self.narrow[number](state)
                state = F.interpolate(narrow, scale_factor=2.0, mode=self.enlargement)
        return self.geometry.crop(self.arrange(self.out(state)))

    def level(self, number: int) -> Level:
        """Return a level by its number; 0 is the coarsest."""
        level = self.levels[number]
        assert isinstance(level, Level)
        return level

    def as_maps(self, eps: Tensor, level: int) -> Tensor:
        """Reshape the ε of a level from (N, C · H²) to (N, C, H, H)."""
        side = self.sides[level]
        return eps.reshape(-1, self.channels[level], side, side)


class HierarchicalVAE(VAE):
    """A VAE whose posterior is computed level by level; see the module docstring."""

    decoder: TopDown

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(ε|x), each (N, L).

        Each level is conditioned on the means of the coarser levels.
        """
        inference = self.infer(x, x.new_zeros(1, self.latent_dim))
        return inference.mean.squeeze(1), inference.log_var.squeeze(1)

    def infer_from(self, features: Tensor, noise: Tensor) -> Inference:
        """Return q(ε|x), draws from it and their decodings."""
        decoder, draws = self.decoder, noise.shape[-2]
        noise = noise.expand(features.shape[0], draws, -1).flatten(0, 1).split(decoder.sizes, -1)
        repeated = [_repeated(f, draws) for f in self.encoder(features)]
        levels: list[tuple[Tensor, Tensor, Tensor]] = []

        def choose(number: int, state: Tensor) -> Tensor:
            mean, log_var = decoder.level(number).infer(state, repeated[number])
            eps = mean + torch.exp(0.5 * log_var) * decoder.as_maps(noise[number], number)
            levels.append((mean.flatten(1), log_var.flatten(1), eps.flatten(1)))
            return eps

        outputs = decoder.descend(repeated[0].shape[0], choose)
        parts = (*map(torch.cat, zip(*levels, strict=True), [-1] * 3), outputs)
        return Inference(*(part.view(features.shape[0], draws, -1) for part in parts))


class HierarchicalAutoencoder(Autoencoder, HierarchicalVAE):
    """The deterministic counterpart: an autoencoder with skip connections through its latents."""


def _repeated(features: Tensor, draws: int) -> Tensor:
    """Repeat each row for all draws: (N, ...) becomes (N · draws, ...)."""
    return features.unsqueeze(1).expand(-1, draws, -1, -1, -1).flatten(0, 1)
