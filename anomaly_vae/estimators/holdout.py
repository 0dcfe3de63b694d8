"""Split the rows of X into those that train, validate and calibrate."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.thresholds import rows_needed
from anomaly_vae.config import ImageConfig, TabularConfig
from anomaly_vae.errors import CalibrationError
from anomaly_vae.estimators.arguments import HELD_OUT

ConfigT = TypeVar("ConfigT", TabularConfig, ImageConfig)

ENOUGH = 20
"""Expected number of held-out rows above the threshold that is enough: the false positive rate on
exchangeable rows then has a standard deviation of 1/√20 of alpha (Vovk 2012)."""
MOST_HELD_OUT = 0.75
"""Fraction of rows held out to choose the threshold above which `fit` warns."""
MIN_FIT = 5
"""Smallest number of rows left to train and validate."""


class Parts(NamedTuple):
    """Positions of the rows that train, validate and calibrate; disjoint and sorted."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    calibration: NDArray[np.intp]


def split(n: int, config: ConfigT, fraction: float | None) -> tuple[ConfigT, Parts]:
    """Split n rows at random by the configuration's seed.

    Args:
        n: number of rows.
        config: configuration with the method, alpha, validation fraction and seed.
        fraction: fraction of the rows to hold out for the threshold, raised to as many rows as
            the method needs; None: a tenth, but no more rows than `ENOUGH` calls for.

    Returns:
        The configuration with the fraction actually held out, and the split.

    Raises:
        CalibrationError: there are too few rows to resolve alpha and to train.
    """
    splits, held = config.data.splits, _held_out(n, config, fraction)
    rest = n - held
    stop = max(1, round(splits.validation * rest))
    order = np.random.default_rng(splits.seed).permutation(n)
    train, validation, calibration = np.split(order, [rest - stop, rest])
    splits = splits.model_copy(update={"calibration": held / n})
    config = config.model_copy(update={"data": config.data.model_copy(update={"splits": splits})})
    return config, Parts(np.sort(train), np.sort(validation), np.sort(calibration))


def _held_out(n: int, config: TabularConfig | ImageConfig, fraction: float | None) -> int:
    """Return the number of rows to hold out for the threshold."""
    alpha, needed = config.calibration.alpha, rows_needed(config.calibration)
    held = max(round((HELD_OUT if fraction is None else fraction) * n), needed)
    if fraction is None:
        held = max(_fewest_alike(min(held, math.ceil(ENOUGH / alpha)), alpha), needed)
    if n - held < MIN_FIT:
        raise CalibrationError(
            f"n_samples={n} are too few: alpha={alpha:g} takes {needed} held-out rows, and "
            f"{MIN_FIT} are needed to fit; give at least {needed + MIN_FIT} rows or raise alpha"
        )
    return held


def _fewest_alike(held: int, alpha: float) -> int:
    """Return the fewest rows that give the same rank k to the threshold as ``held`` rows do.

    That is k/alpha − 1 rows, with which the false positive rate is exactly alpha.
    """
    k = math.floor((held + 1) * alpha + 1e-9)
    return math.ceil(k / alpha - 1e-9) - 1


def warn_of_few_left(parts: Parts, alpha: float) -> None:
    """Warn if far more rows are held out for the threshold than are left to train."""
    held, left = len(parts.calibration), len(parts.train) + len(parts.validation)
    if held > MOST_HELD_OUT * (held + left):
        warnings.warn(
            f"alpha={alpha:g} takes {held} of the {held + left} rows to calibrate, and only {left} "
            "are left to fit; give more rows or raise alpha",
            stacklevel=3,
        )
