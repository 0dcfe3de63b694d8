"""Estimate variances, the aggregated posterior, the guard's limit and exemplars after a fit.

A VAE is trained with the prior N(0, I), but its latents have another distribution. The negative
ELBO is lowest if the prior is the aggregated posterior q(z) = E[q(z|x)] (Tomczak & Welling 2018;
Hoffman & Johnson 2016): latents of normal rows then cost little, and latents far from all rows cost
much. The aggregated posterior is approximated by a mixture with a bounded number of components, so
that the cost of a score does not depend on the number of training rows.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from anomaly_vae.config.model import ModelConfig
from anomaly_vae.config.training import FitConfig
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.builder import tabular_parts
from anomaly_vae.models.priors import Mixture
from anomaly_vae.models.vae import VAE
from anomaly_vae.training.exemplars import fit_exemplars
from anomaly_vae.training.gradients import keep_best_rows, rows_kept
from anomaly_vae.training.held_out import winsorized_mean

MAX_ROWS = 20_000
"""Maximum number of training rows whose latents are used."""
MAX_HELD_OUT = 5_000
"""Maximum number of held-out rows by which the bandwidth is chosen."""
CHUNK = 4096
"""Number of rows that are encoded at a time."""
BANDWIDTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Candidates for the variance added to a component's scatter, in units of the posterior
variance."""
COMPONENT_MULTIPLE = 16
"""Divisor of the number of components. Processors add this many numbers at a time; otherwise
rounding would depend on the position of a row in memory."""
KMEANS_ITERATIONS = 3
"""Number of iterations of k-means (Lloyd 1982); more iterations do not improve detection."""
PRIOR_WEIGHT = 10.0
"""Weight of the prior assumption that the variances are right, in rows."""
MIN_VARIANCE = 1e-4
"""Minimum posterior variance where its square root serves as the unit of length."""
GUARD_LIMIT = 0.25
"""Largest change the guard member may make to a score, as a fraction of the interquartile range of
the scores. Anomalies that the other members learned by mistake then score higher, while rare normal
rows keep their order."""
MIN_SPREAD = 2e-6
"""Minimum of the interquartile range of the scores, in nats, for tables of equal rows."""
MAX_VARIANCE = 30.0
"""Maximum variance of a numeric column given z; the variance of a standardised column is 1."""


@torch.no_grad()
def finalize(
    model: VAE, train: Tensor, held_out: Tensor, config: ModelConfig, training: FitConfig
) -> None:
    """Refit the variances; set the model's aggregated posterior, guard's limit and exemplars.

    A guard, the last of several members, also decides how much the code of each row counts in the
    aggregated posterior; see `consult_guard`.

    Args:
        model: fitted model, changed in place.
        train: (N, F), encoded rows that the model was fitted to.
        held_out: (H, F), encoded rows that it was not fitted to. The bandwidth of the aggregated
            posterior is chosen by them, and they are then included in it.
        config: ``prior``, ``components`` and ``exemplars``.
        training: ``trims``, the fraction of rows excluded for each member, and the ``seed`` of
            subsamples and clusters.
    """
    refit_variances(model, held_out, Codes.of(model, held_out, training).kept)
    train = _subsample(train, MAX_ROWS, training.seed)
    held_out = _subsample(held_out, MAX_HELD_OUT, training.seed)
    if config.prior == "aggregated" and not isinstance(model, Autoencoder):
        model.aggregated = _aggregated_posterior(model, train, held_out, config, training)
    if training.trims(model.members)[-1] > training.trim:  # the last member is a guard
        rows = torch.cat([train, held_out])
        model.reach, weight = consult_guard(model, rows)
        if model.aggregated is not None:
            model.aggregated = model.aggregated.reweighted(_means(model, rows), weight)
    if config.exemplars and not isinstance(model, Autoencoder):
        if training.trim:
            train, held_out = (_kept_rows(model, rows, training) for rows in (train, held_out))
        layout = tabular_parts(model).likelihood.layout
        fill = model.fill if model.patches is None else None
        model.exemplars = fit_exemplars(
            layout, train, held_out, config.exemplars, training.seed, fill
        )


