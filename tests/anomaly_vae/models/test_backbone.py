"""The rows of patches: shapes, equality with a plain computation, and their rotation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.backbone import N_FEATURES, PIXEL_MEAN, PIXEL_STD, FrozenConv, Patches
from anomaly_vae.models.pretrained import load_pretrained


def loaded(size: int = 64, channels: int = 1) -> Patches:
    patches = Patches(ImageLayout(channels, size))
    load_pretrained(patches.network, "efficientnet_lite0")
    return patches


def images(n: int, size: int = 64, channels: int = 1) -> torch.Tensor:
    return torch.rand(n, channels * size**2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "channels", "grid"), [(16, 1, 1), (33, 3, 3), (64, 1, 4)])
def test_every_position_is_a_row(size: int, channels: int, grid: int) -> None:
    rows = loaded(size, channels)(images(2, size, channels))
    assert rows.shape == (2, grid**2, N_FEATURES)
    assert rows.isfinite().all()


def test_grey_is_colour_of_three_equal_channels() -> None:
    grey = images(2)
    found = loaded(channels=3).maps(grey.repeat(1, 3))
    torch.testing.assert_close(found, loaded().maps(grey))


def test_a_row_averages_a_position_and_its_neighbours() -> None:
    patches, x = loaded(), images(1)
    colours = (x.view(1, 1, 64, 64).repeat(1, 3, 1, 1) - PIXEL_MEAN) / PIXEL_STD
    maps = patches.network(colours)[0]
    rows = patches.features(patches.maps(x)).view(4, 4, N_FEATURES)
    torch.testing.assert_close(rows[0, 0], maps[:, :2, :2].mean((1, 2)))
    torch.testing.assert_close(rows[2, 1], maps[:, 1:4, 0:3].mean((1, 2)))


@pytest.mark.parametrize(("side", "pads"), [(8, (0, 1)), (9, (1, 1))])
def test_strides_pad_more_at_the_end(side: int, pads: tuple[int, int]) -> None:
    layer = FrozenConv(1, 1, 3, 2, 1)
    layer.weight.copy_(torch.rand(1, 1, 3, 3))
    x = torch.rand(1, 1, side, side)
    naive = F.conv2d(F.pad(x, (*pads, *pads)), layer.weight, stride=2)
    torch.testing.assert_close(layer(x), naive)


def test_no_weight_is_a_parameter() -> None:
    assert not list(loaded().parameters())


def test_rotated_features_are_uncorrelated_and_keep_distances() -> None:
    patches = loaded()
    mixing = torch.randn(N_FEATURES, N_FEATURES, generator=torch.Generator().manual_seed(1))
    features = (
        3 + torch.randn(1000, N_FEATURES, generator=torch.Generator().manual_seed(2)) @ mixing
    )
    patches.fit_rotation(features)
    rows = patches.rotated(features)
    covariance = torch.cov(rows.T)
    variance = covariance.diagonal()
    assert (covariance - variance.diag()).abs().max() < 1e-2
    assert (variance[:-1] >= variance[1:] - 1e-3).all()
    standard = (features - features.mean(0)) / features.std(0)
    torch.testing.assert_close(
        torch.cdist(rows[:5], rows[5:9]),
        torch.cdist(standard[:5], standard[5:9]),
        rtol=1e-3,
        atol=0,
    )


def test_constant_features_stay_finite() -> None:
    patches = loaded()
    patches.fit_rotation(torch.ones(20, N_FEATURES))
    assert patches.rotated(torch.ones(3, N_FEATURES)).isfinite().all()
