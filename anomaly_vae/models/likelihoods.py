"""Define likelihoods p(x|z) of tables, column by column.

A likelihood module maps decoder outputs to a distribution. Every distribution has ``log_prob(x)``,
which keeps its last axis (one value per column, in nats), ``mean`` (the expected value or the most
probable level) and ``sample(generator)``. A missing value (NaN) has log-probability 0, so that it
does not contribute to the likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from anomaly_vae.data.encoding import Layout

LOG_2PI = math.log(2 * math.pi)
UNIFORM_SHARE = 1e-3
"""Weight of the uniform distribution in every categorical distribution. It makes unseen levels
improbable rather than impossible: −log p is at most log(levels / UNIFORM_SHARE)."""
LOGIT_BOUND = 15.0
"""Maximum absolute logit, imposed smoothly: probabilities stay above e⁻³⁰, and exponentials do not
overflow."""
LINEAR_RANGE = 10.0
"""Largest absolute standardised number that reaches the encoder unchanged; see `squash`."""


class Distribution(Protocol):
    """A distribution that a likelihood module returns."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) as (..., F), nats; x (..., F) broadcasts against the parameters."""

    @property
    def mean(self) -> Tensor:
        """(..., F): expected value, or the most probable level."""

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Draw once, (..., F)."""


def squash(x: Tensor) -> Tensor:
    """Compress numbers for the encoder: beyond ±10 they grow only logarithmically.

    An extreme value would otherwise dominate the latents, and raise the scores of other columns.
    The likelihood receives the original number.
    """
    excess = torch.relu(x.abs() - LINEAR_RANGE)
    return x - torch.sign(x) * (excess - torch.log1p(excess))


def bounded(logits: Tensor) -> Tensor:
    """Limit logits smoothly to ±LOGIT_BOUND."""
    return LOGIT_BOUND * torch.tanh(logits / LOGIT_BOUND)


def bounded_grad(logits: Tensor) -> Tensor:
    """Return the derivative of `bounded`."""
    return 1 - torch.tanh(logits / LOGIT_BOUND) ** 2


def floored(raw: Tensor, floor: float) -> Tensor:
    """Return the log of the variance floor + exp(raw), without overflow."""
    return F.softplus(raw - math.log(floor)) + math.log(floor)


def floored_grad(raw: Tensor, floor: float) -> Tensor:
    """Return the derivative of `floored`."""
    return torch.sigmoid(raw - math.log(floor))


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution N(mean, exp(log_var)): −½ ((x − μ)² / σ² + log σ² + log 2π)."""

    mean: Tensor
    log_var: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x); see `Distribution`."""
        return -0.5 * ((x - self.mean) ** 2 * torch.exp(-self.log_var) + self.log_var + LOG_2PI)

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(x) and its derivatives by mean and log-variance, each (..., F)."""
        away = x - self.mean
        by_mean = away * torch.exp(-self.log_var)
        squared = away * by_mean
        return -0.5 * (squared + self.log_var + LOG_2PI), by_mean, 0.5 * (squared - 1)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Draw once; see `Distribution`."""
        return self.mean + torch.exp(0.5 * self.log_var) * randn_like(self.mean, generator)


@dataclass(frozen=True)
class StudentT:
    """Student's t distribution with location ``mean``, squared scale exp(log_var) and ``df``.

    log Γ((ν+1)/2) − log Γ(ν/2) − ½ log(νπσ²) − (ν+1)/2 · log(1 + (x − μ)² / (νσ²))
    """

    mean: Tensor
    log_var: Tensor
    df: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x); see `Distribution`."""
        squared = (x - self.mean) ** 2 * torch.exp(-self.log_var)
        tail = 0.5 * (self.df + 1) * torch.log1p(squared / self.df)
        return self.log_norm(self.df) - 0.5 * self.log_var - tail

    @staticmethod
    def log_norm(df: Tensor) -> Tensor:
        """Return the log of the normalising constant at unit scale."""
        return torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(df * math.pi)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Draw once, as a normal over √(gamma(ν/2) / (ν/2)) (scale mixture); see `Distribution`."""
        shape = (self.df / 2).expand_as(self.mean).contiguous()
        gamma = torch._standard_gamma(shape, generator=generator) / shape
        noise = randn_like(self.mean, generator) / torch.sqrt(gamma)
        return self.mean + torch.exp(0.5 * self.log_var) * noise


@dataclass(frozen=True)
class Bernoulli:
    """The Bernoulli distribution P(x = 1) = σ(logit): x·logit − softplus(logit)."""

    logits: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x); see `Distribution`."""
        return x * self.logits - F.softplus(self.logits)

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x) and its derivative by the logit, each (..., F)."""
        return self.log_prob(x), x - torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        """(..., F): probability of one."""
        return torch.sigmoid(self.logits)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Draw once; see `Distribution`."""
        return torch.bernoulli(self.mean, generator=generator)


