"""Compromised cards found per day and costs saved equal slower, simpler computations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.calibration.operating_points import expected_cost
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.config.calibration import CostConfig
from anomaly_vae.data.splitting import DAY
from anomaly_vae.evaluation.bootstrap import draws
from anomaly_vae.evaluation.cost_sensitive import CardPrecision, Savings
from anomaly_vae.scoring.detector import Detections


def rows(seed: int, n: int, cards: int, days: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "card": rng.integers(cards, size=n),
            "seconds": rng.uniform(0, days * DAY, n),
            "fraud": rng.random(n) < 0.2,
            "score": rng.permutation(n).astype(float),
        }
    )


def cards_of(table: pd.DataFrame, top: int) -> CardPrecision:
    return CardPrecision(
        *(np.asarray(table[k]) for k in ("score", "fraud", "card", "seconds")), top
    )


def naive_precision(table: pd.DataFrame, top: int) -> float:
    """Compute the precision as the Handbook does."""
    blocked: set[int] = set()
    shares = []
    for _, day in table.groupby(table["seconds"] // DAY):
        seen = day[~day["card"].isin(blocked)].groupby("card")[["fraud", "score"]].max()
        highest = seen.nlargest(top, "score")
        caught = highest.index[highest["fraud"].astype(bool)]
        shares.append(len(caught) / top)
        blocked.update(caught)
    return float(np.mean(shares))


@given(st.integers(0, 9999), st.integers(20, 120))
def test_card_precision_is_the_handbooks(seed: int, n: int) -> None:
    table = rows(seed, n, cards=15, days=4)
    most = table.groupby(table["seconds"] // DAY)["card"].nunique().max()
    if most > 3:
        assert cards_of(table, 3).precision() == pytest.approx(naive_precision(table, 3))


@given(st.integers(0, 9999))
def test_a_card_that_counts_twice_is_two_cards(seed: int) -> None:
    table = rows(seed, 80, cards=12, days=3)
    names = np.unique(table["card"])
    (counts,) = draws(np.zeros(len(names), bool), 1, seed)
    copies = [
        table[table["card"] == name].assign(card=name + 100 * copy)
        for name, times in zip(names, counts, strict=True)
        for copy in range(times)
    ]
    expected = naive_precision(pd.concat(copies).sort_values("card", kind="stable"), 3)
    found = cards_of(table, 3).precision(counts)
    days = table["seconds"] // DAY
    if set(days) == set(days[table["card"].isin(names[counts > 0])]):
        assert found == pytest.approx(expected)


def test_a_caught_card_is_seen_no_more() -> None:
    table = pd.DataFrame(
        {
            "card": [1, 2, 1, 3],
            "seconds": [0.0, 1.0, DAY, DAY + 1],
            "fraud": [True, False, True, True],
            "score": [9.0, 1.0, 8.0, 2.0],
        }
    )
    assert cards_of(table, 1).precision() == 1.0


def test_where_all_cards_are_looked_into_nothing_is_told() -> None:
    table = rows(0, 60, cards=5, days=3)
    assert np.isnan(cards_of(table, 5).precision())
    assert cards_of(table, 5).interval() is None
    nowhen = table.assign(seconds=np.nan)
    assert np.isnan(cards_of(nowhen, 1).precision())


def test_the_interval_holds_the_figure() -> None:
    cards = cards_of(rows(0, 600, cards=80, days=5), 10)
    low, high = cards.interval() or (np.nan, np.nan)
    assert low < cards.precision() < high


# ---------------------------------------------------------------- costs


@given(st.integers(0, 9999), st.booleans(), st.sampled_from([1.0, 0.1]))
def test_savings_are_the_expected_costs_of_two_thresholds(
    seed: int, by_amount: bool, weight: float
) -> None:
    rng = np.random.default_rng(seed)
    scores, anomaly = rng.normal(size=50), rng.random(50) < 0.3
    anomaly[:2] = [True, False]
    amounts = rng.uniform(1, 100, 50) if by_amount else None
    costs = CostConfig(missed=2.0, review=3.0, blocked=1.5)
    found = Detections(scores, np.ones(50), scores > 0.5)
    evidence = CalibrationSample.from_scores(
        scores[~anomaly],
        scores[anomaly],
        () if amounts is None else amounts[anomaly],
        weight=weight,
    )
    chosen, nothing = expected_cost(evidence, np.array([0.5, np.inf]), costs)
    savings = Savings.from_decisions(found, anomaly, costs, amounts, weight)
    assert savings.per_1000() == pytest.approx(nothing - chosen)


def test_the_interval_of_savings_holds_them_and_knows_groups() -> None:
    rng = np.random.default_rng(0)
    anomaly = np.arange(400) < 80
    scores = rng.normal(size=400) + anomaly
    found = Detections(scores, np.ones(400), scores > 1)
    savings = Savings.from_decisions(found, anomaly, CostConfig(missed=5.0, review=1.0))
    low, high = savings.interval(anomaly, None) or (np.nan, np.nan)
    assert low < savings.per_1000() < high
    wide = savings.interval(anomaly, np.arange(400) // 40) or (np.nan, np.nan)
    assert wide[1] - wide[0] != high - low
