"""The replay of a month: what is put into it, and what is said without the data."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.__main__ import main
from benchmarks.handbook import BASE_COLUMNS
from benchmarks.watch import (
    DAILY_ROWS,
    POPULATIONS,
    TERMINAL,
    TIME,
    Population,
    changes,
    report_entities,
    thinned,
)


@pytest.fixture
def month():
    """Return 2,000 rows whose terminals have as many transactions as their number."""
    rng = np.random.default_rng(0)
    terminals = np.repeat(np.arange(63), np.arange(63))[-1_900:]
    table = pd.DataFrame({name: rng.random(len(terminals)) for name in BASE_COLUMNS})
    for name in BASE_COLUMNS:
        if name.startswith(TERMINAL):
            table[name] = terminals
    start = pd.Timestamp("2018-08-01")
    times = start + pd.to_timedelta(np.arange(len(table)), unit="min")
    return table.assign(**{TERMINAL: terminals, TIME: times})


def test_each_change_is_put_in(month):
    rng = np.random.default_rng(0)
    larger, moved, missing = (change(month.copy(), rng) for change in changes(month).values())
    np.testing.assert_allclose(larger["TX_AMOUNT"], 1.5 * month["TX_AMOUNT"])
    columns = [name for name in BASE_COLUMNS if name.startswith(TERMINAL)]
    others = (moved[columns] != month[columns]).any(axis=1)
    assert 0.07 < others.mean() < 0.13
    assert moved.loc[others, columns].to_numpy().min() > 50
    assert missing.isna().all().sum() == 1


def test_a_thinned_month_keeps_its_order(month):
    part = thinned(month, DAILY_ROWS // 4, seed=1)
    assert 0.2 < len(part) / len(month) < 0.3
    assert part[TIME].is_monotonic_increasing


def test_a_population_is_of_the_same_entities_in_each_month(month):
    later = month.sample(frac=0.5, random_state=0)
    half = Population(TERMINAL, 5_000, 25)
    of_month, of_later = (half.of(table) for table in (month, later))
    assert set() < set(of_later[TERMINAL]) <= set(of_month[TERMINAL]) < set(month[TERMINAL])
    assert POPULATIONS[1].title == "300 terminals"


def test_few_entities_have_tables_of_their_own():
    statuses = {"doubtful": 0, "broken": 0, "unknown": 0.01, "holding_later": 1, "fpr": 0.01}
    sizes = {"entities": "500 customers", "daily_rows": 953.3, "request_rows": 50, "answers": 592}
    delay = {"change": "moved", "daily_rows": "500 customers", "rows": np.inf, "hours": np.inf}
    text = report_entities(pd.DataFrame([sizes | statuses]), pd.DataFrame([delay]))
    assert "| 500 customers | 953 | 50 | 592 | 0.00% |" in text
    assert "| moved | 500 customers | – | – | – | 0 of 1 |" in text


def test_without_the_data_it_says_what_to_give(tmp_path):
    with pytest.raises(SystemExit, match=r"fraud not found; correct --data"):
        main(["watch", "--data", str(tmp_path)])
