"""The features of all rows equal the oracle's, for any order, ties, duplicates and gaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_vae.config.windows import EntityWindows, Risk
from anomaly_vae.errors import AnomalyVAEError, DataError
from anomaly_vae.features import WindowDefinition, offline
from anomaly_vae.features.events import EventReader
from anomaly_vae.features.offline import OfflineWindows, add_windows
from tests.support.window_oracle import Event, expected_features

CARD = EntityWindows(
    over=("4s", "20s"),
    count=True,
    of={"amount": ("sum", "mean", "max", "std")},
    distinct=("shop", "card"),
    since_last=True,
)
SHOP = EntityWindows(over=("10s",), count=True, risk=Risk(label="fraud", delay="3s"))
DEFINITION = WindowDefinition({"card": CARD, "shop": SHOP})
READER = EventReader(DEFINITION, "time", "id", "epoch_s")
DELAY = 3_000_000

Row = dict[str, Any]


def features(
    rows: list[Row], history: list[Row] | None = None, reader: EventReader = READER
) -> list[dict[str, float]]:
    """The features of each row, as the engine computes them."""
    with OfflineWindows(reader) as windows:
        if history:
            windows.add_history(reader.read(pa.Table.from_pylist(history)))
        half = len(rows) // 2  # rows arrive in several chunks
        for start, part in ((0, rows[:half]), (half, rows[half:])):
            if part:
                table = pa.Table.from_pylist(part)
                windows.add(reader.read(table), np.arange(start, start + len(part)))
        values = windows.compute().read(np.arange(len(rows)))
    return [{name: column[i] for name, column in values.items()} for i in range(len(rows))]


def event(row: Row) -> Event:
    time = None if row["time"] is None else round(row["time"] * 1e6)
    known = time + DELAY if time is not None and row["fraud"] else None
    keys = {name: row[name] for name in ("card", "shop")}
    return Event(row["id"], time, keys, {"amount": row["amount"]}, known)


def assert_equal(found: dict[str, float], expected: dict[str, float | None]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert math.isnan(found[name]), name
        else:
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from([None, *"abcdef"]),
            "time": st.sampled_from([None, *range(12), 3.5, 40, 44, 61]),
            "card": st.sampled_from([None, "1", "2"]),
            "shop": st.sampled_from([None, "x", "y"]),
            "amount": st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(1e9)),
            "fraud": st.sampled_from([None, 0, 1]),
        }
    ),
    min_size=1,
    max_size=14,
)
SCHEMA = [("id", "a"), ("time", 0.0), ("card", "c"), ("shop", "s"), ("amount", 0.0), ("fraud", 0)]
"""A row of every type, so that no column of a small table is all missing."""
TYPED = {**dict(SCHEMA), "time": 1e9}


@settings(max_examples=25, deadline=None)
@given(ROWS, ROWS)
def test_features_equal_those_of_the_oracle(history: list[Row], rows: list[Row]) -> None:
    arrived = [event(row) for row in [*history, TYPED, *rows, TYPED]]
    found = features([*rows, TYPED], [*history, TYPED])
    for row, values in zip(rows, found, strict=False):
        assert_equal(values, expected_features(DEFINITION, event(row), arrived))


def random_rows(rng: np.random.Generator, count: int) -> list[Row]:
    return [
        {
            "id": f"t{rng.integers(count) if rng.random() < 0.1 else i + count}",
            "time": float(rng.integers(300)),
            "card": str(rng.integers(8)),
            "shop": str(rng.integers(3)),
            "amount": float(rng.lognormal(3, 2)),
            "fraud": int(rng.random() < 0.2),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("block", [1 << 18, 64])
def test_blocks_of_sorted_rows_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(np.random.default_rng(0), 400)
    monkeypatch.setattr(offline, "BLOCK_ROWS", block)
    monkeypatch.setattr(offline, "GROUP_ROWS", 2048)
    arrived = [event(row) for row in rows]
    for row, values in zip(rows, features(rows), strict=True):
        assert_equal(values, expected_features(DEFINITION, event(row), arrived))


def test_no_feature_sees_the_future() -> None:
    rng = np.random.default_rng(1)
    rows = sorted(random_rows(rng, 300), key=lambda row: row["time"])
    rows = [row | {"id": f"t{i}"} for i, row in enumerate(rows)]
    now = rows[150]["time"]
    past = [row for row in rows if row["time"] <= now]
    other = sorted(random_rows(rng, 200), key=lambda row: row["amount"])
    future = [row | {"id": f"later {row['id']}", "time": now + 1 + row["time"]} for row in other]
    alone = features(past)
    np.testing.assert_equal(features(rows)[: len(past)], alone)
    np.testing.assert_equal(features([*past, *future])[: len(past)], alone)
    np.testing.assert_equal(features([*future, *past])[len(future) :], alone)


def test_a_row_alone_with_history_has_the_features_it_has_among_all() -> None:
    rows = sorted(random_rows(np.random.default_rng(2), 300), key=lambda row: row["time"])
    rows = [row | {"id": f"t{i}"} for i, row in enumerate(rows)]
    whole = features(rows)
    np.testing.assert_equal(features(rows[200:], rows[:200]), whole[200:])
    np.testing.assert_equal(features(rows[200:], rows), whole[200:])  # history holds the rows too


def test_the_label_of_an_event_counts_only_after_its_delay() -> None:
    row = {"id": None, "card": "1", "shop": "x", "amount": 1.0}
    rows = [row | {"time": float(time), "fraud": int(time == 0)} for time in (0, 2, 3, 4, 13, 14)]
    found = [values["shop_risk_10s"] for values in features(rows)]
    np.testing.assert_equal(found, [np.nan, np.nan, np.nan, 1.0, 1 / 4, 0.0])


@pytest.mark.parametrize("spelling", [12, 12.0, "12", "12.0", " 12 "])
def test_spellings_of_one_entity_are_one(spelling: object) -> None:
    row = {"id": None, "time": 1, "shop": "x", "amount": 1.0, "fraud": 0}
    found = features([row | {"card": spelling, "time": 2}], [row | {"card": "12"}])
    assert found[0]["card_count_4s"] == 1


@pytest.mark.parametrize(
    "change", [{"time": None}, {"card": None, "shop": None}, {"card": "", "shop": ""}]
)
def test_an_id_is_that_of_the_first_event_and_not_of_a_row_that_is_none(
    change: dict[str, Any],
) -> None:
    first = {**TYPED, "id": "b", "time": 3.0, "card": "c", "shop": None}
    rows = [first | change, first, first | {"id": "a", "time": 5.0}]
    assert features(rows)[2]["card_count_4s"] == 1


def test_empty_texts_are_missing() -> None:
    rows = [{**TYPED, "time": time, "id": "", "card": card} for time, card in ((1, "c"), (2, " "))]
    found = features([*rows, TYPED | {"time": 3, "id": "x"}])
    assert math.isnan(found[1]["card_count_4s"])
    assert (found[2]["card_count_4s"], found[2]["shop_count_10s"]) == (1, 2)


def test_large_numbers_keep_small_deviations() -> None:
    row = {"id": None, "card": "1", "shop": "x", "fraud": 0}
    amounts = [1e12 + 1, 1e12 + 3, 1e12 + 5, 0.0]
    rows = [row | {"time": float(i), "amount": amount} for i, amount in enumerate(amounts)]
    assert features(rows)[3]["card_amount_std_4s"] == 2


def test_unreadable_rows_are_problems_and_no_events() -> None:
    row = {"id": None, "card": "1", "shop": "x", "amount": "1", "fraud": 0}
    rows = [row | {"time": time} for time in ("1", "soon", "3")] + [
        row | {"time": "4", "amount": "much"},
        row | {"time": "5"},
    ]
    events = READER.read(pa.Table.from_pylist(rows))
    assert [(problem.row, problem.column) for problem in events.problems] == [
        (1, "time"),
        (3, "amount"),
    ]
    with OfflineWindows(READER) as windows:
        windows.add(events, np.arange(5))
        found = windows.compute().read(np.arange(5))["card_count_20s"]
    np.testing.assert_array_equal(found, [0, np.nan, 1, np.nan, 2])


def test_too_large_a_number_is_a_problem() -> None:
    events = READER.read(pa.table({"amount": [1e200], "time": [1.0]}))
    assert "at most 1e+150" in events.problems[0].reason


def test_files_are_deleted_even_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    windows = OfflineWindows(READER)
    windows.add(READER.read(pa.table({"time": [1.0]})), np.arange(1))
    windows.compute()
    assert list(tmp_path.iterdir())
    windows.__exit__(ValueError, ValueError(), None)
    assert not list(tmp_path.iterdir())


def test_more_events_than_memory_are_written_to_disk() -> None:
    rng, count = np.random.default_rng(3), 300_000
    table = pa.table(
        {
            "id": np.arange(count),
            "time": rng.integers(40 * count, size=count),
            "card": rng.integers(count // 5, size=count),
            "amount": rng.random(count),
        }
    )
    with OfflineWindows(READER, memory="100MB") as windows:
        windows.add(READER.read(table), np.arange(count))
        found = windows.compute().read(np.array([5]))
    assert len(found) == len(DEFINITION.names)


def test_a_full_disk_is_said_with_the_remedy() -> None:
    with OfflineWindows(READER) as windows:
        windows._database.execute("SET max_temp_directory_size = '1KB'; SET memory_limit = '4MB'")
        events = READER.read(pa.table({"id": np.arange(500_000), "time": np.arange(500_000)}))
        with pytest.raises(DataError, match="TMPDIR"):
            windows.add(events, np.arange(500_000))


# ---------------------------------------------------------------- data frames

HOURLY = {"card": {"over": ["1h"], "count": True}}


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_windows_are_added_to_data_frames_of_any_library(make: Callable[[Any], Any]) -> None:
    frame = make({"card": [7, 7], "at": ["2024-01-01 10:00", "2024-01-01 10:30"]})
    added = add_windows(frame, HOURLY, time="at")
    assert type(added) is type(frame)
    assert np.asarray(added["card_count_1h"]).tolist() == [0, 1]


def test_the_index_of_a_frame_stays_and_history_feeds_its_windows() -> None:
    rows = pd.DataFrame({"card": [7, 7], "at": ["2024-01-01 10:00", "2024-01-01 10:30"]}, [5, 3])
    added = add_windows(rows.iloc[1:], HOURLY, time="at", history=rows.iloc[:1])
    assert added["card_count_1h"].to_dict() == {3: 1.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"X": np.ones((2, 2))}, "X has no column names"),
        ({"X": pd.DataFrame({"card": [1]})}, "X lacks the column 'at'"),
        ({"X": pd.DataFrame({"card": [1], "at": ["soon"]})}, "column 'at', row 0: expected"),
        (
            {"X": pd.DataFrame({"card": [1], "at": ["2024-01-01"], "card_count_1h": [1]})},
            "'card_count_1h' already; drop it",
        ),
        ({"windows": {}}, "windows names no entity"),
        ({"windows": {"card": {"over": ["soon"]}}}, "no duration above zero"),
    ],
)
def test_frames_and_windows_that_do_not_fit_are_refused(
    change: dict[str, Any], reason: str
) -> None:
    frame = pd.DataFrame({"card": [1], "at": ["2024-01-01"]})
    with pytest.raises(AnomalyVAEError, match=reason):
        add_windows(**{"X": frame, "windows": HOURLY, "time": "at", **change})
