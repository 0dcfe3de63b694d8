"""Choose exemplars among the rows, and the widths of their kernels by held-out rows.

`anomaly_vae.models.exemplars` defines the member. The deviation of a number's kernel is the
exemplar's distance to its fifth neighbour, times a factor that all exemplars share (Breiman et al.
1977): kernels are narrow where rows lie close together. The factor is the one with which exemplars
of the training rows give the held-out rows the highest log-density.

Distances are in coordinates y = A x (`models.exemplars`) with A = R^(-1/2), where R is the
correlation matrix of the differences between a row and its nearest neighbours. Columns that depend
on each other then count less than several columns, and a row that breaks such a dependence is far
from all others. A covariance in place of R would also give the columns in which neighbours hardly
differ more weight, and with it rare states that are normal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.exemplars import Exemplars, slots, transform
from anomaly_vae.training.held_out import winsorized_mean

SHARE = 0.5
"""Weight of the exemplars' bound in the score; the networks have the rest."""
NEIGHBOUR = 5
"""Rank of the neighbour whose distance sets the width of a kernel."""
DONORS = 8
"""Number of nearest rows among which an exemplar's missing values are looked up."""
RADIUS_QUANTILE = 0.05
"""Quantile of the positive radii that is the minimum of all radii. Otherwise kernels at exact
duplicates would have no width."""
MIN_RADIUS = 1e-3
"""Minimum of this quantile, in standard deviations of a column."""
WIDTHS = tuple(10 ** (power / 3) for power in range(-6, 4))
"""Candidates for the variance of a kernel, in units of the squared radius per column."""
MISMATCHES = (0.01, 0.03, 0.1, 0.3, 0.9)
"""Candidates for the probability with which a level is drawn anew rather than copied from the
exemplar."""
PSEUDO_COUNT = 0.5
"""Number of rows added to each level when its frequency is estimated."""
METRIC_ROWS = 2048
"""Maximum number of rows whose neighbours the covariance is estimated from."""
MIN_SHRINKAGE = 0.02
"""Minimum weight of equal variances in the covariance."""
CHUNK = 256
"""Number of exemplars whose distances to all rows are computed at a time."""
MAX_HELD_OUT = 1_000
"""Maximum number of held-out rows that widths are chosen by."""


