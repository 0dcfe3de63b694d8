"""Draw the shapes of anomalies: the share of each pixel, in [0, 1], that an anomaly replaces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomaly_vae.training.insertion.draws import Draw

AREA = (0.01, 0.18)
"""Minimum and maximum area of an island, as a fraction of the image; small ones are more likely."""
EDGE_STEEPNESS = (3.0, 16.0)
"""Minimum and maximum steepness of an island's edge, from soft to hard."""
LOCAL = 0.3
"""Fraction of images whose islands are confined to one place."""
SEMI_AXES = (0.03, 0.14)
"""Minimum and maximum semi-axis of an ellipse, as a fraction of the image's side."""
ELLIPSE_STEEPNESS = (1.5, 12.0)
"""Minimum and maximum steepness of an ellipse's edge, from a smooth bump to a disc."""
LINE_WIDTH = (0.4, 1.1)
"""Minimum and maximum half-width of a line, in 64ths of the image's side, or pixels if smaller."""
LINE_REACH = (0.08, 0.3)
"""Minimum and maximum distance that a line reaches to either side, as a fraction of the side."""


def islands(draw: Draw) -> Tensor:
    """Draw smooth irregular islands (N, 1, H, H) that cover a random fraction of the area."""
    field = draw.field(draw.integer(4, 10))
    field = torch.where(draw.uniform() < LOCAL, _localized(field, draw), field)
    share = AREA[0] + (AREA[1] - AREA[0]) * draw.uniform() ** 1.5
    highest = field.flatten(1).sort(1, descending=True).values
    rank = (share.flatten(1) * highest.shape[1]).long()
    level = highest.gather(1, rank).view(-1, 1, 1, 1)
    spread = field.std((2, 3), keepdim=True)
    return torch.sigmoid((field - level) / spread * draw.uniform(*EDGE_STEEPNESS))


def _localized(field: Tensor, draw: Draw) -> Tensor:
    """Weight a field (N, 1, H, H) by a window at a random place, so that it has a single shape."""
    place = torch.arange(draw.side, device=field.device) / draw.side
    rows = (place.view(1, 1, -1, 1) - draw.uniform(0.2, 0.8)) ** 2
    columns = (place.view(1, 1, 1, -1) - draw.uniform(0.2, 0.8)) ** 2
    window = torch.exp(-(rows + columns) / (2 * draw.uniform(0.06, 0.16) ** 2))
    return (1.5 + field.clamp_min(-1.2)) * window


def ellipses(draw: Draw) -> Tensor:
    """Draw one ellipse per image (N, 1, H, H), from a smooth bump to a disc."""
    down, right = draw.offsets()
    turn, steepness = draw.uniform(0, math.pi), draw.uniform(*ELLIPSE_STEEPNESS)
    long, short = (draw.side * draw.uniform(*SEMI_AXES) for _ in range(2))
    along = (right * torch.cos(turn) + down * torch.sin(turn)) / long
    across = (down * torch.cos(turn) - right * torch.sin(turn)) / short
    return torch.sigmoid(steepness * (1 - along**2 - across**2))


def lines(draw: Draw) -> Tensor:
    """Draw one thin curve per image (N, 1, H, H), such as a crack.

    A curve is where a smooth field has the same value as at a random pixel of tissue, within a
    random distance of it. The distance to the curve is to first order the difference of the field
    divided by its slope.
    """
    down, right = draw.offsets()
    field = draw.field(draw.integer(2, 6))
    centre = ((down == 0) & (right == 0)).to(field.dtype)
    level = (field * centre).sum((2, 3), keepdim=True)
    slope = torch.stack(torch.gradient(field, dim=(2, 3))).norm(dim=0).clamp_min(1e-6)
    width = draw.uniform(*LINE_WIDTH) * max(draw.side / 64, 1.0)
    reach = draw.side * draw.uniform(*LINE_REACH)
    near = torch.sigmoid((reach - torch.sqrt((down**2 + right**2).float())) / width)
    return torch.exp(-0.5 * ((field - level) / (slope * width)) ** 2) * near
