"""Each image gets one of several functions, and random places lie in tissue."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomaly_vae.training.insertion.draws import Draw, mixed


def draw_of(n: int, seed: int = 0) -> Draw:
    images = torch.arange(n, dtype=torch.float32).view(-1, 1, 1, 1).expand(n, 1, 6, 6)
    tissue = torch.zeros(n, 1, 6, 6, dtype=torch.bool)
    tissue[:, :, 1:3, 4] = True
    return Draw(images, tissue, images, tissue, torch.Generator().manual_seed(seed))


def test_each_image_keeps_its_place_whatever_function_is_chosen() -> None:
    draw = draw_of(400)

    def plus(amount: float) -> tuple[float, object]:
        return (0.25 if amount else 0.75), lambda part: part.images + amount

    made = mixed(draw, [plus(0), plus(1000)])  # type: ignore[list-item]  # functions of a draw
    added = (made - draw.images).flatten(1)
    assert set(added.unique().tolist()) == {0, 1000}
    assert (added[:, 0] == 1000).float().mean().item() == pytest.approx(0.25, abs=0.06)


def test_a_function_that_no_image_gets_is_not_called() -> None:
    def fail(_: Draw) -> Tensor:
        raise AssertionError

    made = mixed(draw_of(3), [(0.0, fail), (1.0, lambda part: part.images)])
    assert torch.equal(made, draw_of(3).images)


def test_places_lie_in_tissue() -> None:
    draw = draw_of(50)
    row, column = draw.places(draw.tissue)
    assert set(row.tolist()) == {1, 2}
    assert set(column.tolist()) == {4}


def test_without_tissue_any_place_will_do() -> None:
    draw = draw_of(50)
    row, _ = draw.places(torch.zeros_like(draw.tissue))
    assert len(row.unique()) > 3


def test_offsets_are_zero_at_the_place() -> None:
    down, right = draw_of(20).offsets()
    centre = (down == 0) & (right == 0)
    assert centre.sum((1, 2, 3)).tolist() == [1] * 20


@pytest.mark.parametrize("cells", [2, 8])
def test_a_field_is_standard_normal_and_smooth(cells: int) -> None:
    images = torch.zeros(200, 1, 32, 32)
    draw = Draw(images, images > 0, images, images > 0, torch.Generator().manual_seed(0))
    field = draw.field(cells)
    assert field.shape == (200, 1, 32, 32)
    assert abs(field.mean().item()) < 0.1
    steps = (field[..., 1:] - field[..., :-1]).abs().mean()
    assert steps < 3 * cells / 32
