"""Late labels in files of any kind, and files that cannot be used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.config.data import CsvConfig
from anomaly_vae.data.vocabulary import ANOMALY, NORMAL, UNSURE, Vocabulary
from anomaly_vae.errors import DataError
from pipelines.datasets.label_files import LabelSource, read_label_files
from tests.support.table_files import write

JANUARY = 1704067200.0
"""2024-01-01 00:00 UTC in seconds since 1970."""


def source(*places: Path, **options: object) -> LabelSource:
    return LabelSource(tuple(map(str, places)), "tx", "fraud", **options)  # type: ignore[arg-type]


def read(*places: Path, **options: object) -> dict[str, tuple[int, float]]:
    found, _ = read_label_files(source(*places, **options))
    ids = found.ids.to_pylist()
    return dict(zip(ids, zip(found.codes.tolist(), found.at.tolist(), strict=True), strict=True))


def fault(content: str, folder: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(write(folder / "late.csv", content), **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "late.csv" in text
    return text


def test_csv_json_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = [("7", "1", "2024-01-01"), ("8", "normal", "2024-01-01T00:00:00Z"), ("9", "unsure", "")]
    lines = "\n".join(",".join(row) for row in rows)
    csv = write(tmp_path / "a.csv", f"tx,fraud,at\n{lines}\n")
    objects = [{"tx": int(i), "fraud": label, "at": at or None} for i, label, at in rows]
    text = write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, objects)))
    ids, labels, times = zip(*rows, strict=True)
    moments = pa.array([JANUARY * 1e6, JANUARY * 1e6, None], pa.int64()).cast(pa.timestamp("us"))
    del times
    table = pa.table({"tx": pa.array(map(float, ids)), "fraud": labels, "at": moments})
    pq.write_table(table, tmp_path / "c.parquet")
    wanted = {"7": (ANOMALY, JANUARY), "8": (NORMAL, JANUARY)}
    for path in (csv, text, tmp_path / "c.parquet"):
        found = read(path)
        code, at = found.pop("9")
        assert found == wanted, path
        assert code == UNSURE
        assert math.isnan(at)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    write(tmp_path / "2.csv", "tx,fraud\n1,0\n")
    write(tmp_path / "1.csv", "tx,fraud\n1,1\n2,1\n")
    found, _ = read_label_files(source(tmp_path))
    assert found.ids.to_pylist() == ["1", "2", "1"]
    assert found.codes.tolist() == [ANOMALY, ANOMALY, NORMAL]


def test_an_empty_folder_or_a_header_alone_holds_no_labels_yet(tmp_path: Path) -> None:
    assert read(tmp_path) == {}
    assert read(write(tmp_path / "a.csv", "tx,fraud\n")) == {}


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.labels: .*no CSV, JSON or Parquet file is there"):
        read(tmp_path / "lables")


def test_the_label_column_may_be_called_label(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "tx,label\n1,anomaly\n"))["1"][0] == ANOMALY
    both = write(tmp_path / "b.csv", "tx,label,fraud\n1,unsure,1\n")
    assert read(both)["1"][0] == ANOMALY, "the configured column comes first"


@pytest.mark.parametrize("label", ["1", "1.0", "TRUE", "true", "Anomaly"])
def test_a_positive_label_has_many_spellings(label: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", f"tx,fraud\n1,{label}\n"))["1"][0] == ANOMALY


def test_files_have_their_own_separator_or_that_of_the_data(tmp_path: Path) -> None:
    form = {"csv": CsvConfig(separator=";")}
    assert read(write(tmp_path / "a.csv", "tx,fraud\n1,1\n"), **form)["1"][0] == ANOMALY
    assert read(write(tmp_path / "b.csv", "tx;fraud\n1;1\n"), **form)["1"][0] == ANOMALY


def test_rows_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "tx,fraud\n1,1\n,1\n3,\n4,NA\n")
    found, notes = read_label_files(source(path))
    assert found.ids.to_pylist() == ["1"]
    assert f"'{path}': 1 rows without id left out, such as row 1" in notes
    assert f"'{path}': 2 rows without label left out, such as row 2" in notes


def test_an_unreadable_label_is_named_by_file_row_and_remedy(tmp_path: Path) -> None:
    text = fault("tx,fraud\n1,1\n2,fruad\n", tmp_path)
    assert "late.csv', row 1, column 'fraud': 'fruad' is neither 1" in text
    assert "anomaly, normal or unsure; correct it" in text
    text = fault("tx,fraud\n1,fair\n", tmp_path, vocabulary=Vocabulary("fraud", frozenset({"ok"})))
    assert "neither 'fraud', which data.positive names" in text
    assert "nor a label of the data ('ok')" in text


def test_a_label_that_is_no_value_is_named_too(tmp_path: Path) -> None:
    path = write(tmp_path / "late.jsonl", '{"tx": 1, "fraud": [1]}\n')
    with pytest.raises(DataError, match=r"late\.jsonl.*'fraud'"):
        read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("id,fraud\n1,1\n", "no column 'tx', which data.id names; found 'id', 'fraud'"),
        ("tx,y\n1,1\n", "no label column 'fraud' or 'label'; found 'tx', 'y'"),
        ("", "the file is empty"),
        ("tx,fraud\n1,1,2\n", "line 2"),
        ("tx,fraud,at\n1,1,2024-01-01\n2,1,yesterday\n", "row 1, column 'at': "),
        ("tx,fraud,at\n1,1,2024-01-01\n2,1,9024-01-01\n", "row 1, column 'at': the time lies in"),
        ("tx,fraud,at\n1,1,03/04/2024\n", "may be %d/%m/%Y or %m/%d/%Y; write times as"),
    ],
)
def test_other_faults_name_the_file_and_the_place(
    content: str, reason: str, tmp_path: Path
) -> None:
    assert reason in fault(content, tmp_path)


def test_times_may_have_the_form_of_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "tx,fraud,at\n1,1,01/02/2024\n")
    assert read(path, time_format="%d/%m/%Y")["1"][1] == JANUARY + 31 * 86400
    numbers = write(tmp_path / "b.jsonl", '{"tx": 1, "fraud": 1, "at": 1704067200}\n')
    assert read(numbers)["1"][1] == JANUARY


@pytest.mark.parametrize(
    "content",
    ["tx\n1\n", "fraud\n1\n", "tx,fraud\n1,maybe\n", "tx,fraud,at\n1,1,soon\n"],
)
@pytest.mark.parametrize("named_by", ["data.labels", "--labels"])
def test_a_fault_names_the_key_or_option_that_named_the_file(tmp_path, content, named_by) -> None:
    assert fault(content, tmp_path, named_by=named_by).startswith(f"{named_by}: '")


def test_a_missing_file_is_named_with_the_option_that_named_it(tmp_path) -> None:
    with pytest.raises(DataError, match=r"^--labels: .*gone\.csv"):
        read(tmp_path / "gone.csv", named_by="--labels")
