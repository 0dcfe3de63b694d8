"""Make small synthetic images: striped blobs at random positions, some with a patch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 24
"""Side of an image, in pixels."""
N_SCANS, N_ANOMALIES = 140, 20
"""Number of scans, and of those with a patch."""

Pixels = NDArray[np.uint8]


def blobs(n: int, seed: int = 0, size: int = SIZE) -> Pixels:
    """Make n normal images (n, size, size)."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    images = np.empty((n, size, size))
    for i in range(n):
        dx, dy = rng.uniform(-0.3, 0.3, 2)
        radius = np.hypot(x - dx, (y - dy) * rng.uniform(0.8, 1.2))
        body = 1 / (1 + np.exp(12 * (radius - rng.uniform(0.5, 0.7))))
        stripes = 1 + 0.2 * np.sin(8 * (x + y) + rng.uniform(0, 6))
        images[i] = rng.uniform(0.5, 0.8) * body * stripes + 0.1 + rng.normal(0, 0.02, x.shape)
    return np.rint(255 * images.clip(0, 1)).astype(np.uint8)


def smooth(n: int, size: int, channels: int = 1) -> NDArray[np.float32]:
    """Make n smooth images (n, channels, size, size) on [0, 0.6] with a black margin at the top."""
    coarse = np.random.default_rng(1).random((n, channels, 8, 8), np.float32)
    at = np.linspace(0, 7, size)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8))).astype(np.float32)
    images = 0.2 + 0.4 * np.einsum("ia,ncab,jb->ncij", weights, coarse, weights)
    images[:, :, : size // 5] = 0
    return images


def patched(images: Pixels, seed: int = 0) -> Pixels:
    """Return copies of images with a black and white square near the middle of each."""
    rng, copies = np.random.default_rng(seed), images.copy()
    side = images.shape[1] // 4
    square = 255 * (np.indices((side, side)).sum(0) % 2)
    for image in copies:
        top, left = rng.integers(side, 2 * side, 2)
        image[top : top + side, left : left + side] = square
    return copies


def coloured(images: Pixels) -> Pixels:
    """Return tinted copies (N, S, S, 3) of grey images (N, S, S)."""
    return np.stack([images, images // 2, 255 - images], -1)


def scans(n: int = N_SCANS, anomalies: int = N_ANOMALIES, size: int = SIZE) -> Pixels:
    """Make n images (n, size, size), the last ``anomalies`` of them with a patch."""
    images = blobs(n, size=size)
    return np.concatenate([images[: n - anomalies], patched(images[n - anomalies :])])


def write_scans(folder: Path, images: Pixels, labels: Sequence[int]) -> Path:
    """Write PNGs and a manifest with path, label and group; returns the manifest.

    The first twenty images belong to ten groups; every other image is a group of its own.
    """
    (folder / "images").mkdir(parents=True)
    rows = []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"images/{i:03d}.png"
        Image.fromarray(image).save(folder / name)
        rows.append((name, label, f"patient {i // 2 if i < 20 else i}"))
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "group"), *rows])
    return manifest
