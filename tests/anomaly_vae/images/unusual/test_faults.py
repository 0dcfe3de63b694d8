"""Simulated faults change an image in the way their names say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.images.unusual.faults import FAULTS
from anomaly_vae.images.unusual.typicality import SIGNS, WORDS

IMAGE = np.random.default_rng(0).random((1, 16, 16))


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_fault_keeps_the_shape_and_follows_the_seed(name: str, channels: int) -> None:
    image = np.repeat(IMAGE, channels, axis=0)
    a, b = (FAULTS[name](image, np.random.default_rng(3)) for _ in range(2))
    assert a.shape == image.shape
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, image)


def test_every_fault_has_signs_and_words() -> None:
    assert list(FAULTS) == list(SIGNS) == list(WORDS)


def test_half_blank_leaves_the_other_half_as_it_is() -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        same = (FAULTS["half blank"](IMAGE, rng) == IMAGE).mean()
        assert 0.5 <= same < 0.52


def test_turning_and_inverting_keep_the_values() -> None:
    rng = np.random.default_rng(0)
    for name in ("turned", "upside down"):
        np.testing.assert_array_equal(np.sort(FAULTS[name](IMAGE, rng), None), np.sort(IMAGE, None))
    np.testing.assert_array_equal(FAULTS["inverted"](IMAGE, rng), -IMAGE)


def test_blur_removes_variation_and_noise_adds_it() -> None:
    rng = np.random.default_rng(0)
    wide = np.random.default_rng(0).random((1, 64, 64))
    assert FAULTS["blurred"](wide, rng).std() < wide.std() / 2
    assert FAULTS["noisy"](wide, rng).std() > wide.std()
