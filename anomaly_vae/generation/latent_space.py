"""Work in the latent space of any model: latents of rows, paths, traversals and grids.

All functions work on encoded rows x (N, F), as the bundle's encoding returns them, and on latents z
(N, L) with the prior N(0, I). `tables` and `images` convert the results into tables and pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import BundleError, ConfigError, DataError
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.backbone import Patches
from anomaly_vae.models.builder import tabular_parts
from anomaly_vae.models.exemplars import Exemplars
from anomaly_vae.models.picture_level import PictureLevel
from anomaly_vae.models.priors import DRAWING, LatentGaussian, Mixture
from anomaly_vae.models.vae import VAE
from anomaly_vae.training.kinds import KINDS
from anomaly_vae.training.runtime import survive_fork

__all__ = [
    "Rows",
    "Shape",
    "activity",
    "latent_means",
    "load_ensemble",
    "load_model",
    "most_active",
    "path",
    "quantile_grid",
    "traversal",
]

CHUNK_VALUES = 1 << 18
"""Maximum number of values (rows times columns) processed at a time."""
EXEMPLARS = "exemplars."
"""Prefix of the names of the exemplar member's tensors."""
PICTURE = "patches.picture."
"""Prefix of the names of the picture level's tensors."""
MIN_SINE = 1e-6
"""Minimum sine of the angle between two directions that are not treated as parallel."""

Rows = RawBatch | Tensor
"""Rows or images as they were read, or encoded (N, F)."""
Shape = Literal["linear", "spherical"]
"""Shape of a path through latent space."""
Decode = Callable[[VAE, Tensor], Tensor]
"""Function (model, latents (N, L)) that returns encoded rows (N, F)."""


# ---------------------------------------------------------------- between bundle, rows and latents


def load_ensemble(bundle: Bundle) -> VAE:
    """Load the bundle's model into torch with all of its members, on the CPU, for evaluation.

    The weights file may hold more than the model, such as the statistics of a score.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> detector = TabularVAEDetector(alpha=0.1, epochs=2, members=2).fit(rows)
        >>> load_ensemble(detector.bundle_).members
        2
    """
    return _model(bundle, load_weights(bundle))


def load_model(bundle: Bundle) -> VAE:
    """Load the bundle's model into torch; if it has several members, the first of them.

    Raises:
        BundleError: it is a model of the features of a backbone, which no image is drawn from.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> detector = TabularVAEDetector(alpha=0.1, epochs=2, latent_dim=2).fit(rows)
        >>> model = load_model(detector.bundle_)
        >>> model.members, model.latent_dim
        (1, 2)
    """
    if not bundle.draws:
        raise BundleError(
            f"model '{bundle.manifest['name']}' expects features of its backbone and draws no "
            "images; train one with model.backbone: none"
        )
    tensors, section = load_weights(bundle), bundle.manifest["config"]["model"]
    if section.get("members", 1) == 1:
        return _model(bundle, tensors)
    networks = {n: value[0] for n, value in tensors.items() if not n.startswith(EXEMPLARS)}
    return _model(bundle, networks, members=1)


def load_weights(bundle: Bundle) -> dict[str, Tensor]:
    """Return all tensors of the weights file."""
    return load_tensors(bundle.weights)


def _model(bundle: Bundle, tensors: dict[str, Tensor], **changes: Any) -> VAE:
    survive_fork()
    section = {**bundle.manifest["config"]["model"], **changes}
    model = KINDS[bundle.manifest["kind"]].build_stored(section, bundle.scorer.encoding)
    if "aggregated.center" in tensors:
        model.aggregated = Mixture(*(tensors[f"aggregated.{name}"] for name in Mixture.TENSORS))
    if model.members > 1:
        model.reach = tensors.get("reach")
    if f"{EXEMPLARS}center" in tensors:
        parts = {name: tensors[f"{EXEMPLARS}{name}"] for name in Exemplars.TENSORS}
        layout, metric = tabular_parts(model).likelihood.layout, tensors.get(f"{EXEMPLARS}metric")
        model.exemplars = Exemplars(layout, metric, **parts)
    if isinstance(model.patches, Patches) and f"{PICTURE}center" in tensors:
        parts = {name: tensors[f"{PICTURE}{name}"] for name in PictureLevel.TENSORS}
        model.patches.picture = PictureLevel(**parts)
    if f"{DRAWING}mean" in tensors:
        model.drawing = LatentGaussian(*(tensors[f"{DRAWING}{n}"] for n in LatentGaussian.TENSORS))
    for name, value in model.state_dict().items():
        value.copy_(tensors[name].view_as(value))
    return model.eval()


