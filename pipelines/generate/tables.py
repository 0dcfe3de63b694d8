"""Rows that a trained model imagines, written to a file; see `generate`.

The ending of the file says what it becomes: ``.parquet``, ``.csv``, or for `latent` a ``.png``
map. The id column that the model was trained with is kept where the input has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.generation import tables
from anomaly_vae.generation.latent_space import Rows, Shape, encoded
from pipelines.datasets.files import find_files, read_table
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
    """The rows to work on, their ids (a table of one column or none), and how many do not fit."""

    rows: Rows
    ids: pa.Table
    rejected: int = 0
    labels: Labels = ()


def sample(bundle: Bundle, out: str | Path, rows: int | None = None, seed: int = 0) -> Summary:
    """Draw rows from the model."""
    ending(out, *WRITERS)
    return _written(tables.sample(bundle, _count(rows), seed), out)


def reconstruct(
    bundle: Bundle, out: str | Path, paths: Paths = (), rows: int | None = None, seed: int = 0
) -> Summary:
    """Each row as the model would have expected it."""
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
    """Each row with missing cells filled and corrupted ones replaced.

    Raises:
        ConfigError: a corruption, which only images can be given.
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
    """Each row's place in latent space, or a map of them; see `generate.latent_map`.

    Raises:
        ConfigError: a grid, which shows images, or a colour where no map is drawn.
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
    """The path from the first row of the input to the second."""
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
    """What each latent dimension does to the first row of the input, or to the prior's mean."""
    ending(out, *WRITERS)
    source = read_source(bundle, paths) if paths else None
    table = tables.traverse(bundle, source.rows if source else None, dims, span, steps)
    return _written(table, out, source.rejected if source else 0)


# ---------------------------------------------------------------- in and out


def read_source(bundle: Bundle, paths: Paths, rows: int = ROWS, seed: int = 0) -> Source:
    """The rows behind ``paths`` that fit the model, or ``rows`` samples without paths.

    Raises:
        DataError: unreadable input, or no row of it fits.
    """
    if not paths:
        return Source(tables.sample_encoded(bundle, rows, seed), pa.table({}))
    table = read_table(find_files(paths))
    batch = bundle.scorer.schema.from_arrow(table)
    if not batch.usable.any():
        reason = f"; the first: {batch.problems[0]}" if batch.problems else ""
        raise DataError(f"no row of the input can be used, of {len(batch)}{reason}")
    name, fit = bundle.manifest["config"]["data"].get("id"), np.flatnonzero(batch.usable)
    ids = table.select([name] if name in table.column_names else [])
    labels = _labels(table.take(fit), label_column(bundle))
    return Source(batch.take(fit), ids.take(fit), len(batch) - len(fit), labels)


def _labels(table: pa.Table, name: str) -> Labels:
    """The labels as text, none where there is no such column."""
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
    """Row in, row out, the id first."""
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
