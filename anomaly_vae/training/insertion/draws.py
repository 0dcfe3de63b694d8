"""Draw random numbers, smooth fields and places for a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Draw:
    """Images, and a source of random numbers for them."""

    images: Tensor
    """(N, C, H, H): the images to change, standardised."""
    tissue: Tensor
    """(N, 1, H, H): True where something may be inserted."""
    pool: Tensor
    """(M, C, H, H): all images of the batch, from which foreign tissue comes."""
    pool_tissue: Tensor
    """(M, 1, H, H): tissue of the pool."""
    generator: Generator
    """Source of all randomness."""

    def part(self, index: Tensor) -> Draw:
        """Return the draw for some of the images, with the same pool."""
        return replace(self, images=self.images[index], tissue=self.tissue[index])

    @property
    def n(self) -> int:
        """Number of images."""
        return self.images.shape[0]

    @property
    def side(self) -> int:
        """Side of an image, in pixels."""
        return self.images.shape[-1]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw one number per image, (N, 1, 1, 1)."""
        draws = torch.rand((self.n, 1, 1, 1), generator=self.generator, device=self.images.device)
        return low + (high - low) * draws

    def sign(self) -> Tensor:
        """Draw −1 or 1 per image, (N, 1, 1, 1)."""
        return torch.where(self.uniform() < 0.5, -1.0, 1.0)

    def integers(self, low: int, high: int, n: int) -> Tensor:
        """Draw integers from low to high, both included, (n,)."""
        device = self.images.device
        return torch.randint(low, high + 1, (n,), generator=self.generator, device=device)

    def integer(self, low: int, high: int) -> int:
        """Draw one integer from low to high, both included."""
        return int(self.integers(low, high, 1))

    def others(self) -> Tensor:
        """Draw an image of the pool for each image: its number, (N,)."""
        return self.integers(0, len(self.pool) - 1, self.n)

    def noise(self, side: int) -> Tensor:
        """Draw standard normal numbers, (N, 1, side, side)."""
        shape = (self.n, 1, side, side)
        return torch.randn(shape, generator=self.generator, device=self.images.device)

    def field(self, cells: int) -> Tensor:
        """Draw a smooth standard normal field (N, 1, H, H) with ``cells`` bumps along a side."""
        wide = round(self.side * (cells + 2) / cells)
        noise = self.noise(cells + 2)
        large = F.interpolate(noise, (wide, wide), mode="bicubic", align_corners=False)
        top, left = (self.integer(0, wide - self.side) for _ in range(2))
        return large[..., top : top + self.side, left : left + self.side]

    def places(self, tissue: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a pixel of each tissue (N, 1, H, H): its row and its column, (N,)."""
        weights = tissue.flatten(1).float() + torch.finfo(torch.float32).tiny
        place = torch.multinomial(weights, 1, generator=self.generator).squeeze(1)
        return place // self.side, place % self.side

    def offsets(self) -> tuple[Tensor, Tensor]:
        """Return how far each pixel is below and right of a random pixel of tissue, in pixels.

        Returns:
            (N, 1, H, 1) and (N, 1, 1, H)
        """
        line = torch.arange(self.side, device=self.images.device)
        row, column = (place.view(-1, 1, 1, 1) for place in self.places(self.tissue))
        return line.view(1, 1, -1, 1) - row, line.view(1, 1, 1, -1) - column


Choices = Sequence[tuple[float, Callable[[Draw], Tensor]]]
"""Functions that convert a draw of N images into (N, K, H, H), each with its probability."""


def mixed(draw: Draw, choices: Choices) -> Tensor:
    """Apply to each image one of the functions, chosen at random by their probabilities.

    Returns:
        (N, K, H, H)
    """
    weights = torch.tensor([share for share, _ in choices], device=draw.images.device)
    chosen = torch.multinomial(weights, draw.n, replacement=True, generator=draw.generator)
    order = chosen.argsort(stable=True)
    parts = order.split(chosen.bincount(minlength=len(choices)).tolist())
    made = [
        function(draw.part(index))
        for index, (_, function) in zip(parts, choices, strict=True)
        if len(index)
    ]
    return torch.cat(made)[order.argsort()]


def box_blur(images: Tensor, window: int) -> Tensor:
    """Average images (N, C, H, W) over a square of ``window`` pixels, 0 outside of them."""
    return F.avg_pool2d(images, window, 1, window // 2)
