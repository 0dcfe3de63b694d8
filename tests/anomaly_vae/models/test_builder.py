"""Configurations determine networks and likelihoods; weights follow from the seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anomaly_vae.config.model import ImageModelConfig, ModelConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.builder import build, tabular_parts
from anomaly_vae.models.convolutional import ImageDecoder, ImageEncoder, Residual
from anomaly_vae.models.image_likelihoods import (
    ContrastLikelihood,
    PixelLikelihood,
    StructuralLikelihood,
)
from anomaly_vae.models.networks import Encoder
from anomaly_vae.models.vae import VAE

LAYOUT = ImageLayout(1, 16)
SMALL: dict[str, Any] = {"network": "convolutional", "width": 4, "hidden_dim": 16, "latent_dim": 3}


def image_model(seed: int = 0, layout: ImageLayout = LAYOUT, **changes: Any) -> VAE:
    return build(ImageModelConfig.model_validate(SMALL | changes), layout, seed)


def same(a: VAE, b: VAE) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("network", ["convolutional", "residual", "dense", "hierarchical"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_takes_images_and_gives_a_bound(network: str, channels: int) -> None:
    layout = ImageLayout(channels, 17)
    model = image_model(layout=layout, network=network).eval()
    x = torch.rand(3, layout.n_columns)
    terms = model.elbo(x, torch.zeros(1, model.latent_dim))
    assert terms.log_prob.shape == x.shape
    assert terms.bound.shape == (3,)
    assert torch.isfinite(terms.bound).all()


@pytest.mark.parametrize(
    ("likelihood", "kind"),
    [
        ("gaussian", PixelLikelihood),
        ("laplace", PixelLikelihood),
        ("bernoulli", PixelLikelihood),
        ("structural", StructuralLikelihood),
        ("contrast", ContrastLikelihood),
    ],
)
def test_the_likelihood_is_the_one_asked_for(likelihood: str, kind: type) -> None:
    found = image_model(likelihood=likelihood, variance_floor=0.5).likelihood
    assert isinstance(found, kind)
    assert getattr(found, "family", likelihood) == likelihood
    assert getattr(found, "variance_floor", 0.5) == 0.5


def test_the_network_is_the_one_asked_for() -> None:
    plain, residual, dense = (
        image_model(network=name) for name in ("convolutional", "residual", "dense")
    )
    assert isinstance(plain.encoder, ImageEncoder)
    assert isinstance(plain.decoder, ImageDecoder)
    assert not any(isinstance(part, Residual) for part in plain.modules())
    assert any(isinstance(part, Residual) for part in residual.modules())
    assert isinstance(dense.encoder, Encoder)
    transposed = image_model(upsampling="transposed").modules()
    assert any(isinstance(part, torch.nn.ConvTranspose2d) for part in transposed)
    assert not any(isinstance(part, torch.nn.ConvTranspose2d) for part in plain.modules())


def test_an_autoencoder_is_the_twin_of_either_kind() -> None:
    assert isinstance(image_model(type="autoencoder"), Autoencoder)
    table = build(ModelConfig(type="autoencoder"), Layout(3, 1, (4,)))
    assert isinstance(table, Autoencoder)


def test_weights_come_from_the_seed_and_leave_torchs_own_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = image_model(0), image_model(0), image_model(1)
    assert torch.equal(torch.rand(3), expected)
    assert same(first, again)
    assert not same(first, other)


def test_a_configuration_of_another_kind_of_data_is_refused() -> None:
    with pytest.raises(TypeError, match="ModelConfig cannot build a model for ImageLayout"):
        build(ModelConfig(), LAYOUT)
    with pytest.raises(TypeError, match="expected a model of a table"):
        tabular_parts(image_model())
