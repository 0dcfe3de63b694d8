"""What flags are worth to those who look into them: cards caught in a day, costs saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.operating_points import PER
from anomaly_vae.config import CostConfig
from anomaly_vae.data.splitting import DAY
from anomaly_vae.evaluation.bootstrap import Counts, Interval, draws, enough, interval
from anomaly_vae.scoring.detector import Detections

Mask = NDArray[np.bool_]


class CardPrecision:
    """Precision at the most suspicious cards of a day (Le Borgne et al. 2022, chapter 4).

    A card, or whatever else an anomaly is one of, is as suspicious as its most suspicious row of
    the day, and compromised if one of them is an anomaly. The ``top`` of each day are looked into;
    a compromised one among them is blocked and seen no more. The figure is the share of the
    compromised among those looked into, averaged over days.
    """

    def __init__(
        self,
        score: NDArray[np.float64],
        anomaly: Mask,
        card: NDArray[Any],
        seconds: NDArray[np.float64],
        top: int,
    ) -> None:
        """N rows; those of unknown time are left out."""
        self.top = top
        rows = np.flatnonzero(~np.isnan(seconds))
        names, of_row = np.unique(card[rows], return_inverse=True)
        day = np.floor(seconds[rows] / DAY).astype(np.int64)
        order = np.lexsort((of_row, -score[rows], day))  # by day, the highest score first
        self._compromised = np.zeros(len(names), bool)
        self._compromised[of_row[anomaly[rows]]] = True
        self._days = [
            _day(of_row[some], anomaly[rows][some])
            for some in np.split(order, np.flatnonzero(np.diff(day[order])) + 1)
            if len(some)
        ]

    def precision(self, counts: Counts | None = None) -> float:
        """Of cards (C,) that count so often; NaN where no day has more than are looked into."""
        if all(len(card) <= self.top for card, _ in self._days):
            return float("nan")
        times = np.ones(len(self._compromised), np.int64) if counts is None else counts.copy()
        shares = []
        for card, bad in self._days:
            copies = times[card]
            before = np.cumsum(copies) - copies
            caught = np.clip(self.top - before, 0, copies) * bad
            shares.append(caught.sum() / self.top)
            times[card] -= caught
        return float(np.mean(shares))

    def interval(self, confidence: float = 0.95) -> Interval | None:
        """By resampling whole cards."""
        rows = sum(len(card) for card, _ in self._days)
        drawn = draws(self._compromised, enough(rows))
        return interval(map(self.precision, drawn), confidence)


def _day(card: NDArray[np.intp], anomaly: Mask) -> tuple[NDArray[np.intp], Mask]:
    """The cards of a day, whose rows come with the highest score first, and the compromised."""
    names, first, of_row = np.unique(card, return_index=True, return_inverse=True)
    bad = np.zeros(len(names), bool)
    bad[of_row[anomaly]] = True
    order = np.argsort(first)
    return names[order], bad[order]


@dataclass(frozen=True, eq=False)
class Savings:
    """What decisions save against flagging nothing, per 1,000 rows of traffic."""

    gain: NDArray[np.float64]
    """(N,) of each row"""
    weight: NDArray[np.float64]
    """(N,) how many rows of traffic each stands for"""

    @classmethod
    def of(
        cls,
        found: Detections,
        anomaly: Mask,
        costs: CostConfig,
        amounts: NDArray[np.float64] | None = None,
        weight: float = 1.0,
    ) -> Savings:
        """By decisions on N rows and their labels.

        Args:
            found: the decisions.
            anomaly: (N,) the labels.
            costs: what is weighed.
            amounts: (N,) that a missed anomaly costs are multiplied by.
            weight: how many anomalies of traffic each of these stands for.
        """
        missed = costs.missed * (np.ones(len(anomaly)) if amounts is None else amounts)
        weights = np.where(anomaly, weight, 1.0)
        saved = np.where(anomaly, missed, -costs.blocked) - costs.review
        return cls(np.where(found.is_anomaly, weights * saved, 0.0), weights)

    def per_1000(self, counts: Counts | None = None) -> float:
        """Of rows (N,) that count so often."""
        times = np.ones(len(self.gain)) if counts is None else counts
        return float(PER * (times @ self.gain) / (times @ self.weight))

    def interval(
        self, anomaly: Mask, group: NDArray[Any] | None, confidence: float = 0.95
    ) -> Interval | None:
        """By resampling rows, or whole groups."""
        drawn = draws(anomaly, enough(len(anomaly)), unit=group)
        return interval(map(self.per_1000, drawn), confidence)
