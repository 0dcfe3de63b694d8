"""Results of batch runs, and nothing else of the disk."""

import json
import shutil
from urllib.parse import quote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from serving.console.pages import batches
from tests.support.console import KEYS, Service

SUMMARY = {
    "model": {"name": "fraud", "version": "3"}, "alpha": 0.01, "rows": 3, "scored": 2,
    "flagged": 1, "rejected": 1, "guarantee": {"status": "holding"},
    "parts": ["part-00000.parquet"],
}  # fmt: skip
REASON = [{"feature": "TX_AMOUNT", "nats": 3.0, "observed": "900.0", "expected": "38.123"}]
ROWS = pa.table(
    {
        "id": ["low", "=high<b>"],
        "score": [1.0, 99.5],
        "p_value": [0.5, 0.0004],
        "is_anomaly": [False, True],
        "contributions": [None, REASON],
    }
)


def write(folder, summary=SUMMARY, rows=ROWS):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    for name in summary.get("parts", ()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, folder / name)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("batches")


@pytest.fixture
def root(place):
    for folder in ("results", "secret"):
        shutil.rmtree(place / folder, ignore_errors=True)
    write(place / "results" / "day 1" / "fraud")
    write(place / "secret")
    return place / "results"


@pytest.fixture(scope="module")
def administrator(served, empty_store, place):
    shutil.copy(empty_store, place / "cases.db")
    service = Service([served], place, api_keys=KEYS, console_results=str(place / "results"))
    yield service.visitor("bob")
    service.close()


@pytest.fixture
def reader(administrator, root):
    return administrator


def test_results_are_listed_and_opened(reader, root):
    text = reader.text("/batches")
    assert "day 1/fraud" in text
    assert "secret" not in text
    assert "fraud version 3" in text
    shown = reader.text("/batches/day%201/fraud")
    assert shown.index("=high<b>") < shown.index("low<")
    assert "TX_AMOUNT 900 (expected 38.1)" in shown
    assert "holding" in shown
    assert "<b>" not in reader.get("/batches/day%201/fraud").text


REGION = {"box": [1, 2, 3, 4], "nats": 5.0, "share": 0.5}


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        (json.dumps(REASON), "TX_AMOUNT 900 (expected 38.1)"),
        ([REGION], "the area from x 1 to 3 and y 2 to 4, 50% of all that is unusual"),
        (json.dumps([REGION]), "the area from x 1 to 3"),
        (json.dumps([{"box": "<b>", "nats": None, "share": "x"}]), "'<b>'"),
        ('[{"box": [1', '[{"box": [1'),
    ],
)
def test_contributions_and_regions_are_told_in_words(reader, root, parts, shown):
    rows = pa.table({**ROWS.to_pydict(), "contributions": [None, parts]})
    write(root / "words", {**SUMMARY, "parts": ["part-00000.parquet"]}, rows)
    assert shown in reader.text("/batches/words")


OUTSIDE = ["../secret", "..", "day 1/../../secret", "/etc", "day 1/fraud/../../../secret", "\0",
           "away", "away/secret", "a" * 5000, "day 1", "loop", "."]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_the_root_is_opened(reader, root, name):
    (root / "away").symlink_to(root.parent)
    (root / "loop").symlink_to(root / "loop")
    for text in (quote(name, safe=""), quote(name).replace("..", "%2e%2e")):
        answer = reader.get(f"/batches/{text}")
        assert answer.status_code < 500, name
        assert "Lowest p-values" not in answer.text, name
        picture = reader.get(f"/batches/{text}/heatmaps/x.png")
        assert picture.status_code == 404, name
    assert "secret" not in reader.text("/batches")


def test_a_part_outside_the_result_is_not_read(reader, root):
    folder = write(root / "evil", {**SUMMARY, "parts": []})
    pq.write_table(ROWS, root.parent / "part-00000.parquet")
    names = ["../../part-00000.parquet", "/etc/part-00000.parquet", "passwd"]
    (folder / "part-00001.parquet").symlink_to(root.parent / "part-00000.parquet")
    content = {**SUMMARY, "parts": [*names, "part-00001.parquet"]}
    (folder / "summary.json").write_text(json.dumps(content))
    assert "=high" not in reader.text("/batches/evil")
    assert "No rows are in this folder" in reader.text("/batches/evil")


