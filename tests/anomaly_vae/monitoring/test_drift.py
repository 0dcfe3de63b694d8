"""Sketches of the calibration rows' columns, and the drift of other rows."""

import json

import numpy as np
import pytest

from anomaly_vae.data.encoding import Binary, Categorical, Cyclic, Numeric, TabularEncoding
from anomaly_vae.monitoring.drift import (
    BINS,
    CELLS,
    MIN_VALUES,
    ColumnSketch,
    Sketches,
    fit_sketches,
    population_stability_index,
)
from anomaly_vae.monitoring.exchangeability import Reference
from tests.support.merchants import merchant_bundle, payments

HOUR = {"part": "hour", "period": 86_400.0, "shift": 0.0}
ENCODING = TabularEncoding(
    (
        Numeric(name="amount", center=0.0, scale=1.0),
        Cyclic(name="at", **HOUR),
        Binary(name="night"),
        Categorical(name="channel", levels=tuple("abcdefghijkl")),
    )
)


def rows(n=1000, seed=0, shift=0.0):
    """Return rows (n, 5) of `ENCODING`, a tenth missing: amount, sine, cosine, night, channel."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 7, n)
    channel = np.minimum(rng.geometric(0.3, n), 12)
    channel[rng.uniform(size=n) < 0.02] = 0
    columns = [rng.normal(shift, 1, n), np.sin(angle), np.cos(angle), rng.uniform(size=n) < 0.2]
    x = np.stack([*columns, channel], axis=1).astype(np.float32)
    x[rng.uniform(size=n) < 0.1, 0] = np.nan
    x[rng.uniform(size=n) < 0.1, 4] = np.nan
    return x


def naive(sketch, values):
    """Count cell by cell, as documented."""
    counts = [0] * CELLS
    for value in values.tolist():
        if np.isnan(value):
            counts[BINS] += 1
        elif sketch.codes:
            known = int(value) in sketch.codes
            counts[sketch.codes.index(int(value)) if known else BINS - 1] += 1
        else:
            counts[sum(value > edge for edge in sketch.edges)] += 1
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_counting_agrees_with_counting_cell_by_cell(seed):
    sketches = fit_sketches(ENCODING, rows())
    x = rows(300, seed, shift=seed)
    x[:2, 4] = 11, 12
    counted = Sketches(ENCODING, sketches).count(x).reshape(-1, CELLS)
    places = {"amount": 0, "at": 1, "night": 3, "channel": 4}
    assert {sketch.name for sketch in sketches} == set(places)
    for sketch, counts in zip(sketches, counted.tolist(), strict=True):
        assert counts == naive(sketch, x[:, places[sketch.name]]), sketch.name


def test_counts_add_up():
    sketches = Sketches(ENCODING, fit_sketches(ENCODING, rows()))
    x = rows(700, 1)
    parts = sum(sketches.count(part) for part in (x[:1], x[1:300], x[300:300], x[300:]))
    np.testing.assert_array_equal(parts, sketches.count(x))


def of(x, encoding=ENCODING, reference=None):
    """Return the drift of rows, by column."""
    sketches = Sketches(
        encoding, fit_sketches(encoding, rows() if reference is None else reference)
    )
    return {drift.column: drift for drift in sketches.drift(sketches.count(x))}


def test_rows_like_the_calibration_rows_have_no_drift():
    for column, drift in of(rows(1000, 3)).items():
        assert (drift.psi or 0.0) < 0.03, column
        assert drift.missing == pytest.approx(drift.reference_missing, abs=0.04)


def test_a_shift_is_seen_in_its_column_alone():
    found = of(rows(1000, 3, shift=1.0))
    assert found["amount"].psi > 0.25
    assert found["channel"].psi < 0.03
    assert found["night"].psi < 0.03


def test_missing_and_unseen_are_shares_of_all_rows():
    x = rows(1000, 3)
    x[:500, 0], x[:250, 4] = np.nan, 0
    found = of(x)
    assert found["amount"].missing == pytest.approx(0.55, abs=0.02)
    assert found["amount"].reference_missing == pytest.approx(0.1, abs=0.02)
    assert (found["amount"].unseen, found["amount"].reference_unseen) == (None, None)
    assert found["channel"].unseen == pytest.approx(0.265, abs=0.02)
    assert found["channel"].reference_unseen == pytest.approx(0.018, abs=0.01)


def test_a_time_moves_on_and_is_watched_for_gaps_alone():
    x = rows(1000, 3)
    x[:, 1:3] = 0, 1
    x[:100, 1:3] = np.nan
    assert of(x)["at"].psi is None
    assert of(x)["at"].missing == pytest.approx(0.1)


def test_nothing_is_said_of_few_values():
    assert of(rows(MIN_VALUES, 3))["amount"].psi is None, "a tenth is missing"
    assert of(rows(2 * MIN_VALUES, 3))["amount"].psi is not None
    assert of(rows(0))["amount"].missing == 0


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("column", [0, 3])
def test_a_column_that_was_constant_is_seen_to_change(column, constant):
    reference, x = rows(), rows(500, 1)
    reference[:, column], x[:, column] = constant, 1 - constant
    found = of(x, reference=reference)
    assert found["amount" if column == 0 else "night"].psi > 1
    x[:, column] = constant
    found = of(x, reference=reference)
    assert found["amount" if column == 0 else "night"].psi < 0.01


def test_a_column_that_was_never_there_says_so():
    reference = rows()
    reference[:, 0] = np.nan
    drift = of(rows(500, 1), reference=reference)["amount"]
    assert (drift.psi, drift.reference_missing) == (None, 1.0)


def test_chance_alone_is_taken_off():
    """The index of samples of one distribution is near 0 on average."""
    rng = np.random.default_rng(0)
    shares = np.full(BINS, 1 / BINS)
    for n, m in ((100, 100), (100, 2000), (5000, 200)):
        found = [
            population_stability_index(rng.multinomial(n, shares), rng.multinomial(m, shares))
            for _ in range(300)
        ]
        assert np.mean(found) < 5 * (1 / n + 1 / m)


def test_the_index_of_two_known_histograms():
    then, now = np.array([500_000, 500_000]), np.array([800_000, 200_000])
    truth = 0.3 * np.log(0.8 / 0.5) - 0.3 * np.log(0.2 / 0.5)
    assert population_stability_index(then, now) == pytest.approx(truth, abs=1e-4)


def test_sketches_survive_json():
    reference = Reference(0.01, fit_sketches(ENCODING, rows()))
    assert Reference.from_json(json.loads(json.dumps(reference.to_json()))) == reference
    again = [ColumnSketch.model_validate(one.model_dump()) for one in reference.columns or ()]
    x = rows(500, 2)
    counted = [Sketches(ENCODING, one).count(x) for one in (again, reference.columns)]
    np.testing.assert_array_equal(*counted)
    assert Reference.from_json(Reference().to_json()) == Reference()


def test_unseen_values_of_a_column_with_bands_are_those_that_training_never_saw():
    encoding = merchant_bundle().scorer.encoding
    schema = merchant_bundle().scorer.schema

    def encoded(table):
        return encoding.encode(schema.from_arrow(table))

    usual = encoded(payments(2_000, seed=3))
    new = payments(2_000, seed=4).to_pylist()
    new = [{**row, "merchant": f"new{i}"} if i % 5 == 0 else row for i, row in enumerate(new)]
    sketches = Sketches(encoding, fit_sketches(encoding, usual))
    before, after = (
        next(d for d in sketches.drift(sketches.count(x)) if d.column == "merchant")
        for x in (usual, encoding.encode(schema.from_records(new)))
    )
    rare = 1 / 3  # the share of rows whose merchants are no levels, most of them known
    assert before.unseen == before.reference_unseen < rare / 2
    assert after.unseen == pytest.approx(0.2 + 0.8 * before.unseen, abs=0.02)
    assert after.psi > 0.05 > before.psi
