import numpy as np
import pytest

from benchmarks.sizes import (
    BLOCK_VALUES,
    GLOBAL_RANGE,
    KINDS,
    RowSimulator,
    detectable_kinds,
    measure,
)


def _rows(columns: int, count: int, kind: str | None = None) -> np.ndarray:
    simulator, generator = RowSimulator(columns, 0), np.random.default_rng(1)
    if kind is None:
        return simulator.normal(count, generator)
    return simulator.anomalies(kind, count, generator)


@pytest.mark.parametrize("columns", [1, 2, 30])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_rows_repeat_and_are_finite(columns: int, kind: str | None) -> None:
    rows = _rows(columns, 200, kind)
    assert rows.shape == (200, columns)
    assert np.isfinite(rows).all()
    np.testing.assert_array_equal(rows, _rows(columns, 200, kind))


def test_many_blocks_come_from_one_law() -> None:
    rows = _rows(2, BLOCK_VALUES)
    first, second = np.split(rows, 2)
    np.testing.assert_allclose(first.mean(0), second.mean(0), atol=0.02)
    assert len(np.unique(rows[:, 0])) == len(rows)


def test_columns_are_warped_in_turn() -> None:
    rows = _rows(8, 500)
    assert (rows[:, 1::4] > 0).all()
    assert (rows[:, 2::4] == np.round(rows[:, 2::4])).all()
    assert np.abs(rows[:, 3::4]).max() == 1


def test_dependency_keeps_each_column_and_breaks_the_rows() -> None:
    whole, broken = _rows(6, 500), _rows(6, 500, "dependency")
    np.testing.assert_array_equal(np.sort(whole, 0), np.sort(broken, 0))
    assert not (whole[:, None] == broken).all(-1).any()


def test_global_fills_the_range_of_each_column_and_a_little_more() -> None:
    normal, odd = _rows(4, 2_000), _rows(4, 2_000, "global")
    assert (np.ptp(odd, 0) <= GLOBAL_RANGE * np.ptp(normal, 0) * 1.0001).all()
    assert (np.ptp(odd, 0) > np.ptp(normal, 0)).all()


def test_a_column_alone_depends_on_nothing() -> None:
    assert set(KINDS) - set(detectable_kinds(1)) == {"dependency"}
    assert detectable_kinds(2) == KINDS


@pytest.mark.parametrize("method", ["IsolationForest", "kNN, k = 5"])
def test_a_measurement_says_what_it_found(method: str) -> None:
    found = measure(method, rows=300, columns=4, seed=0)
    assert found["global"] > 0.9
    assert 0.5 < found["auroc"] < 1
    assert found["fit_seconds"] >= 0
    assert found["peak_mib"] >= 0
