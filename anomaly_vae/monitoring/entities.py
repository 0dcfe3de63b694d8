"""Measure how much rows of one entity, such as a customer, resemble each other, and for how long.

A column such as the number of payments of the last 30 days changes slowly, and each customer has
another value. The rows of a window are therefore not independent: the fewer customers there are,
the further the shares of the bins drift, although nothing is wrong. A drift over weeks cannot be
seen in two weeks of calibration rows as a whole, which are a single example of it, but in their
entities, each of which is an example.

The *likeness* of two rows is (1 / share of their bin − 1) / (bins − 1) if it is the same bin, else
−1 / (bins − 1): 1 on average for equal rows, 0 for independent ones. If rows have a score instead,
which is 0 on average and has the variance 1, it is the product of both. The *covariance* at a
distance in days is the sum of this over all pairs of rows of one entity at that distance, beyond
what all rows of these days have in common, divided by the number of all pairs of rows. It follows
for the shares of a day's bins, or its mean score:

- Within a day they vary by the covariance at distance 0, minus that between days.
- Later they drift away by twice as much as the covariance still falls. It is taken to go on falling
  as fast as between the smaller and the larger half of the distances in calibration, but not below
  0. A covariance falls ever more slowly, so that this is cautious.
- If scored rows are of other entities than the calibration rows, as those of `data.group` are, they
  differ by twice the covariance between days from the first day on.

Both are dispersions: 1 / (concentration + 1) of a Dirichlet distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.splitting import DAY
from anomaly_vae.monitoring.martingale import Floats

Bins = NDArray[np.int64]

MAX_PERIODS = 16
"""Maximum number of periods that the calibration days are divided into."""
MIN_ENTITIES = 30.0
"""Minimum effective number of entities in a column that the configuration does not name."""


def effective_number(entities: Bins) -> float:
    """Return how many equally frequent entities N rows would be of: infinity if all differ.

    It is the number of pairs of rows, divided by the number of pairs of one entity.

    >>> import numpy as np
    >>> effective_number(np.array([0, 0, 1, 1, 2, 3]))
    7.5
    """
    counts = np.bincount(entities).astype(np.float64)
    pairs = (counts * (counts - 1)).sum()
    return len(entities) * (len(entities) - 1) / float(pairs) if pairs else math.inf


@dataclass(frozen=True)
class Dispersion:
    """Variation of shares between days that entities add, and their drift afterwards."""

    days: float = 0.0
    rate: float = 0.0
    """Drift on each day since calibration."""
    limit: float = 0.0
    """Largest drift."""

    @classmethod
    def largest(cls, found: Iterable[Dispersion]) -> Self:
        """Return the largest of each; 0 if there are none."""
        found = [cls(), *found]
        return cls(*(max(getattr(one, field.name) for one in found) for field in fields(cls)))


@dataclass(frozen=True, eq=False)
class EntityRows:
    """Rows of entities among N calibration rows."""

    related: NDArray[np.intp]
    """Positions (R,) of the rows whose entity has other rows."""
    entities: Bins
    """Number (R,) of the entity of each of them, from 0."""
    periods: Bins
    """Number (N,) of the period of each row."""
    lags: Floats
    """Distance in days (n, n) of each two of n periods."""
    divided: bool = False
    """Whether later rows have other entities, so that they drift as far as they ever do at once."""

    @classmethod
    def of(cls, entities: Bins, seconds: Floats, divided: bool = False) -> Self:
        """Prepare N rows.

        Args:
            entities: number (N,) of the entity of each row.
            seconds: times (N,) of the rows, which cover three or more days.
            divided: whether later rows have other entities.
        """
        days = (seconds // DAY).astype(np.int64)
        days -= days.min()
        n_days = int(days.max()) + 1
        numbers = np.arange(min(n_days, MAX_PERIODS))
        lags = np.abs(numbers[:, None] - numbers) * (n_days / len(numbers))
        related = np.flatnonzero(np.bincount(entities)[entities] > 1)
        renumbered = np.unique(entities[related], return_inverse=True)[1]
        return cls(related, renumbered, days * len(numbers) // n_days, lags, divided)

    def dispersion(self, bins: Bins, width: int, rare: bool) -> Dispersion:
        """Return the dispersion of the shares of the bins (N,) of one stream.

        What is estimated is uncertain by a standard deviation over entities, which is added. If
        bins are rare, it is subtracted instead.
        """
        shares = _count(bins, width) / len(bins)
        weights = 1 / np.where(shares > 0, shares, np.inf)
        n_bins = int(np.count_nonzero(shares))
        if not len(self.related) or n_bins < 2:
            return Dispersion()
        return self._dispersion(
            _Pairs(self, bins, np.ones(len(bins)), weights / (n_bins - 1)), -1 if rare else 1
        )

    def dispersion_of_scores(self, scores: Floats) -> Dispersion:
        """Return the dispersion of the mean of scores (N,), whose variance is 1."""
        if not len(self.related):
            return Dispersion()
        one = np.zeros(len(scores), np.int64)
        return self._dispersion(_Pairs(self, one, scores, np.ones(1)), 1)

    def _dispersion(self, pairs: _Pairs, sign: int) -> Dispersion:
        lags, half = self.lags, self.lags.max() / 2
        same, other = pairs.covariance(lags == 0), pairs.covariance(lags > 0)
        near_mask, far_mask = (lags > 0) & (lags <= half), lags > half
        fall = pairs.covariance(near_mask) - pairs.covariance(far_mask)
        rate = _bound(fall, sign) / (self.mean_lag(far_mask) - self.mean_lag(near_mask))
        days, limit = _bound(same - other, sign), 2 * max(float(other.sum()), 0.0)
        if self.divided:
            return Dispersion(days + limit)
        return Dispersion(days, 2 * max(rate, 0.0), limit)

    @cached_property
    def n_pairs(self) -> Floats:
        """Number (n, n) of pairs of rows of each two periods."""
        sizes = _count(self.periods, len(self.lags))
        return np.asarray(np.outer(sizes, sizes) - np.diag(sizes))

    def mean_lag(self, mask: NDArray[np.bool_]) -> float:
        """Return the mean distance of all pairs of rows in pairs of periods (n, n), in days."""
        return float(np.average(self.lags[mask], weights=self.n_pairs[mask] + 1e-9))


class _Pairs:
    """Pairs of rows by the periods of both.

    Rows have a bin (N,) and an amount (N,). The likeness of two rows of one bin is the product of
    their amounts and the weight of the bin; that of other pairs is 0.
    """

    def __init__(self, rows: EntityRows, bins: Bins, amounts: Floats, weights: Floats) -> None:
        n, width = len(rows.lags), len(weights)
        cells, size = rows.periods * width + bins, n * width
        totals = np.bincount(cells, amounts, size).reshape(n, width)
        sizes = _count(rows.periods, n)
        self._n_pairs = rows.n_pairs
        self._usual = (totals * weights) @ totals.T / np.maximum(np.outer(sizes, sizes), 1)
        amounts, periods = amounts[rows.related], rows.periods[rows.related]
        unit = rows.entities * width + bins[rows.related]
        units, numbers = np.unique(unit, return_inverse=True)
        self._n_entities = int(rows.entities.max(initial=-1)) + 1
        self._owners, self._weights = units // width, weights[units % width]
        sums = np.bincount(numbers * n + periods, amounts, len(units) * n)
        self._by_unit = np.asarray(sums.reshape(-1, n), np.float64)
        counts = _count(rows.entities * n + periods, self._n_entities * n)
        self._by_entity = counts.reshape(-1, n)
        squares = np.bincount(numbers, amounts**2, len(units))
        self._itself = self._by_owner(squares.astype(np.float64))

    def _by_owner(self, parts: Floats) -> Floats:
        """Return the sum (E,) over the units (U,) of each entity."""
        return np.bincount(self._owners, self._weights * parts, self._n_entities).astype(np.float64)

    def covariance(self, mask: NDArray[np.bool_]) -> Floats:
        """Return each entity's part (E,) of the covariance, for pairs of periods (n, n)."""
        alike = self._by_owner(_squares(self._by_unit, mask * 1.0))
        usual = _squares(self._by_entity, mask * self._usual)
        if mask[0, 0]:  # no row is paired with itself
            alike -= self._itself
            usual -= self._by_entity @ np.diag(self._usual)
        return np.asarray((alike - usual) / max(self._n_pairs[mask].sum(), 1))


def _count(positions: Bins, length: int) -> Floats:
    return np.bincount(positions, minlength=length).astype(np.float64)


def _squares(counts: Floats, weights: NDArray[Any]) -> Floats:
    """Return the weighted sum (U,) of the products of all pairs of periods, for counts (U, n)."""
    return np.asarray(((counts @ weights) * counts).sum(axis=1))


def _bound(parts: Floats, sign: int) -> float:
    """Return the sum of the parts (E,) of entities, and ``sign`` times its standard deviation."""
    return float(parts.sum() + sign * math.sqrt((parts**2).sum()))
