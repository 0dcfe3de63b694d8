"""Splits are disjoint, seeded and ordered by time; groups stay whole, anomalies never train."""

import datetime as dt
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly_vae.config.data import Splits
from anomaly_vae.data.splitting import (
    CALIBRATION,
    MIN_KNOWN,
    MIN_TRAIN,
    NAMES,
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    Assignment,
    Rows,
    assign,
    contained_in,
    one_row_per_group,
    spread,
    thin_by_ratio,
)
from anomaly_vae.errors import DataError

DAY = 86_400.0
LEARNT = (TRAIN, VALIDATION, CALIBRATION)
SPANS = {"train": ["1970-01-01", "1970-02-01"], "calibration": ["1970-02-01", "1970-02-15"],
         "test": ["1970-02-15", "1970-03-10"]}  # fmt: skip


def rows_of(
    n: int,
    *,
    anomaly: Any = (),
    unlabelled: Any = (),
    time: NDArray[np.float64] | None = None,
    group: Any = None,
) -> Rows:
    """Return rows with the given positions marked."""
    masks = [np.isin(np.arange(n), list(marked)) for marked in (anomaly, unlabelled)]
    codes = None if group is None else np.asarray(group, np.int32)
    return Rows(masks[0], masks[1], time, codes)


@st.composite
def random_rows(draw: st.DrawFn, timed: bool | None = None, grouped: bool | None = None) -> Rows:
    """Return rows with labels, times and groups of every kind, drawn from one seed."""
    n = draw(st.integers(60, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.1, 0.4]))
    time = np.round(rng.uniform(0, 60, n)) * DAY  # with ties
    time[rng.random(n) < share / 4] = math.nan
    group = np.unique(rng.integers(0, draw(st.integers(5, n)), n), return_inverse=True)[1]
    with_time = draw(st.booleans()) if timed is None else timed
    with_group = draw(st.booleans()) if grouped is None else grouped
    return Rows(
        rng.random(n) < share,
        rng.random(n) < share,
        time if with_time else None,
        group.astype(np.int32) if with_group else None,
    )


configs = st.builds(
    Splits,
    train=st.sampled_from([None, 0.3]),
    calibration=st.sampled_from([0.2, 0.35]),
    test=st.sampled_from([0.2, 0.3]),
    validation=st.sampled_from([0.05, 0.3]),
    gap_days=st.sampled_from([0.0, 2.5]),
    seed=st.integers(0, 2**63 - 1),
) | st.builds(lambda seed: Splits.model_validate({**SPANS, "seed": seed}), st.integers(0, 99))


def assign_or_skip(rows: Rows, config: Splits) -> Assignment:
    """Assign rows, and reject examples that are too small, which other tests cover."""
    assume(rows.time is not None or not config.by_interval)
    try:
        return assign(rows, config)
    except DataError:
        assume(False)
        raise


def of(values: NDArray[Any], found: Assignment, *splits: int) -> NDArray[Any]:
    return values[np.isin(found.codes, splits)]


@given(random_rows(), configs)
def test_every_row_has_one_split_or_one_reason(rows: Rows, config: Splits) -> None:
    found = assign_or_skip(rows, config)
    parts = [found.rows(split) for split in range(len(NAMES))]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows)))
    assert list(found.counts.values()) == [len(part) for part in parts]
    assert sum(found.unused.values()) == found.counts["unused"]
    assert all(found.counts[name] for name in NAMES[1:])
    assert found.counts["train"] >= MIN_TRAIN


@given(random_rows(), configs)
def test_known_anomalies_are_only_ever_tested_on(rows: Rows, config: Splits) -> None:
    found = assign_or_skip(rows, config)
    assert not of(rows.anomaly, found, *LEARNT).any()


@given(random_rows(), configs)
def test_tests_without_a_label_are_unused(rows: Rows, config: Splits) -> None:
    found = assign_or_skip(rows, config)
    assert not of(rows.unlabelled, found, TEST).any()


@given(random_rows(grouped=True), configs)
def test_no_group_is_cut(rows: Rows, config: Splits) -> None:
    found = assign_or_skip(rows, config)
    assert rows.group is not None
    groups = [set(of(rows.group, found, split)) for split in (*LEARNT, TEST)]
    assert sum(map(len, groups)) == len(set().union(*groups))


