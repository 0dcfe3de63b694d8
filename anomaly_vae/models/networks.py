"""Define dense encoder and decoder networks.

Networks know widths, not columns or losses. With ``members`` above 1 a network is that many
networks side by side, computed as one batch. Its input is (E, N, …, inputs), or (N, inputs) that
every member receives. On small batches a step costs the overhead of its tensor operations rather
than their arithmetic, hence the effort to use few of them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class MemberLinear(nn.Module):
    """``members`` linear maps y = x Wᵀ + b, each initialised like `nn.Linear`.

    W is stored transposed in memory, in the order in which its gradient is computed.
    """

    def __init__(self, members: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        each = [nn.Linear(inputs, outputs, bias) for _ in range(members)]
        self.weight = nn.Parameter(torch.stack([one.weight.detach().mT for one in each]).mT)
        biases = torch.stack([one.bias.detach() for one in each]) if bias else None
        self.bias = nn.Parameter(biases) if biases is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Convert (E, N, inputs) into (E, N, outputs)."""
        assert self.bias is not None, "layers without bias use `add_product`"
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


def add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return y + x W, (N, outputs), or (E, N, outputs) for members."""
    return torch.addmm(y, x, weight) if y.ndim == 2 else torch.baddbmm(y, x, weight)


Layer = nn.Linear | MemberLinear


def linear(members: int, inputs: int, outputs: int, bias: bool = True) -> Layer:
    """Return one linear layer, or that of several members."""
    if members == 1:
        return nn.Linear(inputs, outputs, bias)
    return MemberLinear(members, inputs, outputs, bias)


class Activations(NamedTuple):
    """The intermediate results of an `MLP`, which `MLP.backward` needs."""

    pre_activations: list[Tensor]
    """Values of each hidden layer before SiLU."""
    inputs: list[Tensor]
    """Input of each hidden layer, followed by the output of the last one."""
    outputs: Tensor
    """(N, outputs) or (E, N, outputs): output of the network."""


class MLP(nn.Module):
    """A network with ``depth`` SiLU layers beside a linear path: y = W_out h + W_skip x + b.

    The linear path makes a linear model, and so PCA, a special case from the first step on. With
    ``depth`` 0 the network is that linear model.
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
        """Convert (..., inputs) into (..., outputs)."""
        y = self.activations(self._rows(x)).outputs
        return y.view(*x.shape[:-1], y.shape[-1]) if x.ndim > y.ndim else y

    def activations(self, x: Tensor) -> Activations:
        """Compute all layers for rows (N, inputs), or (E, N, inputs) with members."""
        pre_activations, inputs = [], [x]
        for layer in self.layers:
            pre_activations.append(layer(inputs[-1]))
            inputs.append(nn.functional.silu(pre_activations[-1]))
        y = self.skip(x)
        y = y if self.out is None else add_product(y, inputs[-1], self.out.weight.mT)
        return Activations(pre_activations, inputs, y)

    def backward(self, computed: Activations, grad: Tensor) -> Tensor:
        """Propagate derivatives back through the layers (Rumelhart et al. 1986).

        Overwrites the ``grad`` of every weight.

        Args:
            computed: result of `activations`.
            grad: derivatives of the loss by the outputs, (N, outputs) or (E, N, outputs).

        Returns:
            Derivatives by the pre-activations of the first layer, or by the outputs if there is no
            hidden layer, for `backward_inputs`.
        """
        _backward_weights(self.skip, computed.inputs[0], grad)
        if self.out is None:
            return grad
        _backward_weights(self.out, computed.inputs[-1], grad)
        above = self.out
        steps = zip(self.layers, computed.inputs[:-1], computed.pre_activations, strict=True)
        for layer, x, pre_activation in reversed(list(steps)):
            grad = torch.ops.aten.silu_backward(grad @ above.weight, pre_activation)
            _backward_weights(layer, x, grad)
            above = layer
        return grad

    def backward_inputs(self, grad: Tensor, first: Tensor) -> Tensor:
        """Return the derivatives by the inputs.

        Args:
            grad: derivatives of the loss by the outputs.
            first: result of `backward`.
        """
        if self.out is None:
            return grad @ self.skip.weight
        return add_product(first @ self.layers[0].weight, grad, self.skip.weight)

    @property
    def layers(self) -> list[Layer]:
        """Hidden layers, from the inputs on."""
        return list(self.hidden)  # type: ignore[arg-type]  # it holds nothing else

    def _rows(self, x: Tensor) -> Tensor:
        """Reshape inputs to (N, inputs), or (E, N, inputs) with members."""
        if self.members == 1:
            return x.flatten(0, -2)
        return x.expand(self.members, -1, -1) if x.ndim == 2 else x.flatten(1, -2)


def _backward_weights(layer: Layer, x: Tensor, grad: Tensor) -> None:
    """Overwrite the ``grad`` of a layer's weights.

    Args:
        layer: layer whose weights already have a ``grad``.
        x: (..., N, inputs), input of the layer.
        grad: (..., N, outputs), derivatives of the loss by the layer's output.
    """
    assert layer.weight.grad is not None, "`training.trainer.flatten_weights` sets it"
    product = torch.mm if x.ndim == 2 else torch.bmm
    product(x.mT, grad, out=layer.weight.grad.mT)
    if layer.bias is not None:
        torch.sum(grad, -2, out=layer.bias.grad)


class Encoder(nn.Module):
    """A dense encoder that returns mean and log-variance of a diagonal Gaussian posterior q(z|x).

    With ``shared_variance`` the log-variance is one learned vector for all rows.
    """

    LOG_VAR_BOUNDS = (-10.0, 6.0)
    """Bounds of the log-variance, which keep exponentials from overflowing."""
    INITIAL_LOG_VAR = -2.0
    """Initial value of a shared log-variance."""

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
        raw = nn.Parameter(torch.full(shape, self.INITIAL_LOG_VAR)) if shared_variance else None
        self.log_var = raw

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Convert features (..., N, inputs) into mean (..., N, L) and log-variance (..., N, L)."""
        out = self.network(features)
        if self.log_var is None:
            mean, log_var = out.chunk(2, dim=-1)
            return mean, log_var.clamp(*self.LOG_VAR_BOUNDS)
        return out, self.shared_log_var().expand_as(out)

    def shared_log_var(self) -> Tensor:
        """Return the log-variance shared by all rows, (1, L) or (E, 1, L)."""
        assert self.log_var is not None
        return self.log_var.clamp(*self.LOG_VAR_BOUNDS)

    def backward_log_var(self, log_var: Tensor, grad: Tensor) -> None:
        """Overwrite the ``grad`` of the shared log-variance; it is 0 outside `LOG_VAR_BOUNDS`.

        Args:
            log_var: result of `shared_log_var`.
            grad: (..., N, L), derivatives of the loss by the log-variance of each row.
        """
        assert self.log_var is not None
        inside = log_var == self.log_var
        torch.sum(grad * inside, -2, keepdim=True, out=self.log_var.grad)


class Decoder(nn.Module):
    """A dense decoder that maps latents to the parameters of the likelihood."""

    def __init__(
        self, latent_dim: int, outputs: int, hidden: int, depth: int, members: int = 1
    ) -> None:
        super().__init__()
        self.network = MLP(latent_dim, outputs, hidden, depth, members)

    def forward(self, z: Tensor) -> Tensor:
        """Convert latents (..., L) into likelihood parameters (..., outputs)."""
        parameters: Tensor = self.network(z)
        return parameters
