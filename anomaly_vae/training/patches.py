"""Make the rows that a model of patches is fitted to: features of normal images."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.models.backbone import Patches
from anomaly_vae.models.picture_level import extremes

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
        patches: makes rows of images; its rotation and the extremes of pictures are set in place.
        train: (N, F), encoded images.
        validation: (V, F), encoded images.
        seed: seed of the choice.
        fit: whether to set the rotation from the training images.
    """
    generator = torch.Generator().manual_seed(seed)
    features, pictures = _features(patches, torch.from_numpy(train), MAX_PATCHES, generator)
    patches.pictures = pictures
    if fit:
        patches.fit_rotation(features)
    judges, _ = _features(patches, torch.from_numpy(validation), MAX_PATCHES // 10, generator)
    return patches.rotated(features).numpy(), patches.rotated(judges).numpy()


def _features(
    patches: Patches, x: Tensor, limit: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return features (R, D) of as many positions as the limit allows, and `extremes` (N, 2D).

    Positions are spread evenly over the images (N, F), at least one of each.
    """
    count = patches.grid**2
    most = max(1, min(count, limit // max(len(x), 1)))
    parts, pictures = [], []
    for chunk in x.split(CHUNK):
        order = torch.rand(len(chunk), count, generator=generator).argsort(1)[:, :most]
        maps = patches.maps(chunk)
        found = patches.features(maps)
        pictures.append(extremes(maps))
        parts.append(found.gather(1, order.unsqueeze(-1).expand(-1, -1, found.shape[-1])))
    return torch.cat(parts).flatten(0, 1), torch.cat(pictures)