@given(random_rows(timed=True), configs)
def test_time_runs_from_training_to_test_with_the_gap_between(rows: Rows, config: Splits) -> None:
    found = assign_or_skip(rows, config)
    assert rows.time is not None
    train = of(rows.time, found, TRAIN, VALIDATION)
    calibration = of(rows.time, found, CALIBRATION)
    test = of(rows.time, found, TEST)
    assert train.max() <= calibration.min()
    assert calibration.max() <= test.min()
    assert test.min() - calibration.max() >= config.gap_days * DAY
    assert not np.isnan(np.concatenate([train, calibration, test])).any()


@given(random_rows(), configs)
def test_the_same_seed_gives_the_same_split_and_digest(rows: Rows, config: Splits) -> None:
    first = assign_or_skip(rows, config)
    second = assign(rows, config)
    np.testing.assert_array_equal(first.codes, second.codes)
    assert first.digest == second.digest


@pytest.mark.parametrize("group", [None, np.arange(300) // 3])
@pytest.mark.parametrize("seed", range(1, 5))
def test_another_seed_gives_another_split_and_digest(group: Any, seed: int) -> None:
    rows = rows_of(300, group=group)
    first, second = (assign(rows, Splits(seed=s)) for s in (0, seed))
    for split in (CALIBRATION, TEST):
        assert set(first.rows(split)) != set(second.rows(split))
    assert first.digest != second.digest


def test_the_digest_is_of_the_whole_assignment() -> None:
    codes = np.array([TRAIN, TEST], np.int8)
    assert Assignment(codes, {}).digest != Assignment(codes[::-1].copy(), {}).digest


# ---------------------------------------------------------------- shares


def test_fractions_are_of_the_normal_rows_and_anomalies_all_test() -> None:
    found = assign(rows_of(1_100, anomaly=range(100)), Splits(calibration=0.25, test=0.15))
    assert found.counts == {
        "unused": 0, "train": 540, "validation": 60, "calibration": 250, "test": 250
    }  # fmt: skip
    assert found.unused == {}


def test_what_no_fraction_claims_is_left_out_and_counted() -> None:
    found = assign(rows_of(100), Splits(train=0.3, calibration=0.2, test=0.2))
    assert found.unused == {"outside every split": 30}


def test_groups_are_dealt_by_the_rows_they_hold() -> None:
    group = np.repeat(np.arange(500), np.random.default_rng(0).integers(1, 9, 500))
    found = assign(rows_of(len(group), group=group), Splits(calibration=0.3, test=0.2))
    shares = {name: count / len(group) for name, count in found.counts.items()}
    assert shares["calibration"] == pytest.approx(0.3, abs=0.02)
    assert shares["test"] == pytest.approx(0.2, abs=0.02)
    assert found.counts["unused"] == 0


def test_the_last_rows_by_time_test_whatever_the_order_of_the_file() -> None:
    time = np.random.default_rng(0).permutation(200) * DAY
    found = assign(rows_of(200, time=time, anomaly=[0]), Splits())
    assert time[found.rows(TEST)].min() / DAY >= 160
    assert found.counts["test"] == 40


def test_intervals_are_half_open() -> None:
    time = np.arange(80) * DAY
    found = assign(rows_of(80, time=time), Splits.model_validate(SPANS))
    assert (found.rows(CALIBRATION) == np.arange(31, 45)).all()
    assert (found.rows(TEST) == np.arange(45, 68)).all()
    assert found.unused == {"outside every split": 12}


def test_intervals_respect_the_gap_and_zones() -> None:
    time = np.arange(80) * DAY
    spans = {**SPANS, "test": ["1970-02-15T02:00:00+02:00", "1970-03-10"]}
    found = assign(rows_of(80, time=time), Splits.model_validate({**spans, "gap_days": 7}))
    assert (found.rows(CALIBRATION) == np.arange(31, 38)).all()
    assert (found.rows(TEST) == np.arange(45, 68)).all()


def test_a_moment_may_be_given_as_a_datetime() -> None:
    start, middle, end, last = (dt.datetime(1970, m, 1, tzinfo=dt.UTC) for m in (1, 2, 3, 4))
    config = Splits(train=(start, middle), calibration=(middle, end), test=(end, last))
    found = assign(rows_of(90, time=np.arange(90) * DAY), config)
    assert found.counts["test"] == 31


def test_reasons_are_counted_once_for_each_row() -> None:
    planned = assign(
        rows_of(200, time=np.arange(200) * DAY, anomaly=[0, 1], unlabelled=[199]), Splits()
    )
    found = planned.without(np.isin(np.arange(200), [1, 2, 3]), "cells that do not fit")
    assert found.without(np.isin(np.arange(200), [3, 199]), "again") is found
    assert found.unused == {
        "cells that do not fit": 2,
        "anomalies outside the test split": 2,
        "unlabelled in the test split": 1,
    }
    assert (found.codes[[0, 1, 2, 3, 199]] == UNUSED).all()
    assert found.counts["unused"] == sum(found.unused.values())


def test_leaving_out_a_whole_split_is_refused_with_its_reason() -> None:
    planned = assign(rows_of(200), Splits())
    with pytest.raises(DataError, match=r"calibration split has no rows .*; 40 known already$"):
        planned.without(planned.codes == CALIBRATION, "known already")


def test_one_row_of_each_group_is_chosen_by_a_fixed_seed() -> None:
    group = np.repeat(np.arange(30), 7).astype(np.int32)
    rows = np.arange(70, 210)
    chosen = one_row_per_group(rows, group)
    assert group[chosen].tolist() == list(range(10, 30))
    assert set(chosen) <= set(rows.tolist())
    assert len(set((chosen % 7).tolist())) > 1
    assert (one_row_per_group(rows, group) == chosen).all()
    assert (one_row_per_group(rows, None) == rows).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_twins_are_equal_rows_missing_cells_and_signed_zeros_included(kind: type) -> None:
    rows = np.array([[1, np.nan], [-0.0, 2], [1, 2]], kind)
    others = np.array([[0.0, 2], [1, np.nan]], kind)
    assert contained_in(rows, others).tolist() == [True, True, False]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("n", [0, 1, 2, 5, 12])
def test_too_few_rows_are_refused_with_the_remedy(n: int) -> None:
    for rows in (rows_of(n), rows_of(n, time=np.arange(n) * DAY), rows_of(n, group=np.arange(n))):
        with pytest.raises(DataError, match=rf"of {n} rows .*; give more rows or change data\.spl"):
            assign(rows, Splits())


def test_a_split_without_rows_is_refused_by_name_and_reason() -> None:
    rows = rows_of(100, unlabelled=range(100))
    with pytest.raises(DataError) as caught:
        assign(rows, Splits())
    assert str(caught.value) == (
        "the test split has no rows (of 100); give more rows or change data.splits.test; "
        "20 unlabelled in the test split"
    )
    with pytest.raises(DataError, match=r"the calibration split has no rows .*splits\.calibration"):
        assign(rows_of(100), Splits(calibration=0.001))


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"^0 of 100 rows are left to train on"):
        assign(rows_of(100, group=np.zeros(100)), Splits())


def test_intervals_need_a_time_column() -> None:
    with pytest.raises(DataError, match=r"intervals of time, but data\.time names no column"):
        assign(rows_of(100), Splits.model_validate(SPANS))


# ---------------------------------------------------------------- twins


def naive_twins(train: NDArray[np.float32], test: NDArray[np.float32]) -> list[bool]:
    """Compare row by row and cell by cell; missing equals missing."""

    def same(a: float, b: float) -> bool:
        return a == b or (math.isnan(a) and math.isnan(b))

    return [any(all(map(same, row.tolist(), other.tolist())) for other in train) for row in test]


cells = st.sampled_from([0.0, -0.0, 1.0, math.nan, -math.nan, 1e4])


@given(st.integers(1, 3).flatmap(lambda width: st.tuples(
    *[st.lists(st.lists(cells, min_size=width, max_size=width), max_size=8)] * 2, st.just(width)
)))  # fmt: skip
def test_twins_are_those_that_a_plain_comparison_finds(drawn: Any) -> None:
    train, test = (np.array(x, np.float32).reshape(-1, drawn[2]) for x in drawn[:2])
    assert contained_in(test, train).tolist() == naive_twins(train, test)


def test_twins_do_not_depend_on_the_bits_of_nan_or_the_sign_of_zero() -> None:
    train = np.array([[0.0, math.nan]], np.float32)
    test = train.copy()
    test.view(np.uint32)[0] = [0x80000000, 0xFFC00001]
    assert contained_in(test, train).all()
    assert contained_in(test, np.asfortranarray(np.repeat(train, 3, 0))).all()


def test_groups_of_anomalies_alone_are_all_tested_on() -> None:
    """Such groups are assigned like single anomalies; mixed groups stay together."""
    group = np.arange(200, dtype=np.int32)
    group[190:] = np.arange(10)  # ten anomalies of patients that have a normal row as well
    anomaly = np.arange(200) >= 150
    rows = Rows(anomaly, np.zeros(200, bool), None, group)
    assigned = assign(rows, Splits())
    assert (assigned.codes[150:190] == TEST).all()
    beside = assigned.codes[:10]
    assert (assigned.codes[190:] == np.where(beside == TEST, TEST, UNUSED)).all()


# ---------------------------------------------------------------- what thresholds learn labels from


@given(random_rows(), configs, st.sampled_from([0.0, 0.5]))
def test_known_anomalies_that_help_to_choose_a_threshold_are_in_no_split(
    rows: Rows, config: Splits, share: float
) -> None:
    found = assign_or_skip(rows, config.model_copy(update={"anomalies": share}))
    assert rows.anomaly[found.calibration_anomalies].all()
    assert (found.codes[found.calibration_anomalies] == UNUSED).all()
    if rows.group is not None:
        tested = rows.group[found.rows(TEST)]
        assert not np.isin(rows.group[found.calibration_anomalies], tested).any()


@given(random_rows(), configs)
def test_anomalies_that_teach_are_in_no_split_and_none_of_their_groups_is_tested(
    rows: Rows, config: Splits
) -> None:
    assign_or_skip(rows, config)
    found = assign(rows, config, known=True)
    assert rows.anomaly[found.training_anomalies].all()
    assert (found.codes[found.training_anomalies] == UNUSED).all()
    assert not np.isin(found.training_anomalies, found.calibration_anomalies).any()
    if rows.group is not None:
        judged = rows.group[np.isin(found.codes, (CALIBRATION, TEST))]
        assert not np.isin(rows.group[found.training_anomalies], judged).any()


def test_with_time_they_are_those_between_the_training_rows() -> None:
    rows = rows_of(100, time=np.arange(100) * DAY, anomaly=[5, 59, 60, 79, 95])
    found = assign(rows, Splits(), known=True)
    assert found.training_anomalies.tolist() == [5, 59]
    assert found.codes.tolist() == assign(rows, Splits()).codes.tolist()
    without = found.without(np.isin(np.arange(100), [59]), "in the frozen test split")
    assert without.training_anomalies.tolist() == [5]


def test_without_time_anomalies_teach_only_if_enough_of_them_can() -> None:
    few, many = (rows_of(400, anomaly=list(range(count))) for count in (39, 40))
    assert assign(few, Splits(), known=True).codes.tolist() == assign(few, Splits()).codes.tolist()
    found = assign(many, Splits(), known=True)
    assert len(found.training_anomalies) == MIN_KNOWN
    assert many.anomaly[found.rows(TEST)].sum() == 40 - MIN_KNOWN
    assert not len(assign(many, Splits()).training_anomalies)
    choosing = Splits(anomalies=0.1)
    both = assign(many, choosing, known=True).calibration_anomalies
    assert both.tolist() == assign(many, choosing).calibration_anomalies.tolist()


def test_with_time_they_are_those_between_the_calibration_rows() -> None:
    found = assign(rows_of(100, time=np.arange(100) * DAY, anomaly=[5, 61, 70, 79, 95]), Splits())
    assert found.calibration_anomalies.tolist() == [61, 70, 79]
    without = found.without(np.isin(np.arange(100), [61]), "in the frozen test split")
    assert without.calibration_anomalies.tolist() == [70, 79]


def test_without_time_they_are_the_share_that_is_asked_for() -> None:
    rows = rows_of(100, anomaly=list(range(20)))
    assert not len(assign(rows, Splits()).calibration_anomalies)
    found = assign(rows, Splits(anomalies=0.25))
    assert len(found.calibration_anomalies) == 5
    assert found.unused == {"anomalies outside the test split": 5}
    assert rows.anomaly[found.rows(TEST)].sum() == 15


def test_thinned_rows_are_as_dense_as_their_ratios_say() -> None:
    """Uniform rows, twice as dense on the right in traffic; scaling the ratios changes nothing."""
    x = np.random.default_rng(1).random(20_000)
    ratios = np.where(x > 0.5, 2.0, 1.0)
    kept = thin_by_ratio(ratios)
    assert kept[x > 0.5].all()
    assert kept[x < 0.5].mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(thin_by_ratio(ratios * 7), kept)
    assert thin_by_ratio(np.array([np.nan, 1.0, 1.0])).all()
    assert thin_by_ratio(np.full(3, np.nan)).all()
    assert not thin_by_ratio(np.zeros(3)).any()


def test_positions_are_spread_evenly() -> None:
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 9).tolist() == [0, 1, 2]
    assert spread(0, 9).tolist() == []
