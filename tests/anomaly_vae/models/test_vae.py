"""The VAE against truth (a linear-Gaussian model, whose log p(x) is known) and against a loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from anomaly_vae.config.model import ModelConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.builder import build
from anomaly_vae.models.vae import VAE, frozen_noise, reparameterise
from tests.support.naive import NaiveVAE

NAN = math.nan
FLOOR = 0.01
TEXTBOOK = {"members": 1, "posterior_variance": "row"}
"""One network whose posterior variance is each row's own, as in Kingma & Welling 2014."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- linear-Gaussian truth


@dataclass(frozen=True)
class LinearGaussian:
    """x = W z + μ + √ψ ε, as a VAE whose posterior is exact while the same columns are observed.

    W is chosen so that the posterior covariance (I + Wᵀ Ψ⁻¹ W)⁻¹, of the observed columns, is
    diagonal as the encoder's is.
    """

    model: VAE
    W: np.ndarray
    mu: np.ndarray
    psi: np.ndarray
    observed: np.ndarray

    @classmethod
    def make(cls, observed: tuple[int, ...], columns: int = 5, latent: int = 2) -> LinearGaussian:
        rng = np.random.default_rng(7)
        seen = np.array(observed)
        mu, psi = rng.normal(size=columns), rng.uniform(0.2, 2.0, columns)
        W = rng.normal(size=(columns, latent))
        orthonormal, _ = np.linalg.qr(rng.normal(size=(len(seen), latent)))
        W[seen] = np.sqrt(psi[seen])[:, None] * orthonormal * np.array([2.0, 0.7])
        precision = 1 + np.sum(W[seen] ** 2 / psi[seen][:, None], axis=0)
        gain = np.zeros((latent, columns))
        gain[:, seen] = (W[seen] / psi[seen][:, None]).T / precision[:, None]
        config = ModelConfig.model_validate(
            {"depth": 0, "latent_dim": latent, "variance_floor": FLOOR, **TEXTBOOK}
        )
        model = build(config, Layout(columns, 0, ())).double()
        encoder, decoder = model.encoder.network.skip, model.decoder.network.skip
        # The encoder sees the values, 0 where missing, and then their mask, which is left out.
        weight = np.concatenate([gain, np.zeros((latent, columns))], axis=1)
        set_linear(
            encoder,
            np.concatenate([weight, 0 * weight]),
            np.concatenate([-gain @ mu, -np.log(precision)]),
        )
        set_linear(decoder, np.concatenate([W, 0 * W]), np.concatenate([mu, raw_for(psi)]))
        return cls(model, W, mu, psi, seen)

    def log_p(self, x: Tensor) -> np.ndarray:
        """log p(x_observed) in closed form, (N,)."""
        s = self.observed
        covariance = (self.W @ self.W.T + np.diag(self.psi))[np.ix_(s, s)]
        truth = stats.multivariate_normal(self.mu[s], covariance).logpdf(x.numpy()[:, s])
        return np.atleast_1d(truth)

    def rows(self, n: int) -> Tensor:
        x = 3 * randn(n, len(self.mu), seed=n)
        missing = np.setdiff1d(np.arange(len(self.mu)), self.observed)
        x[:, missing] = NAN
        return x


def raw_for(variance: np.ndarray) -> np.ndarray:
    """The decoder output whose floored variance this is."""
    low = math.log(FLOOR)
    return low + np.log(np.expm1(np.log(variance) - low))


def set_linear(layer: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))


def blunt(truth: LinearGaussian, shift: float = 0.4, spread: float = 0.8) -> VAE:
    """The same model with a posterior that is off: moved, and too wide."""
    with torch.no_grad():
        truth.model.encoder.network.skip.bias += torch.tensor([shift, -shift, spread, spread])
    return truth.model


def cubature(latent: int) -> Tensor:
    """2L points with mean 0 and covariance I: the mean of a quadratic over them is exact."""
    points = math.sqrt(latent) * torch.eye(latent, dtype=torch.float64)
    return torch.cat([points, -points])


PATTERNS = ((0, 1, 2, 3, 4), (0, 2, 3), (1, 4))


