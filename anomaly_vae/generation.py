"""What a trained model can imagine: samples, reconstructions, paths between rows, repaired rows.

Everything works on encoded rows x (N, F), NaN where missing, and on latents z (N, L); only
`to_table` knows columns. A table comes in the columns and units of the data, so that the model
can read it again:

    numeric       the value in its own unit
    binary        0 or 1, the likelier (of a sample: the one drawn)
    categorical   the level, ``(other)`` for all that training pooled
    datetime      what the model knows of it, as text: ``NAME.hour`` (14:05), ``NAME.weekday`` (Mon)

A datetime of which no cycle was learned is left out. `denoise` alone returns datetimes as they
came, since a date cannot be rebuilt from its cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor

from anomaly_vae.build import build
from anomaly_vae.bundle import Bundle
from anomaly_vae.columns import Levels
from anomaly_vae.config import ModelConfig
from anomaly_vae.encoding import Binary, Categorical, Cyclic, Layout, Numeric
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.schema import ColumnType, RawBatch, Values
from anomaly_vae.vae import VAE, frozen_noise

CHUNK = 8192
DRAWS = 4
"""Posterior draws that `denoise` weighs a cell with."""
GAIN = 10.0
"""A cell is corrupted when replacing it makes its row this many nats more probable."""

Rows = RawBatch | Tensor
"""Rows as they came, or encoded (N, F)."""


# ---------------------------------------------------------------- between bundle, rows and tensors


def load_model(bundle: Bundle) -> VAE:
    """The bundle's model in torch, on the CPU, for evaluation."""
    config = ModelConfig.model_validate(bundle.manifest["config"]["model"])
    model = build(config, bundle.scorer.encoding.layout)
    tensors = load_tensors(bundle.weights)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model.eval()


def encoded(bundle: Bundle, rows: Rows) -> Tensor:
    """(N, F) float32, NaN where missing."""
    if isinstance(rows, Tensor):
        return rows
    return torch.from_numpy(bundle.scorer.encoding.encode(rows))


def to_table(bundle: Bundle, x: Tensor) -> pa.Table:
    """Encoded rows (N, F) → a table, see above."""
    scorer, values = bundle.scorer, x.numpy()
    pairs = list(zip(scorer.encoding.columns, scorer.encoding.starts, strict=True))
    return pa.table(
        {
            column.label: _array(column, values[:, start : start + column.width])
            for name in scorer.schema.names
            for column, start in pairs
            if column.name == name
        }
    )


def _array(column: Numeric | Binary | Categorical | Cyclic, x: NDArray[np.float32]) -> pa.Array:
    """One column's encoded values (N, width) → (N,), null where NaN."""
    match column:
        case Numeric():
            return pa.array(column.inverse(x), from_pandas=True)
        case Binary():
            return pa.array(x[:, 0], from_pandas=True).cast(pa.int8())
        case _:
            return pa.array(column.decode(x), pa.string())


# ---------------------------------------------------------------- what a bundle can do


def sample(bundle: Bundle, n: int, seed: int = 0) -> pa.Table:
    """``n`` rows drawn from the model, z ~ p(z) and x ~ p(x|z)."""
    return to_table(bundle, sample_encoded(bundle, n, seed))


@torch.no_grad()
def sample_encoded(bundle: Bundle, n: int, seed: int = 0) -> Tensor:
    """The same rows as `sample`, encoded (n, F).

    Raises:
        ConfigError: fewer than one row.
    """
    if n < 1:
        raise ConfigError(f"the number of rows to sample must be at least 1, got {n}")
    return load_model(bundle).sample(n, torch.Generator().manual_seed(seed))


@torch.no_grad()
def latent_means(bundle: Bundle, rows: Rows) -> Tensor:
    """(N, L): the means of q(z|x)."""
    model = load_model(bundle)
    return _chunked(lambda x: model.posterior(x)[0], encoded(bundle, rows))


def latent(bundle: Bundle, rows: Rows) -> pa.Table:
    """The means of q(z|x), columns z0, z1, …"""
    means = latent_means(bundle, rows).numpy()
    return pa.table({f"z{i}": means[:, i] for i in range(means.shape[1])})


