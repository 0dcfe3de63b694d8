"""The report of the tabular protocol, on ledgers and tables made up here."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.tabular import OURS, TYPED, Task, duels, load_task, report, sign_test

NAMES = np.array(["site_id", "amount", "row_id", "zip_code", "price"])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with a given split: codes, whole numbers, a number per row, two values, prices."""
    rows, generator = np.arange(40), np.random.default_rng(0)
    columns = (rows % 5, rows % 7, rows, rows % 2, generator.random(40))
    x = np.stack(columns, 1).astype(float)
    path = tmp_path / "shop.npz"
    np.savez(path, train=x, test=x[:10], y=np.arange(10) >= 8, columns=NAMES)
    return path


def test_a_given_split_is_kept_for_every_seed(table: Path) -> None:
    first, second = (load_task(table, seed) for seed in (0, 1))
    assert first.train.shape, first.test.shape == ((40, 5), (10, 5))
    np.testing.assert_array_equal(first.train, second.train)
    assert first.anomaly.tolist() == [False] * 8 + [True] * 2


def test_only_codes_that_repeat_are_categories(table: Path) -> None:
    types = load_task(table, 0).types
    assert types == {
        "x0": "categorical",
        "x1": "numeric",
        "x2": "numeric",
        "x3": "numeric",
        "x4": "numeric",
    }


def test_a_table_without_a_split_is_split_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, X=np.arange(60.0).reshape(30, 2), y=np.arange(30) >= 26)
    task = load_task(path, 0)
    assert isinstance(task, Task)
    assert (len(task.train), len(task.test), int(task.anomaly.sum())) == (13, 17, 4)
    assert set(task.types.values()) == {"numeric"}


def ledger(*figures: tuple[str, str, float]) -> pd.DataFrame:
    """Measurements of methods on sets, equal in both metrics."""
    rows = pd.DataFrame(figures, columns=["method", "set", "auroc"])
    return rows.assign(average_precision=rows.auroc, seed=0, fit_seconds=1.0, score_seconds=1.0)


def test_wins_ties_and_losses_of_the_default() -> None:
    ours, peer = OURS[0].name, "kNN, k = 1"
    sets = [(f"set {i}", 0.9, 0.8) for i in range(7)] + [("even", 0.7, 0.7001), ("lost", 0.6, 0.9)]
    rows = ledger(*((m, s, f) for s, a, b in sets for m, f in ((ours, a), (peer, b))))
    line = next(line for line in duels(rows).splitlines() if peer in line)
    assert line == f"| {peer} | 7, 1, 1 | 7, 1, 1 | {9 / 128:.3f} | {9 / 128:.3f} |"


def test_peers_can_be_measured_before_the_default() -> None:
    assert len(duels(ledger(("kNN, k = 1", "a", 0.5))).splitlines()) == 2


def test_the_sign_test_of_nothing() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 6) == pytest.approx(2 / 64)


def test_sets_without_codes_count_for_typed_columns_as_measured_without_types() -> None:
    ours, typed = OURS[0].name, TYPED[0].name
    rows = ledger((ours, "codes", 0.5), (ours, "plain", 0.7), (typed, "codes", 0.9))
    line = next(line for line in report(rows).splitlines() if typed in line)
    assert line.startswith(f"| {typed} | 80.0 |")
