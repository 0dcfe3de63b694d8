"""What is inserted into held-out slices lies where its mask says; scores rank what stands out."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.inserted_lesions import KINDS, MIN_PIXELS, Score, inserted, tissue
from tests.support.scans import smooth


def slices() -> np.ndarray:
    images = smooth(6, 64, 1)[:, 0].astype(np.float32)
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return np.asarray((images - low) / (high - low))


@pytest.mark.parametrize("kind", ["lesion", *KINDS])
def test_an_insertion_changes_the_pixels_of_its_mask_and_hardly_others(kind: str) -> None:
    before = slices()
    after, masks = inserted(before)[kind]
    before = np.tile(before, (len(after) // len(before), 1, 1))
    change = np.abs(after - before)
    assert masks.sum((1, 2)).min() >= MIN_PIXELS
    assert masks.mean() < 0.2
    assert change[masks].mean() > 10 * change[~masks].mean()
    assert (after >= 0).all()
    assert (after <= 1).all()


def test_the_same_slices_get_the_same_insertions() -> None:
    one, other = inserted(slices()), inserted(slices())
    assert all(np.array_equal(one[kind][0], other[kind][0]) for kind in one)


def test_nothing_but_lesions_is_inserted_into_the_air() -> None:
    before = slices()
    air = ~np.stack([tissue(image.astype(float)) for image in before])
    for kind in KINDS:
        after, _ = inserted(before)[kind]
        assert np.abs(after - before)[air].max() < 1e-6


@pytest.mark.parametrize("score", [Score(), Score(mirror=False), Score(relative=0.0, highest=3)])
def test_a_place_that_stands_out_raises_the_score(score: Score) -> None:
    log_odds = np.random.default_rng(0).normal(-4, 0.5, (20, 2, 32, 32))
    odd = log_odds.copy()
    odd[:, :, 9:13, 9:13] += 6
    plain, marked = score.relevant(log_odds), score.relevant(odd)
    level = float(np.quantile(plain, 0.997))
    assert score.of_images(marked, level).min() > score.of_images(plain, level).max()
    heat = score.heat(marked, level)
    assert heat[:, 10:12, 10:12].min() > heat[:, 20:, 20:].max()
