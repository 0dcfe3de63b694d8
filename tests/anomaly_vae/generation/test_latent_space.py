"""Latent space: codes that are the scoring graph's, and paths, traversals and grids by formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.generation import latent_space
from anomaly_vae.generation.latent_space import path, quantile_grid, traversal
from anomaly_vae.training.fit import Fitted, Prepared
from tests.support.untrained import untrained

BOTH = ["", "image_"]
NETWORKS = ["dense", "convolutional", "residual", "hierarchical"]


def given_by(request: pytest.FixtureRequest, kind: str) -> tuple[Fitted, Tensor]:
    """A fitted model and rows that trained nothing."""
    fitted: Fitted = request.getfixturevalue(f"{kind}fitted")
    prepared: Prepared = request.getfixturevalue(f"{kind}prepared")
    return fitted, torch.from_numpy(prepared.validation)


def normals(n: int, dims: int, seed: int) -> Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the model of a bundle


@pytest.mark.parametrize("kind", BOTH)
def test_the_loaded_model_is_the_fitted_one(request: pytest.FixtureRequest, kind: str) -> None:
    fitted, x = given_by(request, kind)
    model = latent_space.load_model(fitted.bundle)
    assert not model.training
    noise = torch.zeros(1, model.latent_dim)
    with torch.no_grad():
        bounds = [m.elbo(x, noise).bound for m in (model, fitted.model.eval())]
    first = bounds[1] if fitted.model.members == 1 else bounds[1][0]
    torch.testing.assert_close(bounds[0], first, rtol=1e-5, atol=1e-5)


def test_what_the_weights_file_holds_for_the_score_is_not_the_models(image_bundle: Bundle) -> None:
    stored, model = load_tensors(image_bundle.weights), latent_space.load_model(image_bundle)
    assert {"noise", "center", "scale"} <= stored.keys() - model.state_dict().keys()


@pytest.mark.parametrize("kind", BOTH)
def test_latents_are_those_of_the_scoring_graph(request: pytest.FixtureRequest, kind: str) -> None:
    fitted, x = given_by(request, kind)
    graph = fitted.bundle.scorer.explain_encoded(x.numpy()).latent
    means = latent_space.latent_means(fitted.bundle, x).numpy()
    np.testing.assert_allclose(means, graph, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", BOTH)
def test_tiny_chunks_are_one_chunk(
    request: pytest.FixtureRequest, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, x = given_by(request, kind)[0].bundle, given_by(request, kind)[1][:20]

    def everything() -> list[Tensor]:
        means = latent_space.latent_means(bundle, x)
        decoded = latent_space.decoded(bundle, means, lambda model, z: model.decode(z).mean)
        return [means, decoded, latent_space.activity(bundle, x)]

    whole = everything()
    for rows in (1, 7):
        monkeypatch.setattr(latent_space, "CHUNK_VALUES", rows * x.shape[1])
        for part, expected in zip(everything(), whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("z", [np.zeros((2, 1)), np.zeros(3), np.full((1, 3), np.inf)])
def test_latents_that_cannot_be_decoded_are_refused(z: np.ndarray) -> None:
    with pytest.raises(DataError, match="latents"):
        latent_space.decoded(untrained(), z, lambda model, z: z)


# ---------------------------------------------------------------- paths


def by_rotation(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Between vectors of one length: ``a`` turned towards ``b`` in their plane, step by step."""
    u = a.double() / a.double().norm()
    v = b.double() - (b.double() @ u) * u
    v /= v.norm()
    angle = torch.atan2(b.double() @ v, b.double() @ u)
    turns = torch.linspace(0, 1, steps).double()[:, None] * angle
    return (a.double().norm() * (torch.cos(turns) * u + torch.sin(turns) * v)).float()


@given(st.integers(2, 40), st.integers(2, 12), st.integers(0, 999))
def test_a_spherical_path_turns_one_end_into_the_other(dims: int, steps: int, seed: int) -> None:
    a, b = normals(2, dims, seed)
    b = b * (a.norm() / b.norm())
    share, z = path(a, b, steps, "spherical")
    torch.testing.assert_close(share, torch.linspace(0, 1, steps))
    torch.testing.assert_close(z, by_rotation(a, b, steps), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z.norm(dim=1), a.norm().expand(steps), rtol=1e-4, atol=1e-5)


@given(
    st.integers(1, 40),
    st.integers(2, 12),
    st.integers(0, 999),
    st.sampled_from(["linear", "spherical"]),
)
def test_every_path_has_its_ends(dims: int, steps: int, seed: int, shape: Any) -> None:
    a, b = normals(2, dims, seed)
    _, z = path(a, b, steps, shape)
    assert z.shape == (steps, dims)
    torch.testing.assert_close(z[[0, -1]], torch.stack([a, b]), rtol=1e-4, atol=1e-4)


def test_a_straight_path_crosses_the_inside_of_the_sphere_and_a_spherical_one_does_not() -> None:
    a, b = torch.eye(2) * 3
    middle = [path(a, b, 3, shape)[1][1] for shape in ("linear", "spherical")]
    torch.testing.assert_close(middle[0], torch.full((2,), 1.5))
    torch.testing.assert_close(middle[1], torch.full((2,), 3 / 2**0.5))


