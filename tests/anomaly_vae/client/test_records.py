"""Values of Python, numpy and pandas become JSON, or are refused by name."""

import dataclasses
import datetime as dt
import enum
import json
import math
from decimal import Decimal
from fractions import Fraction
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from anomaly_vae.client.records import encode_record, rows_of
from anomaly_vae.errors import DataError, RecordError


class Channel(enum.Enum):
    CHIP = "chip"


class Text(str):
    __slots__ = ()


NOON = "2024-05-01T12:30:00.000001"
BERLIN = ZoneInfo("Europe/Berlin")
VALUES = [
    (None, None), (True, True), (5, 5), (2**70, 2**70), (1.5, 1.5), ("a", "a"), (-0.0, -0.0),
    (math.nan, None), (pd.NA, None), (pd.NaT, None), (np.datetime64("NaT"), None),
    (np.datetime64("NaT", "ns"), None), (np.float32("nan"), None), (Decimal("NaN"), None),
    (np.int64(2**60), 2**60), (np.uint64(2**64 - 1), 2**64 - 1), (np.float32(0.5), 0.5),
    (np.float16(0.5), 0.5), (np.longdouble(0.5), 0.5), (np.bool_(True), True), (np.str_("a"), "a"),
    (np.array(3), 3),
    (np.datetime64(NOON), NOON), (np.datetime64(NOON, "ns"), NOON),
    (np.datetime64("2024-05-01"), "2024-05-01T00:00:00"),
    (pd.Timestamp(NOON), NOON), (pd.Timestamp(NOON).as_unit("ns"), NOON),
    (pd.Timestamp("2024-05-01", tz="UTC"), "2024-05-01T00:00:00Z"),
    (pd.Timestamp("2024-05-01", tz=BERLIN), "2024-05-01T00:00:00+02:00"),
    (dt.datetime.fromisoformat(NOON), NOON),
    (dt.datetime(2024, 5, 1, tzinfo=BERLIN), "2024-05-01T00:00:00+02:00"),
    (dt.date(2024, 5, 1), "2024-05-01"), (dt.time(12, 30), "12:30:00"),
    (Decimal("12.50"), 12.5), (Decimal(9007199254740993), 9007199254740993),
    (Decimal("1e30"), 1e30),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"), (Channel.CHIP, "chip"), (Text("a"), "a"),
    ([1, math.nan, pd.NA], [1, None, None]), ((1, pd.Timestamp(NOON)), [1, NOON]),
    ({"a": {1: pd.NaT}}, {"a": {"1": None}}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "sent"), VALUES, ids=lambda value: type(value).__name__)
def test_values_that_are_sent(value, sent):
    content = json.loads(encode_record(0, {"a": value}))
    assert content == {"a": sent}
    assert type(content["a"]) is type(sent)


