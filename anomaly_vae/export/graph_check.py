"""Compare the scores of an exported graph with those that torch computes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.errors import ExportError
from anomaly_vae.models.vae import VAE, Terms, frozen_noise

TOLERANCE = 1e-4
"""Maximum difference between scores of graph and torch, relative to the terms of the score."""


def scores_exemplars(model: VAE, score: ScoreConfig) -> bool:
    """Return whether a score has the bound of the exemplars; a reconstruction has none."""
    return model.exemplars is not None and score.type != "reconstruction"


def torch_terms(model: VAE, score: ScoreConfig, x: Tensor) -> Terms:
    """Compute in torch the terms that the graph computes."""
    noise = frozen_noise(score.draws, model.latent_dim, score.seed).to(x.dtype)
    if score.type == "reconstruction":
        terms = model.reconstruction(x)
    elif score.type == "importance_weighted":
        terms = model.importance_weighted(x, noise)
    else:
        terms = model.aggregated_elbo(x, noise)
    terms = model.average_members(terms)
    return model.add_exemplars(terms, x) if scores_exemplars(model, score) else terms


@torch.no_grad()
def check_graph(
    model: VAE, score: ScoreConfig, x: NDArray[np.float32], scores: NDArray[np.float64]
) -> float:
    """Compare the scores of a graph with torch.

    Args:
        model: the model in torch.
        score: type and draws of the score.
        x: (N, F), encoded rows.
        scores: (N,), scores of the graph.

    Returns:
        The largest disagreement, relative to the terms of the score; see `disagreement`.

    Raises:
        ExportError: it is above `TOLERANCE`.
    """
    chunks = torch.from_numpy(x).split(4096)
    terms = [torch_terms(model, score, chunk) for chunk in chunks]
    truth = torch.cat([-part.bound for part in terms]).double().numpy()
    size = [part.log_prob.abs().sum(-1) + part.kl.sum(-1).abs() for part in terms]
    return disagreement(truth, scores, torch.cat(size).double().numpy())


def disagreement(
    truth: NDArray[np.float64], scores: NDArray[np.float64], size: NDArray[np.float64]
) -> float:
    """Return the largest difference between two arrays, relative to max(1, size).

    Args:
        truth: (N,).
        scores: (N,).
        size: (N,), magnitude that the differences are compared with: terms of both signs round by
            their own size and not by that of their sum.

    Raises:
        ExportError: the difference is above `TOLERANCE`.
    """
    error = float(np.max(np.abs(truth - scores) / np.maximum(1, size), initial=0.0))
    if not error <= TOLERANCE:
        raise ExportError(
            f"the scoring graph differs from the model by {error:.1e} nats relative "
            f"(allowed {TOLERANCE:.0e}); please report this with the configuration"
        )
    return error
