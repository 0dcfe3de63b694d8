"""How batches are shown in training: by seed, and each change as it is said to be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor
from torch.nn import functional as F

from anomaly_vae.config.training import AugmentationConfig, CorruptionConfig
from anomaly_vae.images.encoding import STANDARDISED_MEAN, ImageLayout
from anomaly_vae.training.augmentation import (
    CORRUPTIONS,
    DistortedImages,
    Identity,
    NoisyCells,
    augmented,
    coarse_noise,
    corrupted,
    downsampled,
    masked,
    pixel_noise,
    turned,
)

LAYOUT = ImageLayout(3, 16)


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 4, channels: int = 1, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand((n, channels, side, side), generator=generator(seed))


def distort(
    kind: str, strength: float = 0.3, flip: float = 0.5, turn: float = 0.5
) -> DistortedImages:
    augmentation = AugmentationConfig(flip=flip, rotation=turn)
    corruption = CorruptionConfig.model_validate({"type": kind, "strength": strength})
    return DistortedImages(LAYOUT, augmentation, corruption)


# ---------------------------------------------------------------- views


@pytest.mark.parametrize("kind", ["none", *CORRUPTIONS])
def test_the_same_seed_shows_the_same_and_another_seed_another(kind: str) -> None:
    x, views = images(4, 3).flatten(1), distort(kind)
    first, again, other = (views(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.encoder_input, again.encoder_input)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.encoder_input, other.encoder_input)
    assert first.encoder_input.shape == first.target.shape == x.shape


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_what_is_to_be_explained_is_turned_but_not_corrupted(kind: str) -> None:
    x = images(4, 3).flatten(1)
    still = distort(kind, flip=0.0, turn=0.0)(x, generator())
    assert torch.equal(still.target, x)
    assert not torch.equal(still.encoder_input, x)
    moved = distort("none")(x, generator())
    assert torch.equal(moved.encoder_input, moved.target)
    assert not torch.equal(moved.target, x)


def test_images_weigh_as_much_as_one_value_and_rows_as_they_are() -> None:
    assert distort("none").loss_scale == LAYOUT.n_columns
    assert NoisyCells(0.1, [0]).loss_scale == Identity().loss_scale == 1


def test_without_a_change_the_view_is_what_was_there() -> None:
    x = images(2, 3).flatten(1)
    for views in (
        distort("none", flip=0, turn=0),
        distort("pixel", 0, flip=0, turn=0),
        Identity(),
    ):
        view = views(x, generator())
        assert torch.equal(view.encoder_input, x)
        assert torch.equal(view.target, x)
    assert NoisyCells(0.0, range(3))(x, generator()).encoder_input is x


@given(st.floats(0, 0.9), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_cells_of_one_unit_hide_together_in_encoder_and_likelihood(
    share: float, units: list[int]
) -> None:
    x = torch.ones(64, len(units))
    view = NoisyCells(share, units)(x, generator())
    hidden = torch.isnan(view.encoder_input)
    assert torch.equal(hidden, torch.isnan(view.target))
    for unit in set(units):
        of_unit = hidden[:, torch.tensor(units) == unit]
        assert torch.equal(of_unit.any(1), of_unit.all(1))


def test_hidden_cells_are_the_share_asked_for() -> None:
    hidden = torch.isnan(
        NoisyCells(0.3, range(4))(torch.ones(20_000, 4), generator()).encoder_input
    )
    assert hidden.float().mean(0).tolist() == pytest.approx([0.3] * 4, abs=0.015)


def test_noise_is_seen_on_numbers_alone_and_never_in_the_target() -> None:
    x = torch.zeros(20_000, 4)
    view = NoisyCells(0.1, range(4), noise=0.5, n_numeric=2)(x, generator())
    hidden = torch.isnan(view.encoder_input)
    assert torch.equal(hidden, torch.isnan(view.target))
    assert torch.all(view.target[~hidden] == 0)
    assert torch.all(view.encoder_input[:, 2:][~hidden[:, 2:]] == 0)
    seen = view.encoder_input[:, :2][~hidden[:, :2]]
    assert stats.kstest(seen.numpy() / 0.5, "norm").pvalue > 1e-3


def test_members_have_cells_and_noise_of_their_own() -> None:
    x = torch.zeros(3, 500, 4)
    seen = NoisyCells(0.2, range(4), noise=0.5, n_numeric=4)(x, generator()).encoder_input
    assert seen.shape == x.shape
    assert not torch.equal(torch.isnan(seen[0]), torch.isnan(seen[1]))
    assert not torch.equal(seen[0].nan_to_num(), seen[1].nan_to_num())


# ---------------------------------------------------------------- mirroring and turning


def test_a_flip_mirrors_left_to_right_and_twice_is_none() -> None:
    picture = images(2, 3, 17)
    zero, mirrored = torch.zeros(2), torch.full((2,), -1.0)
    once = turned(picture, zero, mirrored)
    torch.testing.assert_close(once, picture.flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned(once, zero, mirrored), picture, atol=1e-5, rtol=0)


def test_no_turn_is_the_image_itself() -> None:
    picture = images(2, 3, 17)
    still = turned(picture, torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(still, picture, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [16, 17])
@pytest.mark.parametrize("quarter", [1, 2, -1])
def test_a_right_angle_is_a_quarter_turn(side: int, quarter: int) -> None:
    picture = images(2, 3, side)
    angle = torch.full((2,), quarter * math.pi / 2)
    # The sampling grid turns one way, so that the image turns the other.
    expected = torch.rot90(picture, quarter, (-2, -1))
    got = turned(picture, angle, torch.ones(2))
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


@given(st.floats(-3.1, 3.1), st.floats(0, 1))
def test_one_grey_stays_that_grey_however_it_is_turned(angle: float, grey: float) -> None:
    picture = torch.full((1, 1, 16, 16), grey)
    got = turned(picture, torch.tensor([angle]), torch.ones(1))
    torch.testing.assert_close(got, picture, atol=1e-5, rtol=0)


def test_a_small_turn_and_back_is_nearly_the_image() -> None:
    grid = torch.linspace(0, 6, 33)
    smooth = (torch.sin(grid)[:, None] * torch.cos(grid)).view(1, 1, 33, 33)
    angle = torch.tensor([0.15])
    back = turned(turned(smooth, angle, torch.ones(1)), -angle, torch.ones(1))
    inner = (..., slice(8, 25), slice(8, 25))
    torch.testing.assert_close(back[inner], smooth[inner], atol=0.03, rtol=0)


def test_each_image_is_changed_as_often_as_asked() -> None:
    picture = images(1, 1, 8).expand(4_000, 1, 8, 8)
    flips = augmented(picture, AugmentationConfig(flip=0.25), generator())
    mirrored = (flips - picture.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    assert mirrored.float().mean() == pytest.approx(0.25, abs=0.03)
    turns = augmented(picture, AugmentationConfig(rotation=0.4, degrees=180), generator())
    still = (turns - picture).abs().amax((1, 2, 3)) < 1e-4
    assert still.float().mean() == pytest.approx(0.6, abs=0.03)
    assert augmented(picture, AugmentationConfig(), generator()) is picture


# ---------------------------------------------------------------- corruption


def test_pixel_noise_has_the_deviation_asked_for() -> None:
    clean = images(8, 3)
    noise = pixel_noise(clean, 0.2, generator()) - clean
    assert noise.std() == pytest.approx(0.2, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean()
    assert neighbours.abs() < 0.01 * 0.2


@pytest.mark.parametrize("side", [16, 32, 64, 50])
def test_coarse_noise_is_smooth_and_every_image_has_its_own(side: int) -> None:
    clean = images(200, 1, side)
    noise = coarse_noise(clean, 0.2, generator()) - clean
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert 0.1 < noise.std() <= 0.21
    left, right = noise[..., 1:].flatten(), noise[..., :-1].flatten()
    assert torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.7
    pairs = torch.corrcoef(noise.flatten(1)) - 2 * torch.eye(200)
    assert pairs.max() < 1 - 1e-6


@given(st.floats(0.01, 1.5), st.integers(5, 24), st.integers(0, 9))
def test_a_mask_hides_one_square_of_the_share_asked_for(
    strength: float, side: int, seed: int
) -> None:
    clean = 1 + images(3, 2, side)
    shown = masked(clean, strength, generator(seed))
    hidden = shown == STANDARDISED_MEAN
    width = min(max(round(strength * side), 1), side)
    for row in hidden:
        assert torch.equal(row[0], row[1])
        rows, columns = (row[0].any(axis) for axis in (1, 0))
        assert rows.sum() == columns.sum() == width
        assert row[0].sum() == width**2
    assert torch.equal(shown[~hidden], clean[~hidden])


def test_masks_reach_every_corner() -> None:
    hidden = (
        masked(1 + images(1, 1, 6).expand(600, 1, 6, 6), 0.34, generator()) == STANDARDISED_MEAN
    )
    share = hidden.float().mean((0, 1))
    assert share.min() > 0.01
    assert share[0, 0] == pytest.approx(1 / 25, abs=0.03)


@pytest.mark.parametrize("strength", [0.5, 0.75])
def test_downsampling_loses_resolution_and_keeps_the_mean(strength: float) -> None:
    clean = images(4, 3, 32)
    shown = downsampled(clean, strength, generator())
    small = round((1 - strength) * 32)
    low = F.interpolate(clean, (small, small), mode="bilinear", antialias=True)
    torch.testing.assert_close(shown, F.interpolate(low, (32, 32), mode="bilinear"))
    assert shown.std() < 0.7 * clean.std()
    torch.testing.assert_close(shown.mean((2, 3)), clean.mean((2, 3)), atol=0.02, rtol=0)


def test_all_resolution_lost_is_one_grey() -> None:
    shown = downsampled(images(2), 2.0, generator())
    assert shown.std((2, 3)).max() < 1e-6


def test_no_corruption_and_no_strength_leave_the_images() -> None:
    clean = images()
    assert corrupted(clean, CorruptionConfig(type="none"), generator()) is clean
    for kind in CORRUPTIONS:
        config = CorruptionConfig.model_validate({"type": kind, "strength": 0})
        assert corrupted(clean, config, generator()) is clean
