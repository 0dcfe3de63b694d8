"""Define the network that localizes anomalies: it returns the log-odds that a pixel is anomalous.

Let m_i mark pixel i as anomalous. The posterior q(m|x) = Π Bernoulli(σ(ℓ_i(x))) is fitted to images
with inserted anomalies whose position is known, which is the sleep phase of Hinton et al. 1995. The
insertions are generic, so that the network learns to find whatever does not continue its
surroundings rather than one kind of lesion: islands, ellipses and lines filled with shifted,
blurred, foreign or textured tissue, and patches of other images that are blended in without an
edge.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.models.convolutional import Geometry
from anomaly_vae.models.hierarchical import Block, channels_last

INITIAL_LOG_ODDS = -3.0
"""Initial log-odds of a pixel; it corresponds to one anomalous pixel in twenty."""


class LocalizationHead(nn.Module):
    """A U-shaped network with skip connections at half and quarter side (Ronneberger et al. 2015).

    It maps images to the log-odds ℓ of each pixel.

    Args:
        geometry: sides and channels.
        symmetric: whether each place sees the features of the opposite place, too, at a quarter and
            an eighth of the side. Normal anatomy is often on both sides, and a lesion on one.
    """

    def __init__(self, geometry: Geometry, symmetric: bool = True) -> None:
        super().__init__()
        self.geometry, self.symmetric = geometry, symmetric
        fine, middle, coarse = geometry.widths
        seen = 2 * middle if symmetric else middle
        self.fine = _double_block(4 * geometry.layout.channels, fine)
        self.middle = _double_block(fine, middle)
        self.coarse = _double_block(seen, coarse)
        self.to_middle = _double_block(seen + coarse, middle)
        self.to_fine = _double_block(fine + middle, fine)
        self.out = nn.Conv2d(fine, 4, 3, 1, 1)
        nn.init.constant_(self.out.bias, INITIAL_LOG_ODDS)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        """Convert images (N, F) into log-odds (N, S²)."""
        images = F.pixel_unshuffle(self.geometry.pad(x), 2)
        fine = self.fine(channels_last(images) if self.training else images)
        middle = self.middle(F.avg_pool2d(fine, 2))
        middle = torch.cat([middle, middle.flip(-1)], 1) if self.symmetric else middle
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = self.to_middle(torch.cat([middle, F.interpolate(coarse, scale_factor=2.0)], 1))
        fine = self.to_fine(torch.cat([fine, F.interpolate(middle, scale_factor=2.0)], 1))
        return self.geometry.crop(F.pixel_shuffle(self.out(fine), 2))


def _double_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs), Block(outputs, outputs))