def _aggregated_posterior(
    model: VAE, train: Tensor, held_out: Tensor, config: ModelConfig, training: FitConfig
) -> Mixture:
    """Return the mixture over the latents of each member's kept rows."""
    known, new = (Codes.of(model, rows, training) for rows in (train, held_out))
    members = zip(known.mean, known.kept, new.mean, new.kept, known.unit, strict=True)
    mixtures = [
        mixture(mean[kept], new_mean[new_kept], unit, config.components, training.seed)
        for mean, kept, new_mean, new_kept, unit in members
    ]
    largest = max(part.n_components for part in mixtures)
    count = -(-largest // COMPONENT_MULTIPLE) * COMPONENT_MULTIPLE
    mixtures = [part.split_components(count) for part in mixtures]
    return Mixture.stack(mixtures) if model.members > 1 else mixtures[0]


def _kept_rows(model: VAE, x: Tensor, training: FitConfig) -> Tensor:
    """Return the rows (N, F) from which the first member would learn."""
    return x[Codes.of(model, x, training).kept[0]]


def consult_guard(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the guard's limit (1,), in nats, and the weights (N,) of the codes of rows (N, F).

    Let m be the mean of the other members' negative bounds of a row, g that of the guard and q the
    interquartile range of m. The limit is a fraction of q, see `GUARD_LIMIT`. The weight of a row
    is 1 / (1 + max(g − m, 0) / q)². Rows that the other members have learned and the guard has not
    may be anomalies, and the clearer this is, the less they count.
    """
    noise = x.new_zeros(1, model.latent_dim)
    parts = [model.aggregated_elbo(part, noise).bound for part in x.split(CHUNK)]
    bounds = torch.cat(parts, -1)
    others = bounds[:-1].mean(0)
    spread = others.quantile(torch.tensor([0.25, 0.75])).diff().clamp_min(MIN_SPREAD)
    excess = (others - bounds[-1]).clamp_min(0.0)
    return GUARD_LIMIT * spread, 1 / (1 + excess / spread) ** 2


def _means(model: VAE, x: Tensor) -> Tensor:
    """Return the posterior means (..., N, 1, L) of rows (N, F)."""
    noise = x.new_zeros(1, model.latent_dim)
    return torch.cat([model.infer(part, noise).mean for part in x.split(CHUNK)], -3)


def refit_variances(model: VAE, held_out: Tensor, kept: Tensor) -> None:
    """Multiply the variance of each numeric column by √f, halfway to its held-out estimate.

    f = (Σ r²/σ² + a) / (n + a), where r are the residuals of held-out rows and a is the weight of a
    prior at 1. The variances σ² were learned with noise on inputs and latents, on rows that the
    decoder was fitted to. The residuals r are computed as in a score: without noise, on other rows.
    The geometric mean of both variances is a compromise, since the bound refers to noisy latents
    and the score to their means.

    Variances are also limited to `MAX_VARIANCE`. A learned exponential grows without limit far from
    the training rows, so that anomalies there would otherwise have low scores.

    Args:
        model: fitted model, changed in place.
        held_out: (H, F), encoded rows.
        kept: (E, H), mask of the rows that each member takes into account.
    """
    likelihood = tabular_parts(model).likelihood
    likelihood.variance_limit.fill_(MAX_VARIANCE)
    n = likelihood.layout.n_numeric
    if not n:
        return
    total, count = torch.zeros(()), torch.zeros(())
    masks = kept[..., None, None].split(CHUNK, 1)
    for x, mask in zip(held_out.split(CHUNK), masks, strict=True):
        inference = model.infer(x, x.new_zeros(1, model.latent_dim))
        numeric: Any = likelihood(inference.outputs).parts[0][1]
        squared = (x[:, :n].unsqueeze(-2) - numeric.mean) ** 2 * torch.exp(-numeric.log_var)
        observed = ~torch.isnan(x[:, :n]).unsqueeze(-2) & (mask if model.members > 1 else mask[0])
        total = total + torch.where(observed, squared, 0.0).sum(-3, keepdim=True)
        count = count + observed.sum(-3, keepdim=True)
    factor = torch.sqrt((total + PRIOR_WEIGHT) / (count + PRIOR_WEIGHT))
    old = likelihood.variance_factor
    old.copy_((old * factor).view_as(old))


def mixture(codes: Tensor, held_out: Tensor, unit: Tensor, components: int, seed: int) -> Mixture:
    """Approximate the aggregated posterior of latents by at most ``components`` components.

    The centers are the means of k-means clusters, in units of the posterior deviation. The weights
    are the cluster sizes. The variance of a component is the scatter of its cluster plus a
    bandwidth. The bandwidth is the one with which ``codes`` alone give ``held_out`` the highest
    winsorized mean log-density.

    Args:
        codes: (N, L), latents of training rows.
        held_out: (H, L), latents of held-out rows.
        unit: (1, L), posterior standard deviation.
        components: maximum number of components.
        seed: seed of the clusters.
    """
    first, second = codes / unit, held_out / unit
    every = torch.cat([first, second])
    label = cluster_labels(every, components, seed)
    known, clusters = Clusters.of(first, label[: len(first)]), Clusters.of(every, label)
    square = known.mixture(1.0, unit).squared_distances(held_out.unsqueeze(-2)).float()
    log_probs = [known.mixture(h, unit).log_prob_from_distances(square) for h in BANDWIDTHS]
    best = int(winsorized_mean(torch.stack(log_probs)).argmax())
    return clusters.mixture(BANDWIDTHS[best], unit)


class Codes(NamedTuple):
    """The latents that each of E members assigns to N rows."""

    mean: Tensor
    """(E, N, L): posterior means."""
    kept: Tensor
    """(E, N): whether a member would learn from a row, judged by the row's bound at the mean."""
    unit: Tensor
    """(E, 1, L): posterior standard deviation, averaged over the rows."""

    @classmethod
    def of(cls, model: VAE, x: Tensor, training: FitConfig) -> Codes:
        """Compute the latents of encoded rows (N, F)."""
        parts = [_codes(model, part, training.beta) for part in x.split(CHUNK)]
        mean, log_var, bound = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        kept = keep_best_rows(bound, rows_kept(len(x), training.trims(model.members)))
        variance = log_var.exp().mean(1, keepdim=True).clamp_min(MIN_VARIANCE)
        return cls(mean, kept.bool(), variance.sqrt())


def _codes(model: VAE, x: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return posterior mean and log-variance (E, N, L) and the bound at the mean (E, N), nats."""
    inference = model.infer(x, x.new_zeros(1, model.latent_dim))
    bound = model.terms(inference, x).objective(beta)
    shape = (model.members, len(x), model.latent_dim)
    mean, log_var = inference.mean.view(shape), inference.log_var.view(shape)
    return mean, log_var, bound.view(shape[:-1])


class Clusters(NamedTuple):
    """M clusters of latents."""

    center: Tensor
    """(M, L): means of the clusters."""
    size: Tensor
    """(M,): number of latents in each cluster."""
    scatter: Tensor
    """(M,): mean squared distance from the center, per dimension."""

    @classmethod
    def of(cls, codes: Tensor, label: Tensor) -> Clusters:
        """Compute the non-empty clusters of latents (N, L) from their labels (N,)."""
        _, label, count = label.unique(return_inverse=True, return_counts=True)
        size = count.to(codes)
        center = torch.zeros(len(size), codes.shape[1]).index_add_(0, label, codes) / size[:, None]
        square = ((codes - center[label]) ** 2).mean(-1)
        return cls(center, size, torch.zeros(len(size)).index_add_(0, label, square) / size)

    def mixture(self, bandwidth: float, unit: Tensor) -> Mixture:
        """Return a mixture with one component per cluster."""
        log_weight = torch.log(self.size / self.size.sum())
        return Mixture(log_weight, self.center, torch.log(bandwidth + self.scatter), unit)


def cluster_labels(codes: Tensor, limit: int, seed: int) -> Tensor:
    """Assign latents (N, L) to at most ``limit`` k-means clusters; return their labels (N,)."""
    if len(codes) <= limit:
        return torch.arange(len(codes))
    kmeans = KMeans(limit, init="random", n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct codes than clusters
        return torch.from_numpy(kmeans.fit_predict(codes.numpy()).astype(np.int64))


def _subsample(x: Tensor, limit: int, seed: int) -> Tensor:
    """Return at most ``limit`` rows, chosen at random."""
    if len(x) <= limit:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:limit]]
