"""Which pixels do not belong: a posterior over contamination, learned from inserted corruption.

Let m_i say that pixel i is contaminated. q(m|x) = Π Bernoulli(σ(ℓ_i(x))) is fitted to images into
which something was inserted and the place is known: the sleep phase of Hinton et al. 1995. What
is inserted is generic (smooth shapes filled with shifted, blurred, foreign or textured tissue),
so that the network learns what does not continue its surroundings rather than one kind of lesion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.models.convolutional import Geometry
from anomaly_vae.models.hierarchical import Block

RARE = -3.0
"""Where the log-odds start: one pixel in twenty."""


class LocalizationHead(nn.Module):
    """Images → log-odds ℓ of each pixel: a U-shaped network with skips at half and quarter side."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        fine, middle, coarse = geometry.widths
        self.fine = _twice(4 * geometry.layout.channels, fine)
        self.middle = _twice(fine, middle)
        self.coarse = _twice(middle, coarse)
        self.to_middle = _twice(middle + coarse, middle)
        self.to_fine = _twice(fine + middle, fine)
        self.out = nn.Conv2d(fine, 4, 3, 1, 1)
        nn.init.constant_(self.out.bias, RARE)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        """(N, F) → (N, S²)"""
        fine = self.fine(F.pixel_unshuffle(self.geometry.pad(x), 2))
        middle = self.middle(F.avg_pool2d(fine, 2))
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = self.to_middle(torch.cat([middle, F.interpolate(coarse, scale_factor=2.0)], 1))
        fine = self.to_fine(torch.cat([fine, F.interpolate(middle, scale_factor=2.0)], 1))
        return self.geometry.crop(F.pixel_shuffle(self.out(fine), 2))


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs), Block(outputs, outputs))


# ---------------------------------------------------------------- what is inserted
