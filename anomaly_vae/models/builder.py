"""The one place that chooses networks, likelihoods and training views for a kind of data."""

from __future__ import annotations

import torch
from torch import nn

from anomaly_vae.config import ImageModelConfig, ModelConfig, ResolvedImageModel, ResolvedModel
from anomaly_vae.data.encoding import Layout
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.convolutional import Geometry, ImageDecoder, ImageEncoder
from anomaly_vae.models.hierarchical import (
    LEVELS,
    BottomUp,
    HierarchicalAutoencoder,
    HierarchicalVAE,
    TopDown,
)
from anomaly_vae.models.image_likelihoods import (
    ContrastLikelihood,
    PixelLikelihood,
    StructuralLikelihood,
)
from anomaly_vae.models.likelihoods import TabularFeatures, TabularLikelihood
from anomaly_vae.models.localization_head import LocalizationHead
from anomaly_vae.models.networks import Decoder, Encoder
from anomaly_vae.models.priors import StandardNormal
from anomaly_vae.models.vae import VAE

MODELS: dict[str, type[VAE]] = {"vae": VAE, "autoencoder": Autoencoder}
HIERARCHICAL: dict[str, type[VAE]] = {
    "vae": HierarchicalVAE,
    "autoencoder": HierarchicalAutoencoder,
}


def build(
    config: ModelConfig | ImageModelConfig, layout: Layout | ImageLayout, seed: int = 0
) -> VAE:
    """An untrained model for encoded rows of this layout; weights from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, ImageModelConfig):
            assert isinstance(layout, ImageLayout), "an image model is for images"
            return _image(config.resolve(layout.n_columns), layout)
        assert isinstance(layout, Layout), "a tabular model is for tables"
        return _tabular(config.resolve(layout.n_columns), layout)


def _tabular(config: ResolvedModel, layout: Layout) -> VAE:
    latent, hidden, depth = config.latent_dim, config.hidden_dim, config.depth
    members, shared = config.members, config.posterior_variance == "shared"
    features = TabularFeatures(layout)
    likelihood = TabularLikelihood(layout, config.likelihood, config.variance_floor, members)
    return MODELS[config.type](
        features,
        Encoder(features.n_outputs, latent, hidden, depth, members, shared),
        Decoder(latent, likelihood.n_outputs, hidden, depth, members),
        likelihood,
        StandardNormal(),
        members,
    )


def _image(config: ResolvedImageModel, layout: ImageLayout) -> VAE:
    likelihood = _image_likelihood(config, layout)
    encoder, decoder = _image_networks(config, layout, likelihood.planes)
    models = HIERARCHICAL if config.network == "hierarchical" else MODELS
    model = models[config.type](nn.Identity(), encoder, decoder, likelihood, StandardNormal())
    if config.localization_head:
        model.contamination = LocalizationHead(Geometry(layout, config.width, LEVELS))
    return model


def _image_likelihood(
    config: ImageModelConfig, layout: ImageLayout
) -> PixelLikelihood | StructuralLikelihood | ContrastLikelihood:
    if config.likelihood == "contrast":
        return ContrastLikelihood(layout)
    if config.likelihood == "structural":
        return StructuralLikelihood(layout, config.variance_floor)
    return PixelLikelihood(layout, config.likelihood, config.variance_floor)


def _image_networks(
    config: ResolvedImageModel, layout: ImageLayout, planes: int
) -> tuple[nn.Module, nn.Module]:
    latent, hidden = config.latent_dim, config.hidden_dim
    if config.network == "dense":
        inputs, outputs = layout.n_columns, planes * layout.size**2
        return Encoder(inputs, latent, hidden, 2), Decoder(latent, outputs, hidden, 2)
    if config.network == "hierarchical":
        geometry = Geometry(layout, config.width, LEVELS)
        top_down = TopDown(geometry, latent, planes)
        return BottomUp(geometry, sum(top_down.sizes)), top_down
    geometry, residual = Geometry(layout, config.width), config.network == "residual"
    encoder = ImageEncoder(geometry, latent, hidden, residual)
    decoder = ImageDecoder(geometry, latent, hidden, planes, config.upsampling, residual)
    return encoder, decoder
