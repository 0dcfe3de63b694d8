import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from benchmarks.pictures import FIGURES, Pictures, border, finest, spectrum


def _images(count: int = 40, side: int = 32, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (count, side, side))
    return gaussian_filter(noise, (0, 1, 1)).astype(np.float32)


@pytest.mark.parametrize(("name", "equal"), [("spectrum", 0.0), ("finest", 1.0), ("border", 1.0)])
def test_equal_images_have_the_best_figure(name: str, equal: float) -> None:
    assert FIGURES[name](_images(), _images()) == pytest.approx(equal)
    assert FIGURES[name](_images(seed=1), _images()) == pytest.approx(equal, abs=0.4)


def test_blur_and_grids_are_told_apart() -> None:
    images = _images()
    blurred = gaussian_filter(images, (0, 1, 1))
    grid = images + 0.1 * (np.indices((32, 32)).sum(0) % 2).astype(np.float32)
    assert finest(blurred, images) < 0.5
    assert finest(grid, images) > 2
    assert spectrum(blurred, images) > 1 > spectrum(_images(seed=1), images)


def test_a_frame_raises_the_figure_of_the_border() -> None:
    images = _images()
    framed = images.copy()
    framed[:, -1] += 3
    inner = images.copy()
    inner[:, 16, 16] += 3
    assert border(framed, images) > 1.5
    assert border(inner, images) == 1


def test_pictures_are_like_the_images_that_they_are_of() -> None:
    images = _images(6)
    same = Pictures(images, images, images[::-1])
    assert same.rebuilt_alike() == pytest.approx(1)
    assert same.sampled_alike() == pytest.approx(1)
    other = Pictures(images, images[::-1], _images(6, seed=1))
    assert max(other.rebuilt_alike(), other.sampled_alike()) < 0.5
