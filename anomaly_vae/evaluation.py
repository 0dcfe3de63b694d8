"""How good a detector is on labelled rows, with intervals; and when it went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom, binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_vae.calibration import Calibration, promised_ranks
from anomaly_vae.detector import Detections

Mask = NDArray[np.bool_]
DAY = 86_400.0
MOST_SLICES = 60


@dataclass(frozen=True)
class Rate:
    """A share with its exact binomial interval (Clopper & Pearson 1934)."""

    value: float
    low: float
    high: float
    hits: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """Figures on a test split. Ranking figures need both kinds of rows, else they are None."""

    rows: int
    anomalies: int
    alpha: float
    threshold: float
    auroc: float | None
    average_precision: float | None
    fpr: float | None
    fpr_interval: tuple[float, float] | None
    fpr_limit: float | None
    """the highest rate that chance explains where the promise is kept, see `highest_kept_rate`"""
    recall: float | None
    precision: float | None
    flagged: int
    rejected: int = 0
    """rows that could not be scored"""
    unlabelled: int = 0
    """rows left out because nobody knows"""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`."""
        interval = content["fpr_interval"]
        return cls(**{**content, "fpr_interval": tuple(interval) if interval else None})


@dataclass(frozen=True)
class Slice:
    """The false positive rate over one stretch of time."""

    name: str
    fpr: Rate
    limit: float

    @property
    def drifted(self) -> bool:
        """Whether the rate is above what chance explains."""
        return self.fpr.value > self.limit


def evaluate(
    found: Detections,
    anomaly: Mask,
    calibration: Calibration,
    confidence: float = 0.95,
    units: int | None = None,
) -> Evaluation:
    """Compare decisions on N rows with their labels (N,), True for an anomaly.

    ``units`` is how many exchangeable ones the normal rows are, such as their groups; absent:
    each row is one.
    """
    both = bool(anomaly.any() and not anomaly.all())
    fpr = rate(found.is_anomaly[~anomaly], confidence)
    flagged = int(found.is_anomaly.sum())
    hits = int(found.is_anomaly[anomaly].sum())
    return Evaluation(
        rows=len(anomaly),
        anomalies=int(anomaly.sum()),
        alpha=calibration.alpha,
        threshold=calibration.threshold,
        auroc=float(roc_auc_score(anomaly, found.score)) if both else None,
        average_precision=float(average_precision_score(anomaly, found.score)) if both else None,
        fpr=fpr.value if fpr else None,
        fpr_interval=(fpr.low, fpr.high) if fpr else None,
        fpr_limit=highest_kept_rate(calibration, units or fpr.total, confidence) if fpr else None,
        recall=hits / int(anomaly.sum()) if anomaly.any() else None,
        precision=hits / flagged if flagged and anomaly.any() else None,
        flagged=flagged,
    )


def rate(flags: Mask, confidence: float = 0.95) -> Rate | None:
    """The share of True, None for no rows at all."""
    if not len(flags):
        return None
    hits = int(flags.sum())
    interval = binomtest(hits, len(flags)).proportion_ci(confidence, method="exact")
    return Rate(hits / len(flags), float(interval.low), float(interval.high), hits, len(flags))


def highest_kept_rate(calibration: Calibration, total: int, confidence: float = 0.95) -> float:
    """The highest share of ``total`` exchangeable normal rows that a kept promise flags.

    Both samples are finite. Where alpha lets a row take the k highest of n + 1 ranks and be
    flagged, the number of flags among ``total`` rows is beta-binomial (k, n + 1 − k) (Vovk 2012,
    prop. 2a; Bates et al. 2023, sec. 2). This is the upper end of its central interval: a
    binomial interval around the observed rate would forget that the threshold was estimated.
    """
    n, k = len(calibration.scores), promised_ranks(calibration)
    upper = betabinom(total, k, n + 1 - k).ppf((1 + confidence) / 2)
    return float(upper) / total


def time_slices(
    flags: Mask,
    anomaly: Mask,
    seconds: NDArray[np.float64],
    calibration: Calibration,
    confidence: float = 0.95,
    group: NDArray[Any] | None = None,
) -> list[Slice]:
    """The false positive rate by day (by more days where there are many).

    ``group`` (N,) names the exchangeable unit of each row; absent: each row is one.
    """
    normal = ~anomaly & ~np.isnan(seconds)
    if not normal.any():
        return []
    day = np.floor(seconds[normal] / DAY).astype(int)
    step = max(1, -(-(int(np.ptp(day)) + 1) // MOST_SLICES))
    first = day.min() + (day - day.min()) // step * step
    unit = np.arange(len(day)) if group is None else group[normal]
    suffix = "" if step == 1 else f" (+{step} d)"
    slices = []
    for start in np.unique(first):
        inside = first == start
        if found := rate(flags[normal][inside], confidence):
            units = len(np.unique(unit[inside]))
            name = f"{np.datetime64(int(start), 'D')}{suffix}"
            slices.append(Slice(name, found, highest_kept_rate(calibration, units, confidence)))
    return slices
