"""The rows that a model of patches is fitted to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.backbone import N_FEATURES, Patches
from anomaly_vae.models.picture_level import extremes
from anomaly_vae.models.pretrained import load_pretrained
from anomaly_vae.training import patches as module
from anomaly_vae.training.patches import patch_rows


def loaded() -> Patches:
    patches = Patches(ImageLayout(1, 64))
    load_pretrained(patches.network, "efficientnet_lite0")
    return patches


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 64**2), np.float32)


def test_few_images_give_all_their_patches() -> None:
    patches = loaded()
    train, validation = patch_rows(patches, images(20, 0), images(3, 1), seed=0, fit=True)
    assert (train.shape, validation.shape) == ((320, N_FEATURES), (48, N_FEATURES))
    assert np.abs(train.mean(0)).max() < 1e-3


def test_many_images_give_some_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PATCHES", 50)
    known, new = images(20, 0), images(3, 1)
    train, validation = patch_rows(loaded(), known, new, seed=0, fit=True)
    assert (len(train), len(validation)) == (40, 3)
    again, _ = patch_rows(loaded(), known, new, seed=0, fit=True)
    other, _ = patch_rows(loaded(), known, new, seed=1, fit=True)
    assert np.array_equal(train, again)
    assert not np.array_equal(train, other)


def test_a_warm_start_keeps_the_rotation() -> None:
    patches = loaded()
    patch_rows(patches, images(20, 0), images(3, 1), seed=0, fit=True)
    rotation = patches.rotation.clone()
    patch_rows(patches, images(20, 2), images(3, 1), seed=0, fit=False)
    assert (patches.rotation == rotation).all()


@pytest.mark.parametrize("fit", [True, False])
def test_the_picture_level_is_fitted_after_the_patches(fit: bool) -> None:
    """Until then it is no part of the model, which processes and checkpoints exchange."""
    patches, x = loaded(), images(20, 0)
    names = patches.state_dict().keys()
    patch_rows(patches, x, images(3, 1), seed=0, fit=fit)
    assert patches.state_dict().keys() == names
    patches.fit_picture()
    assert patches.picture is not None
    expected = extremes(patches.maps(torch.from_numpy(x))).mean(0)
    torch.testing.assert_close(patches.picture.center, expected)
    assert patches.pictures is None
