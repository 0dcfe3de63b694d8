"""What a fitted model learns about itself, against data whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly_vae.config.model import ModelConfig
from anomaly_vae.config.training import TrainingConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.builder import build
from anomaly_vae.models.likelihoods import TabularLikelihood
from anomaly_vae.models.vae import VAE
from anomaly_vae.training import aggregated_posterior
from anomaly_vae.training.aggregated_posterior import (
    GUARD_LIMIT,
    MAX_VARIANCE,
    Clusters,
    cluster_labels,
    consult_guard,
    finalize,
    mixture,
    refit_variances,
)

SEED = TrainingConfig(seed=3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def config(**changes: Any) -> ModelConfig:
    small = {"latent_dim": 2, "hidden_dim": 8, "depth": 1, **changes}
    return ModelConfig.model_validate(small)


def model(**changes: Any) -> VAE:
    return build(config(**changes), Layout(4, 1, ())).eval()


def soiled() -> tuple[Tensor, Tensor]:
    """Return training and held-out rows, a tenth of which lie far from the others."""
    x, held_out = randn(200, 5), randn(50, 5, seed=1)
    x[:20], held_out[:5] = 30.0, 30.0
    return x, held_out


def settled(x: Tensor, held_out: Tensor, prior: str = "aggregated", **training: float) -> VAE:
    made, how = model(members=3), TrainingConfig.model_validate(training)
    shape = config(members=3, components=256, prior=prior)
    finalize(made, x, held_out, shape, how)
    return made


# ---------------------------------------------------------------- clusters and bandwidth


def test_few_codes_are_their_own_parts() -> None:
    codes = randn(20, 3)
    center, size, scatter = Clusters.of(codes, cluster_labels(codes, 20, 0))
    assert torch.equal(center, codes)
    assert torch.equal(size, torch.ones(20))
    assert torch.equal(scatter, torch.zeros(20))


def test_many_codes_are_summed_up_and_none_is_lost() -> None:
    codes = torch.cat([randn(300, 2), randn(100, 2, seed=1) * 0.1 + 50])
    center, size, scatter = Clusters.of(codes, cluster_labels(codes, 8, 0))
    assert len(center) <= 8
    assert size.sum() == 400
    total = (size[:, None] * center).sum(0)
    torch.testing.assert_close(total, codes.sum(0), rtol=1e-4, atol=1e-2)
    spread = ((codes - codes.mean(0)) ** 2).mean()
    between = (size * ((center - codes.mean(0)) ** 2).mean(-1)).sum() / 400
    within = (size * scatter).sum() / 400
    torch.testing.assert_close(between + within, spread, rtol=1e-4, atol=1e-3)


def test_exact_twins_leave_no_empty_part_and_say_nothing(recwarn: pytest.WarningsRecorder) -> None:
    codes = torch.tensor([[0.0, 0], [1, 1], [2, 2]]).repeat(100, 1)
    center, size, scatter = Clusters.of(codes, cluster_labels(codes, 50, 0))
    assert sorted(center[:, 0].tolist()) == [0, 1, 2]
    assert size.tolist() == [100, 100, 100]
    assert scatter.abs().max() < 1e-9
    assert not recwarn.list


def test_the_bandwidth_is_the_one_that_held_out_codes_prefer() -> None:
    """Twins call for a narrow one, a smooth cloud for a wide one."""
    unit = torch.ones(1, 2)
    twins = randn(30, 2).repeat(10, 1)
    assert mixture(twins, twins[:50], unit, 512, 0).log_var.max() <= math.log(0.003) + 1e-6
    cloud = randn(300, 2)
    chosen = mixture(cloud, randn(200, 2, seed=5), unit, 512, 0)
    assert chosen.log_var.min() >= math.log(0.03)


def test_the_codes_that_chose_the_bandwidth_are_in_it_at_last() -> None:
    """Their own parts, and their share of the weight."""
    far = randn(20, 2, seed=1) + 100
    found = mixture(randn(80, 2), far, torch.ones(1, 2), 128, 0)
    assert len(found.center) == 100
    torch.testing.assert_close(found.center[80:], far)
    torch.testing.assert_close(found.log_weight.exp(), torch.full((100,), 0.01))


def test_the_bandwidth_is_chosen_without_the_codes_that_choose_it() -> None:
    """Were they in it, each would call for the narrowest about itself."""
    codes, held = randn(40, 2), randn(40, 2, seed=1)
    assert mixture(codes, held, torch.ones(1, 2), 512, 0).log_var.min() >= math.log(0.03)


def test_the_mixture_comes_close_to_the_density_of_the_codes() -> None:
    found = mixture(randn(5_000, 2), randn(500, 2, seed=3), torch.ones(1, 2), 64, 0)
    z = randn(2_000, 2, seed=4)
    truth = -0.5 * (z**2).sum(-1) - math.log(2 * math.pi)
    assert (truth - found.log_prob(z.unsqueeze(1)).squeeze(1)).mean() < 0.05


def test_the_density_does_not_hang_on_the_unit_of_length() -> None:
    codes, held = randn(400, 2), randn(100, 2, seed=1)
    one = mixture(codes, held, torch.ones(1, 2), 400, 0)
    other = mixture(10 * codes, 10 * held, torch.full((1, 2), 10.0), 400, 0)
    z = randn(50, 1, 2, seed=2)
    shifted = other.log_prob(10 * z) + 2 * math.log(10)
    torch.testing.assert_close(one.log_prob(z), shifted, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- variances


def every_row(made: VAE, x: Tensor) -> Tensor:
    """A row kept with all members."""
    return torch.ones(made.members, len(x), dtype=torch.bool)


def squared_residuals(made: VAE, x: Tensor) -> Tensor:
    """r²/σ² at the posterior mean, its mean over rows: (E or none, 1, 4)."""
    numeric: Any = made.likelihood(made.infer(x, torch.zeros(1, 2)).outputs).parts[0][1]
    ratio = (x[:, None, :4] - numeric.mean) ** 2 / numeric.log_var.exp()
    return ratio.nanmean(-3)


@torch.no_grad()
@pytest.mark.parametrize("members", [1, 3])
def test_variances_meet_the_held_out_residuals_halfway(members: int) -> None:
    """r²/σ² becomes its own square root in every column, up to the weak prior."""
    made = model(members=members)
    for parameter in made.decoder.parameters():
        parameter.mul_(0.1)
    x = torch.cat([randn(4_000, 4) * torch.tensor([0.1, 0.3, 0.6, 0.9]), torch.ones(4_000, 1)], 1)
    x[::3, 1] = torch.nan
    before = squared_residuals(made, x)
    refit_variances(made, x, every_row(made, x))
    after = squared_residuals(made, x)
    torch.testing.assert_close(after, before.sqrt(), rtol=0.1, atol=0.01)


@torch.no_grad()
def test_no_variance_is_larger_than_the_limit() -> None:
    """Residuals of ten deviations would have it a hundredfold, and so would a decoder far out."""
    made = model(members=1)
    assert isinstance(made.likelihood, TabularLikelihood)
    x, far = 10 * randn(200, 5), 50 * randn(20, 5, seed=2)
    for parameter in made.decoder.parameters():
        parameter.mul_(30)

    def largest() -> float:
        numeric: Any = made.likelihood(made.infer(far, torch.zeros(1, 2)).outputs).parts[0][1]
        return float(numeric.log_var.max().exp())

    assert largest() > 2 * MAX_VARIANCE
    refit_variances(made, x, every_row(made, x))
    assert made.likelihood.variance_factor.max() > 2
    assert largest() == pytest.approx(MAX_VARIANCE)


@torch.no_grad()
def test_without_numbers_or_held_out_rows_nothing_changes() -> None:
    categorical = build(config(members=2), Layout(0, 1, (3,)))
    rows = torch.zeros(5, 2)
    refit_variances(categorical, rows, every_row(categorical, rows))
    made = model()
    assert isinstance(made.likelihood, TabularLikelihood)
    missing = torch.full((3, 5), torch.nan)
    refit_variances(made, missing, every_row(made, missing))
    assert torch.all(made.likelihood.variance_factor == 1)


# ---------------------------------------------------------------- all of it


@pytest.mark.parametrize("members", [1, 2])
def test_settled_a_model_scores_under_its_aggregated_posterior(members: int) -> None:
    made, x = model(members=members), randn(200, 5).clamp(0)
    finalize(made, x, randn(50, 5, seed=1), config(components=16), SEED)
    assert made.aggregated is not None
    assert made.aggregated.center.shape[-2] == 16
    with torch.no_grad():
        noise = torch.zeros(1, 2)
        aggregated, standard = made.aggregated_elbo(x, noise), made.elbo(x, noise)
    torch.testing.assert_close(aggregated.log_prob, standard.log_prob)
    assert aggregated.kl.shape == (*standard.kl.shape[:-1], 1)
    assert not torch.allclose(aggregated.bound, standard.bound)


def test_of_few_distinct_rows_members_have_as_many_parts(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Where codes are twins k-means may find fewer clusters, in one member and not in another."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randn(24, 5, generator=generator).clamp(-2, 2)
    often = torch.tensor([20.0, *[1.0] * 23])
    x = torch.cat([kinds, kinds[torch.multinomial(often, 400, True, generator=generator)]])
    found: list[int] = []

    def recorded(*given: Any) -> Tensor:
        found.append(len((result := cluster_labels(*given)).unique()))
        return result

    monkeypatch.setattr(aggregated_posterior, "cluster_labels", recorded)
    made = model(members=4)
    finalize(made, x, x[:50], config(members=4, components=24), SEED)
    assert min(found) <= 16 < max(found)
    assert made.aggregated
    assert made.aggregated.center.shape[:2] == (4, 32)
    torch.testing.assert_close(made.aggregated.log_weight.exp().sum(-1), torch.ones(4))
    assert not recwarn.list


def test_a_standard_prior_and_an_autoencoder_have_none() -> None:
    for changes in ({"prior": "standard"}, {"type": "autoencoder"}):
        made = model(**changes)
        finalize(made, randn(50, 5), randn(20, 5), config(**changes), SEED)
        assert made.aggregated is None


def test_it_repeats(recwarn: pytest.WarningsRecorder) -> None:
    found = []
    for _ in range(2):
        made = model()
        finalize(
            made, randn(500, 5), randn(50, 5, seed=1), config(components=8), TrainingConfig(seed=3)
        )
        assert made.aggregated is not None
        found.append({k: v.numpy().tobytes() for k, v in made.state_dict().items()})
    assert found[0] == found[1]
    assert not recwarn.list


@torch.no_grad()
def test_the_rate_at_the_draws_is_the_mean_log_ratio() -> None:
    made = model(members=1)
    finalize(
        made,
        randn(200, 5),
        randn(50, 5, seed=1),
        config(members=1, components=16),
        SEED,
    )
    assert made.aggregated is not None
    x, noise = randn(6, 5, seed=2), randn(3, 2, seed=3)
    mean, log_var = made.posterior(x)
    z = mean[:, None] + (0.5 * log_var).exp()[:, None] * noise
    normal = torch.distributions.Normal(mean[:, None], (0.5 * log_var).exp()[:, None])
    truth = (normal.log_prob(z).sum(-1) - made.aggregated.log_prob(z)).mean(-1)
    assert truth.shape == (6,)
    torch.testing.assert_close(made.aggregated_elbo(x, noise).kl.squeeze(-1), truth)
    np.testing.assert_allclose(made.aggregated_elbo(x, noise).kl.shape, (6, 1))


@torch.no_grad()
@pytest.mark.parametrize("prior", ["aggregated", "standard"])
def test_the_guard_leaves_rows_out_that_the_others_do_not(prior: str) -> None:
    """Its reconstructions are those of a model that is trimmed as much, theirs of one that is not;
    what it may move a score by are the quartiles of the bounds of the others."""
    x, held_out = soiled()
    guarded, plain, trimmed = (
        settled(x, held_out, prior=prior, **training)
        for training in ({"guard": 0.1}, {"guard": 0.0}, {"trim": 0.1, "guard": 0.1})
    )
    assert guarded.reach is not None
    assert plain.reach is trimmed.reach is None
    rows = torch.cat([x, held_out])
    found, all_rows, fewer = (
        made.reconstruction(rows).log_prob for made in (guarded, plain, trimmed)
    )
    torch.testing.assert_close(found[:2], all_rows[:2])
    torch.testing.assert_close(found[2], fewer[2])
    assert not torch.allclose(all_rows[2], fewer[2])
    if prior == "standard":
        bounds = guarded.aggregated_elbo(rows, torch.zeros(1, 2)).bound
        low, high = np.quantile(bounds[:2].mean(0), [0.25, 0.75])
        assert guarded.reach.item() == pytest.approx(GUARD_LIMIT * (high - low), rel=1e-4)


@torch.no_grad()
def test_codes_of_rows_that_only_the_guard_has_not_learned_count_less() -> None:
    x, held_out = soiled()
    guarded, plain = (settled(x, held_out, guard=guard) for guard in (0.1, 0.0))
    rows = torch.cat([x, held_out])
    _, weight = consult_guard(guarded, rows)
    odd = rows[:, 0] == 30.0
    assert weight.shape == (250,)
    assert 0 < weight[odd].max() < 0.3
    assert weight[~odd].median() > 0.9
    before, after = (
        made.aggregated_elbo(rows, torch.zeros(1, 2)).kl[:2] for made in (plain, guarded)
    )
    assert (after - before)[:, odd].min() > 0.5
    assert (after - before)[:, ~odd].median() < 0.1


@torch.no_grad()
def test_one_network_has_no_guard() -> None:
    made = model(members=1)
    finalize(made, randn(50, 5), randn(20, 5), config(members=1), TrainingConfig())
    assert made.reach is None


@torch.no_grad()
def test_a_guard_of_rows_that_are_all_alike_has_some_reach() -> None:
    made = model(members=2)
    same = torch.ones(1, 5)
    finalize(made, same.expand(50, 5), same.expand(20, 5), config(members=2), TrainingConfig())
    assert made.reach is not None
    assert made.reach > 0
    assert made.average_members(made.aggregated_elbo(same, torch.zeros(1, 2))).bound.isfinite()


@torch.no_grad()
def test_rows_that_are_trimmed_are_no_part_of_it() -> None:
    """Neither of the variances nor of the mixture: all that they lie near is themselves."""
    x, held_out = randn(200, 5), randn(50, 5, seed=1)
    x[:20], held_out[:5] = 30.0, 30.0

    def settled(trim: float) -> tuple[float, Tensor]:
        made = model(members=1)
        finalize(made, x, held_out, config(members=1, components=256), TrainingConfig(trim=trim))
        assert made.aggregated is not None
        assert isinstance(made.likelihood, TabularLikelihood)
        return made.likelihood.variance_factor.max().item(), made.aggregated_elbo(
            x, torch.zeros(1, 2)
        ).kl.squeeze(-1)

    factor, plain = settled(0.0)
    trimmed_factor, rate = settled(0.1)
    assert trimmed_factor < 0.5 * factor
    assert (rate - plain)[:20].min() > 0


# ---------------------------------------------------------------- exemplars


def test_rows_become_exemplars_unless_none_are_wanted() -> None:
    x, held_out = randn(100, 5).clamp(0), randn(20, 5, seed=1).clamp(0)
    for changes, count in (
        ({"exemplars": 64}, 64),
        ({"exemplars": 0}, 0),
        ({"type": "autoencoder"}, 0),
    ):
        made = model(**changes)
        finalize(made, x, held_out, config(**changes), SEED)
        assert (len(made.exemplars.center) if made.exemplars else 0) == count


def test_rows_that_are_trimmed_are_no_exemplars() -> None:
    x, held_out = randn(200, 5), randn(50, 5, seed=1)
    x[:20], held_out[:5] = 30.0, 30.0
    made, kept = model(members=1), {}
    for trim in (0.0, 0.1):
        finalize(made, x, held_out, config(members=1), TrainingConfig(trim=trim))
        assert made.exemplars is not None
        assert made.exemplars.metric is not None
        numbers = made.exemplars.center @ made.exemplars.metric.inverse()
        kept[trim] = bool((numbers > 29).any())
    assert kept == {0.0: True, 0.1: False}


def test_a_score_is_the_mean_of_networks_and_exemplars() -> None:
    made, x = model(members=3), randn(100, 5).clamp(0)
    finalize(made, x, x[:20], config(members=3), SEED)
    assert made.exemplars is not None
    with torch.no_grad():
        networks = made.average_members(made.aggregated_elbo(x, torch.zeros(1, 2)))
        both = made.add_exemplars(networks, x).bound
    coordinates = made.exemplars.coordinates(x, x)
    truth = (networks.bound + made.exemplars.log_density(coordinates)) / 2
    torch.testing.assert_close(both, truth, check_dtype=False, rtol=1e-5, atol=1e-5)


def test_exemplars_of_tables_have_a_metric_and_those_of_patches_none() -> None:
    x = randn(60, 5).clamp(0)
    for patches in (None, torch.nn.Identity()):
        made = model()
        made.patches = patches
        finalize(made, x, x[:20], config(), SEED)
        assert made.exemplars is not None
        assert (made.exemplars.metric is None) == (patches is not None)
