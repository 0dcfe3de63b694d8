"""Define the variational autoencoder for any kind of data.

Data are x (N, F), latents z (N, K, L) with K draws per row. Randomness is passed in as ``noise``:
(K, L) shared by all rows, or (N, K, L). A model of E members adds a leading axis to all of these,
except to data and noise that all members share.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from anomaly_vae.models.exemplars import Exemplars
from anomaly_vae.models.likelihoods import LOG_2PI, Distribution
from anomaly_vae.models.priors import LatentGaussian, Mixture, StandardNormal


class Terms(NamedTuple):
    """The two terms of a bound on log p(x): bound = log_prob.sum(-1) − kl.sum(-1)."""

    log_prob: Tensor
    """(N, F): E_q[log p(x_f|z)] per column, nats."""
    kl: Tensor
    """(N, L) or (N, 1): divergence of the posterior from the prior, nats."""

    @property
    def bound(self) -> Tensor:
        """(N,): the bound, nats."""
        return self.log_prob.sum(-1) - self.kl.sum(-1)

    def objective(self, beta: float) -> Tensor:
        """Return the bound with a weighted KL term (Higgins et al. 2017), (N,), nats."""
        return self.log_prob.sum(-1) - beta * self.kl.sum(-1)


class Inference(NamedTuple):
    """The posterior of N rows, K draws from it and their decodings."""

    mean: Tensor
    """(N, K or 1, L): mean of q(z|x); in hierarchical models given the draws of coarser levels."""
    log_var: Tensor
    """(N, K or 1, L): log-variance of q(z|x)."""
    z: Tensor
    """(N, K, L): draws from q(z|x)."""
    outputs: Tensor
    """(N, K, n_outputs): decoder outputs for z."""


class VAE(nn.Module):
    """A variational autoencoder: p(x, z) = p(z) p(x|z) with posterior q(z|x).

    See Kingma & Welling 2014. `build` returns one for a configuration and a layout.

    Args:
        features: module that converts encoded rows (N, F) into the encoder's input.
        encoder: module that returns mean and log-variance of q(z|x); it has a ``latent_dim``.
        decoder: module that maps latents (..., L) to decoder outputs.
        likelihood: module that maps decoder outputs to a `Distribution` over rows.
        prior: prior p(z).
        members: number E of parallel networks; if above 1, results have a leading axis E.

    Example:
        >>> import torch
        >>> from anomaly_vae.config.model import ModelConfig
        >>> from anomaly_vae.data.encoding import Layout
        >>> from anomaly_vae.models import build
        >>> config = ModelConfig(members=1, latent_dim=2, hidden_dim=8)
        >>> model = build(config, Layout(3, 1, (4,))).eval()
        >>> x = torch.tensor([[0.1, -0.3, 1.2, 1.0, 2.0], [0.0, torch.nan, 0.5, 0.0, 3.0]])
        >>> with torch.no_grad():
        ...     terms = model.elbo(x, noise=torch.zeros(1, model.latent_dim))
        >>> terms.log_prob.shape, terms.kl.shape, terms.bound.shape
        (torch.Size([2, 5]), torch.Size([2, 2]), torch.Size([2]))
        >>> terms.log_prob[1, 1].item()  # a missing value does not contribute
        0.0
        >>> model.sample(4, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 5])
    """

    reach: Tensor | None
    """(1,): maximum change of a score by the guard (the last member), in nats; None without a
    guard."""

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
        """Aggregated posterior, which replaces the prior after the fit; None keeps the prior."""
        self.exemplars: Exemplars | None = None
        """Exemplar member, which is added after the fit; None for no such member."""
        self.drawing: LatentGaussian | None = None
        """Distribution that images are sampled from; None to sample from the prior."""
        self.register_buffer("reach", None)
        self.contamination: nn.Module | None = None
        """Localization head that maps (N, F) to log-odds (N, pixels) that a pixel is anomalous.

        The attribute is named for the names of its tensors in stored weights.
        """
        self.patches: nn.Module | None = None
        """Module that converts images (N, F) into the rows (N, P, K) that the model is of, one for
        each patch; None if it is a model of the images, or of a table."""

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions L."""
        return int(self.encoder.latent_dim)  # type: ignore[arg-type]  # all encoders have it

    def average_members(self, terms: Terms) -> Terms:
        """Average the terms of E members; a guard changes the bound by at most `reach`.

        With m the mean of the other members and g the terms of the guard, the result is m + λ (g −
        m) with λ = min(1/E, reach / |g − m|), where |g − m| is the difference of the bounds.
        """
        if self.members == 1:
            return terms
        if self.reach is None:
            return Terms(*(part.mean(0) for part in terms))
        others = Terms(*(part[:-1].mean(0) for part in terms))
        gap = Terms(*(part[-1] - mean for part, mean in zip(terms, others, strict=True)))
        share = (self.reach / gap.bound.abs()).clamp_max(1 / self.members).unsqueeze(-1)
        return Terms(*(mean + share * part for mean, part in zip(others, gap, strict=True)))

    def add_exemplars(self, terms: Terms, x: Tensor) -> Terms:
        """Average the terms of rows x (N, F) with those of the exemplars, by their share.

        Args:
            terms: result of `average_members`.
            x: (N, F), rows.
        """
        assert self.exemplars is not None
        filled = x if self.exemplars.metric is None else self.fill(x)
        log_prob, kl = self.exemplars(self.exemplars.coordinates(x, filled))
        share = self.exemplars.share
        pairs = (terms.log_prob, log_prob), (terms.kl.sum(-1, keepdim=True), kl)
        return Terms(*((1 - share) * networks + share * own for networks, own in pairs))

    def fill(self, x: Tensor) -> Tensor:
        """Replace missing values of rows (N, F) by what the first member expects."""
        missing = torch.isnan(x)
        if not missing.any():
            return x
        mean = self.likelihood(self.infer(x, x.new_zeros(1, self.latent_dim)).outputs).mean
        return torch.where(missing, mean.view(self.members, *x.shape)[0], x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z|x), each (N, L)."""
        mean, log_var = self.encoder(self.features(x))
        return mean, log_var

    def infer(self, x: Tensor, noise: Tensor) -> Inference:
        """Return q(z|x) of rows x (N, F), draws from it and their decodings."""
        return self.infer_from(self.features(x), noise)

    def infer_from(self, features: Tensor, noise: Tensor) -> Inference:
        """Return the result of `infer`, given the encoder's input instead of rows."""
        mean, log_var = (part.unsqueeze(-2) for part in self.encoder(features))
        z = reparameterise(mean, log_var, noise)
        return Inference(mean, log_var, z, self.decoder(z))

    def decode(self, z: Tensor) -> Distribution:
        """Return p(x|z) for latents z (..., L)."""
        distribution: Distribution = self.likelihood(self.decoder(z))
        return distribution

    def elbo(self, x: Tensor, noise: Tensor) -> Terms:
        """Return the evidence lower bound with its KL term in closed form.

        Kingma & Welling 2014, eq. 10: E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)).
        """
        return self.terms(self.infer(x, noise), x)

    def terms(self, inference: Inference, x: Tensor) -> Terms:
        """Return the terms of the bound for rows ``x`` under an inference.

        The inference may come from a corrupted version of x; the bound is then the denoising
        criterion of Im et al. 2017, eq. 6.
        """
        log_prob = self.likelihood(inference.outputs).log_prob(x.unsqueeze(-2))
        return Terms(
            mean_over_draws(log_prob),
            mean_over_draws(self.prior.kl(inference.mean, inference.log_var)),
        )

    def aggregated_elbo(self, x: Tensor, noise: Tensor) -> Terms:
        """Return the bound with the aggregated posterior as prior (Tomczak & Welling 2018, eq. 9).

        Its KL term, log q(z|x) − log p(z), is evaluated at the draws and may be negative. Without
        an aggregated posterior the result is that of `elbo`.
        """
        if self.aggregated is None:
            return self.elbo(x, noise)
        inference = self.infer(x, noise)
        log_prob = self.likelihood(inference.outputs).log_prob(x.unsqueeze(-2))
        rate = posterior_log_prob(inference, noise) - self.aggregated.log_prob(inference.z)
        return Terms(log_prob.mean(-2), rate.mean(-1, keepdim=True))

    def importance_weighted(self, x: Tensor, noise: Tensor) -> Terms:
        """Return the importance-weighted bound of K draws, split into two terms.

        Burda et al. 2016, eq. 8: log 1/K Σ_k w_k, w_k = p(x, z_k) / q(z_k|x). The first term is
        E[log p(x_f|z)] under the normalised weights, which define a sharper posterior (Cremer et
        al. 2017); the second is the first minus the bound.
        """
        inference = self.infer(x, noise)
        log_prob = self.likelihood(inference.outputs).log_prob(x.unsqueeze(-2))
        prior = self.prior if self.aggregated is None else self.aggregated
        log_q = posterior_log_prob(inference, noise)
        log_w = log_prob.sum(-1) + prior.log_prob(inference.z) - log_q
        bound = torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])
        weighted = (torch.softmax(log_w, -1).unsqueeze(-1) * log_prob).sum(-2)
        return Terms(weighted, (weighted.sum(-1) - bound).unsqueeze(-1))

    def reconstruction(self, x: Tensor) -> Terms:
        """Return log p(x|z) at the posterior mean, with a KL term of 0."""
        inference = self.infer(x, x.new_zeros(1, self.latent_dim))
        log_prob = self.likelihood(inference.outputs).log_prob(x.unsqueeze(-2)).squeeze(-2)
        return Terms(log_prob, torch.zeros_like(log_prob[..., :1]))

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw rows (n, F) by decoding latents from the aggregated posterior, or else the prior."""
        prior = self.prior if self.aggregated is None else self.aggregated
        return self.decode(prior.sample(n, self.latent_dim, generator)).sample(generator)


def reparameterise(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """Return z = μ + σ·noise (Kingma & Welling 2014, sec. 2.4).

    Args:
        mean: (N, 1, L).
        log_var: (N, 1, L).
        noise: (K, L) or (N, K, L).

    Returns:
        (N, K, L)
    """
    return mean + torch.exp(0.5 * log_var) * noise


def mean_over_draws(x: Tensor) -> Tensor:
    """Average over the draws, (N, K, ...) to (N, ...); a single draw is returned unchanged."""
    return x.squeeze(-2) if x.shape[-2] == 1 else x.mean(-2)


def posterior_log_prob(inference: Inference, noise: Tensor) -> Tensor:
    """Return log q(z|x) at the draws, (N, K), nats."""
    return -0.5 * (noise**2 + inference.log_var + LOG_2PI).sum(-1)


def frozen_noise(draws: int, latent_dim: int, seed: int) -> Tensor:
    """Return quasi-random standard normal draws (K, L), with which a score is evaluated.

    A single draw is the origin, the one-point Gauss–Hermite rule. Several draws are scrambled
    Sobol' points in antithetic pairs, plus the origin if their number is odd, so that their mean is
    zero and terms linear in the noise cancel.
    """
    origin = torch.zeros(draws % 2, latent_dim)
    if draws == 1:
        return origin
    engine = torch.quasirandom.SobolEngine(latent_dim, scramble=True, seed=seed)
    uniform = engine.draw(draws // 2).clamp(1e-6, 1 - 1e-6)
    half = torch.special.ndtri(uniform.double()).float()
    return torch.cat([origin, half, -half])
