"""Generate rows with a tabular model: samples, reconstructions, paths, traversals, repaired rows.

Tables have the columns and units of the data, so that the model can read them again:

    numeric       the value in its own unit
    binary        0 or 1, the more probable value (in samples, the drawn value)
    categorical   the level, ``(other)`` for all levels that training pooled
    datetime      its learned cycles, as text: ``NAME.hour`` (14:05), ``NAME.weekday`` (Mon)

A datetime without a learned cycle is left out. Only `denoise` returns datetimes as they were, since
a date cannot be restored from its cycles. Only `to_table` depends on the types of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from anomaly_vae.errors import BundleError
from anomaly_vae.generation.latent_space import (
    Rows,
    Shape,
    apply_in_chunks,
    decoded,
    encoded,
    latent_means,
    load_model,
    path_between,
    sample_generator,
    start_latent,
    traversal,
)
from anomaly_vae.models.vae import VAE, frozen_noise
from anomaly_vae.types import ColumnType

__all__ = ["decode", "denoise", "interpolate", "latent", "reconstruct", "sample", "traverse"]

DRAWS = 4
"""Number of posterior draws with which `denoise` evaluates a cell."""
GAIN = 10.0
"""Default minimum gain of a replacement by which `denoise` calls a cell corrupted, nats."""


def to_table(bundle: Bundle, x: Tensor) -> pa.Table:
    """Convert encoded rows (N, F) into a table; see the module docstring."""
    schema, encoding = _columns(bundle)
    values = x.numpy()
    pairs = list(zip(encoding.columns, encoding.starts, strict=True))
    return pa.table(
        {
            column.label: _array(column, values[:, start : start + column.width])
            for name in schema.names
            for column, start in pairs
            if column.name == name
        }
    )


def _array(column: Numeric | Binary | Categorical | Cyclic, x: NDArray[np.float32]) -> pa.Array:
    """Convert the encoded values of a column (N, width) into an array (N,), null where NaN."""
    match column:
        case Numeric():
            return pa.array(column.inverse(x), from_pandas=True)
        case Binary():
            return pa.array(x[:, 0], from_pandas=True).cast(pa.int8())
        case _:
            return pa.array(column.decode(x), pa.string())


def _columns(bundle: Bundle) -> tuple[TabularSchema, TabularEncoding]:
    """Return the schema and the encoding of a tabular model.

    Raises:
        BundleError: the model is for images.
    """
    match bundle.scorer.schema, bundle.scorer.encoding:
        case TabularSchema() as schema, TabularEncoding() as encoding:
            return schema, encoding
    raise BundleError("the model is for images; use anomaly_vae.generation.images")


# ---------------------------------------------------------------- what a bundle can do


def sample(bundle: Bundle, n: int, seed: int = 0) -> pa.Table:
    """Draw ``n`` rows from the model, z ~ p(z) and x ~ p(x|z).

    Raises:
        ConfigError: ``n`` is less than 1.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2).fit(rows).bundle_
        >>> table = sample(bundle, 4, seed=1)
        >>> table.num_rows, table.column_names
        (4, ['x0', 'x1', 'x2'])
    """
    return to_table(bundle, sample_encoded(bundle, n, seed))


@torch.no_grad()
def sample_encoded(bundle: Bundle, n: int, seed: int = 0) -> Tensor:
    """Draw ``n`` rows as `sample` does and return them encoded, (n, F).

    Raises:
        ConfigError: ``n`` is less than 1.
    """
    generator = sample_generator(n, seed)
    return load_model(bundle).sample(n, generator)


def latent(bundle: Bundle, rows: Rows) -> pa.Table:
    """Return the means of q(z|x) as a table with the columns z0, z1, …

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2, latent_dim=2).fit(rows).bundle_
        >>> latent(bundle, torch.zeros(5, 3)).shape
        (5, 2)
    """
    means = latent_means(bundle, rows).numpy()
    return pa.table({f"z{i}": means[:, i] for i in range(means.shape[1])})


def decode(bundle: Bundle, z: NDArray[np.float32] | Tensor) -> pa.Table:
    """Return the most probable row at each latent (N, L).

    Raises:
        DataError: the latents have another dimension, or are not finite.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2, latent_dim=2).fit(rows).bundle_
        >>> decode(bundle, np.zeros((1, 2))).shape
        (1, 3)
    """
    _, encoding = _columns(bundle)
    return to_table(bundle, decoded(bundle, z, partial(most_probable, encoding.layout)))


def reconstruct(bundle: Bundle, rows: Rows) -> pa.Table:
    """Return the most probable row at each row's posterior mean; missing cells are filled.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2).fit(rows).bundle_
        >>> reconstruct(bundle, torch.tensor([[0.5, torch.nan, -0.5]])).column("x1").null_count
        0
    """
    return decode(bundle, latent_means(bundle, rows))


def interpolate(
    bundle: Bundle, a: Rows, b: Rows | None = None, steps: int = 9, shape: Shape = "linear"
) -> pa.Table:
    """Return the path in latent space from one row to another, both ends included; see `path`.

    Args:
        bundle: a tabular model.
        a: rows; the path starts at the first.
        b: rows; the path ends at the first. None: it ends at the second row of ``a``.
        steps: number of rows of the result.
        shape: "linear" or "spherical".

    Returns:
        The rows on the path, with a first column ``step`` from 0 to 1.

    Raises:
        DataError: there are fewer than two rows.
        ConfigError: fewer than two steps.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2).fit(rows).bundle_
        >>> interpolate(bundle, torch.randn(2, 3), steps=5).column("step").to_pylist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
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
    """Move one latent dimension after the other from −span to span, the others fixed.

    Args:
        bundle: a tabular model.
        rows: the fixed values are the posterior mean of the first row. None: the prior's mean 0.
        dims: dimensions to move; None: all.
        span: largest value of a dimension.
        steps: number of values per dimension.

    Returns:
        The most probable rows, with the columns ``dim`` and ``z`` before them.

    Raises:
        ConfigError: a dimension does not exist, the span is not positive, or there are no steps.
        DataError: ``rows`` is empty.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2, latent_dim=2).fit(rows).bundle_
        >>> table = traverse(bundle, dims=[1], span=2.0, steps=3)
        >>> table.column("dim").to_pylist(), table.column("z").to_pylist()
        ([1, 1, 1], [-2.0, 0.0, 2.0])
    """
    base = start_latent(bundle, rows)
    which, values, z = traversal(base, range(len(base)) if dims is None else dims, span, steps)
    table = decode(bundle, z).add_column(0, "z", pa.array(values.numpy()))
    return table.add_column(0, "dim", pa.array(which.numpy()))


