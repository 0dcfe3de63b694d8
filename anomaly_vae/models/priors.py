"""Priors p(z) of the latent variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Generator, Tensor, nn

from anomaly_vae.models.likelihoods import LOG_2PI

LEAST_EXPONENT = -80.0
"""Beside exp(0), what exp(-80) adds is lost; from exp(-88) on a float32 is subnormal, and each one
costs many processors a hundred cycles."""


class StandardNormal(nn.Module):
    """N(0, I) over L dimensions."""

    def kl(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """KL(N(mean, exp log_var) ‖ N(0, I)) per dimension, (N, L), nats.

        Kingma & Welling 2014, appendix B: ½ (μ² + σ² − 1 − log σ²).
        """
        return self.kl_and_grad(mean, log_var)[0]

    def kl_and_grad(self, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`kl` and its derivatives by each row's mean and log-variance, which broadcast."""
        excess = torch.expm1(log_var)
        return 0.5 * (mean * mean + (excess - log_var)), mean, 0.5 * excess

    def log_prob(self, z: Tensor) -> Tensor:
        """(..., L) → (...), nats."""
        return -0.5 * (z**2 + LOG_2PI).sum(-1)

    def sample(self, n: int, latent_dim: int, generator: Generator | None = None) -> Tensor:
        """(n, L)"""
        return torch.randn(n, latent_dim, generator=generator)


class Mixture(nn.Module):
    """Σ_m w_m N(s c_m, v_m diag s²): the aggregated posterior q(z) in M parts.

    Args:
        log_weight: (..., M), log w.
        center: (..., M, L), in units of the scale.
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
    def side_by_side(cls, each: Sequence[Mixture]) -> Self:
        """Those of several members, of as many parts, along a first axis."""
        return cls(*(torch.stack([getattr(one, name) for one in each]) for name in cls.TENSORS))

    @property
    def parts(self) -> int:
        """M"""
        return self.log_weight.shape[-1]

    def cut(self, parts: int) -> Mixture:
        """The same, without members, in no fewer parts: some are cut into equal ones."""
        which = torch.arange(parts) % self.parts
        pieces = torch.bincount(which)[which]
        log_weight = self.log_weight[which] - pieces.log()
        return Mixture(log_weight, self.center[which], self.log_var[which], self.scale)

    @property
    def log_norm(self) -> Tensor:
        """(..., M): log w_m − ½ log det(2π v_m diag s²)."""
        latent_dim = self.center.shape[-1]
        volume = (
            latent_dim * (self.log_var + LOG_2PI) + 2 * self.scale.log().sum((-2, -1))[..., None]
        )
        return self.log_weight - 0.5 * volume

    def log_prob(self, z: Tensor) -> Tensor:
        """(..., N, K, L) → (..., N, K), nats."""
        return self.log_prob_at(self.square(z)).view(z.shape[:-1]).to(z.dtype)

    def square(self, z: Tensor) -> Tensor:
        """(..., N, K, L) → (..., N·K, M): ‖z/s − c_m‖², in float64 as it cancels."""
        rows = z.flatten(-3, -2).double() / self.scale
        center = self.center.double()
        square = (-2 * rows @ center.mT).add_((rows**2).sum(-1, keepdim=True))
        return square.add_((center**2).sum(-1).unsqueeze(-2)).clamp_min_(0)

    def log_prob_at(self, square: Tensor) -> Tensor:
        """(..., N·K, M) → (..., N·K), nats, at these squared distances."""
        norm, precision = self.log_norm.to(square), torch.exp(-self.log_var).to(square)
        weighted = torch.addcmul(norm.unsqueeze(-2), square, precision.unsqueeze(-2), value=-0.5)
        return log_sum_exp(weighted)

    def sample(self, n: int, latent_dim: int, generator: Generator | None = None) -> Tensor:
        """(n, L), of a mixture without members."""
        part = torch.multinomial(self.log_weight.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, latent_dim, generator=generator)
        spread = (0.5 * self.log_var[part]).exp().unsqueeze(-1)
        return self.scale * (self.center[part] + spread * noise)


def log_sum_exp(exponents: Tensor) -> Tensor:
    """(..., M) → (...): log Σ exp, about the largest."""
    most = exponents.amax(-1, keepdim=True)
    each = (exponents - most).clamp_min_(LEAST_EXPONENT).exp_()
    return each.sum(-1).log() + most.squeeze(-1)
