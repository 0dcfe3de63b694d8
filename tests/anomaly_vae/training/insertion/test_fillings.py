"""Shapes are filled with something other than what was there."""

from __future__ import annotations

import pytest
import torch

from anomaly_vae.images.encoding import STANDARDISED_STD
from anomaly_vae.training.insertion.draws import Draw
from anomaly_vae.training.insertion.fillings import filling
from tests.support.scans import smooth


@pytest.mark.parametrize("channels", [1, 3])
def test_a_filling_differs_from_most_of_the_image(channels: int) -> None:
    images = torch.from_numpy(smooth(60, 32, channels))
    draw = Draw(images, images > 0, images, images > 0, torch.Generator().manual_seed(0))
    filled = filling(draw)
    assert filled.shape == images.shape
    change = (filled - images).abs().mean((1, 2, 3)) / STANDARDISED_STD
    assert (change > 0.1).float().mean() > 0.9
    assert change.max() < 5


def test_a_single_image_is_filled_too() -> None:
    images = torch.from_numpy(smooth(1, 16))
    for seed in range(12):
        draw = Draw(images, images > 0, images, images > 0, torch.Generator().manual_seed(seed))
        assert filling(draw).isfinite().all()
