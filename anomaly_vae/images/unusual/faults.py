"""Simulate faults of images (C, S, S), from which the signs of such faults are learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.float64]
Fault = Callable[[Image, Generator], Image]

SIDES = (1, 2)
"""Axes of an image that are turned."""
BLUR = 0.04
"""Standard deviation of a simulated blur, as a fraction of the image's width."""
NOISE = 0.2
"""Standard deviation of simulated noise, in standard deviations of the image."""
TILT, SIZE, WIDTH, SHIFT = 0.14, 0.1, 0.08, 0.03
"""Largest harmless variations: angle in radians, logarithms of the size and of the ratio of the
sides, and shift as a fraction of the width."""


def blurred(image: Image, rng: Generator) -> Image:
    """Blur an image with a Gaussian."""
    del rng
    position = np.arange(image.shape[-1])
    away = (position[:, None] - position) / (BLUR * len(position))
    kernel = np.exp(-(away**2) / 2)
    kernel /= kernel.sum(1, keepdims=True)
    return np.asarray(kernel @ image @ kernel.T)


def noisy(image: Image, rng: Generator) -> Image:
    """Add normal noise to every pixel."""
    return np.asarray(image + rng.normal(0, NOISE * image.std(), image.shape))


def half_blank(image: Image, rng: Generator) -> Image:
    """Give one half of an image, on any side, a single value."""
    turns, value = int(rng.integers(4)), rng.choice([image.min(), image.mean(), image.max()])
    sideways = np.rot90(image, turns, SIDES).copy()
    sideways[:, : image.shape[-1] // 2] = value
    return np.rot90(sideways, -turns, SIDES)


def turned(image: Image, rng: Generator) -> Image:
    """Turn an image by 90° to the left or to the right."""
    return np.rot90(image, int(rng.choice([1, 3])), SIDES)


def upside_down(image: Image, rng: Generator) -> Image:
    """Turn an image by 180°, or mirror it from top to bottom."""
    return image[:, ::-1] if rng.random() < 0.5 else image[:, ::-1, ::-1]


def inverted(image: Image, rng: Generator) -> Image:
    """Exchange dark and bright."""
    del rng
    return -image


def noise_alone(image: Image, rng: Generator) -> Image:
    """Replace an image by normal noise, whose neighbours are more or less alike."""
    noise, alike = rng.normal(size=image.shape), rng.random()
    for side in SIDES:
        noise = noise + alike * np.roll(noise, 1, side)
    return np.asarray(noise)


def varied(image: Image, rng: Generator) -> Image:
    """Turn, stretch and shift an image a little, and mirror every second one, without a fault."""
    if rng.random() < 0.5:
        image = image[:, :, ::-1]
    last = image.shape[-1] - 1
    angle, size, width = rng.uniform(-1, 1, 3) * (TILT, SIZE, WIDTH)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]]) * np.exp([size + width, size - width])
    grid = np.indices(image.shape[1:]).reshape(2, -1) - last / 2
    shift = rng.uniform(-SHIFT, SHIFT, (2, 1)) * (last + 1)
    y, x = np.clip(turn @ grid + shift + last / 2, 0, last)
    return _interpolated(image, y, x).reshape(image.shape)


def _interpolated(image: Image, y: NDArray[np.float64], x: NDArray[np.float64]) -> Image:
    """Return the values (C, N) of an image at N places between its pixels."""
    last = image.shape[-1] - 1
    top, left = y.astype(int), x.astype(int)
    down, right = y - top, x - left
    below, beside = np.minimum(top + 1, last), np.minimum(left + 1, last)
    upper = image[:, top, left] * (1 - right) + image[:, top, beside] * right
    lower = image[:, below, left] * (1 - right) + image[:, below, beside] * right
    return np.asarray(upper * (1 - down) + lower * down)


FAULTS: Mapping[str, Fault] = {
    "half blank": half_blank,
    "noisy": noisy,
    "blurred": blurred,
    "inverted": inverted,
    "turned": turned,
    "upside down": upside_down,
    "noise alone": noise_alone,
}
"""Faults by name. Bundles store their numbers: new ones come last."""
