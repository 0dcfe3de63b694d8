"""Encoder and decoder networks. They know widths, not columns or losses."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """``depth`` SiLU layers beside a linear path: y = W_out h + W_skip x + b.

    The linear path makes a linear model (and so PCA) a special case from the first step.
    ``depth`` 0 is that linear model alone.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * depth
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(hidden, outputs, bias=False) if depth else None
        self.skip = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs)"""
        y: Tensor = self.skip(x)
        for layer in self.hidden:
            x = nn.functional.silu(layer(x))
        return y if self.out is None else y + self.out(x)


class Encoder(nn.Module):
    """Features → mean and log-variance of a diagonal Gaussian posterior q(z|x)."""

    LOG_VAR = (-10.0, 6.0)
    """Bounds of the log-variance, so that no exponential overflows."""

    def __init__(self, inputs: int, latent_dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.network = MLP(inputs, 2 * latent_dim, hidden, depth)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, inputs) → mean (N, L), log-variance (N, L)"""
        mean, log_var = self.network(features).chunk(2, dim=-1)
        return mean, torch.clamp(log_var, *self.LOG_VAR)


class Decoder(nn.Module):
    """Latents → the parameters of the likelihood."""

    def __init__(self, latent_dim: int, outputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.network = MLP(latent_dim, outputs, hidden, depth)

    def forward(self, z: Tensor) -> Tensor:
        """(..., L) → (..., outputs)"""
        parameters: Tensor = self.network(z)
        return parameters
