"""What a fitted model learns about itself: honest variances, and the aggregated posterior.

The prior N(0, I) is what a VAE is trained under, not what its codes look like. The negative ELBO
falls furthest where the prior is the aggregated posterior q(z) = E[q(z|x)] (Tomczak & Welling
2018; Hoffman & Johnson 2016): normal rows then cost little, and codes where no row lies much. It
is kept as a mixture of a bounded number of parts, so that a score costs the same whatever the
number of training rows.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from anomaly_vae.config import ModelConfig, TrainingConfig
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.likelihoods import TabularLikelihood
from anomaly_vae.models.priors import Mixture
from anomaly_vae.models.vae import VAE
from anomaly_vae.training.gradients import keep_best_rows, rows_kept

MOST_ROWS = 20_000
"""Training rows whose codes are looked at."""
MOST_HELD_OUT = 5_000
"""Held-out rows that choose the bandwidth."""
REACH_ROWS = 500
"""Of both, rows whose scores say how far a guard reaches: the quartiles to one part in twenty."""
CHUNK = 4096
BANDWIDTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Candidates for the variance of a part, in units of the posterior variance, beside its scatter."""
BLOCK = 16
"""Numbers that processors add at a time: a sum over any other number of parts would be rounded by
where a row lies in memory."""
ITERATIONS = 3
"""Of k-means (Lloyd 1982); more do not detect better."""
TRIMMED = 0.1
"""Share of the held-out rows at either end whose log-density is held to that of the others."""
PRIOR_ROWS = 10.0
"""Rows that say the variances were right, before any held-out row has spoken."""
LEAST_VARIANCE = 1e-4
"""Of a posterior, where it is the unit of length."""
REACH = 0.5
"""Of the distance between the quartiles of all scores: what the guard moves one by, at most. What
the others learned by mistake is then above most rows, and rare normal rows stay in their order."""
LEAST_REACH = 1e-6
"""Nats, of a guard where all rows are alike."""
LARGEST_VARIANCE = 30.0
"""Of a numeric column given z; a standardised column's own is 1."""


@torch.no_grad()
def finalize(
    model: VAE, train: Tensor, held_out: Tensor, config: ModelConfig, training: TrainingConfig
) -> None:
    """Refit the variances, and give the model its aggregated posterior and the guard its reach.

    Args:
        model: fitted; changed in place.
        train: (N, F) encoded rows it was fitted to.
        held_out: (H, F) encoded rows it was not fitted to; their codes are in the aggregated
            posterior as well, once they have chosen how wide its parts are.
        config: `prior` and `components`.
        training: `trims`, the share of the rows that have no part in each member's, and the
            `seed` of those looked at, and of the clusters.
    """
    refit_variances(model, held_out, Codes.of(model, held_out, training).stays)
    train = _some(train, MOST_ROWS, training.seed)
    held_out = _some(held_out, MOST_HELD_OUT, training.seed)
    if config.prior == "aggregated" and not isinstance(model, Autoencoder):
        model.aggregated = _aggregated(model, train, held_out, config, training)
    if training.trims(model.members)[-1] > training.trim:  # the last is a guard
        model.reach = _reach(model, _some(torch.cat([train, held_out]), REACH_ROWS, training.seed))


