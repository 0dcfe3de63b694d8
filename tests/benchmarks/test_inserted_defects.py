"""Cracks that are inserted into tiles are thin, and are where their mask says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.inserted_defects import with_crack


@pytest.mark.parametrize("shape", [(200, 120), (64, 64)])
def test_a_crack_changes_the_pixels_of_its_mask_and_hardly_others(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0.3, 0.7, shape)
    for seed in range(10):
        cracked, mask = with_crack(image, np.random.default_rng(seed))
        change = np.abs(cracked - image)
        assert mask.any()
        assert mask.mean() < 0.1
        assert change[mask].min() > 0.2 * image.std()
        assert change[~mask].max() <= change[mask].max()
        assert (change[~mask] > 0).mean() < 0.05


def test_the_same_seed_draws_the_same_crack() -> None:
    image = np.random.default_rng(0).uniform(0.3, 0.7, (80, 90))
    one, same, other = (with_crack(image, np.random.default_rng(seed))[1] for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
