"""Files of rows: CSV that a spreadsheet may open, and folders with safe names."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from anomaly_vae.errors import DataError
from pipelines.batch.result.layout import MAX_FOLDERS, CsvFile, Layout, folder_name


def written(path: Path, table: pa.Table) -> list[list[str]]:
    """The cells of a CSV file, as Python reads them."""
    file = CsvFile(path, table.schema)
    for start in range(0, len(table), 2):
        file.write_table(table.slice(start, 2))
    file.close()
    return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+A1", "'+A1"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("\t=1", "'\t=1"),
        ("\r\n=1", "'\r\n=1"),
        ("＝1+1", "'＝1+1"),
        ("-", "'-"),
        ("-5", "-5"),
        ("+491701234567", "+491701234567"),
        ("-1.5e-7", "-1.5e-7"),
        ("-1\n=1", "'-1\n=1"),
        ("a=1", "a=1"),
        ('say "so", twice', 'say "so", twice'),
        ("two\nlines", "two\nlines"),
        ("Zoë 信用", "Zoë 信用"),
        ("'quoted", "'quoted"),
    ],
)
def test_texts_are_written_as_they_are_unless_a_spreadsheet_runs_them(
    tmp_path: Path, text: str, cell: str
) -> None:
    for kind in (pa.string(), pa.large_string()):
        table = pa.table({"note": pa.array([text, None], kind), "n": [0, 1]})
        assert written(tmp_path / "t.csv", table) == [["note", "n"], [cell, "0"], ["", "1"]]


def test_the_names_of_columns_are_no_formulas_either(tmp_path: Path) -> None:
    assert written(tmp_path / "t.csv", pa.table({"=a": ["x"], "b": [1]}))[0] == ["'=a", "b"]


def test_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-250, 250)
    numbers = np.append(numbers, [-0.1, 1e22, 5e-324, 1 / 3])
    cells = written(tmp_path / "t.csv", pa.table({"score": numbers}))[1:]
    assert [float(cell) for (cell,) in cells] == numbers.tolist()


@pytest.mark.parametrize(
    ("cell", "kind", "text"),
    [
        ([{"feature": "a", "nats": 1.5}], None, '[{"feature": "a", "nats": 1.5}]'),
        (b"\xff\x00", pa.binary(), "ff00"),
        (90, pa.duration("s"), "90"),
        (True, pa.bool_(), "true"),
        (0, pa.timestamp("us", "UTC"), "1970-01-01 00:00:00.000000Z"),
    ],
)
def test_cells_of_other_types_are_readable(
    tmp_path: Path, cell: Any, kind: pa.DataType | None, text: str
) -> None:
    table = pa.table({"x": pa.array([cell, None], kind), "n": [0, 1]})
    assert written(tmp_path / "t.csv", table) == [["x", "n"], [text, "0"], ["", "1"]]
    if kind is None:
        assert json.loads(text) == cell


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("../../etc", "c=..%2F..%2Fetc"),
        ("a=b", "c=a%3Db"),
        ("", "c=__HIVE_DEFAULT_PARTITION__"),
        (None, "c=__HIVE_DEFAULT_PARTITION__"),
        ("NUL:\x00", "c=NUL%3A%00"),
        ("100%", "c=100%25"),
    ],
)
def test_a_value_is_no_path(value: str | None, name: str) -> None:
    assert folder_name("c", value) == name


def test_a_column_name_is_no_path() -> None:
    assert folder_name("../x", "1") == "..%2Fx=1"


def test_a_value_that_is_too_long_is_named() -> None:
    with pytest.raises(DataError, match=r"--partition-by c: the value 'xxx.* is too long"):
        folder_name("c", "x" * 300)


def test_rows_keep_their_order_in_their_folders() -> None:
    table = pa.table({"c": ["b", None, "a", "b", ""], "at": [0, 1, 2, 3, 4]})
    found = {name: rows.to_pydict() for name, rows in Layout(partition_by="c").folders(table)}
    assert found == {
        "c=a": {"at": [2]},
        "c=b": {"at": [0, 3]},
        "c=__HIVE_DEFAULT_PARTITION__": {"at": [1, 4]},
    }


def test_too_many_folders_are_refused_with_the_limit() -> None:
    layout, many = Layout(partition_by="c"), list(range(MAX_FOLDERS + 1))
    assert len(list(layout.folders(pa.table({"c": many[1:], "x": many[1:]})))) == MAX_FOLDERS
    with pytest.raises(DataError, match="--partition-by c: it has more than 1,000 values"):
        list(layout.folders(pa.table({"c": many, "x": many})))
