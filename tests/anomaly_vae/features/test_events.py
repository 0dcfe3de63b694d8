"""Reading columns as events."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from anomaly_vae.config.windows import EntityWindows, Risk
from anomaly_vae.errors import DataError
from anomaly_vae.features import WindowDefinition
from anomaly_vae.features.events import EventReader

CARD = EntityWindows(
    over=("1h",),
    of={"amount": ("sum",)},
    distinct=("shop",),
    risk=Risk(label="fraud", delay="1d"),
)
READER = EventReader(WindowDefinition({"card": CARD}), "at", "id", positive="yes")


def test_each_column_has_its_type_and_absent_ones_are_missing() -> None:
    columns = READER.read(pa.table({"card": [1, 2], "fraud": ["yes", None]})).columns
    assert columns.to_pylist() == [
        {
            "id": None,
            "time": None,
            "key:card": card,
            "key:shop": None,
            "number:amount": pytest.approx(np.nan, nan_ok=True),
            "label:fraud": known,
        }
        for card, known in (("1", True), ("2", False))
    ]


def test_the_columns_read_are_named() -> None:
    assert READER.needed == ("card", "shop", "amount", "at")
    assert READER.names == ("card", "shop", "amount", "at", "fraud", "id")


@pytest.mark.parametrize(
    "cells",
    [
        pa.array(["12", " 12 ", "12.0", None]),
        pa.array([12, 12, 12, None], pa.int16()),
        pa.array([12.0, 12.0, 12.0, np.nan]),
        pa.array(["12", "12", "12", None]).dictionary_encode(),
        pa.array([b"12", b"12", b"12", None]),
    ],
)
def test_one_entity_has_one_name_in_every_type(cells: pa.Array) -> None:
    columns = READER.read(pa.table({"card": cells})).columns
    assert columns["key:card"].to_pylist() == ["12", "12", "12", None]


def test_finer_parts_of_times_than_microseconds_are_cut_off() -> None:
    cells = pa.array([1_700_000_000_123_456_999, -1], pa.timestamp("ns"))
    columns = READER.read(pa.table({"at": cells})).columns
    assert columns["time"].to_pylist() == [1_700_000_000_123_456, 0]


def test_times_keep_every_microsecond() -> None:
    moments = [dt.datetime(2099, 12, 31, 23, 59, 59, 999_999 - i) for i in range(5)]  # noqa: DTZ001
    cells = pa.array(moments, pa.timestamp("us"))
    columns = READER.read(pa.table({"at": cells})).columns
    assert columns["time"].to_pylist() == cells.cast(pa.int64()).to_pylist()


@pytest.mark.parametrize("name", ["at", "card", "shop", "amount", "fraud"])
def test_a_type_that_cannot_be_read_names_the_column(name: str) -> None:
    with pytest.raises(DataError, match=f"column '{name}'") as caught:
        READER.read(pa.table({name: [[1, 2], [3]]}))
    assert caught.value.column == name


@pytest.mark.parametrize("name", ["card", "shop", "at"])
def test_a_cell_that_is_no_text_is_one_problem(name: str) -> None:
    cells = pa.array([b"2024-01-01", b"\xff\xfe", b"2024-01-02"])
    events = READER.read(pa.table({name: cells}))
    assert [(p.row, p.column) for p in events.problems] == [(1, name)]
    assert events.usable.tolist() == [True, False, True]
