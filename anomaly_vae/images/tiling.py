"""Cut a large image into overlapping tiles, and put the maps of its tiles together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from anomaly_vae.data.encoding import Matrix


@dataclass(frozen=True)
class Tiling:
    """Square tiles that cover a square image.

    Tiles are at equal distances, to a pixel, and the last ones end at the border of the image, so
    that every pixel is in a tile. A map of the image takes each pixel from the tile in which it is
    farthest from the border.

    Args:
        size: Side of the image, in pixels.
        side: Side of a tile, in pixels.
        overlap: Least share of a tile's side that it has in common with the next tile.

    Example:
        >>> tiling = Tiling(size=10, side=4, overlap=0.25)
        >>> tiling.starts, tiling.count
        ((0, 3, 6), 9)
        >>> tiling.kept  # the rows or columns that a map takes from each tile
        ((0, 3), (0, 3), (0, 4))
        >>> tiling.cut(np.arange(100.0).reshape(1, 100), channels=1).shape
        (9, 16)
    """

    size: int
    side: int
    overlap: float

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First row of each row of tiles, which is also the first column of each column."""
        step = max(1, math.floor(self.side * (1 - self.overlap)))
        count = 1 + math.ceil((self.size - self.side) / step)
        return tuple(np.linspace(0, self.size - self.side, count).round().astype(int).tolist())

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.starts) ** 2

    @cached_property
    def kept(self) -> tuple[tuple[int, int], ...]:
        """First row, and the row after the last one, that a map takes from each row of tiles."""
        middles = ((a + self.side + b) // 2 for a, b in pairwise(self.starts))
        ends = [0, *middles, self.size]
        spans = zip(self.starts, pairwise(ends), strict=True)
        return tuple((low - start, high - start) for start, (low, high) in spans)

    def cut(self, x: Matrix, channels: int) -> Matrix:
        """Cut N encoded images (N, F) into their tiles (N · T, f), row by row."""
        images = x.reshape(len(x), channels, self.size, self.size)
        windows = np.lib.stride_tricks.sliding_window_view(images, (self.side, self.side), (2, 3))
        places = list(self.starts)
        tiles = np.moveaxis(windows[:, :, places][:, :, :, places], 1, 3)
        return np.ascontiguousarray(tiles).reshape(len(x) * self.count, -1)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        return {"side": self.side, "overlap": self.overlap}

    @classmethod
    def of(cls, size: int, side: int | None, overlap: float) -> Tiling | None:
        """Return the tiling of images of this size; None without a side."""
        return None if side is None else cls(size, side, overlap)
