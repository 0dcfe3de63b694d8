"""Images with a fault are farther from the training images, and the reason names the fault."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.unusual.faults import FAULTS
from anomaly_vae.images.unusual.typicality import WORDS, ImageTypicality
from anomaly_vae.scoring.unusual import UnusualTest

SIDE = 16
ENCODING = ImageEncoding(ImageLayout(1, SIDE), "unit")
NOTHING = np.zeros(0)


def heads(count: int, seed: int) -> np.ndarray:
    """Draw bright upright ellipses with a dark spot in their upper half: (N, S²)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    images = []
    for dx, dy, scale, level in rng.uniform(-1, 1, (count, 4)):
        radius = np.hypot((x - 0.05 * dx) / (0.5 + 0.05 * scale), (y - 0.05 * dy) / 0.8)
        image = (0.8 + 0.1 * level) * (radius < 1)
        image[np.hypot(x - 0.05 * dx, y + 0.4) < 0.2] = 0.1
        images.append(image + rng.normal(0, 0.02, image.shape) * (radius < 1.2))
    return np.array(images, np.float32).reshape(count, -1)


@pytest.fixture(scope="module")
def typicality() -> ImageTypicality:
    return ImageTypicality.fit(ENCODING, heads(60, 0), heads(40, 1), NOTHING, NOTHING)


@pytest.fixture(scope="module")
def test_of_images(typicality: ImageTypicality) -> UnusualTest:
    return UnusualTest.fit(typicality, 0.02, NOTHING, NOTHING, heads(99, 2))


def with_fault(name: str, x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(5)
    images = [FAULTS[name](image.reshape(1, SIDE, SIDE), rng) for image in x]
    return np.array(images, np.float32).reshape(len(x), -1)


@pytest.mark.parametrize("name", ["blurred", "half blank", "turned", "inverted"])
def test_faults_are_told_by_their_name(name: str, test_of_images: UnusualTest) -> None:
    reasons = test_of_images.reasons(NOTHING, NOTHING, with_fault(name, heads(20, 3)))
    assert sum(reason is not None for reason in reasons) >= 19
    assert list(reasons).count(WORDS[name]) >= 10


def test_noise_and_a_uniform_gradient_are_told(test_of_images: UnusualTest) -> None:
    noise = np.random.default_rng(0).random((5, SIDE**2), np.float32)
    slope = np.tile(np.linspace(0, 1, SIDE, dtype=np.float32), SIDE)[None]
    assert None not in test_of_images.reasons(NOTHING, NOTHING, np.concatenate([noise, slope]))


def test_fresh_images_are_rarely_told(test_of_images: UnusualTest) -> None:
    reasons = test_of_images.reasons(NOTHING, NOTHING, heads(100, 4))
    assert 100 - list(reasons).count(None) <= 7


def test_an_image_gets_the_same_answer_alone_and_restored(test_of_images: UnusualTest) -> None:
    x = np.concatenate([heads(3, 6), with_fault("blurred", heads(3, 6))])
    restored = UnusualTest.restore(test_of_images.summary(), test_of_images.tensors(), ENCODING)
    together = test_of_images.reasons(NOTHING, NOTHING, x).tolist()
    alone = [restored.reasons(NOTHING, NOTHING, row[None])[0] for row in x]
    assert alone == together
    assert [restored.reason(0.0, 0.0, row[None], is_complete=True) for row in x] == together


def test_a_fault_that_cannot_be_seen_is_left_out() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.random((40, SIDE**2)).astype(np.float32) for _ in range(2)]
    learnt = ImageTypicality.fit(ENCODING, *noise, NOTHING, NOTHING)
    names = [list(FAULTS)[number] for number in learnt.faults]
    assert "turned" not in names
    assert "half blank" in names


def test_learning_is_reproducible(typicality: ImageTypicality) -> None:
    again = ImageTypicality.fit(ENCODING, heads(60, 0), heads(40, 1), NOTHING, NOTHING)
    for name, value in typicality.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], value)


def test_the_distance_of_an_odd_normal_image_does_not_hide_faults(
    typicality: ImageTypicality,
) -> None:
    """A few calibration images that are far from the others decide which distance is unusual."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    smooth = 0.8 * (np.hypot(x / 0.5, y / 0.8) < 1)
    odd = smooth.astype(np.float32).reshape(1, -1)
    test = UnusualTest.fit(
        typicality, 0.02, NOTHING, NOTHING, np.concatenate([heads(97, 2), odd, odd])
    )
    assert 2 < test.calibration.threshold < 4
    assert None not in test.reasons(NOTHING, NOTHING, with_fault("inverted", heads(20, 3)))


def test_distances_of_older_bundles_stay_as_they_are(typicality: ImageTypicality) -> None:
    """Their statistics are not limited in the Mahalanobis distance, and no distance is bent."""
    tensors = {name: value for name, value in typicality.tensors().items() if name != "bends"}
    old = ImageTypicality.from_tensors(tensors, ENCODING)
    x = with_fault("half blank", heads(3, 6))
    found, now = old.surprises(NOTHING, NOTHING, x), typicality.surprises(NOTHING, NOTHING, x)
    assert (found > 2 * now).all()
    values = old._measured(x)[0]
    away = old._deviations(values[: len(old.centre)]) - old.mean
    raw = [np.sqrt(away @ old.precision @ away), *(old.weights @ old._signals(values))]
    assert found[0] == ((np.array(raw) - old.unit[0]) / old.unit[1]).max()
