"""Define priors p(z) of the latent variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor, nn

from anomaly_vae.models.likelihoods import LOG_2PI

MIN_EXPONENT = -80.0
"""Minimum exponent in a log-sum-exp. Beside exp(0), exp(−80) is lost in rounding; below exp(−88) a
float32 is subnormal, and every operation on it costs many processors a hundred cycles."""


DRAWING = "drawing."
"""Prefix of the names of a `LatentGaussian`'s tensors."""


class StandardNormal(nn.Module):
    """The prior N(0, I) over L dimensions."""

    def kl(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """Return KL(N(mean, exp log_var) ‖ N(0, I)) per dimension, (N, L), nats.

        Kingma & Welling 2014, appendix B: ½ (μ² + σ² − 1 − log σ²).
        """
        return self.kl_and_grad(mean, log_var)[0]

    def kl_and_grad(self, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `kl` and its derivatives by mean and log-variance, which broadcast to (N, L)."""
        excess = torch.expm1(log_var)
        return 0.5 * (mean * mean + (excess - log_var)), mean, 0.5 * excess

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of latents (..., L) as (...), nats."""
        return -0.5 * (z**2 + LOG_2PI).sum(-1)

    def sample(self, n: int, latent_dim: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` latents (n, L)."""
        return torch.randn(n, latent_dim, generator=generator)


@dataclass(frozen=True, eq=False)
class LatentGaussian:
    """A Gaussian of low rank that latents of training images were drawn from, to draw new ones.

    It is fitted after the model (Ghosh et al. 2020, "From Variational to Deterministic
    Autoencoders"), and no score depends on it. Latents at many places of an image are independent
    under the prior N(0, I), and then show, for example, a skull of pieces that do not meet.

    Args:
        mean: (L,), the mean.
        basis: (K, L), directions times standard deviations.

    Example:
        >>> latents = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> LatentGaussian.fit(latents).sample(4, torch.Generator().manual_seed(1)).shape
        torch.Size([4, 3])
    """

    mean: Tensor
    basis: Tensor

    TENSORS: ClassVar = ("mean", "basis")
    RANK: ClassVar = 16

    @classmethod
    def fit(cls, latents: Tensor) -> Self:
        """Fit the mean of latents (N, L), and the directions in which they vary most."""
        mean = latents.double().mean(0)
        centred = latents.double() - mean
        rank = min(cls.RANK, len(latents), latents.shape[1])
        _, vectors = torch.linalg.eigh(centred @ centred.T)
        directions = vectors[:, -rank:].T @ centred
        return cls(mean.float(), (directions / math.sqrt(max(len(latents) - 1, 1))).float())

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` latents (n, L)."""
        return self.mean + torch.randn(n, len(self.basis), generator=generator) @ self.basis


TINY = 1e-12
"""Number of latents added to those of each component, so that a component without any has a mean
weight."""
CHUNK = 1024
"""Number of latents whose distances to the components are computed at a time."""


class Mixture(nn.Module):
    """The mixture Σ_m w_m N(s c_m, v_m diag s²) that approximates the aggregated posterior q(z).

    Args:
        log_weight: (..., M), log w.
        center: (..., M, L), c in units of the scale.
        log_var: (..., M), log v.
        scale: (..., 1, L), s.
    """

    TENSORS = ("log_weight", "center", "log_var", "scale")

    log_weight: Tensor
    center: Tensor
    log_var: Tensor
    scale: Tensor

    def __init__(self, log_weight: Tensor, center: Tensor, log_var: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_weight", log_weight)
        self.register_buffer("center", center)
        self.register_buffer("log_var", log_var)
        self.register_buffer("scale", scale)

    @classmethod
    def stack(cls, each: Sequence[Mixture]) -> Self:
        """Stack mixtures of equal numbers of components along a first axis of members."""
        return cls(*(torch.stack([getattr(one, name) for one in each]) for name in cls.TENSORS))

    @property
    def n_components(self) -> int:
        """Number of components M."""
        return self.log_weight.shape[-1]

    def split_components(self, count: int) -> Mixture:
        """Return the same mixture with ``count`` components, by splitting some into equal ones."""
        which = torch.arange(count) % self.n_components
        pieces = torch.bincount(which)[which]
        log_weight = self.log_weight[which] - pieces.log()
        return Mixture(log_weight, self.center[which], self.log_var[which], self.scale)

    @property
    def log_norm(self) -> Tensor:
        """(..., M): log w_m − ½ log det(2π v_m diag s²), nats."""
        latent_dim = self.center.shape[-1]
        volume = (
            latent_dim * (self.log_var + LOG_2PI) + 2 * self.scale.log().sum((-2, -1))[..., None]
        )
        return self.log_weight - 0.5 * volume

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of latents (..., N, K, L) as (..., N, K), nats."""
        return (
            self.log_prob_from_distances(self.squared_distances(z)).view(z.shape[:-1]).to(z.dtype)
        )

    def squared_distances(self, z: Tensor) -> Tensor:
        """Return ‖z/s − c_m‖² of latents (..., N, K, L) as (..., N·K, M).

        It is computed in float64 because of cancellation.
        """
        rows = z.flatten(-3, -2).double() / self.scale
        center = self.center.double()
        square = (-2 * rows @ center.mT).add_((rows**2).sum(-1, keepdim=True))
        return square.add_((center**2).sum(-1).unsqueeze(-2)).clamp_min_(0)

    def log_prob_from_distances(self, square: Tensor) -> Tensor:
        """Return log p(z) as (..., N·K), nats, from squared distances (..., N·K, M)."""
        return log_sum_exp(self.log_joint(square))

    def log_joint(self, square: Tensor) -> Tensor:
        """Return log p(z, m), (..., N·K, M), nats, from squared distances of the same shape."""
        norm, precision = self.log_norm.to(square), torch.exp(-self.log_var).to(square)
        return torch.addcmul(norm.unsqueeze(-2), square, precision.unsqueeze(-2), value=-0.5)

    def reweighted(self, z: Tensor, weight: Tensor) -> Mixture:
        """Return the mixture whose components weigh as much as the latents that they account for.

        The weight of a component is multiplied by the mean weight of its latents, to each of which
        the component's responsibility for it applies. This is a step of expectation-maximisation
        (Dempster et al. 1977).

        Args:
            z: (..., N, 1, L), latents.
            weight: (N,), weights of the latents.
        """
        total, count = (torch.full_like(self.log_weight, TINY) for _ in range(2))
        for part, each in zip(z.split(CHUNK, -3), weight.split(CHUNK), strict=True):
            share = torch.softmax(self.log_joint(self.squared_distances(part)).float(), -1)
            total += (each.unsqueeze(-1) * share).sum(-2)
            count += share.sum(-2)
        log_weight = self.log_weight + torch.log(total / count)
        log_weight = log_weight - log_weight.logsumexp(-1, keepdim=True)
        return Mixture(log_weight, self.center, self.log_var, self.scale)

    def sample(self, n: int, latent_dim: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` latents (n, L) from a mixture without member axis."""
        part = torch.multinomial(self.log_weight.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, latent_dim, generator=generator)
        spread = (0.5 * self.log_var[part]).exp().unsqueeze(-1)
        return self.scale * (self.center[part] + spread * noise)


def log_sum_exp(exponents: Tensor) -> Tensor:
    """Return log Σ exp over the last axis, (..., M) to (...), relative to the maximum."""
    most = exponents.amax(-1, keepdim=True)
    each = (exponents - most).clamp_min_(MIN_EXPONENT).exp_()
    return each.sum(-1).log() + most.squeeze(-1)
