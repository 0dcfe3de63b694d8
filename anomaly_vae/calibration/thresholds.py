"""Choose a threshold by any of the configured methods.

Every method returns the threshold, the sorted scores of normal rows, from which p-values are
computed, and the figures it reports. docs/thresholds.md describes the guarantee of each method.
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
    """Choose a threshold by the configured method, and one for each group with enough rows.

    If alpha is not part of the method's configuration, it is computed from the threshold: a new
    normal row is flagged with a probability of at most (1 + #{normal > threshold}) / (n + 1).

    Raises:
        CalibrationError: the sample is too small; the message says what is needed, and which
            settings would do with less.

    >>> from anomaly_vae.calibration.sample import CalibrationSample
    >>> from anomaly_vae.config.calibration import CalibrationConfig
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
        test = contamination_test(*sample.losses, sample.normal)
        chosen = _add_figures(chosen, {"contamination": test.to_json()}, test.note)
    return chosen if sample.levels is None else _add_groups(chosen, sample, config)


def _choose_for_rows(sample: CalibrationSample, config: CalibrationConfig) -> Calibration:
    """Choose one threshold for a sample that passed `check_rows`."""
    trimmed = sample.trimmed(config.trim_scores)
    choice = METHODS[config.method](trimmed, config)
    chosen = Calibration(
        config.method,
        config.alpha,
        choice.threshold,
        trimmed.normal,
        choice.figures,
        trimmed.weights,
    )
    if not config.promises_alpha:
        chosen = replace(chosen, alpha=flagged_ranks(chosen) / (sample.n + 1))
    return _note_trimming(chosen, sample.n) if trimmed.n < sample.n else chosen


def _note_trimming(chosen: Calibration, n: int) -> Calibration:
    """Add a note that alpha only holds if all rows trimmed from the n rows were anomalies."""
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
    by_level, small = {}, {}
    for level, rows in level_sizes(sample).items():
        selected = sample.select_level(level)
        try:
            check_rows(selected, config)
            by_level[level] = _choose_for_rows(selected, config)
        except CalibrationError:
            small[level] = rows
    figures = {"small_groups": small, "ungrouped": int((sample.levels.codes < 0).sum())}
    note = (
        f"calibration.group_by: too few rows for a separate threshold in {listed(list(small))}; "
        "their rows use the threshold of all rows, which guarantees nothing for a single level"
    )
    grouped = replace(pooled, groups=Groups(config.group_by, by_level))
    return _add_figures(grouped, figures, note if small else "")


def level_sizes(sample: CalibrationSample) -> dict[str, int]:
    """Return the number of normal rows of each group, without empty groups."""
    assert sample.levels, "the sample has no groups"
    names, codes = sample.levels.names, sample.levels.codes
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    return {name: rows for name, rows in zip(names, counts, strict=True) if rows}


def _add_figures(chosen: Calibration, figures: Mapping[str, Any], note: str = "") -> Calibration:
    """Return a copy with more figures and one more note."""
    first = chosen.figures.get("note", "")
    text = f"{first}. {note[0].upper()}{note[1:]}" if first and note else first or note
    joined = {"note": text} if text else {}
    return replace(chosen, figures={**chosen.figures, **figures, **joined})


def rows_needed(config: CalibrationConfig) -> int:
    """Return the minimum number of normal rows for the method, alert budgets aside."""
    match config.method:
        case "certified":
            return certified_needed(config.alpha, config.delta)
        case "evt":
            return math.ceil(MIN_EXCESSES / config.tail)
    return scores_needed(config.alpha) if config.promises_alpha else 2


def check_sample(sample: CalibrationSample, config: CalibrationConfig) -> None:
    """Check that the sample has enough rows; this needs no scores and can precede training.

    Raises:
        CalibrationError: it has too few; the message says how many are needed.
    """
    check_rows(sample, config)
    if sample.levels is None:
        return
    needed, sizes = rows_needed(config), level_sizes(sample)
    largest = max(sizes, key=lambda level: sizes[level], default=None)
    if largest is None or sizes[largest] - math.floor(config.trim_scores * sizes[largest]) < needed:
        size = f"'{largest}', has {sizes[largest]}" if largest else "none, has 0"
        raise CalibrationError(
            f"calibration.group_by: no level of '{config.group_by}' has the {needed} "
            f"{sample.units} that a separate threshold needs; the largest, {size}. Give more "
            "rows, raise calibration.alpha, or leave calibration.group_by out"
        )


def check_rows(sample: CalibrationSample, config: CalibrationConfig) -> None:
    """Check that enough rows are left after trimming for one threshold.

    Raises:
        CalibrationError: too few are left; the message says how many are needed.
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
"""Function that chooses the threshold, by method."""
