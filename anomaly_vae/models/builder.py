"""Build the networks, likelihood and prior of a model from its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

import torch
from torch import nn

from anomaly_vae.config.model import ImageModelConfig, ModelConfig, ResolvedImageModel
from anomaly_vae.data.encoding import Layout
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.backbone import N_FEATURES, Patches
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
"""Classes of models with one level of latents, by ``model.type``."""
HIERARCHICAL: dict[str, type[VAE]] = {
    "vae": HierarchicalVAE,
    "autoencoder": HierarchicalAutoencoder,
}
"""Classes of models with latents at several resolutions, by ``model.type``."""
PATCH_EXEMPLARS = 2_048
"""Maximum number of exemplars of a model of patches, of which each image has hundreds."""


def build(
    config: ModelConfig | ImageModelConfig, layout: Layout | ImageLayout, seed: int = 0
) -> VAE:
    """Return an untrained model of a table or of images.

    Args:
        config: networks and likelihood; sizes that are absent follow from the layout.
        layout: the encoded columns of a table, or the shape of the images.
        seed: determines the initial weights; the global random state is left unchanged.

    Raises:
        TypeError: the configuration is for another kind of data than the layout.

    Example:
        >>> from anomaly_vae.config.model import ModelConfig
        >>> from anomaly_vae.data.encoding import Layout
        >>> layout = Layout(n_numeric=3, n_binary=1, n_levels=(4,))
        >>> model = build(ModelConfig(members=1, latent_dim=2), layout)
        >>> model.latent_dim
        2
        >>> model.encoder(model.features(torch.zeros(7, 5)))[0].shape
        torch.Size([7, 2])
    """
    match config, layout:
        case ModelConfig(), Layout():
            return build_tabular(config, layout, seed)
        case ImageModelConfig(), ImageLayout():
            return build_image(config, layout, seed)
    raise TypeError(f"{type(config).__name__} cannot build a model for {type(layout).__name__}")


def build_tabular(config: ModelConfig, layout: Layout, seed: int = 0) -> VAE:
    """Return an untrained model of a table; see `build`."""
    config = config.resolve(layout.n_columns)
    latent, hidden, depth = config.latent_dim, config.hidden_dim, config.depth
    members, shared = config.members, config.posterior_variance == "shared"
    with _seeded(seed):
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


def build_image(config: ImageModelConfig, layout: ImageLayout, seed: int = 0) -> VAE:
    """Return an untrained model of images; see `build`."""
    if config.backbone != "none":
        return _build_patches(config, layout, seed)
    config = config.resolve(layout.n_columns)
    models = HIERARCHICAL if config.network == "hierarchical" else MODELS
    with _seeded(seed):
        likelihood = _image_likelihood(config, layout)
        encoder, decoder = _image_networks(config, layout, likelihood.planes)
        model = models[config.type](nn.Identity(), encoder, decoder, likelihood, StandardNormal())
        if config.localization_head:
            geometry = Geometry(layout, config.width, LEVELS)
            model.contamination = LocalizationHead(geometry, config.symmetry)
    return model


def patch_model(config: ImageModelConfig) -> ModelConfig:
    """Return the model of patches that a backbone is followed by: one network and exemplars."""
    return ModelConfig(
        type=config.type,
        members=1,
        latent_dim=config.latent_dim,
        hidden_dim=config.hidden_dim,
        exemplars=PATCH_EXEMPLARS,
    )


def _build_patches(config: ImageModelConfig, layout: ImageLayout, seed: int) -> VAE:
    model = build_tabular(patch_model(config), Layout(N_FEATURES, 0, ()), seed)
    model.patches = Patches(layout)
    return model


_global_generator = Lock()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator for the initial weights, and restore its state afterwards.

    Threads that build models at the same time take turns, so that each draws its own weights.
    """
    with _global_generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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
        top_down = TopDown(geometry, latent, planes, config.upsampling)
        return BottomUp(geometry, sum(top_down.sizes)), top_down
    geometry, residual = Geometry(layout, config.width), config.network == "residual"
    encoder = ImageEncoder(geometry, latent, hidden, residual)
    decoder = ImageDecoder(geometry, latent, hidden, planes, config.upsampling, residual)
    return encoder, decoder


class TabularParts(NamedTuple):
    """The components of a tabular model, with their types."""

    encoder: Encoder
    decoder: Decoder
    likelihood: TabularLikelihood


def tabular_parts(model: VAE) -> TabularParts:
    """Return the components of a tabular model.

    Raises:
        TypeError: the model is not one of `build_tabular`.
    """
    match model.encoder, model.decoder, model.likelihood:
        case Encoder() as encoder, Decoder() as decoder, TabularLikelihood() as likelihood:
            return TabularParts(encoder, decoder, likelihood)
    raise TypeError("expected a model of a table, got a model of images")
