"""Networks of images: every size is padded, halved, doubled and cropped back to itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.convolutional import (
    MAX_COARSEST_SIDE,
    MAX_WIDENING,
    Down,
    Geometry,
    ImageDecoder,
    ImageEncoder,
    Residual,
    upsample,
)
from anomaly_vae.models.networks import Encoder

SIZES = st.integers(16, 256)
UPSAMPLINGS = ["resize", "shuffle", "transposed"]
NETWORKS = [(residual, upsampling) for residual in (False, True) for upsampling in UPSAMPLINGS]


def rows(n: int, layout: ImageLayout, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, layout.n_columns), generator=generator)


# ---------------------------------------------------------------- geometry


@given(SIZES, st.sampled_from([None, 3]))
def test_the_side_is_halved_to_a_whole_number(size: int, halvings: int | None) -> None:
    geometry = Geometry(ImageLayout(1, size), 8, halvings)
    step = 2**geometry.halvings
    assert size <= geometry.side < size + step
    assert geometry.side == step * geometry.coarsest
    assert geometry.halvings >= 2
    assert halvings or geometry.coarsest <= MAX_COARSEST_SIDE


@given(SIZES, st.sampled_from([1, 3]))
def test_what_was_padded_is_cropped_back(size: int, channels: int) -> None:
    layout = ImageLayout(channels, size)
    geometry = Geometry(layout, 8)
    x = rows(2, layout)
    padded = geometry.pad(x)
    assert padded.shape == (2, channels, geometry.side, geometry.side)
    assert torch.equal(geometry.crop(padded), x)


def test_padding_repeats_the_border() -> None:
    layout = ImageLayout(1, 29)  # → 32: one on the left, two on the right
    image = rows(1, layout).view(29, 29)
    padded = Geometry(layout, 8).pad(image.view(1, -1))[0, 0]
    assert torch.equal(padded[1:30, 1:30], image)
    assert torch.equal(padded[0, 1:30], image[0])
    assert torch.equal(padded[1:30, 31], image[:, -1])
    assert padded[31, 0] == image[-1, 0]


def test_channels_double_with_each_halving_up_to_a_limit() -> None:
    assert Geometry(ImageLayout(1, 28), 8).widths == [8, 16]
    assert Geometry(ImageLayout(1, 224), 8).widths == [8, 16, 32, 32, 32]
    assert max(Geometry(ImageLayout(1, 512), 8).widths) == 8 * MAX_WIDENING


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(("residual", "upsampling"), NETWORKS)
@pytest.mark.parametrize(("size", "channels"), [(16, 1), (17, 3), (28, 1), (33, 1)])
def test_any_size_is_encoded_and_decoded(
    residual: bool, upsampling: str, size: int, channels: int
) -> None:
    layout = ImageLayout(channels, size)
    geometry = Geometry(layout, 4)
    encoder = ImageEncoder(geometry, 5, 16, residual)
    mean, log_var = encoder(rows(3, layout))
    assert mean.shape == log_var.shape == (3, 5)
    decoder = ImageDecoder(geometry, 5, 16, channels, upsampling, residual)
    assert decoder(mean).shape == (3, layout.n_columns)
    assert decoder(mean.view(3, 1, 5).repeat(1, 2, 1)).shape == (3, 2, layout.n_columns)


def test_draws_decode_each_on_its_own() -> None:
    geometry = Geometry(ImageLayout(1, 20), 4)
    decoder = ImageDecoder(geometry, 3, 16, 1, "shuffle", False).eval()
    z = torch.randn(4, 2, 3)
    together = decoder(z)
    for draw in range(2):
        torch.testing.assert_close(together[:, draw], decoder(z[:, draw]))


@pytest.mark.parametrize("residual", [False, True])
def test_every_parameter_learns(residual: bool) -> None:
    layout = ImageLayout(1, 20)
    geometry = Geometry(layout, 4)
    encoder = ImageEncoder(geometry, 3, 16, residual)
    decoder = ImageDecoder(geometry, 3, 16, 1, "shuffle", residual)
    x = rows(4, layout)
    mean, log_var = encoder(x)
    ((decoder(mean + log_var) - x) ** 2).sum().backward()
    parameters = [*encoder.named_parameters(), *decoder.named_parameters()]
    still = [name for name, p in parameters if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_the_log_variance_is_bounded() -> None:
    encoder = ImageEncoder(Geometry(ImageLayout(1, 16), 4), 3, 16, False).eval()
    _, log_var = encoder(1e6 * rows(8, ImageLayout(1, 16)))
    low, high = Encoder.LOG_VAR_BOUNDS
    assert low <= log_var.min()
    assert log_var.max() <= high


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_doubling_doubles_and_halving_halves(upsampling: str) -> None:
    images = torch.rand(2, 4, 6, 6)
    assert upsample(4, 3, upsampling)(images).shape == (2, 3, 12, 12)
    assert Down(4, 8)(images).shape == (2, 8, 3, 3)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_only_enlarging_linearly_leaves_neither_grid_nor_frame(upsampling: str) -> None:
    enlarged = upsample(4, 3, upsampling)(torch.rand(1, 4, 1, 1).expand(1, 4, 6, 6))
    spread = (enlarged - enlarged[..., :1, :1]).abs().max()
    assert (spread < 1e-5) == (upsampling == "resize")


def test_a_residual_block_without_its_branch_is_the_identity() -> None:
    block = Residual(3)
    torch.nn.init.zeros_(block.branch[-1].weight)
    torch.nn.init.zeros_(block.branch[-1].bias)
    images = torch.rand(2, 3, 5, 5)
    assert torch.equal(block(images), images)


@pytest.mark.parametrize("residual", [False, True])
def test_in_evaluation_an_image_is_encoded_alone_as_among_others(residual: bool) -> None:
    layout = ImageLayout(1, 16)
    encoder = ImageEncoder(Geometry(layout, 4), 3, 16, residual)
    x = rows(8, layout)
    encoder(x)  # moves the statistics of batch norm
    encoder.eval()
    torch.testing.assert_close(encoder(x)[0][3:4], encoder(x[3:4])[0])
