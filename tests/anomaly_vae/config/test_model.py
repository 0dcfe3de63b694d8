"""Sizes of a model that are not given follow from the data."""

from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.config.model import ImageModelConfig, ModelConfig


@given(st.integers(1, 3_000))
def test_absent_sizes_are_chosen_within_their_bounds(n_columns: int) -> None:
    model = ModelConfig().resolve(n_columns)
    assert model.latent_dim is not None
    assert model.hidden_dim is not None
    assert 1 <= model.latent_dim <= 64
    assert 64 <= model.hidden_dim <= 256


def test_given_sizes_are_not_chosen() -> None:
    model = ModelConfig(latent_dim=3, hidden_dim=5).resolve(100)
    assert (model.latent_dim, model.hidden_dim) == (3, 5)


def test_the_latent_size_of_images_has_a_default() -> None:
    assert ImageModelConfig(network="convolutional").resolve(4096).latent_dim == 16
