"""How good a detector is on labelled rows, with intervals; and when it went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

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

    def drifted(self, alpha: float) -> bool:
        """Whether the rate is above alpha beyond its interval."""
        return self.fpr.low > alpha


def evaluate(
    found: Detections, anomaly: Mask, alpha: float, threshold: float, confidence: float = 0.95
) -> Evaluation:
    """Compare decisions on N rows with their labels (N,), True for an anomaly."""
    both = bool(anomaly.any() and not anomaly.all())
    fpr = rate(found.is_anomaly[~anomaly], confidence)
    flagged = int(found.is_anomaly.sum())
    hits = int(found.is_anomaly[anomaly].sum())
    return Evaluation(
        rows=len(anomaly),
        anomalies=int(anomaly.sum()),
        alpha=alpha,
        threshold=threshold,
        auroc=float(roc_auc_score(anomaly, found.score)) if both else None,
        average_precision=float(average_precision_score(anomaly, found.score)) if both else None,
        fpr=fpr.value if fpr else None,
        fpr_interval=(fpr.low, fpr.high) if fpr else None,
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


def time_slices(
    flags: Mask, anomaly: Mask, seconds: NDArray[np.float64], confidence: float = 0.95
) -> list[Slice]:
    """The false positive rate by day (by more days where there are many)."""
    normal = ~anomaly & ~np.isnan(seconds)
    if not normal.any():
        return []
    day = np.floor(seconds[normal] / DAY).astype(int)
    step = max(1, -(-(int(np.ptp(day)) + 1) // MOST_SLICES))
    group = (day - day.min()) // step
    names = np.datetime_as_string((day.min() + np.unique(group) * step).astype("datetime64[D]"))
    rates = [rate(flags[normal][group == g], confidence) for g in np.unique(group)]
    suffix = "" if step == 1 else f" (+{step} d)"
    return [Slice(f"{name}{suffix}", r) for name, r in zip(names, rates, strict=True) if r]