def _aggregated(
    model: VAE, train: Tensor, held_out: Tensor, config: ModelConfig, training: TrainingConfig
) -> Mixture:
    """Of each member, the mixture over the codes of the rows that it trusts."""
    known, new = (Codes.of(model, rows, training) for rows in (train, held_out))
    members = zip(known.mean, known.stays, new.mean, new.stays, known.unit, strict=True)
    each = [
        mixture(z[its], h[those], unit, config.components, training.seed)
        for z, its, h, those, unit in members
    ]
    parts = -(-max(one.parts for one in each) // BLOCK) * BLOCK
    each = [one.cut(parts) for one in each]
    return Mixture.side_by_side(each) if model.members > 1 else each[0]


def _reach(model: VAE, x: Tensor) -> Tensor:
    """(1,): see `REACH`, of the bounds that all but the guard give to rows (N, F), nats."""
    noise = x.new_zeros(1, model.latent_dim)
    others = model.aggregated_elbo(x, noise).bound[:-1].mean(0)
    quartiles = others.quantile(torch.tensor([0.25, 0.75]))
    return (REACH * quartiles.diff()).clamp_min(LEAST_REACH)


def refit_variances(model: VAE, held_out: Tensor, stays: Tensor) -> None:
    """Meet the residuals of held-out rows halfway: multiply the variance of each column by √f.

    f = (Σ r²/σ² + a) / (n + a) is what these say, with a weak prior at 1. The variances σ² were
    learned under noise on inputs and codes, and on rows that the decoder knew; the residuals are
    those of a score, without noise and of rows that it does not know. The bound is about codes
    with noise, the score about their means: the geometric mean of both variances is between.

    A row of (H, F) counts for those members (E, H) that it ``stays`` with.

    No variance is above `LARGEST_VARIANCE`: an exponential of what the decoder learned grows
    without end far from the rows it learned from, and what is odd there would cost little.
    """
    likelihood = model.likelihood
    assert isinstance(likelihood, TabularLikelihood), "tables have no other"
    likelihood.variance_limit.fill_(LARGEST_VARIANCE)
    n = likelihood.layout.n_numeric
    if not n:
        return
    total, count = torch.zeros(()), torch.zeros(())
    which = stays[..., None, None].split(CHUNK, 1)
    for x, its in zip(held_out.split(CHUNK), which, strict=True):
        found = model.infer(x, x.new_zeros(1, model.latent_dim))
        numeric: Any = likelihood(found.outputs).parts[0][1]
        squared = (x[:, :n].unsqueeze(-2) - numeric.mean) ** 2 * torch.exp(-numeric.log_var)
        observed = ~torch.isnan(x[:, :n]).unsqueeze(-2) & (its if model.members > 1 else its[0])
        total = total + torch.where(observed, squared, 0.0).sum(-3, keepdim=True)
        count = count + observed.sum(-3, keepdim=True)
    factor = torch.sqrt((total + PRIOR_ROWS) / (count + PRIOR_ROWS))
    old = likelihood.variance_factor
    old.copy_((old * factor).view_as(old))


def mixture(codes: Tensor, held_out: Tensor, unit: Tensor, components: int, seed: int) -> Mixture:
    """The aggregated posterior of codes (N, L) and (H, L) in at most ``components`` parts.

    Centers are the means of k-means clusters, in units of the posterior deviation ``unit``
    (1, L); their weights are the clusters' sizes; the variance of each is its scatter and a
    bandwidth: that with which the first codes alone give the ``held_out`` ones the highest
    log-density, outermost tenths held.
    """
    first, second = codes / unit, held_out / unit
    every = torch.cat([first, second])
    label = labels(every, components, seed)
    known, found = Clusters.of(first, label[: len(first)]), Clusters.of(every, label)
    square = known.mixture(1.0, unit).square(held_out.unsqueeze(-2)).float()
    each = [known.mixture(width, unit).log_prob_at(square) for width in BANDWIDTHS]
    best = int(_trimmed(torch.stack(each)).argmax())
    return found.mixture(BANDWIDTHS[best], unit)


class Codes(NamedTuple):
    """What each of E members makes of N rows."""

    mean: Tensor
    """(E, N, L): of the posterior"""
    stays: Tensor
    """(E, N): whether a row would have taught the member, by the bound at the mean"""
    unit: Tensor
    """(E, 1, L): the posterior's deviation"""

    @classmethod
    def of(cls, model: VAE, x: Tensor, training: TrainingConfig) -> Codes:
        """Of rows (N, F)."""
        parts = [_codes(model, part, training.beta) for part in x.split(CHUNK)]
        mean, log_var, bound = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        stays = keep_best_rows(bound, rows_kept(len(x), training.trims(model.members)))
        variance = log_var.exp().mean(1, keepdim=True).clamp_min(LEAST_VARIANCE)
        return cls(mean, stays.bool(), variance.sqrt())


def _codes(model: VAE, x: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and log-variance (E, N, L) of the posterior, and the bound at the mean (E, N), nats."""
    found = model.infer(x, x.new_zeros(1, model.latent_dim))
    bound = model.terms(found, x).objective(beta)
    shape = (model.members, len(x), model.latent_dim)
    return found.mean.view(shape), found.log_var.view(shape), bound.view(shape[:-1])


class Clusters(NamedTuple):
    """M clusters of codes."""

    center: Tensor
    """(M, L)"""
    size: Tensor
    """(M,)"""
    scatter: Tensor
    """(M,) per dimension"""

    @classmethod
    def of(cls, codes: Tensor, label: Tensor) -> Clusters:
        """Those of codes (N, L) that are in any, by their labels (N,)."""
        _, label, count = label.unique(return_inverse=True, return_counts=True)
        size = count.to(codes)
        center = torch.zeros(len(size), codes.shape[1]).index_add_(0, label, codes) / size[:, None]
        square = ((codes - center[label]) ** 2).mean(-1)
        return cls(center, size, torch.zeros(len(size)).index_add_(0, label, square) / size)

    def mixture(self, bandwidth: float, unit: Tensor) -> Mixture:
        """A part for each."""
        log_weight = torch.log(self.size / self.size.sum())
        return Mixture(log_weight, self.center, torch.log(bandwidth + self.scatter), unit)


def labels(codes: Tensor, most: int, seed: int) -> Tensor:
    """Which of at most so many k-means clusters each of the codes (N, L) is in, (N,)."""
    if len(codes) <= most:
        return torch.arange(len(codes))
    found = KMeans(most, init="random", n_init=1, max_iter=ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct codes than clusters
        return torch.from_numpy(found.fit_predict(codes.numpy()).astype(np.int64))


def _some(x: Tensor, most: int, seed: int) -> Tensor:
    """At most so many rows, at random."""
    if len(x) <= most:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most]]


def _trimmed(log_prob: Tensor) -> Tensor:
    """(B, H) → (B,): the mean, outermost shares held."""
    ends = log_prob.new_tensor([TRIMMED, 1 - TRIMMED])
    low, high = log_prob.quantile(ends, -1, keepdim=True)
    return log_prob.clamp(low, high).mean(-1)
