"""Compute statistics of images that tell images of one kind from others.

Every function takes a single image (S, S), so that a result never depends on the other images of a
batch. Only numpy is used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.splitting import spread

Image = NDArray[np.float64]
Vector = NDArray[np.float64]

FLOOR = 1e-4
"""Variance that is added before a logarithm is taken, in units of the image's variance."""
MAX_LEVELS = 5
"""Number of scales, each twice as coarse as the one before."""
QUANTILES = (0, 0.02, 0.25, 0.5, 0.75, 0.98, 1)
"""Quantiles of the pixels' values that are statistics."""
SAME = 0.02
"""Difference below which neighbouring pixels count as equal, in standard deviations."""
CELLS, BINS = 16, 8
"""Number of cells per side, and of directions, in a histogram of gradients."""
FINE_SIDE = 64
"""Side up to which symmetry and gradients are computed, in pixels."""


def standardise(image: Image) -> Image:
    """Return an image with mean 0 and standard deviation 1."""
    centred = image - image.mean()
    return np.asarray(centred / max(float(centred.std()), 1e-6))


def describe(image: Image, colour: Image | None = None) -> Vector:
    """Return the statistics (K,) of an image (S, S), in the order of `names`.

    Args:
        image: grey values, of any scale.
        colour: (3, S, S) channels of a colour image.
    """
    return np.array(list(_statistics(image, colour).values()), np.float64)


def names(size: int, channels: int) -> tuple[str, ...]:
    """Return the names (K,) of the statistics of images with this shape."""
    blank = np.zeros((3, size, size))
    return tuple(_statistics(blank[0], blank if channels == 3 else None))


def _statistics(image: Image, colour: Image | None) -> dict[str, float]:
    """Return every statistic by name."""
    pixels = standardise(image)
    found = {"brightness": float(image.mean()), "contrast": _log(float(image.std()))}
    small = shrunk(pixels)
    edges = np.hypot(*_slopes(small))
    found |= _scales(pixels) | _values(pixels) | _symmetry(small, edges) | _extent(small, edges)
    return found if colour is None else found | _colours(colour)


def _log(value: float) -> float:
    return math.log(max(value, 0.0) + FLOOR)