@torch.no_grad()
def fit_exemplars(
    layout: Layout,
    train: Tensor,
    held_out: Tensor,
    count: int,
    seed: int,
    fill: Callable[[Tensor], Tensor] | None = None,
) -> Exemplars:
    """Return the exemplar member of a table.

    Args:
        layout: the encoded columns.
        train: (N, F), encoded rows, NaN where missing.
        held_out: (H, F), rows that widths are chosen by; they then become exemplars, too.
        count: maximum number of exemplars.
        seed: seed of their choice.
        fill: function that replaces missing values of rows (N, F), see `VAE.fill`; None for kernels
            in the numbers themselves.

    Example:
        >>> import torch
        >>> rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> member = fit_exemplars(Layout(2, 0, ()), rows[:50], rows[50:], count=30, seed=0)
        >>> member.center.shape
        torch.Size([30, 2])
        >>> usual, odd = member.log_density(torch.tensor([[0.0, 0.1], [4.0, -4.0]]))
        >>> bool(usual > odd)
        True
    """
    metric = None
    if fill is not None:
        filled = fill(train)
        metric = neighbour_metric(layout, filled, seed)
        if metric is not None:
            train = transform(metric, train, filled)
            held_out = transform(metric, held_out, fill(held_out))
    every = torch.cat([train, held_out])
    known, places = (Places.of(layout, rows, count, seed) for rows in (train, every))
    judges = held_out[:MAX_HELD_OUT]

    def quality(width: float, mismatch: float) -> float:
        density = known.member(layout, width, mismatch).log_density(judges)
        return winsorized_mean(density.unsqueeze(0)).item()

    middle = MISMATCHES[len(MISMATCHES) // 2]
    width = max(WIDTHS, key=lambda each: quality(each, middle)) if layout.n_numeric else 1.0
    discrete = layout.n_numeric < layout.n_columns
    mismatch = max(MISMATCHES, key=lambda each: quality(width, each)) if discrete else middle
    member = places.member(layout, width, mismatch)
    member.metric = metric
    return member


def neighbour_metric(layout: Layout, rows: Tensor, seed: int) -> Tensor | None:
    """Return the metric A = R^(-1/2) of numbers, (n, n), scaled to determinant 1.

    R is the correlation matrix of the differences between rows and their nearest neighbours, each
    in units of the row's radius. Their covariance is first shrunk towards equal variances, which n
    more rows would have.

    Args:
        layout: the encoded columns.
        rows: (N, F), encoded rows without missing numbers.
        seed: seed of the choice of rows whose neighbours are sought.

    Returns:
        The metric; None if fewer than two columns or distinct rows leave nothing to compare.

    Example:
        >>> import torch
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> metric = neighbour_metric(Layout(4, 0, ()), torch.cat([x, x], 1), seed=0)
        >>> together, apart = torch.tensor([[1.0, 0, 1, 0], [1.0, 0, -1, 0]])
        >>> bool((apart @ metric).norm() > 5 * (together @ metric).norm())
        True
    """
    n = layout.n_numeric
    index, _ = choose_rows(rows, METRIC_ROWS, seed)
    if min(n, len(index)) < 2:
        return None
    square, near = neighbours(rows, index, n)
    gaps = rows[index, None, :n] - rows[near[:, :NEIGHBOUR], :n]
    units = (gaps / _radii(square)[:, None, None]).flatten(0, 1).double()
    share = max(MIN_SHRINKAGE, n / (n + len(index)))
    return _inverse_root(_correlation(_shrunk(units.T @ units / len(units), share))).float()


def _shrunk(covariance: Tensor, share: float) -> Tensor:
    """Average a covariance (n, n), in units of its mean variance, with the identity."""
    equal = torch.eye(len(covariance), dtype=covariance.dtype)
    return equal.lerp(covariance / covariance.diagonal().mean().clamp_min(MIN_RADIUS), 1 - share)


def _correlation(covariance: Tensor) -> Tensor:
    """Return the correlations (n, n) of a covariance."""
    deviation = covariance.diagonal().sqrt()
    return covariance / torch.outer(deviation, deviation)


def _inverse_root(matrix: Tensor) -> Tensor:
    """Return R^(-1/2) of a positive definite matrix R (n, n), scaled to determinant 1."""
    values, directions = torch.linalg.eigh(matrix)
    logs = -0.5 * values.log()
    root: Tensor = directions * (logs - logs.mean()).exp() @ directions.mT
    return root


class Places(NamedTuple):
    """M exemplars without missing values, before their kernels have a width."""

    rows: Tensor
    """(M, F)"""
    weight: Tensor
    """(M,): share of the rows that an exemplar represents."""
    radius: Tensor
    """(M,): distance to the fifth neighbour in the numeric columns, divided by the square root of
    their number."""
    log_shares: Tensor
    """(S,): log-frequency of each level of the binary and categorical columns."""

    @classmethod
    def of(cls, layout: Layout, rows: Tensor, count: int, seed: int) -> Places:
        """Choose exemplars among encoded rows (N, F)."""
        index, weight = choose_rows(rows, count, seed)
        square, near = neighbours(rows, index, layout.n_numeric)
        filled = fill_missing(rows, rows[index], near)
        return cls(filled, weight, _radii(square), level_shares(layout, rows))

    def member(self, layout: Layout, width: float, mismatch: float) -> Exemplars:
        """Return the member with kernels of a width.

        Args:
            layout: the encoded columns.
            width: factor of the squared radii.
            mismatch: probability λ that a level is drawn anew, from all rows. An exemplar's own
                level has the probability 1 − λ + λ f, another one λ f, with f its frequency.
        """
        n, share = layout.n_numeric, self.log_shares.exp()
        value = _value_shares(layout)
        return Exemplars(
            layout,
            share=torch.tensor([SHARE]),
            log_weight=self.weight.log(),
            center=self.rows[:, :n].contiguous(),
            log_var=(width * self.radius**2).log().float(),
            codes=self.rows[:, n:].contiguous(),
            log_same=(1 - mismatch + mismatch * share).log() + value,
            log_other=(mismatch * share).log() + value,
        )


def choose_rows(rows: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the index and the weight (M,) of at most ``count`` of the rows (N, F).

    If there are no more distinct rows, each of them is chosen once, weighted by its number of
    duplicates. Otherwise the choice is random, with equal weights.
    """
    total = len(rows)
    distinct, label, sizes = rows.nan_to_num(torch.inf).unique(
        dim=0, return_inverse=True, return_counts=True
    )
    if len(distinct) <= count:
        first = torch.full((len(distinct),), total).scatter_reduce(
            0, label, torch.arange(total), "amin"
        )
        return first, sizes / total
    index = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
    return index, torch.full((count,), 1 / count)


def neighbours(rows: Tensor, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Find the nearest rows of some rows, in the first ``n`` columns.

    Args:
        rows: (N, F), NaN where missing.
        index: (M,), rows whose neighbours are sought.
        n: number of columns that are compared.

    Returns:
        The mean squared difference per column (M,) to the fifth neighbour (or the last one, if
        there are fewer), and the nearest rows (M, up to `DONORS`), nearest first. Without
        neighbours these are infinity and row 0.
    """
    if len(rows) < 2:
        return torch.full((len(index),), torch.inf), index.new_zeros(len(index), 1)
    found = [_nearest(rows[:, :n], part) for part in index.split(CHUNK)]
    squares, near = (torch.cat(part) for part in zip(*found, strict=True))
    return squares[:, min(NEIGHBOUR, squares.shape[1]) - 1], near


def _nearest(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    square = mean_squares(x[index], x)
    square[torch.arange(len(index)), index] = torch.inf
    squares, near = square.topk(min(DONORS, len(x) - 1), largest=False)
    return squares, near


def mean_squares(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared difference of rows (M, n) and (N, n), (M, N), float64.

    The mean is over the columns in which both have a value; infinity if there are none.
    """
    known = [(~torch.isnan(part)).double() for part in (x, y)]
    a, b = (part.nan_to_num(0.0).double() for part in (x, y))
    if x.shape[1] and all(part.all() for part in known):
        square = (a**2).sum(1, keepdim=True) + (b**2).sum(1) - 2 * a @ b.mT
        return square.clamp_min_(0).div_(x.shape[1])
    square = a**2 @ known[1].mT + known[0] @ (b**2).mT - 2 * a @ b.mT
    overlap = known[0] @ known[1].mT
    return torch.where(overlap > 0, square.clamp_min(0) / overlap, torch.inf)


def fill_missing(rows: Tensor, exemplars: Tensor, near: Tensor) -> Tensor:
    """Give exemplars (M, F) values from their nearest rows (M, K) where they have none.

    A value that these lack, too, becomes the mean of its column, which is 0, or code 0.
    """
    filled = exemplars.clone()
    for donors in near.T if torch.isnan(exemplars).any() else ():
        filled = torch.where(torch.isnan(filled), rows[donors], filled)
    return filled.nan_to_num(0.0)


def _radii(square: Tensor) -> Tensor:
    """Return radii (M,) from mean squared differences (M,), none of them too small."""
    radius = square.sqrt()
    usual = radius[radius.isfinite() & (radius > 0)]
    least = usual.quantile(RADIUS_QUANTILE).item() if len(usual) else MIN_RADIUS
    largest = usual.max().item() if len(usual) else 1.0
    return radius.clamp(max(least, MIN_RADIUS), max(largest, MIN_RADIUS))


def level_shares(layout: Layout, rows: Tensor) -> Tensor:
    """Return the log-frequency (S,) of each level of the binary and categorical columns."""
    columns, levels = (torch.tensor(part) for part in slots(layout))
    if not len(columns):
        return torch.zeros(0)
    counts = (rows[:, columns] == levels).sum(0) + PSEUDO_COUNT
    totals = torch.zeros(layout.n_columns).index_add(0, columns, counts)
    return torch.log(counts / totals[columns])


def _value_shares(layout: Layout) -> Tensor:
    """Return the log-share (S,) of a single value in its level; see `Layout.log_shares`."""
    count = len(slots(layout)[0])
    own = [share for shares in layout.log_shares for share in shares]
    return torch.tensor([0.0] * (count - len(own)) + own)
