"""Priors p(z) of the latent variables."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from anomaly_vae.likelihoods import LOG_2PI


class StandardNormal(nn.Module):
    """N(0, I) over L dimensions."""

    def kl(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """KL(N(mean, exp log_var) ‖ N(0, I)) per dimension, (N, L), nats.

        Kingma & Welling 2014, appendix B: ½ (μ² + σ² − 1 − log σ²).
        """
        return 0.5 * (mean**2 + torch.exp(log_var) - 1 - log_var)

    def log_prob(self, z: Tensor) -> Tensor:
        """(..., L) → (...), nats."""
        return -0.5 * (z**2 + LOG_2PI).sum(-1)

    def sample(self, n: int, latent_dim: int, generator: Generator | None = None) -> Tensor:
        """(n, L)"""
        return torch.randn(n, latent_dim, generator=generator)