def encoded(bundle: Bundle, rows: Rows) -> Tensor:
    """Return rows in encoded form, (N, F) float32, NaN where missing."""
    if isinstance(rows, Tensor):
        return rows
    return torch.from_numpy(bundle.scorer.encoding.encode(rows))


@torch.no_grad()
def latent_means(bundle: Bundle, rows: Rows) -> Tensor:
    """Return the means of q(z|x), (N, L).

    Example:
        >>> import numpy as np, torch
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2, latent_dim=2).fit(rows).bundle_
        >>> latent_means(bundle, torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    model, x = load_model(bundle), encoded(bundle, rows)
    if isinstance(encoding := bundle.scorer.encoding, ImageEncoding):
        _refuse_tiles(encoding, x)
        x = torch.from_numpy(encoding.fill(x.numpy()))
    return apply_in_chunks(bundle, lambda x: model.posterior(x)[0], x)


def _refuse_tiles(encoding: ImageEncoding, x: Tensor) -> None:
    """Refuse encoded images (N, F) that a model sees tile by tile, and not as a whole.

    Raises:
        BundleError: the rows are such images.
    """
    tiling = encoding.tiling
    if tiling is not None and x.shape[1] == encoding.layout.n_columns:
        raise BundleError(
            f"the model sees tiles of {tiling.side} × {tiling.side} pixels, and an image has no "
            "place of its own in the latent space; use sample, reconstruct or denoise"
        )


@torch.no_grad()
def decoded(bundle: Bundle, z: NDArray[Any] | Tensor, decode: Decode) -> Tensor:
    """Return what ``decode`` makes of the latents (N, L), (N, F).

    Raises:
        DataError: the latents have another dimension, or are not finite.
    """
    model, z = load_model(bundle), torch.as_tensor(z, dtype=torch.float32)
    if z.ndim != 2 or z.shape[1] != model.latent_dim:
        raise DataError(f"expected latents of shape (N, {model.latent_dim}), got {tuple(z.shape)}")
    if not z.isfinite().all():
        raise DataError("latents must be finite; NaN or infinity found")
    return apply_in_chunks(bundle, lambda part: decode(model, part), z)


def apply_in_chunks(bundle: Bundle, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Apply a function to chunks of rows and concatenate the results.

    An empty input is handled as a chunk of one row whose result is dropped, since networks need
    rows.
    """
    if not len(rows):
        return function(rows.new_zeros(1, *rows.shape[1:]))[:0]
    step = max(1, CHUNK_VALUES // bundle.scorer.encoding.layout.n_columns)
    return torch.cat([function(part) for part in torch.split(rows, step)])


def sample_generator(n: int, seed: int) -> torch.Generator:
    """Return the random generator that draws ``n`` samples.

    Raises:
        ConfigError: ``n`` is less than 1.
    """
    if n < 1:
        raise ConfigError(f"the number of samples must be at least 1, got {n}")
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- places in latent space


def path(a: Tensor, b: Tensor, steps: int, shape: Shape = "linear") -> tuple[Tensor, Tensor]:
    """Return the latents on a path between two points.

    The spherical path turns from one direction to the other at a constant rate (White 2016, sec.
    2.1): in many dimensions N(0, I) is concentrated near a sphere, whose inside a straight path
    crosses. If no direction lies between the two (one point is 0, or they point in the same or in
    opposite directions), the path is straight.

    Args:
        a: (L,), start.
        b: (L,), end.
        steps: number of points T, both ends included.
        shape: "linear" or "spherical".

    Returns:
        fractions of the way (T,) from 0 to 1, and the latents (T, L).

    Raises:
        ConfigError: fewer than two steps.

    Example:
        >>> share, z = path(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), steps=3)
        >>> share.tolist(), z.tolist()
        ([0.0, 0.5, 1.0], [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    """
    if steps < 2:
        raise ConfigError(f"a path needs at least 2 steps, got {steps}")
    share = torch.linspace(0, 1, steps)
    ends = torch.stack([a, b]).double()
    weights = torch.stack([1 - share, share], 1).double()
    if shape == "spherical":
        weights = _spherical_weights(weights, ends)
    return share, (weights @ ends).float()


def _spherical_weights(weights: Tensor, ends: Tensor) -> Tensor:
    """Convert the weights (T, 2) of a straight path between ``ends`` (2, L) to a spherical one."""
    cosine = ends[0] @ ends[1] / ends.norm(dim=1).prod()
    angle = torch.acos(cosine.clamp(-1, 1))  # NaN if an end is 0
    return torch.sin(weights * angle) / angle.sin() if angle.sin() > MIN_SINE else weights


def path_between(
    bundle: Bundle, a: Rows, b: Rows | None, steps: int, shape: Shape
) -> tuple[Tensor, Tensor]:
    """Return the path from the first row of ``a`` to the first of ``b``; see `path`.

    Without ``b`` the path ends at the second row of ``a``.

    Raises:
        DataError: there are fewer than two rows.
        ConfigError: fewer than two steps.
    """
    means = latent_means(bundle, a)
    ends = means[:2] if b is None else torch.cat([means[:1], latent_means(bundle, b)[:1]])
    if len(ends) < 2:
        raise DataError("interpolation needs two rows; give an input with at least two")
    return path(ends[0], ends[1], steps, shape)


def traversal(
    base: Tensor, dims: Sequence[int], span: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Move each of several latent dimensions from −span to span, the others fixed at ``base``.

    Args:
        base: (L,), latent that the traversal starts from.
        dims: D dimensions to move.
        span: largest value.
        steps: number of values T per dimension.

    Returns:
        the moved dimension (D · T,), its value (D · T,), and the latents (D · T, L).

    Raises:
        ConfigError: a dimension does not exist, the span is not positive, or there are no steps.

    Example:
        >>> which, values, z = traversal(torch.zeros(3), dims=[2], span=1.0, steps=3)
        >>> which.tolist(), values.tolist(), z[0].tolist()
        ([2, 2, 2], [-1.0, 0.0, 1.0], [0.0, 0.0, -1.0])
    """
    _check_traversal(dims, len(base), span, steps)
    values = torch.linspace(-span, span, steps).repeat(len(dims))
    which = torch.as_tensor(list(dims)).repeat_interleave(steps)
    z = base.repeat(len(values), 1).scatter_(1, which[:, None], values[:, None])
    return which, values, z


def _check_traversal(dims: Sequence[int], latent_dim: int, span: float, steps: int) -> None:
    for dim in dims:
        if not 0 <= dim < latent_dim:
            raise ConfigError(f"no latent dimension {dim}; they are 0 to {latent_dim - 1}")
    if not (dims and 0 < span < math.inf and steps > 0):
        raise ConfigError("a traversal needs a dimension, a positive span and at least one step")


def start_latent(bundle: Bundle, rows: Rows | None) -> Tensor:
    """Return the posterior mean (L,) of the first row, or without rows the prior's mean 0.

    Raises:
        DataError: ``rows`` is empty.
    """
    if rows is None:
        return torch.zeros(load_model(bundle).latent_dim)
    first = encoded(bundle, rows)[:1]
    if not len(first):
        raise DataError("traversal starts from a row; the input has none")
    return latent_means(bundle, first)[0]


@torch.no_grad()
def activity(bundle: Bundle, rows: Rows) -> Tensor:
    """Return how much information each latent carries about these rows, (L,), nats.

    It is the mean of KL(q(z_i|x) ‖ p(z_i)), which is 0 where the posterior has collapsed onto the
    prior. The latents of an autoencoder have no KL term; their activity is the standard deviation
    over the rows.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2, latent_dim=2).fit(rows).bundle_
        >>> bool((activity(bundle, torch.randn(9, 3)) >= 0).all())
        True
    """
    model, x = load_model(bundle), encoded(bundle, rows)
    if isinstance(model, Autoencoder):
        return apply_in_chunks(bundle, lambda part: model.posterior(part)[0], x).std(
            0, correction=0
        )
    total = apply_in_chunks(
        bundle, lambda part: model.prior.kl(*model.posterior(part)).sum(0)[None], x
    )
    return total.sum(0) / len(x)


def most_active(activity: Tensor, count: int) -> list[int]:
    """Return the dimensions of largest activity (L,), largest first; ties keep their order.

    Example:
        >>> most_active(torch.tensor([0.1, 2.0, 0.7]), 2)
        [1, 2]
    """
    order: list[int] = torch.argsort(activity, descending=True, stable=True)[:count].tolist()
    return order


def quantile_grid(steps: int) -> Tensor:
    """Return a grid of points in two latent dimensions (T², 2) of equal probability under N(0, I).

    Points are listed row by row. The first dimension increases to the right, the second upwards,
    both through the normal quantiles of (i + ½) / T (Kingma & Welling 2014, fig. 4).

    Example:
        >>> quantile_grid(2).sign().int().tolist()
        [[-1, 1], [1, 1], [-1, -1], [1, -1]]
    """
    quantiles = torch.special.ndtri((torch.arange(steps) + 0.5) / steps)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([right.flatten(), up.flatten()], 1)