@pytest.mark.parametrize("observed", PATTERNS)
@pytest.mark.parametrize("draws", [1, 3, 50])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_the_exact_posterior_the_importance_weighted_bound_is_log_p_whatever_the_noise(
    observed: tuple[int, ...], draws: int, seed: int
) -> None:
    """Every weight p(x, z) / q(z|x) is then p(x) itself (Burda et al. 2016), also where columns
    are missing: log p of the observed ones."""
    truth = LinearGaussian.make(observed)
    x = truth.rows(20)
    for noise in (randn(draws, 2, seed=seed), 4 * randn(20, draws, 2, seed=seed)):
        bound = truth.model.importance_weighted(x, noise).bound
        np.testing.assert_allclose(bound.detach(), truth.log_p(x), rtol=1e-10)


@pytest.mark.parametrize("observed", PATTERNS)
def test_with_the_exact_posterior_the_elbo_is_log_p(observed: tuple[int, ...]) -> None:
    """In expectation: its integrand is quadratic in z, so a cubature of degree 3 has it exactly."""
    truth = LinearGaussian.make(observed)
    x = truth.rows(20)
    bound = truth.model.elbo(x, cubature(2)).bound
    np.testing.assert_allclose(bound.detach(), truth.log_p(x), rtol=1e-10)


@torch.no_grad()
def test_elbo_below_importance_weighted_below_log_p_and_more_draws_are_tighter() -> None:
    """Burda et al. 2016, theorem 1, with a posterior that is off; 4,000 noises to average."""
    truth = LinearGaussian.make(PATTERNS[0])
    x, model = truth.rows(3), blunt(truth)
    means, errors = [model.elbo(x, cubature(2)).bound], [torch.zeros(3)]
    for draws in (1, 4, 32):
        noise = randn(4_000, draws, 2, seed=draws)
        samples = torch.stack(
            [model.importance_weighted(row.expand(4_000, -1), noise).bound for row in x]
        )
        means.append(samples.mean(1))
        errors.append(samples.std(1) / math.sqrt(4_000))
    means.append(torch.from_numpy(truth.log_p(x)))
    errors.append(torch.zeros(3))
    assert torch.all((means[1] - means[0]).abs() < 4 * errors[1])  # one draw: the ELBO
    for low, high, a, b in zip(means[1:], means[2:], errors[1:], errors[2:], strict=False):
        assert torch.all(high - low > 3 * (a + b))


@torch.no_grad()
def test_the_gap_of_the_elbo_is_the_divergence_from_the_true_posterior() -> None:
    truth = LinearGaussian.make(PATTERNS[0])
    x = truth.rows(5)
    mean, log_var = truth.model.posterior(x)
    model = blunt(truth)
    shifted, wider = model.posterior(x)
    gap = 0.5 * (torch.exp(wider - log_var) + (shifted - mean) ** 2 / torch.exp(log_var) - 1)
    gap = (gap - 0.5 * (wider - log_var)).sum(-1)
    bound = model.elbo(x, cubature(2)).bound
    np.testing.assert_allclose(bound + gap, truth.log_p(x), rtol=1e-10)


@torch.no_grad()
def test_samples_have_the_mean_and_covariance_of_the_model() -> None:
    truth = LinearGaussian.make(PATTERNS[0])
    model = truth.model.float()
    x = model.sample(40_000, torch.Generator().manual_seed(0))
    assert torch.equal(x, model.sample(40_000, torch.Generator().manual_seed(0)))
    covariance = truth.W @ truth.W.T + np.diag(truth.psi)
    np.testing.assert_allclose(x.mean(0), truth.mu, atol=0.05)
    np.testing.assert_allclose(np.cov(x.numpy().T), covariance, atol=0.15)


# ---------------------------------------------------------------- the naive twin

LAYOUTS = {
    "mixed": Layout(2, 2, (4, 2, 3)),
    "numeric": Layout(3, 0, ()),
    "binary": Layout(0, 2, ()),
    "categorical": Layout(0, 0, (3, 2)),
    "one column": Layout(1, 0, ()),
}


def rows_of(layout: Layout, n: int = 12) -> Tensor:
    """Rows with ordinary, extreme, unseen and missing values, and one with nothing but those."""
    rng = np.random.default_rng(3)
    numeric = rng.normal(size=(n, layout.n_numeric)) * rng.choice([1, 100], (n, 1))
    binary = rng.integers(0, 2, (n, layout.n_binary))
    codes = rng.integers(0, np.array(layout.n_levels, int), (n, layout.n_categorical))
    x = np.concatenate([numeric, binary, codes], axis=1).astype(float)
    x[rng.random(x.shape) < 0.2] = NAN
    x[-1] = NAN
    return torch.from_numpy(x)


