"""The prior against torch.distributions and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.special import logsumexp
from torch.distributions import Normal, kl_divergence

from anomaly_vae.models.priors import (
    MIN_EXPONENT,
    LatentGaussian,
    Mixture,
    StandardNormal,
    log_sum_exp,
)
from tests.support import naive

PRIOR = StandardNormal()


def posterior(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    log_var = 3 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    return mean, log_var


def test_kl_is_that_of_torch_distributions() -> None:
    mean, log_var = posterior()
    truth = kl_divergence(Normal(mean, torch.exp(log_var / 2)), Normal(0.0, 1.0))
    torch.testing.assert_close(PRIOR.kl(mean, log_var), truth, rtol=1e-12, atol=1e-12)


def test_kl_is_what_a_loop_computes() -> None:
    mean, log_var = posterior()
    loop = [naive.kl_to_standard(*row) for row in zip(mean.tolist(), log_var.tolist(), strict=True)]
    assert PRIOR.kl(mean, log_var).sum(-1).tolist() == pytest.approx(loop, rel=1e-12)


def test_kl_is_the_mean_log_ratio_under_the_posterior() -> None:
    mean, log_var = (part[:1, :1] for part in posterior())
    z, weight = np.polynomial.hermite_e.hermegauss(40)
    draws = mean + torch.exp(log_var / 2) * torch.from_numpy(z)[:, None]
    log_q = Normal(mean, torch.exp(log_var / 2)).log_prob(draws).sum(-1)
    integral = weight @ (log_q - PRIOR.log_prob(draws)).numpy() / weight.sum()
    assert PRIOR.kl(mean, log_var).item() == pytest.approx(integral, rel=1e-10)


def test_kl_is_zero_at_the_prior_and_positive_elsewhere() -> None:
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    assert torch.equal(PRIOR.kl(nothing, nothing), nothing)
    assert (PRIOR.kl(*posterior()) > 0).all()


def test_log_prob_is_that_of_scipy() -> None:
    z, _ = posterior()
    truth = stats.multivariate_normal(np.zeros(3)).logpdf(z.numpy())
    np.testing.assert_allclose(PRIOR.log_prob(z).numpy(), truth, rtol=1e-12)


def test_samples_are_standard_normal_and_follow_the_generator() -> None:
    first = PRIOR.sample(20_000, 2, torch.Generator().manual_seed(3))
    again = PRIOR.sample(20_000, 2, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert stats.kstest(first.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first.T.numpy())[0, 1]) < 0.03


# ---------------------------------------------------------------- the mixture


def mixture(seed: int = 0, parts: int = 4, latent_dim: int = 3) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    log_weight = torch.log_softmax(torch.randn(parts, generator=generator), 0)
    center = torch.randn(parts, latent_dim, generator=generator)
    scale = 0.5 + torch.rand(1, latent_dim, generator=generator)
    return Mixture(log_weight, center, torch.randn(parts, generator=generator), scale)


def test_its_log_prob_is_that_of_scipy() -> None:
    made = mixture()
    z = 3 * torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(1))
    laws = [
        stats.multivariate_normal(
            (made.scale[0] * center).numpy(), np.diag((v.exp() * made.scale[0] ** 2).numpy())
        )
        for center, v in zip(made.center, made.log_var, strict=True)
    ]
    each = np.stack([law.logpdf(z.numpy()) for law in laws], -1)
    truth = logsumexp(made.log_weight.numpy() + each, axis=-1)
    np.testing.assert_allclose(made.log_prob(z).numpy(), truth, rtol=1e-5)


def test_far_from_the_origin_its_distances_do_not_cancel() -> None:
    """Narrow parts a long way out: in float32 a squared distance would be all rounding."""
    center = torch.full((1, 2), 3_000.0)
    far = Mixture(torch.zeros(1), center, torch.tensor([-4.0]), torch.ones(1, 2))
    z = (center + torch.tensor([0.1, 0.0])).view(1, 1, 2)
    truth = stats.multivariate_normal([0, 0], np.exp(-4.0) * np.eye(2)).logpdf(
        (z.double() - center.double()).numpy().ravel()
    )
    assert far.log_prob(z).item() == pytest.approx(truth, rel=1e-5)


def test_members_have_mixtures_of_their_own() -> None:
    each = [mixture(seed) for seed in range(2)]
    z = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(1))
    together = Mixture.stack(each).log_prob(z)
    apart = torch.stack([one.log_prob(part) for one, part in zip(each, z, strict=True)])
    torch.testing.assert_close(together, apart)


def test_a_part_weighs_as_much_as_the_latents_near_it() -> None:
    """More of them than are looked at in one go; a part without any keeps its odds."""
    center = torch.tensor([[0.0], [100.0], [1e4]])
    made = Mixture(torch.full((3,), 1 / 3).log(), center, torch.zeros(3), torch.ones(1, 1))
    z = torch.tensor([0.0, 100.0]).repeat(700).view(-1, 1, 1)
    weight = torch.tensor([1.0, 0.2]).repeat(700)
    found = made.reweighted(z, weight)
    truth = np.array([1.0, 0.2, 1.0]) / 2.2
    np.testing.assert_allclose(found.log_weight.exp().numpy(), truth, rtol=1e-5)
    assert torch.equal(found.center, made.center)
    same = made.reweighted(z, torch.ones(1400))
    torch.testing.assert_close(same.log_weight, made.log_weight)


@pytest.mark.parametrize("parts", [4, 5, 16, 37])
def test_cut_it_is_the_same_in_more_parts(parts: int) -> None:
    made = mixture()
    cut = made.split_components(parts)
    assert (made.n_components, cut.n_components) == (4, parts)
    z = torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(cut.log_prob(z), made.log_prob(z))


def test_its_samples_have_its_mean_and_covariance_and_follow_the_generator() -> None:
    made = mixture()
    first = made.sample(200_000, 3, torch.Generator().manual_seed(3))
    assert torch.equal(first, made.sample(200_000, 3, torch.Generator().manual_seed(3)))
    weight, center = made.log_weight.exp().numpy(), (made.scale * made.center).numpy()
    mean = weight @ center
    within = np.diag((weight @ made.log_var.exp().numpy()) * made.scale[0].numpy() ** 2)
    between = (center - mean).T @ np.diag(weight) @ (center - mean)
    np.testing.assert_allclose(first.mean(0).numpy(), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(first.numpy().T), within + between, atol=0.06)


@given(arrays(np.float32, (3, 7), elements=st.floats(-(2.0**17), 2.0**7, width=32)))
def test_a_log_sum_of_exponentials_is_that_of_scipy(exponents: np.ndarray) -> None:
    truth = logsumexp(exponents.astype(np.float64), -1)
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        found = log_sum_exp(torch.from_numpy(exponents).to(dtype)).numpy()
        np.testing.assert_allclose(found, truth, rtol=rtol, atol=rtol)


def test_no_exponential_of_it_is_subnormal() -> None:
    least = torch.tensor(MIN_EXPONENT).exp()
    assert least > torch.finfo(torch.float32).tiny
    assert torch.tensor(1.0) + 1024 * least == 1.0  # nor is any missed


def test_latents_are_drawn_as_the_fitted_ones_vary() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([3.0, 0.0, 1.0, 0.0])
    latents = 5 + torch.randn(400, 4, generator=generator) * spread
    drawn = LatentGaussian.fit(latents).sample(4000, generator)
    torch.testing.assert_close(drawn.mean(0), latents.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(drawn.std(0), latents.std(0), atol=0.2, rtol=0)


def test_the_directions_are_few_and_are_those_of_most_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(2, 0.1, 40)
    latents = torch.randn(300, 40, generator=generator) * scale
    basis = LatentGaussian.fit(latents).basis
    assert basis.shape == (LatentGaussian.RANK, 40)
    kept = basis.square().sum(0) / latents.var(0)
    assert kept[:8].min() > 0.8
    assert kept[-8:].max() < 0.2
    assert LatentGaussian.fit(latents[:3]).basis.shape == (3, 40)
