"""Statistics of windows equal those of each window alone."""

import math
import statistics

import numpy as np
import pytest

from anomaly_vae.features.sliding import deviations, distinct, maxima, sums


@pytest.mark.parametrize("seed", range(20))
def test_statistics_equal_those_of_each_window_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 60))
    values = rng.normal(size=count) * 10.0 ** rng.integers(-3, 9, count) + rng.choice([0, 1e9])
    codes = rng.integers(-1, 5, count)
    start, stop = np.sort(rng.integers(0, count + 1, (2, 40)), axis=1)
    stop = np.maximum(start, stop)
    found = (f(values, start, stop) for f in (sums, maxima, deviations))
    rows = zip(start, stop, *found, distinct(codes, start, stop), strict=True)
    for first, end, total, largest, deviation, different in rows:
        window = values[first:end].tolist()
        assert total == pytest.approx(
            math.fsum(window), rel=1e-12, abs=1e-12 * np.abs(window).sum()
        )
        np.testing.assert_equal(largest, max(window, default=np.nan))
        spread = statistics.stdev(window) if len(window) > 1 else np.nan
        assert deviation == pytest.approx(spread, rel=1e-11, nan_ok=True)
        assert different == len(set(codes[first:end].tolist()) - {-1})


def test_values_outside_a_window_change_not_even_its_last_bit() -> None:
    values = np.random.default_rng(0).lognormal(size=50)
    edges = np.array([7]), np.array([29])
    shifted = np.concatenate([[1e15], values[7:29], [1e15]])
    for statistic in (sums, maxima, deviations):
        alone = statistic(shifted, np.array([1]), np.array([23]))
        assert statistic(values, *edges) == alone
