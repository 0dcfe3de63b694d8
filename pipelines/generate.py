"""Rows that a trained model imagines, written to a file.

Each function takes a loaded bundle, where to write and where to read; without input, rows
sampled from the model's prior take its place. It returns what happened: the file, the rows and
columns written, and how many rows of the input were left out because they do not fit the schema.
The ending of the file says what it becomes: ``.parquet``, ``.csv``, or for `latent` a ``.png``
map. The id column that the model was trained with is kept where the input has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomaly_vae import generation
from anomaly_vae.bundle import Bundle
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.files import atomic_path
from pipelines.io import find_files, read_table

Paths = Sequence[str]
Summary = dict[str, Any]

ROWS = 100
"""Rows sampled from the prior where there is no input."""
LEAST_P = 1e-3
"""Smaller p-values share the last colour of the map."""


@dataclass(frozen=True, eq=False)
class Source:
    """The rows to work on, their ids (a table of one column or none), and how many do not fit."""

    rows: generation.Rows
    ids: pa.Table
    rejected: int = 0


def sample(bundle: Bundle, out: str | Path, rows: int = ROWS, seed: int = 0) -> Summary:
    """Draw rows from the model."""
    write = writer(out)
    return _summary(write(generation.sample(bundle, rows, seed)), out)


def reconstruct(
    bundle: Bundle, out: str | Path, paths: Paths = (), rows: int = ROWS, seed: int = 0
) -> Summary:
    """Each row as the model would have expected it."""
    return _each(generation.reconstruct, bundle, out, paths, rows, seed)


def denoise(
    bundle: Bundle, out: str | Path, paths: Paths = (), rows: int = ROWS, seed: int = 0
) -> Summary:
    """Each row with missing cells filled and corrupted ones replaced."""
    return _each(generation.denoise, bundle, out, paths, rows, seed)


def latent(
    bundle: Bundle, out: str | Path, paths: Paths = (), rows: int = ROWS, seed: int = 0
) -> Summary:
    """Each row's place in latent space, or a map of them."""
    if Path(out).suffix.lower() != ".png":
        return _each(generation.latent, bundle, out, paths, rows, seed, also=" or .png")
    source = read_source(bundle, paths, rows, seed)
    table = generation.latent(bundle, source.rows)
    figure = latent_map(bundle, source.rows, np.column_stack([c.to_numpy() for c in table.columns]))
    with atomic_path(Path(out)) as whole:
        figure.savefig(whole, format="png", dpi=120)
    return _summary(table, out, source.rejected)


def interpolate(
    bundle: Bundle, out: str | Path, paths: Paths = (), steps: int = 9, seed: int = 0
) -> Summary:
    """The path from the first row of the input to the second."""
    write, source = writer(out), read_source(bundle, paths, 2, seed)
    table = generation.interpolate(bundle, source.rows, steps=steps)
    return _summary(write(table), out, source.rejected)


def traverse(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    dims: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 7,
) -> Summary:
    """What each latent dimension does to the first row of the input, or to the prior's mean."""
    write = writer(out)
    source = read_source(bundle, paths) if paths else None
    table = generation.traverse(bundle, source.rows if source else None, dims, span, steps)
    return _summary(write(table), out, source.rejected if source else 0)


# ---------------------------------------------------------------- in and out


def read_source(bundle: Bundle, paths: Paths, rows: int = ROWS, seed: int = 0) -> Source:
    """The rows behind ``paths`` that fit the model, or ``rows`` samples without paths.

    Raises:
        DataError: unreadable input, or no row of it fits.
    """
    if not paths:
        return Source(generation.sample_encoded(bundle, rows, seed), pa.table({}))
    table = read_table(find_files(paths))
    batch = bundle.scorer.schema.from_arrow(table)
    if not batch.usable.any():
        reason = f"; the first: {batch.problems[0]}" if batch.problems else ""
        raise DataError(f"no row of the input can be used, of {len(batch)}{reason}")
    name = bundle.manifest["config"]["data"].get("id")
    ids = table.select([name] if name in table.column_names else [])
    fit = np.flatnonzero(batch.usable)
    return Source(batch.take(fit), ids.take(fit), len(batch) - len(fit))


