"""Judge densities by held-out rows."""

from __future__ import annotations

from torch import Tensor

WINSORIZED = 0.1
"""Fraction of held-out rows at either end whose log-density is clipped to the remaining range."""


def winsorized_mean(log_prob: Tensor) -> Tensor:
    """Average log-densities (B, H) over the rows after clipping both ends, to (B,)."""
    ends = log_prob.new_tensor([WINSORIZED, 1 - WINSORIZED])
    low, high = log_prob.quantile(ends, -1, keepdim=True)
    return log_prob.clamp(low, high).mean(-1)
