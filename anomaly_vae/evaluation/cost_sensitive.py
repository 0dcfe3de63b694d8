"""Measure what flags are worth to reviewers: compromised cards found per day, costs saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.operating_points import RATE_ROWS
from anomaly_vae.config.calibration import CostConfig
from anomaly_vae.data.splitting import DAY
from anomaly_vae.evaluation.bootstrap import Counts, Interval, choose_draws, draws, interval
from anomaly_vae.scoring.detector import Detections

Mask = NDArray[np.bool_]


class CardPrecision:
    """Precision among the most suspicious cards of each day (Le Borgne et al. 2022, chapter 4).

    A card (or another entity) is as suspicious as its most suspicious row of the day, and is
    compromised if any of its rows is an anomaly. The ``top`` cards of each day are reviewed;
    compromised ones among them are blocked and no longer reviewed. The figure is the share of
    compromised cards among the reviewed ones, averaged over days.
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
        day = np.floor(seconds[rows] / DAY).astype(np.int64)
        order = np.lexsort((card_of_row, -score[rows], day))  # by day, the highest score first
        self._compromised = np.zeros(len(names), bool)
        self._compromised[card_of_row[anomaly[rows]]] = True
        self._days = [
            _day(card_of_row[today], anomaly[rows][today])
            for today in np.split(order, np.flatnonzero(np.diff(day[order])) + 1)
            if len(today)
        ]

    def precision(self, counts: Counts | None = None) -> float:
        """Return the figure, given card weights (C,); NaN if all cards of all days are reviewed."""
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
        """Return the interval of the figure by resampling whole cards."""
        rows = sum(len(card) for card, _ in self._days)
        drawn = draws(self._compromised, choose_draws(rows))
        return interval(map(self.precision, drawn), confidence)


def _day(card: NDArray[np.intp], anomaly: Mask) -> tuple[NDArray[np.intp], Mask]:
    """Return the cards of a day in order of their first row, and which are compromised."""
    names, first, card_of_row = np.unique(card, return_index=True, return_inverse=True)
    compromised = np.zeros(len(names), bool)
    compromised[card_of_row[anomaly]] = True
    order = np.argsort(first)
    return names[order], compromised[order]


@dataclass(frozen=True, eq=False)
class Savings:
    """The costs that decisions save compared with flagging nothing, per 1,000 rows of traffic."""

    gain: NDArray[np.float64]
    """Gain (N,) of each row."""
    weight: NDArray[np.float64]
    """Number (N,) of rows of traffic that each row stands for."""

    @classmethod
    def from_decisions(
        cls,
        found: Detections,
        anomaly: Mask,
        costs: CostConfig,
        amounts: NDArray[np.float64] | None = None,
        weight: float = 1.0,
    ) -> Savings:
        """Compute the savings of decisions on N labelled rows.

        Args:
            found: the decisions.
            anomaly: (N,) labels.
            costs: costs of missed, reviewed and blocked rows.
            amounts: (N,) factors of the cost of a missed anomaly.
            weight: number of anomalies of traffic that each anomaly stands for.
        """
        missed = costs.missed * (np.ones(len(anomaly)) if amounts is None else amounts)
        weights = np.where(anomaly, weight, 1.0)
        saved = np.where(anomaly, missed, -costs.blocked) - costs.review
        return cls(np.where(found.is_anomaly, weights * saved, 0.0), weights)

    def per_1000(self, counts: Counts | None = None) -> float:
        """Return the savings per 1,000 rows, with row weights (N,); None means weight 1."""
        times = np.ones(len(self.gain)) if counts is None else counts
        return float(RATE_ROWS * (times @ self.gain) / (times @ self.weight))

    def interval(
        self, anomaly: Mask, group: NDArray[Any] | None, confidence: float = 0.95
    ) -> Interval | None:
        """Return the interval of the savings by resampling rows, or whole groups."""
        drawn = draws(anomaly, choose_draws(len(anomaly)), unit=group)
        return interval(map(self.per_1000, drawn), confidence)
