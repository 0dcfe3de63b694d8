"""Anomalies that are inserted into images lie where the labels say, and in tissue only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomaly_vae.images.encoding import STANDARDISED_MEAN, STANDARDISED_STD
from anomaly_vae.training.insertion.anomalies import KINDS, VISIBLE, inserted, synthetic
from anomaly_vae.training.insertion.shapes import AREA
from tests.support.scans import smooth

SIDE = 32
CLEAN = KINDS[0][0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 200, channels: int = 1) -> Tensor:
    return torch.from_numpy(smooth(n, SIDE, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_shown_twice_with_labels(channels: int) -> None:
    changed, labels = synthetic(images(5, channels), generator())
    assert changed.shape == (10, channels, SIDE, SIDE)
    assert labels.shape == (10, 1, SIDE, SIDE)
    assert labels.min() >= 0
    assert labels.max() <= 1
    assert changed.isfinite().all()


def test_changed_images_are_standardised_if_the_scored_ones_are() -> None:
    after, labels = synthetic(images(20), generator(), standardise=True)
    plain, same_labels = synthetic(images(20), generator())
    torch.testing.assert_close(after.mean((1, 2, 3)), torch.full((40,), STANDARDISED_MEAN))
    torch.testing.assert_close(after.std((1, 2, 3)), torch.full((40,), STANDARDISED_STD))
    assert torch.equal(labels, same_labels)
    assert (plain.std((1, 2, 3)) - STANDARDISED_STD).abs().max() > 0.005


def test_the_two_copies_of_an_image_differ() -> None:
    changed, _ = synthetic(images(5), generator())
    assert all(
        not torch.equal(one, other) for one, other in zip(changed[:5], changed[5:], strict=True)
    )


def test_the_same_seed_inserts_the_same_and_another_seed_another() -> None:
    one, same, other = (inserted(images(8), generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


def test_what_the_labels_mark_has_changed_and_the_rest_hardly() -> None:
    before = images()
    after, labels = inserted(before, generator())
    change = (after - before).abs()
    marked, unmarked = labels > 0.5, labels < 0.02
    assert marked.any()
    assert change[marked].mean() > VISIBLE * STANDARDISED_STD
    assert change[marked].mean() > 10 * change[unmarked].mean()


def test_labels_rise_with_the_change() -> None:
    before = images()
    after, labels = inserted(before, generator())
    change = ((after - before).abs() / STANDARDISED_STD)[labels > 0]
    found = labels[labels > 0]
    assert found[change > 0.5].mean() > found[change < 0.1].mean() + 0.3


def test_a_share_of_the_images_stays_clean() -> None:
    before = images(1_000)
    after, labels = inserted(before, generator())
    same = (after == before).all(3).all(2).all(1)
    assert same.float().mean().item() == pytest.approx(CLEAN, abs=0.04)
    assert not labels[same].any()


def test_nothing_is_inserted_into_the_background_nor_darker_than_it() -> None:
    before = images()
    after, labels = inserted(before, generator())
    margin = before == 0
    assert margin.any()
    assert torch.equal(after[margin], before[margin])
    assert (after >= before.amin((2, 3), keepdim=True)).all()
    assert labels.mean() > 0


def test_anomalies_cover_a_small_part_of_an_image() -> None:
    _, labels = inserted(images(), generator())
    areas = labels.mean((1, 2, 3))
    assert areas.max() < AREA[1] + 0.1
    assert 0.2 * AREA[0] < areas.mean() < AREA[1]


def test_a_single_image_has_no_other_to_take_tissue_from_and_is_changed_all_the_same() -> None:
    changed = [not torch.equal(inserted(images(1), generator(s))[0], images(1)) for s in range(20)]
    assert sum(changed) > 10


def test_nothing_is_inserted_outside_of_a_given_tissue() -> None:
    before = images(50)
    tissue = torch.zeros(50, 1, SIDE, SIDE, dtype=torch.bool)
    tissue[..., : SIDE // 2, :] = True
    after, labels = inserted(before, generator(), tissue)
    assert torch.equal(after[..., SIDE // 2 :, :], before[..., SIDE // 2 :, :])
    assert (labels[..., : SIDE // 2, :] > 0.5).any()
