"""Every way to choose a threshold, behind one call.

What is stored is the same for all: the threshold, the sorted scores of normal rows, which p-values
are counted on, and what the method says of its choice. docs/thresholds.md says which promises what.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from anomaly_vae.calibration import Calibration, Method, calibrate, check_resolvable, scores_needed
from anomaly_vae.config import CalibrationConfig
from anomaly_vae.evidence import Choice, Evidence
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

    Raises:
        CalibrationError: the evidence does not suffice; what does, and what else would do.
    """
    check(evidence.n, wish, evidence.units)
    choice = METHODS[wish.method](evidence, wish)
    return Calibration(wish.method, wish.alpha, choice.threshold, evidence.normal, choice.figures)


def rows_needed(wish: CalibrationConfig) -> int:
    """The fewest normal calibration rows that the method takes."""
    match wish.method:
        case "certified":
            return certified_needed(wish.alpha, wish.delta)
        case "evt":
            return math.ceil(MIN_EXCESSES / wish.tail)
    return scores_needed(wish.alpha)


def check(n: int, wish: CalibrationConfig, units: str) -> None:
    """Whether n normal rows suffice, before anything is trained.

    Raises:
        CalibrationError: they do not, with the number that would.
    """
    match wish.method:
        case "certified":
            check_certifiable(n, wish, units)
        case "evt":
            check_tail(n, wish.tail, units)
        case _:
            check_resolvable(n, wish.alpha, units)


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
}
