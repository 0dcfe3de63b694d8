import numpy as np
import pandas as pd
import pytest

from anomaly_vae.calibration.conformal import calibrate, flagged_ranks, ranks_within
from benchmarks.common import Ledger, Options, expected_rate_range

ALPHA, N, NORMALS = 0.05, 39, 50


@pytest.mark.parametrize("n", [19, 38, 39, 99, 100, 400])
def test_what_is_promised_is_what_the_threshold_keeps(n: int) -> None:
    calibration = calibrate(np.arange(n, dtype=float), ALPHA)
    assert ranks_within(ALPHA, n) == flagged_ranks(calibration)


@pytest.mark.parametrize("fits", [1, 5])
def test_the_range_holds_95_percent_of_simulated_means(fits: int) -> None:
    generator = np.random.default_rng(0)
    means = np.array([np.mean([_rate(generator) for _ in range(fits)]) for _ in range(4_000)])
    low, high = expected_rate_range(ALPHA, N, NORMALS, fits)
    below, above = (means < low - 1e-9).mean(), (means > high + 1e-9).mean()
    assert max(below, above) <= 0.025 + 0.008
    assert below + above >= 0.01, "the range is wider than it need be"


def _rate(generator: np.random.Generator) -> float:
    return float(calibrate(generator.random(N), ALPHA).flags(generator.random(NORMALS)).mean())


def test_the_range_of_a_mean_is_narrower() -> None:
    low, high = expected_rate_range(ALPHA, N, NORMALS)
    mean_low, mean_high = expected_rate_range(ALPHA, N, NORMALS, fits=20)
    assert low < mean_low < ranks_within(ALPHA, N) / (N + 1) < mean_high < high


def test_a_ledger_knows_what_it_kept(tmp_path) -> None:
    first = Ledger(tmp_path / "some" / "kept.csv", ("set", "alpha", "seed"))
    first.add(("cover", 0.05, 0), {"fpr": 0.04})
    first.add(("cover", 0.01, 0), {"fpr": np.nan})
    again = Ledger(first.path, first.keys)
    assert ("cover", 0.05, 0) in again
    assert ("cover", 0.01, 0) in again
    assert ("cover", 0.05, 1) not in again
    pd.testing.assert_frame_equal(again.rows, first.rows)


def test_what_the_data_lack_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("ANOMALY_VAE_DATA", raising=False)
    (tmp_path / "adbench").mkdir()
    options = Options(data=tmp_path, out=tmp_path, seeds=1, only="*", short=True)
    assert options.missing_data(("adbench",)) == ""
    line = options.missing_data(("adbench", "fraud", "mri"))
    assert f"{tmp_path / 'fraud'}, {tmp_path / 'mri'} not found" in line
    assert "\n" not in line
    nowhere = Options(data=None, out=tmp_path, seeds=1, only="*", short=True)
    assert "--data" in nowhere.missing_data(("adbench",))
    assert nowhere.missing_data(()) == ""
