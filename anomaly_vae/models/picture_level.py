"""Define the picture level of a model of patches: one latent for all patches of a picture.

Its row is the largest and the smallest value of each feature over the positions of a picture,
before neighbours are averaged, in standard deviations. A defect that few positions show stays
visible there, while it is lost in a sum over hundreds of patches. The model of such rows is a VAE
with a linear decoder, which is probabilistic principal component analysis (Tipping & Bishop 1999):

    p(z) = N(0, I), p(x|z) = N(W z + m, s²I), q(z|x) = p(z|x).

The posterior is exact, so that the negative ELBO is the negative log-density, and the parameters
have a closed form, which a few hundred pictures suffice for.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from anomaly_vae.models.likelihoods import LOG_2PI

MAX_LATENTS = 64
"""Maximum number of latent dimensions; there are at most half as many as pictures."""
MIN_VARIANCE = 1e-2
"""Minimum variance of the likelihood; the variance of a standardised value is 1."""
MIN_SCALE = 1e-6
"""Smallest standard deviation by which a value is divided."""


def extremes(maps: Tensor) -> Tensor:
    """Return the row (N, 2D) of pictures from their features (N, D, H, W).

    >>> extremes(torch.arange(8.0).view(1, 2, 2, 2)).tolist()
    [[3.0, 7.0, 0.0, 4.0]]
    """
    return torch.cat([maps.amax((-2, -1)), maps.amin((-2, -1))], -1)


class PictureLevel(nn.Module):
    """The linear VAE of the extremes of pictures, and the weight of their patches beside it.

    Args:
        center: (K,), mean of the extremes.
        scale: (K,), their standard deviations.
        axes: (K, L), orthonormal principal directions, once standardised.
        variance: (L,), variances along them.
        noise: (1,), variance s² in all other directions.
        share: (1,), weight of the ELBOs of patches in the score.

    Example:
        >>> rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
        >>> level = PictureLevel.fit(rows)
        >>> usual, odd = level(torch.stack([rows.mean(0), rows.mean(0) + 9]))
        >>> bool(odd > usual + 100)
        True
    """

    TENSORS = ("center", "scale", "axes", "variance", "noise", "share")

    center: Tensor
    scale: Tensor
    axes: Tensor
    variance: Tensor
    noise: Tensor
    share: Tensor

    def __init__(
        self,
        center: Tensor,
        scale: Tensor,
        axes: Tensor,
        variance: Tensor,
        noise: Tensor,
        share: Tensor,
    ) -> None:
        super().__init__()
        values = center, scale, axes, variance, noise, share
        for name, value in zip(self.TENSORS, values, strict=True):
            self.register_buffer(name, value)

    @classmethod
    def fit(cls, rows: Tensor) -> Self:
        """Return the maximum likelihood estimate for rows (N, K)."""
        center, scale = rows.mean(0), rows.std(0, correction=0).clamp_min(MIN_SCALE)
        standard = ((rows - center) / scale).double()
        count = max(1, min(MAX_LATENTS, len(rows) // 2, rows.shape[1] - 1))
        _, values, directions = torch.linalg.svd(standard, full_matrices=False)
        variance, rest = (values**2 / len(rows)).tensor_split([count])
        noise = (rest.sum() / (rows.shape[1] - count)).clamp_min(MIN_VARIANCE)
        parts = directions[:count].T, variance.clamp_min(noise), noise.view(1), torch.ones(1)
        return cls(center, scale, *(part.float().contiguous() for part in parts))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the negative ELBO of standardised rows (N, K), (N,), nats."""
        standard = (rows - self.center) / self.scale
        along = standard @ self.axes
        across = standard - along @ self.axes.T
        squares = (along**2 / self.variance).sum(-1) + (across**2).sum(-1) / self.noise
        others = self.axes.shape[0] - self.axes.shape[1]
        volume = self.variance.log().sum() + others * self.noise.log().sum()
        return 0.5 * (squares + volume + self.axes.shape[0] * LOG_2PI)

    def balance(self, pictures: Tensor, patches: Tensor) -> None:
        """Set the weight of the patches so that both levels deviate equally.

        Receptive fields of patches overlap, so that the sum of their ELBOs counts the same pixels
        many times; it is a composite likelihood, which needs a weight beside others (Varin et al.
        2011). Fewer than two pictures leave it at 1.

        Args:
            pictures: (N,), negative ELBOs of held-out pictures.
            patches: (N,), sums of the negative ELBOs of their patches.
        """
        if len(pictures) > 1 and pictures.std() > 0 < patches.std():
            self.share.fill_((pictures.std() / patches.std()).clamp_max(1).item())
