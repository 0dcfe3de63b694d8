"""Make exemplar members with arbitrary weights."""

from __future__ import annotations

import math

import torch

from anomaly_vae.data.encoding import Layout
from anomaly_vae.models.exemplars import Exemplars


def exemplars_of(
    layout: Layout, count: int = 7, seed: int = 0, width: float = math.exp(-2)
) -> Exemplars:
    """Return a member with random exemplars, kernels and share."""
    generator = torch.Generator().manual_seed(seed)
    counts = [2] * layout.n_binary + list(layout.n_levels)
    codes = [torch.randint(0, levels, (count, 1), generator=generator) for levels in counts]
    same, other = torch.rand(2, sum(counts), generator=generator)
    return Exemplars(
        layout,
        share=torch.tensor([0.4]),
        log_weight=torch.log_softmax(torch.randn(count, generator=generator), 0),
        center=torch.randn(count, layout.n_numeric, generator=generator),
        log_var=torch.randn(count, generator=generator) + math.log(width),
        codes=torch.cat([*codes, torch.zeros(count, 0)], 1).float(),
        log_same=-same,
        log_other=-1 - other,
    )
