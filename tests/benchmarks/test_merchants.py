"""The simulated market: frauds are where they should be, and training rows leave themselves out."""

import numpy as np
import pytest

from benchmarks import merchants
from benchmarks.merchants import CHANNELS, MERCHANT, Ours, simulate


@pytest.fixture(scope="module")
def task():
    return simulate(seed=3)


def test_frauds_are_at_the_merchants_of_their_kind(task):
    counts = task.train[MERCHANT].value_counts()
    at = {kind: rows[MERCHANT].map(counts).fillna(0) for kind, rows in task.frauds.items()}
    assert (at["new"] == 0).all()
    assert at["rare"].max() <= 3
    assert at["frequent"].nunique() <= 10
    assert at["frequent"].min() > np.quantile(counts, 0.9)
    normal = task.normal[MERCHANT].map(counts).fillna(0)
    assert at["anywhere"].median() == pytest.approx(normal.median(), rel=0.5)


def test_the_later_period_has_new_merchants_and_the_others_have_none(task):
    new = set(task.frauds["new"][MERCHANT])
    assert not new & {*task.train[MERCHANT], *task.calibration[MERCHANT], *task.normal[MERCHANT]}
    assert new & {*task.late[MERCHANT]}


def test_channels_follow_the_merchants_category(task):
    share = task.train.groupby(MERCHANT)["channel"].value_counts(normalize=True).groupby(level=0)
    busiest = task.train[MERCHANT].value_counts().index[:20]
    assert share.max()[busiest].mean() > 1.5 / len(CHANNELS)


def test_a_training_row_is_not_in_its_own_frequency(task):
    counts = {MERCHANT: task.train[MERCHANT].value_counts()}
    method = Ours(frequency=True)
    train = method._prepare(task.train, counts, own=1)
    later = method._prepare(task.train, counts)
    np.testing.assert_allclose(
        np.expm1(later["merchant_frequency"]) - np.expm1(train["merchant_frequency"]), 1
    )
    assert train["merchant_frequency"].min() == 0


def test_every_planned_method_exists():
    planned = {name for names in merchants.METHODS_OF.values() for name in names}
    assert planned <= set(merchants.METHODS)
    assert set(merchants.METHODS_OF) == set(merchants.FORMATS)
