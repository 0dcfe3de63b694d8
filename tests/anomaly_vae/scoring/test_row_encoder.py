"""A lone row is encoded in fewer steps, with the same bits as in a batch."""

import datetime as dt
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anomaly_vae.data.converters import MISSING, level_name
from anomaly_vae.data.encoding import EXTREME, fit_encoding
from anomaly_vae.data.schema import Column, TabularSchema
from anomaly_vae.scoring.row_encoder import RowEncoder
from anomaly_vae.types import ColumnType

SCHEMA = TabularSchema(
    (
        Column("shop", ColumnType.CATEGORICAL),
        Column("when", ColumnType.DATETIME),
        Column("tail", ColumnType.NUMERIC),
        Column("plain", ColumnType.NUMERIC),
        Column("on", ColumnType.BINARY),
        Column("same", ColumnType.NUMERIC),
    ),
    known=frozenset(),
)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=64)
ROWS = st.fixed_dictionaries(
    {
        "shop": st.none() | st.integers(0, 400).map(lambda n: f"m{n}") | st.text(max_size=3),
        "when": st.none() | st.datetimes().map(str),
        "tail": NUMBERS,
        "plain": NUMBERS,
        "on": st.sampled_from([None, 0, 1, True, False]),
        "same": NUMBERS,
    }
)


def simulated(count=3000):
    rng = np.random.default_rng(0)
    shops = rng.zipf(1.5, count) % 300
    return {
        "shop": [f"m{shop}" for shop in shops],
        "when": [
            str(dt.datetime(2024, 3, 1, tzinfo=dt.UTC) + dt.timedelta(hours=i))
            for i in range(count)
        ],
        "tail": (rng.standard_cauchy(count) * 100).tolist(),
        "plain": rng.normal(5, 2, count).tolist(),
        "on": (rng.random(count) < 0.3).tolist(),
        "same": [3.0] * count,
    }


@pytest.fixture(scope="module")
def encoding():
    batch = SCHEMA.from_columns(simulated(), 3000)
    fitted = fit_encoding(SCHEMA, batch)
    kinds = {column.name: column for column in fitted.columns}
    assert kinds["tail"].unit is not None, "on the asinh scale"
    assert kinds["shop"].bands is not None, "rare shops are told apart by their frequency"
    assert [c.type for c in fitted.columns].count("cyclic") == 2
    return fitted


def lone(encoding, record):
    batch = SCHEMA.from_records([record])
    names = [*reversed(SCHEMA.names)]
    shop = level_name(record["shop"])
    cells = {name: record[name] for name in names} | {"shop": None if shop in MISSING else shop}
    seconds = batch.values["when"].item()
    cells["when"] = None if math.isnan(seconds) else seconds
    mine = RowEncoder(encoding, names).encode([cells[name] for name in names])
    return mine, encoding.encode(batch)


@given(record=ROWS)
@example({"shop": "m1", "when": None, "tail": 1.7e308, "plain": -1.7e308, "on": True, "same": 3.0})
@example({"shop": None, "when": None, "tail": None, "plain": None, "on": None, "same": None})
@settings(max_examples=200, deadline=None)
def test_a_lone_row_has_the_bits_that_it_has_in_a_batch(encoding, record):
    mine, theirs = lone(encoding, record)
    assert mine.shape == theirs.shape
    assert mine.dtype == theirs.dtype
    np.testing.assert_array_equal(np.isnan(mine), np.isnan(theirs))
    known = ~np.isnan(mine)
    assert mine[known].tobytes() == theirs[known].tobytes()


def test_extreme_values_are_limited(encoding):
    far = {"shop": "m1", "when": None, "tail": 0.0, "plain": 1e300, "on": 1, "same": -1e300}
    mine, _ = lone(encoding, far)
    assert (np.nan_to_num(abs(mine)) == EXTREME).sum() == 2
