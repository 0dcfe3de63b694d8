"""What a model of tables can imagine: samples, reconstructions, paths between rows, repaired rows.

Only `to_table` knows columns. A table comes in the columns and units of the data, so that the
model can read it again:

    numeric       the value in its own unit
    binary        0 or 1, the likelier (of a sample: the one drawn)
    categorical   the level, ``(other)`` for all that training pooled
    datetime      what the model knows of it, as text: ``NAME.hour`` (14:05), ``NAME.weekday`` (Mon)

A datetime of which no cycle was learned is left out. `denoise` alone returns datetimes as they
came, since a date cannot be rebuilt from its cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.encoding import Binary, Categorical, Cyclic, Layout, Numeric, TabularEncoding
from anomaly_vae.data.schema import RawBatch, TabularSchema, Values
from anomaly_vae.generation.latent_space import (
    Rows,
    Shape,
    chunked,
    decoded,
    encoded,
    latent_means,
    load_model,
    path_between,
    seeded,
    start_of,
    traversal,
)
from anomaly_vae.models.vae import VAE, frozen_noise
from anomaly_vae.types import ColumnType

DRAWS = 4
"""Posterior draws that `denoise` weighs a cell with."""
GAIN = 10.0
"""A cell is corrupted when replacing it makes its row this many nats more probable."""


def to_table(bundle: Bundle, x: Tensor) -> pa.Table:
    """Encoded rows (N, F) → a table, see above."""
    encoding, values = _encoding(bundle), x.numpy()
    pairs = list(zip(encoding.columns, encoding.starts, strict=True))
    return pa.table(
        {
            column.label: _array(column, values[:, start : start + column.width])
            for name in bundle.scorer.schema.names
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


def _encoding(bundle: Bundle) -> TabularEncoding:
    encoding = bundle.scorer.encoding
    assert isinstance(encoding, TabularEncoding), "a model of tables"
    return encoding


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
    generator = seeded(n, seed)
    return load_model(bundle).sample(n, generator)


def latent(bundle: Bundle, rows: Rows) -> pa.Table:
    """The means of q(z|x), columns z0, z1, …"""
    means = latent_means(bundle, rows).numpy()
    return pa.table({f"z{i}": means[:, i] for i in range(means.shape[1])})


def decode(bundle: Bundle, z: NDArray[np.float32] | Tensor) -> pa.Table:
    """The most probable row at each of the latents (N, L).

    Raises:
        DataError: latents of another dimension, or not finite.
    """
    return to_table(bundle, decoded(bundle, z, most_probable))


def reconstruct(bundle: Bundle, rows: Rows) -> pa.Table:
    """The most probable row at each row's posterior mean; missing cells are filled."""
    return decode(bundle, latent_means(bundle, rows))


def interpolate(
    bundle: Bundle, a: Rows, b: Rows | None = None, steps: int = 9, shape: Shape = "linear"
) -> pa.Table:
    """The path in latent space from a row to another, ends included; see `generation.path`.

    The rows are the first of ``a`` and the first of ``b``, or without ``b`` the first two of
    ``a``. The column ``step`` runs from 0 to 1.

    Raises:
        DataError: there are no two rows.
        ConfigError: fewer than two steps.
    """
    share, z = path_between(bundle, a, b, steps, shape)
    return decode(bundle, z).add_column(0, "step", pa.array(share.numpy()))


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
    base = start_of(bundle, rows)
    which, values, z = traversal(base, range(len(base)) if dims is None else dims, span, steps)
    table = decode(bundle, z).add_column(0, "z", pa.array(values.numpy()))
    return table.add_column(0, "dim", pa.array(which.numpy()))


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
    repaired = repair(bundle, x, gain)
    filled = to_table(bundle, repaired)
    if isinstance(rows, Tensor):
        return filled
    return _lay_over(filled, bundle, rows, (repaired != x).numpy())


@torch.no_grad()
def repair(bundle: Bundle, x: Tensor, gain: float) -> Tensor:
    """See `denoise`: (N, F) → (N, F) without NaN."""
    model, widths = load_model(bundle), [column.width for column in _encoding(bundle).columns]
    column_of = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
    noise = frozen_noise(DRAWS, model.latent_dim, 0)
    return chunked(bundle, lambda part: _repaired(model, part, column_of, noise, gain), x)


def _repaired(model: VAE, x: Tensor, column_of: Tensor, noise: Tensor, gain: float) -> Tensor:
    """``column_of`` (F,) is the number of the column that each value belongs to."""
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
    mean, layout = model.decode(z).mean, model.likelihood.layout
    assert isinstance(layout, Layout), "a model of tables"
    numeric, binary, codes = layout.split(mean)
    return torch.cat([numeric, (binary >= 0.5).to(mean.dtype), codes], -1)


def _lay_over(
    filled: pa.Table, bundle: Bundle, batch: RawBatch, changed: NDArray[np.bool_]
) -> pa.Table:
    """``filled`` where a cell was ``changed`` (N, F), the row's own value elsewhere."""
    encoding, schema, columns = _encoding(bundle), bundle.scorer.schema, dict[str, Any]()
    assert isinstance(schema, TabularSchema), "a model of tables"
    first = dict(zip((c.name for c in encoding.columns), encoding.starts, strict=True))
    for column in schema.columns:
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