# ---------------------------------------------------------------- denoising


def denoise(bundle: Bundle, rows: Rows, gain: float = GAIN) -> pa.Table:
    """Fill missing cells of rows and replace corrupted ones; keep all other cells.

    The replacement is the most probable value at the posterior mean of the row without its missing
    and corrupted cells. A cell is corrupted if the replacement makes the row more than ``gain``
    nats more probable (by the ELBO); 10 nats are 4.5 standard deviations of a Gaussian. The worst
    cell of a row is replaced first, and at most half of its columns are. A datetime counts like the
    others, but is returned unchanged.

    Args:
        bundle: a tabular model.
        rows: rows to repair.
        gain: minimum gain of a replacement, nats.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae import TabularVAEDetector
        >>> rows = np.random.default_rng(0).standard_normal((60, 3))
        >>> bundle = TabularVAEDetector(alpha=0.1, epochs=2).fit(rows).bundle_
        >>> denoise(bundle, torch.tensor([[0.5, torch.nan, -0.5]])).column("x1").null_count
        0
    """
    x = encoded(bundle, rows)
    repaired = repair(bundle, x, gain)
    filled = to_table(bundle, repaired)
    if isinstance(rows, Tensor):
        return filled
    return _overlay(filled, bundle, rows, (repaired != x).numpy())


