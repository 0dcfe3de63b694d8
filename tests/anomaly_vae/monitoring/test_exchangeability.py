"""The monitor: what it reports about the counts of a window, and its false alarms."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.evaluation.metrics import max_fpr_under_guarantee
from anomaly_vae.monitoring.cycles import KINDS
from anomaly_vae.monitoring.exchangeability import (
    BLOCKS,
    FIRST_BIN,
    ROWS,
    Monitor,
    Reference,
    Window,
    bin_edges,
)
from anomaly_vae.monitoring.martingale import BREACH_LEVEL
from tests.support.timed import rows as timed_rows
from tests.support.timed import timed_bundle, with_times

PLAIN = SimpleNamespace(layout=SimpleNamespace(n_columns=1))
"""An encoding without columns to monitor."""


def monitor_of(n=2000, alpha=0.01, share=0.0, seed=0):
    """Return a monitor of n normal scores, and its calibration."""
    calibration = calibrate(np.random.default_rng(seed).normal(size=n), alpha)
    return Monitor(calibration, PLAIN, Reference(share)), calibration


def told(monitor, calibration, *parts):
    """Return the report of a window of these scores, in order."""
    window = Window(monitor)
    for scores in parts:
        for start in range(0, len(scores), 128):
            some = scores[start : start + 128]
            counts = monitor.count(some, calibration.flags(some), None)
            window.add(counts)
    return monitor.report(window.blocks)


def limit_of(monitor, rows):
    """Return the largest number of flags among this many normal rows."""
    counts = monitor.empty_counts
    counts[ROWS] = counts[FIRST_BIN] = rows
    return monitor.report(counts[None]).flagged_limit


def normal(n, seed=1):
    return np.random.default_rng(seed).normal(size=n)


# ---------------------------------------------------------------- the martingale


@pytest.mark.parametrize("n", [60, 200, 2000])
def test_the_martingale_is_1_on_average_over_calibration_samples(n):
    """M has mean 1, so 1 / M is a p-value; the calibration sample is random, too."""
    rng = np.random.default_rng(n)
    found = []
    for seed in range(400):
        monitor, calibration = monitor_of(n, 0.05, seed=seed)
        scores = rng.normal(size=300)
        counts = monitor.count(scores, calibration.flags(scores), None)
        found.append(10 ** monitor.report(counts[None]).martingale_log10)
    assert np.mean(found) <= 1 + 3 * np.std(found) / 20
    assert np.mean(np.array(found) >= 20) <= 0.05


# ---------------------------------------------------------------- bins of p-values


def test_bins_are_of_the_ranks_that_there_are():
    assert bin_edges(np.sort(normal(1999))).tolist() == [6, 20, 60, 200, 400, 800, 1200, 1600, 2000]
    assert bin_edges(np.sort(normal(99))).tolist() == [10, 20, 40, 60, 80, 100]
    assert bin_edges(np.sort(normal(6))).tolist() == [7]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=300))
def test_equal_scores_are_never_parted(values):
    scores = np.sort(np.array(values, float))
    edges = bin_edges(scores)
    assert edges[-1] == len(scores) + 1
    ranks = len(scores) + 1 - np.searchsorted(scores, scores)
    bins = np.searchsorted(edges, ranks)
    counts = np.bincount(bins, minlength=len(edges)) + (np.arange(len(edges)) == 0)
    np.testing.assert_array_equal(counts, np.diff(edges, prepend=0))


@given(st.integers(1, 400), st.integers(1, 60))
def test_every_row_is_in_one_bin(n, rows):
    monitor, calibration = monitor_of(max(n, 2), 0.5)
    scores = normal(rows) * 3
    counts = monitor.count(scores, calibration.flags(scores), None)
    assert counts[ROWS] == counts[FIRST_BIN:].sum() == rows


# ---------------------------------------------------------------- flags


def test_the_limit_is_the_law_that_evaluation_judges_by():
    monitor, calibration = monitor_of(500, 0.05)
    rate = max_fpr_under_guarantee(calibration, 1000, confidence=1 - BREACH_LEVEL / BLOCKS)
    assert limit_of(monitor, 1000) == pytest.approx(rate * 1000)


def test_more_rows_than_are_worked_out_have_a_limit_in_proportion():
    monitor, _ = monitor_of(2000, 0.01)
    few, many = limit_of(monitor, 100_000), limit_of(monitor, 10_000_000)
    assert many == 100 * few


# ---------------------------------------------------------------- what a report says


def test_no_rows_leave_the_promise_as_it_is():
    monitor, _ = monitor_of()
    report = monitor.report(Window(monitor).blocks)
    assert (report.status, report.rows, report.flagged_ratio) == ("unknown", 0, 0.0)
    assert report.martingale_log10 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.01])
@pytest.mark.parametrize("rows", [0, 1, 7, 12])
def test_so_few_rows_tell_nothing_even_if_all_are_flagged(rows, share):
    report = told(*monitor_of(share=share), np.full(rows, 9.0))
    assert (report.status, report.flagged) == ("unknown", rows)
    assert report.flagged_limit >= rows


def test_enough_flagged_rows_break_the_promise_however_few():
    assert told(*monitor_of(share=0.01), np.full(30, 9.0)).status == "broken"


def test_rows_like_the_calibration_rows_hold():
    report = told(*monitor_of(), normal(10_000))
    assert report.status == "holding"
    assert report.rows == pytest.approx(BLOCKS * 256, abs=256)
    assert report.flagged <= report.flagged_limit


def test_rows_that_are_too_normal_are_doubtful_but_nothing_is_broken():
    report = told(*monitor_of(), normal(4000) - 1)
    assert report.status == "doubtful"


def test_a_scale_that_grew_breaks_the_promise():
    report = told(*monitor_of(), normal(4000), 1.5 * normal(3000))
    assert report.status == "broken"
    assert report.flagged > report.flagged_limit


def test_it_recovers_when_the_window_has_passed():
    monitor, calibration = monitor_of()
    assert told(monitor, calibration, normal(2000) + 1).status == "broken"
    again = told(monitor, calibration, normal(2000) + 1, normal(6000, 2))
    assert again.status == "holding"


@pytest.mark.parametrize(("known", "status"), [(0.02, "holding"), (0.0, "broken")])
def test_the_known_share_of_anomalies_does_not_trip_it(known, status):
    scores = normal(4000)
    scores[::50] += 8
    assert told(*monitor_of(share=known), scores).status == status


def test_twice_the_known_share_does():
    scores = normal(4000)
    scores[::20] += 8
    assert told(*monitor_of(share=0.02), scores).status == "broken"


def test_heavy_ties_are_no_evidence():
    calibration = calibrate(np.round(normal(1000, 0), 1), 0.05)
    monitor = Monitor(calibration, PLAIN, Reference())
    assert told(monitor, calibration, np.round(normal(4000), 1)).status == "holding"


def test_too_few_calibration_rows_for_bins_watch_flags_alone():
    monitor, calibration = monitor_of(6, 0.5)
    report = told(monitor, calibration, normal(200) + 9)
    assert (report.martingale_log10, report.status) == (0.0, "broken")


def test_a_threshold_is_held_to_its_alpha():
    """A model that flags three times alpha is reported as broken on normal rows."""
    loose = calibrate(normal(2000, 0), 0.03)
    wrong = replace(loose, alpha=0.01)
    report = told(Monitor(wrong, PLAIN, Reference()), wrong, normal(6000))
    assert report.status == "broken"


# ---------------------------------------------------------------- windows


@given(st.lists(st.integers(1, 400), max_size=60))
def test_a_window_is_the_newest_blocks(sizes):
    monitor, _ = monitor_of(alpha=0.01)
    window, naive = Window(monitor), [0]
    for number, size in enumerate(sizes):
        counts = monitor.empty_counts
        counts[ROWS], counts[1] = size, number
        window.add(counts)
        naive[-1] += size
        if naive[-1] >= monitor.block_rows:
            naive = [*naive, 0][-BLOCKS:]
    found = window.blocks[:, ROWS].tolist()
    newest = naive[::-1]
    assert found == [newest[0], *(rows for rows in newest[1:] if rows)]


def test_counts_add_up_whoever_counted():
    monitor, calibration = monitor_of()
    scores = normal(1000)
    whole = monitor.count(scores, calibration.flags(scores), None)
    parts = [scores[:1], scores[1:700], scores[700:]]
    some = [monitor.count(p, calibration.flags(p), None) for p in parts]
    np.testing.assert_array_equal(sum(some), whole)


def test_a_window_lives_on_in_its_memory():
    monitor, _ = monitor_of()
    counts = monitor.empty_counts
    counts[ROWS] = 300
    first = Window(monitor)
    first.add(counts)
    again = Window(monitor, first.memory)
    again.add(counts)
    assert first.blocks[:, ROWS].sum() == 600


@pytest.mark.parametrize(("alpha", "rows"), [(0.5, 128), (0.01, 250), (0.001, 2500), (1e-6, 4096)])
def test_a_block_has_rows_enough_for_some_flags(alpha, rows):
    monitor, _ = monitor_of(n=2000, alpha=max(alpha, 0.001))
    if alpha < 0.001:
        _, calibration = monitor_of()
        monitor = Monitor(replace(calibration, alpha=alpha), PLAIN, Reference())
    assert monitor.block_rows == rows


def test_traffic_that_weights_foretell_is_no_shift():
    """Half of traffic is of a kind that is a tenth of the calibration rows, and scores higher."""
    rng = np.random.default_rng(0)

    def drawn(rows, share):
        odd = rng.random(rows) < share
        return rng.normal(size=rows) + 2 * odd, odd

    normal, odd = drawn(3_000, 0.1)
    wish = CalibrationConfig(alpha=0.05)
    found = {}
    for name, weights in (("weighted", np.where(odd, 5, 5 / 9)), ("plain", ())):
        calibration = choose_threshold(CalibrationSample.from_scores(normal, weights=weights), wish)
        monitor = Monitor(calibration, PLAIN, Reference())
        scores, _ = drawn(3_000, 0.5)
        counts = monitor.count(scores, calibration.flags(scores), None)
        found[name] = monitor.report(counts[None]).status
    assert found == {"weighted": "holding", "plain": "broken"}


# ---------------------------------------------------------------- times


def counted(monitor, bundle, table, times=True):
    """Return the report of a window of these rows."""
    columns = {name: table[name].tolist() for name in bundle.scorer.schema.names}
    batch = bundle.scorer.schema.from_columns(columns, len(table))
    found, x = bundle.detector.detect(batch), bundle.scorer.encoding.encode(batch)
    seconds = monitor.seconds(batch) if times else None
    counts = monitor.count(found.score, found.is_anomaly, x, seconds)
    return monitor.report(counts[None])


def test_nights_are_compared_with_nights():
    """Values are more varied then, and more of them are flagged."""
    bundle = timed_bundle()
    night = timed_rows(1, 600, 1, hours=(0, 8))
    report = counted(bundle.monitor, bundle, night)
    assert (report.status, report.rows) == ("holding", 600)
    assert report.flagged_ratio > 0.1
    for column in report.columns:
        assert column.martingale_log10 < 1
    assert counted(bundle.monitor, bundle, timed_rows(1, 600, 1, hours=(8, 24))).status == "holding"


def test_values_of_the_night_are_a_shift_by_day():
    bundle = timed_bundle()
    day = timed_rows(1, 600, 1, hours=(8, 24))
    day["amount"] *= 3
    report = counted(bundle.monitor, bundle, day)
    assert report.status == "broken"
    assert {c.column for c in report.columns if c.martingale_log10 > 2} == {"amount"}


def test_rows_of_an_unknown_time_are_compared_with_all_rows():
    bundle = timed_bundle()
    report = counted(bundle.monitor, bundle, timed_rows(1, 600, 1), times=False)
    assert report.status == "holding"
    assert counted(bundle.monitor, bundle, timed_rows(1, 600, 1)).status == "holding"


def test_a_column_may_shift_while_the_scores_do_not():
    bundle = timed_bundle()
    table = timed_rows(1, 1000, 1)
    table["other"] = np.abs(table["other"])
    report = counted(bundle.monitor, bundle, table)
    assert report.status == "doubtful"
    assert {c.column for c in report.columns if c.martingale_log10 > 2} == {"other"}


def test_fewer_days_than_three_teach_nothing():
    bundle = timed_bundle()
    short = with_times(bundle, pd.concat([timed_rows(0, 300, 0), timed_rows(1, 300, 1)]))
    assert short.monitor.reference.cycle is None
    assert "time" not in short.manifest["reference"]
    assert all(c.martingale_log10 is None for c in short.monitor.report(
        short.monitor.empty_counts[None]).columns)  # fmt: skip


# ---------------------------------------------------------------- entities


SLOW = 0.4
"""Part of a mean over 30 days in the amounts of a customer."""


def slow_rows(customers, first, days, seed):
    """Draw 300 rows a day, whose amounts are those usual for their customer, and a slow part."""
    rng = np.random.default_rng(seed)
    daily = np.cumsum(rng.normal(size=(customers, 90)), axis=1)
    slow = SLOW * (daily[:, 30:] - daily[:, :-30]) / np.sqrt(30) + rng.normal(size=(customers, 1))
    parts = []
    for day in range(first, first + days):
        table, who = timed_rows(day, 300, 100 + day), rng.integers(0, customers, 300)
        parts.append(table.assign(customer=who, amount=slow[who, day]))
    return pd.concat(parts, ignore_index=True)


def test_values_of_few_customers_drift_without_being_a_shift():
    """Two weeks of calibration show it by the customers alone, even if the model reads them not."""
    bundle, table = timed_bundle(), slow_rows(100, 0, 54, 2)
    early, late = table[: 14 * 300], [table[day * 300 :][:1500] for day in (24, 34)]
    found = {}
    for entity in (None, "customer"):
        timed = with_times(bundle, early, entity)
        reports = [counted(timed.monitor, timed, part) for part in late]
        amounts = [r.columns[[c.column for c in r.columns].index("amount")] for r in reports]
        found[entity] = max(amount.martingale_log10 for amount in amounts)
    assert found["customer"] < 1
    assert found[None] > 5


def test_columns_say_after_how_many_rows_a_change_is_noticed():
    bundle, table = timed_bundle(), slow_rows(60, 0, 14, 1)
    report = counted(bundle.monitor, bundle, timed_rows(1, 600, 1))
    assert all(1_000 <= column.noticed_after < 5_000 for column in report.columns)
    noticed = with_times(bundle, table, "customer").monitor.noticed_after
    assert noticed["amount"] is None
    assert noticed["other"] < 3_000


# ---------------------------------------------------------------- what is missing


def test_a_dozen_rows_are_too_few_whatever_the_calibration():
    monitor, calibration = monitor_of(2000, 0.01)
    report = told(monitor, calibration, normal(12))
    assert (report.status, report.lacks) == ("unknown", "rows")
    assert told(monitor, calibration, normal(4_000)).lacks is None


def test_an_unknown_guarantee_lacks_rows_if_more_of_them_would_tell():
    monitor, calibration = monitor_of(2000, 0.01)
    assert told(monitor, calibration, normal(90)).lacks == "rows"


def test_an_unknown_guarantee_lacks_calibration_if_no_number_of_rows_would_tell():
    """Flags of other days say nothing of the next one if all come on one day."""
    monitor, calibration = monitor_of(4000, 0.01)
    days = np.tile((1 / 6, 0, 0), (KINDS, 2, 1))
    few = replace(timed_bundle().monitor.reference.cycle, dispersions=days)
    widths = monitor.widths
    hours, weekdays = (np.ones((n, sum(widths)), np.int64) * 100 for n in (25, 8))
    few = replace(few, hours=hours, weekdays=weekdays, within_hours=np.full(2, 1e6))
    few = replace(few, priors=np.full((2, 2), 1e6))
    timed = Monitor(calibration, PLAIN, Reference(cycle=few))
    report = told(timed, calibration, normal(4_000))
    assert (report.status, report.lacks) == ("unknown", "calibration")
