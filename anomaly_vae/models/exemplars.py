"""Define the exemplar member, a VAE whose latents are rows and whose prior is a kernel density.

Its encoder and decoder are the identity, q(z|x) = N(x, s²I) and p(x|z) = N(z, s²I), and its prior
is a mixture with one component per exemplar, a training row c_k: p(z) = Σ_k w_k N(c_k, v_k I). The
negative ELBO is

    −E_q[log p(x|z)] + KL(q(z|x) ‖ p(z)) = D/2 log 2πes² − D/2 log 2πes² − E_q[log p(z)],

which for s → 0 becomes −log p(x) = −log Σ_k w_k Π_f K_f(x_f|c_k), the negative log-density of a
kernel density estimate, in nats. A mixture is in turn a VAE whose latent is the component k. Its
exact posterior is the responsibility r_k = w_k Π_f K_f(x_f|c_k) / p(x), so its bound is tight:

    −log p(x) = −Σ_f Σ_k r_k log K_f(x_f|c_k) + KL(r ‖ w).

The first sum has one term per column, the second is the KL term. A number has a normal kernel with
the exemplar's own variance. A binary or categorical column has the kernel of Aitchison & Aitken
(1976), with the frequencies of the levels in place of a uniform distribution. A missing value has
no kernel, so that it contributes nothing.

Kernels are products over columns, but close rows differ together in columns that depend on each
other. A member may therefore have coordinates y = A x in place of the numbers x, in which they
differ more independently (`neighbour_metric`). The determinant of A is 1, so that p(y) =
p(x). Coordinate f belongs to column f: A is symmetric and positive definite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.likelihoods import LOG_2PI
from anomaly_vae.models.priors import MIN_EXPONENT


class Exemplars(nn.Module):
    """The mixture Σ_k w_k Π_f K_f(x_f|c_k) at M exemplars, rows of a layout.

    The log-kernels are linear in the `inputs` of a row: their sum over the columns is one product
    with the matrix of `coefficients`.

    Args:
        layout: the encoded columns, n of them numeric and C binary or categorical.
        share: (1,), weight of this member's bound in the bound of the whole model.
        log_weight: (M,), log w.
        center: (M, n), numeric columns of the exemplars.
        log_var: (M,), log-variance of their kernels.
        codes: (M, C), binary and categorical columns of the exemplars.
        log_same: (S,), log-probability of each level of each of these columns if the exemplar has
            it; the levels of all columns follow one another.
        log_other: (S,), the same if the exemplar has another level.
        metric: (n, n), A; None if coordinates are the numbers themselves.

    Example:
        >>> import torch
        >>> zero, none = torch.zeros(1), torch.zeros(0)
        >>> member = Exemplars(
        ...     Layout(2, 0, ()),
        ...     share=zero + 0.5,
        ...     log_weight=zero,
        ...     center=torch.tensor([[0.0, 1.0]]),
        ...     log_var=zero,
        ...     codes=torch.zeros(1, 0),
        ...     log_same=none,
        ...     log_other=none,
        ... )
        >>> log_prob, kl = member(torch.tensor([[0.0, 3.0], [torch.nan, 1.0]]))
        >>> (-2 * log_prob - LOG_2PI).round(decimals=6).tolist()[0], log_prob[1, 0].item()
        ([0.0, 4.0], 0.0)
        >>> kl.tolist()  # of a single component
        [[0.0], [0.0]]
    """

    TENSORS = ("share", "log_weight", "center", "log_var", "codes", "log_same", "log_other")

    share: Tensor
    log_weight: Tensor
    center: Tensor
    log_var: Tensor
    codes: Tensor
    log_same: Tensor
    log_other: Tensor
    metric: Tensor | None
    slot_column: Tensor
    """(S,): encoded column of each level."""
    slot_level: Tensor
    """(S,): code of each level."""

    def __init__(self, layout: Layout, metric: Tensor | None = None, **tensors: Tensor) -> None:
        super().__init__()
        self.layout = layout
        for name in self.TENSORS:
            self.register_buffer(name, tensors[name])
        self.register_buffer("metric", metric)
        columns, levels = slots(layout)
        self.register_buffer("slot_column", torch.tensor(columns, dtype=torch.long), False)
        self.register_buffer("slot_level", torch.tensor(levels, dtype=torch.float32), False)

    def coordinates(self, x: Tensor, filled: Tensor) -> Tensor:
        """Return rows (N, F) with coordinates in place of numbers, NaN where missing.

        Args:
            x: (N, F), rows, NaN where missing.
            filled: (N, F), the same rows with a guess where a number is missing.
        """
        return x if self.metric is None else transform(self.metric, x, filled)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log_prob (N, F) and kl (N, 1) of `coordinates` (N, F), float64, nats.

        See the module's docstring; their sums over the last axis differ by `log_density`.
        """
        rows, matrix = self.inputs(x), self.coefficients()
        exponents = rows @ matrix.mT + self.log_weight.double()
        expected = torch.softmax(exponents, -1) @ matrix
        log_prob = self._by_column(rows, expected)
        density = _log_sum_exp(exponents)
        return log_prob, log_prob.sum(-1, keepdim=True) - density.unsqueeze(-1)

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) of `coordinates` (N, F), (N,), float64, nats."""
        return _log_sum_exp(self.inputs(x) @ self.coefficients().mT + self.log_weight.double())

    def inputs(self, x: Tensor) -> Tensor:
        """Return what the log-kernels of rows (N, F) are linear in, (N, 2n + 1 + S), float64.

        These are the numbers (0 where missing), the sum of their squares, whether each of them is
        present, and one-hot levels (all 0 where missing).
        """
        numeric = x[:, : self.layout.n_numeric].double()
        present = (~torch.isnan(numeric)).double()
        filled = numeric.nan_to_num(0.0)
        square = (filled**2).sum(-1, keepdim=True)
        one_hot = (x[:, self.slot_column] == self.slot_level).double()
        return torch.cat([filled, square, present, one_hot], -1)

    def coefficients(self) -> Tensor:
        """Return the factors of the `inputs` in the log-kernels, (M, 2n + 1 + S), float64."""
        center, log_var = self.center.double(), self.log_var.double().unsqueeze(-1)
        half = 0.5 * torch.exp(-log_var)
        norm = -half * center**2 - 0.5 * (log_var + LOG_2PI)
        return torch.cat([2 * half * center, -half, norm, self._log_levels()], -1)

    def _log_levels(self) -> Tensor:
        """Return log K_f(level|c_k) of all levels, (M, S), float64."""
        same = self.codes[:, self.slot_column - self.layout.n_numeric] == self.slot_level
        return torch.where(same, self.log_same, self.log_other).double()

    def _by_column(self, rows: Tensor, expected: Tensor) -> Tensor:
        """Return Σ_k r_k log K_f(x_f|c_k), (N, F).

        Args:
            rows: (N, 2n + 1 + S), inputs.
            expected: (N, 2n + 1 + S), coefficients averaged by the responsibilities.
        """
        n = self.layout.n_numeric
        parts = rows * expected
        numeric = (
            parts[:, :n] + rows[:, :n] ** 2 * expected[:, n : n + 1] + parts[:, n + 1 :][:, :n]
        )
        discrete = parts.new_zeros(len(rows), self.layout.n_columns - n)
        discrete.index_add_(1, self.slot_column - n, parts[:, 2 * n + 1 :])
        return torch.cat([numeric, discrete], -1)


def transform(metric: Tensor, x: Tensor, filled: Tensor) -> Tensor:
    """Multiply the numbers of rows by a metric (n, n); see `Exemplars.coordinates`.

    >>> x = torch.tensor([[1.0, torch.nan, 5.0]])
    >>> transform(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), x, x.nan_to_num(3.0)).tolist()
    [[5.0, nan, 5.0]]
    """
    n = len(metric)
    numeric = (filled[:, :n].double() @ metric.double()).to(x.dtype)
    return torch.cat([numeric.masked_fill(torch.isnan(x[:, :n]), torch.nan), x[:, n:]], 1)


def slots(layout: Layout) -> tuple[Sequence[int], Sequence[int]]:
    """Return the column and the code of each level of the binary and categorical columns.

    >>> slots(Layout(2, 1, (3,)))
    ([2, 2, 3, 3, 3], [0, 1, 0, 1, 2])
    """
    counts = [2] * layout.n_binary + list(layout.n_levels)
    pairs = [
        (column, level)
        for column, count in enumerate(counts, layout.n_numeric)
        for level in range(count)
    ]
    return [column for column, _ in pairs], [level for _, level in pairs]


def _log_sum_exp(exponents: Tensor) -> Tensor:
    """Return log Σ exp over the last axis, (N, M) to (N,); see `priors.log_sum_exp`."""
    most = exponents.amax(-1, keepdim=True)
    return (exponents - most).clamp_min(MIN_EXPONENT).exp().sum(-1).log() + most.squeeze(-1)
