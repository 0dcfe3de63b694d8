"""Images are varied in place and tone; their brightness, contrast and range of places stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomaly_vae.training.insertion.variation import toned, warped
from tests.support.scans import smooth

SIDE = 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 40, channels: int = 1) -> Tensor:
    return torch.from_numpy(smooth(n, SIDE, channels))


def varied(of: Tensor, seed: int = 0) -> Tensor:
    source = generator(seed)
    return toned(warped(of, source), source)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_differs_from_before_and_has_its_brightness_and_contrast(channels: int) -> None:
    before = images(channels=channels)
    warp = warped(before, generator())
    after = toned(warp, generator())
    assert after.shape == before.shape
    assert (after - before).abs().amax((1, 2, 3)).min() > 0.01
    torch.testing.assert_close(after.mean((1, 2, 3)), warp.mean((1, 2, 3)))
    torch.testing.assert_close(after.std((1, 2, 3)), warp.std((1, 2, 3)))


def test_the_same_seed_varies_alike_and_another_otherwise() -> None:
    one, same, other = (varied(images(), seed) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_two_copies_of_an_image_are_varied_differently() -> None:
    after = varied(images(1).repeat(8, 1, 1, 1))
    assert all(not torch.equal(after[0], other) for other in after[1:])


def test_warping_moves_pixels_and_makes_no_new_values() -> None:
    before = images()
    after = warped(before, generator())
    assert (after.amax((1, 2, 3)) <= before.amax((1, 2, 3)) + 1e-6).all()
    assert (after.amin((1, 2, 3)) >= before.amin((1, 2, 3)) - 1e-6).all()
    middle = torch.zeros(200, 1, SIDE, SIDE)
    middle[..., SIDE // 2 - 1 : SIDE // 2 + 1, SIDE // 2 - 1 : SIDE // 2 + 1] = 1
    where = warped(middle, generator()).mean((0, 1))
    assert where[8:-8, 8:-8].sum() > 0.99 * where.sum()
    assert where[SIDE // 2, SIDE // 2] < 0.6


def test_tones_change_smoothly_and_keep_most_of_the_order() -> None:
    before = images()
    after = toned(before, generator())
    ranks = [of.flatten(1).argsort(1).argsort(1).float() for of in (before, after)]
    pairs = torch.stack(ranks, 1)
    correlations = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    assert correlations.median() > 0.9
    assert correlations.max() < 1


def test_an_image_of_one_value_stays_finite() -> None:
    after = varied(torch.full((3, 1, SIDE, SIDE), 0.4))
    torch.testing.assert_close(after, torch.full_like(after, 0.4))
