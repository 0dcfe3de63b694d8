"""Resampled figures equal scikit-learn's, and intervals have their nominal coverage."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_vae.evaluation import bootstrap
from anomaly_vae.evaluation.bootstrap import (
    DRAWS,
    MIN_DRAWS,
    Interval,
    Ranking,
    choose_draws,
    draws,
    interval,
    intervals,
)


def sample(seed: int, n: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    anomaly = np.concatenate([[True, False], rng.random(n) < 0.3])
    scores = rng.normal(size=n + 2) + anomaly
    return (np.round(scores) if ties else scores), anomaly


def precision_at(k: int, scores: np.ndarray, anomaly: np.ndarray) -> float:
    """Return the mean over all orders of equal scores."""
    k = min(k, len(scores))
    last = np.sort(scores)[::-1][k - 1]
    above, tied = scores > last, scores == last
    return float((anomaly[above].sum() + (k - above.sum()) * anomaly[tied].mean()) / k)


@given(st.integers(0, 9999), st.integers(0, 200), st.booleans())
def test_figures_of_a_draw_are_those_of_the_rows_drawn(seed: int, n: int, ties: bool) -> None:
    scores, anomaly = sample(seed, n, ties)
    ranking = Ranking(scores, anomaly)
    for counts in (None, *draws(anomaly, 3, seed)):
        times = np.ones(len(scores), int) if counts is None else counts
        rows = np.repeat(np.arange(len(scores)), times)
        assert ranking.auroc(counts) == pytest.approx(roc_auc_score(anomaly[rows], scores[rows]))
        expected = average_precision_score(anomaly[rows], scores[rows])
        assert ranking.average_precision(counts) == pytest.approx(expected)
        assert ranking.precision_at(3, counts) == pytest.approx(
            precision_at(3, scores[rows], anomaly[rows])
        )


@given(st.integers(0, 9999), st.integers(0, 200), st.booleans())
def test_figures_of_many_draws_are_those_of_each(seed: int, n: int, ties: bool) -> None:
    scores, anomaly = sample(seed, n, ties)
    ranking, drawn = Ranking(scores, anomaly), list(draws(anomaly, 5, seed))
    for figure in (ranking.auroc, ranking.average_precision, partial(ranking.precision_at, 3)):
        assert figure(np.stack(drawn)).tolist() == [figure(counts) for counts in drawn]


def test_intervals_do_not_depend_on_how_many_draws_are_computed_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, anomaly = sample(0, 100, True)
    figures = {"auroc": Ranking(scores, anomaly).auroc}
    whole = intervals(figures, draws(anomaly, 20))
    for cells in (1, 300, 10**9):
        monkeypatch.setattr(bootstrap, "BLOCK_CELLS", cells)
        assert intervals(figures, draws(anomaly, 20)) == whole


@given(st.integers(0, 9999), st.integers(0, 100))
def test_a_draw_has_as_many_of_each_kind(seed: int, n: int) -> None:
    _, anomaly = sample(seed, n, False)
    for counts in draws(anomaly, 3, seed):
        assert counts[anomaly].sum() == anomaly.sum()
        assert counts[~anomaly].sum() == (~anomaly).sum()


@given(st.integers(0, 9999), st.integers(0, 100))
def test_units_are_drawn_whole(seed: int, n: int) -> None:
    _, anomaly = sample(seed, n, False)
    unit = np.random.default_rng(seed).integers(0, 5, len(anomaly)).astype(str)
    for counts in draws(anomaly, 3, seed, unit):
        assert all(len(set(counts[unit == one])) == 1 for one in set(unit))


def test_the_same_seed_draws_the_same() -> None:
    anomaly = np.arange(50) < 5
    first, again, other = (np.array(list(draws(anomaly, 4, seed))) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_many_rows_are_drawn_less_often() -> None:
    assert choose_draws(0) == choose_draws(1_000) == DRAWS
    assert MIN_DRAWS < choose_draws(60_000) < DRAWS
    assert choose_draws(10**9) == MIN_DRAWS


def test_figures_that_do_not_exist_are_nan_and_have_no_interval() -> None:
    normal = np.zeros(5, bool)
    ranking = Ranking(np.arange(5.0), normal)
    assert np.isnan(ranking.auroc())
    assert np.isnan(ranking.average_precision())
    figures = {"auroc": ranking.auroc, "share": lambda counts: (counts[..., 0] > 0).astype(float)}
    found = intervals(figures, draws(normal, 50))
    assert found["auroc"] is None
    assert found["share"] == Interval(0.0, 1.0)
    assert intervals(figures, []) == {"auroc": None, "share": None}


@pytest.mark.slow
def test_the_interval_of_the_auroc_holds_it() -> None:
    """The interval covers the truth in about 95% of 400 samples."""
    rng = np.random.default_rng(0)
    anomaly = np.arange(400) < 60
    truth, held = 0.7602, 0  # Φ(1 / √2)
    for seed in range(400):
        ranking = Ranking(rng.normal(size=400) + anomaly, anomaly)
        found = interval(map(ranking.auroc, draws(anomaly, 199, seed)))
        assert found
        held += found.low <= truth <= found.high
    assert 365 <= held <= 395
