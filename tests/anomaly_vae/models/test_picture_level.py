"""The picture level: the density of a linear VAE, few or equal pictures, the weight of patches."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from anomaly_vae.models.picture_level import MAX_LATENTS, MIN_VARIANCE, PictureLevel, extremes


def rows(n: int, columns: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, 3, generator=generator)
    mixing = 2 * torch.randn(3, columns, generator=generator)
    return 5 + latents @ mixing + torch.randn(n, columns, generator=generator)


def test_extremes_are_taken_of_each_feature_over_all_positions() -> None:
    maps = torch.zeros(2, 3, 4, 4)
    maps[1, 2, 3, 0], maps[1, 0, 1, 1] = 7.0, -2.0
    assert extremes(maps).tolist() == [[0.0] * 6, [0.0, 0.0, 7.0, -2.0, 0.0, 0.0]]


def test_the_bound_is_the_density_of_the_linear_model() -> None:
    level, new = PictureLevel.fit(rows(30)), rows(5, seed=1)
    spread = level.axes * (level.variance - level.noise)
    covariance = spread @ level.axes.T + level.noise * torch.eye(12)
    density = MultivariateNormal(torch.zeros(12), covariance)
    expected = -density.log_prob((new - level.center) / level.scale)
    torch.testing.assert_close(level(new), expected, rtol=1e-4, atol=1e-3)


def test_rows_of_the_same_kind_are_likelier_than_others() -> None:
    level = PictureLevel.fit(rows(200))
    usual = rows(50)
    shuffled = usual.gather(0, torch.rand(50, 12).argsort(0))
    assert level(usual).mean() < level(shuffled).mean()


@pytest.mark.parametrize("n", [1, 2, 9])
def test_few_pictures_leave_the_bound_finite(n: int) -> None:
    level = PictureLevel.fit(rows(n))
    assert level.axes.shape == (12, max(1, n // 2))
    assert level.noise >= MIN_VARIANCE
    assert level(rows(3)).isfinite().all()


def test_many_pictures_have_a_limited_number_of_latents() -> None:
    assert PictureLevel.fit(rows(150, 100)).axes.shape == (100, MAX_LATENTS)


def test_equal_pictures_are_no_error() -> None:
    assert PictureLevel.fit(torch.ones(9, 12))(torch.ones(2, 12)).isfinite().all()


def test_patches_deviate_as_much_as_pictures_once_weighted() -> None:
    level, generator = PictureLevel.fit(rows(30)), torch.Generator().manual_seed(0)
    pictures, patches = torch.randn(2, 20, generator=generator) * torch.tensor([[3.0], [90.0]])
    level.balance(pictures, patches)
    torch.testing.assert_close((level.share * patches).std(), pictures.std())


@pytest.mark.parametrize("patches", [[4.0], [4.0, 4.0], [4.0, 4.1]])
def test_patches_count_once_at_most(patches: list[float]) -> None:
    level = PictureLevel.fit(rows(30))
    level.balance(torch.arange(float(len(patches))), torch.tensor(patches))
    assert level.share.item() == 1