def writer(out: str | Path, also: str = "") -> Callable[[pa.Table], pa.Table]:
    """What writes a table to ``out`` and returns it, chosen before any work is done.

    Raises:
        ConfigError: the file's ending is neither .parquet nor .csv.
    """
    path = Path(out)
    write = {".parquet": pq.write_table, ".csv": pa.csv.write_csv}.get(path.suffix.lower())
    if write is None:
        raise ConfigError(f"--out '{out}': the file must end in .parquet or .csv{also}")

    def write_whole(table: pa.Table) -> pa.Table:
        with atomic_path(path) as whole:
            write(table, str(whole))
        return table

    return write_whole


def _each(
    function: Callable[[Bundle, generation.Rows], pa.Table],
    bundle: Bundle,
    out: str | Path,
    paths: Paths,
    rows: int,
    seed: int,
    also: str = "",
) -> Summary:
    """Row in, row out, the id first."""
    write, source = writer(out, also), read_source(bundle, paths, rows, seed)
    table = function(bundle, source.rows)
    for name in source.ids.column_names:
        table = table.drop([name]) if name in table.column_names else table
        table = table.add_column(0, name, source.ids.column(name))
    return _summary(write(table), out, source.rejected)


def _summary(table: pa.Table, out: str | Path, rejected: int = 0) -> Summary:
    columns = list(table.column_names)
    return {"out": str(out), "rows": len(table), "columns": columns, "rejected": rejected}


# ---------------------------------------------------------------- the map


def latent_map(bundle: Bundle, rows: generation.Rows, means: NDArray[np.float32]) -> Figure:
    """Latent means (N, L) in the plane, coloured by p-value, flagged rows ringed.

    Two dimensions as they are; more by their two principal components. An uncalibrated model
    has no p-values: colour is the score.
    """
    figure = Figure((7.0, 6.0), layout="constrained")
    axes = figure.subplots()
    points, labels = plane(means)
    scores = bundle.scorer.score_encoded(generation.encoded(bundle, rows).numpy())
    if bundle.calibration is None:
        _scatter(axes, points, scores, "score, nats")
    else:
        p_values = bundle.calibration.p_values(scores)
        _scatter(axes, points, np.log10(np.maximum(p_values, LEAST_P)), "log10 p-value", "_r")
        _ring(axes, points[bundle.calibration.flags(scores)])
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_title(f"{bundle.manifest['name']}, {len(points):,} rows")
    return figure


def plane(means: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """(N, L) → (N, 2) and what the axes are called."""
    z = means.astype(np.float64)
    if z.shape[1] <= 2:
        return np.pad(z, ((0, 0), (0, 2 - z.shape[1]))), ("z0", "z1" if z.shape[1] == 2 else "")
    centred = z - z.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    share = singular**2 / max(float(np.sum(singular**2)), 1e-300)
    points = np.zeros((len(z), 2))
    points[:, : min(2, len(axes))] = centred @ axes[:2].T
    share = np.pad(share, (0, 2))
    return points, (f"component 1 ({share[0]:.0%})", f"component 2 ({share[1]:.0%})")


def _scatter(
    axes: Axes, points: NDArray[Any], values: NDArray[Any], label: str, reverse: str = ""
) -> None:
    """The unlikely last, so that they lie on top."""
    order = np.argsort(-values if reverse else values, kind="stable")
    x, y = points[order].T
    dots = axes.scatter(x, y, 8, values[order], cmap=f"cividis{reverse}", linewidths=0)
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.colorbar(dots, ax=axes, label=label)


def _ring(axes: Axes, flagged: NDArray[Any]) -> None:
    if len(flagged):
        x, y = flagged.T
        rings = axes.scatter(x, y, 28, facecolors="none", edgecolors="#d55e00", linewidths=0.8)
        rings.set_label(f"flagged ({len(flagged):,})")
        axes.legend(frameon=False)
