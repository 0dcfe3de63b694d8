"""The one place that chooses networks and likelihoods for a kind of data."""

from __future__ import annotations

import torch

from anomaly_vae.autoencoder import Autoencoder
from anomaly_vae.config import ModelConfig
from anomaly_vae.encoding import Layout
from anomaly_vae.likelihoods import TabularFeatures, TabularLikelihood
from anomaly_vae.networks import Decoder, Encoder
from anomaly_vae.priors import StandardNormal
from anomaly_vae.vae import VAE

MODELS: dict[str, type[VAE]] = {"vae": VAE, "autoencoder": Autoencoder}


def build(config: ModelConfig, layout: Layout, seed: int = 0) -> VAE:
    """An untrained model for encoded rows of this layout; weights from ``seed``."""
    config = config.resolve(layout.n_columns)
    latent, hidden = config.latent_dim, config.hidden_dim
    assert latent, "resolve() fills it"
    assert hidden, "resolve() fills it"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = TabularFeatures(layout)
        likelihood = TabularLikelihood(layout, config.likelihood, config.variance_floor)
        return MODELS[config.type](
            features,
            Encoder(features.n_outputs, latent, hidden, config.depth),
            Decoder(latent, likelihood.n_outputs, hidden, config.depth),
            likelihood,
            StandardNormal(),
        )
