"""Generate images with an image model: samples, reconstructions, paths, traversals.

Pictures (N, C, S, S) are on [0, 1], converted from the model's scale by `ImageEncoding.to_images`.
Each is the mean of p(x|z), without the noise that the likelihood would add to every pixel, as is
usual. The examples load a bundle of the repository; any bundle folder of an image model will do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.training import CorruptionConfig
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.errors import BundleError, ConfigError
from anomaly_vae.generation.latent_space import (
    Rows,
    Shape,
    decoded,
    encoded,
    latent_means,
    load_model,
    path_between,
    quantile_grid,
    sample_generator,
    start_latent,
    traversal,
)
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.models.vae import VAE
from anomaly_vae.training.augmentation import corrupted

__all__ = [
    "corrupt",
    "decode",
    "grid",
    "interpolate",
    "psnr",
    "reconstruct",
    "sample",
    "to_pictures",
    "traverse",
    "traverse_components",
]

MIN_ERROR = 1e-10
"""Minimum mean squared error in a PSNR; it corresponds to 100 dB."""


def to_pictures(bundle: Bundle, x: Tensor) -> Matrix:
    """Convert encoded images (N, F) into pictures (N, C, S, S).

    Example:
        >>> from anomaly_vae.artifacts.bundle import load_bundle
        >>> bundle = load_bundle("tests/fixtures/format-2/image")
        >>> to_pictures(bundle, torch.zeros(2, 256)).shape
        (2, 1, 16, 16)
    """
    return _encoding(bundle).to_images(x.numpy())


def _encoding(bundle: Bundle) -> ImageEncoding:
    match bundle.scorer.encoding:
        case ImageEncoding() as encoding:
            return encoding
    raise BundleError("the model is for tables; use anomaly_vae.generation.tables")


def sample(bundle: Bundle, n: int, seed: int = 0) -> Matrix:
    """Draw ``n`` pictures from the model.

    Latents are drawn from a Gaussian that was fitted to those of the training images, see
    `LatentGaussian`; from the prior p(z) in models without it, such as those of earlier versions.

    Raises:
        ConfigError: ``n`` is less than 1.

    Example:
        >>> from anomaly_vae.artifacts.bundle import load_bundle
        >>> bundle = load_bundle("tests/fixtures/format-2/image")
        >>> sample(bundle, 3, seed=1).shape
        (3, 1, 16, 16)
    """
    return to_pictures(bundle, sample_encoded(bundle, n, seed))


def sample_encoded(bundle: Bundle, n: int, seed: int = 0) -> Tensor:
    """Draw ``n`` images as `sample` does and return them encoded, (n, F).

    Raises:
        ConfigError: ``n`` is less than 1.
    """
    generator, model = sample_generator(n, seed), load_model(bundle)
    if model.drawing is not None:
        return decoded(bundle, model.drawing.sample(n, generator), expected)
    return decoded(bundle, model.prior.sample(n, model.latent_dim, generator), expected)


def decode(bundle: Bundle, z: NDArray[np.float32] | Tensor) -> Matrix:
    """Return the expected picture at each latent (N, L).

    Raises:
        DataError: the latents have another dimension, or are not finite.

    Example:
        >>> from anomaly_vae.artifacts.bundle import load_bundle
        >>> bundle = load_bundle("tests/fixtures/format-2/image")
        >>> decode(bundle, np.zeros((1, 88))).shape  # this model has 88 latents
        (1, 1, 16, 16)
    """
    return to_pictures(bundle, decoded(bundle, z, expected))


def reconstruct(bundle: Bundle, rows: Rows) -> Matrix:
    """Return the expected picture at each image's posterior mean; tiles are put together.

    Example:
        >>> from anomaly_vae.artifacts.bundle import load_bundle
        >>> bundle = load_bundle("tests/fixtures/format-2/image")
        >>> reconstruct(bundle, torch.zeros(2, 256)).shape
        (2, 1, 16, 16)
    """
    x, scorer = encoded(bundle, rows), bundle.scorer
    if _encoding(bundle).tiling and x.shape[1] == scorer.encoding.layout.n_columns:
        return to_pictures(bundle, torch.from_numpy(scorer.explain_encoded(x.numpy()).expected))
    return decode(bundle, latent_means(bundle, x))


def interpolate(
    bundle: Bundle, a: Rows, b: Rows | None = None, steps: int = 9, shape: Shape = "linear"
) -> tuple[NDArray[np.float32], Matrix]:
    """Return the path in latent space from one image to another, both ends included; see `path`.

    Args:
        bundle: an image model.
        a: images; the path starts at the first.
        b: images; the path ends at the first. None: it ends at the second image of ``a``.
        steps: number of pictures T.
        shape: "linear" or "spherical".

    Returns:
        fractions of the way (T,) from 0 to 1, and the pictures.

    Raises:
        DataError: there are fewer than two images.
        ConfigError: fewer than two steps.

    Example:
        >>> from anomaly_vae.artifacts.bundle import load_bundle
        >>> bundle = load_bundle("tests/fixtures/format-2/image")
        >>> share, pictures = interpolate(bundle, torch.rand(2, 256), steps=3)
        >>> share.tolist(), pictures.shape
        ([0.0, 0.5, 1.0], (3, 1, 16, 16))
    """
    share, z = path_between(bundle, a, b, steps, shape)
    return share.numpy(), decode(bundle, z)


def traverse(
    bundle: Bundle, rows: Rows | None, dims: Sequence[int], span: float = 3.0, steps: int = 7
) -> tuple[NDArray[np.int64], NDArray[np.float32], Matrix]:
    """Move one latent dimension after the other from −span to span, the others fixed.

    Args:
        bundle: an image model.
        rows: the fixed values are the posterior mean of the first image. None: the prior's mean 0.
        dims: D dimensions to move.
        span: largest value of a dimension.
        steps: number of values T per dimension.

    Returns:
        the moved dimension (D · T,), its value (D · T,), and the pictures.

    Raises:
        ConfigError: a dimension does not exist, the span is not positive, or there are no steps.
        DataError: ``rows`` is empty.

    Example:
        >>> from anomaly_vae.artifacts.bundle import load_bundle
        >>> bundle = load_bundle("tests/fixtures/format-2/image")
        >>> which, values, pictures = traverse(bundle, None, dims=[1], span=2.0, steps=3)
        >>> which.tolist(), values.tolist(), pictures.shape
        ([1, 1, 1], [-2.0, 0.0, 2.0], (3, 1, 16, 16))
    """
    which, values, z = traversal(start_latent(bundle, rows), dims, span, steps)
    return which.numpy(), values.numpy(), decode(bundle, z)


def traverse_components(
    bundle: Bundle, rows: Rows | None, which: Sequence[int], span: float = 3.0, steps: int = 7
) -> tuple[NDArray[np.int64], NDArray[np.float32], Matrix]:
    """Move along one principal component of the training latents after the other.

    Models with latents at many places have thousands of them, each of which changes a small part of
    a picture. A component is a direction in which the latents of the training images vary together,
    such as with the size of a head; component 0 is the one in which they vary most.

    Args:
        bundle: an image model.
        rows: the start is the posterior mean of the first image. None: the mean of the latents.
        which: D components to move along, from 0.
        span: largest distance from the start to either side, in standard deviations.
        steps: number of distances T per component.

    Returns:
        the component (D · T,), the distance (D · T,), and the pictures.

    Raises:
        ConfigError: a component does not exist, the span is not positive, or there are no steps.
        DataError: ``rows`` is empty.

    Example:
        >>> from anomaly_vae import ImageVAEDetector
        >>> images = np.random.default_rng(0).normal(0.5, 0.1, (40, 16, 16)).clip(0, 1)
        >>> detector = ImageVAEDetector(network="dense", size=16, epochs=1, alpha=0.2).fit(images)
        >>> which, distance, pictures = traverse_components(detector.bundle_, None, [0], steps=3)
        >>> which.tolist(), distance.tolist(), pictures.shape
        ([0, 0, 0], [-3.0, 0.0, 3.0], (3, 1, 16, 16))
    """
    drawing = load_model(bundle).drawing
    if drawing is None:
        raise ConfigError("the model stores no components; choose dimensions")
    component, distance, moved = traversal(torch.zeros(len(drawing.basis)), which, span, steps)
    start = drawing.mean if rows is None else start_latent(bundle, rows)
    pictures = decode(bundle, start + moved @ drawing.basis.flip(0))
    return component.numpy(), distance.numpy(), pictures


def grid(bundle: Bundle, steps: int) -> tuple[NDArray[np.float32], Matrix]:
    """Return a grid of latents (T², 2) of equal probability under the prior, and their pictures.

    See `quantile_grid`.

    Raises:
        DataError: the model does not have two latents.

    Example:
        >>> from anomaly_vae.artifacts.bundle import load_bundle
        >>> bundle = load_bundle("tests/fixtures/format-2/image")
        >>> grid(bundle, steps=4)
        Traceback (most recent call last):
        anomaly_vae.errors.DataError: expected latents of shape (N, 88), got (16, 2)
    """
    z = quantile_grid(steps)
    return z.numpy(), decode(bundle, z)


def corrupt(bundle: Bundle, x: Tensor, config: CorruptionConfig, seed: int = 0) -> Tensor:
    """Corrupt encoded images (N, F) as in training: add noise, hide squares or lose resolution.

    Example:
        >>> from anomaly_vae.artifacts.bundle import load_bundle
        >>> bundle = load_bundle("tests/fixtures/format-2/image")
        >>> hidden = CorruptionConfig(type="mask", strength=0.5)
        >>> corrupt(bundle, torch.zeros(2, 256), hidden).shape
        torch.Size([2, 256])
    """
    images = x.view(-1, *_encoding(bundle).layout.shape)
    return corrupted(images, config, torch.Generator().manual_seed(seed)).flatten(1)


def psnr(pictures: Matrix, truth: Matrix) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of pictures in dB, (N,), at most 100.

    It is −10 log₁₀ of the mean squared error, since the peak is 1.

    Args:
        pictures: (N, C, S, S).
        truth: (N, C, S, S).

    Example:
        >>> truth = np.zeros((1, 1, 2, 2), np.float32)
        >>> psnr(truth + 0.1, truth).round(2).tolist()
        [20.0]
    """
    squared = (pictures.astype(np.float64) - truth) ** 2
    error = squared.reshape(len(squared), -1).mean(1)
    ratio: NDArray[np.float64] = -10 * np.log10(np.maximum(error, MIN_ERROR))
    return ratio


def expected(model: VAE, z: Tensor) -> Tensor:
    """Return the mean of p(x|z), (N, F), at latents (N, L)."""
    mean: Tensor = model.decode(z).mean
    return mean
