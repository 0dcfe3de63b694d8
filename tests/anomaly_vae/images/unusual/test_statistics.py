"""Statistics of images change with what they describe, and with nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.images.unusual.statistics import (
    blocks,
    describe,
    gradients,
    names,
    pooled,
    standardise,
)

GRID = np.linspace(-1, 1, 32)
NOISE = np.random.default_rng(0).normal(size=(32, 32))
DISC = 1 / (1 + np.exp(12 * (np.hypot(GRID[:, None], 1.6 * GRID) - 0.6)))


def statistics(image: np.ndarray) -> dict[str, float]:
    return dict(zip(names(len(image), 1), describe(image).tolist(), strict=True))


@pytest.mark.parametrize("size", [4, 7, 16, 28, 33, 64, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_has_finite_statistics_with_names(size: int, channels: int) -> None:
    rng = np.random.default_rng(size)
    for image in (rng.random((size, size)), np.zeros((size, size)), 9 * np.eye(size)):
        colour = np.stack([image, image * 2, image.T]) if channels == 3 else None
        values = describe(image, colour)
        assert len(values) == len(names(size, channels))
        assert np.isfinite(values).all()
        assert np.isfinite(gradients(standardise(image))).all()


def test_noise_has_fine_detail_and_a_disc_has_not() -> None:
    noise, disc = statistics(NOISE), statistics(DISC)
    assert noise["detail 0"] > disc["detail 0"] + 2
    assert noise["constant"] < disc["constant"]


def test_contrast_and_brightness_change_only_the_statistics_of_that_name() -> None:
    usual, bright = statistics(DISC), statistics(3 * DISC + 1)
    for name, value in usual.items():
        if name in ("brightness", "contrast"):
            assert bright[name] != pytest.approx(value)
        else:
            assert bright[name] == pytest.approx(value, abs=1e-6)


def test_turning_exchanges_directions() -> None:
    usual, turned = statistics(DISC), statistics(np.rot90(DISC))
    assert turned["direction 2"] == pytest.approx(-usual["direction 2"])
    assert turned["edges extent x"] == pytest.approx(usual["edges extent y"])


def test_a_blank_half_is_seen_on_every_side() -> None:
    assert statistics(NOISE)["blank half"] < 1
    for turns in range(4):
        image = np.rot90(NOISE, turns).copy()
        image[:16] = 0
        assert statistics(np.rot90(image, -turns))["blank half"] > 3


def test_gradients_turn_with_the_image() -> None:
    right = np.tile(GRID, (32, 1))
    for cells in (8, 16):
        found = [gradients(image, cells).reshape(-1, 8) for image in (right, right.T)]
        assert [len(histogram) for histogram in found] == [cells**2] * 2
        assert [histogram.sum(0).argmax() for histogram in found] == [0, 2]


def test_blocks_are_means_of_nearly_equal_areas() -> None:
    np.testing.assert_allclose(blocks(NOISE, 8), NOISE.reshape(8, 4, 8, 4).mean((1, 3)))
    assert blocks(NOISE[:30, :30], 8).shape == (8, 8)
    assert blocks(NOISE, 64) is NOISE


@pytest.mark.parametrize("size", [7, 16, 32, 33])
def test_pooled_gradients_count_the_same_in_larger_cells(size: int) -> None:
    image = standardise(np.random.default_rng(1).random((size, size)))
    fine, coarse = gradients(image), pooled(gradients(image), 8)
    assert len(coarse) == min(size, 8) ** 2 * 8
    np.testing.assert_allclose((fine**2).sum(), (coarse**2).sum())
    if size in (16, 32):
        np.testing.assert_allclose(coarse, gradients(image, 8))
