"""Near duplicates have nearly the same hash."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly_vae.images.perceptual_hash import has_near_duplicate, perceptual_hash


def scene(size: int = 64) -> NDArray[np.float64]:
    """Make a smooth image without symmetry."""
    y, x = np.mgrid[0 : 1 : 1j * size, 0 : 1 : 1j * size]
    blobs = [
        (0.2, 0.3, 0.1, 1.0),
        (0.7, 0.6, 0.2, 0.8),
        (0.5, 0.9, 0.05, -0.6),
        (0.9, 0.1, 0.15, 0.5),
    ]
    return sum(a * np.exp(-((x - u) ** 2 + (y - v) ** 2) / s**2) for u, v, s, a in blobs)


def slow_hash(image: NDArray[np.float64]) -> int:
    """Hash a 32 × 32 image with explicit sums."""
    values = image - image.mean()
    place = (np.arange(32) + 0.5) * np.pi / 32
    spectrum = [
        sum(
            values[i, j] * np.cos(u * place[i]) * np.cos(v * place[j])
            for i in range(32)
            for j in range(32)
        )
        for u in range(1, 9)
        for v in range(1, 9)
    ]
    middle = np.median(spectrum)
    return sum(int(value > middle) << (63 - n) for n, value in enumerate(spectrum))


def test_the_hash_is_that_of_the_definition():
    image = np.random.default_rng(3).normal(size=(32, 32)).astype(np.float32)
    assert perceptual_hash(image) == slow_hash(image.astype(np.float64))


def test_the_hash_heeds_neither_scale_nor_brightness_nor_type():
    image = scene()
    value = perceptual_hash(image)
    assert perceptual_hash(image * 7 + 3) == value
    assert perceptual_hash(image.astype(np.float32)) == value
    assert perceptual_hash(np.kron(image, np.ones((2, 2)))).__xor__(value).bit_count() <= 2
    assert 0 <= value < 1 << 64


def test_constant_images_have_one_hash():
    assert {perceptual_hash(np.full((9, 5), value)) for value in (0, 0.1, 1e9)} == {0}


def test_a_noisy_copy_is_a_twin_and_another_image_is_not():
    image = scene()
    noisy = image + np.random.default_rng(1).normal(0, 0.05, image.shape)
    hashes = [perceptual_hash(noisy), perceptual_hash(image.T), perceptual_hash(image[:, ::-1])]
    known = [perceptual_hash(image)]
    np.testing.assert_array_equal(has_near_duplicate(hashes, known), [True, False, False])


def test_a_mirrored_twin_is_found_by_either_view():
    image = scene()
    views = np.array([[perceptual_hash(image), perceptual_hash(image[:, ::-1])]], np.uint64)
    mirrored = np.array([perceptual_hash(image[:, ::-1])], np.uint64)
    assert has_near_duplicate(views, mirrored).all()
    assert has_near_duplicate(mirrored, views).all()
    assert not has_near_duplicate(views[:, 0], mirrored).any()


hashes = st.integers(0, (1 << 64) - 1)


@given(st.lists(hashes, max_size=6), st.lists(hashes, max_size=6), st.integers(20, 40))
def test_twins_differ_in_few_bits(mine, theirs, most):
    expected = [any((a ^ b).bit_count() <= most for b in theirs) for a in mine]
    np.testing.assert_array_equal(has_near_duplicate(mine, theirs, most), expected)
