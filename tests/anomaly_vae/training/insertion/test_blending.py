"""Patches of other images are blended in without an edge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anomaly_vae.training.insertion.blending import SIDE, blended, harmonic, with_patches
from anomaly_vae.training.insertion.draws import Draw
from tests.support.scans import smooth


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rectangles(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator(), dtype=torch.float64)


def draw_of(n: int, side: int = 32, seed: int = 0) -> Draw:
    images = torch.from_numpy(smooth(n, side))
    return Draw(images, images > 0, images, images > 0, generator(seed))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (11, 4)])
def test_every_pixel_is_the_mean_of_its_neighbours(height: int, width: int) -> None:
    whole = random_rectangles(3, 2, height + 2, width + 2)
    whole[..., 1:-1, 1:-1] = harmonic(whole)
    sides = whole[..., 1:-1, :-2], whole[..., 1:-1, 2:], whole[..., :-2, 1:-1], whole[..., 2:, 1:-1]
    torch.testing.assert_close(whole[..., 1:-1, 1:-1], sum(sides) / 4)


def test_a_plane_is_continued_exactly() -> None:
    plane = torch.arange(6.0).view(6, 1) + 2 * torch.arange(9.0)
    torch.testing.assert_close(harmonic(plane), plane[1:-1, 1:-1])


def test_a_blended_patch_has_the_border_of_the_image_and_the_detail_of_the_source() -> None:
    image, source = random_rectangles(2, 1, 8, 7), random_rectangles(2, 1, 8, 7) + 5

    def laplacian(x: torch.Tensor) -> torch.Tensor:
        return (
            4 * x[..., 1:-1, 1:-1]
            - x[..., :-2, 1:-1]
            - x[..., 2:, 1:-1]
            - x[..., 1:-1, :-2]
            - x[..., 1:-1, 2:]
        )

    result = blended(image, source)
    torch.testing.assert_close(result[..., 0, :], image[..., 0, :])
    torch.testing.assert_close(result[..., :, -1], image[..., :, -1])
    torch.testing.assert_close(laplacian(result), laplacian(source))


def test_a_patch_that_only_differs_in_brightness_changes_nothing() -> None:
    image = random_rectangles(1, 3, 6, 6)
    torch.testing.assert_close(blended(image, image + 0.7), image)


def test_one_rectangle_of_tissue_changes_in_each_image() -> None:
    draw = draw_of(20)
    changed = with_patches(draw)
    different = (changed != draw.images).any(1)
    assert different.flatten(1).any(1).float().mean() > 0.8
    assert not different[~draw.tissue[:, 0]].any()
    rows, columns = different.any(2).sum(1), different.any(1).sum(1)
    assert max(rows.max(), columns.max()) <= round(SIDE[1] * 32)


def test_patches_of_small_images_fit() -> None:
    draw = draw_of(3, 8)
    assert with_patches(draw).isfinite().all()


def test_a_patch_comes_from_the_pool() -> None:
    draw = draw_of(2)
    flat = replace(draw, images=torch.ones_like(draw.images))
    assert (with_patches(flat) != 1).any()
