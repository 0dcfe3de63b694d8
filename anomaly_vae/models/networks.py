"""Encoder and decoder networks. They know widths, not columns or losses.

With ``members`` above 1 a network is so many of its kind side by side, computed in one batch: its
rows are (E, N, …, inputs), or (N, inputs) that go through all of them. Small batches take the time
of their calls, not of their sums: hence as few of them as there can be.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

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


def plus(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y + x W: (N, outputs), or so for each member."""
    return torch.addmm(y, x, weight) if y.ndim == 2 else torch.baddbmm(y, x, weight)


Layer = nn.Linear | Linears


def linear(members: int, inputs: int, outputs: int, bias: bool = True) -> Layer:
    """One linear map, or several side by side."""
    if members == 1:
        return nn.Linear(inputs, outputs, bias)
    return Linears(members, inputs, outputs, bias)


class Activations(NamedTuple):
    """What an `MLP` computed on its way."""

    pre_activations: list[Tensor]
    """of each hidden layer, before SiLU"""
    inputs: list[Tensor]
    """of each hidden layer, and what the last one passed on"""
    outputs: Tensor


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
        y = self.activations(self._rows(x)).outputs
        return y.view(*x.shape[:-1], y.shape[-1]) if x.ndim > y.ndim else y

    def activations(self, x: Tensor) -> Activations:
        """Of rows (N, inputs), or (E, N, inputs) of members."""
        pre_activations, inputs = [], [x]
        for layer in self.layers:
            pre_activations.append(layer(inputs[-1]))
            inputs.append(nn.functional.silu(pre_activations[-1]))
        y = self.skip(x)
        y = y if self.out is None else plus(y, inputs[-1], self.out.weight.mT)
        return Activations(pre_activations, inputs, y)

    def backward(self, found: Activations, grad: Tensor) -> Tensor:
        """Back-propagation (Rumelhart et al. 1986), from a loss's derivatives by the outputs.

        Leaves those by the weights in their ``grad``, whatever it held. Returns those by the first
        layer's pre-activations, or by the outputs where it is none, for `backward_inputs`.
        """
        _backward_weights(self.skip, found.inputs[0], grad)
        if self.out is None:
            return grad
        _backward_weights(self.out, found.inputs[-1], grad)
        above = self.out
        steps = zip(self.layers, found.inputs[:-1], found.pre_activations, strict=True)
        for layer, x, pre_activation in reversed(list(steps)):
            grad = torch.ops.aten.silu_backward(grad @ above.weight, pre_activation)
            _backward_weights(layer, x, grad)
            above = layer
        return grad

    def backward_inputs(self, grad: Tensor, first: Tensor) -> Tensor:
        """The derivatives by the inputs, of those by the outputs and what `backward` returned."""
        if self.out is None:
            return grad @ self.skip.weight
        return plus(first @ self.layers[0].weight, grad, self.skip.weight)

    @property
    def layers(self) -> list[Layer]:
        """The hidden ones, from the inputs on."""
        return list(self.hidden)  # type: ignore[arg-type]  # it was given no others

    def _rows(self, x: Tensor) -> Tensor:
        """(N, inputs), or (E, N, inputs)"""
        if self.members == 1:
            return x.flatten(0, -2)
        return x.expand(self.members, -1, -1) if x.ndim == 2 else x.flatten(1, -2)


def _backward_weights(layer: Layer, x: Tensor, grad: Tensor) -> None:
    """Leave those by a layer's weights, of its inputs (..., N, inputs) and those by its outputs."""
    assert layer.weight.grad is not None, "see `training.in_one`"
    product = torch.mm if x.ndim == 2 else torch.bmm
    product(x.mT, grad, out=layer.weight.grad.mT)
    if layer.bias is not None:
        torch.sum(grad, -2, out=layer.bias.grad)


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
        return out, self.shared_log_var().expand_as(out)

    def shared_log_var(self) -> Tensor:
        """(1, L) or (E, 1, L), nats: that of all rows."""
        assert self.log_var is not None
        return self.log_var.clamp(*self.LOG_VAR)

    def backward_log_var(self, log_var: Tensor, grad: Tensor) -> None:
        """Leave those by the parameter in its ``grad``, of those by each row's ``log_var``.

        That is what `shared_log_var` returned; beyond its bounds the parameter changes nothing.
        """
        assert self.log_var is not None
        inside = log_var == self.log_var
        torch.sum(grad * inside, -2, keepdim=True, out=self.log_var.grad)


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
