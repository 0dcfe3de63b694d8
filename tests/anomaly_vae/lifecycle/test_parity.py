"""A bundle's graph against its own weights: tables and images, sound and altered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import TEST
from anomaly_vae.generation.latent_space import load_ensemble, load_model
from anomaly_vae.lifecycle.parity import parity
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.images.dataset import ImageDataset


@pytest.fixture(params=["tabular", "image"])
def made(
    request: pytest.FixtureRequest,
    calibrated: Bundle,
    dataset: Dataset,
    image_calibrated: Bundle,
    image_dataset: ImageDataset,
) -> tuple[Bundle, RawBatch]:
    """A bundle and rows that it can read."""
    if request.param == "tabular":
        return calibrated, dataset.part(TEST)
    return image_calibrated, image_dataset.part(TEST)


def test_a_sound_graph_is_its_weights(made: tuple[Bundle, RawBatch]) -> None:
    bundle, batch = made
    found = parity(bundle, batch)
    assert found.problem is None
    assert found.error is not None
    assert 0 <= found.error < 1e-4
    assert found.rows == len(batch)


def test_a_graph_with_other_weights_is_found(made: tuple[Bundle, RawBatch]) -> None:
    """The graph reads the file by place; here the model is read from another file."""
    bundle, batch = made
    scorer = bundle.scorer
    tensors = load(bundle.weights)
    for name in (name for name in tensors if name.startswith("decoder") and "weight" in name):
        tensors[name] = tensors[name] * np.float32(1.01)
    other = replace(bundle, weights=save(tensors))
    other.__dict__["scorer"] = scorer  # what the session has in memory
    found = parity(other, batch)
    assert found.error is None
    assert found.problem is not None
    assert "differs from the model" in found.problem


def test_a_guard_is_restored_with_its_reach(calibrated: Bundle) -> None:
    reach = load_ensemble(calibrated).reach
    assert reach is not None
    assert reach > 0
    assert load_model(calibrated).reach is None


def test_all_members_are_restored_and_generation_takes_the_first(calibrated: Bundle) -> None:
    every, first = load_ensemble(calibrated), load_model(calibrated)
    assert (every.members, first.members) == (3, 1)
    weights = every.state_dict()
    for name, value in first.state_dict().items():
        assert (weights[name][0].reshape(value.shape) == value).all()


def test_exemplars_are_restored_and_generation_does_without(calibrated: Bundle) -> None:
    exemplars = load_ensemble(calibrated).exemplars
    assert exemplars is not None
    stored = load(calibrated.weights)
    for name, value in exemplars.state_dict().items():
        np.testing.assert_array_equal(value, stored[f"exemplars.{name}"])
    assert load_model(calibrated).exemplars is None
