"""A hierarchical VAE decodes one vector of offsets level by level, and infers it likewise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomaly_vae.config.model import ImageModelConfig
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.models.builder import build
from anomaly_vae.models.convolutional import Geometry
from anomaly_vae.models.hierarchical import (
    LEVELS,
    LOG_VAR_BOUNDS,
    BottomUp,
    HierarchicalAutoencoder,
    HierarchicalVAE,
    Level,
    TopDown,
)
from anomaly_vae.training.kinds import KINDS

LAYOUT = ImageLayout(1, 16)


def rows(n: int, layout: ImageLayout = LAYOUT, seed: int = 0) -> Tensor:
    return torch.rand((n, layout.n_columns), generator=torch.Generator().manual_seed(seed))


def model(layout: ImageLayout = LAYOUT, **keys: object) -> HierarchicalVAE:
    """Return an untrained model whose normalisation has the statistics of some images."""
    config = {"network": "hierarchical", "width": 4, "latent_dim": 4, **keys}
    built = build(ImageModelConfig.model_validate(config), layout)
    assert isinstance(built, HierarchicalVAE)
    with torch.no_grad():
        built.train().elbo(rows(16, layout), torch.zeros(1, built.latent_dim))
    return built.eval()


@settings(max_examples=10)
@given(st.integers(16, 40), st.sampled_from([1, 3]))
def test_features_and_latents_have_the_sides_of_their_levels(size: int, channels: int) -> None:
    geometry = Geometry(ImageLayout(channels, size), 4, LEVELS)
    decoder = TopDown(geometry, 4, 2)
    encoder = BottomUp(geometry, sum(decoder.sizes))
    features = encoder(rows(2, geometry.layout))
    assert [f.shape[-1] for f in features] == decoder.sides
    assert [f.shape[1] for f in features] == geometry.widths[::-1]
    assert decoder.sides[-1] * 2 == geometry.side
    assert decoder(torch.zeros(2, encoder.latent_dim)).shape == (2, 2 * size**2)


def test_latents_of_a_level_are_maps_of_its_side() -> None:
    decoder = TopDown(Geometry(LAYOUT, 4, LEVELS), 4, 1)
    assert decoder.channels == [4, 2, 1]
    for level, size in enumerate(decoder.sizes):
        maps = decoder.as_maps(torch.arange(2.0 * size).view(2, size), level)
        side = decoder.sides[level]
        assert maps.shape == (2, decoder.channels[level], side, side)
        assert torch.equal(maps.flatten(1), torch.arange(2.0 * size).view(2, size))


def test_draws_decode_each_on_its_own() -> None:
    decoder = model().decoder
    z = torch.randn(3, 2, sum(decoder.sizes), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = decoder(z)
        for draw in range(2):
            torch.testing.assert_close(together[:, draw], decoder(z[:, draw]))


def test_every_level_changes_the_image() -> None:
    decoder = model().decoder
    z = torch.zeros(1, sum(decoder.sizes))
    starts = [sum(decoder.sizes[:level]) for level in range(LEVELS)]
    with torch.no_grad():
        plain = decoder(z)
        for start, size in zip(starts, decoder.sizes, strict=True):
            moved = z.clone()
            moved[:, start : start + size] = 10
            assert (decoder(moved) - plain).abs().max() > 1e-6


def test_what_is_inferred_decodes_to_its_outputs() -> None:
    """Inference and decoding descend the same levels."""
    vae, x = model(), rows(3)
    noise = torch.randn(3, 2, vae.latent_dim, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mean, log_var, z, outputs = vae.infer(x, noise)
        torch.testing.assert_close(z, mean + torch.exp(0.5 * log_var) * noise)
        torch.testing.assert_close(outputs, vae.decoder(z))


def test_finer_levels_depend_on_what_coarser_ones_drew() -> None:
    vae, x = model(), rows(2)
    coarse = vae.decoder.sizes[0]
    noise = torch.zeros(1, vae.latent_dim)
    moved = noise.clone()
    moved[:, :coarse] = 2
    with torch.no_grad():
        one, other = vae.infer(x, noise).mean[:, 0], vae.infer(x, moved).mean[:, 0]
    torch.testing.assert_close(one[:, :coarse], other[:, :coarse])
    assert not torch.allclose(one[:, coarse:], other[:, coarse:], atol=1e-4)


def test_the_posterior_is_that_along_the_means() -> None:
    vae, x = model(), rows(3)
    with torch.no_grad():
        mean, log_var = vae.posterior(x)
        found = vae.infer(x, torch.zeros(1, vae.latent_dim))
    assert mean.shape == log_var.shape == (3, vae.latent_dim)
    torch.testing.assert_close(mean, found.mean[:, 0])
    torch.testing.assert_close(found.mean, found.z)


def test_the_divergence_is_that_of_normals_from_the_standard_one() -> None:
    vae, x = model(), rows(3)
    noise = torch.zeros(1, vae.latent_dim)
    with torch.no_grad():
        found, terms = vae.infer(x, noise), vae.elbo(x, noise)
    expected = 0.5 * (found.mean**2 + found.log_var.exp() - 1 - found.log_var)
    torch.testing.assert_close(terms.kl.flatten(), expected.flatten(), rtol=1e-4, atol=1e-4)


def test_the_log_variance_is_bounded_however_far_the_state() -> None:
    level = Level(4, 2, "zeros")
    state = 1e6 * torch.randn(5, 4, 8, 8)
    _, log_var = level.infer(state, state)
    assert log_var.min() >= LOG_VAR_BOUNDS[0]
    assert log_var.max() <= LOG_VAR_BOUNDS[1]


@pytest.mark.parametrize("type_", ["vae", "autoencoder"])
def test_every_parameter_of_the_networks_learns(type_: str) -> None:
    vae = model(type=type_).train()
    noise = torch.randn(1, vae.latent_dim, generator=torch.Generator().manual_seed(3))
    (-vae.elbo(rows(8), noise).bound.mean()).backward()
    still = {name for name, p in vae.named_parameters() if p.grad is None}
    assert not {name for name in still if name.startswith(("encoder", "decoder"))}


def test_the_autoencoder_draws_nothing() -> None:
    twin, x = model(type="autoencoder"), rows(2)
    assert isinstance(twin, HierarchicalAutoencoder)
    with torch.no_grad():
        one, other = (
            twin.elbo(x, noise).log_prob
            for noise in (torch.zeros(1, twin.latent_dim), torch.ones(1, twin.latent_dim))
        )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("upsampling", ["resize", "shuffle"])
def test_only_enlarging_linearly_leaves_neither_grid_nor_frame(upsampling: str) -> None:
    built = model(ImageLayout(1, 32), upsampling=upsampling)
    with torch.no_grad():
        image = built.decoder(torch.zeros(1, built.latent_dim))
    assert (image.std() < 1e-5) == (upsampling == "resize")


def test_a_model_of_an_earlier_version_keeps_its_upsampling() -> None:
    section = ImageModelConfig(width=4, upsampling="resize").model_dump()
    encoding = ImageEncoding(LAYOUT, "standardise")
    new = KINDS["image"].build_stored(section, encoding).decoder
    old = (
        KINDS["image"]
        .build_stored(
            {key: value for key, value in section.items() if key != "upsampling"}, encoding
        )
        .decoder
    )
    assert isinstance(new, TopDown)
    assert isinstance(old, TopDown)
    assert (new.enlargement, old.enlargement) == ("bilinear", "nearest")
