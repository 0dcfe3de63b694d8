"""What a model of images imagines: pictures on [0, 1], repeatable, as the graph expects them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.config.training import CorruptionConfig
from anomaly_vae.data.splitting import TEST, TRAIN
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.generation import images, latent_space
from anomaly_vae.images.encoding import STANDARDISED_MEAN
from anomaly_vae.images.schema import image_batch
from pipelines.datasets.images.dataset import ImageDataset
from tests.support.untrained import untrained

MODELS: dict[str, dict[str, Any]] = {
    "dense": {"network": "dense"},
    "convolutional": {"network": "convolutional", "upsampling": "transposed"},
    "residual": {"network": "residual", "likelihood": "laplace"},
    "hierarchical": {"network": "hierarchical", "latent_dim": 2},
    "contaminated": {"network": "hierarchical", "latent_dim": 2, "localization_head": True},
    "structural": {"likelihood": "structural"},
    "contrast": {"likelihood": "contrast"},
    "bernoulli, colour": {"likelihood": "bernoulli", "channels": 3},
    "odd size": {"size": 21},
}


@pytest.mark.parametrize("kind", ["vae", "autoencoder"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_model_generates(kind: str, model: dict[str, Any]) -> None:
    bundle = untrained(type=kind, **model)
    shape = bundle.scorer.encoding.layout.shape
    x = torch.from_numpy(np.random.default_rng(0).random((3, int(np.prod(shape))), np.float32))
    made = {
        "sample": images.sample(bundle, 2),
        "reconstruct": images.reconstruct(bundle, x),
        "interpolate": images.interpolate(bundle, x, steps=4)[1],
        "traverse": images.traverse(bundle, x, [1, 0], steps=3)[2],
    }
    for (name, pictures), count in zip(made.items(), (2, 3, 4, 6), strict=True):
        assert pictures.shape == (count, *shape), name
        assert pictures.min() >= 0, name
        assert pictures.max() <= 1, name


def test_components_start_from_an_image_or_the_mean_and_the_first_varies_most(
    image_bundle: Bundle,
) -> None:
    drawing = latent_space.load_model(image_bundle).drawing
    assert drawing is not None
    which, distance, made = images.traverse_components(image_bundle, None, [1, 0], 2.0, 3)
    assert (which.tolist(), distance.tolist()) == ([1] * 3 + [0] * 3, [-2, 0, 2] * 2)
    first = drawing.basis[drawing.basis.norm(dim=1).argmax()]
    np.testing.assert_allclose(
        made[5:], images.decode(image_bundle, (drawing.mean + 2 * first)[None]), atol=1e-5
    )
    x = torch.rand(1, image_bundle.scorer.encoding.layout.n_columns)
    own = images.traverse_components(image_bundle, x, [0], steps=3)[2]
    np.testing.assert_allclose(own[1:2], images.reconstruct(image_bundle, x), atol=1e-5)


def test_components_that_a_model_lacks_are_refused(image_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="no latent dimension 99"):
        images.traverse_components(image_bundle, None, [99])
    with pytest.raises(ConfigError, match="stores no components; choose dimensions"):
        images.traverse_components(untrained(), None, [0])


def test_samples_repeat_by_seed_and_are_decoded_from_latents_like_those_of_training(
    image_bundle: Bundle,
) -> None:
    first = images.sample(image_bundle, 3, seed=1)
    np.testing.assert_array_equal(first, images.sample(image_bundle, 3, seed=1))
    assert not np.allclose(first, images.sample(image_bundle, 3, seed=2))
    drawing = latent_space.load_model(image_bundle).drawing
    assert drawing is not None
    z = drawing.sample(3, torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(first, images.decode(image_bundle, z))


def test_a_model_of_an_earlier_version_samples_from_its_prior() -> None:
    bundle = load_bundle("tests/fixtures/format-2/image")
    model = latent_space.load_model(bundle)
    assert model.drawing is None
    z = torch.randn(3, model.latent_dim, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(images.sample(bundle, 3, seed=1), images.decode(bundle, z))


def test_latents_are_drawn_as_those_of_the_training_images(
    image_bundle: Bundle, image_dataset: ImageDataset
) -> None:
    drawing = latent_space.load_model(image_bundle).drawing
    assert drawing is not None
    means = latent_space.latent_means(image_bundle, image_dataset.part(TRAIN))
    torch.testing.assert_close(drawing.mean, means.mean(0), rtol=1e-4, atol=1e-5)
    spread = drawing.basis.T @ drawing.basis
    torch.testing.assert_close(spread, means.T.cov(), rtol=1e-3, atol=1e-5)


def test_no_sample_is_refused(image_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        images.sample(image_bundle, 0)


def test_a_reconstruction_is_what_the_scoring_graph_expects(
    image_bundle: Bundle, image_dataset: ImageDataset
) -> None:
    scans = image_dataset.part(TEST)
    scorer = image_bundle.scorer
    expected = scorer.encoding.to_images(scorer.explain(scans).expected)  # type: ignore[union-attr]
    made = images.reconstruct(image_bundle, scans)
    np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-4)


def test_a_path_begins_and_ends_at_the_images(
    image_bundle: Bundle, image_dataset: ImageDataset
) -> None:
    scans = image_dataset.part(TEST)
    ends = images.reconstruct(image_bundle, scans)[:2]
    paths = {}
    for shape in ("linear", "spherical"):
        share, made = images.interpolate(image_bundle, scans, steps=5, shape=shape)
        assert share.tolist() == [0, 0.25, 0.5, 0.75, 1]
        np.testing.assert_allclose(made[[0, 4]], ends, rtol=1e-3, atol=1e-4)
        paths[shape] = made
    assert not np.allclose(paths["linear"][2], paths["spherical"][2], atol=1e-6)


def test_a_traversal_without_an_image_starts_from_the_prior_mean(image_bundle: Bundle) -> None:
    which, values, made = images.traverse(image_bundle, None, [3, 1], span=2, steps=3)
    assert which.tolist() == [3, 3, 3, 1, 1, 1]
    assert values.tolist() == [-2, 0, 2, -2, 0, 2]
    origin = images.decode(image_bundle, np.zeros((1, 4), np.float32))[0]
    for row in (1, 4):
        np.testing.assert_allclose(made[row], origin, rtol=1e-4, atol=1e-5)


def test_the_grid_is_the_plane_of_two_latents_and_of_no_other_number() -> None:
    bundle = untrained(latent_dim=2)
    z, pictures = images.grid(bundle, 3)
    assert pictures.shape == (9, 1, 16, 16)
    np.testing.assert_allclose(pictures[[4]], images.decode(bundle, z[[4]]), atol=1e-6)
    assert z[4].tolist() == [0, 0]
    with pytest.raises(DataError, match="latents of shape"):
        images.grid(untrained(latent_dim=3), 3)


def test_no_image_gives_no_picture() -> None:
    assert images.reconstruct(untrained(), torch.zeros(0, 256)).shape == (0, 1, 16, 16)


# ---------------------------------------------------------------- corruption


def test_corruption_is_repeatable_and_only_where_it_belongs() -> None:
    bundle, x = untrained(), torch.rand(4, 256)
    config = CorruptionConfig(type="mask", strength=0.5)
    seen = images.corrupt(bundle, x, config, seed=1)
    torch.testing.assert_close(seen, images.corrupt(bundle, x, config, seed=1))
    assert not torch.equal(seen, images.corrupt(bundle, x, config, seed=2))
    hidden = seen != x
    assert hidden.sum(1).tolist() == [64] * 4
    assert (seen[hidden] == STANDARDISED_MEAN).all()


@pytest.mark.parametrize("config", [{"type": "none"}, {"type": "coarse", "strength": 0.0}])
def test_no_corruption_leaves_the_images_alone(config: dict[str, Any]) -> None:
    x = torch.rand(2, 256)
    seen = images.corrupt(untrained(), x, CorruptionConfig.model_validate(config))
    torch.testing.assert_close(seen, x, rtol=0, atol=0)


@given(st.floats(1e-4, 1), st.integers(1, 3))
def test_the_ratio_of_a_constant_error_is_its_closed_form(error: float, count: int) -> None:
    truth = np.zeros((count, 1, 4, 4), np.float32)
    ratio = images.psnr(truth + np.float32(error), truth)
    np.testing.assert_allclose(ratio, np.full(count, -20 * np.log10(error)), rtol=1e-4, atol=1e-4)


def test_equal_pictures_have_the_largest_ratio_there_is() -> None:
    pictures = np.random.default_rng(0).random((2, 3, 5, 5), np.float32)
    assert images.psnr(pictures, pictures).tolist() == pytest.approx([100, 100])


def test_pictures_as_they_came_and_encoded_are_the_same(image_bundle: Bundle) -> None:
    raw = image_batch(np.random.default_rng(0).random((2, 1, 24, 24), np.float32))
    x = latent_space.encoded(image_bundle, raw)
    one, other = (images.reconstruct(image_bundle, rows) for rows in (raw, x))
    np.testing.assert_array_equal(one, other)
