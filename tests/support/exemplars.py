"""Make exemplar members with arbitrary weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.exemplars import Exemplars


def exemplars_of(
    layout: Layout,
    count: int = 7,
    seed: int = 0,
    width: float = math.exp(-2),
    metric: bool = False,
) -> Exemplars:
    """Return a member with random exemplars, kernels and share, and perhaps a random metric."""
    generator = torch.Generator().manual_seed(seed)
    counts = [2] * layout.n_binary + list(layout.n_levels)
    codes = [torch.randint(0, levels, (count, 1), generator=generator) for levels in counts]
    same, other = torch.rand(2, sum(counts), generator=generator)
    return Exemplars(
        layout,
        metric_of(layout.n_numeric) if metric else None,
        share=torch.tensor([0.4]),
        log_weight=torch.log_softmax(torch.randn(count, generator=generator), 0),
        center=torch.randn(count, layout.n_numeric, generator=generator),
        log_var=torch.randn(count, generator=generator) + math.log(width),
        codes=torch.cat([*codes, torch.zeros(count, 0)], 1).float(),
        log_same=-same,
        log_other=-1 - other,
    )


def metric_of(n: int) -> Tensor:
    """Return a random metric (n, n), symmetric and with determinant 1."""
    skewed = torch.randn(n, n, generator=torch.Generator().manual_seed(5)).double()
    return torch.linalg.matrix_exp(0.2 * (skewed + skewed.T).fill_diagonal_(0)).float()
