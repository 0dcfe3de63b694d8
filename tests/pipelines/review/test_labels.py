"""`anomaly-vae labels` on files and stores."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.review import LabelStore
from tests.support.flows import Command

pytestmark = pytest.mark.e2e

CSV = """\
id,label,at,note
12,anomaly,2024-01-31T12:00:00Z,"<script>alert('x')</script>"
12.0,normal,2024-02-01 09:00,
13,maybe,,
NA,Normal,,
14,1,,
14,0,,
15,,,
16,normal,3000-01-01,
,normal,,
17,normal,yesterday,
"""
COUNTS = ("rows", "stored", "unchanged", "superseded", "unlabelled", "rejected")


@pytest.fixture
def store(sqlite_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ANOMALY_VAE_LABELS", sqlite_store)
    return sqlite_store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(CSV)
    return path


def newest(address: str) -> list[tuple[str, str]]:
    with LabelStore(address) as store:
        return [(one.id, one.label) for one in store.newest()]


def test_every_row_is_counted_once_and_a_file_may_be_imported_again(
    command: Command, file: Path, store_address: str
) -> None:
    arguments = ("labels", "import", "--store", store_address, "--model", "fraud", file)
    answer = command(*arguments)
    assert answer.code == 0, answer.err
    assert [answer.json[name] for name in COUNTS] == [10, 4, 0, 1, 1, 4]
    assert [(one["row"], one["column"]) for one in answer.json["rejects"]] == [
        (2, "label"), (7, "at"), (8, "id"), (9, "at"),
    ]  # fmt: skip
    assert "expected anomaly, normal or unsure (or 1, 0), got 'maybe'" in answer.err
    again = command(*arguments)
    assert [again.json[name] for name in COUNTS] == [10, 0, 4, 1, 1, 4]
    assert newest(store_address) == [("12", "normal"), ("14", "normal"), ("NA", "normal")]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_other_kinds_of_files_and_names_of_columns(
    command: Command, store: str, tmp_path: Path, kind: str
) -> None:
    times = [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 1, 2, tzinfo=dt.UTC), None]
    rows = pa.table({"TX": [1.0, 1.0, 2.0], "fraud": [True, False, None], "seen": times})
    path = tmp_path / f"chargebacks.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path)
    else:
        lines = (json.dumps(row, default=str) for row in rows.to_pylist())
        path.write_text("\n".join(lines))
    names = ("--id", "TX", "--label", "fraud", "--at", "seen", "--model", "fraud")
    answer = command("labels", "import", path, *names, "--who", "bank")
    assert answer.code == 0, answer.err
    assert [answer.json[name] for name in COUNTS] == [3, 2, 0, 0, 1, 0]
    with LabelStore(store) as opened:
        (label,) = opened.newest()
    assert (label.id, label.label, label.who) == ("1", "normal", "bank")


@pytest.mark.parametrize("name", ["import", "export", "stats"])
def test_every_command_has_help_that_mentions_json(command: Command, name: str) -> None:
    answer = command("labels", name, "--help")
    assert answer.code == 0
    assert "--json" in answer.out
    assert "ANOMALY_VAE_LABELS" in answer.out


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_export_has_conflicts_and_imports_to_the_same_store(
    command: Command, store: str, tmp_path: Path, suffix: str
) -> None:
    note = '=1+1 <b>"x"</b>, two\nlines'
    rows = pa.table(
        {"id": ["7", "7", "8"], "label": ["anomaly", "normal", "unsure"],
         "model": ["fraud", "fraud", "scans"], "who": ["alice", "bob", "bob"],
         "note": [None, note, None], "at": [dt.datetime(2024, 1, d, 1, 2, 3, 4, dt.UTC)
         for d in (1, 2, 3)]}
    )  # fmt: skip
    pq.write_table(rows, tmp_path / "in.parquet")
    assert command("labels", "import", tmp_path / "in.parquet").json["stored"] == 3
    out = tmp_path / f"out{suffix}"
    answer = command("labels", "export", "--out", out)
    assert (answer.json["ids"], answer.json["conflicts"]) == (2, 1)
    assert command("labels", "import", out).json["unchanged"] == 2
    second = tmp_path / "second.db"
    assert command("labels", "import", out, "--store", f"sqlite:///{second}").json["stored"] == 2
    with LabelStore(f"sqlite:///{second}") as opened:
        labels = [(one.id, one.label, one.who, one.note) for one in opened.newest()]
    assert labels == [("7", "normal", "bob", note), ("8", "unsure", "bob", "")]
    if suffix == ".parquet":
        assert pq.read_table(out)["conflicts"].to_pylist() == ["alice: anomaly", None]
    assert command("labels", "export", "--out", out, "--model", "fraud").json["ids"] == 1


def test_stats(command: Command, store: str, file: Path) -> None:
    command("labels", "import", file, "--model", "fraud")
    answer = command("labels", "stats")
    assert "import" in answer.err
    content = answer.json
    newest = content.pop("newest")
    assert newest > content.pop("oldest") == "2024-01-31T12:00:00+00:00"
    assert content == {
        "store": store, "labels": 4, "ids": 3, "anomaly": 0, "normal": 3, "unsure": 0,
        "conflicts": 0, "reviewers": {"import": 4},
    }  # fmt: skip
    assert command("labels", "stats", "--model", "absent").json["oldest"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("import", "{file}"), "give --model NAME, or a column 'model'"),
        (("import", "{file}", "--id", "TX"), "there is no column 'TX'; name one with --id, of"),
        (("import", "{file}", "--label", "y"), "name one with --label"),
        (("import", "{file}", "--at", "seen"), "name one with --at"),
        (("import", "absent.csv", "--model", "x"), "no CSV, JSON or Parquet file is there"),
        (("stats",), "there is no label store at sqlite:///"),
        (("export", "--out", "x.csv"), "there is no label store"),
        (("export", "--out", "x.xlsx"), "must end in .parquet or .csv"),
        (("stats", "--store", "mysql://bob:hunter2@db/x"), "expected sqlite:///labels.db"),
        (("stats", "--store", "labels.db"), "expected sqlite:///labels.db"),
    ],
)
def test_faults_are_one_line(
    command: Command, store: str, file: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = command("labels", *(one.format(file=file) for one in arguments))
    assert answer.code == 1
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert "hunter2" not in answer.err
    assert not Path(store.removeprefix("sqlite:///")).exists()


def test_a_store_that_is_down_is_one_line(command: Command, down_store: str, file: Path) -> None:
    answer = command("labels", "import", file, "--model", "x", "--store", down_store)
    assert answer.code == 1
    assert "refused" in answer.err
    assert "hunter2" not in answer.err


def test_the_store_must_be_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_VAE_LABELS", raising=False)
    answer = command("labels", "stats")
    assert answer.code == 2
    assert "--store" in answer.err


def test_unreadable_files_and_rows_are_rejects(
    command: Command, store: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("id,label\n1,normal\n2,normal,extra\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but no more")
    answer = command("labels", "import", tmp_path, "--model", "fraud")
    assert answer.code == 0, answer.err
    assert [answer.json[name] for name in COUNTS] == [3, 1, 0, 0, 0, 2]


def test_times_that_are_numbers_are_a_fault(command: Command, store: str, tmp_path: Path) -> None:
    rows = pa.table({"id": [1], "label": ["normal"], "at": [1_700_000_000]})
    pq.write_table(rows, tmp_path / "a.parquet")
    answer = command("labels", "import", tmp_path / "a.parquet", "--model", "fraud")
    assert answer.code == 1
    assert "column 'at': write times as 2024-01-31T12:00:00Z, not as numbers" in answer.err


def test_nothing_but_rejects_is_a_fault(command: Command, store: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,label\n1,yes\n2,no\n")
    answer = command("labels", "import", tmp_path / "a.csv", "--model", "fraud")
    assert answer.code == 1
    assert "all 2 rows were rejected; the first one: " in answer.err
