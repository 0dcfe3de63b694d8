"""Gradients: what is known in closed form is what automatic differentiation finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anomaly_vae.config.model import ImageModelConfig, ModelConfig
from anomaly_vae.config.training import TrainingConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.builder import build
from anomaly_vae.models.networks import Encoder
from anomaly_vae.models.vae import VAE, Terms
from anomaly_vae.training import trainer
from anomaly_vae.training.augmentation import NoisyCells
from anomaly_vae.training.gradients import (
    Autograd,
    Batch,
    ClosedForm,
    Gradient,
    gradient_of,
    keep_best_rows,
    rows_kept,
)
from anomaly_vae.training.trainer import fit, flatten_weights

MIXED = Layout(3, 2, (4, 2))
BANDED = Layout(2, 0, (4, 2), ((-3.0, 0.0, 0.0, -1.5), (0.0, 0.0)))
LAYOUTS = [
    Layout(5, 0, ()),
    Layout(1, 0, ()),
    Layout(0, 3, ()),
    Layout(0, 0, (3, 5)),
    Layout(0, 0, (1,)),
    MIXED,
    BANDED,
]


def model(layout: Layout = MIXED, **changes: Any) -> VAE:
    """Weights as they are somewhere on their way, in doubles."""
    small = {"latent_dim": 3, "hidden_dim": 7, "depth": 1, "members": 1, **changes}
    fresh = build(ModelConfig.model_validate(small), layout).double().train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in fresh.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=generator))
    flatten_weights(list(fresh.parameters()))
    return fresh


def batch(of: VAE, rows: int = 9, missing: float = 0.2) -> Batch:
    """Rows of a layout, some of whose cells are missing; what the encoder sees is another."""
    layout, generator = of.likelihood.layout, torch.Generator().manual_seed(1)
    shape = (of.members, rows) if of.members > 1 else (rows,)
    levels = torch.tensor([2] * layout.n_binary + list(layout.n_levels))
    numeric = 3 * torch.randn(*shape, layout.n_numeric, generator=generator)
    draws = torch.rand(*shape, len(levels), generator=generator)
    x = torch.cat([numeric, (draws * levels).floor()], -1).double()
    hidden = torch.rand(x.shape, generator=generator) < missing
    target = torch.where(hidden, torch.nan, x)
    noise = torch.randn(*shape, of.latent_dim, generator=generator).double()
    return Batch(of.features(target + 0.1), target, noise)


def left(gradient: Gradient, of: VAE, its: Batch, beta: float) -> tuple[Tensor, list[Tensor]]:
    """What it returns, and what it leaves in the weights, whatever was there."""
    for weight in of.parameters():
        weight.grad.fill_(torch.nan)  # type: ignore[union-attr]
    totals = gradient(its, beta)
    return totals, [weight.grad.clone() for weight in of.parameters()]  # type: ignore[union-attr]


def agree(of: VAE, its: Batch, beta: float, scale: float = 1.0, **training: float) -> None:
    config = TrainingConfig.model_validate(training)
    closed = left(ClosedForm(of, config, scale), of, its, beta)
    automatic = left(Autograd(of, config, scale), of, its, beta)
    torch.testing.assert_close(closed, automatic, rtol=1e-7, atol=1e-9)


# ---------------------------------------------------------------- closed form


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_the_closed_form_is_what_differentiation_finds(
    layout: Layout, members: int, depth: int
) -> None:
    of = model(layout, members=members, depth=depth)
    agree(of, batch(of), beta=0.3)


@given(
    rows=st.integers(1, 12),
    missing=st.sampled_from([0.0, 0.5, 1.0]),
    beta=st.floats(0.0, 4.0),
    scale=st.floats(0.1, 100.0),
    trim=st.sampled_from([0.0, 0.1, 0.5]),
    guard=st.sampled_from([0.0, 0.2, 0.5]),
    members=st.sampled_from([1, 2]),
    latent_dim=st.integers(1, 5),
)
def test_so_it_is_whatever_the_batch(
    rows: int,
    missing: float,
    beta: float,
    scale: float,
    trim: float,
    guard: float,
    members: int,
    latent_dim: int,
) -> None:
    of = model(members=members, latent_dim=latent_dim)
    agree(of, batch(of, rows, missing), beta, scale, trim=trim, guard=guard)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("log_var", [-11.0, -10.0, 0.0, 6.0, 7.0])
def test_a_posterior_variance_beyond_its_bounds_has_no_gradient(
    members: int, log_var: float
) -> None:
    of = model(members=members)
    with torch.no_grad():
        of.encoder.log_var[..., 1] = log_var  # type: ignore[index, operator]
    agree(of, batch(of), beta=1.0)
    grad = of.encoder.log_var.grad  # type: ignore[union-attr]
    low, high = Encoder.LOG_VAR_BOUNDS
    assert bool(torch.all(grad[..., 1] != 0)) == (low <= log_var <= high)  # type: ignore[index]


def test_far_values_and_steep_logits_agree_too() -> None:
    """Where bends are flat: variances at their floor, logits at their bound."""
    of = model()
    with torch.no_grad():
        for weight in of.decoder.parameters():
            weight.mul_(30)
    its = batch(of)
    its.target[..., : MIXED.n_numeric] *= 40
    agree(of, its, beta=0.3)


def test_the_totals_are_those_of_the_bound() -> None:
    of = model()
    its = batch(of)
    totals, _ = left(ClosedForm(of, TrainingConfig()), of, its, 0.3)
    with torch.no_grad():
        found = of.infer_from(its.features, its.noise.unsqueeze(-2))
        terms = of.terms(found, its.target)
    torch.testing.assert_close(totals, torch.stack([terms.log_prob.sum(), terms.kl.sum()]))


def test_a_fit_by_either_ends_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted() -> VAE:
        of = model(members=2).float()
        x = batch(of, 450).target[0].float().numpy()
        plan = TrainingConfig(epochs=5, batch_size=32, beta=0.3)
        fit(of, x[:400], x[400:], plan, views=NoisyCells(0.1, range(x.shape[1]), 0.2, 3))
        return of

    closed = fitted()
    monkeypatch.setattr(trainer, "gradient_of", Autograd)
    torch.testing.assert_close(closed.state_dict(), fitted().state_dict(), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- which of them


def chosen(changes: dict[str, Any], **training: Any) -> type:
    return type(gradient_of(model(**changes), TrainingConfig.model_validate(training)))


@pytest.mark.parametrize("changes", [{}, {"members": 3}, {"depth": 0}])
@pytest.mark.parametrize("trim", [0.0, 0.1])
def test_tables_have_it_in_closed_form(changes: dict[str, Any], trim: float) -> None:
    assert chosen(changes, trim=trim) is ClosedForm


@pytest.mark.parametrize(
    ("changes", "training"),
    [
        ({"type": "autoencoder"}, {}),
        ({"likelihood": "student_t"}, {}),
        ({"posterior_variance": "row"}, {}),
        ({}, {"free_bits": 0.1}),
        ({}, {"precision": "bfloat16"}),
    ],
    ids=str,
)
def test_what_asks_for_something_else_is_differentiated(
    changes: dict[str, Any], training: dict[str, Any]
) -> None:
    assert chosen(changes, **training) is Autograd


@pytest.mark.parametrize("network", ["dense", "convolutional", "hierarchical"])
def test_so_are_images(network: str) -> None:
    of = build(ImageModelConfig.model_validate({"network": network}), ImageLayout(1, 16))
    assert isinstance(gradient_of(of, TrainingConfig()), Autograd)


# ---------------------------------------------------------------- what may be asked for


def test_free_bits_leave_each_latent_dimension_its_allowance() -> None:
    """max(λ, mean KL) for every dimension, per row (Kingma et al. 2016): below it, no gradient."""
    kl = torch.tensor([[0.1, 3.0], [0.3, 5.0]], requires_grad=True)
    terms = Terms(torch.zeros(2, 4), kl)
    objective = Autograd(model(), TrainingConfig(free_bits=0.5))._kl(terms.kl, [2])
    assert objective.item() == pytest.approx(2 * (0.5 + 4.0))
    objective.backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0, 1], [0, 1]]
    plain = Autograd(model(), TrainingConfig())._kl(terms.kl, [2])
    assert plain.item() == pytest.approx(2 * (0.2 + 4.0))


@pytest.mark.parametrize("rows", [[15], [15, 20, 1]])
def test_what_stays_are_the_rows_of_the_highest_bound(rows: list[int]) -> None:
    shape = (len(rows), 20) if len(rows) > 1 else (20,)
    bound = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    stays = keep_best_rows(bound, rows)
    assert stays.shape == bound.shape
    for one, its, count in zip(stays.view(-1, 20), bound.view(-1, 20), rows, strict=True):
        assert one.bool().tolist() == (its >= its.sort().values[20 - count]).tolist()


def test_of_each_batch_a_share_is_left_out_but_never_all() -> None:
    assert rows_kept(20, (0.0, 0.1, 0.26)) == [20, 18, 15]
    assert rows_kept(1, (0.5, 0.0)) == [1, 1]


@pytest.mark.parametrize(
    ("trim", "guard", "members", "trims"),
    [
        (0.0, 0.1, 1, (0.0,)),
        (0.0, 0.1, 3, (0.0, 0.0, 0.1)),
        (0.2, 0.1, 2, (0.2, 0.2)),
        (0.1, 0.0, 2, (0.1, 0.1)),
    ],
)
def test_the_guard_is_the_last_of_several_members(
    trim: float, guard: float, members: int, trims: tuple[float, ...]
) -> None:
    assert TrainingConfig(trim=trim, guard=guard).trims(members) == trims


@pytest.mark.parametrize("gradient", [ClosedForm, Autograd])
def test_what_is_trimmed_teaches_its_member_nothing_and_the_others_all(
    gradient: Callable[..., Gradient],
) -> None:
    """The guard's gradient is that of the batch without the row, the other's that of all rows."""
    of = model(members=2)
    its = batch(of, rows=8, missing=0.0)
    its.target[:, 3, : MIXED.n_numeric] += 1e3
    plain, config = TrainingConfig(guard=0.0), TrainingConfig(guard=0.125)
    fewer = Batch(*(part[:, torch.arange(8) != 3] for part in its[:3]))
    _, found = left(gradient(of, config), of, its, 0.3)
    _, whole = left(gradient(of, plain), of, its, 0.3)
    _, rest = left(gradient(of, plain), of, fewer, 0.3)
    for guarded, every, its_own in zip(found, whole, rest, strict=True):
        torch.testing.assert_close(guarded[0] * 15 / 16, every[0])
        torch.testing.assert_close(guarded[1] * 15 / 14, its_own[1])


@pytest.mark.parametrize("rows", [(7,), (3, 7)], ids=["rows", "members"])
def test_batches_are_cut_between_rows(rows: tuple[int, ...]) -> None:
    whole = Batch(*(torch.rand(*rows, width) for width in (5, 4, 2)))
    parts = list(whole.split([4, 3]))
    assert [part.target.shape for part in parts] == [(*rows[:-1], size, 4) for size in (4, 3)]
    for name in ("features", "target", "noise"):
        found = torch.cat([getattr(part, name) for part in parts], -2)
        assert torch.equal(found, getattr(whole, name))
