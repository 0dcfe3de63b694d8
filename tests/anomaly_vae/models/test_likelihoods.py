"""Every likelihood against torch.distributions, scipy and a loop; each integrates to one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, distributions

from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.likelihoods import (
    LOGIT_BOUND,
    UNIFORM_SHARE,
    Bernoulli,
    Categorical,
    Distribution,
    Gaussian,
    Joint,
    StudentT,
    TabularFeatures,
    TabularLikelihood,
    bounded,
    floored,
)
from tests.support import naive

NAN = math.nan
LEVELS = (4, 2, 3)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


MEAN, LOG_VAR, DF = doubles(0.0, -2.0, 30.0), doubles(0.0, -3.0, 4.0), doubles(2.1, 5.0, 80.0)
X = torch.cat([randn(50, 3), 40 * randn(50, 3, seed=1)])


def present(levels: tuple[int, ...] = LEVELS) -> Tensor:
    return torch.stack([(torch.arange(max(levels)) < count).double() for count in levels])


def categorical(rows: int = 1) -> Categorical:
    return Categorical(3 * randn(rows, len(LEVELS), max(LEVELS)), present())


# ---------------------------------------------------------------- numeric columns


def test_gaussian_is_that_of_torch_scipy_and_a_loop() -> None:
    ours = Gaussian(MEAN, LOG_VAR).log_prob(X)
    sigma = torch.exp(LOG_VAR / 2)
    torch.testing.assert_close(
        ours, distributions.Normal(MEAN, sigma).log_prob(X), rtol=1e-12, atol=0
    )
    np.testing.assert_allclose(ours, stats.norm(MEAN, sigma).logpdf(X), rtol=1e-12)
    loop = [
        [naive.log_normal(x, m, math.exp(v)) for x, m, v in zip(row, MEAN, LOG_VAR, strict=True)]
        for row in X.tolist()
    ]
    np.testing.assert_allclose(ours, loop, rtol=1e-12)


def test_student_t_is_that_of_torch_scipy_and_a_loop() -> None:
    ours = StudentT(MEAN, LOG_VAR, DF).log_prob(X)
    scale = torch.exp(LOG_VAR / 2)
    torch.testing.assert_close(
        ours, distributions.StudentT(DF, MEAN, scale).log_prob(X), rtol=1e-11, atol=1e-11
    )
    np.testing.assert_allclose(ours, stats.t(DF, MEAN, scale).logpdf(X), rtol=1e-11, atol=1e-11)
    columns = list(zip(MEAN.tolist(), scale.tolist(), DF.tolist(), strict=True))
    loop = [
        [naive.log_student_t(x, *column) for x, column in zip(row, columns, strict=True)]
        for row in X.tolist()
    ]
    np.testing.assert_allclose(ours, loop, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("family", ["gaussian", "student_t"])
def test_a_density_integrates_to_one(family: str, column: int) -> None:
    m, v, df = (part[column : column + 1] for part in (MEAN, LOG_VAR, DF))
    density = Gaussian(m, v) if family == "gaussian" else StudentT(m, v, df)
    scale = math.exp(v.item() / 2)

    def mass(t: float) -> float:
        x = doubles(m.item() + scale * t)
        return scale * math.exp(density.log_prob(x).item())

    total = sum(integrate.quad(mass, a, b)[0] for a, b in ((-np.inf, 0), (0, np.inf)))
    assert total == pytest.approx(1, abs=1e-7)


def test_student_t_tends_to_the_gaussian() -> None:
    heavy = StudentT(MEAN, LOG_VAR, doubles(1e9, 1e9, 1e9)).log_prob(X[:50])
    torch.testing.assert_close(
        heavy, Gaussian(MEAN, LOG_VAR).log_prob(X[:50]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("density", "law"),
    [
        (Gaussian(doubles(3.0), doubles(-1.0)), stats.norm(3, math.exp(-0.5))),
        (StudentT(doubles(3.0), doubles(-1.0), doubles(4.0)), stats.t(4, 3, math.exp(-0.5))),
    ],
)
def test_samples_of_a_density_follow_its_law(
    density: Distribution, law: stats.rv_continuous
) -> None:
    wide = type(density)(*(part.expand(20_000, 1) for part in vars(density).values()))
    first, again = wide.sample(generator(1)), wide.sample(generator(1))
    assert torch.equal(first, again)
    assert stats.kstest(first[:, 0].numpy(), law.cdf).pvalue > 1e-3
    assert first.mean().item() == pytest.approx(density.mean.item(), abs=0.02)


# ---------------------------------------------------------------- binary and categorical columns


def test_bernoulli_is_that_of_torch_scipy_and_a_loop() -> None:
    logits = doubles(-15.0, -1.0, 0.0, 2.0, 15.0)
    ours = Bernoulli(logits)
    for x in (0.0, 1.0):
        bits = torch.full_like(logits, x)
        truth = distributions.Bernoulli(logits=logits).log_prob(bits)
        torch.testing.assert_close(ours.log_prob(bits), truth, rtol=1e-12, atol=1e-15)
        loop = [naive.log_bernoulli(x, logit) for logit in logits.tolist()]
        for other in (stats.bernoulli(torch.sigmoid(logits)).logpmf(int(x)), loop):
            np.testing.assert_allclose(ours.log_prob(bits), other, rtol=1e-9, atol=1e-15)
    total = sum(torch.exp(ours.log_prob(torch.full_like(logits, x))) for x in (0.0, 1.0))
    np.testing.assert_allclose(total, 1, rtol=1e-14)


def test_a_categorical_is_torchs_mixed_with_the_uniform() -> None:
    """(1 − ε) softmax + ε/K, over the levels that the column has and no others."""
    ours = categorical(rows=5)
    for column, count in enumerate(LEVELS):
        softmax = distributions.Categorical(logits=ours.logits[:, column, :count])
        for level in range(count):
            x = torch.zeros(5, len(LEVELS), dtype=torch.float64)
            x[:, column] = level
            truth = (1 - UNIFORM_SHARE) * softmax.probs[:, level] + UNIFORM_SHARE / count
            got = ours.log_prob(x)[:, column]
            torch.testing.assert_close(got, torch.log(truth), rtol=1e-12, atol=1e-14)
            loop = [
                naive.log_categorical(level, row) for row in ours.logits[:, column, :count].tolist()
            ]
            np.testing.assert_allclose(got, loop, rtol=1e-12, atol=1e-14)


def test_a_categorical_sums_to_one_over_its_own_levels() -> None:
    probs = categorical(rows=5).probs
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-14)
    for column, count in enumerate(LEVELS):
        assert (probs[:, column, :count] > 0).all()
        assert (probs[:, column, count:] == 0).all()


def test_a_share_of_single_values_is_added_to_the_log_probability_of_their_level() -> None:
    plain = categorical(5)
    logs = torch.tensor([-2.0, 0.0, -0.5, 0.0], dtype=torch.float64).expand(3, 4)
    shared = Categorical(plain.logits, plain.present, logs.exp())
    x = torch.tensor([[0.0, 1.0, 2.0]]).expand(5, 3)
    expected = plain.log_prob(x) + torch.tensor([-2.0, 0.0, -0.5])
    torch.testing.assert_close(shared.log_prob(x), expected)
    for got, known in zip(shared.log_prob_and_grad(x), plain.log_prob_and_grad(x), strict=True):
        shift = expected - plain.log_prob(x) if got.ndim == 2 else 0.0
        torch.testing.assert_close(got, known + shift)
    assert shared.mean.tolist() == plain.mean.tolist()


def test_the_surprise_of_an_improbable_level_is_bounded() -> None:
    logits = doubles(LOGIT_BOUND, -LOGIT_BOUND, -LOGIT_BOUND).reshape(1, 1, 3)
    surprise = -Categorical(logits, present((3,))).log_prob(doubles(2.0).reshape(1, 1))
    assert surprise.item() == pytest.approx(math.log(3 / UNIFORM_SHARE), rel=1e-6)


def test_samples_of_levels_and_bits_have_their_probabilities() -> None:
    one = categorical()
    many = Categorical(one.logits.expand(20_000, -1, -1), one.present)
    draws = many.sample(generator(2))
    assert torch.equal(draws, many.sample(generator(2)))
    for column, count in enumerate(LEVELS):
        seen = np.bincount(draws[:, column].long(), minlength=count)
        expected = 20_000 * one.probs[0, column, :count].numpy()
        assert stats.chisquare(seen, expected).pvalue > 1e-3
    bits = Bernoulli(doubles(-1.0).expand(20_000, 1))
    assert set(bits.sample(generator(2)).flatten().tolist()) == {0.0, 1.0}
    assert bits.sample(generator(2)).mean().item() == pytest.approx(bits.mean[0].item(), abs=0.015)


def test_the_expected_level_is_the_most_probable() -> None:
    logits = torch.zeros(1, 3, 4, dtype=torch.float64)
    logits[0, 0, 3] = logits[0, 1, 1] = 2.0
    logits[0, 1, 3] = 9.0  # of a level that the column does not have
    assert Categorical(logits, present()).mean.tolist() == [[3, 1, 0]]


# ---------------------------------------------------------------- columns side by side


def joint(rows: int = 4) -> tuple[Joint, list[Distribution]]:
    parts = [
        Gaussian(randn(rows, 2), randn(rows, 2, seed=1)),
        Bernoulli(randn(rows, 1, seed=2)),
        Categorical(randn(rows, 3, 4, seed=3), present()),
    ]
    return Joint(tuple(zip((2, 1, 3), parts, strict=True))), parts


ROWS = torch.tensor(
    [[0.5, -1, 1, 3, 1, 2], [0, 9, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [-3, 2, 0, 2, 0, 1]],
    dtype=torch.float64,
)


def test_the_joint_is_its_parts_side_by_side() -> None:
    both, parts = joint()
    pieces = ROWS.split([2, 1, 3], dim=-1)
    apart = torch.cat([p.log_prob(x) for p, x in zip(parts, pieces, strict=True)], dim=-1)
    assert torch.equal(both.log_prob(ROWS), apart)
    assert torch.equal(both.mean, torch.cat([p.mean for p in parts], dim=-1))


def test_a_missing_value_counts_nothing_and_changes_no_other_column() -> None:
    both, _ = joint()
    whole = both.log_prob(ROWS)
    for column in range(6):
        x = ROWS.clone()
        x[:, column] = NAN
        expected = whole.clone()
        expected[:, column] = 0
        assert torch.equal(both.log_prob(x), expected)


def test_missing_values_do_not_spoil_gradients() -> None:
    mean = randn(4, 2).requires_grad_()
    x = randn(4, 2, seed=5)
    x[0, 0] = NAN
    Joint(((2, Gaussian(mean, torch.zeros(4, 2))),)).log_prob(x).sum().backward()
    assert mean.grad is not None
    assert mean.grad[0, 0] == 0
    torch.testing.assert_close(mean.grad[1:], (x - mean).detach()[1:])


def test_x_broadcasts_against_draws() -> None:
    layout = Layout(2, 1, LEVELS)
    likelihood = TabularLikelihood(layout, "gaussian", 0.01).double()
    outputs = randn(4, 5, likelihood.n_outputs)
    together = likelihood(outputs).log_prob(ROWS.unsqueeze(1))
    assert together.shape == (4, 5, 6)
    for k in range(5):
        torch.testing.assert_close(together[:, k], likelihood(outputs[:, k]).log_prob(ROWS))


def test_samples_of_a_joint_are_rows_of_the_layout() -> None:
    layout = Layout(2, 1, LEVELS)
    likelihood = TabularLikelihood(layout, "student_t", 0.01)
    draws = likelihood(randn(500, likelihood.n_outputs).float()).sample(generator())
    numeric, binary, codes = layout.split(draws)
    assert draws.shape == (500, 6)
    assert torch.isfinite(numeric).all()
    assert set(binary.flatten().tolist()) == {0, 1}
    for column, count in enumerate(LEVELS):
        assert set(codes[:, column].tolist()) == set(range(count))


# ---------------------------------------------------------------- from outputs to parameters


def test_logits_are_bent_smoothly_into_their_bounds() -> None:
    raw = doubles(-1e6, -20.0, -0.1, 0.0, 0.1, 20.0, 1e6)
    bent = bounded(raw)
    assert bent.abs().max() <= LOGIT_BOUND
    assert (bent.diff() > 0).all()
    np.testing.assert_allclose(bent[2:5], raw[2:5], rtol=1e-4)
    np.testing.assert_allclose(bent, [naive.bounded(v) for v in raw.tolist()], rtol=1e-12)


@pytest.mark.parametrize("floor", [1e-4, 0.01, 1.0, 9.0])
def test_a_variance_approaches_its_floor_from_above(floor: float) -> None:
    raw = torch.linspace(-30, 30, 200, dtype=torch.float64)
    variance = torch.exp(floored(raw, floor))
    assert (variance >= floor * (1 - 1e-12)).all()
    assert (variance.diff() >= 0).all()
    assert variance[0].item() == pytest.approx(floor, rel=1e-6)
    torch.testing.assert_close(floored(raw[-20:], floor), raw[-20:], rtol=1e-6, atol=1e-6)


def test_variances_are_as_learned_in_training_and_as_settled_afterwards() -> None:
    likelihood = TabularLikelihood(Layout(2, 0, ()), "gaussian", 0.01).double()
    likelihood.variance_factor.fill_(4.0)
    likelihood.variance_limit.fill_(5.0)
    outputs = doubles(0.0, 0.0, 0.0, 1.0)

    def variances() -> list[float]:
        numeric: Any = likelihood(outputs).parts[0][1]
        return [round(value, 6) for value in numeric.log_var.exp().tolist()]

    learned = [1.01, round(math.e + 0.01, 6)]
    assert variances() == learned
    likelihood.eval()
    assert variances() == [4.04, 5.0]


def test_degrees_of_freedom_stay_above_two() -> None:
    likelihood = TabularLikelihood(Layout(3, 0, ()), "student_t", 0.01).double()
    assert likelihood.raw_df is not None
    likelihood.raw_df.data = doubles(-1e3, 0.0, 1e3)
    assert (likelihood.df() >= 2).all()
    assert likelihood.df()[1].item() == pytest.approx(2 + math.log(2))


def test_the_encoder_sees_values_levels_one_hot_and_what_is_missing() -> None:
    features = TabularFeatures(Layout(1, 1, (3, 2))).double()
    x = torch.tensor([[0.5, 1, 2, 1], [NAN, NAN, NAN, NAN], [-1, 0, 0, 0]], dtype=torch.float64)
    assert features(x).tolist() == [
        # numeric, binary, levels 1 and 2 of the first, of the second (never 2), four masks
        [0.5, 1, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1],
        [-1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert features(x).shape[1] == features.n_outputs


@pytest.mark.parametrize("layout", [Layout(2, 0, ()), Layout(0, 3, ()), Layout(0, 0, (1,))])
def test_a_layout_of_one_kind_of_column_works(layout: Layout) -> None:
    features = TabularFeatures(layout)
    x = torch.zeros(4, layout.n_columns)
    assert features(x).shape == (4, features.n_outputs)
    likelihood = TabularLikelihood(layout, "gaussian", 0.01)
    assert likelihood(torch.zeros(4, likelihood.n_outputs)).log_prob(x).shape == x.shape
