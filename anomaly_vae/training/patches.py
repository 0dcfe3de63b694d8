"""Make the rows that a model of patches is fitted to: patch features of normal images."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.models.backbone import Patches

PATCH_NOISE = 0.2
"""Standard deviation of the noise added to rows before the encoder, in standard deviations."""
MAX_PATCHES = 50_000
"""Largest number of patches that a model is fitted to, and a tenth of it that it is measured on."""
CHUNK = 16
"""Number of images whose features are computed at a time."""


@torch.no_grad()
def patch_rows(
    patches: Patches, train: Matrix, validation: Matrix, seed: int, fit: bool
) -> tuple[Matrix, Matrix]:
    """Return the rows (R, D) of training and validation images.

    Of many images, each gives only some of its patches, chosen at random.

    Args:
        patches: makes rows of images; its rotation is set in place.
        train: (N, F), encoded images.
        validation: (V, F), encoded images.
        seed: seed of the choice.
        fit: whether to set the rotation from the training images.
    """
    generator = torch.Generator().manual_seed(seed)
    features = _features(patches, torch.from_numpy(train), MAX_PATCHES, generator)
    if fit:
        patches.fit_rotation(features)
    judges = _features(patches, torch.from_numpy(validation), MAX_PATCHES // 10, generator)
    return patches.rotated(features).numpy(), patches.rotated(judges).numpy()


def _features(patches: Patches, x: Tensor, limit: int, generator: Generator) -> Tensor:
    """Return the features (R, D) of images (N, F), of as many positions each as the limit allows.

    Positions are spread evenly over the images, at least one of each.
    """
    count = patches.grid**2
    most = max(1, min(count, limit // max(len(x), 1)))
    parts = []
    for chunk in x.split(CHUNK):
        order = torch.rand(len(chunk), count, generator=generator).argsort(1)[:, :most]
        found = patches.features(chunk)
        parts.append(found.gather(1, order.unsqueeze(-1).expand(-1, -1, found.shape[-1])))
    return torch.cat(parts).flatten(0, 1)