@dataclass(frozen=True)
class Categorical:
    """A categorical distribution with probabilities (1 − ε) softmax(logits) + ε/K.

    Each column has its own number of levels K.

    Args:
        logits: (..., C, Kmax).
        present: (C, Kmax), 1 for the levels that a column has, else 0.
        shares: (C, Kmax), probability of one value given its level; None if all are 1.
    """

    logits: Tensor
    present: Tensor
    shares: Tensor | None = None

    @property
    def softmax(self) -> Tensor:
        """(..., C, Kmax): softmax over the levels that a column has."""
        weights = torch.exp(self.logits) * self.present
        return weights / weights.sum(-1, keepdim=True)

    @property
    def probs(self) -> Tensor:
        """(..., C, Kmax): probabilities of the levels."""
        uniform = self.present / self.present.sum(-1, keepdim=True)
        return (1 - UNIFORM_SHARE) * self.softmax + UNIFORM_SHARE * uniform

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of level codes x; see `Distribution`."""
        chosen = self._one_hot(x)
        return torch.log(self._share(chosen, (self.probs * chosen).sum(-1)))

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x) (..., C) and its derivatives by the logits (..., C, Kmax)."""
        chosen, softmax = self._one_hot(x), self.softmax
        share = (1 - UNIFORM_SHARE) * (softmax * chosen).sum(-1)
        prob = share + UNIFORM_SHARE / self.present.sum(-1)
        by_logits = (share / prob).unsqueeze(-1) * (chosen - softmax)
        return torch.log(self._share(chosen, prob)), by_logits

    def _share(self, chosen: Tensor, prob: Tensor) -> Tensor:
        """Multiply probabilities (..., C) of levels by the shares of single values."""
        return prob if self.shares is None else prob * (self.shares * chosen).sum(-1)

    def _one_hot(self, x: Tensor) -> Tensor:
        """Convert level codes (..., C) into one-hot vectors (..., C, Kmax)."""
        levels = torch.arange(self.present.shape[-1], device=x.device)
        return (x.unsqueeze(-1) == levels).to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """(..., C): code of the most probable level."""
        return self.probs.argmax(-1).to(self.logits.dtype)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Draw once; see `Distribution`."""
        flat = self.probs.flatten(0, -2)
        draws = torch.multinomial(flat, 1, generator=generator)
        return draws.view(self.logits.shape[:-1]).to(self.logits.dtype)


@dataclass(frozen=True)
class Joint:
    """The joint distribution of columns that are independent given z.

    Args:
        parts: pairs (number of columns, their distribution), in the order of the columns.
    """

    parts: tuple[tuple[int, Distribution], ...]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) as (..., F), nats; 0 where ``x`` is NaN."""
        pieces = x.nan_to_num(0.0).split([width for width, _ in self.parts], dim=-1)
        nats = [part.log_prob(piece) for (_, part), piece in zip(self.parts, pieces, strict=True)]
        every = torch.cat(nats, dim=-1) if len(nats) > 1 else nats[0]
        return every.masked_fill(torch.isnan(x), 0.0)

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_prob` and its derivatives by all parameters; 0 where x is NaN."""
        widths, missing = [width for width, _ in self.parts], torch.isnan(x)
        pieces = x.nan_to_num(0.0).split(widths, -1), missing.split(widths, -1)
        nats, grads = list[Tensor](), list[Tensor]()
        for (_, part), piece, gap in zip(self.parts, *pieces, strict=True):
            known: Any = part  # never Student's t, which has no closed-form gradient here
            log_prob, *by_parameter = known.log_prob_and_grad(piece)
            nats.append(log_prob)
            grads.extend(_zero_missing(gap, grad) for grad in by_parameter)
        return torch.cat(nats, -1).masked_fill_(missing, 0.0), torch.cat(grads, -1)

    @property
    def mean(self) -> Tensor:
        """(..., F): expected value, or the most probable level."""
        return torch.cat([part.mean for _, part in self.parts], dim=-1)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Draw once, (..., F)."""
        return torch.cat([part.sample(generator) for _, part in self.parts], dim=-1)


def _zero_missing(missing: Tensor, grad: Tensor) -> Tensor:
    """Set derivatives to 0 where a value is missing; join an axis of levels to the columns.

    Args:
        missing: (..., F).
        grad: (..., F) or (..., F, K); the latter is flattened to (..., F · K).
    """
    if grad.ndim == missing.ndim:
        return grad.masked_fill_(missing, 0.0)
    return grad.masked_fill_(missing.unsqueeze(-1), 0.0).flatten(-2)


class TabularLikelihood(nn.Module):
    """The likelihood of a table: it maps decoder outputs to the `Joint` of the columns of a layout.

    The outputs are, in order: numeric means, numeric raw log-variances, binary logits, categorical
    logits (each column padded to the largest number of levels).
    """

    present: Tensor
    shares: Tensor | None
    variance_factor: Tensor
    """Factor of the variances of numeric columns, estimated from held-out rows after the fit."""
    variance_limit: Tensor
    """Maximum variance of a numeric column, in effect after the fit."""

    def __init__(
        self, layout: Layout, family: str, variance_floor: float, members: int = 1
    ) -> None:
        super().__init__()
        self.layout, self.variance_floor = layout, variance_floor
        n = layout.n_numeric
        shape = (members, 1, 1, n) if members > 1 else (n,)
        self.raw_df = nn.Parameter(torch.full(shape, 2.0)) if family == "student_t" else None
        self.register_buffer("variance_factor", torch.ones(shape))
        self.register_buffer("variance_limit", torch.full(shape, torch.inf))
        present = torch.zeros(layout.n_categorical, layout.max_levels)
        for row, count in enumerate(layout.n_levels):
            present[row, :count] = 1.0
        self.register_buffer("present", present, persistent=False)
        self.register_buffer("shares", _shares(layout), persistent=False)
        self.widths = [n, n, layout.n_binary, layout.n_categorical * layout.max_levels]
        self.n_outputs = sum(self.widths)

    def df(self) -> Tensor:
        """Return the degrees of freedom (..., n_numeric), above 2 so that the variance exists."""
        assert self.raw_df is not None
        return 2 + F.softplus(self.raw_df)

    def forward(self, outputs: Tensor) -> Joint:
        """Convert decoder outputs (..., n_outputs) into a `Joint`."""
        return Joint(tuple(self._parts(outputs)))

    def backward(self, outputs: Tensor, grad: Tensor) -> Tensor:
        """Convert derivatives by parameters of the distributions into derivatives by the outputs.

        ``grad`` is changed in place. The conversion holds in training mode only, since fixed
        variances have other derivatives.
        """
        assert self.training, "fixed variances have other derivatives"
        n = self.layout.n_numeric
        if n:
            raw = outputs[..., n : 2 * n]
            grad[..., n : 2 * n].mul_(floored_grad(raw, self.variance_floor))
        if n < self.layout.n_columns:
            grad[..., 2 * n :].mul_(bounded_grad(outputs[..., 2 * n :]))
        return grad

    def _parts(self, outputs: Tensor) -> Iterator[tuple[int, Distribution]]:
        """Yield the distribution of each kind of column in the layout."""
        pieces = iter(outputs.split([width for width in self.widths if width], dim=-1))
        layout = self.layout
        if layout.n_numeric:
            yield layout.n_numeric, self._numeric(next(pieces), self._log_var(next(pieces)))
        if layout.n_binary:
            yield layout.n_binary, Bernoulli(bounded(next(pieces)))
        if layout.n_categorical:
            levels = next(pieces).unflatten(-1, self.present.shape)
            yield layout.n_categorical, Categorical(bounded(levels), self.present, self.shares)

    def _log_var(self, raw: Tensor) -> Tensor:
        """Return the learned log-variance, after the fit with its factor and limit applied."""
        log_var = floored(raw, self.variance_floor)
        if self.training:
            return log_var
        return torch.minimum(log_var + self.variance_factor.log(), self.variance_limit.log())

    def _numeric(self, mean: Tensor, log_var: Tensor) -> Distribution:
        if self.raw_df is None:
            return Gaussian(mean, log_var)
        return StudentT(mean, log_var, self.df())


def _shares(layout: Layout) -> Tensor | None:
    """Return the shares (C, Kmax) of single values in their levels; None if all are 1."""
    if not layout.log_shares:
        return None
    shares = torch.ones(layout.n_categorical, layout.max_levels)
    for row, logs in zip(shares, layout.log_shares, strict=True):
        row[: len(logs)] = torch.tensor(logs).exp()
    return shares


class TabularFeatures(nn.Module):
    """The encoder's input for encoded rows: values, one-hot levels and a mask of missing values.

    A missing value is 0 with a mask of 1; an unseen level has neither a one-hot bit nor a mask.
    """

    levels: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer(
            "levels", torch.arange(1.0, max(layout.max_levels, 1)), persistent=False
        )
        self.n_outputs = layout.n_columns + layout.n_numeric + layout.n_binary
        self.n_outputs += layout.n_categorical * (max(layout.max_levels, 1) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convert rows (N, F) with NaN into features (N, n_outputs)."""
        missing = torch.isnan(x)
        numeric, binary, codes = self.layout.split(torch.where(missing, 0.0, x))
        pieces = [squash(numeric), binary, missing.to(x.dtype)]
        if self.layout.n_categorical:
            one_hot = (codes.unsqueeze(-1) == self.levels).to(x.dtype).flatten(-2)
            pieces.insert(2, one_hot)
        return torch.cat(pieces, dim=-1)


def randn_like(like: Tensor, generator: Generator | None) -> Tensor:
    """Draw standard normal noise of the same shape, type and device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
