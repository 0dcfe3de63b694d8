"""Counts of parts: they add up, survive storage, and give quantiles of the scores."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.batch.result.counts import Counts, Scores

scores = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60)


@given(scores, scores)
def test_quantiles_are_close_and_do_not_depend_on_the_parts(
    first: list[float], second: list[float]
) -> None:
    together, apart = Scores(), Scores()
    together.count(np.array([*first, *second]))
    for part in (second, first):
        one = Scores()
        one.count(np.array(part))
        apart.add(one)
    assert together.quantiles() == apart.quantiles()
    ordered = sorted([*first, *second])
    for level, value in together.quantiles().items():
        rank = max(int(np.ceil(float(level) * len(ordered))), 1)
        assert value == pytest.approx(ordered[rank - 1], rel=0.004, abs=1e-300)


def test_no_scores_have_no_quantiles() -> None:
    empty = Scores()
    empty.count(np.array([]))
    assert empty.quantiles() == {}


def test_stored_counts_are_the_counts() -> None:
    counts = Counts(3, 1, 1, Counter(a=2), Counter(x=1), np.arange(3))
    counts.rows_of_files, counts.notes = {4: 10}, [{"files": {"read as x": ["a.csv"]}}]
    counts.scores.count(np.array([-1.5, 0.0, 2.5]))
    for case in (counts, Counts()):
        again = Counts.from_json(json.loads(json.dumps(case.to_json())))
        assert again.to_json() == case.to_json()
    double = Counts()
    double.add(counts)
    double.add(counts)
    assert (double.scored, double.unusual, double.rejected) == (6, 2, 4)
    assert double.monitor is not None
    assert double.monitor.tolist() == [0, 2, 4]
