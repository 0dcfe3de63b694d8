"""The exemplar member: a density that is a mixture, split exactly into columns and a divergence."""

import math

import pytest
import torch
from torch import Tensor

from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.exemplars import Exemplars, slots
from tests.support.exemplars import exemplars_of

LAYOUTS = {
    "mixed": Layout(3, 1, (3, 4)),
    "numeric": Layout(2, 0, ()),
    "discrete": Layout(0, 1, (3,)),
    "banded": Layout(1, 0, (3,), ((-2.0, 0.0, -1.0),)),
}


def rows_of(layout: Layout, n: int = 6) -> Tensor:
    """Rows with a missing value in most of them, and one without any value."""
    generator = torch.Generator().manual_seed(3)
    numeric = torch.randn(n, layout.n_numeric, generator=generator)
    counts = [2] * layout.n_binary + list(layout.n_levels)
    codes = [torch.randint(0, count, (n, 1), generator=generator).float() for count in counts]
    x = torch.cat([numeric, *codes], 1)
    x[torch.rand(x.shape, generator=generator) < 0.2] = torch.nan
    x[0] = torch.nan
    return x


def log_kernel(member: Exemplars, row: Tensor, k: int, column: int) -> float:
    """One column's log-kernel, computed from its definition."""
    layout, value = member.layout, row[column].item()
    if math.isnan(value):
        return 0.0
    if column < layout.n_numeric:
        normal = torch.distributions.Normal(
            member.center[k, column], (0.5 * member.log_var[k]).exp()
        )
        return float(normal.log_prob(row[column]))
    places = list(zip(*slots(layout), strict=True))
    slot = places.index((column, int(value)))
    same = member.codes[k, column - layout.n_numeric].item() == value
    return float((member.log_same if same else member.log_other)[slot])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_density_is_the_mixture_of_the_kernels(layout: Layout) -> None:
    member, x = exemplars_of(layout), rows_of(layout)
    log_prob, kl = member(x)
    for row, density, nats, rate in zip(x, member.log_density(x), log_prob, kl, strict=True):
        logs = torch.tensor(
            [
                [log_kernel(member, row, k, f) for f in range(layout.n_columns)]
                for k in range(len(member.log_var))
            ],
            dtype=torch.float64,
        )
        joint = logs.sum(1) + member.log_weight.double()
        truth = torch.logsumexp(joint, 0)
        shares = torch.softmax(joint, 0)
        torch.testing.assert_close(density, truth, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(nats, shares @ logs, rtol=1e-4, atol=1e-4)
        divergence = (shares * (shares.log() - member.log_weight)).sum()
        torch.testing.assert_close(rate.squeeze(), divergence, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_parts_add_up_and_a_missing_value_has_none(layout: Layout) -> None:
    member, x = exemplars_of(layout), rows_of(layout)
    log_prob, kl = member(x)
    torch.testing.assert_close(log_prob.sum(1) - kl[:, 0], member.log_density(x))
    assert torch.all(log_prob[torch.isnan(x)] == 0)
    assert torch.all(kl > -1e-6)
    torch.testing.assert_close(member.log_density(x[:1]).item(), 0.0, atol=1e-6, rtol=0)


def test_without_a_column_the_density_is_that_of_the_others() -> None:
    """The marginal density, by integrating the column out on a grid."""
    member = exemplars_of(Layout(2, 0, ()))
    grid = torch.linspace(-20, 20, 4001)
    whole = torch.stack([torch.full_like(grid, 0.3), grid], 1)
    marginal = torch.trapezoid(member.log_density(whole).exp(), grid.double())
    hidden = member.log_density(torch.tensor([[0.3, torch.nan]])).exp()
    torch.testing.assert_close(hidden[0], marginal, rtol=1e-5, atol=1e-7)


def test_coordinates_are_of_the_numbers_and_missing_where_these_are() -> None:
    layout = LAYOUTS["mixed"]
    member, x = exemplars_of(layout, metric=True), rows_of(layout)
    assert member.metric is not None
    y = member.coordinates(x, x.nan_to_num(1.5))
    assert torch.equal(torch.isnan(y), torch.isnan(x))
    torch.testing.assert_close(y[:, 3:], x[:, 3:], equal_nan=True)
    truth = x.nan_to_num(1.5)[:, :3] @ member.metric
    present = ~torch.isnan(x[:, :3])
    torch.testing.assert_close(y[:, :3][present], truth[present])


def test_coordinates_leave_a_density_of_the_numbers() -> None:
    """It integrates to 1 over them."""
    member = exemplars_of(Layout(2, 0, ()), metric=True)
    axis = torch.linspace(-12, 12, 601)
    grid = torch.cartesian_prod(axis, axis)
    density = member.log_density(member.coordinates(grid, grid)).exp().view(601, 601)
    inner = torch.trapezoid(density, axis.double())
    assert torch.trapezoid(inner, axis.double()).item() == pytest.approx(1, abs=1e-4)


def test_without_a_metric_coordinates_are_the_rows() -> None:
    x = rows_of(LAYOUTS["mixed"])
    assert exemplars_of(LAYOUTS["mixed"]).coordinates(x, x) is x
