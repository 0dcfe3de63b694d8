"""Simulated scans: what their docstrings promise, and that no trivial cue gives a lesion away."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from anomaly_vae.errors import DataError
from anomaly_vae.simulation.scans import (
    LESION_KINDS,
    Scans,
    gaussian_blur,
    insert_lesions,
    simulate_scans,
)

Floats = NDArray[np.float64]
SIZE = 64


@pytest.fixture(scope="module")
def scans() -> Scans:
    """Half of them with a lesion."""
    return simulate_scans(600, seed=0, size=SIZE, lesion_share=0.5)


@pytest.fixture(scope="module")
def without(scans: Scans) -> Scans:
    """The same scans as long as nobody is ill."""
    return simulate_scans(600, seed=0, size=SIZE, lesion_share=0.0)


def head_of(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """From the skin on the left to the skin on the right, in each row, give or take a pixel."""
    smooth = gaussian_filter(image.astype(float), 0.5)
    bright = smooth > 0.25 * np.percentile(smooth, 90)
    from_left = np.maximum.accumulate(bright, axis=1)
    from_right = np.maximum.accumulate(bright[:, ::-1], axis=1)[:, ::-1]
    inside = from_left & from_right
    return np.asarray(gaussian_filter(inside.astype(float), 0.5) > 0.05)


def noise(shape: tuple[int, ...], deviation: float = 0.05) -> NDArray[np.float32]:
    """Grey throughout, so that lesions may lie anywhere and nothing is clipped."""
    drawn = np.random.default_rng(5).normal(0.5, deviation, shape)
    return np.clip(drawn, 0.3, 0.7).astype(np.float32)


def equal(one: Scans, other: Scans) -> bool:
    arrays = ("images", "masks", "labels", "groups")
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    return same and one.kinds == other.kinds


def test_the_same_seed_gives_the_same_scans_and_another_seed_others() -> None:
    first = simulate_scans(20, seed=3, size=48)
    assert equal(first, simulate_scans(20, seed=3, size=48))
    assert not np.array_equal(first.images, simulate_scans(20, seed=4, size=48).images)


@pytest.mark.parametrize("fewer", [1, 7, 39])
def test_more_scans_begin_with_the_fewer(fewer: int) -> None:
    few, many = simulate_scans(fewer, seed=1, size=32), simulate_scans(40, seed=1, size=32)
    begin = Scans(
        many.images[:fewer], many.masks[:fewer], many.labels[:fewer], many.groups[:fewer],
        many.kinds[:fewer],
    )  # fmt: skip
    assert equal(few, begin)


@pytest.mark.parametrize("size", [32, 47, 96, 512])
def test_images_are_square_bytes_of_the_size_asked_for(size: int) -> None:
    scans = simulate_scans(2, seed=0, size=size)
    assert (scans.images.dtype, scans.images.shape) == (np.uint8, (2, size, size))
    assert (scans.masks.dtype, scans.masks.shape) == (np.bool_, (2, size, size))
    assert (scans.labels.dtype, scans.groups.dtype) == (np.int8, np.int32)


def test_lesion_scans_and_they_alone_have_a_mask_and_a_kind(scans: Scans) -> None:
    ill = scans.labels == 1
    assert 0 < ill.sum() < len(ill)
    np.testing.assert_array_equal(scans.masks.any(axis=(1, 2)), ill)
    assert [kind != "normal" for kind in scans.kinds] == ill.tolist()


def test_the_four_kinds_are_equally_frequent(scans: Scans) -> None:
    count = Counter(kind for kind in scans.kinds if kind != "normal")
    assert set(count) == set(LESION_KINDS)
    assert all(abs(n - 75) < 4 * math.sqrt(300 * 0.25 * 0.75) for n in count.values())


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.77, 1.0])
def test_any_scans_in_a_row_hold_their_share_of_lesions(share: float) -> None:
    labels = simulate_scans(200, seed=2, size=32, lesion_share=share).labels
    excess = np.concatenate([[0], np.cumsum(labels - share)])
    assert np.ptp(excess) <= 5
    assert share not in {0.0, 1.0} or set(labels.tolist()) == {int(share)}


def test_patients_are_numbered_in_order_and_few_give_several_slices(scans: Scans) -> None:
    assert scans.groups[0] == 0
    assert set(np.diff(scans.groups).tolist()) == {0, 1}
    slices = np.bincount(scans.groups)
    assert slices.max() == 4
    assert 0.06 < np.mean(slices > 1) < 0.2


def test_slices_of_a_patient_are_alike_and_not_the_same(without: Scans) -> None:
    images = standardised(without.images)
    alike = np.mean(images[:-1] * images[1:], axis=(1, 2))  # correlation of neighbours
    same_patient = np.diff(without.groups) == 0
    assert alike[same_patient].mean() > alike[~same_patient].mean() + 0.02
    assert alike[same_patient].max() < 0.999


def test_masks_lie_inside_the_head(scans: Scans, without: Scans) -> None:
    for mask, image in zip(scans.masks, without.images, strict=True):
        assert not np.any(mask & ~head_of(image))


def test_a_lesion_changes_what_its_mask_covers_and_little_else(
    scans: Scans, without: Scans
) -> None:
    change = np.abs(scans.images.astype(float) - without.images)
    assert not change[scans.labels == 0].any()
    outside = ~scans.masks & (scans.labels == 1)[:, None, None]
    assert change[scans.masks].mean() > 50 * change[outside].mean()


def test_a_lesion_is_as_strong_as_its_image_is_varied(scans: Scans, without: Scans) -> None:
    change = np.abs(scans.images.astype(float) - without.images)
    deviation = without.images.std(axis=(1, 2))
    ill = np.flatnonzero(scans.labels)
    strength = np.array([change[i][scans.masks[i]].mean() / deviation[i] for i in ill])
    assert 0.4 < np.median(strength) < 1.2
    assert np.mean(strength < 0.1) < 0.1  # hardly any cannot be seen


def test_scans_differ_in_brightness_far_more_than_a_lesion_makes_them(
    scans: Scans, without: Scans
) -> None:
    ill = scans.labels == 1
    bright, before = (each.images[ill].mean(axis=(1, 2)) for each in (scans, without))
    assert before.std() / before.mean() > 0.15
    assert before.std() > 5 * (bright - before).std()


CUES = {
    "mean": lambda image: image.mean(axis=(1, 2)),
    "median": lambda image: np.median(image, axis=(1, 2)),
    "standard deviation": lambda image: image.std(axis=(1, 2)),
    "contrast": lambda image: image.std(axis=(1, 2)) / image.mean(axis=(1, 2)),
    "sharpness": lambda image: np.abs(np.diff(image, axis=1)).mean(axis=(1, 2)),
    "border": lambda image: image[:, border(image.shape[1])].mean(axis=1),
}


def border(size: int) -> NDArray[np.bool_]:
    """The outermost four pixels on all sides."""
    outside = np.ones((size, size), bool)
    outside[4:-4, 4:-4] = False
    return outside


@pytest.mark.parametrize("cue", CUES)
def test_a_trivial_cue_tells_lesions_no_better_than_chance(scans: Scans, cue: str) -> None:
    """The area's standard error is 0.024 over 300 and 300 scans."""
    auroc = roc_auc_score(scans.labels, CUES[cue](scans.images.astype(float)))
    assert abs(auroc - 0.5) < 0.07