def test_pictures_are_shown(reader, root):
    pictures = root / "day 1" / "fraud" / "heatmaps"
    pictures.mkdir()
    (pictures / "a-0123456789abcdef-0.png").write_bytes(b"picture")
    (pictures / "notes.txt").write_text("no")
    (pictures / "out.png").symlink_to(root.parent / "secret" / "summary.json")
    address = "/batches/day%201/fraud/heatmaps"
    assert f"{address}/a-0123456789abcdef-0.png" in reader.text("/batches/day%201/fraud")
    assert reader.get(f"{address}/a-0123456789abcdef-0.png").content == b"picture"
    for name in ("notes.txt", "out.png", "..%2Fsummary.json", "none.png"):
        assert reader.get(f"{address}/{name}").status_code == 404


def test_parts_in_folders_and_csv_are_read(reader, root):
    csv = ROWS.drop_columns(["contributions"])
    folder = write(root / "parts", {**SUMMARY, "parts": ["city=Rome/part-00000.parquet"]})
    pa.csv.write_csv(csv, folder / "part-00001.csv")
    parts = ["city=Rome/part-00000.parquet", "part-00001.csv"]
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, "parts": parts}))
    assert reader.text("/batches/parts").count("=high<b>") == 2


def test_the_lowest_p_values_of_all_files_are_shown(reader, root):
    many = pa.table(
        {
            "id": [f"row-{n}-" for n in range(300)],
            "score": [float(n) for n in range(300)],
            "p_value": [1 - n / 300 for n in range(300)],
            "is_anomaly": [n >= 290 for n in range(300)],
        }
    )
    write(root / "many", rows=many)
    text = reader.text("/batches/many")
    assert text.index("row-299-") < text.index("row-290-") < text.index("row-289-")
    assert "row-200-" in text
    assert "row-199-" not in text


def test_rejects_are_shown(reader, root):
    rejects = pa.table({"path": ["a.csv"], "row": [7], "reason": ["expected <a> number"]})
    pq.write_table(rejects, root / "day 1" / "fraud" / "rejects.parquet")
    assert "expected <a> number" in reader.text("/batches/day%201/fraud")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"rows": "x"}',
        '{"rows": 1, "rows": 2}',
        json.dumps({**SUMMARY, "rows": None}),
    ],
)
def test_a_damaged_summary_is_an_error_of_one_line(reader, root, content):
    (root / "broken").mkdir()
    (root / "broken" / "summary.json").write_text(content)
    answer = reader.get("/batches/broken")
    assert answer.status_code == 422
    assert "summary.json" in answer.text
    assert "day 1/fraud" in reader.text("/batches")


@pytest.mark.parametrize("rows", [b"no parquet", pa.table({"score": [1.0]})])
def test_a_damaged_part_is_an_error_of_one_line(reader, root, rows):
    path = write(root / "broken") / "part-00000.parquet"
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    else:
        pq.write_table(rows, path)
    answer = reader.get("/batches/broken")
    assert answer.status_code == 422
    assert "part" in answer.text


def test_a_summary_with_strange_values_is_shown(reader, root):
    odd = {**SUMMARY, "model": 3, "guarantee": "x", "alpha": "y", "parts": []}
    write(root / "odd", odd)
    assert "No rows are in this folder" in reader.text("/batches/odd")


def test_a_large_result_is_read_in_part(reader, root, monkeypatch):
    monkeypatch.setattr(batches, "MAX_READ_BYTES", 1)
    assert "No rows" in reader.text("/batches/day%201/fraud")


def test_without_a_root_it_says_what_to_set(bob):
    assert "ANOMALY_VAE_CONSOLE_RESULTS" in bob.text("/batches")
    assert bob.get("/batches/x").status_code == 404


def test_only_administrators_see_results(alice):
    assert alice.get("/batches").status_code == 403
    assert alice.get("/batches/day%201/fraud").status_code == 403
    assert "Batches" not in alice.text("")


def test_an_empty_root_says_so(service_of, served, tmp_path):
    visitor = service_of(served, console_results=str(tmp_path / "none")).visitor("bob")
    assert "no result yet" in visitor.text("/batches")
