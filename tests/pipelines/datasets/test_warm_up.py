"""Keep rows whose windows lack a past out of the splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.config import validate_config
from anomaly_vae.data.splitting import UNUSED, WARM_UP
from anomaly_vae.errors import ConfigError, DataError
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.loading import load_dataset
from pipelines.training.train import show_spans

DAY, START, DAYS = 86_400, 1_700_006_400, 20
AT = START + np.arange(DAYS * 48) * (DAY // 48)
"""Two events in an hour for 20 days, from a midnight on."""
WINDOWS = {"card": {"over": ["1d", "5d"], "count": True, "risk": {"label": "fraud", "delay": "1d"}}}
TABLE = pa.table(
    {
        "id": np.arange(len(AT)),
        "at": pa.array(AT, pa.timestamp("s")),
        "card": np.arange(len(AT)) % 7,
        "amount": np.arange(len(AT)) % 31 + 0.5,
        "fraud": (np.arange(len(AT)) % 40 == 0).astype(np.int8),
    }
)


def load(folder: Path, table: pa.Table = TABLE, **data: Any) -> Dataset:
    path = folder / "rows.parquet"
    pq.write_table(table, path)
    content: dict[str, Any] = {"path": str(path), "label": "fraud", "id": "id", "time": "at"}
    content |= {"features": ["amount"], "windows": WINDOWS, **data}
    return load_dataset(validate_config({"name": "x", "data": content}).data)


def notes(data: Dataset) -> list[str]:
    return [note for note in data.notes if "look back" in note]


def test_rows_that_see_less_are_counted_in_each_split(tmp_path: Path) -> None:
    (note,) = notes(load(tmp_path, splits={"calibration": 0.1, "test": 0.1}))
    assert note.startswith(
        "Warning: windows look back 6 days, but the first event is of 2023-11-15: "
    )
    assert "rows of train, " in note
    assert "rows of validation before 2023-11-21 see less than later rows" in note
    assert note.endswith("set data.windows_warm_up: full")


def test_a_full_warm_up_ends_when_windows_are_full(tmp_path: Path) -> None:
    plain, warm = load(tmp_path), load(tmp_path, windows_warm_up="full")
    early = start_of(6) > AT
    assert (warm.assignment.codes[early] == UNUSED).all()
    assert warm.assignment.unused[WARM_UP] == early.sum()
    assert sum(warm.assignment.counts.values()) == len(TABLE)
    assert notes(warm) == []
    assert warm.table.equals(plain.table), "the rows feed the windows of the others"
    assert warm.summary()["unused"][WARM_UP] == early.sum()


def start_of(day: float) -> float:
    return START + day * DAY


def test_fractions_are_of_the_rows_after_the_warm_up(tmp_path: Path) -> None:
    counts = load(tmp_path, windows_warm_up="full", splits={"test": 0.5}).assignment.counts
    assert counts["test"] == 14 * 48 / 2


def test_a_duration_may_be_shorter_than_the_windows_which_is_said(tmp_path: Path) -> None:
    data = load(tmp_path, windows_warm_up="4d")
    assert data.assignment.unused[WARM_UP] == 4 * 48
    assert "before 2023-11-21" in notes(data)[0]


def test_spans_and_intervals_leave_the_warm_up_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {"calibration": "2d", "test": "2d"}
    data = load(tmp_path, windows_warm_up="full", splits=splits)
    assert data.spans is not None
    assert data.spans.intervals["train"].start == start_of(6)
    assert data.assignment.counts["calibration"] < 2 * 48
    show_spans(data)
    assert f" {10 * 48} " in capsys.readouterr().err
    (note,) = load(tmp_path, windows_warm_up="full", splits={"train": "12d", **splits}).spans.notes  # type: ignore[union-attr]
    assert "the oldest row to train on is of 2023-11-21: 10 of 12 days are there" in note
    intervals = {
        "train": ["2023-11-15", "2023-11-30"],
        "calibration": ["2023-11-30", "2023-12-02"],
        "test": ["2023-12-02", "2023-12-05"],
    }
    again = load(tmp_path, windows_warm_up="full", splits=intervals)
    assert again.assignment.unused[WARM_UP] == 6 * 48


def test_no_note_if_no_split_has_rows_that_see_less(tmp_path: Path) -> None:
    splits = {"train": "5d", "calibration": "4d", "test": "4d"}
    assert notes(load(tmp_path, splits=splits)) == []


def test_rows_without_a_time_are_unused_as_before(tmp_path: Path) -> None:
    at = pa.array([None, *AT[1:].tolist()], pa.timestamp("s"))
    data = load(tmp_path, TABLE.set_column(1, "at", at), windows_warm_up="full")
    assert data.assignment.unused["outside every split"] == 1
    assert data.assignment.unused[WARM_UP] == 6 * 48


def test_data_that_end_before_the_windows_are_full_are_refused(tmp_path: Path) -> None:
    reason = (
        r"data.windows_warm_up \(full\) lasts from 2023-11-15 to 2023-11-21, and no row is later; "
        "give older rows, shorter windows or a shorter data.windows_warm_up"
    )
    with pytest.raises(DataError, match=reason):
        load(tmp_path, TABLE.slice(0, 5 * 48), windows_warm_up="full")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"windows_warm_up": "soon"}, "no duration above zero; write 30m, 12h, 7d or 4w, or full"),
        ({"windows_warm_up": "0d"}, "no duration above zero"),
        ({"windows_warm_up": "full", "windows": {}}, "windows_warm_up needs windows"),
    ],
)
def test_what_is_no_warm_up_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(tmp_path, **change)


def test_manifests_without_a_warm_up_do_not_record_it() -> None:
    content = {"path": "x", "time": "at", "windows": WINDOWS}
    plain, warm = (
        validate_config({"name": "x", "data": {**content, **more}}).recorded()["data"]
        for more in ({}, {"windows_warm_up": "full"})
    )
    assert "windows_warm_up" not in plain
    assert warm == {**plain, "windows_warm_up": "full"}
