"""The autoencoder is the VAE without noise and without rate."""

from __future__ import annotations

import torch

from anomaly_vae.config.model import ModelConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.builder import build

LAYOUT = Layout(3, 1, (4,))
X = torch.tensor(
    [[0.5, -1, 2, 1, 3], [torch.nan, 0, 0, 0, 0], [9, 9, 9, 1, torch.nan]], dtype=torch.float64
)


def pair() -> tuple[Autoencoder, torch.nn.Module]:
    twin = build(ModelConfig(type="autoencoder", members=1), LAYOUT, seed=1).double()
    assert isinstance(twin, Autoencoder)
    return twin, build(ModelConfig(members=1), LAYOUT, seed=1).double()


def test_it_has_the_networks_of_the_vae() -> None:
    twin, vae = pair()
    theirs = vae.state_dict()
    assert twin.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in twin.state_dict().items())


@torch.no_grad()
def test_its_objective_is_the_reconstruction_whatever_the_noise() -> None:
    twin, vae = pair()
    code, _ = vae.posterior(X)
    truth = vae.decode(code).log_prob(X)
    for seed in range(3):
        noise = torch.randn(4, twin.latent_dim, generator=torch.Generator().manual_seed(seed))
        for terms in (twin.elbo(X, noise), twin.importance_weighted(X, noise)):
            assert torch.equal(terms.log_prob, truth)
            assert torch.equal(terms.bound, truth.sum(-1))
            assert not terms.kl.any()


def test_it_learns_nothing_from_the_spread_of_the_code() -> None:
    """The half of the encoder that would be the log-variance gets no gradient."""
    twin, _ = pair()
    (-twin.elbo(X, torch.zeros(1, twin.latent_dim)).bound.mean()).backward()
    gradient = twin.encoder.network.skip.weight.grad
    assert gradient is not None
    assert gradient[: twin.latent_dim].abs().sum() > 0
    assert not gradient[twin.latent_dim :].any()
