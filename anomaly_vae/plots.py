"""Figures of a fit and of a detector, drawn without any global state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomaly_vae.detector import Detector
from anomaly_vae.encoding import TabularEncoding
from anomaly_vae.images import ImageEncoding
from anomaly_vae.scoring import Explained
from anomaly_vae.training import History

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#7f7f7f"  # Okabe & Ito 2008, colour-blind safe
MOST_COLUMNS = 30


def loss_curve(history: History) -> Figure:
    """The ELBO and its two terms by epoch."""
    figure = Figure((7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    epochs = [e.epoch + 1 for e in history.epochs]
    lines: tuple[tuple[str, list[float], str, str], ...] = (
        ("ELBO, validation", [e.validation_elbo for e in history.epochs], BLUE, "-"),
        ("log p(x|z), validation", [e.validation_log_prob for e in history.epochs], GREY, "--"),
        ("−KL, validation", [-e.validation_kl for e in history.epochs], GREY, ":"),
        ("ELBO, training", [e.train_log_prob - e.train_kl for e in history.epochs], ORANGE, "-"),
    )
    for label, values, colour, style in lines:
        axes.plot(epochs, values, style, color=colour, label=label, linewidth=1.4)
    axes.axvline(history.best_epoch + 1, color=BLUE, linewidth=0.8, alpha=0.5)
    axes.set(xlabel="epoch (the line marks the one kept)", ylabel="nats per row")
    _focus(axes, [value for _, values, _, _ in lines for value in values[len(values) // 10 :]])
    axes.legend(frameon=False)
    return figure


def score_histogram(
    detector: Detector, scores: NDArray[np.float64], anomaly: NDArray[np.bool_]
) -> Figure:
    """Scores of normal and anomalous rows with the threshold between them."""
    figure = Figure((7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    threshold, alpha = detector.calibration.threshold, detector.calibration.alpha
    low, high = np.percentile(scores, [0.1, 99.9])
    bins = np.linspace(min(low, threshold), max(high, threshold), 41).tolist()
    inside = np.clip(scores, bins[0], bins[-1])
    for mask, label, colour in ((~anomaly, "normal", BLUE), (anomaly, "anomaly", ORANGE)):
        if mask.any():
            axes.hist(
                inside[mask],
                bins,
                density=True,
                histtype="stepfilled",
                alpha=0.5,
                color=colour,
                label=f"{label} ({mask.sum():,})",
            )
    axes.axvline(threshold, color="black", linewidth=1.2, label=f"threshold, alpha = {alpha:g}")
    axes.set(xlabel=f"score, {detector.unit} (tails collected in the last bins)", ylabel="density")
    axes.legend(frameon=False)
    return figure


def reconstructions(
    encoding: TabularEncoding | ImageEncoding, explained: Explained, titles: Sequence[str]
) -> Figure:
    """What was observed and what the model expected, for a few rows or images."""
    if isinstance(encoding, ImageEncoding):
        return _images(encoding, explained, titles)
    return _columns(encoding, explained, titles)


def _images(encoding: ImageEncoding, explained: Explained, titles: Sequence[str]) -> Figure:
    """Each image, the one expected in its place, and the map that adds up to its score."""
    count, side = min(len(titles), len(explained.score)), encoding.layout.size
    figure = Figure((7.0, 2.5 * count), layout="constrained")
    seen, expected = encoding.pictures(explained.observed), encoding.pictures(explained.expected)
    maps = explained.nats[:count].reshape(count, side, side)
    low, high = np.percentile(maps, [1, 99.8])
    for row, axes in enumerate(figure.subplots(count, 3, squeeze=False)):
        for place, picture in zip(axes, (seen[row], expected[row]), strict=False):
            place.imshow(np.moveaxis(picture, 0, -1).squeeze(), "gray", vmin=0, vmax=1)
        axes[2].imshow(maps[row], "cividis", vmin=low, vmax=high)
        axes[0].set_title(titles[row], fontsize=8, loc="left")
        for place in axes:
            place.set_axis_off()
    return figure


def _columns(encoding: TabularEncoding, explained: Explained, titles: Sequence[str]) -> Figure:
    """Observed and expected, standardised."""
    count = min(len(titles), len(explained.score))
    numeric = min(encoding.layout.n_numeric + encoding.layout.n_binary, MOST_COLUMNS)
    names = [c.label for c in encoding.columns for _ in range(c.width)][:numeric]
    figure = Figure((9.0, 1.2 + 1.5 * count), layout="constrained")
    for row, axes in enumerate(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]):
        place = np.arange(numeric)
        observed, expected = explained.observed[row, :numeric], explained.expected[row, :numeric]
        axes.vlines(place, observed, expected, color=GREY, linewidth=1)
        axes.plot(place, observed, "o", color=ORANGE, markersize=4, label="observed")
        axes.plot(place, expected, "_", color=BLUE, markersize=9, mew=2, label="expected")
        axes.set_title(titles[row], fontsize=9, loc="left")
        axes.set_ylabel("standardised", fontsize=8)
        axes.set_xticks(place, names, rotation=60, ha="right", fontsize=7)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    return figure


def _focus(axes: object, values: Sequence[float]) -> None:
    """Leave the first wild epochs out of the picture."""
    low, high = np.percentile(values, [2, 100])
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)  # type: ignore[attr-defined]  # an Axes
