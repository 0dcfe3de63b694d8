"""What is done in latent space, whatever the data: codes, paths, traversals and grids.

Everything works on encoded rows x (N, F), as the bundle's encoding gives them, and on latents
z (N, L), whose prior is N(0, I). `generation_tables` and `generation_images` turn what comes out
into tables and pictures.
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
from anomaly_vae.config import ImageModelConfig, ModelConfig
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.builder import build
from anomaly_vae.models.priors import Mixture
from anomaly_vae.models.vae import VAE

CHUNK = 1 << 18
"""Values, rows times columns, that are worked on at a time."""
PARALLEL = 1e-6
"""Sine of the angle below which two directions count as one line."""

Rows = RawBatch | Tensor
"""Rows or images as they came, or encoded (N, F)."""
Shape = Literal["linear", "spherical"]
"""Of a path through latent space."""
Decode = Callable[[VAE, Tensor], Tensor]
"""Latents (N, L) → encoded rows (N, F)."""


# ---------------------------------------------------------------- between bundle, rows and latents


def restored(bundle: Bundle) -> VAE:
    """The bundle's model in torch with all of its members, on the CPU, for evaluation.

    The weights file may hold more than the model, such as the statistics of a score.
    """
    return _model(bundle, tensors_of(bundle))


def load_model(bundle: Bundle) -> VAE:
    """The same; of several members, the first."""
    tensors, section = tensors_of(bundle), bundle.manifest["config"]["model"]
    if section.get("members", 1) == 1:
        return _model(bundle, tensors)
    return _model(bundle, {name: value[0] for name, value in tensors.items()}, members=1)


def tensors_of(bundle: Bundle) -> dict[str, Tensor]:
    """All that the weights file holds."""
    return load_tensors(bundle.weights)


def _model(bundle: Bundle, tensors: dict[str, Tensor], **changes: Any) -> VAE:
    kind = ImageModelConfig if bundle.manifest["kind"] == "image" else ModelConfig
    config = kind.model_validate({**bundle.manifest["config"]["model"], **changes})
    model = build(config, bundle.scorer.encoding.layout)
    if "aggregated.center" in tensors:
        model.aggregated = Mixture(*(tensors[f"aggregated.{name}"] for name in Mixture.TENSORS))
    if model.members > 1:
        model.reach = tensors.get("reach")
    for name, value in model.state_dict().items():
        value.copy_(tensors[name].view_as(value))
    return model.eval()


def encoded(bundle: Bundle, rows: Rows) -> Tensor:
    """(N, F) float32, NaN where missing."""
    if isinstance(rows, Tensor):
        return rows
    return torch.from_numpy(bundle.scorer.encoding.encode(rows))


@torch.no_grad()
def latent_means(bundle: Bundle, rows: Rows) -> Tensor:
    """(N, L): the means of q(z|x)."""
    model = load_model(bundle)
    return chunked(bundle, lambda x: model.posterior(x)[0], encoded(bundle, rows))


@torch.no_grad()
def decoded(bundle: Bundle, z: NDArray[Any] | Tensor, decode: Decode) -> Tensor:
    """(N, F): what ``decode`` makes of the latents (N, L).

    Raises:
        DataError: latents of another dimension, or not finite.
    """
    model, z = load_model(bundle), torch.as_tensor(z, dtype=torch.float32)
    if z.ndim != 2 or z.shape[1] != model.latent_dim:
        raise DataError(f"expected latents of shape (N, {model.latent_dim}), got {tuple(z.shape)}")
    if not z.isfinite().all():
        raise DataError("latents must be finite; NaN or infinity found")
    return chunked(bundle, lambda part: decode(model, part), z)


def chunked(bundle: Bundle, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """``function`` over so many rows at a time; no rows are none of one, as networks need some."""
    if not len(rows):
        return function(rows.new_zeros(1, *rows.shape[1:]))[:0]
    step = max(1, CHUNK // bundle.scorer.encoding.layout.n_columns)
    return torch.cat([function(part) for part in torch.split(rows, step)])


def seeded(n: int, seed: int) -> torch.Generator:
    """The generator that draws ``n`` samples.

    Raises:
        ConfigError: fewer than one.
    """
    if n < 1:
        raise ConfigError(f"the number of samples must be at least 1, got {n}")
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- places in latent space


def path(a: Tensor, b: Tensor, steps: int, shape: Shape = "linear") -> tuple[Tensor, Tensor]:
    """Shares (T,) from 0 to 1, and the latents (T, L) there between ``a`` and ``b``, each (L,).

    The spherical path turns from one direction into the other at an even pace (White 2016,
    sec. 2.1): in many dimensions N(0, I) lies near a sphere, whose inside a straight path crosses.
    Where no direction lies between the two (one is 0, or they point the same or opposite ways),
    it is the straight one.

    Raises:
        ConfigError: fewer than two steps.
    """
    if steps < 2:
        raise ConfigError(f"a path needs at least 2 steps, got {steps}")
    share = torch.linspace(0, 1, steps)
    ends = torch.stack([a, b]).double()
    weights = torch.stack([1 - share, share], 1).double()
    if shape == "spherical":
        weights = _turning(weights, ends)
    return share, (weights @ ends).float()


def _turning(weights: Tensor, ends: Tensor) -> Tensor:
    """The weights (T, 2) of a straight path between ``ends`` (2, L) → those of a spherical one."""
    cosine = ends[0] @ ends[1] / ends.norm(dim=1).prod()
    angle = torch.acos(cosine.clamp(-1, 1))  # not a number where an end is 0
    return torch.sin(weights * angle) / angle.sin() if angle.sin() > PARALLEL else weights


def path_between(
    bundle: Bundle, a: Rows, b: Rows | None, steps: int, shape: Shape
) -> tuple[Tensor, Tensor]:
    """`path` from the first of ``a`` to the first of ``b``, or without ``b`` the second of ``a``.

    Raises:
        DataError: there are no two rows.
    """
    means = latent_means(bundle, a)
    ends = means[:2] if b is None else torch.cat([means[:1], latent_means(bundle, b)[:1]])
    if len(ends) < 2:
        raise DataError("interpolation needs two rows; give an input with at least two")
    return path(ends[0], ends[1], steps, shape)


def traversal(
    base: Tensor, dims: Sequence[int], span: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Each of ``dims`` moved from −span to span, the rest held at ``base`` (L,).

    Returns:
        which dimension (D · T,), its value (D · T,), and the latents (D · T, L).

    Raises:
        ConfigError: a dimension that does not exist, a span that is not positive, or no steps.
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


def start_of(bundle: Bundle, rows: Rows | None) -> Tensor:
    """(L,): the posterior mean of the first row, or without rows the prior's mean 0.

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
    """(L,): how much each latent tells of these rows.

    The mean of KL(q(z_i|x) ‖ p(z_i)) in nats: 0 where the posterior has collapsed onto the prior.
    The codes of an autoencoder cost nothing; theirs is the standard deviation over the rows.
    """
    model, x = load_model(bundle), encoded(bundle, rows)
    if isinstance(model, Autoencoder):
        return chunked(bundle, lambda part: model.posterior(part)[0], x).std(0, correction=0)
    total = chunked(bundle, lambda part: model.prior.kl(*model.posterior(part)).sum(0)[None], x)
    return total.sum(0) / len(x)


def most_active(activity: Tensor, most: int) -> list[int]:
    """The dimensions of largest activity (L,), largest first; of equals the first."""
    order: list[int] = torch.argsort(activity, descending=True, stable=True)[:most].tolist()
    return order


def quantile_grid(steps: int) -> Tensor:
    """(T², 2): places in two latent dimensions that share N(0, I) out evenly, row by row.

    The first dimension grows to the right, the second upwards, both through the normal quantiles
    of (i + ½) / T (Kingma & Welling 2014, fig. 4).
    """
    quantiles = torch.special.ndtri((torch.arange(steps) + 0.5) / steps)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([right.flatten(), up.flatten()], 1)