@torch.no_grad()
def decode(bundle: Bundle, z: NDArray[np.float32] | Tensor) -> pa.Table:
    """The most probable row at each of the latents (N, L).

    Raises:
        DataError: latents of another dimension, or not finite.
    """
    model, z = load_model(bundle), torch.as_tensor(z, dtype=torch.float32)
    if z.ndim != 2 or z.shape[1] != model.latent_dim:
        raise DataError(f"expected latents of shape (N, {model.latent_dim}), got {tuple(z.shape)}")
    if not z.isfinite().all():
        raise DataError("latents must be finite; NaN or infinity found")
    return to_table(bundle, _chunked(lambda part: most_probable(model, part), z))


def reconstruct(bundle: Bundle, rows: Rows) -> pa.Table:
    """The most probable row at each row's posterior mean; missing cells are filled."""
    return decode(bundle, latent_means(bundle, rows))


def interpolate(bundle: Bundle, a: Rows, b: Rows | None = None, steps: int = 9) -> pa.Table:
    """The straight path in latent space from a row to another, ends included.

    The rows are the first of ``a`` and the first of ``b``, or without ``b`` the first two of
    ``a``. The column ``step`` runs from 0 to 1.

    Raises:
        DataError: there are no two rows.
        ConfigError: fewer than two steps.
    """
    if steps < 2:
        raise ConfigError(f"a path needs at least 2 steps, got {steps}")
    means = latent_means(bundle, a)
    ends = means[:2] if b is None else torch.cat([means[:1], latent_means(bundle, b)[:1]])
    if len(ends) < 2:
        raise DataError("interpolation needs two rows; give an input with at least two")
    share = torch.linspace(0, 1, steps)
    return decode(bundle, torch.lerp(ends[0], ends[1], share[:, None])).add_column(
        0, "step", pa.array(share.numpy())
    )


def traverse(
    bundle: Bundle,
    rows: Rows | None = None,
    dims: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 7,
) -> pa.Table:
    """One latent dimension after the other moved from −span to span, the rest held.

    The rest is the posterior mean of the first of ``rows``, or without them the prior's mean 0.
    The columns ``dim`` and ``z`` say which dimension has which value.

    Raises:
        ConfigError: a dimension that does not exist, a span that is not positive, or no steps.
        DataError: ``rows`` is empty.
    """
    latent_dim = int(bundle.manifest["config"]["model"]["latent_dim"])
    dims = range(latent_dim) if dims is None else dims
    _check_traversal(dims, latent_dim, span, steps)
    base = torch.zeros(1, latent_dim) if rows is None else latent_means(bundle, rows)[:1]
    if not len(base):
        raise DataError("traversal starts from a row; the input has none")
    values = torch.linspace(-span, span, steps).repeat(len(dims))
    which = torch.as_tensor(list(dims)).repeat_interleave(steps)
    z = base.repeat(len(values), 1).scatter_(1, which[:, None], values[:, None])
    table = decode(bundle, z).add_column(0, "z", pa.array(values.numpy()))
    return table.add_column(0, "dim", pa.array(which.numpy()))


def _check_traversal(dims: Sequence[int], latent_dim: int, span: float, steps: int) -> None:
    for dim in dims:
        if not 0 <= dim < latent_dim:
            raise ConfigError(f"no latent dimension {dim}; they are 0 to {latent_dim - 1}")
    if not (dims and span > 0 and steps > 0):
        raise ConfigError("a traversal needs a dimension, a positive span and at least one step")


# ---------------------------------------------------------------- denoising


def denoise(bundle: Bundle, rows: Rows, gain: float = GAIN) -> pa.Table:
    """Rows with missing cells filled and corrupted ones replaced; all others as they came.

    What is filled in is the most probable value at the posterior mean of the row without its
    missing and corrupted cells. A cell is corrupted when that value makes the row more than
    ``gain`` nats more probable (by the ELBO); the worst cell of a row goes first, and at most
    half of its columns are called corrupted. 10 nats are 4.5 standard deviations of a Gaussian.
    A datetime weighs with the others, but is returned as it came.
    """
    x = encoded(bundle, rows)
    widths = torch.tensor([column.width for column in bundle.scorer.encoding.columns])
    column_of = torch.arange(len(widths)).repeat_interleave(widths)
    repaired = repair(load_model(bundle), x, column_of, gain)
    filled = to_table(bundle, repaired)
    if isinstance(rows, Tensor):
        return filled
    return _lay_over(filled, bundle, rows, (repaired != x).numpy())


