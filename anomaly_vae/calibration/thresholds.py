"""Every way to choose a threshold, behind one call.

What is stored is the same for all: the threshold, the sorted scores of normal rows, which p-values
are counted on, and what the method says of its choice. docs/thresholds.md says which promises what.
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
    quantile_threshold,
    scores_needed,
    scores_reaching,
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
from anomaly_vae.config import CalibrationConfig
from anomaly_vae.errors import CalibrationError
from anomaly_vae.messages import listed
from anomaly_vae.types import Method


def choose_threshold(evidence: CalibrationSample, wish: CalibrationConfig) -> Calibration:
    """The threshold of the wished method, and one for each group that has rows enough.

    Where alpha is no part of the wish, it is what the threshold comes to: a new normal row is
    flagged with probability (1 + #{normal > threshold}) / (n + 1) at most.

    Raises:
        CalibrationError: the evidence does not suffice; what does, and what else would do.
    """
    check(evidence, wish)
    chosen = _chosen(evidence, wish)
    if evidence.losses:
        found = contamination_test(*evidence.losses, evidence.normal)
        chosen = _with(chosen, {"contamination": found.to_json()}, found.note)
    return chosen if evidence.levels is None else _grouped(chosen, evidence, wish)


def _chosen(evidence: CalibrationSample, wish: CalibrationConfig) -> Calibration:
    """The threshold of these rows alone, which `check_rows` found to suffice."""
    kept = evidence.trimmed(wish.trim_scores)
    choice = METHODS[wish.method](kept, wish)
    chosen = Calibration(
        wish.method, wish.alpha, choice.threshold, kept.normal, choice.figures, kept.weights
    )
    if not wish.promises_alpha:
        chosen = replace(chosen, alpha=scores_reaching(chosen) / (evidence.n + 1))
    return _told_of_trim(chosen, evidence.n) if kept.n < evidence.n else chosen


def _told_of_trim(chosen: Calibration, n: int) -> Calibration:
    """What leaving out the highest of n rows means: alpha only if they were no normal ones."""
    trimmed = n - len(chosen.scores)
    most = (trimmed + scores_reaching(chosen)) / (n + 1)
    note = (
        f"calibration.trim_scores left out the {trimmed} highest of {n} rows: "
        f"alpha {chosen.alpha:g} holds if all of these were anomalies, and {most:.3g} in its place "
        "if none was"
    )
    return _with(chosen, {"trimmed": trimmed, "alpha_if_clean": most}, note)


def _grouped(
    pooled: Calibration, evidence: CalibrationSample, wish: CalibrationConfig
) -> Calibration:
    """The same with a calibration for each level that has rows enough."""
    assert evidence.levels, "there are groups"
    assert wish.group_by, "they are of a column"
    own, small = {}, {}
    for level, rows in level_sizes(evidence).items():
        alone = evidence.of_level(level)
        try:
            check_rows(alone, wish)
            own[level] = _chosen(alone, wish)
        except CalibrationError:
            small[level] = rows
    told = {"small_groups": small, "ungrouped": int((evidence.levels.codes < 0).sum())}
    note = (
        f"calibration.group_by: too few rows for a threshold of its own in {listed(list(small))}; "
        "rows of these get that of all, which promises nothing of one level alone"
    )
    grouped = replace(pooled, groups=Groups(wish.group_by, own))
    return _with(grouped, told, note if small else "")


def level_sizes(evidence: CalibrationSample) -> dict[str, int]:
    """How many normal rows each group has; none that has none."""
    assert evidence.levels, "there are groups"
    names, codes = evidence.levels.names, evidence.levels.codes
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    return {name: rows for name, rows in zip(names, counts, strict=True) if rows}


def _with(chosen: Calibration, figures: Mapping[str, Any], note: str = "") -> Calibration:
    """The same with more to say."""
    notes = [text for text in (chosen.figures.get("note"), note) if text]
    joined = {"note": "; ".join(notes)} if notes else {}
    return replace(chosen, figures={**chosen.figures, **figures, **joined})


def rows_needed(wish: CalibrationConfig) -> int:
    """The fewest normal calibration rows that the method takes, where traffic has no say."""
    match wish.method:
        case "certified":
            return certified_needed(wish.alpha, wish.delta)
        case "evt":
            return math.ceil(MIN_EXCESSES / wish.tail)
    return scores_needed(wish.alpha) if wish.promises_alpha else 2


def check(evidence: CalibrationSample, wish: CalibrationConfig) -> None:
    """Whether the rows suffice, whatever their scores: known before anything is trained.

    Raises:
        CalibrationError: they do not; what would.
    """
    check_rows(evidence, wish)
    if evidence.levels is None:
        return
    needed, sizes = rows_needed(wish), level_sizes(evidence)
    largest = max(sizes, key=lambda level: sizes[level], default=None)
    if largest is None or sizes[largest] - math.floor(wish.trim_scores * sizes[largest]) < needed:
        most = f"'{largest}', has {sizes[largest]}" if largest else "none, has 0"
        raise CalibrationError(
            f"calibration.group_by: no level of '{wish.group_by}' has the {needed} "
            f"{evidence.units} that a threshold of its own takes; the largest, {most}. Give more "
            "rows, raise calibration.alpha, or leave calibration.group_by out"
        )


def check_rows(evidence: CalibrationSample, wish: CalibrationConfig) -> None:
    """Whether the rows that are left after trimming suffice for one threshold.

    Raises:
        CalibrationError: they do not; what would.
    """
    n = evidence.trimmed(wish.trim_scores).n
    match wish.method:
        case "certified":
            check_certifiable(n, wish, evidence.units)
        case "evt":
            check_tail(n, wish.tail, evidence.units)
        case "budget":
            check_budget(evidence, wish)
        case "cost" | "fbeta" | "recall_at_precision":
            check_labels(evidence, wish)
        case _:
            check_resolvable(n, wish.alpha, evidence.units)
    if evidence.weights is not None:
        check_weights(evidence.weights, wish.alpha, evidence.units)


def _conformal(evidence: CalibrationSample, wish: CalibrationConfig) -> ThresholdChoice:
    """See `calibration.conformal_threshold`, or `weighted_threshold` where there are weights."""
    if evidence.weights is None:
        return ThresholdChoice(conformal_threshold(evidence.normal, wish.alpha))
    figures = {
        "effective_rows": effective_rows(evidence.weights),
        "largest_weight": float(evidence.weights.max()),
    }
    return ThresholdChoice(
        weighted_threshold(evidence.normal, evidence.weights, wish.alpha), figures
    )


def _quantile(evidence: CalibrationSample, wish: CalibrationConfig) -> ThresholdChoice:
    """The empirical quantile: no promise about a finite sample."""
    return ThresholdChoice(quantile_threshold(evidence.normal, wish.alpha))


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
