"""Exemplars: which rows they are, what their missing values become, how wide their kernels are."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly_vae.data.encoding import Layout
from anomaly_vae.training.exemplars import (
    MIN_RADIUS,
    Places,
    choose_rows,
    fill_missing,
    fit_exemplars,
    level_shares,
    mean_squares,
    neighbour_metric,
    neighbours,
)

NUMERIC = Layout(3, 0, ())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_few_distinct_rows_are_all_chosen_with_their_numbers() -> None:
    rows = torch.tensor([[1.0, 2.0]] * 3 + [[torch.nan, 2.0]] * 4 + [[5.0, 2.0]])
    index, weight = choose_rows(rows, 3, seed=0)
    assert sorted(index.tolist()) == [0, 3, 7]
    assert dict(zip(index.tolist(), (8 * weight).tolist(), strict=True)) == {0: 3, 3: 4, 7: 1}


def test_of_many_rows_some_are_chosen_at_random() -> None:
    rows = randn(100, 3)
    index, weight = choose_rows(rows, 20, seed=0)
    assert len(set(index.tolist())) == 20
    torch.testing.assert_close(weight, torch.full((20,), 0.05))
    assert torch.equal(index, choose_rows(rows, 20, seed=0)[0])
    assert not torch.equal(index, choose_rows(rows, 20, seed=1)[0])


def test_distances_are_means_over_the_columns_that_both_rows_have() -> None:
    x, y = randn(6, 4), randn(9, 4, seed=1)
    x[0, 1], x[1], y[2, 0] = torch.nan, torch.nan, torch.nan
    truth = ((x[:, None] - y[None]) ** 2).nanmean(-1).double()
    torch.testing.assert_close(mean_squares(x, y), truth.nan_to_num(torch.inf))


def test_a_row_is_not_its_own_neighbour() -> None:
    rows = torch.arange(12.0)[:, None] ** 1.5
    square, near = neighbours(rows, torch.tensor([0, 5]), 1)
    distances = (rows[:, 0] - rows[5, 0]).abs().sort().values
    assert square[1].item() == pytest.approx(distances[5].item() ** 2)
    assert near[0].tolist() == list(range(1, 9))


def test_missing_values_come_from_the_nearest_row_that_has_one() -> None:
    rows = torch.tensor([[0.0, torch.nan], [1.0, torch.nan], [2.0, 7.0], [3.0, 8.0]])
    near = torch.tensor([[1, 2, 3]])
    assert fill_missing(rows, rows[:1], near).tolist() == [[0.0, 7.0]]
    assert fill_missing(rows, rows[:1], near[:, :1]).tolist() == [[0.0, 0.0]]


def test_frequencies_are_of_the_rows_that_have_a_level() -> None:
    rows = torch.tensor([[0.0, 2.0], [1.0, torch.nan], [1.0, 1.0]])
    shares = level_shares(Layout(0, 1, (3,)), rows).exp()
    torch.testing.assert_close(
        shares, torch.tensor([1.5 / 4, 2.5 / 4, 0.5 / 3.5, 1.5 / 3.5, 1.5 / 3.5])
    )


def test_duplicates_have_kernels_as_wide_as_close_rows_have() -> None:
    spread = 0.1 * randn(40, 3)
    rows = torch.cat([spread, torch.ones(30, 3)])
    places = Places.of(NUMERIC, rows, 100, seed=0)
    assert len(places.radius) == 41
    assert places.radius.min() > MIN_RADIUS
    assert places.weight.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("layout", [NUMERIC, Layout(1, 1, (3,)), Layout(0, 0, (3,))], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_any_rows_make_a_density(layout: Layout, rows: int) -> None:
    """Also alike ones, a single one, and columns without any value."""
    x = torch.ones(rows, layout.n_columns)
    gaps = x.clone()
    gaps[:, 0] = torch.nan
    for train in (x, gaps):
        member = fit_exemplars(layout, train, train[:1], 16, seed=0)
        assert member.log_density(torch.cat([x, gaps])).isfinite().all()


def test_kernels_of_few_rows_are_wider() -> None:
    """They are those with which held-out rows are most probable."""
    x, held_out = randn(600, 3), randn(200, 3, seed=1)
    members = [fit_exemplars(NUMERIC, x[:n], held_out[:60], 10_000, seed=0) for n in (30, 600)]
    few, many = (member.log_var.median().item() for member in members)
    assert few > many + 0.5
    truth = (-0.5 * (held_out**2 + math.log(2 * math.pi))).sum(1).mean().item()
    assert members[1].log_density(held_out[60:]).mean().item() == pytest.approx(truth, abs=0.3)


def test_a_level_that_goes_with_a_number_is_more_probable_beside_it() -> None:
    layout, generator = Layout(1, 0, (3,)), np.random.default_rng(0)
    code = generator.integers(1, 3, 400)
    number = np.where(code == 1, -2.0, 2.0) + 0.1 * generator.normal(size=400)
    x = torch.tensor(np.stack([number, code], 1), dtype=torch.float32)
    member = fit_exemplars(layout, x[:300], x[300:], 512, seed=0)
    fits, odd, unseen = member.log_density(torch.tensor([[-2.0, 1], [-2.0, 2], [-2.0, 0]]))
    assert fits > odd + 3
    assert odd > unseen + 2


def test_it_repeats() -> None:
    x = randn(300, 3).masked_fill(randn(300, 3, seed=1) > 1, torch.nan)
    first, second = (fit_exemplars(NUMERIC, x[:200], x[200:], 64, seed=2) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not first.center.isnan().any()


# ---------------------------------------------------------------- the metric


def dependent(rows: int = 400) -> Tensor:
    """Six columns in three dimensions: each of three numbers twice, with a little noise."""
    x = randn(rows, 3)
    return torch.cat([x, x + 0.02 * randn(rows, 3, seed=1)], 1)


def test_the_metric_is_symmetric_and_keeps_volumes() -> None:
    metric = neighbour_metric(Layout(6, 0, ()), dependent(), seed=0)
    assert metric is not None
    torch.testing.assert_close(metric, metric.T)
    assert torch.linalg.det(metric).item() == pytest.approx(1, rel=1e-4)


def test_it_stretches_what_neighbours_hardly_differ_in() -> None:
    metric = neighbour_metric(Layout(6, 0, ()), dependent(), seed=0)
    assert metric is not None
    along, across = torch.eye(6)[0] + torch.eye(6)[3], torch.eye(6)[0] - torch.eye(6)[3]
    assert (across @ metric).norm() > 3 * (along @ metric).norm()


def test_a_row_that_breaks_a_dependence_is_less_probable_in_it() -> None:
    layout, x, held_out = Layout(6, 0, ()), dependent(), dependent(500)[400:]
    odd = torch.tensor([[0.5, 0.5, 0.5, 0.1, 0.5, 0.5]])
    plain = fit_exemplars(layout, x, held_out, 1000, seed=0)
    member = fit_exemplars(layout, x, held_out, 1000, seed=0, fill=lambda rows: rows)
    usual = torch.full((1, 6), 0.5)
    gap = plain.log_density(usual) - plain.log_density(odd)
    own = (member.log_density(member.coordinates(row, row)) for row in (usual, odd))
    assert next(own) - next(own) > gap + 5


@pytest.mark.parametrize("rows", [randn(50, 1), torch.ones(50, 3), randn(1, 3)], ids=len)
def test_without_anything_to_compare_there_is_no_metric(rows: Tensor) -> None:
    assert neighbour_metric(Layout(rows.shape[1], 0, ()), rows, seed=0) is None


def test_equal_columns_and_few_rows_have_a_metric() -> None:
    x = randn(4, 1).expand(4, 8)
    metric = neighbour_metric(Layout(8, 0, ()), x, seed=0)
    assert metric is not None
    assert metric.isfinite().all()


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_rows_with_missing_values_make_a_density_in_it(rows: int) -> None:
    x = randn(rows, 3)
    x[:, 1][randn(rows, 1)[:, 0] > 0] = torch.nan
    member = fit_exemplars(NUMERIC, x, x[:1], 16, seed=0, fill=torch.nan_to_num)
    coordinates = member.coordinates(x, x.nan_to_num())
    assert member.log_density(coordinates).isfinite().all()