@torch.no_grad()
def repair(bundle: Bundle, x: Tensor, gain: float) -> Tensor:
    """Fill and replace cells of encoded rows (N, F) as `denoise` does; the result has no NaN."""
    _, encoding = _columns(bundle)
    repairer = _Repairer(load_model(bundle), encoding)
    return apply_in_chunks(bundle, lambda part: repairer.repair(part, gain), x)


class _Repairer:
    """Search and replacement of the corrupted columns of rows; see `denoise`."""

    def __init__(self, model: VAE, encoding: TabularEncoding) -> None:
        self.model, self.layout, self.n_columns = model, encoding.layout, len(encoding.columns)
        widths = torch.tensor([column.width for column in encoding.columns])
        self.column_of = torch.arange(self.n_columns).repeat_interleave(widths)
        """(F,): index of the column that each encoded value belongs to."""
        self.noise = frozen_noise(DRAWS, model.latent_dim, 0)

    def repair(self, x: Tensor, gain: float) -> Tensor:
        """Replace missing and corrupted values of rows (N, F)."""
        kept, active = x.clone(), torch.arange(len(x))
        for _ in range(self.n_columns // 2):
            worst, gains = self._worst_column(kept[active])
            active, worst = active[gains > gain], worst[gains > gain]
            if not len(active):
                break
            hidden = self.column_of == worst[:, None]
            kept[active] = torch.where(hidden, torch.nan, kept[active])
        return torch.where(kept.isnan(), self._expected(kept), kept)

    def _worst_column(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the column (N,) whose replacement gains most, and the gain (N,), nats."""
        before = self.model.elbo(x, self.noise).bound
        gains = []
        for column in range(self.n_columns):
            hidden = (self.column_of == column).expand_as(x)
            others = torch.where(hidden, torch.nan, x)
            replaced = torch.where(hidden & ~x.isnan(), self._expected(others), x)
            gains.append(self.model.elbo(replaced, self.noise).bound - before)
        best = torch.stack(gains, 1).max(1)
        return best.indices, best.values

    def _expected(self, x: Tensor) -> Tensor:
        """Return the most probable rows (N, F) at the posterior means."""
        return most_probable(self.layout, self.model, self.model.posterior(x)[0])


def most_probable(layout: Layout, model: VAE, z: Tensor) -> Tensor:
    """Return the most probable rows (N, F) at latents (N, L).

    The values are the mean of p(x|z) for numeric columns, 0 or 1 for binary ones, and a code for
    levels.
    """
    numeric, binary, codes = layout.split(model.decode(z).mean)
    return torch.cat([numeric, (binary >= 0.5).to(numeric.dtype), codes], -1)


def _overlay(
    filled: pa.Table, bundle: Bundle, batch: RawBatch, changed: NDArray[np.bool_]
) -> pa.Table:
    """Take ``filled`` where a cell was ``changed`` (N, F), and the row's own value elsewhere."""
    (schema, encoding), columns = _columns(bundle), dict[str, Any]()
    first = dict(zip((c.name for c in encoding.columns), encoding.starts, strict=True))
    for column in schema.columns:
        own = _original_values(column.type, batch.values[column.name])
        if column.type is not ColumnType.DATETIME:
            mask = pa.array(changed[:, first[column.name]])
            own = pc.if_else(mask, filled.column(column.name), own)
        columns[column.name] = own
    return pa.table(columns)


def _original_values(kind: ColumnType, values: Values) -> pa.Array:
    """Convert a column of a `RawBatch` (N,) to the form that `to_table` gives it; times in UTC."""
    if isinstance(values, Levels):
        names = np.array([*values.names, None], object)
        return pa.array(names[values.codes], pa.string())
    if kind is ColumnType.DATETIME:
        missing = np.isnan(values)
        micros = np.where(missing, 0, np.round(values * 1e6)).astype(np.int64)
        return pa.array(micros, pa.timestamp("us"), mask=missing)
    numbers = pa.array(values, from_pandas=True)
    return numbers.cast(pa.int8()) if kind is ColumnType.BINARY else numbers
