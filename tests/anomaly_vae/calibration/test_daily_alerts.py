"""Intervals hold for days that are still to come, however much days differ."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.calibration.daily_alerts import (
    DailyTraffic,
    Floats,
    future_day,
    future_share,
    future_sum,
)
from anomaly_vae.data.days import Days

TRIALS = 500
MISSES = 3 * (0.05 * 0.95 / TRIALS) ** 0.5
"""Three standard errors of the share of intervals that miss."""


def means(kind: str, mean: float, days: int, rng: np.random.Generator) -> Floats:
    """Expected number of alerts on each day of each trial, (`TRIALS`, days)."""
    shape = (TRIALS, days)
    if kind == "alike":
        return np.full(shape, mean)
    if kind == "gamma":
        return rng.gamma(4, mean / 4, shape)
    return mean * np.exp(rng.normal(0, 0.4, shape))


@pytest.mark.parametrize("kind", ["alike", "gamma", "log-normal"])
@pytest.mark.parametrize("mean", [0.3, 5, 500])
@pytest.mark.parametrize("days", [4, 14, 31])
def test_nineteen_of_twenty_future_days_lie_in_the_interval(
    kind: str, mean: float, days: int
) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(means(kind, mean, days + 1, rng))
    low, high = np.array([future_day(row) for row in counts[:, :-1]]).T
    missed = np.mean((counts[:, -1] < low) | (counts[:, -1] > high))
    assert missed < 0.05 + MISSES


def test_chance_alone_would_promise_too_much() -> None:
    """A binomial interval of the mean misses most future days when days differ."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(means("gamma", 100, 32, rng))
    mean = counts[:, :-1].mean(axis=1)
    reach = 1.96 * np.sqrt(mean)
    assert np.mean(np.abs(counts[:, -1] - mean) > reach) > 0.5


def test_a_week_of_busy_and_quiet_days_covers_a_day_of_any_kind() -> None:
    rng = np.random.default_rng(0)
    week = np.array([1.2, 1.2, 1.2, 1.2, 1.2, 0.5, 0.5])
    counts = rng.poisson(100 * np.tile(week, (TRIALS, 3)))
    intervals = np.array([future_day(row[:14]) for row in counts])
    inside = (counts[:, 14:] >= intervals[:, :1]) & (counts[:, 14:] <= intervals[:, 1:])
    assert inside.mean() > 0.95


@pytest.mark.parametrize(("p", "strength"), [(0.4, 1e6), (0.4, 30), (0.9, 20), (0.05, 200)])
@pytest.mark.parametrize("total", [3, 20, 200])
@pytest.mark.parametrize("days", [4, 31])
def test_so_does_a_share(p: float, strength: float, total: int, days: int) -> None:
    rng = np.random.default_rng(0)
    totals = 1 + rng.poisson(total - 1, (TRIALS, days + 1))
    hits = rng.binomial(totals, rng.beta(p * strength, (1 - p) * strength, totals.shape))
    pairs = zip(hits[:, :-1], totals[:, :-1], strict=True)
    low, high = np.array([future_share(*pair) for pair in pairs]).T
    share = hits[:, -1] / totals[:, -1]
    assert np.mean((share < low - 1e-12) | (share > high + 1e-12)) < 0.05 + MISSES


def test_so_does_a_sum() -> None:
    rng = np.random.default_rng(0)
    sums = rng.gamma(4, 25, (TRIALS, 15))
    low, high = np.array([future_sum(row) for row in sums[:, :-1]]).T
    assert np.mean((sums[:, -1] < low) | (sums[:, -1] > high)) < 0.05 + MISSES


def test_a_single_day_promises_nothing() -> None:
    assert future_day([4]) is None
    assert future_sum([4.0]) is None
    assert future_share([1, 0], [4, 0]) is None


def test_bounds_are_possible_numbers() -> None:
    low, high = future_day([0, 0, 0, 9]) or (None, None)
    assert low == 0
    assert high == int(high or 0) > 9
    assert future_share([9, 9, 8], [9, 9, 9]) == (pytest.approx(0.156, abs=0.001), 1.0)
    assert (future_sum([0.0, 9.0]) or [None])[0] == 0


@pytest.mark.parametrize("by_entity", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_expected_alerts_are_those_of_a_loop(seed: int, by_entity: bool) -> None:
    rng = np.random.default_rng(seed)
    scores, day = rng.gumbel(size=400).round(1), rng.integers(-1, 5, 400)
    entity = rng.integers(0, 30, 400).astype(np.int32)
    days = Days(day, np.arange(5), scale=2.0)
    traffic = DailyTraffic(scores, days, entity if by_entity else None, "CUSTOMER_ID")
    for threshold in (-1.0, 0.5, 2.0):
        pairs = [
            (d, entity[row] if by_entity else row)
            for row, (s, d) in enumerate(zip(scores, day, strict=True))
            if s > threshold and d >= 0
        ]
        counts = [2.0 * len({e for d, e in pairs if d == one}) for one in range(5)]
        assert traffic.counts(threshold).tolist() == counts
        expected = traffic.expected(np.array([threshold]))[0]
        assert expected == pytest.approx((sum(counts) / 2 + 1) * 2 / 5)
    assert traffic.per_day == traffic.counts(-np.inf).mean()