@torch.no_grad()
def repair(model: VAE, x: Tensor, column_of: Tensor, gain: float) -> Tensor:
    """See `denoise`: (N, F) → (N, F) without NaN; ``column_of`` (F,) maps to columns."""
    noise = frozen_noise(DRAWS, model.latent_dim, 0)
    return _chunked(lambda part: _repaired(model, part, column_of, noise, gain), x)


def _repaired(model: VAE, x: Tensor, column_of: Tensor, noise: Tensor, gain: float) -> Tensor:
    kept, active = x.clone(), torch.arange(len(x))
    for _ in range((int(column_of.max()) + 1) // 2):
        worst, gains = _worst_column(model, kept[active], column_of, noise)
        active, worst = active[gains > gain], worst[gains > gain]
        if not len(active):
            break
        hidden = column_of == worst[:, None]
        kept[active] = torch.where(hidden, torch.nan, kept[active])
    return torch.where(kept.isnan(), most_probable(model, model.posterior(kept)[0]), kept)


def _worst_column(model: VAE, x: Tensor, column_of: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The column whose replacement gains most (N,), and how many nats (N,)."""
    before = model.elbo(x, noise).bound
    gains = []
    for column in range(int(column_of.max()) + 1):
        hidden = (column_of == column).expand_as(x)
        others = torch.where(hidden, torch.nan, x)
        expected = most_probable(model, model.posterior(others)[0])
        replaced = torch.where(hidden & ~x.isnan(), expected, x)
        gains.append(model.elbo(replaced, noise).bound - before)
    best = torch.stack(gains, 1).max(1)
    return best.indices, best.values


def most_probable(model: VAE, z: Tensor) -> Tensor:
    """(N, L) → (N, F): the mean of p(x|z); 0 or 1 for binary columns, a code for levels."""
    mean: Tensor = model.decode(z).mean
    layout = getattr(model.likelihood, "layout", None)
    if not isinstance(layout, Layout):
        return mean
    numeric, binary, codes = layout.split(mean)
    return torch.cat([numeric, (binary >= 0.5).to(mean.dtype), codes], -1)


def _lay_over(
    filled: pa.Table, bundle: Bundle, batch: RawBatch, changed: NDArray[np.bool_]
) -> pa.Table:
    """``filled`` where a cell was ``changed`` (N, F), the row's own value elsewhere."""
    encoding, columns = bundle.scorer.encoding, {}
    first = dict(zip((c.name for c in encoding.columns), encoding.starts, strict=True))
    for column in bundle.scorer.schema.columns:
        own = _own_values(column.type, batch.values[column.name])
        if column.type is not ColumnType.DATETIME:
            mask = pa.array(changed[:, first[column.name]])
            own = pc.if_else(mask, filled.column(column.name), own)
        columns[column.name] = own
    return pa.table(columns)


def _own_values(kind: ColumnType, values: Values) -> pa.Array:
    """A column of a `RawBatch` (N,) as `to_table` would write it; times in UTC."""
    if isinstance(values, Levels):
        names = np.array([*values.names, None], object)
        return pa.array(names[values.codes], pa.string())
    if kind is ColumnType.DATETIME:
        missing = np.isnan(values)
        micros = np.where(missing, 0, np.round(values * 1e6)).astype(np.int64)
        return pa.array(micros, pa.timestamp("us"), mask=missing)
    numbers = pa.array(values, from_pandas=True)
    return numbers.cast(pa.int8()) if kind is ColumnType.BINARY else numbers


def _chunked(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` over so many rows at a time."""
    return torch.cat([function(part) for part in torch.split(x, CHUNK)])
