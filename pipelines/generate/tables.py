"""Generate, reconstruct, denoise and encode rows with a trained model, and write them to a file.

The suffix of the file is ``.parquet``, ``.csv`` or, for a map of `latent`, ``.png``. The id column
of the training data is kept if the input has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.generation import tables
from anomaly_vae.generation.latent_space import Rows, Shape, encoded
from pipelines.datasets.loading import read_for_model
from pipelines.generate.common import (
    PNG,
    ROWS,
    WRITERS,
    Labels,
    Paths,
    Points,
    Summary,
    check_colour,
    ending,
    label_column,
    write_map,
    write_table,
)


@dataclass(frozen=True, eq=False)
class Source:
    """Usable input rows with their ids, a table of one column or none, and the number rejected."""

    rows: Rows
    ids: pa.Table
    rejected: int = 0
    labels: Labels = ()


def sample(bundle: Bundle, out: str | Path, rows: int | None = None, seed: int = 0) -> Summary:
    """Generate rows from the model."""
    ending(out, *WRITERS)
    return _written(tables.sample(bundle, _count(rows), seed), out)


def reconstruct(
    bundle: Bundle, out: str | Path, paths: Paths = (), rows: int | None = None, seed: int = 0
) -> Summary:
    """Write each row as the model would have expected it."""
    return _each(tables.reconstruct, bundle, out, paths, rows, seed)


def denoise(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    rows: int | None = None,
    seed: int = 0,
    corruption: str | None = None,
    strength: float | None = None,
) -> Summary:
    """Write each row with missing cells filled and corrupted cells replaced.

    Raises:
        ConfigError: a corruption is given, which is for images only.
    """
    if corruption is not None or strength is not None:
        raise ConfigError("--corruption and --strength are for models of images; leave them out")
    return _each(tables.denoise, bundle, out, paths, rows, seed)


def latent(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    rows: int | None = None,
    seed: int = 0,
    colour: str | None = None,
    grid: bool = False,
) -> Summary:
    """Write each row's latent means, or a map of them; see `latent_map`.

    Raises:
        ConfigError: a grid is asked for, which is for images only, or a colour without a map.
    """
    if grid:
        raise ConfigError("--grid is for models of images; traverse shows what latents do to rows")
    suffix = ending(out, *WRITERS, PNG)
    check_colour(suffix, colour)
    if suffix != PNG:
        return _each(tables.latent, bundle, out, paths, rows, seed)
    source = read_source(bundle, paths, _count(rows), seed)
    x, table = encoded(bundle, source.rows), tables.latent(bundle, source.rows)
    means = np.column_stack([column.to_numpy() for column in table.columns])
    write_map(bundle, Points(x.numpy(), means, "rows", source.labels), colour, out)
    return _summary(table, out, source.rejected)


def interpolate(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    steps: int = 9,
    seed: int = 0,
    shape: Shape = "linear",
) -> Summary:
    """Write the path through latent space from the first row of the input to the second."""
    ending(out, *WRITERS)
    source = read_source(bundle, paths, 2, seed)
    table = tables.interpolate(bundle, source.rows, steps=steps, shape=shape)
    return _written(table, out, source.rejected)


def traverse(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    dims: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 7,
) -> Summary:
    """Write how the first input row, or the prior's mean, changes along each latent dimension."""
    ending(out, *WRITERS)
    source = read_source(bundle, paths) if paths else None
    table = tables.traverse(bundle, source.rows if source else None, dims, span, steps)
    return _written(table, out, source.rejected if source else 0)


# ---------------------------------------------------------------- in and out


def read_source(bundle: Bundle, paths: Paths, rows: int = ROWS, seed: int = 0) -> Source:
    """Read the usable rows behind ``paths``; without paths, sample ``rows`` rows from the prior.

    Raises:
        DataError: the input is unreadable, or the model can use none of its rows.
    """
    if not paths:
        return Source(tables.sample_encoded(bundle, rows, seed), pa.table({}))
    given = read_for_model(bundle, paths, [bundle.manifest["config"]["data"].get("id")])
    table, batch = given.table, given.read(cast("TabularSchema", bundle.scorer.schema))
    if not batch.usable.any():
        reason = f"; the first: {batch.problems[0]}" if batch.problems else ""
        raise DataError(f"no row of the input can be used, of {len(batch)}{reason}")
    name, fit = bundle.manifest["config"]["data"].get("id"), np.flatnonzero(batch.usable)
    ids = table.select([name] if name in table.column_names else [])
    labels = _labels(table.take(fit), label_column(bundle))
    return Source(batch.take(fit), ids.take(fit), len(batch) - len(fit), labels)


def _labels(table: pa.Table, name: str) -> Labels:
    """Return the labels as text; empty if there is no such column."""
    values = table.column(name).to_pylist() if name in table.column_names else []
    return [None if value is None else str(value) for value in values]


def _each(
    function: Callable[[Bundle, Rows], pa.Table],
    bundle: Bundle,
    out: str | Path,
    paths: Paths,
    rows: int | None,
    seed: int,
) -> Summary:
    """Apply a function to each row and write the result, with the id as the first column."""
    ending(out, *WRITERS)
    source = read_source(bundle, paths, _count(rows), seed)
    table = function(bundle, source.rows)
    for name in source.ids.column_names:
        table = table.drop([name]) if name in table.column_names else table
        table = table.add_column(0, name, source.ids.column(name))
    return _written(table, out, source.rejected)


def _count(rows: int | None) -> int:
    return ROWS if rows is None else rows


def _written(table: pa.Table, out: str | Path, rejected: int = 0) -> Summary:
    write_table(table, out)
    return _summary(table, out, rejected)


def _summary(table: pa.Table, out: str | Path, rejected: int) -> Summary:
    columns = list(table.column_names)
    return {"out": str(out), "rows": len(table), "columns": columns, "rejected": rejected}
