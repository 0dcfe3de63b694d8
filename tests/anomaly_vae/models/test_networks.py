"""The networks: a linear path that is always there, and bounds that hold."""

from __future__ import annotations

import pytest
import torch

from anomaly_vae.models.networks import MLP, Decoder, Encoder
from tests.support import naive


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_the_mlp_is_what_a_loop_computes(depth: int) -> None:
    network = MLP(3, 4, hidden=5, depth=depth).double()
    x = seeded(6, 3)
    weights = {f"net.{name}": value.tolist() for name, value in network.state_dict().items()}
    loop = [naive.mlp(row, weights, "net", depth) for row in x.tolist()]
    torch.testing.assert_close(network(x), torch.tensor(loop, dtype=torch.float64))


def test_depth_zero_is_linear() -> None:
    network = MLP(3, 2, hidden=8, depth=0).double()
    x, y = seeded(5, 3, seed=1), seeded(5, 3, seed=2)
    origin = network(torch.zeros(1, 3, dtype=torch.float64))
    torch.testing.assert_close(
        network(2 * x - 3 * y) - origin, 2 * (network(x) - origin) - 3 * (network(y) - origin)
    )
    assert {name for name, _ in network.named_parameters()} == {"skip.weight", "skip.bias"}


def test_a_deep_network_whose_last_layer_is_zero_is_linear() -> None:
    """The linear path lies beside the hidden layers, so PCA is within reach at any depth."""
    network = MLP(3, 2, hidden=8, depth=3).double()
    assert network.out is not None
    torch.nn.init.zeros_(network.out.weight)
    x = seeded(5, 3)
    torch.testing.assert_close(network(x), network.skip(x))


@pytest.mark.parametrize("shape", [(7,), (2, 3), (0,)])
def test_leading_axes_pass_through(shape: tuple[int, ...]) -> None:
    network = MLP(3, 2, hidden=4, depth=2).double()
    x = seeded(*shape, 3)
    assert network(x).shape == (*shape, 2)
    torch.testing.assert_close(network(x).flatten(0, -2), network(x.flatten(0, -2)))


def test_the_encoder_gives_mean_then_log_variance() -> None:
    encoder = Encoder(4, latent_dim=3, hidden=5, depth=1).double()
    x = seeded(6, 4)
    mean, log_var = encoder(x)
    torch.testing.assert_close(torch.cat([mean, log_var], dim=-1), encoder.network(x))
    assert mean.shape == log_var.shape == (6, 3)


def test_the_log_variance_stays_in_its_bounds_however_far_the_row() -> None:
    encoder = Encoder(4, latent_dim=3, hidden=5, depth=1).double()
    _, log_var = encoder(1e12 * seeded(200, 4))
    low, high = Encoder.LOG_VAR_BOUNDS
    assert log_var.min() == low
    assert log_var.max() == high


def test_the_decoder_is_its_network() -> None:
    decoder = Decoder(3, outputs=7, hidden=5, depth=2).double()
    z = seeded(2, 4, 3)
    assert torch.equal(decoder(z), decoder.network(z))


# ---------------------------------------------------------------- members


@torch.no_grad()
def test_members_are_networks_side_by_side() -> None:
    several = MLP(4, 3, 8, 2, members=3)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    own = torch.stack([x, 2 * x, -x])
    draws = own.unsqueeze(2).expand(-1, -1, 6, -1)
    for member in range(3):
        alone = MLP(4, 3, 8, 2)
        alone.load_state_dict({name: value[member] for name, value in several.state_dict().items()})
        torch.testing.assert_close(several(x)[member], alone(x))
        torch.testing.assert_close(several(own)[member], alone(own[member]))
        torch.testing.assert_close(several(draws)[member], alone(draws[member]))


@torch.no_grad()
def test_no_rows_are_none_for_every_member() -> None:
    assert MLP(4, 3, 8, 1, members=2)(torch.zeros(0, 4)).shape == (2, 0, 3)
    assert MLP(4, 3, 8, 1, members=2)(torch.zeros(2, 0, 5, 4)).shape == (2, 0, 5, 3)


@pytest.mark.parametrize("members", [1, 2])
def test_a_shared_variance_is_one_vector_for_all_rows(members: int) -> None:
    encoder = Encoder(4, 2, 8, 1, members, shared_variance=True)
    x = torch.randn(5, 4)
    mean, log_var = encoder(x)
    assert mean.shape == log_var.shape == ((2, 5, 2) if members == 2 else (5, 2))
    assert torch.all(log_var == Encoder.INITIAL_LOG_VAR)
    log_var.sum().backward()
    assert encoder.log_var is not None
    assert torch.all(encoder.log_var.grad == 5)
