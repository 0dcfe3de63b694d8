"""What rows of one entity have in common, and how their values drift."""

import math

import numpy as np
import pytest

from anomaly_vae.data.splitting import DAY
from anomaly_vae.monitoring.cycles import Timeline, fit_cycle
from anomaly_vae.monitoring.entities import EntityRows, effective_number

DAYS, WINDOW, BINS = 14, 30, 8
"""Days of calibration, days that a slow value is averaged over, and bins of its values."""


def traffic(entities, seed, days=DAYS, slow=1.0, fixed=1.0, rows_a_day=4):
    """Draw rows of entities over days: their entity, time and value.

    Values of an entity are the sum of a fixed part and of a mean over the last `WINDOW` days, both
    with the given standard deviations.
    """
    rng = np.random.default_rng(seed)
    daily = rng.normal(size=(entities, days + WINDOW - 1))
    means = np.lib.stride_tricks.sliding_window_view(daily, WINDOW, axis=1).mean(axis=2)
    values = slow * math.sqrt(WINDOW) * means + fixed * rng.normal(size=(entities, 1))
    entity, day = (np.repeat(part.ravel(), rows_a_day) for part in np.indices((entities, days)))
    order = np.argsort(day, kind="stable")
    seconds = (day + rng.uniform(size=len(day))) * DAY
    return entity[order], seconds[order], np.repeat(values.ravel(), rows_a_day)[order]


def binned(values, scale):
    return np.searchsorted(scale * np.array([-1.15, -0.67, -0.32, 0, 0.32, 0.67, 1.15]), values)


def drift(found, days=55):
    """Return the drift after this number of days."""
    return min(found.rate * days, found.limit)


def dispersion_of(entities, seed, slow=1.0, fixed=1.0, rare=False):
    entity, seconds, values = traffic(entities, seed, slow=slow, fixed=fixed)
    bins = binned(values, math.hypot(slow, fixed))
    return EntityRows.of(entity, seconds).dispersion(bins, BINS, rare)


def test_the_effective_number_is_that_of_equally_frequent_entities():
    assert effective_number(np.repeat(np.arange(50), 40)) == pytest.approx(50, rel=0.03)
    assert effective_number(np.array([0] * 90 + list(range(1, 11)))) == pytest.approx(
        1.24, rel=0.01
    )
    assert effective_number(np.arange(9)) == math.inf


def test_independent_rows_vary_no_further():
    rng = np.random.default_rng(0)
    entity, seconds, values = traffic(200, 0)
    found = EntityRows.of(entity, seconds).dispersion(
        rng.integers(0, BINS, len(values)), BINS, False
    )
    assert found.days < 2e-4
    assert found.limit < 2e-4


def test_rows_without_entities_or_in_one_bin_tell_nothing():
    entity, seconds, values = traffic(20, 0)
    alone = EntityRows.of(np.arange(len(entity)), seconds)
    assert alone.dispersion(binned(values, 1), BINS, False).limit == 0
    rows = EntityRows.of(entity, seconds)
    assert rows.dispersion(np.full(len(entity), 3), BINS, False).limit == 0


def test_values_that_stay_do_not_drift():
    """Entities differ, but each keeps its values, so that the shares of bins stay, too."""
    assert drift(dispersion_of(100, 1, slow=0)) < 1e-3
    assert drift(dispersion_of(100, 1)) > 5e-3


def test_the_drift_is_as_large_as_that_of_later_months():
    """Shares differ from those of calibration 45 days later as expected, with those of chance."""
    squares, expected = [], []
    for seed in range(150):
        entity, seconds, values = traffic(40, seed, days=60)
        bins, early = binned(values, math.sqrt(2)), seconds < DAYS * DAY
        parts = bins[early], bins[seconds > 59 * DAY]
        before, after = (np.bincount(part, minlength=BINS) / len(part) for part in parts)
        squares.append(((after - before) ** 2).sum() / (1 - 1 / BINS))
        found = EntityRows.of(entity[early], seconds[early]).dispersion(bins[early], BINS, False)
        expected.append(found.days + drift(found) + sum(1 / len(part) for part in parts))
    assert 1 < np.mean(expected) / np.mean(squares) < 1.5


def test_the_mean_of_a_score_drifts_as_much_as_it_does_later():
    """The squared difference of the mean of a later day is as large as expected on average."""
    squares, expected = [], []
    for seed in range(100):
        entity, seconds, values = traffic(40, seed, days=60)
        scores, early = values / math.sqrt(2), seconds < DAYS * DAY
        late = scores[seconds > 59 * DAY]
        squares.append((scores[early].mean() - late.mean()) ** 2)
        found = EntityRows.of(entity[early], seconds[early]).dispersion_of_scores(scores[early])
        expected.append(found.days + drift(found) + 1 / early.sum() + 1 / len(late))
    assert 1 < np.mean(expected) / np.mean(squares) < 1.8


def test_other_entities_differ_from_the_first_day_on():
    """The squared difference of the mean of others' rows is as large as expected on average."""
    squares, expected = [], []
    for seed in range(100):
        (entity, seconds, values), (*_, others) = traffic(40, seed), traffic(40, 1_000 + seed)
        scores = values / math.sqrt(2)
        squares.append((scores.mean() - others.mean() / math.sqrt(2)) ** 2)
        found = EntityRows.of(entity, seconds, divided=True).dispersion_of_scores(scores)
        assert found.rate == found.limit == 0
        expected.append(found.days + 2 / len(scores))
    assert 0.8 < np.mean(expected) / np.mean(squares) < 1.8


def test_fewer_entities_drift_further():
    few, many = (drift(dispersion_of(entities, 2)) for entities in (50, 500))
    assert 5 < few / many < 20


def test_rare_bins_vary_only_beyond_chance():
    """Flags of a single entity tell nothing of others."""
    entity, seconds, _ = traffic(100, 3)
    flags = ((entity == 7) & (seconds < 3 * DAY)).astype(int)
    rows = EntityRows.of(entity, seconds)
    rare, usual = (drift(rows.dispersion(flags, 2, rare)) for rare in (True, False))
    assert rare < 1e-3 < usual


def test_gaps_in_the_calibration_days_count_as_time():
    entity, seconds, values = traffic(100, 4)
    kept = (seconds < 3 * DAY) | (seconds > 12 * DAY)
    bins = binned(values, math.sqrt(2))
    rows = EntityRows.of(entity[kept], seconds[kept])
    assert rows.lags.max() == 13
    assert drift(rows.dispersion(bins[kept], BINS, False)) > 1e-3


def test_many_days_are_joined():
    entity, seconds, _ = traffic(10, 5, days=64)
    rows = EntityRows.of(entity, seconds)
    assert (rows.lags.shape, rows.lags[0, 1]) == ((16, 16), 4)


def test_what_is_expected_of_days_includes_the_drift_of_entities():
    entity, seconds, values = traffic(50, 6)
    bins = binned(values, math.sqrt(2))[:, None]

    def concentration(entities):
        timeline = Timeline("at", seconds, True, entities)
        return fit_cycle(timeline, bins, [BINS], 250).concentrations(60)[0, 0]

    plain, unique = concentration({}), concentration({"row": np.arange(len(entity))})
    both = concentration({"row": np.arange(len(entity)), "customer": entity})
    assert unique == plain
    assert 10 < both < 60 < plain
