"""What generating tables and generating images share: files by their ending, and maps of latents.

The commands are in `generate_tables` and `generate_images`. Each takes a loaded bundle, where to
write and where to read; without input, samples from the model's prior take its place. It returns
what happened: the file, how many rows or images were made, and how many of the input were left
out because they cannot be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.files import atomic_path

Paths = Sequence[str]
Summary = dict[str, Any]
Labels = Sequence[str | None]

ROWS = 100
"""Rows sampled from the prior where there is no input."""
LEAST_P = 1e-3
"""Smaller p-values share the last colour of the map."""
LABEL = "label"
"""The colour of a map that is not a number, and the usual name of the column behind it."""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
"""Of the most frequent labels (Okabe & Ito 2008, safe for the colour-blind)."""
OTHERS, GREY = "others", "#999999"
FLAGGED = "#d55e00"
DIRECT = 64
"""With fewer rows or dimensions than this, all principal components are computed."""

WRITERS: dict[str, Callable[[pa.Table, str], None]] = {
    ".parquet": pq.write_table,
    ".csv": pa.csv.write_csv,
}
PNG = ".png"


def ending(out: str | Path, *known: str) -> str:
    """How ``out`` ends, in lower case; asked before any work is done.

    Raises:
        ConfigError: with none of the endings that are ``known`` here.
    """
    suffix = Path(out).suffix.lower()
    if suffix not in known:
        raise ConfigError(f"--out '{out}': the file must end in {' or '.join(known)}")
    return suffix


def write_table(table: pa.Table, out: str | Path) -> None:
    """A table in the format of its ending, whole or not at all."""
    path = Path(out)
    with atomic_path(path) as whole:
        WRITERS[path.suffix.lower()](table, str(whole))


def label_column(bundle: Bundle) -> str:
    """What the column with the labels is called."""
    return bundle.manifest["config"]["data"].get("label") or LABEL


# ---------------------------------------------------------------- the map


@dataclass(frozen=True, eq=False)
class Points:
    """What a map shows: N rows or images, encoded, their latents, their labels if any."""

    x: Matrix
    """(N, F)"""
    means: NDArray[np.float32]
    """(N, L)"""
    unit: str
    """rows or images"""
    labels: Labels = ()


def check_colour(suffix: str, colour: str | None) -> None:
    """Refuse a colour where no map is drawn.

    Raises:
        ConfigError: see above.
    """
    if colour and suffix != PNG:
        raise ConfigError(f"--color {colour} is for maps; write to a file that ends in {PNG}")


def write_map(bundle: Bundle, points: Points, colour: str | None, out: str | Path) -> None:
    """Draw `latent_map` into a file."""
    figure = latent_map(bundle, points, colour)
    with atomic_path(Path(out)) as whole:
        figure.savefig(whole, format="png", dpi=120)


def latent_map(bundle: Bundle, points: Points, colour: str | None = None) -> Figure:
    """Latent means in the plane, flagged ones ringed.

    Two dimensions as they are; more by their two principal components.

    Args:
        bundle: the model.
        points: what to show.
        colour: p_value, score or label; None: the p-value or, uncalibrated, the score.

    Raises:
        NotCalibratedError: p-values are asked for and there are none.
        DataError: labels are asked for and there are none.
    """
    figure = Figure((7.0, 6.0), layout="constrained")
    axes = figure.subplots()
    places, names = plane(points.means)
    scores = bundle.scorer.score_encoded(points.x)
    if colour == LABEL:
        _by_label(axes, places, points.labels, label_column(bundle))
    elif colour == "p_value" or (colour is None and bundle.calibration is not None):
        p_values = bundle.detector.decide(scores, points.x).p_value
        _scatter(axes, places, np.log10(np.maximum(p_values, LEAST_P)), "log10 p-value", "_r")
    else:
        _scatter(axes, places, scores, "score", extend="both")
    if bundle.calibration is not None:
        _ring(axes, places[bundle.detector.decide(scores, points.x).is_anomaly])
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(f"{bundle.manifest['name']}, {len(places):,} {points.unit}")
    return figure


def plane(means: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """(N, L) → (N, 2) and what the axes are called."""
    z = means.astype(np.float64)
    if z.shape[1] <= 2:
        return np.pad(z, ((0, 0), (0, 2 - z.shape[1]))), ("z0", "z1" if z.shape[1] == 2 else "")
    centred = z - z.mean(0)
    singular, axes = _leading(centred)
    share = singular**2 / max(float(np.sum(centred**2)), 1e-300)
    points = np.zeros((len(z), 2))
    points[:, : len(axes)] = centred @ axes.T
    share = np.pad(share, (0, 2))
    return points, (f"component 1 ({share[0]:.0%})", f"component 2 ({share[1]:.0%})")


def _leading(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two largest singular values (2,) with their axes (2, L); fewer of fewer rows."""
    if min(centred.shape) < DIRECT:
        _, singular, axes = np.linalg.svd(centred, full_matrices=False)
        return singular[:2], axes[:2]
    found: Any = svds(centred, 2, v0=np.ones(min(centred.shape)))  # of thousands, only these
    return found[1][::-1], found[2][::-1]


def _scatter(
    axes: Axes,
    points: NDArray[Any],
    values: NDArray[Any],
    label: str,
    reverse: str = "",
    extend: Literal["neither", "both"] = "neither",
) -> None:
    """The unlikely last, so that they lie on top; ``extend`` the colours beyond the percentiles."""
    order = np.argsort(-values if reverse else values, kind="stable")
    low, high = np.percentile(values, [1, 99] if extend == "both" else [0, 100])
    x, y = points[order].T
    cmap = f"cividis{reverse}"
    dots = axes.scatter(x, y, 8, values[order], cmap=cmap, vmin=low, vmax=high, linewidths=0)
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.colorbar(dots, ax=axes, label=label, extend=extend)


def _by_label(axes: Axes, points: NDArray[Any], labels: Labels, column: str) -> None:
    """The most frequent first, so that the rare lie on top."""
    names = named(labels)
    if not names:
        raise DataError(f"--color label: no input has a '{column}'; give one with such a column")
    known = [name if name in names else OTHERS for name in labels]
    for name, colour in {OTHERS: GREY, **names}.items():
        x, y = points[[one == name for one in known]].T
        if len(x):
            axes.scatter(x, y, 10, colour, linewidths=0, label=f"{column} {name} ({len(x):,})")
    axes.legend(frameon=False)


def named(labels: Labels) -> dict[str, str]:
    """The most frequent labels, most frequent first → their colours."""
    counts = Counter(sorted(label for label in labels if label is not None))
    frequent = [name for name, _ in counts.most_common(len(COLOURS))]
    return dict(zip(frequent, COLOURS, strict=False))


def _ring(axes: Axes, flagged: NDArray[Any]) -> None:
    if len(flagged):
        x, y = flagged.T
        rings = axes.scatter(x, y, 28, facecolors="none", edgecolors=FLAGGED, linewidths=0.8)
        rings.set_label(f"flagged ({len(flagged):,})")
        axes.legend(frameon=False)
