"""Share what generating tables and images needs: output files and maps of latent space.

The commands are in `generate.tables` and `generate.images`. Each takes a loaded bundle, the file
to write and the input; without input, samples of the model take its place. It returns a
summary: the file, the number of rows or images written, and the number of unusable inputs.
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
"""Number of rows sampled if there is no input."""
MIN_P_VALUE = 1e-3
"""p-value below which all points of a map have the same colour."""
LABEL = "label"
"""Value of ``--color`` for labels, and the default name of the label column."""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
"""Colours of the most frequent labels, safe for the colour-blind (Okabe & Ito 2008)."""
OTHERS, GREY = "others", "#999999"
FLAGGED = "#d55e00"
FULL_SVD = 64
"""Number of rows or dimensions below which all principal components are computed."""

WRITERS: dict[str, Callable[[pa.Table, str], None]] = {
    ".parquet": pq.write_table,
    ".csv": pa.csv.write_csv,
}
PNG = ".png"


def ending(out: str | Path, *known: str) -> str:
    """Return the suffix of the output file in lower case, checked before any work is done.

    Raises:
        ConfigError: the suffix is none of those that are ``known`` here.
    """
    suffix = Path(out).suffix.lower()
    if suffix not in known:
        raise ConfigError(f"--out '{out}': the file must end in {' or '.join(known)}")
    return suffix


def write_table(table: pa.Table, out: str | Path) -> None:
    """Write a table in the format of the file's suffix, completely or not at all."""
    path = Path(out)
    with atomic_path(path) as whole:
        WRITERS[path.suffix.lower()](table, str(whole))


def label_column(bundle: Bundle) -> str:
    """Return the name of the label column."""
    return bundle.manifest["config"]["data"].get("label") or LABEL


# ---------------------------------------------------------------- the map


@dataclass(frozen=True, eq=False)
class Points:
    """N rows or images to show on a map, with their latent means and labels, if any."""

    x: Matrix
    """(N, F) encoded rows."""
    means: NDArray[np.float32]
    """(N, L) latent means."""
    unit: str
    """What the points are: ``rows`` or ``images``."""
    labels: Labels = ()


def check_colour(suffix: str, colour: str | None) -> None:
    """Check that a colour is given only for a map.

    Raises:
        ConfigError: the output is not a map.
    """
    if colour and suffix != PNG:
        raise ConfigError(f"--color {colour} is for maps; write to a file that ends in {PNG}")


def write_map(bundle: Bundle, points: Points, colour: str | None, out: str | Path) -> None:
    """Write `latent_map` to a PNG file."""
    figure = latent_map(bundle, points, colour)
    with atomic_path(Path(out)) as whole:
        figure.savefig(whole, format="png", dpi=120)


def latent_map(bundle: Bundle, points: Points, colour: str | None = None) -> Figure:
    """Draw latent means in the plane, with rings around flagged rows.

    Two latent dimensions are drawn as they are, more as their two principal components.

    Args:
        bundle: the model.
        points: the rows or images to show.
        colour: p_value, score or label; None for the p-value or, uncalibrated, the score.

    Raises:
        NotCalibratedError: p-values are asked for, and the model is not calibrated.
        DataError: labels are asked for, and the input has none.
    """
    figure = Figure((7.0, 6.0), layout="constrained")
    axes = figure.subplots()
    places, names = plane(points.means)
    scores = bundle.scorer.score_encoded(points.x)
    if colour == LABEL:
        _by_label(axes, places, points.labels, label_column(bundle))
    elif colour == "p_value" or (colour is None and bundle.calibration is not None):
        p_values = bundle.detector.decide(scores, points.x).p_value
        _scatter(
            figure, axes, places, np.log10(np.maximum(p_values, MIN_P_VALUE)), "log10 p-value", "_r"
        )
    else:
        _scatter(figure, axes, places, scores, "score", extend="both")
    if bundle.calibration is not None:
        _ring(axes, places[bundle.detector.decide(scores, points.x).is_anomaly])
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(f"{bundle.manifest['name']}, {len(places):,} {points.unit}")
    return figure


def plane(means: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """Project latent means (N, L) to the plane (N, 2); also return the names of the axes."""
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
    """Return the two largest singular values (2,) and their axes (2, L); fewer if N or L is 1."""
    if min(centred.shape) < FULL_SVD:
        _, singular, axes = np.linalg.svd(centred, full_matrices=False)
        return singular[:2], axes[:2]
    found: Any = svds(centred, 2, v0=np.ones(min(centred.shape)))  # computes only these two
    return found[1][::-1], found[2][::-1]


def _scatter(
    figure: Figure,
    axes: Axes,
    points: NDArray[Any],
    values: NDArray[Any],
    label: str,
    reverse: str = "",
    extend: Literal["neither", "both"] = "neither",
) -> None:
    """Draw points with the most anomalous on top; ``extend`` clips colours at percentiles."""
    order = np.argsort(-values if reverse else values, kind="stable")
    low, high = np.percentile(values, [1, 99] if extend == "both" else [0, 100])
    x, y = points[order].T
    cmap = f"cividis{reverse}"
    dots = axes.scatter(x, y, 8, values[order], cmap=cmap, vmin=low, vmax=high, linewidths=0)
    figure.colorbar(dots, ax=axes, label=label, extend=extend)


def _by_label(axes: Axes, points: NDArray[Any], labels: Labels, column: str) -> None:
    """Draw points by label, with rare labels on top."""
    names = label_colours(labels)
    if not names:
        raise DataError(f"--color label: no input has a '{column}'; give one with such a column")
    known = [name if name in names else OTHERS for name in labels]
    for name, colour in {OTHERS: GREY, **names}.items():
        x, y = points[[one == name for one in known]].T
        if len(x):
            axes.scatter(x, y, 10, colour, linewidths=0, label=f"{column} {name} ({len(x):,})")
    axes.legend(frameon=False)


def label_colours(labels: Labels) -> dict[str, str]:
    """Return the colours of the most frequent labels, the most frequent one first."""
    counts = Counter(sorted(label for label in labels if label is not None))
    frequent = [name for name, _ in counts.most_common(len(COLOURS))]
    return dict(zip(frequent, COLOURS, strict=False))


def _ring(axes: Axes, flagged: NDArray[Any]) -> None:
    if len(flagged):
        x, y = flagged.T
        rings = axes.scatter(x, y, 28, facecolors="none", edgecolors=FLAGGED, linewidths=0.8)
        rings.set_label(f"flagged ({len(flagged):,})")
        axes.legend(frameon=False)