def standardised(images: NDArray[np.uint8]) -> Floats:
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    return np.asarray(centred / centred.std(axis=(1, 2), keepdims=True))


def test_principal_components_of_normal_scans_tell_lesions_well(scans: Scans) -> None:
    """What they leave over, where it is most, as a stand-in for a small autoencoder."""
    normal = simulate_scans(400, seed=9, size=SIZE, lesion_share=0.0)
    components = PCA(60, svd_solver="randomized", random_state=0).fit(coarse(normal))
    images = coarse(scans)
    left = images - components.inverse_transform(components.transform(images))
    smooth = np.abs(gaussian_filter(left.reshape(-1, SIZE // 2, SIZE // 2), (0, 1, 1)))
    worst = np.sort(smooth.reshape(images.shape), axis=1)[:, -SIZE // 2 :].mean(axis=1)
    assert 0.8 < roc_auc_score(scans.labels, worst) < 0.98


def coarse(scans: Scans) -> Floats:
    """(N, S/2 · S/2) standardised images, four pixels to one."""
    blocks = standardised(scans.images).reshape(-1, SIZE // 2, 2, SIZE // 2, 2)
    return np.asarray(blocks.mean(axis=(2, 4)).reshape(len(scans.images), -1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "scans: expected 1 to 100,000, got 0"),
        ({"n": 100_001}, "scans: expected 1 to 100,000, got 100,001"),
        ({"seed": -1}, "seed: expected a whole number from 0 up, got -1"),
        ({"size": 31}, "size: expected 32 to 512 pixels, got 31"),
        ({"size": 1_000}, "size: expected 32 to 512 pixels, got 1,000"),
        ({"lesion_share": 1.5}, "lesion_share: expected a share from 0 to 1, got 1.5"),
        ({"lesion_share": math.nan}, "lesion_share: expected a share from 0 to 1, got nan"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(DataError) as refusal:
        simulate_scans(**({"n": 1, "seed": 0} | arguments))  # type: ignore[arg-type]
    assert str(refusal.value) == message


@given(
    height=st.integers(16, 40), width=st.integers(16, 90), seed=st.integers(0, 2**64),
    share=st.floats(0.3, 1),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_image_with_tissue_takes_a_lesion(
    height: int, width: int, seed: int, share: float
) -> None:
    images = np.zeros((2, height, width), np.float32)
    edge = int((1 - share) * min(height, width) / 2)
    inside = np.s_[:, edge : height - edge, edge : width - edge]
    images[inside] = noise((2, height, width))[inside]
    before = images.copy()
    changed, masks, kinds = insert_lesions(images, seed)
    assert (changed.dtype, changed.shape) == (np.float32, images.shape)
    assert (masks.dtype, masks.shape) == (np.bool_, images.shape)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert masks.any(axis=(1, 2)).all()
    assert set(kinds) <= set(LESION_KINDS)
    np.testing.assert_array_equal(images, before)


def test_a_lesion_depends_on_its_own_image_its_place_and_the_seed() -> None:
    images = noise((3, 32, 32))
    changed, masks, kinds = insert_lesions(images, seed=1)
    others = images.copy()
    others[[0, 2]] = 1 - others[[0, 2]]
    again, masks_again, kinds_again = insert_lesions(others, seed=1)
    np.testing.assert_array_equal(again[1], changed[1])
    np.testing.assert_array_equal(masks_again[1], masks[1])
    assert kinds_again[1] == kinds[1]
    assert not np.array_equal(insert_lesions(images, seed=2)[1], masks)


def test_the_mean_area_is_that_of_the_wavering_ellipses() -> None:
    """Area π a b (1 + Σ A²/2) with a and b uniform on 5% to 13%, three A on 0 to 0.18."""
    _, masks, _ = insert_lesions(noise((400, 48, 48)), seed=0)
    expected = math.pi * 0.09**2 * (1 + 3 * 0.18**2 / 3 / 2)
    assert masks.mean() == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(("kind", "sign"), [("bright", 1), ("dark", -1)])
def test_bright_and_dark_lesions_differ_by_about_a_deviation(kind: str, sign: int) -> None:
    images = noise((200, 48, 48))
    changed, masks, kinds = insert_lesions(images, seed=0)
    deviation = images.std(axis=(1, 2))
    chosen = [i for i, name in enumerate(kinds) if name == kind]
    change = [(changed[i] - images[i])[masks[i]].mean() / deviation[i] for i in chosen]
    assert len(chosen) > 20
    assert all(0.3 < sign * value < 1.6 for value in change)
    assert 0.7 < sign * np.mean(change) < 1.0  # of 1, some is lost in the soft edge


def test_a_texture_lesion_is_grain_on_a_smooth_ground() -> None:
    """On an even slope, which no blur changes, all of the change is grain.

    White noise under a Gaussian of σ keeps 1 / (2 √π σ) of its deviation, here times 1.5 to 3.
    """
    slope = np.tile(np.linspace(0.3, 0.7, 64, dtype=np.float32), (200, 64, 1))
    changed, masks, kinds = insert_lesions(slope, seed=0)
    chosen = np.array(kinds) == "texture"
    grain = (changed - slope)[chosen][masks[chosen]] / slope[0].std()
    assert abs(grain.mean()) < 0.05
    assert 1.5 / (2 * math.sqrt(math.pi) * 1.5) < grain.std() < 3 / (2 * math.sqrt(math.pi) * 0.6)


def test_a_shift_lesion_shows_what_lies_elsewhere() -> None:
    """Of two independent pixels of one deviation, the difference has √2 deviations."""
    images = noise((200, 48, 48))
    changed, masks, kinds = insert_lesions(images, seed=0)
    chosen = np.array(kinds) == "shift"
    change = (changed - images)[chosen][masks[chosen]] / images.std()
    assert abs(change.mean()) < 0.05
    assert 1 < change.std() < math.sqrt(2)
    assert changed[chosen].min() >= images.min()
    assert changed[chosen].max() <= images.max()


def test_a_dark_lesion_is_not_blacker_than_air() -> None:
    images = np.where(noise((100, 32, 32)) > 0.5, np.float32(0.9), np.float32(0.1))
    changed, _, kinds = insert_lesions(images, seed=0)
    dark = changed[np.array(kinds) == "dark"]
    assert dark.min() == pytest.approx(0.02, abs=0.005)


def test_a_lesion_never_falls_into_a_hole() -> None:
    """Smaller than a pixel, some would leave no mask there."""
    images = noise((600, 16, 16))
    images[:, ::3, ::3] = 0
    _, masks, _ = insert_lesions(images, seed=0)
    assert masks.any(axis=(1, 2)).all()
    assert not masks[:, ::3, ::3].any()


def test_a_lesion_ends_at_the_skin() -> None:
    images = np.zeros((100, 64, 64), np.float32)
    images[:, 16:48, 16:48] = noise((100, 32, 32))
    changed, masks, _ = insert_lesions(images, seed=0)
    air = np.ones((64, 64), bool)
    air[14:50, 14:50] = False
    assert not changed[:, air].any()
    assert not masks[:, air].any()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((32, 32)), r"images: expected shape \(N, H, W\).*got \(32, 32\)"),
        (np.zeros((1, 8, 32)), r"sides from 16 up, got \(1, 8, 32\)"),
        (np.full((1, 32, 32), 255.0), "values from 0 to 1; divide 8-bit pixels by 255"),
        (np.full((1, 32, 32), np.nan), "values from 0 to 1"),
        (np.stack([noise((32, 32)), np.zeros((32, 32))]), "image 1: no tissue in the middle"),
        (np.full((1, 32, 32), 0.5), "image 0: no tissue in the middle"),
    ],
)
def test_images_that_take_no_lesion_are_refused(images: Floats, message: str) -> None:
    with pytest.raises(DataError, match=message):
        insert_lesions(images.astype(np.float32), seed=0)


def test_an_image_with_tissue_only_in_a_corner_is_refused() -> None:
    images = np.zeros((1, 64, 64), np.float32)
    images[0, :6, :6] = 1
    with pytest.raises(DataError, match="image 0: no tissue in the middle"):
        insert_lesions(images, seed=0)


def test_no_images_take_no_lesions() -> None:
    changed, masks, kinds = insert_lesions(np.empty((0, 32, 32), np.float32), seed=0)
    assert (changed.shape, masks.shape, kinds) == ((0, 32, 32), (0, 32, 32), ())


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), sigma=st.floats(0.1, 6),
    seed=st.integers(0, 9),
)  # fmt: skip
@settings(deadline=None)
def test_the_blur_is_that_of_scipy(shape: tuple[int, int], sigma: float, seed: int) -> None:
    image = np.random.default_rng(seed).random(shape)
    np.testing.assert_allclose(
        gaussian_blur(image, sigma), gaussian_filter(image, sigma), atol=1e-12
    )
