"""Blend patches of other images into images in the gradient domain (Schlüter et al. 2022, NSA).

The gradients inside a patch are those of its source, and its border is that of the image, so that
there is no edge to recognise (Pérez et al. 2003, Poisson image editing).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from anomaly_vae.training.insertion.draws import Draw

SIDE = (0.08, 0.34)
"""Minimum and maximum height and width of a patch, as a fraction of the image's side."""
ZOOM = (0.7, 1.4)
"""Minimum and maximum factor by which a patch is reduced or enlarged."""
SMALLEST_SIDE = 2
"""Minimum height and width of a patch without its border, in pixels."""


def with_patches(draw: Draw) -> Tensor:
    """Blend one patch into each image of a draw, (N, C, H, H).

    A patch comes from another image of the batch, or in a batch of one from another place, and is
    zoomed and maybe mirrored. All patches of a draw have the same size. Source and destination are
    centred on tissue.
    """
    height, width = (_length(draw) for _ in range(2))
    row, column = draw.places(draw.tissue)
    rows, columns = (
        _span(row, height + 2, draw.side).unsqueeze(2),
        _span(column, width + 2, draw.side).unsqueeze(1),
    )
    image = torch.arange(draw.n, device=row.device).view(-1, 1, 1)
    old = draw.images[image, :, rows, columns].movedim(-1, 1)  # advanced indices come first
    new = blended(old, _sources(draw, (height + 2, width + 2)))
    changed = draw.images.clone()
    changed[image, :, rows, columns] = new.movedim(1, -1)
    return torch.where(draw.tissue, changed, draw.images)


def blended(image: Tensor, source: Tensor) -> Tensor:
    """Return patches with the border of ``image`` and inside the gradients of ``source``.

    Args:
        image: (N, C, h + 2, w + 2).
        source: (N, C, h + 2, w + 2).
    """
    inside = source[..., 1:-1, 1:-1] + harmonic(image - source)
    result = image.clone()
    result[..., 1:-1, 1:-1] = inside
    return result


def harmonic(border: Tensor) -> Tensor:
    """Continue the border of rectangles so that each pixel is the mean of its four neighbours.

    The discrete sine transform solves Laplace's equation exactly.

    Args:
        border: (..., h + 2, w + 2), of which only the outermost pixels count.

    Returns:
        (..., h, w)
    """
    height, width = border.shape[-2] - 2, border.shape[-1] - 2
    flux = torch.zeros_like(border[..., 1:-1, 1:-1])
    flux[..., 0, :] += border[..., 0, 1:-1]
    flux[..., -1, :] += border[..., -1, 1:-1]
    flux[..., :, 0] += border[..., 1:-1, 0]
    flux[..., :, -1] += border[..., 1:-1, -1]
    (rows, down), (columns, across) = _sines(height), _sines(width)
    rows, columns, down, across = (t.to(border) for t in (rows, columns, down, across))
    return rows @ (rows @ flux @ columns / (down.unsqueeze(1) + across)) @ columns


@lru_cache(maxsize=1024)
def _sines(n: int) -> tuple[Tensor, Tensor]:
    """Return the sine transform of length n (n, n), its own inverse, and its eigenvalues (n,)."""
    waves = torch.arange(1, n + 1, dtype=torch.float64) * math.pi / (n + 1)
    places = torch.arange(1, n + 1, dtype=torch.float64)
    matrix = math.sqrt(2 / (n + 1)) * torch.sin(places.unsqueeze(1) * waves)
    return matrix, 2 - 2 * torch.cos(waves)


def _length(draw: Draw) -> int:
    low, high = (round(share * draw.side) for share in SIDE)
    return min(max(draw.integer(low, high), SMALLEST_SIDE), draw.side - 2)


def _span(centre: Tensor, length: int, side: int) -> Tensor:
    """Return the ``length`` indices around each centre (N,) that lie in the image, (N, length)."""
    start = (centre - length // 2).clamp(0, side - length)
    return start.unsqueeze(1) + torch.arange(length, device=centre.device)


def _sources(draw: Draw, shape: tuple[int, int]) -> Tensor:
    """Cut a zoomed patch of ``shape`` out of another image for each image, (N, C, *shape)."""
    number = draw.others()
    row, column = draw.places(draw.pool_tissue[number])
    zoom, side = draw.uniform(*ZOOM).flatten(), draw.side
    across, down = draw.sign().flatten() * shape[1] / zoom, shape[0] / zoom
    none = torch.zeros_like(zoom)
    parts = across, none, 2 * column + 1 - side, none, down, 2 * row + 1 - side
    grid = F.affine_grid(
        torch.stack(parts, 1).view(-1, 2, 3) / side, [draw.n, 1, *shape], align_corners=False
    )
    return F.grid_sample(draw.pool[number], grid, padding_mode="border", align_corners=False)