def model_of(layout: Layout, depth: int, likelihood: str) -> VAE:
    """Untrained but not near zero, so that every path carries weight."""
    config = ModelConfig.model_validate(
        {"depth": depth, "latent_dim": 3, "hidden_dim": 6, "likelihood": likelihood, **TEXTBOOK}
    )
    model = build(config, layout, seed=5).double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(randn(*parameter.shape, seed=index), alpha=0.5)
    return model


def twin_of(model: VAE, layout: Layout, depth: int, likelihood: str) -> NaiveVAE:
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    return NaiveVAE(
        weights,
        layout.n_numeric,
        layout.n_binary,
        layout.n_levels,
        depth,
        0.01,
        likelihood == "student_t",
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_every_bound_is_what_a_loop_over_the_rows_computes(
    layout: Layout, depth: int, likelihood: str
) -> None:
    model = model_of(layout, depth, likelihood)
    loop = twin_of(model, layout, depth, likelihood)
    x, noise = rows_of(layout), randn(4, 3, seed=9)
    rows, draws = x.tolist(), noise.tolist()
    for fast, slow in (
        (model.elbo(x, noise), [loop.elbo(row, draws) for row in rows]),
        (
            model.importance_weighted(x, noise),
            [loop.importance_weighted(row, draws) for row in rows],
        ),
        (model.reconstruction(x), [loop.reconstruction(row) for row in rows]),
    ):
        np.testing.assert_allclose(fast.bound, slow, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_terms_keep_their_columns_and_latent_dimensions() -> None:
    layout = LAYOUTS["mixed"]
    model, x = model_of(layout, 1, "gaussian"), rows_of(layout)
    loop, noise = twin_of(model, layout, 1, "gaussian"), randn(4, 3, seed=9)
    terms = model.elbo(x, noise)
    assert terms.log_prob.shape == (12, 7)
    assert terms.kl.shape == (12, 3)
    for row, by_column in zip(x.tolist(), terms.log_prob, strict=True):
        draws = [loop.log_prob(row, loop.draw(row, e)) for e in noise.tolist()]
        np.testing.assert_allclose(by_column, np.mean(draws, axis=0), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_noise_of_its_own_for_each_row_is_noise_of_a_loop() -> None:
    layout = LAYOUTS["mixed"]
    model, x = model_of(layout, 1, "gaussian"), rows_of(layout)
    own = randn(12, 2, 3, seed=4)
    for bound in (model.elbo, model.importance_weighted):
        alone = [bound(row[None], noise).bound for row, noise in zip(x, own, strict=True)]
        torch.testing.assert_close(bound(x, own).bound, torch.cat(alone), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_importance_weighted_columns_are_means_under_the_normalised_weights() -> None:
    layout = LAYOUTS["numeric"]
    model, x, noise = model_of(layout, 1, "gaussian"), rows_of(layout), randn(4, 3, seed=9)
    apart = torch.stack([model.importance_weighted(x, e[None]).bound for e in noise], dim=1)
    weights = torch.softmax(apart, 1)
    columns = torch.stack([model.elbo(x, e[None]).log_prob for e in noise], dim=1)
    expected = (weights.unsqueeze(-1) * columns).sum(1)
    torch.testing.assert_close(model.importance_weighted(x, noise).log_prob, expected)


@torch.no_grad()
def test_a_missing_column_leaves_the_likelihood_of_the_others_alone() -> None:
    """Given z, the columns are independent: the marginal of the others drops one of them."""
    layout = LAYOUTS["mixed"]
    model, x = model_of(layout, 1, "student_t"), rows_of(layout).nan_to_num(1.0)
    z = randn(12, 3, seed=2)
    whole = model.decode(z).log_prob(x)
    for column in range(layout.n_columns):
        hidden = x.clone()
        hidden[:, column] = NAN
        others = [c for c in range(layout.n_columns) if c != column]
        marginal = model.decode(z).log_prob(hidden).sum(-1)
        torch.testing.assert_close(marginal, whole[:, others].sum(-1), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("bound", ["elbo", "importance_weighted"])
def test_gradients_with_respect_to_the_rows(bound: str) -> None:
    model = model_of(LAYOUTS["numeric"], 1, "student_t")
    noise = randn(2, 3, seed=1)
    x = randn(3, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: getattr(model, bound)(rows, noise).bound, (x,))


@pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
def test_gradients_with_respect_to_every_parameter(likelihood: str) -> None:
    """With missing values and every kind of column; a NaN must not leak into a gradient."""
    layout = Layout(2, 1, (3, 2))
    model = model_of(layout, 1, likelihood)
    x, noise = rows_of(layout, 4), randn(2, 3, seed=1)
    names = [name for name, _ in model.named_parameters()]

    def elbo(*parameters: Tensor) -> Tensor:
        terms = torch.func.functional_call(
            _Elbo(model),
            {f"model.{n}": p for n, p in zip(names, parameters, strict=True)},
            (x, noise),
        )
        assert isinstance(terms, Tensor)
        return terms

    parameters = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(elbo, parameters)


class _Elbo(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.model.elbo(x, noise).bound


# ---------------------------------------------------------------- noise


def test_reparameterised_draws_are_mean_plus_sigma_noise() -> None:
    mean, log_var, noise = randn(4, 3), randn(4, 3, seed=1), randn(5, 3, seed=2)
    z = reparameterise(mean.unsqueeze(-2), log_var.unsqueeze(-2), noise)
    assert z.shape == (4, 5, 3)
    for n in range(4):
        for k in range(5):
            torch.testing.assert_close(z[n, k], mean[n] + torch.exp(log_var[n] / 2) * noise[k])


def test_one_frozen_draw_is_the_origin() -> None:
    assert torch.equal(frozen_noise(1, 5, seed=3), torch.zeros(1, 5))


@pytest.mark.parametrize("draws", [2, 3, 4, 5, 16, 33])
def test_frozen_draws_come_in_antithetic_pairs(draws: int) -> None:
    """So their mean is zero, and an odd one out is the origin."""
    noise = frozen_noise(draws, 6, seed=0)
    assert noise.shape == (draws, 6)
    assert {tuple(row) for row in noise.tolist()} == {tuple(row) for row in (-noise).tolist()}
    assert noise.double().sum(0).abs().max() == 0
    assert len(torch.unique(noise, dim=0)) == draws
    assert torch.isfinite(noise).all()


def test_frozen_draws_depend_on_their_seed_alone() -> None:
    first = frozen_noise(8, 4, seed=1)
    torch.rand(7)
    state = torch.get_rng_state()
    assert torch.equal(frozen_noise(8, 4, seed=1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(frozen_noise(8, 4, seed=2), first)


def test_many_frozen_draws_are_standard_normal_evenly_spread() -> None:
    noise = frozen_noise(1024, 3, seed=1).double()
    np.testing.assert_allclose((noise**2).mean(0), 1, atol=0.01)
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").statistic < 0.005  # of random ones, 0.03


@torch.no_grad()
def test_terms_linear_in_the_noise_cancel() -> None:
    """log p(x|z) less its even part is gone: K draws of a linear decoder cost no linear error."""
    truth = LinearGaussian.make(PATTERNS[0])
    x = truth.rows(4)
    for draws in (2, 3, 8):
        noise = frozen_noise(draws, 2, seed=0).double()
        mirrored = truth.model.elbo(x, -noise).bound
        torch.testing.assert_close(truth.model.elbo(x, noise).bound, mirrored, rtol=1e-12, atol=0)


@pytest.mark.parametrize("members", [1, 2])
def test_missing_values_are_filled_with_what_the_first_member_expects(members: int) -> None:
    config = ModelConfig(members=members, latent_dim=2, hidden_dim=6)
    model = build(config, Layout(2, 1, (3,)), seed=1).eval()
    x = torch.tensor([[0.3, -1.0, 1.0, 2.0], [torch.nan, 0.5, torch.nan, 1.0]])
    with torch.no_grad():
        filled = model.fill(x)
        mean = model.likelihood(model.infer(x, torch.zeros(1, 2)).outputs).mean
    missing = torch.isnan(x)
    assert torch.equal(filled[~missing], x[~missing])
    assert torch.equal(filled[missing], mean.view(members, 2, 4)[0][missing])
