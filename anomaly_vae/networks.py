"""Encoder and decoder networks. They know widths, not columns or losses.

With ``members`` above 1 a network is so many of its kind side by side, computed in one batch: its
rows are (E, N, …, inputs), or (N, inputs) that go through all of them. Small batches take the time
of their calls, not of their sums: hence as few of them as there can be.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class Linears(nn.Module):
    """``members`` times y = x Wᵀ + b, initialised as `nn.Linear`.

    W lies in memory as Wᵀ, as its gradient does when it comes.
    """

    def __init__(self, members: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        each = [nn.Linear(inputs, outputs, bias) for _ in range(members)]
        self.weight = nn.Parameter(torch.stack([one.weight.detach().mT for one in each]).mT)
        biases = torch.stack([one.bias.detach() for one in each]) if bias else None
        self.bias = nn.Parameter(biases) if biases is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """(E, N, inputs) → (E, N, outputs)"""
        assert self.bias is not None, "without one, see `plus`"
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


def plus(y: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """y + x Wᵀ of a layer without bias."""
    product = torch.addmm if y.ndim == 2 else torch.baddbmm
    return product(y, x, layer.weight.mT)  # type: ignore[arg-type]  # either kind of layer has it


def linear(members: int, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    """One linear map, or several side by side."""
    if members == 1:
        return nn.Linear(inputs, outputs, bias)
    return Linears(members, inputs, outputs, bias)


class MLP(nn.Module):
    """``depth`` SiLU layers beside a linear path: y = W_out h + W_skip x + b.

    The linear path makes a linear model (and so PCA) a special case from the first step.
    ``depth`` 0 is that linear model alone.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: int, depth: int, members: int = 1
    ) -> None:
        super().__init__()
        self.members = members
        widths = [inputs] + [hidden] * depth
        self.hidden = nn.ModuleList(linear(members, a, b) for a, b in pairwise(widths))
        self.out = linear(members, hidden, outputs, bias=False) if depth else None
        self.skip = linear(members, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs)"""
        h = self._rows(x)
        y: Tensor = self.skip(h)
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        y = y if self.out is None else plus(y, self.out, h)
        return y.view(*x.shape[:-1], y.shape[-1]) if x.ndim > y.ndim else y

    def _rows(self, x: Tensor) -> Tensor:
        """(N, inputs), or (E, N, inputs)"""
        if self.members == 1:
            return x.flatten(0, -2)
        return x.expand(self.members, -1, -1) if x.ndim == 2 else x.flatten(1, -2)


class Encoder(nn.Module):
    """Features → mean and log-variance of a diagonal Gaussian posterior q(z|x).

    With ``shared_variance`` the log-variance is one learned vector for all rows.
    """

    LOG_VAR = (-10.0, 6.0)
    """Bounds of the log-variance, so that no exponential overflows."""
    INITIAL = -2.0
    """Of a shared log-variance."""

    def __init__(
        self,
        inputs: int,
        latent_dim: int,
        hidden: int,
        depth: int,
        members: int = 1,
        shared_variance: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        outputs = latent_dim if shared_variance else 2 * latent_dim
        self.network = MLP(inputs, outputs, hidden, depth, members)
        shape = (members, 1, latent_dim) if members > 1 else (1, latent_dim)
        raw = nn.Parameter(torch.full(shape, self.INITIAL)) if shared_variance else None
        self.log_var = raw

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(..., N, inputs) → mean (..., N, L), log-variance (..., N, L)"""
        out = self.network(features)
        if self.log_var is None:
            mean, log_var = out.chunk(2, dim=-1)
            return mean, log_var.clamp(*self.LOG_VAR)
        return out, self.log_var.clamp(*self.LOG_VAR).expand_as(out)


class Decoder(nn.Module):
    """Latents → the parameters of the likelihood."""

    def __init__(
        self, latent_dim: int, outputs: int, hidden: int, depth: int, members: int = 1
    ) -> None:
        super().__init__()
        self.network = MLP(latent_dim, outputs, hidden, depth, members)

    def forward(self, z: Tensor) -> Tensor:
        """(..., L) → (..., outputs)"""
        parameters: Tensor = self.network(z)
        return parameters
