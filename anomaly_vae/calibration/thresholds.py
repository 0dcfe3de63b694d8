"""Choose a threshold by any method.

All methods store the same: the threshold, the sorted scores of normal rows, on which p-values are
computed, and the figures that the method reports. docs/thresholds.md describes the guarantee of
each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from anomaly_vae.calibration.conformal import (
    Calibration,
    Groups,
    check_resolvable,
    check_weights,
    conformal_threshold,
    effective_rows,
    flagged_ranks,
    quantile_threshold,
    scores_needed,
    weighted_threshold,
)
from anomaly_vae.calibration.contamination_test import contamination_test
from anomaly_vae.calibration.operating_points import (
    budget,
    check_budget,
    check_labels,
    cost,
    fbeta,
    recall_at_precision,
)
from anomaly_vae.calibration.sample import CalibrationSample, ThresholdChoice
from anomaly_vae.calibration.tail_methods import (
    MIN_EXCESSES,
    certified,
    certified_needed,
    check_certifiable,
    check_tail,
    evt,
)
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.errors import CalibrationError
from anomaly_vae.messages import listed
from anomaly_vae.types import Method

__all__ = ["choose_threshold"]


def choose_threshold(sample: CalibrationSample, config: CalibrationConfig) -> Calibration:
    """Choose the threshold by the configured method, and one for each group with enough rows.

    For methods without alpha in their configuration, alpha is computed from the threshold: a new
    normal row is flagged with probability (1 + #{normal > threshold}) / (n + 1) or less.

    Raises:
        CalibrationError: the sample does not suffice; the message says what is needed, and what
            other settings are possible.

    >>> from anomaly_vae.calibration.sample import CalibrationSample
    >>> from anomaly_vae.config import CalibrationConfig
    >>> sample = CalibrationSample.from_scores(range(1, 101))
    >>> choose_threshold(sample, CalibrationConfig(method="conformal", alpha=0.05)).threshold
    96.0
    >>> certified = CalibrationConfig(method="certified", alpha=0.05, delta=0.1)
    >>> choose_threshold(sample, certified).threshold
    99.0
    """
    check_sample(sample, config)
    chosen = _choose_for_rows(sample, config)
    if sample.losses:
        found = contamination_test(*sample.losses, sample.normal)
        chosen = _add_figures(chosen, {"contamination": found.to_json()}, found.note)
    return chosen if sample.levels is None else _add_groups(chosen, sample, config)


def _choose_for_rows(sample: CalibrationSample, config: CalibrationConfig) -> Calibration:
    """Choose the threshold of rows that passed `check_rows`."""
    kept = sample.trimmed(config.trim_scores)
    choice = METHODS[config.method](kept, config)
    chosen = Calibration(
        config.method, config.alpha, choice.threshold, kept.normal, choice.figures, kept.weights
    )
    if not config.promises_alpha:
        chosen = replace(chosen, alpha=flagged_ranks(chosen) / (sample.n + 1))
    return _note_trimming(chosen, sample.n) if kept.n < sample.n else chosen


def _note_trimming(chosen: Calibration, n: int) -> Calibration:
    """Add a note on trimming the highest of n rows.

    Alpha then only holds if all trimmed rows were anomalies.
    """
    trimmed = n - len(chosen.scores)
    alpha_if_clean = (trimmed + flagged_ranks(chosen)) / (n + 1)
    note = (
        f"calibration.trim_scores left out the {trimmed} highest of {n} rows: "
        f"alpha {chosen.alpha:g} holds if all of these were anomalies, and {alpha_if_clean:.3g} "
        "in its place if none was"
    )
    return _add_figures(chosen, {"trimmed": trimmed, "alpha_if_clean": alpha_if_clean}, note)


def _add_groups(
    pooled: Calibration, sample: CalibrationSample, config: CalibrationConfig
) -> Calibration:
    """Add a calibration for each level that has enough rows."""
    assert sample.levels, "the sample has no groups"
    assert config.group_by, "groups are levels of a column"
    own, small = {}, {}
    for level, rows in level_sizes(sample).items():
        selected = sample.select_level(level)
        try:
            check_rows(selected, config)
            own[level] = _choose_for_rows(selected, config)
        except CalibrationError:
            small[level] = rows
    figures = {"small_groups": small, "ungrouped": int((sample.levels.codes < 0).sum())}
    note = (
        f"calibration.group_by: too few rows for a threshold of its own in {listed(list(small))}; "
        "rows of these get that of all, which promises nothing of one level alone"
    )
    grouped = replace(pooled, groups=Groups(config.group_by, own))
    return _add_figures(grouped, figures, note if small else "")


def level_sizes(sample: CalibrationSample) -> dict[str, int]:
    """Return the number of normal rows of each group that has any."""
    assert sample.levels, "the sample has no groups"
    names, codes = sample.levels.names, sample.levels.codes
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    return {name: rows for name, rows in zip(names, counts, strict=True) if rows}


def _add_figures(chosen: Calibration, figures: Mapping[str, Any], note: str = "") -> Calibration:
    """Return a copy with further figures and another note."""
    notes = [text for text in (chosen.figures.get("note"), note) if text]
    joined = {"note": "; ".join(notes)} if notes else {}
    return replace(chosen, figures={**chosen.figures, **figures, **joined})


def rows_needed(config: CalibrationConfig) -> int:
    """Return the fewest normal rows that the method accepts, apart from traffic budgets."""
    match config.method:
        case "certified":
            return certified_needed(config.alpha, config.delta)
        case "evt":
            return math.ceil(MIN_EXCESSES / config.tail)
    return scores_needed(config.alpha) if config.promises_alpha else 2


def check_sample(sample: CalibrationSample, config: CalibrationConfig) -> None:
    """Check that the number of rows suffices, which is known before training.

    Raises:
        CalibrationError: it does not; the message says what is needed.
    """
    check_rows(sample, config)
    if sample.levels is None:
        return
    needed, sizes = rows_needed(config), level_sizes(sample)
    largest = max(sizes, key=lambda level: sizes[level], default=None)
    if largest is None or sizes[largest] - math.floor(config.trim_scores * sizes[largest]) < needed:
        found = f"'{largest}', has {sizes[largest]}" if largest else "none, has 0"
        raise CalibrationError(
            f"calibration.group_by: no level of '{config.group_by}' has the {needed} "
            f"{sample.units} that a threshold of its own takes; the largest, {found}. Give more "
            "rows, raise calibration.alpha, or leave calibration.group_by out"
        )


def check_rows(sample: CalibrationSample, config: CalibrationConfig) -> None:
    """Check that the rows left after trimming suffice for one threshold.

    Raises:
        CalibrationError: they do not; the message says what is needed.
    """
    n = sample.trimmed(config.trim_scores).n
    match config.method:
        case "certified":
            check_certifiable(n, config, sample.units)
        case "evt":
            check_tail(n, config.tail, sample.units)
        case "budget":
            check_budget(sample, config)
        case "cost" | "fbeta" | "recall_at_precision":
            check_labels(sample, config)
        case _:
            check_resolvable(n, config.alpha, sample.units)
    if sample.weights is not None:
        check_weights(sample.weights, config.alpha, sample.units)


def _conformal(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the conformal threshold, or the weighted one if there are weights."""
    if sample.weights is None:
        return ThresholdChoice(conformal_threshold(sample.normal, config.alpha))
    figures = {
        "effective_rows": effective_rows(sample.weights),
        "largest_weight": float(sample.weights.max()),
    }
    return ThresholdChoice(weighted_threshold(sample.normal, sample.weights, config.alpha), figures)


def _quantile(sample: CalibrationSample, config: CalibrationConfig) -> ThresholdChoice:
    """Choose the empirical quantile, which has no guarantee for finite samples."""
    return ThresholdChoice(quantile_threshold(sample.normal, config.alpha))


METHODS: dict[Method, Callable[[CalibrationSample, CalibrationConfig], ThresholdChoice]] = {
    "conformal": _conformal,
    "quantile": _quantile,
    "certified": certified,
    "evt": evt,
    "budget": budget,
    "cost": cost,
    "fbeta": fbeta,
    "recall_at_precision": recall_at_precision,
}