@pytest.mark.parametrize(
    "value",
    [
        b"x", bytearray(b"x"), memoryview(b"x"), np.bytes_(b"x"), np.void(b"x"), {1}, frozenset(),
        object(), object, 1j, np.complex64(1), dt.timedelta(1), np.timedelta64(1, "ns"),
        pd.Timedelta(1, "D"), pd.Interval(0, 1), pd.Period("2024"), np.zeros(3), np.zeros(1),
        pd.Series([1]), Fraction(1, 3), range(3), math.inf, -math.inf, np.float32("inf"),
        Decimal("Infinity"), Decimal("sNaN"), "\ud800", [b"x"], {"b": {1}},
        dataclasses.make_dataclass("Point", ["x"])(1),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_that_are_refused(value):
    with pytest.raises(RecordError, match="record 7, field 'a': ") as caught:
        encode_record(7, {"b": 1, "a": value})
    assert (caught.value.record, caught.value.field) == (7, "a")


def test_a_value_without_end_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(RecordError, match="field 'a'"):
        encode_record(0, {"a": endless})


def test_keys_that_are_equal_as_text_are_refused():
    assert encode_record(0, {1: 2}) == b'{"1":2}'
    with pytest.raises(RecordError, match="two keys"):
        encode_record(0, {1: 2, "1": 3})


# ---------------------------------------------------------------- data frames

FRAME = pd.DataFrame(
    {
        "amount": [1.5, None],
        "count": pd.array([1, None], dtype="Int64"),
        "channel": pd.Categorical(["chip", None]),
        "text": pd.array(["a", None], dtype="string"),
        "at": pd.to_datetime([NOON, None]),
        "nanoseconds": pd.to_datetime([NOON + "001", None]).as_unit("ns"),
        "zoned": pd.to_datetime(["2024-05-01", None], utc=True),
        "day": [dt.date(2024, 5, 1), None],
        "decimal": [Decimal("2.5"), None],
        "flag": pd.array([True, None], dtype="boolean"),
        "object": ["a", math.nan],
    }
)
ROWS = [
    {
        "amount": 1.5, "count": 1, "channel": "chip", "text": "a", "at": NOON, "nanoseconds": NOON,
        "zoned": "2024-05-01T00:00:00Z", "day": "2024-05-01", "decimal": 2.5, "flag": True,
        "object": "a",
    },
    dict.fromkeys(FRAME),
]  # fmt: skip


def arrow(frame):
    """The frame as an Arrow table, without the warning of pandas about its own zones."""
    zoned = pa.array([dt.datetime(2024, 5, 1, tzinfo=dt.UTC), None])
    table = pa.table(frame.drop(columns="zoned"))
    return table.append_column("zoned", zoned).select(list(frame))


def sent(records):
    return [json.loads(encode_record(i, record)) for i, record in enumerate(rows_of(records))]


@pytest.mark.parametrize(
    "make",
    [
        lambda frame: frame,
        lambda frame: frame.to_dict("records"),
        lambda frame: frame.convert_dtypes(),
        lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
        arrow,
        lambda frame: pl.from_arrow(arrow(frame)),
        lambda frame: [row for _, row in frame.astype(object).to_dict("index").items()],
    ],
    ids=["pandas", "records", "nullable", "arrow", "pyarrow", "polars", "objects"],
)
def test_a_frame_and_its_records_are_sent_alike(make):
    assert sent(make(FRAME)) == ROWS


def test_a_column_of_mixed_types_is_sent():
    frame = pd.DataFrame({"a": [1, "b", None], "b": [1, 2, 3]})
    assert sent(frame) == [{"a": 1, "b": 1}, {"a": "b", "b": 2}, {"a": None, "b": 3}]
    named = frame.set_index(pd.Index([7, 8, 9], name="id"))
    assert [row["id"] for row in sent(named)] == [7, 8, 9]


def test_a_named_index_is_a_column_and_another_is_none():
    frame = pd.DataFrame({"a": [1]}, index=pd.Index(["x"], name="id"))
    assert sent(frame) == [{"a": 1, "id": "x"}]
    assert sent(frame.rename_axis(None)) == [{"a": 1}]


@pytest.mark.parametrize("make", [lambda frame: frame, pa.table], ids=["pandas", "pyarrow"])
def test_columns_of_one_name_are_refused(make):
    frame = (
        pa.table([[1], [2]], names=["a", "a"])
        if make is pa.table
        else pd.DataFrame([[1, 2]], columns=["a", "a"])
    )
    with pytest.raises(DataError, match="column 'a' appears more than once"):
        sent(frame)


def test_bytes_of_frames_are_texts():
    """Some files hold texts as bytes, and those of a fixed width are filled up."""
    assert sent(pa.table({"a": [b"chip", None]})) == [{"a": "chip"}, {"a": None}]
    assert sent(pd.DataFrame({"a": [b"chip\0\0"], "b": [pd.Period("2024")]})) == [
        {"a": "chip", "b": "2024"}
    ]


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(RecordError, match="record 0, field 'a'"):
        sent(pa.table({"a": [b"\xff"]}))


def test_what_is_no_frame_is_refused():
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(pd.Series([1]))