def _scales(pixels: Image) -> dict[str, float]:
    """Return energies of Haar wavelets, their directions and their typical size, by scale."""
    found: dict[str, float] = {}
    for level in range(MAX_LEVELS):
        side = len(pixels) // 2 * 2
        if side < 4:
            break
        pixels = pixels[:side, :side]
        a, b, c, d = pixels[::2, ::2], pixels[::2, 1::2], pixels[1::2, ::2], pixels[1::2, 1::2]
        x, y, xy = (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2
        squares = x * x, y * y, xy * xy
        ex, ey, exy = (_log(float(part.mean())) for part in squares)
        found[f"detail {level}"] = math.log(math.exp(ex) + math.exp(ey) + math.exp(exy))
        found[f"direction {level}"] = ex - ey
        found[f"diagonal {level}"] = exy - math.log(math.exp(ex) + math.exp(ey))
        found[f"background {level}"] = math.log(
            math.sqrt(_median(squares[0] + squares[1] + squares[2])) + 0.01
        )
        pixels = (a + b + c + d) / 4
    return found


def _median(values: Any) -> float:
    """Return the lower median, which is faster to find than the mean of two values."""
    middle = (values.size - 1) // 2
    return float(np.partition(values, middle, axis=None)[middle])


def _values(pixels: Image) -> dict[str, float]:
    """Return the distribution of the pixels' values, and the share of pixels that repeat one."""
    flat = np.sort(pixels, axis=None)
    last = len(flat) - 1
    found = {f"quantile {q}": float(flat[round(q * last)]) for q in QUANTILES}
    found["skewness"] = float((flat**3).mean())
    found["kurtosis"] = _log(float((flat**4).mean()))
    alike = np.abs(np.diff(pixels, axis=1))[:-1] + np.abs(np.diff(pixels, axis=0))[:, :-1] < SAME
    half = len(alike) // 2
    found["constant"] = float(np.log(alike.mean() + 0.01))
    halves = alike[:half], alike[-half:], alike[:, :half], alike[:, -half:]
    found["blank half"] = -float(np.log(1 - max(part.mean() for part in halves) + 0.005))
    found["darkest"] = float(np.log((flat < flat[0] + 0.02).mean() + 0.01))
    found["brightest"] = float(np.log((flat > flat[-1] - 0.02).mean() + 0.001))
    edge = max(1, len(pixels) // 16)
    inner = pixels[edge:-edge, edge:-edge]
    found["border"] = float((pixels.sum() - inner.sum()) / (pixels.size - inner.size))
    return found


def _symmetry(pixels: Image, edges: Image) -> dict[str, float]:
    """Return how alike the image and its mirror images are, and its edges likewise."""
    found: dict[str, float] = {}
    for kind, values in (("image", pixels), ("edges", edges)):
        for cells in (8, 16):
            grid = blocks(values, cells)
            grid = grid - grid.mean()
            total = max(float((grid * grid).sum()), 1e-9)
            for axis, mirrored in _mirrored(grid).items():
                alike = float((grid * mirrored).sum()) / total
                found[f"{axis} {kind} {cells}"] = math.atanh(min(max(alike, -0.99), 0.99))
    return found


def _mirrored(grid: Image) -> dict[str, Image]:
    return {
        "left-right": grid[:, ::-1],
        "up-down": grid[::-1],
        "diagonal": grid.T,
        "antidiagonal": grid[::-1, ::-1].T,
    }


def _extent(pixels: Image, edges: Image) -> dict[str, float]:
    """Return the centre and the extent of bright pixels and of edges."""
    grid = np.linspace(-1, 1, len(pixels))
    found: dict[str, float] = {}
    for kind, amounts in (("bright", np.maximum(pixels, 0)), ("edges", edges)):
        weights = amounts + 1e-3
        for axis, name in ((0, "x"), (1, "y")):
            profile = weights.sum(axis)
            profile = profile / profile.sum()
            centre = float(profile @ grid)
            found[f"{kind} centre {name}"] = centre
            found[f"{kind} extent {name}"] = _log(float(profile @ grid**2) - centre**2)
    return found


def _colours(colour: Image) -> dict[str, float]:
    """Return how far the channels (3, S, S) differ from their mean, in all and each by itself."""
    away = colour - colour.mean(0)
    found = {"colour": _log(float((away * away).mean()))}
    return found | {f"channel {i}": float(away[i].mean()) for i in range(3)}


# ---------------------------------------------------------------- direction


def gradients(pixels: Image, cells: int = CELLS) -> Vector:
    """Return the histogram of gradients (cells² · bins,) of a standardised image, of length 10.

    Each cell counts the gradients of each direction, weighted by their size; square roots make
    strong edges count less (Dalal & Triggs 2005).

    Args:
        pixels: standardised grey values (S, S).
        cells: number of cells per side, if the image has as many pixels.
    """
    pixels = shrunk(pixels)
    down, across = _slopes(pixels)
    size = np.hypot(across, down)
    angle = np.mod(np.arctan2(down, across), 2 * np.pi) / (2 * np.pi) * BINS
    lower = np.floor(angle).astype(int)
    weight = angle - lower
    edges = _edges(len(pixels), cells)
    cell = np.repeat(np.arange(len(edges)), np.diff([*edges, len(pixels)]))
    place = (cell[:, None] * len(edges) + cell) * BINS
    total = len(edges) ** 2 * BINS
    counts = np.bincount((place + lower % BINS).ravel(), (size * (1 - weight)).ravel(), total)
    counts += np.bincount((place + (lower + 1) % BINS).ravel(), (size * weight).ravel(), total)
    roots = np.sqrt(counts)
    return np.asarray(10 * roots / max(float(np.linalg.norm(roots)), 1e-9))


def pooled(histogram: Vector, count: int) -> Vector:
    """Return the same gradients in at most ``count`` cells per side."""
    cells = math.isqrt(len(histogram) // BINS)
    edges = _edges(cells, count)
    squares = (histogram * histogram).reshape(cells, cells, BINS)
    sums = np.add.reduceat(np.add.reduceat(squares, edges, axis=0), edges, axis=1)
    return np.asarray(np.sqrt(sums).ravel())


def _slopes(pixels: Image) -> tuple[Image, Image]:
    """Return central differences down and across, one-sided ones at the border."""
    down, across = np.empty_like(pixels), np.empty_like(pixels)
    for slope, image in ((down, pixels), (across.T, pixels.T)):
        slope[1:-1] = (image[2:] - image[:-2]) / 2
        slope[0], slope[-1] = image[1] - image[0], image[-1] - image[-2]
    return down, across


def shrunk(pixels: Image) -> Image:
    """Return the image with at most `FINE_SIDE` pixels per side."""
    return pixels if len(pixels) <= FINE_SIDE else blocks(pixels, FINE_SIDE)


def blocks(pixels: Image, count: int) -> Image:
    """Return the means of count × count blocks, or the image itself if it is smaller."""
    edges = _edges(len(pixels), count)
    if len(edges) == len(pixels):
        return pixels
    lengths = np.diff([*edges, len(pixels)]).astype(np.float64)
    sums = np.add.reduceat(np.add.reduceat(pixels, edges, axis=0), edges, axis=1)
    return np.asarray(sums / lengths[:, None] / lengths)


def _edges(size: int, count: int) -> NDArray[np.intp]:
    """Return the first row of each of at most ``count`` blocks of about equal length."""
    return spread(size, count)
