"""JSON is one object per line or an array; what is no object is broken at its line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.datasets.files import read_chunks
from pipelines.datasets.reading import json_files
from pipelines.datasets.reading.json_files import json_head, read_json
from pipelines.datasets.reading.parts import Broken, Chunk, Reading


def read(content: str | bytes, folder: Path) -> tuple[dict[int, dict[str, Any]], list[Broken]]:
    """Position → row, and what was broken."""
    path = folder / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows, broken = {}, []
    for part in read_chunks([path]):
        if isinstance(part, Chunk):
            rows |= dict(zip(part.rows.tolist(), part.table.to_pylist(), strict=True))
        else:
            broken.append(part)
    return rows, broken


ROWS = [{"a": 1, "b": "x"}, {"a": None, "b": "NA"}]


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1, "b": "x"}\n\n  {"a": null, "b": "NA"}',
        '\ufeff{"a": 1, "b": "x"}\r\n{"b": "NA"}\r\n',
        json.dumps(ROWS),
        "\n" + json.dumps(ROWS, indent=2) + "\n",
    ],
)
def test_lines_and_arrays_are_read(tmp_path: Path, content: str) -> None:
    assert read(content, tmp_path) == (dict(enumerate(ROWS)), [])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([True, False], pa.bool_()),
        (["x", "NA"], pa.string()),
        ([1, "x"], pa.string()),
        ([True, 1], pa.string()),
        ([10**30, 1], pa.string()),
        ([{"k": 1}, [2]], pa.string()),
        ([None, float("nan")], pa.null()),
    ],
)
def test_types_follow_from_all_values(tmp_path: Path, values: list[Any], kind: pa.DataType) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"a": value}) + "\n" for value in values))
    head = json_head(path, Reading())
    assert (head.schema, head.n_rows) == (pa.schema([("a", kind)]), 2)
    (chunk,) = read_json(path, Reading())
    assert isinstance(chunk, Chunk)
    assert chunk.table.schema == head.schema


def test_values_of_different_types_are_text_as_json_writes_it(tmp_path: Path) -> None:
    content = "".join(json.dumps({"a": v}) + "\n" for v in ("x", 1, 2.5, True, None, [1, "é"]))
    rows, _ = read(content, tmp_path)
    assert [row["a"] for row in rows.values()] == ["x", "1", "2.5", "true", None, '[1, "é"]']


def test_lines_without_an_object_are_broken_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b"", b"[1]", b"{", b'{"a": "\xff"}', b"{" * 99_999, b'{"a": 2}']
    rows, broken = read(b"\n".join(lines), tmp_path)
    assert rows == {0: {"a": 1}, 5: {"a": 2}}
    assert [(b.rows, b.line) for b in broken] == [
        (range(1, 2), 3), (range(2, 3), 4), (range(3, 4), 5), (range(4, 5), 6)
    ]  # fmt: skip
    assert all(b.reason.startswith(f"line {b.line}: ") for b in broken)
    assert "expected an object with one key per column, got [1]" in broken[0].reason
    assert "data.csv.encoding" in broken[2].reason


@pytest.mark.parametrize("end", ["", ",", ', {"a"', " x", ", {}, nope]"])
def test_a_damaged_array_is_broken_from_there_on(tmp_path: Path, end: str) -> None:
    rows, broken = read('[{"a": 1},\n{"a": 2}' + end, tmp_path)
    assert list(rows.values())[:2] == [{"a": 1}, {"a": 2}]
    assert [(b.rows, "line 2" in b.reason) for b in broken][-1] == (None, True)


def test_elements_that_are_no_objects_are_broken(tmp_path: Path) -> None:
    rows, broken = read('[{"a": 1},\n3,\n{"a": 2}]', tmp_path)
    assert rows == {0: {"a": 1}, 2: {"a": 2}}
    assert [(b.rows, b.line) for b in broken] == [(range(1, 2), 2)]


@pytest.mark.parametrize("content", ["[]", "[ ]\n"])
def test_an_empty_array_has_no_rows(tmp_path: Path, content: str) -> None:
    assert read(content, tmp_path) == ({}, [])


def test_an_empty_file_and_empty_objects_are_broken(tmp_path: Path) -> None:
    assert [b.reason for b in read("", tmp_path)[1]] == ["the file is empty"]
    assert [b.reason for b in read("{}\n", tmp_path)[1]] == ["line 1: the object is empty"]


def test_long_lines_and_very_many_keys_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MAX_BYTES", 1 << 20)
    rows, broken = read('{"a": 1}\n{"a": "' + "x" * (1 << 21) + '"}\n', tmp_path)
    assert rows == {0: {"a": 1}}
    assert [b.reason for b in broken] == ["line 2 is longer than 1 MiB"]
    assert read('[{"a": "' + "x" * (1 << 22) + '"}]', tmp_path)[1]
    monkeypatch.setattr(json_files, "MAX_KEYS", 3)
    rows, broken = read('{"a": 1, "b": 1, "c": 1, "d": 1}\n', tmp_path)
    assert [b.reason for b in broken] == ["its objects have more than 3 different keys"]


@given(
    st.lists(
        st.fixed_dictionaries({"a": st.integers(-9, 9), "b": st.text(max_size=30)}), min_size=1
    ),
    st.booleans(),
    st.integers(1, 40),
)
def test_objects_come_back_from_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], array: bool, block: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = json.dumps(rows, ensure_ascii=False, indent=1) if array else ""
    content = whole or "\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "BLOCK", block)
        patch.setattr(json_files, "BLOCK_ROWS", 3)
        assert read(content, folder) == (dict(enumerate(rows)), [])
