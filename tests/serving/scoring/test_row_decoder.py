"""Two ways into one kernel: what the quick one takes means what the careful one says."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anomaly_vae.data.schema import Column, TabularSchema
from anomaly_vae.types import ColumnType
from serving.problems import ProblemError
from serving.scoring.requests import decode, read_records
from serving.scoring.row_decoder import RowDecoder
from tests.support.merchants import merchant_bundle

SCHEMA = TabularSchema(
    (
        Column("when", ColumnType.DATETIME),
        Column("a", ColumnType.NUMERIC),
        Column("color", ColumnType.CATEGORICAL),
        Column("on", ColumnType.BINARY),
        Column("b ç/d", ColumnType.NUMERIC),
    ),
    known=frozenset({"label", "a"}),
)
READER = RowDecoder(SCHEMA)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
ANYTHING = st.none() | st.booleans() | NUMBERS | st.text(max_size=6)
TIMES = st.datetimes().map(str) | st.dates().map(str) | st.sampled_from(["", "NA", "2024-13-01"])
VALUES = {
    "when": st.none() | TIMES | ANYTHING,
    "a": st.none() | NUMBERS | ANYTHING,
    "color": ANYTHING | st.sampled_from(["red", " red ", "NA", "5.0", "true"]),
    "on": st.sampled_from([0, 1, True, False, None, 0.0, 1.0]) | ANYTHING,
    "b ç/d": st.none() | NUMBERS,
    "label": ANYTHING | st.lists(st.integers(), max_size=2),
}
RECORDS = st.lists(st.fixed_dictionaries({}, optional=VALUES), min_size=1, max_size=5)


def careful(body):
    """The batch of the other way, or None where it refuses."""
    try:
        return read_records(SCHEMA, decode(body, 1000).request.records)
    except ProblemError:
        return None


def assert_same(quick, slow):
    assert len(quick) == len(slow)
    assert not slow.ignored
    for name, values in slow.values.items():
        mine = quick.values[name]
        if name == "color":
            ours, theirs = (
                [None if code < 0 else levels.names[code] for code in levels.codes]
                for levels in (mine, values)
            )
            assert ours == theirs
        else:
            np.testing.assert_array_equal(mine, values)


def assert_plain(plain, times, batch):
    """A lone row has the values of a batch, without arrays except those of times."""
    for name, cell in zip(READER.names, plain, strict=True):
        values = batch.values[name]
        if name == "color":
            assert cell == (None if values.codes[0] < 0 else values.names[values.codes[0]])
        else:
            np.testing.assert_array_equal(np.float64("nan" if cell is None else cell), values[0])
    np.testing.assert_array_equal(times.values["when"], batch.values["when"])


@given(RECORDS)
@example([{"a": 2**63 + 1}, {"a": 10**25}, {"color": 12345678901234567890}])
@example([{"a": 10**400}])
@example([{"a": "1"}])
@settings(max_examples=300, deadline=None)
def test_both_ways_mean_the_same(records):
    body = json.dumps({"records": records}).encode()
    rows = READER.decode(body)
    slow = careful(body)
    if rows is None:
        return
    assert slow is not None, "the quick way takes nothing that the careful one refuses"
    assert_same(READER.batch(rows.rows), slow)
    for row, cells in enumerate(rows.rows):
        assert_plain(READER.plain(cells), READER.times(cells), slow.take(np.array([row])))


def test_what_is_usual_goes_the_quick_way():
    record = {"a": 1, "b ç/d": 2.5, "on": True, "color": "red", "when": "2024-01-01T10:00"}
    for one in (record, {"a": 1}, {**record, "when": None}, {**record, "label": [1, {"x": None}]}):
        assert READER.decode(json.dumps({"records": [one, record]}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'{"records": [{}], "explain": 1}', b'{"records": [{"other": 1}]}',
        b'{"records": [{"a": NaN}]}', b'{"records": [{"a": 1e999}]}', b'{"records": [7]}',
        b'{"records": [{"color": ["red"]}]}', b'{"records": [{"when": "soon"}]}',
        b'{"records": [{}]}', b'{"records": [{"a": null, "label": 1}]}',
        b'{"records": [{"on": 2}]}', b'{"records": [{"color": "\xff"}]}',
        b'{"records": [' + b'{"label":' * 100_000,
    ],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
def test_what_is_unusual_does_not(body):
    assert READER.decode(body) is None


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_names_that_no_type_can_have_go_the_careful_way(name):
    body = json.dumps({"records": [{name: 1}]}).encode()
    odd = (Column(name, ColumnType.NUMERIC), Column("b", ColumnType.NUMERIC))
    assert RowDecoder(TabularSchema(odd)).decode(body) is None
    ignored = TabularSchema(odd[1:], known=frozenset({name}))
    assert RowDecoder(ignored).decode(body) is None
    assert RowDecoder(ignored).decode(b'{"records": [{"b": 2}]}').rows == [(2.0,)]


@given(
    st.lists(st.none() | st.text(max_size=4) | st.integers(0, 200).map("m{}".format), min_size=1)
)
def test_both_ways_encode_values_by_the_same_counts(names):
    scorer = merchant_bundle().scorer
    body = json.dumps({"records": [{"amount": 1.5, "merchant": name} for name in names]}).encode()
    decoder = RowDecoder(scorer.schema)
    rows = decoder.decode(body).rows
    quick = scorer.encoding.encode(decoder.batch(rows))
    slow = scorer.encoding.encode(read_records(scorer.schema, decode(body, 1000).request.records))
    assert quick.tobytes() == slow.tobytes()
    alone = [scorer.encoding.encode(decoder.batch([row])) for row in rows]
    assert b"".join(x.tobytes() for x in alone) == quick.tobytes()


def test_times_of_several_formats_are_read_as_the_careful_way_reads_them():
    columns = (
        Column("iso", ColumnType.DATETIME),
        Column("ms", ColumnType.DATETIME, "epoch_ms"),
        Column("eu", ColumnType.DATETIME, "%d/%m/%Y"),
    )
    schema = TabularSchema(columns)
    records = [{"iso": "1970-01-02", "ms": 86_400_000, "eu": "02/01/1970"}, {"ms": "86400000"}]
    decoder = RowDecoder(schema)
    decoded = decoder.decode(json.dumps({"records": records}).encode())
    assert decoded is not None
    quick, slow = decoder.batch(decoded.rows), schema.from_records(records)
    for name in schema.names:
        np.testing.assert_array_equal(quick.values[name], slow.values[name])
    wrong = json.dumps({"records": [{"eu": "13/13/1970"}]}).encode()
    assert decoder.decode(wrong) is None
