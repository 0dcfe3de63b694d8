"""The localization head gives log-odds for each pixel of images of any size."""

from __future__ import annotations

import pytest
import torch

from anomaly_vae.config.model import ImageModelConfig
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.models.convolutional import Geometry
from anomaly_vae.models.hierarchical import LEVELS
from anomaly_vae.models.localization_head import INITIAL_LOG_ODDS, LocalizationHead
from anomaly_vae.training.kinds import KINDS


def head(size: int = 16, channels: int = 1, symmetric: bool = True) -> LocalizationHead:
    torch.manual_seed(0)
    return LocalizationHead(Geometry(ImageLayout(channels, size), 4, LEVELS), symmetric)


def images(n: int, size: int = 16, channels: int = 1) -> torch.Tensor:
    return torch.randn(n, channels * size**2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (17, 3), (29, 1), (32, 3)])
def test_every_pixel_has_its_log_odds(size: int, channels: int) -> None:
    found = head(size, channels)(images(2, size, channels))
    assert found.shape == (2, size**2)
    assert found.isfinite().all()


def test_an_untrained_head_expects_few_anomalies() -> None:
    found = head()(images(8))
    assert found.mean().item() == pytest.approx(INITIAL_LOG_ODDS, abs=1)
    assert torch.sigmoid(found).mean() < 0.15


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_parameter_learns(symmetric: bool) -> None:
    net = head(symmetric=symmetric)
    (net(images(4)) ** 2).sum().backward()
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_in_evaluation_an_image_is_judged_alone_as_among_others() -> None:
    net, x = head(), images(6)
    net(x)  # moves the statistics of batch norm
    net.eval()
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]))


def test_it_learns_to_find_bright_squares() -> None:
    net, generator = head(), torch.Generator().manual_seed(2)
    x = 0.1 * torch.randn(32, 1, 16, 16, generator=generator)
    mask = torch.zeros_like(x)
    for row, place in enumerate(torch.randint(0, 12, (32, 2), generator=generator).tolist()):
        mask[row, 0, place[0] : place[0] + 4, place[1] : place[1] + 4] = 1
    x, mask = (x + mask).flatten(1), mask.flatten(1)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x), mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = net(x)
    assert found[mask == 1].mean() > 0 > found[mask == 0].mean()


@pytest.mark.parametrize("symmetric", [True, False])
@torch.no_grad()
def test_only_a_symmetric_head_sees_the_opposite_place(symmetric: bool) -> None:
    net, x = head(128, symmetric=symmetric).eval(), images(1, 128)
    changed = x.unflatten(1, (128, 128)).clone()
    changed[:, 56:72, 4:12] += 5
    change = (net(changed.flatten(1)) - net(x)).unflatten(1, (128, 128)).abs()
    assert (change[:, 60:68, 118:124].max() > 1e-5).item() is symmetric
    assert change[:, 60:68, 4:12].max() > 1e-5


def test_a_head_of_an_earlier_version_is_not_symmetric() -> None:
    section = ImageModelConfig(width=4, localization_head=True).resolve(256).model_dump()
    encoding = ImageEncoding(ImageLayout(1, 16), "standardise")
    earlier = {key: value for key, value in section.items() if key != "symmetry"}
    new, old = (
        KINDS["image"].build_stored(stored, encoding).contamination for stored in (section, earlier)
    )
    assert isinstance(new, LocalizationHead)
    assert isinstance(old, LocalizationHead)
    assert (new.symmetric, old.symmetric) == (True, False)
