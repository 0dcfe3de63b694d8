"""Compute the score of an image from the scores of its tiles, as a torch module to be traced."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly_vae.config.scoring import ImageScoreConfig
from anomaly_vae.export.image_scores import ImageScore
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.images.tiling import Tiling
from anomaly_vae.models.vae import VAE

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class TiledScore(ImageScore):
    """The score of an image that a model sees tile by tile: that of its highest tile.

    ``kl`` is that of the same tile. ``nats`` and ``expected`` are put together of all tiles, see
    `Tiling`, so that the sum of ``nats`` is not part of the score. ``latent`` is the mean over
    tiles.
    """

    def __init__(
        self,
        model: VAE,
        layout: ImageLayout,
        config: ImageScoreConfig,
        tiling: Tiling,
        masked: bool = False,
    ) -> None:
        super().__init__(model, layout, config, masked)
        self.tiling = tiling

    @property
    def n_inputs(self) -> int:
        """Number of values of an image."""
        return self.layout.channels * self.tiling.size**2

    def forward(self, x: Tensor) -> Outputs:
        """Convert images (N, F) into score, nats, kl, expected and latent; see the class."""
        score, nats, kl, expected, latent = super().forward(self._tiles(x))
        by_tile = score.unflatten(0, (-1, self.tiling.count))
        highest = by_tile.argmax(1, keepdim=True)
        return (
            by_tile.gather(1, highest).squeeze(1),
            self._joined(nats),
            kl.unflatten(0, (-1, self.tiling.count)).gather(1, highest).squeeze(1),
            self._joined(expected),
            latent.unflatten(0, (-1, self.tiling.count)).mean(1),
        )

    def _tiles(self, x: Tensor) -> Tensor:
        """Cut images (N, F) into tiles (N · T, f), row by row."""
        starts, side, size = self.tiling.starts, self.tiling.side, self.tiling.size
        images = x.unflatten(1, (self.layout.channels, size, size))
        rows = torch.stack([images[:, :, start : start + side] for start in starts], 1)
        tiles = torch.stack([rows[..., start : start + side] for start in starts], 2)
        return tiles.flatten(0, 2).flatten(1)

    def _joined(self, tiles: Tensor) -> Tensor:
        """Put the values of tiles (N · T, f) together to those of images (N, F)."""
        across, kept = len(self.tiling.starts), self.tiling.kept
        grid = tiles.unflatten(1, self.layout.shape).unflatten(0, (-1, across, across))
        columns = [grid[:, :, i, :, :, a:b] for i, (a, b) in enumerate(kept)]
        strips = torch.cat(columns, -1)
        rows = [strips[:, i, :, a:b] for i, (a, b) in enumerate(kept)]
        return torch.cat(rows, -2).flatten(1)
