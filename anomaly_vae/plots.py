"""Draw figures of fits and detectors with matplotlib, without global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from anomaly_vae.data.encoding import Cyclic, EncodedColumn, TabularEncoding
from anomaly_vae.evaluation.bootstrap import Ranking
from anomaly_vae.evaluation.metrics import Evaluation
from anomaly_vae.evaluation.p_values import UniformityPoint
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.evaluation.slices import ColumnSlice
from anomaly_vae.evaluation.what_if import ALPHAS, WhatIf
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.heatmaps import NO_LOCALIZATION, Scale
from anomaly_vae.scoring.detector import Detector, Explanation
from anomaly_vae.scoring.scorer import ScoreParts
from anomaly_vae.training.trainer import History

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#7f7f7f"  # Okabe & Ito 2008, colour-blind safe
MAX_COLUMNS = 30
"""Maximum number of columns or slices in a figure."""


def loss_curve(history: History) -> Figure:
    """Draw the ELBO and its two terms by epoch."""
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
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def score_histogram(
    detector: Detector, scores: NDArray[np.float64], anomaly: NDArray[np.bool_]
) -> Figure:
    """Draw the scores of normal and anomalous rows with the threshold."""
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
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def ranking(scores: NDArray[np.float64], anomaly: NDArray[np.bool_], figures: Evaluation) -> Figure:
    """Draw ROC and precision-recall curves with the threshold as a point."""
    hits, flagged = Ranking(scores, anomaly).curve()
    recall, false = hits / anomaly.sum(), (flagged - hits) / (~anomaly).sum()
    figure = Figure((9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, *false], [0, *recall], color=BLUE, linewidth=1.4)
    left.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    left.plot(figures.fpr, figures.recall, "o", color=ORANGE, label="threshold")
    left.set(xlabel="false positive rate", ylabel="recall", title=_title("AUROC", figures, "auroc"))
    right.plot(recall, hits / flagged, color=BLUE, linewidth=1.4, drawstyle="steps-pre")
    right.axhline(anomaly.mean(), color=GREY, linewidth=0.8, linestyle=":")
    if figures.precision is not None:
        right.plot(figures.recall, figures.precision, "o", color=ORANGE)
    title = _title("average precision", figures, "average_precision")
    right.set(xlabel="recall", ylabel="precision", title=title)
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), box_aspect=1)
        axes.title.set_fontsize(10)
    left.legend(frameon=False, loc="lower right")
    return figure


def _title(name: str, figures: Evaluation, key: str) -> str:
    """Return a title with a metric and its confidence interval."""
    low, high = getattr(figures, f"{key}_interval") or (np.nan, np.nan)
    return f"{name} {getattr(figures, key):.3f} ({low:.3f} to {high:.3f})"


def report_figures(report: EvaluationReport) -> dict[str, Figure]:
    """Draw the figures that an evaluation report contains enough data for, by name."""
    found: dict[str, Figure] = {}
    alpha = report.figures.alpha
    if report.p_values:
        found["p_values"] = p_values(report.p_values, alpha)
    if any(one.fpr for one in report.slices):
        found["slices"] = slices(report.slices, alpha)
    return found


def p_values(steps: Sequence[UniformityPoint], alpha: float) -> Figure:
    """Draw the share of normal rows with p-values up to each level, with the range of chance.

    Shares are divided by the level, so that uniform p-values give 1.
    """
    figure = Figure((7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    levels = np.array([step.level for step in steps])
    low, share, high = (
        np.array([getattr(step, end) for step in steps]) / levels
        for end in ("low", "share", "high")
    )
    axes.fill_between(levels, low, high, color=GREY, alpha=0.25, label="what chance explains")
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.plot(
        levels, share, "o-", color=BLUE, linewidth=1.2, markersize=4, label="normal test rows"
    )
    axes.axvline(alpha, color="black", linewidth=1.0, linestyle=":", label=f"alpha = {alpha:g}")
    axes.set(xscale="log", xlabel="level", ylabel="share with p ≤ level, divided by level")
    axes.set_ylim(0, max(2.0, 1.1 * float(share.max()), min(1.1 * float(high.max()), 4.0)))
    axes.legend(frameon=False)
    return figure


def slices(found: Sequence[ColumnSlice], alpha: float) -> Figure:
    """Draw the false positive rate of each slice with its interval and its limit."""
    shown = [(one, one.fpr) for one in found if one.fpr][:MAX_COLUMNS]
    figure = Figure((7.0, 1.2 + 0.28 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, (one, rate) in enumerate(shown):
        colour = ORANGE if one.drifted else BLUE
        axes.plot([rate.low, rate.high], [place, place], color=colour, linewidth=1.2)
        axes.plot(rate.value, place, "o", color=colour, markersize=5)
        if one.limit is not None:
            axes.plot(one.limit, place, "|", color="black", markersize=10)
    axes.axvline(alpha, color="black", linewidth=1.0, linestyle=":")
    names = [plain(f"{one.name} ({rate.total:,})") for one, rate in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=f"false positive rate (dotted: alpha = {alpha:g}; bar: the limit of chance)")
    axes.set_xlim(left=0)
    return figure


def what_if(rows: Sequence[WhatIf], entity: str | None = None) -> Figure:
    """Draw alerts, precision and recall, and cost by alpha, each with its interval.

    Args:
        rows: what each alpha comes to, in ascending order.
        entity: name of the entities that are counted by day.
    """
    drawn = [
        (label, series)
        for label, series in _panels(rows, entity).items()
        if any(_known(rows, key) for key in series)
    ]
    figure = Figure((7.0, 0.6 + 3.2 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    now = next(row.alpha for row in rows if row.current)
    for axes, (label, series) in zip(panels, drawn, strict=True):
        for (key, name), colour in zip(series.items(), (BLUE, ORANGE), strict=False):
            _with_band(axes, _known(rows, key), key, plain(name), colour)
        axes.axvline(now, color="black", linewidth=1.0, linestyle=":", label=f"now: {now:.3g}")
        axes.set(xscale="log", ylabel=label)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    if panels[0].dataLim.y0 >= 1:
        panels[0].set_yscale("log")
    else:  # there is room for zero
        panels[0].set_yscale("symlog", linthresh=1)
        panels[0].set_ylim(bottom=0)
    panels[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    usual = [row.alpha for row in rows if row.alpha in ALPHAS] or [now]
    panels[-1].set_xticks(usual, [f"{alpha:g}" for alpha in usual])
    panels[-1].xaxis.set_minor_locator(NullLocator())
    per_day = _known(rows, "alerts_per_day")
    bands = "where 95 of 100 future days lie" if per_day else "95% intervals"
    panels[-1].set_xlabel(f"alpha (bands: {bands})")
    return figure


def _panels(rows: Sequence[WhatIf], entity: str | None) -> dict[str, dict[str, str]]:
    """Return the figures of each panel and their names, by the label of the panel."""
    alerts = {"alerts in 1,000 rows": {"alerts_per_1000": "rows"}}
    if _known(rows, "alerts_per_day"):
        alerts = {"alerts a day": {"alerts_per_day": "rows", "entities_per_day": f"{entity}"}}
    by_day = _known(rows, "cost_per_day")
    cost = {"cost a day": "cost_per_day"} if by_day else {"cost per 1,000 rows": "cost_per_1000"}
    rates = {"precision": "precision: share of flags that are anomalies",
             "recall": "recall: share of anomalies that are flagged"}  # fmt: skip
    return {**alerts, "share": rates, **{label: {key: "cost"} for label, key in cost.items()}}


def _known(rows: Sequence[WhatIf], key: str) -> list[WhatIf]:
    return [row for row in rows if getattr(row, key) is not None]


def _with_band(axes: Any, rows: Sequence[WhatIf], key: str, name: str, colour: str) -> None:
    """Draw a figure by alpha, and a band of its intervals where there are some."""
    if not rows:
        return
    alpha = [row.alpha for row in rows]
    axes.plot(
        alpha, [getattr(row, key) for row in rows], "o-", color=colour, linewidth=1.4,
        markersize=4, label=name,
    )  # fmt: skip
    ends = [(row.alpha, *interval) for row in rows if (interval := row.interval(key))]
    if ends:
        axes.fill_between(*zip(*ends, strict=True), color=colour, alpha=0.18, linewidth=0)


def reconstructions(
    encoding: TabularEncoding | ImageEncoding,
    explained: ScoreParts,
    titles: Sequence[str],
    scale: Scale | None = None,
) -> Figure:
    """Draw observed and expected values of a few rows or images.

    Args:
        encoding: the model's encoding.
        explained: scores and their parts.
        titles: one title for each row or image that is drawn.
        scale: for images: whether maps show where anomalies are, and whether pixels are expected;
            what is not so is not drawn.
    """
    if isinstance(encoding, ImageEncoding):
        return _images(encoding, explained, titles, scale)
    return _columns(encoding, explained, titles)


def _images(
    encoding: ImageEncoding, explained: ScoreParts, titles: Sequence[str], scale: Scale | None
) -> Figure:
    """Draw each image, its expected image, and the map that adds up to its score."""
    count, side = min(len(titles), len(explained.score)), encoding.layout.size
    figure = Figure((7.0, 2.5 * count), layout="constrained")
    seen, expected = encoding.to_images(explained.observed), encoding.to_images(explained.expected)
    maps = explained.nats[:count].reshape(count, side, side)
    low, high = np.percentile(maps, [1, 99.8])
    pictures = (seen, expected) if scale is None or scale.expects else (seen,)
    for row, axes in enumerate(figure.subplots(count, len(pictures) + 1, squeeze=False)):
        for place, picture in zip(axes, (each[row] for each in pictures), strict=False):
            place.imshow(np.moveaxis(picture, 0, -1).squeeze(), "gray", vmin=0, vmax=1)
        if scale is None or scale.localizes:
            axes[-1].imshow(maps[row], "cividis", vmin=low, vmax=high)
        else:
            axes[-1].text(0.5, 0.5, NO_LOCALIZATION, ha="center", fontsize=8)
        axes[0].set_title(plain(titles[row]), fontsize=8, loc="left")
        for place in axes:
            place.set_axis_off()
    return figure


def _columns(encoding: TabularEncoding, explained: ScoreParts, titles: Sequence[str]) -> Figure:
    """Draw observed and expected values of standardised columns."""
    count = min(len(titles), len(explained.score))
    numeric = min(encoding.layout.n_numeric + encoding.layout.n_binary, MAX_COLUMNS)
    names = [plain(name) for column in encoding.columns for name in _labels(column)][:numeric]
    figure = Figure((9.0, 1.2 + 1.5 * count), layout="constrained")
    place = np.arange(numeric)
    for row, axes in enumerate(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]):
        observed, expected = explained.observed[row, :numeric], explained.expected[row, :numeric]
        axes.vlines(place, observed, expected, color=GREY, linewidth=1)
        axes.plot(place, observed, "o", color=ORANGE, markersize=4, label="observed")
        axes.plot(place, expected, "_", color=BLUE, markersize=9, mew=2, label="expected")
        axes.set_title(plain(titles[row]), fontsize=9, loc="left")
        axes.set_ylabel("standardised", fontsize=8)
    figure.axes[-1].set_xticks(place, names, rotation=60, ha="right", fontsize=7)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    return figure


def _labels(column: EncodedColumn) -> tuple[str, ...]:
    """Return the label of each number of a column; a time is a point on a circle."""
    if isinstance(column, Cyclic):
        return f"{column.label}, sine", f"{column.label}, cosine"
    return (column.label,) * column.width


def contributions(
    found: Mapping[str, Explanation], complete: bool = True, unit: str = "nats"
) -> Figure:
    """Draw what each score is made of: columns, the other columns together, the KL term.

    Args:
        found: title → explanation of one row; observed and expected values stand beside the bars.
        complete: False draws only the columns that raise the score, for reviewers.
        unit: the unit of the scores.
    """
    drawn_bars = {title: _bars(one, complete) for title, one in found.items()}
    bars = [max(len(one), 1) for one in drawn_bars.values()]
    figure = Figure((9.0, 0.6 * len(bars) + 0.36 * sum(bars)), layout="constrained")
    panels = figure.subplots(len(bars), 1, sharex=True, squeeze=False, height_ratios=bars)
    for axes, (title, one) in zip(panels[:, 0], drawn_bars.items(), strict=True):
        colours = [GREY if name in TERMS else ORANGE for name in one]
        drawn = axes.barh(list(one), list(one.values()), color=colours, height=0.7)
        axes.bar_label(drawn, fmt="%+.1f", padding=3, fontsize=8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(plain(title), fontsize=10, loc="left")
        axes.tick_params("y", labelsize=8)
        axes.margins(x=0.1)
        axes.invert_yaxis()
    figure.axes[-1].set_xlabel(f"contribution to the score, {unit}")
    return figure


TERMS = ("other columns", "KL term")
"""Names of the parts of a score that belong to no listed column."""


def _bars(one: Explanation, complete: bool) -> dict[str, float]:
    """Return the length of each bar by name, in the unit of the score."""
    columns = {
        plain(f"{c.feature}\nobserved {_value(c.observed)}, expected {_value(c.expected)}"): c.nats
        for c in one.contributions
        if complete or c.nats > 0
    }
    return columns | (dict(zip(TERMS, (one.rest, one.kl), strict=True)) if complete else {})


def plain(text: str) -> str:
    """Return text for a figure, in which a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def _value(value: object) -> str:
    """Write one observed or expected value for a label."""
    if value is None:
        return "missing"
    try:
        return f"{float(value):.4g}"  # type: ignore[arg-type]  # text, too
    except ValueError:
        return str(value)


def _focus(axes: object, values: Sequence[float]) -> None:
    """Exclude the first, extreme epochs from the range of the axis."""
    low, high = np.percentile(values, [2, 100])
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)  # type: ignore[attr-defined]  # an Axes