@pytest.mark.parametrize("factor", [0.0, 1.0, 2.5, -1.0, -0.3])
def test_where_no_direction_lies_between_the_ends_the_path_is_straight(factor: float) -> None:
    a = torch.tensor([0.7, -1.3, 2.0])
    for ends in ((a, factor * a), (factor * a, a)):
        straight, turning = (path(*ends, 5, shape)[1] for shape in ("linear", "spherical"))
        torch.testing.assert_close(turning, straight, rtol=1e-5, atol=1e-5)


def test_a_path_needs_two_steps_and_two_rows() -> None:
    with pytest.raises(ConfigError, match="at least 2 steps"):
        path(torch.zeros(2), torch.ones(2), 1)
    with pytest.raises(DataError, match="two rows"):
        latent_space.path_between(untrained(), torch.zeros(1, 256), None, 3, "linear")


# ---------------------------------------------------------------- traversals


def test_a_traversal_moves_one_latent_and_holds_the_rest() -> None:
    base = torch.tensor([0.5, -0.5, 9.0])
    which, values, z = traversal(base, [2, 0], 2.0, 3)
    assert which.tolist() == [2, 2, 2, 0, 0, 0]
    assert values.tolist() == [-2, 0, 2, -2, 0, 2]
    expected = [[0.5, -0.5, v] for v in (-2, 0, 2)] + [[v, -0.5, 9] for v in (-2, 0, 2)]
    assert z.tolist() == expected
    assert base.tolist() == [0.5, -0.5, 9.0]


@pytest.mark.parametrize(
    ("dims", "span", "steps"),
    [([3], 1.0, 2), ([-1], 1.0, 2), ([], 1.0, 2), ([0], 0.0, 2), ([0], np.inf, 2), ([0], 1.0, 0)],
)
def test_a_traversal_to_nowhere_is_refused(dims: list[int], span: float, steps: int) -> None:
    with pytest.raises(ConfigError, match=r"latent dimension|a traversal needs"):
        traversal(torch.zeros(3), dims, span, steps)


def test_a_traversal_starts_from_the_first_row_or_from_the_priors_mean() -> None:
    bundle, x = untrained(), torch.rand(3, 256)
    assert latent_space.start_latent(bundle, None).tolist() == [0, 0, 0]
    means = latent_space.latent_means(bundle, x)
    torch.testing.assert_close(latent_space.start_latent(bundle, x), means[0])
    assert means[0].abs().min() > 0
    with pytest.raises(DataError, match="the input has none"):
        latent_space.start_latent(bundle, x[:0])


@pytest.mark.parametrize("network", NETWORKS)
def test_activity_is_the_mean_kl_of_each_latent(network: str) -> None:
    bundle, x = untrained(network=network), torch.rand(5, 256)
    with torch.no_grad():
        mean, log_var = latent_space.load_model(bundle).posterior(x)
    naive = torch.zeros(mean.shape[1])
    for m, v in zip(mean, log_var, strict=True):
        naive += 0.5 * (m**2 + v.exp() - 1 - v) / len(x)
    torch.testing.assert_close(latent_space.activity(bundle, x), naive, rtol=1e-4, atol=1e-5)


def test_a_latent_that_ignores_the_rows_has_no_activity() -> None:
    """Its posterior is the prior."""
    bundle = untrained()
    tensors = load_tensors(bundle.weights)
    for name in ("encoder.dense.3.weight", "encoder.dense.3.bias"):
        tensors[name][[1, 4]] = 0  # the second latent's mean and log-variance
    collapsed = Bundle(bundle.manifest, b"", save_tensors(tensors))
    vars(collapsed)["scorer"] = bundle.scorer
    activity = latent_space.activity(collapsed, torch.rand(5, 256))
    assert activity[1] == 0
    assert (activity[[0, 2]] > 0).all()
    assert latent_space.most_active(activity, 9)[-1] == 1


@pytest.mark.parametrize("network", NETWORKS)
def test_the_activity_of_an_autoencoder_is_the_deviation_of_its_codes(network: str) -> None:
    bundle, x = untrained(type="autoencoder", network=network), torch.rand(6, 256)
    codes = latent_space.latent_means(bundle, x).numpy()
    np.testing.assert_allclose(latent_space.activity(bundle, x), codes.std(0), rtol=1e-4, atol=1e-6)


def test_the_most_active_come_first_and_equals_in_their_order() -> None:
    activity = torch.tensor([0.1, 2.0, 0.1, 5.0, 0.1])
    assert latent_space.most_active(activity, 4) == [3, 1, 0, 2]
    assert latent_space.most_active(activity, 99) == [3, 1, 0, 2, 4]


# ---------------------------------------------------------------- grids


@given(st.integers(1, 30))
def test_the_grid_shares_the_prior_out_evenly(steps: int) -> None:
    grid = quantile_grid(steps).view(steps, steps, 2)
    shares = torch.special.ndtr(grid.double())
    even = (torch.arange(steps) + 0.5) / steps
    torch.testing.assert_close(shares[0, :, 0], even.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shares[:, 0, 1], even.double().flip(0), rtol=1e-4, atol=1e-6)
    assert (grid[..., 0] == grid[:1, :, 0]).all()
    assert (grid[..., 1] == grid[:, :1, 1]).all()
