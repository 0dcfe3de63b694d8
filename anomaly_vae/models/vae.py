"""The variational autoencoder, whatever the modality.

Data x (N, F), latents z (N, K, L) with K draws per row. Randomness comes in as ``noise``:
(K, L) shared by all rows, or (N, K, L). A model of E members has one more axis before all of
these, but for data and noise that all of them share.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from anomaly_vae.models.likelihoods import LOG_2PI, Distribution
from anomaly_vae.models.priors import Mixture, StandardNormal


class Terms(NamedTuple):
    """The two terms of a bound on log p(x): bound = log_prob.sum(-1) − kl.sum(-1)."""

    log_prob: Tensor
    """(N, F): E_q[log p(x_f|z)] per column, nats"""
    kl: Tensor
    """(N, L) or (N, 1): divergence of the posterior from the prior, nats"""

    @property
    def bound(self) -> Tensor:
        """(N,), nats."""
        return self.log_prob.sum(-1) - self.kl.sum(-1)

    def objective(self, beta: float) -> Tensor:
        """(N,), nats: the bound with its KL term weighted (Higgins et al. 2017)."""
        return self.log_prob.sum(-1) - beta * self.kl.sum(-1)


class Inference(NamedTuple):
    """What an encoder makes of N rows, with K draws each."""

    mean: Tensor
    """(N, K or 1, L): mean of q(z|x), given the draws of the levels above where there are any"""
    log_var: Tensor
    """the same shape: its log-variance"""
    z: Tensor
    """(N, K, L)"""
    outputs: Tensor
    """(N, K, n_outputs): what the decoder makes of z"""


class VAE(nn.Module):
    """p(x, z) = p(z) p(x|z) with posterior q(z|x) (Kingma & Welling 2014)."""

    reach: Tensor | None
    """(1,), nats: the most that a guard, the last member, moves a score; absent: there is none"""

    def __init__(
        self,
        features: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        prior: StandardNormal,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.members = members
        self.features, self.encoder, self.decoder = features, encoder, decoder
        self.likelihood, self.prior = likelihood, prior
        self.aggregated: Mixture | None = None
        """the aggregated posterior, which takes the place of the prior once the model is fitted"""
        self.register_buffer("reach", None)
        self.contamination: nn.Module | None = None
        """(N, F) → log-odds (N, pixels) that a pixel does not belong, of models that tell"""

    @property
    def latent_dim(self) -> int:
        """L"""
        return int(self.encoder.latent_dim)  # type: ignore[arg-type]  # every encoder has it

    def over_members(self, terms: Terms) -> Terms:
        """Those of E members → their mean; of a guard, no more than moves a bound by `reach`.

        With m the mean of the others, the guard's g has the share λ = min(1/E, reach / |g − m|).
        """
        if self.members == 1:
            return terms
        if self.reach is None:
            return Terms(*(part.mean(0) for part in terms))
        others = Terms(*(part[:-1].mean(0) for part in terms))
        gap = Terms(*(part[-1] - mean for part, mean in zip(terms, others, strict=True)))
        share = (self.reach / gap.bound.abs()).clamp_max(1 / self.members).unsqueeze(-1)
        return Terms(*(mean + share * part for mean, part in zip(others, gap, strict=True)))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (N, L)."""
        mean, log_var = self.encoder(self.features(x))
        return mean, log_var

    def infer(self, x: Tensor, noise: Tensor) -> Inference:
        """q(z|x), draws from it and what the decoder makes of them."""
        return self.infer_from(self.features(x), noise)

    def infer_from(self, features: Tensor, noise: Tensor) -> Inference:
        """The same of what the encoder sees of x."""
        mean, log_var = (part.unsqueeze(-2) for part in self.encoder(features))
        z = reparameterise(mean, log_var, noise)
        return Inference(mean, log_var, z, self.decoder(z))

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for z (..., L)."""
        distribution: Distribution = self.likelihood(self.decoder(z))
        return distribution

    def elbo(self, x: Tensor, noise: Tensor) -> Terms:
        """The evidence lower bound with its KL term in closed form.

        Kingma & Welling 2014, eq. 10: E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)).
        """
        return self.terms(self.infer(x, noise), x)

    def terms(self, found: Inference, x: Tensor) -> Terms:
        """The bound of ``x`` under what was inferred, from the same x or from a corrupted one.

        The latter is the denoising criterion of Im et al. 2017, eq. 6.
        """
        log_prob = self.likelihood(found.outputs).log_prob(x.unsqueeze(-2))
        return Terms(averaged(log_prob), averaged(self.prior.kl(found.mean, found.log_var)))

    def aggregated_elbo(self, x: Tensor, noise: Tensor) -> Terms:
        """The bound with the aggregated posterior as prior (Tomczak & Welling 2018, eq. 9).

        Its rate, log q(z|x) − log p(z), is taken at the draws and may be negative. Without an
        aggregated posterior this is `elbo`.
        """
        if self.aggregated is None:
            return self.elbo(x, noise)
        found = self.infer(x, noise)
        log_prob = self.likelihood(found.outputs).log_prob(x.unsqueeze(-2))
        rate = posterior_log_prob(found, noise) - self.aggregated.log_prob(found.z)
        return Terms(log_prob.mean(-2), rate.mean(-1, keepdim=True))

    def importance_weighted(self, x: Tensor, noise: Tensor) -> Terms:
        """The K-draw importance-weighted bound, in two terms that add up to it.

        Burda et al. 2016, eq. 8: log 1/K Σ_k w_k, w_k = p(x, z_k) / q(z_k|x). The first term is
        E[log p(x_f|z)] under the weights normalised, which are a sharper posterior
        (Cremer et al. 2017); the second is what remains.
        """
        found = self.infer(x, noise)
        log_prob = self.likelihood(found.outputs).log_prob(x.unsqueeze(-2))
        prior = self.prior if self.aggregated is None else self.aggregated
        log_q = posterior_log_prob(found, noise)
        log_w = log_prob.sum(-1) + prior.log_prob(found.z) - log_q
        bound = torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])
        weighted = (torch.softmax(log_w, -1).unsqueeze(-1) * log_prob).sum(-2)
        return Terms(weighted, (weighted.sum(-1) - bound).unsqueeze(-1))

    def reconstruction(self, x: Tensor) -> Terms:
        """log p(x|z) at the posterior mean; no KL term."""
        found = self.infer(x, x.new_zeros(1, self.latent_dim))
        log_prob = self.likelihood(found.outputs).log_prob(x.unsqueeze(-2)).squeeze(-2)
        return Terms(log_prob, torch.zeros_like(log_prob[..., :1]))

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """(n, F): rows from the prior, or the aggregated posterior, through the decoder."""
        prior = self.prior if self.aggregated is None else self.aggregated
        return self.decode(prior.sample(n, self.latent_dim, generator)).sample(generator)


def reparameterise(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z = μ + σ·noise: (N, 1, L), (K, L) or (N, K, L) → (N, K, L). Kingma & Welling 2014, 2.4."""
    return mean + torch.exp(0.5 * log_var) * noise


def averaged(x: Tensor) -> Tensor:
    """(N, K, ...) → (N, ...): the mean over draws, of which there mostly is one."""
    return x.squeeze(-2) if x.shape[-2] == 1 else x.mean(-2)


def posterior_log_prob(found: Inference, noise: Tensor) -> Tensor:
    """log q(z|x) at the draws, (N, K), nats."""
    return -0.5 * (noise**2 + found.log_var + LOG_2PI).sum(-1)


def frozen_noise(draws: int, latent_dim: int, seed: int) -> Tensor:
    """Quasi-random standard normal draws (K, L) that a score is evaluated with.

    One draw is the origin, the one-point Gauss–Hermite rule. More are scrambled Sobol' points in
    antithetic pairs, beside the origin if their number is odd, so that their mean is zero and
    terms linear in the noise cancel.
    """
    origin = torch.zeros(draws % 2, latent_dim)
    if draws == 1:
        return origin
    engine = torch.quasirandom.SobolEngine(latent_dim, scramble=True, seed=seed)
    uniform = engine.draw(draws // 2).clamp(1e-6, 1 - 1e-6)
    half = torch.special.ndtri(uniform.double()).float()
    return torch.cat([origin, half, -half])
