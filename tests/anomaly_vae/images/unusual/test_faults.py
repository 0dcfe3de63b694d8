"""Simulated faults change an image in the way their names say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.images.unusual.faults import FAULTS, varied
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
    assert list(FAULTS) == list(SIGNS)
    assert FAULTS.keys() == WORDS.keys()


def test_faults_keep_the_numbers_that_bundles_store() -> None:
    older = ["half blank", "noisy", "blurred", "inverted", "turned", "upside down"]
    assert list(FAULTS)[:6] == older


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


@pytest.mark.parametrize("channels", [1, 3])
def test_varied_images_are_mirrored_or_not_and_hardly_change_otherwise(channels: int) -> None:
    """A smooth image stays close to itself, mirrored or not, in all channels alike."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    bump = np.exp(-((x - 0.3) ** 2 + y**2) / 0.3)
    image = np.stack([(1 + i) * bump for i in range(channels)])
    mirrored, rng = 0, np.random.default_rng(0)
    for _ in range(40):
        found = varied(image, rng)
        assert found.shape == image.shape
        away = [np.abs(found - other).mean() for other in (image, image[:, :, ::-1])]
        assert 0 < min(away) < 0.12 < max(away)
        mirrored += away[1] < away[0]
        np.testing.assert_allclose(found[-1], channels * found[0])
    assert 10 <= mirrored <= 30


def test_variations_interpolate_between_pixels() -> None:
    """A plane stays a plane away from the borders, where pixels repeat."""
    y, x = np.mgrid[0:16, 0:16].astype(float)
    for seed in range(5):
        inner = varied((2 * y + x)[None], np.random.default_rng(seed))[0, 4:12, 4:12]
        np.testing.assert_allclose(np.diff(inner, 2, axis=0), 0, atol=1e-9)
        np.testing.assert_allclose(np.diff(inner, 2, axis=1), 0, atol=1e-9)


def test_noise_alone_keeps_nothing_of_the_image() -> None:
    """Its neighbours are independent, or alike, from one image to the next."""
    y, x = np.mgrid[0:1:64j, 0:1:64j]
    found = [FAULTS["noise alone"]((x + y)[None], np.random.default_rng(i))[0] for i in range(20)]
    alike = [np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] for noise in found]
    assert min(alike) < 0.15
    assert 0.35 < max(alike) < 0.55
    assert max(abs(np.corrcoef(noise.ravel(), (x + y).ravel())[0, 1]) for noise in found) < 0.15
