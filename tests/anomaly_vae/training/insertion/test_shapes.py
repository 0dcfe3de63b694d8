"""Shapes of anomalies lie in [0, 1], around tissue, in the size that they are drawn in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from anomaly_vae.training.insertion.draws import Draw
from anomaly_vae.training.insertion.shapes import LINE_REACH, SEMI_AXES, ellipses, islands, lines

SIDE = 48
SHAPES = [islands, ellipses, lines]


def draw_of(n: int, seed: int = 0) -> Draw:
    """Return a draw for images whose tissue is one pixel."""
    images = torch.zeros(n, 1, SIDE, SIDE)
    tissue = images > 0
    tissue[:, :, 20, 30] = True
    return Draw(images, tissue, images, tissue, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_a_share_of_each_pixel(shape: Callable[[Draw], Tensor]) -> None:
    share = shape(draw_of(30))
    assert share.shape == (30, 1, SIDE, SIDE)
    assert share.min() >= 0
    assert share.max() <= 1
    assert (share > 0.5).flatten(1).any(1).all()


@pytest.mark.parametrize("shape", [ellipses, lines])
def test_a_shape_goes_through_tissue(shape: Callable[[Draw], Tensor]) -> None:
    assert (shape(draw_of(30))[:, 0, 20, 30] > 0.7).all()


def test_ellipses_have_their_size() -> None:
    areas = (ellipses(draw_of(200)) > 0.5).float().sum((1, 2, 3))
    low, high = (torch.pi * (axis * SIDE) ** 2 for axis in SEMI_AXES)
    assert areas.min() > 0.3 * low
    assert areas.max() < 1.1 * high
    assert areas.std() > 20


def test_lines_are_thin_and_long() -> None:
    share = lines(draw_of(200)) > 0.5
    thick = torch.nn.functional.avg_pool2d(share.float(), 5, 1) == 1
    assert thick.float().mean() < 1e-3
    reach = LINE_REACH[0] * SIDE
    assert (share.float().sum((1, 2, 3)) > reach).float().mean() > 0.9


def test_shapes_differ_between_images() -> None:
    for shape in SHAPES:
        one, other = shape(draw_of(2))
        assert not torch.equal(one, other)
