"""Every way to choose a threshold, behind one call.

What is stored is the same for all: the threshold, the sorted scores of normal rows, which p-values
are counted on, and what the method says of its choice. docs/thresholds.md says which promises what.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from anomaly_vae.calibration import (
    Calibration,
    Method,
    calibrate,
    check_resolvable,
    scores_needed,
    scores_reaching,
)
from anomaly_vae.config import CalibrationConfig
from anomaly_vae.evidence import Choice, Evidence
from anomaly_vae.sweeps import (
    budget,
    check_budget,
    check_labels,
    cost,
    fbeta,
    recall_at_precision,
)
from anomaly_vae.tails import (
    MIN_EXCESSES,
    certified,
    certified_needed,
    check_certifiable,
    check_tail,
    evt,
)


def choose(evidence: Evidence, wish: CalibrationConfig) -> Calibration:
    """The threshold of the wished method.

    Where alpha is no part of the wish, it is what the threshold comes to: a new normal row is
    flagged with probability (1 + #{normal > threshold}) / (n + 1) at most.

    Raises:
        CalibrationError: the evidence does not suffice; what does, and what else would do.
    """
    check(evidence, wish)
    choice = METHODS[wish.method](evidence, wish)
    chosen = Calibration(wish.method, wish.alpha, choice.threshold, evidence.normal, choice.figures)
    if wish.promises_alpha:
        return chosen
    return replace(chosen, alpha=scores_reaching(chosen) / (evidence.n + 1))


def rows_needed(wish: CalibrationConfig) -> int:
    """The fewest normal calibration rows that the method takes, where traffic has no say."""
    match wish.method:
        case "certified":
            return certified_needed(wish.alpha, wish.delta)
        case "evt":
            return math.ceil(MIN_EXCESSES / wish.tail)
    return scores_needed(wish.alpha) if wish.promises_alpha else 2


def check(evidence: Evidence, wish: CalibrationConfig) -> None:
    """Whether the rows suffice, whatever their scores: known before anything is trained.

    Raises:
        CalibrationError: they do not; what would.
    """
    match wish.method:
        case "certified":
            check_certifiable(evidence.n, wish, evidence.units)
        case "evt":
            check_tail(evidence.n, wish.tail, evidence.units)
        case "budget":
            check_budget(evidence, wish)
        case "cost" | "fbeta" | "recall_at_precision":
            check_labels(evidence, wish)
        case _:
            check_resolvable(evidence.n, wish.alpha, evidence.units)


def _conformal(evidence: Evidence, wish: CalibrationConfig) -> Choice:
    """See `calibration.conformal_threshold`."""
    return Choice(calibrate(evidence.normal, wish.alpha).threshold)


def _quantile(evidence: Evidence, wish: CalibrationConfig) -> Choice:
    """The empirical quantile: no promise about a finite sample."""
    return Choice(calibrate(evidence.normal, wish.alpha, "quantile").threshold)


METHODS: dict[Method, Callable[[Evidence, CalibrationConfig], Choice]] = {
    "conformal": _conformal,
    "quantile": _quantile,
    "certified": certified,
    "evt": evt,
    "budget": budget,
    "cost": cost,
    "fbeta": fbeta,
    "recall_at_precision": recall_at_precision,
}
