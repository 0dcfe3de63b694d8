"""Measure the practical value of flags: compromised cards detections per day, and costs saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.operating_points import RATE_ROWS
from anomaly_vae.config.calibration import CostConfig
from anomaly_vae.data.days import day_numbers
from anomaly_vae.evaluation.bootstrap import Counts, Interval, choose_draws, draws, interval
from anomaly_vae.scoring.detector import Detections

Mask = NDArray[np.bool_]


class CardPrecision:
    """Precision among the most suspicious cards of each day (Le Borgne et al. 2022, chapter 4).

    The score of a card (or another entity) on a day is the highest score of its rows, and a card is
    compromised on a day if any of its rows is an anomaly. Each day, the ``top`` highest-scoring
    cards are reviewed; compromised cards among them are blocked and not reviewed again. The figure
    is the share of compromised cards among the reviewed cards, averaged over days.
    """

    def __init__(
        self,
        score: NDArray[np.float64],
        anomaly: Mask,
        card: NDArray[Any],
        seconds: NDArray[np.float64],
        top: int,
    ) -> None:
        """Rank the cards of N rows by day; rows with unknown time are ignored."""
        self.top = top
        rows = np.flatnonzero(~np.isnan(seconds))
        names, card_of_row = np.unique(card[rows], return_inverse=True)
        day = day_numbers(seconds[rows])
        order = np.lexsort((card_of_row, -score[rows], day))  # by day, the highest score first
        self._compromised = np.zeros(len(names), bool)
        self._compromised[card_of_row[anomaly[rows]]] = True
        self._days = [
            _day(card_of_row[today], anomaly[rows][today])
            for today in np.split(order, np.flatnonzero(np.diff(day[order])) + 1)
            if len(today)
        ]

    def precision(self, counts: Counts | None = None) -> float:
        """Return the precision given card weights (C,); NaN if all cards are reviewed every day."""
        if all(len(card) <= self.top for card, _ in self._days):
            return float("nan")
        times = np.ones(len(self._compromised), np.int64) if counts is None else counts.copy()
        shares = []
        for card, compromised in self._days:
            copies = times[card]
            before = np.cumsum(copies) - copies
            caught = np.clip(self.top - before, 0, copies) * compromised
            shares.append(caught.sum() / self.top)
            times[card] -= caught
        return float(np.mean(shares))

    def interval(self, confidence: float = 0.95) -> Interval | None:
        """Return the confidence interval of the precision by resampling cards."""
        rows = sum(len(card) for card, _ in self._days)
        drawn = draws(self._compromised, choose_draws(rows))
        return interval(map(self.precision, drawn), confidence)


def _day(card: NDArray[np.intp], anomaly: Mask) -> tuple[NDArray[np.intp], Mask]:
    """Return the cards of a day in order of their first row, and whether each is compromised."""
    names, first, card_of_row = np.unique(card, return_index=True, return_inverse=True)
    compromised = np.zeros(len(names), bool)
    compromised[card_of_row[anomaly]] = True
    order = np.argsort(first)
    return names[order], compromised[order]


@dataclass(frozen=True, eq=False)
class Savings:
    """The cost that decisions save, compared with flagging nothing."""

    gain: NDArray[np.float64]
    """Cost (N,) saved by flagging each row, times its weight; 0 for rows that are not flagged."""
    weight: NDArray[np.float64]
    """Number (N,) of rows of traffic that each row represents."""

    @classmethod
    def from_decisions(
        cls,
        detections: Detections,
        anomaly: Mask,
        costs: CostConfig,
        amounts: NDArray[np.float64] | None = None,
        weight: float = 1.0,
    ) -> Savings:
        """Compute the savings of decisions on N labelled rows.

        Args:
            detections: the decisions.
            anomaly: (N,) labels.
            costs: costs of missed, reviewed and blocked rows.
            amounts: (N,) factors of the cost of a missed anomaly; None means 1.
            weight: number of anomalies in traffic that each anomaly represents.
        """
        missed = costs.missed * (np.ones(len(anomaly)) if amounts is None else amounts)
        weights = np.where(anomaly, weight, 1.0)
        saved = np.where(anomaly, missed, -costs.blocked) - costs.review
        return cls(np.where(detections.is_anomaly, weights * saved, 0.0), weights)

    def per_1000(self, counts: Counts | None = None) -> float:
        """Return the savings per 1,000 rows of traffic, given draw counts (N,); None means 1."""
        times = np.ones(len(self.gain)) if counts is None else counts
        return float(RATE_ROWS * (times @ self.gain) / (times @ self.weight))

    def interval(
        self, anomaly: Mask, group: NDArray[Any] | None, confidence: float = 0.95
    ) -> Interval | None:
        """Return the confidence interval of the savings by resampling rows, or groups if given."""
        drawn = draws(anomaly, choose_draws(len(anomaly)), unit=group)
        return interval(map(self.per_1000, drawn), confidence)
