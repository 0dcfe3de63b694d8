"""The tests of counts: the martingale of bets, the limit of flags, and the anomalies set aside."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import betabinom, binom

from anomaly_vae.monitoring.martingale import (
    BREACH_LEVEL,
    CONCENTRATIONS,
    MAX_TESTS,
    TREND_LEVEL,
    log10_martingale,
    log10_martingales_of_columns,
    log_gamma,
    max_anomalies,
    max_flags,
    without_most_extreme,
)


def _log_rising(start, count):
    return gammaln(start + count) - gammaln(start)


def naive_log_ratio(counts, urn, concentration):
    """Compute the ratio row by row: predict a bin from each urn, then add a ball to it."""
    ours, theirs = urn.astype(float).copy(), concentration * urn / urn.sum()
    total = 0.0
    for b, count in enumerate(counts):
        for _ in range(int(count)):
            total += math.log(theirs[b] / theirs.sum()) - math.log(ours[b] / ours.sum())
            ours[b] += 1
            theirs[b] += 1
    return total


def test_the_martingale_is_the_bets_one_after_another():
    rng = np.random.default_rng(0)
    urn = np.array([5.0, 15.0, 40.0, 140.0])
    counts = np.cumsum(rng.multinomial(60, [0.1, 0.1, 0.3, 0.5], size=3), axis=0)
    ratios = [
        math.exp(naive_log_ratio(row, urn, k)) for row in counts for k in CONCENTRATIONS if k < 200
    ]
    found = log10_martingale(counts, urn, np.zeros(3))
    assert found == pytest.approx(math.log10(np.mean(ratios)), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spare", [0, 1, 3, 6])
def test_what_is_set_aside_is_what_speaks_most_against_the_promise(seed, spare):
    """Removing other rows never leaves a lower ratio, except for rounding."""
    rng = np.random.default_rng(seed)
    urn, k = np.array([5.0, 15.0, 40.0, 140.0]), 30.0
    counts = rng.multinomial(40, rng.dirichlet([0.5, 0.5, 1, 2]))
    choices = itertools.product(*(range(min(spare, int(c)) + 1) for c in counts))
    least = min(
        naive_log_ratio(counts - np.array(gone), urn, k) for gone in choices if sum(gone) <= spare
    )
    others = (k * urn / urn.sum())[None, None, :]
    kept = without_most_extreme(counts[None], urn, others, np.array([float(spare)]))[0, 0]
    assert counts.sum() - kept.sum() <= spare + 3
    gain = _log_rising(others[0, 0], kept) - _log_rising(urn, kept)
    rising = [_log_rising(total, kept.sum()) for total in (k, urn.sum())]
    found = float(gain.sum() - rising[0] + rising[1])
    assert found <= least + 0.01
    assert found >= least - 1.5


@pytest.mark.parametrize(
    ("rows", "k", "n"), [(1, 1, 99), (50, 1, 99), (4000, 20, 1999), (300, 5, 99)]
)
def test_the_limit_of_flags_is_the_beta_binomial_quantile(rows, k, n):
    level = 1 - BREACH_LEVEL / (2 * MAX_TESTS)
    truth = betabinom(rows, k, n + 1 - k).ppf(level)
    assert max_flags(rows, k, n + 1) == truth


@pytest.mark.parametrize("share", [0.001, 0.0085, 0.05, 0.5])
def test_as_many_anomalies_as_chance_may_bring_are_set_aside(share):
    rows = np.array([1, 30, 128, 1000, 4000, 100_000])
    most = max_anomalies(rows, share)
    truth = binom.ppf(1 - BREACH_LEVEL / (2 * MAX_TESTS), rows, share)
    assert (most >= truth).all()
    assert (most <= truth + 0.1 * truth + 10).all()


def test_log_gamma_is_exact():
    x = np.array([1e-6, 0.01, 0.5, 1, 2, 3.3, 10, 250, 1e4, 1e6, 1e9])
    np.testing.assert_allclose(log_gamma(x), gammaln(x), rtol=1e-12, atol=1e-11)


# ---------------------------------------------------------------- columns


def drawn(rng, concentration, shares, rows, windows=1):
    """Draw counts (windows, 1, B) of a day from the null hypothesis."""
    days = rng.dirichlet(concentration * shares, size=windows)
    return np.array([rng.multinomial(rows, day) for day in days])[:, None, :]


SHARES = np.array([0.02, *(0.12 for _ in range(8)), 0.02, 0.0])


def test_the_martingale_of_a_column_is_1_on_average():
    rng, concentration = np.random.default_rng(0), 1500.0
    counts = drawn(rng, concentration, SHARES[:-1], 2000, 4000)
    urns = np.broadcast_to(concentration * SHARES[:-1], counts.shape)
    found = 10 ** log10_martingales_of_columns(counts, urns)
    assert np.mean(found) <= 1 + 3 * np.std(found) / math.sqrt(len(found))
    assert np.mean(found >= 20) <= 0.05


def test_a_shift_of_all_values_is_noticed_with_few_rows():
    """A tenth of the rows has values in the upper third: less than a bin's share moves."""
    rng, concentration = np.random.default_rng(1), 5000.0
    moved = SHARES[:-1].copy() * 0.9
    moved[6:9] += 0.1 / 3
    counts = drawn(rng, concentration, moved, 3000, 50)
    urns = np.broadcast_to(concentration * SHARES[:-1], counts.shape)
    assert np.mean(log10_martingales_of_columns(counts, urns) > 2) > 0.8


def test_values_that_go_missing_are_noticed():
    counts = np.array([[[4, *(24 for _ in range(8)), 4, 50]]])
    urns = np.broadcast_to(1500 * (SHARES * 0.999 + 0.001 / 11), counts.shape)
    assert log10_martingales_of_columns(counts, urns)[0] > 10


def test_the_evidence_of_a_column_that_is_missing_is_finite():
    urns = np.full((2, 1, 4), 5000.0)
    counts = np.array([[[0, 0, 0, 4000]], [[1000, 1000, 1000, 1000]]])
    missing, usual = log10_martingales_of_columns(counts, urns)
    assert 308 < missing < np.inf
    assert usual < 0


def test_a_tenth_of_the_rows_moving_to_the_upper_end_is_a_trend():
    urns = np.tile([2500.0] * 8 + [0.1], (12, 1, 1))
    counts = np.full((12, 1, 9), 250)
    counts[..., 8] = 0
    counts[0, 0, :8] = [225, 225, 225, 225, 225, 225, 285, 365]
    logs = log10_martingales_of_columns(counts, urns)
    assert logs[0] > np.log10(12 / TREND_LEVEL / 2)
    assert (logs[1:] < 0).all()
