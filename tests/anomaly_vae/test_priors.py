"""The prior against torch.distributions and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from anomaly_vae.priors import StandardNormal
from tests import naive

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
