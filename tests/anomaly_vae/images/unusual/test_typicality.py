"""Images with a fault are farther from the training images, and the reason names the fault."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.unusual.faults import FAULTS
from anomaly_vae.images.unusual.statistics import describe, gradients, pooled, standardise
from anomaly_vae.images.unusual.typicality import ARRANGEMENT, WORDS, ImageTypicality
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


@pytest.mark.parametrize("name", ["blurred", "half blank", "turned", "inverted", "noise alone"])
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
    tensors = {**typicality.tensors(), "unit": typicality.unit[:, :-1]}
    del tensors["bends"], tensors["pattern"]
    old = ImageTypicality.from_tensors(tensors, ENCODING)
    x = with_fault("half blank", heads(3, 6))
    found, now = old.surprises(NOTHING, NOTHING, x), typicality.surprises(NOTHING, NOTHING, x)
    assert (found > 2 * now).all()
    values = old._measured(x)[0]
    away = old._deviations(values[: len(old.centre)]) - old.mean
    raw = [np.sqrt(away @ old.precision @ away), *(old.weights @ old._signals(values))]
    assert found[0] == ((np.array(raw) - old.unit[0]) / old.unit[1]).max()


def test_older_bundles_have_coarser_gradients(typicality: ImageTypicality) -> None:
    """Their discriminants weigh the statistics and 8 × 8 cells of gradients together."""
    count = len(typicality.centre)
    weights = np.random.default_rng(0).normal(size=(1, count + 8 * 8 * 8))
    tensors = {**typicality.tensors(), "weights": weights, "faults": np.array([4])}
    tensors |= {name: typicality.tensors()[name][:, :2] for name in ("unit", "bends")}
    del tensors["pattern"]
    old, x = ImageTypicality.from_tensors(tensors, ENCODING), heads(3, 6)
    pixels = standardise(x[0].reshape(SIDE, SIDE).astype(float))
    signals = np.concatenate(
        [old._limited(describe(x[0].reshape(SIDE, SIDE).astype(float))), gradients(pixels, 8) / 0.3]
    )
    distance = (weights[0] @ signals - old.unit[0, 1]) / old.unit[1, 1]
    assert old._straight(old._measured(x)[0])[1] == pytest.approx(distance)
    assert len(old.surprises(NOTHING, NOTHING, x)) == 3


def test_turned_images_are_told_from_images_of_several_planes() -> None:
    """Images that lie and images that stand, each with a mark on top, are learnt together."""

    def mixed(count: int, seed: int) -> np.ndarray:
        images = heads(count, seed).reshape(count, SIDE, SIDE)
        images[::2] = images[::2].transpose(0, 2, 1)
        images[:, 1:3, 6:10] = 1.0
        return images.reshape(count, -1)

    learnt = ImageTypicality.fit(ENCODING, mixed(80, 0), mixed(60, 1), NOTHING, NOTHING)
    test = UnusualTest.fit(learnt, 0.02, NOTHING, NOTHING, mixed(99, 2))
    reasons = test.reasons(NOTHING, NOTHING, with_fault("turned", mixed(20, 3)))
    assert list(reasons).count(WORDS["turned"]) >= 18
    assert 20 - list(test.reasons(NOTHING, NOTHING, mixed(20, 4))).count(None) <= 3


def test_a_picture_of_something_else_is_told_by_the_arrangement_of_its_edges(
    typicality: ImageTypicality, test_of_images: UnusualTest
) -> None:
    """A head in four pieces that changed places has the same details and brightness."""
    pieces = heads(20, 3).reshape(20, SIDE, SIDE)
    moved = np.roll(pieces, (SIDE // 2, SIDE // 2), axis=(1, 2)).reshape(20, -1)
    found, usual = (
        [typicality._straight(one)[-1] for one in typicality._measured(x)]
        for x in (moved, heads(99, 2))
    )
    assert min(found) > max(usual)
    reasons = test_of_images.reasons(NOTHING, NOTHING, moved)
    assert None not in reasons
    assert ARRANGEMENT in reasons


def test_the_arrangement_is_the_distance_from_the_plane_of_the_components(
    typicality: ImageTypicality,
) -> None:
    mean, components = typicality.pattern[0], typicality.pattern[1:]
    assert len(components) == 30
    np.testing.assert_allclose(components @ components.T, np.eye(30), atol=1e-9)
    values = typicality._measured(heads(1, 6))[0]
    away = pooled(values[len(typicality.centre) :], 8) - mean
    beside = away - components.T @ (components @ away)
    assert typicality._misfit(values) == pytest.approx(np.linalg.norm(beside))


def test_images_are_not_held_out_from_themselves() -> None:
    """Distances of images that were learnt from are smaller than those of others."""
    x = heads(120, 0)
    both = ImageTypicality.fit(ENCODING, x, x, NOTHING, NOTHING)
    halves = ImageTypicality.fit(ENCODING, x[::2], x[1::2], NOTHING, NOTHING)
    for name, value in halves.tensors().items():
        np.testing.assert_array_equal(both.tensors()[name], value)


def test_an_ambiguous_fault_bends_early_unless_it_is_clear(
    typicality: ImageTypicality, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distance of blurred images never does, since hardly a normal image looks blurred."""
    rng = np.random.default_rng(0)
    images, others = ([one.reshape(1, SIDE, SIDE) for one in heads(40, i)] for i in (0, 1))
    for clear, noisy in ((0.0, 1.8), (1e9, 1.3)):
        monkeypatch.setattr("anomaly_vae.images.unusual.typicality.CLEAR", clear)
        for fault, bend in (("noisy", noisy), ("blurred", 2.2)):
            found = typicality._discriminant(fault, images, others, rng)
            assert found is not None
            assert found[-1] == (bend, 0.1)
