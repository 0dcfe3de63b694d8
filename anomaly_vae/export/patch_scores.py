"""Compute the score of images by their patches as one torch module, which is traced to a graph.

Each patch is a row, and its score is the negative ELBO of a tabular model, in nats, times the
weight that `PictureLevel` gives to patches. These scores are enlarged to the pixels of the image,
divided by the area of a patch, and smoothed. The score of the image is the sum of this map (but for
rounding at the border, the sum over its patches) and the negative ELBO of the picture level. The
outputs are those of `image_scores`, with two differences: a patch's KL term lies where the patch is
and therefore in the map, so that ``kl`` is the part of the picture level, 0 in models of earlier
versions, which have none; and ``expected`` is the image, since the decoder expects features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.config.scoring import ImageScoreConfig, ScoreConfig
from anomaly_vae.export.graph_check import torch_terms
from anomaly_vae.export.image_scores import CHUNK_IMAGES
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.backbone import N_FEATURES, STRIDE, Patches
from anomaly_vae.models.image_likelihoods import blur, gaussian_kernel
from anomaly_vae.models.picture_level import extremes
from anomaly_vae.models.vae import VAE

SMOOTHING = STRIDE / 4
"""Standard deviation of the blur of a map, in pixels."""


class PatchScore(nn.Module):
    """The score of a trained model of patches and its parts."""

    any_batch = False
    """Whether the graph takes any number of images: the exporter would take the number of patches
    of its example for that of every batch, so that the graph takes one image."""

    kernel: Tensor

    def __init__(self, model: VAE, layout: ImageLayout, config: ImageScoreConfig) -> None:
        super().__init__()
        self.model, self.layout, self.config = model, layout, config
        self.register_buffer("kernel", gaussian_kernel(SMOOTHING), persistent=False)

    @property
    def n_inputs(self) -> int:
        """Number F of values of an image."""
        return self.layout.n_columns

    @property
    def unit(self) -> str:
        """Unit of the values of a map."""
        return f"{self.config.unit} per pixel"

    @property
    def patches(self) -> Patches:
        """The module that turns images into rows."""
        assert isinstance(self.model.patches, Patches), "the configuration names a backbone"
        return self.model.patches

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Convert images (N, F) into score, nats, kl, expected and latent; see the module."""
        count, maps = self.patches.grid**2, self.patches.maps(x)
        rows = self.patches.rotated(self.patches.features(maps)).reshape(-1, N_FEATURES)
        bound = torch_terms(self.model, ScoreConfig(), rows).bound.view(-1, count)
        share, picture = self._picture(maps)
        values = self._spread(-share * bound.float())
        nats = values.repeat(1, self.layout.channels) / self.layout.channels
        total = nats.double().sum(-1)
        mean, _ = self.model.posterior(rows)
        latent = mean.view(-1, count, self.model.latent_dim).mean(1)
        return total + picture, nats, picture, x.clone(), latent

    def _picture(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight of the patches (1,), and the part of the picture level (N,)."""
        level = self.patches.picture
        if level is None:
            return maps.new_ones(1), maps.new_zeros(len(maps), dtype=torch.float64)
        return level.share, level(extremes(maps)).double()

    def _spread(self, values: Tensor) -> Tensor:
        """Spread the values of patches (N, P) over the pixels (N, S²), with about the same sum."""
        grid, side = self.patches.grid, self.layout.size
        maps = values.view(-1, 1, grid, grid)
        large = F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
        return blur(large, self.kernel).flatten(1) * (grid / side) ** 2

    @torch.no_grad()
    def fit_statistics(self, x: Tensor) -> None:
        """Set the weight of the patches from held-out images (N, F); see `PictureLevel.balance`."""
        assert self.patches.picture is not None, "it was fitted with the rotation"
        parts = [self(part) for part in x.split(CHUNK_IMAGES)]
        nats, picture = (torch.cat([part[i] for part in parts]) for i in (1, 2))
        self.patches.picture.balance(picture, nats.double().sum(-1))
