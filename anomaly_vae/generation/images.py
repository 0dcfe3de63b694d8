"""What a model of images can imagine: samples, reconstructions, paths, traversals, denoised images.

Pictures (N, C, S, S) are on [0, 1], as `ImageEncoding.to_images` shows what is on the model's
scale. Each is the mean of p(x|z): the noise that the likelihood would add to every pixel is left
out, as is usual.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import CorruptionConfig
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.generation.latent_space import (
    Rows,
    Shape,
    decoded,
    latent_means,
    load_model,
    path_between,
    quantile_grid,
    seeded,
    start_of,
    traversal,
)
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.models.vae import VAE
from anomaly_vae.training.augmentation import corrupted

LEAST_ERROR = 1e-10
"""Mean squared error below which two pictures count as equal: 100 dB."""


def to_pictures(bundle: Bundle, x: Tensor) -> Matrix:
    """Encoded images (N, F) → pictures (N, C, S, S)."""
    return _encoding(bundle).to_images(x.numpy())


def _encoding(bundle: Bundle) -> ImageEncoding:
    encoding = bundle.scorer.encoding
    assert isinstance(encoding, ImageEncoding), "a model of images"
    return encoding


def sample(bundle: Bundle, n: int, seed: int = 0) -> Matrix:
    """``n`` pictures drawn from the model, z ~ p(z)."""
    return to_pictures(bundle, sample_encoded(bundle, n, seed))


def sample_encoded(bundle: Bundle, n: int, seed: int = 0) -> Tensor:
    """The same images as `sample`, encoded (n, F).

    Raises:
        ConfigError: fewer than one image.
    """
    generator, model = seeded(n, seed), load_model(bundle)
    return decoded(bundle, model.prior.sample(n, model.latent_dim, generator), expected)


def decode(bundle: Bundle, z: NDArray[np.float32] | Tensor) -> Matrix:
    """The expected picture at each of the latents (N, L).

    Raises:
        DataError: latents of another dimension, or not finite.
    """
    return to_pictures(bundle, decoded(bundle, z, expected))


def reconstruct(bundle: Bundle, rows: Rows) -> Matrix:
    """The expected picture at each image's posterior mean."""
    return decode(bundle, latent_means(bundle, rows))


def interpolate(
    bundle: Bundle, a: Rows, b: Rows | None = None, steps: int = 9, shape: Shape = "linear"
) -> tuple[NDArray[np.float32], Matrix]:
    """The path in latent space from an image to another, ends included; see `generation.path`.

    The images are the first of ``a`` and the first of ``b``, or without ``b`` the first two of
    ``a``.

    Returns:
        shares (T,) from 0 to 1, and the pictures there.

    Raises:
        DataError: there are no two images.
        ConfigError: fewer than two steps.
    """
    share, z = path_between(bundle, a, b, steps, shape)
    return share.numpy(), decode(bundle, z)


def traverse(
    bundle: Bundle, rows: Rows | None, dims: Sequence[int], span: float = 3.0, steps: int = 7
) -> tuple[NDArray[np.int64], NDArray[np.float32], Matrix]:
    """One latent dimension after the other moved from −span to span, the rest held.

    The rest is the posterior mean of the first of ``rows``, or without them the prior's mean 0.

    Returns:
        which dimension (D · T,) has which value (D · T,), and the pictures there.

    Raises:
        ConfigError: a dimension that does not exist, a span that is not positive, or no steps.
        DataError: ``rows`` is empty.
    """
    which, values, z = traversal(start_of(bundle, rows), dims, span, steps)
    return which.numpy(), values.numpy(), decode(bundle, z)


def grid(bundle: Bundle, steps: int) -> tuple[NDArray[np.float32], Matrix]:
    """Latents (T², 2) that share the prior out evenly, and the pictures there.

    See `generation.quantile_grid`.

    Raises:
        DataError: the model has not two latents.
    """
    z = quantile_grid(steps)
    return z.numpy(), decode(bundle, z)


def corrupt(bundle: Bundle, x: Tensor, config: CorruptionConfig, seed: int = 0) -> Tensor:
    """Encoded images (N, F) with noise added, squares hidden or resolution lost, as in training."""
    images = x.view(-1, *_encoding(bundle).layout.shape)
    return corrupted(images, config, torch.Generator().manual_seed(seed)).flatten(1)


def psnr(pictures: Matrix, truth: Matrix) -> NDArray[np.float64]:
    """(N,) peak signal-to-noise ratio −10 log₁₀(mean squared error / 1²) in dB, 100 at most."""
    squared = (pictures.astype(np.float64) - truth) ** 2
    error = squared.reshape(len(squared), -1).mean(1)
    ratio: NDArray[np.float64] = -10 * np.log10(np.maximum(error, LEAST_ERROR))
    return ratio


def expected(model: VAE, z: Tensor) -> Tensor:
    """(N, L) → (N, F): the mean of p(x|z)."""
    mean: Tensor = model.decode(z).mean
    return mean
