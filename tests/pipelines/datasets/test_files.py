"""Files are streams of rows with their true positions; what cannot be read is said, not lost."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import orc
from pyarrow.parquet import encryption

from anomaly_vae.errors import DataError
from pipelines.datasets import csv_files, files, parquet_files
from pipelines.datasets.files import (
    absent_columns,
    find_files,
    heads_by_file,
    read_chunks,
    read_table,
)
from pipelines.datasets.parts import ENCODING_REMEDY, Broken, Chunk, Head, first_line

Row = tuple[str | None, ...]

NOT_UTF8_CELL = "column '{}' is not UTF-8 text; " + ENCODING_REMEDY.format("the file")


def write(path: Path, content: str | bytes = "a\n1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(*files: Path, batch_rows: int = 65_536) -> tuple[dict[int, Row], list[Broken]]:
    """Position → cells of every row read, and what was broken; no position comes twice."""
    rows: dict[int, Row] = {}
    broken = []
    for part in read_chunks(files, batch_rows):
        if isinstance(part, Broken):
            broken.append(part)
            continue
        assert len(part.rows) == len(part.table) > 0
        cells = zip(*(column.to_pylist() for column in part.table.columns), strict=True)
        for position, row in zip(part.rows.tolist(), cells, strict=True):
            assert position not in rows
            rows[position] = row
    return rows, broken


def row_of(broken: Broken) -> int:
    """The one row that this is about."""
    assert broken.rows is not None
    (row,) = broken.rows
    return row


# ---------------------------------------------------------------- finding


def names(paths: Sequence[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.csv", "a.parquet", "sub/c.PQ", "sub/deep/d.csv", "notes.txt", "_SUCCESS",
        ".hidden.csv", "_temporary/x.csv", ".git/y.csv", "part[1].csv",
    ):  # fmt: skip
        write(tmp_path / name)
    return tmp_path


def test_a_folder_is_searched_throughout_but_hidden_and_temporary_files(tree: Path) -> None:
    found = names(find_files([str(tree)]), tree)
    assert found == ["a.parquet", "b.csv", "part[1].csv", "sub/c.PQ", "sub/deep/d.csv"]


def test_a_folder_that_lies_in_a_hidden_one_is_searched_too(tmp_path: Path) -> None:
    folder = write(tmp_path / ".cache" / "_run" / "a.csv").parent
    assert names(find_files([str(folder)]), folder) == ["a.csv"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["b.csv", "part[1].csv"]),
        ("**/*.csv", ["_temporary/x.csv", "b.csv", "part[1].csv", "sub/deep/d.csv"]),
        ("[ab].*", ["a.parquet", "b.csv"]),
        ("s*", ["sub/c.PQ", "sub/deep/d.csv"]),
        ("[!_]*", ["a.parquet", "b.csv", "part[1].csv", "sub/c.PQ", "sub/deep/d.csv"]),
    ],
)
def test_a_glob_finds_tables_and_folders_of_tables(
    tree: Path, pattern: str, expected: list[str]
) -> None:
    assert names(find_files([str(tree / pattern)]), tree) == expected


def test_a_file_is_found_whatever_its_name(tree: Path) -> None:
    for name in ("part[1].csv", ".hidden.csv", "notes.txt"):
        assert find_files([str(tree / name)]) == [tree / name]


def test_paths_keep_their_order_and_a_file_comes_once(tree: Path) -> None:
    paths = [str(tree / "sub"), str(tree / "b.csv"), str(tree / "*.csv"), str(tree / "sub/c.PQ")]
    found = names(find_files(paths), tree)
    assert found == ["sub/c.PQ", "sub/deep/d.csv", "b.csv", "part[1].csv"]


@pytest.mark.parametrize("path", ["absent.csv", "absent/*.csv", "*.dat", "empty"])
def test_a_path_to_no_table_is_refused_by_name(tree: Path, path: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match="no CSV, JSON or Parquet file is there") as caught:
        find_files([str(tree / "b.csv"), str(tree / path)])
    assert caught.value.path == str(tree / path)


@pytest.mark.parametrize(
    "name",
    [
        "x.tsv",
        "x.jsonl",
        "x.ndjson",
        "x.csv.gz",
        "x.csv.zst",
        "x.tsv.bz2",
        "x.jsonl.xz",
        "X.CSV.GZ",
    ],
)
def test_tables_of_every_form_are_found_in_folders(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    write(tmp_path / "x.gz")
    write(tmp_path / "x.txt")
    assert find_files([str(tmp_path)]) == [path]


def test_a_glob_that_names_a_suffix_finds_files_of_that_kind(tree: Path) -> None:
    assert names(find_files([str(tree / "*.txt")]), tree) == ["notes.txt"]


def test_characters_of_globs_in_the_names_of_folders_mean_themselves(tmp_path: Path) -> None:
    path = write(tmp_path / "day[1]" / "part*.csv")
    for place in (path, path.parent, path.parent / "*.csv", path.parent / "part?.csv"):
        assert find_files([str(place)]) == [path]


def test_links_that_lead_nowhere_are_refused_alone_and_broken_in_folders(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.csv", "a\n1\n")
    (tmp_path / "b.csv").symlink_to("nowhere")
    (tmp_path / "c.csv").symlink_to("c.csv")
    for name, reason in (("b.csv", "a link to a file that is not there"), ("c.csv", "symbolic")):
        with pytest.raises(DataError, match=f"{name}': .*{reason}"):
            find_files([str(tmp_path / name)])
    rows, broken = read(*find_files([str(tmp_path)]))
    assert (list(rows), [b.path.name for b in broken]) == ([0], ["b.csv", "c.csv"])
    assert read(whole) == (rows, [])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "the path is empty"),
        ("a\0b", "null byte"),
        ("x" * 5_000, "File name too long"),
        ("/dev/zero", "it is a device, neither a file nor a pipe"),
    ],
)
def test_paths_that_are_no_files_are_refused_in_one_line(path: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        find_files([path])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_refused_and_not_skipped(tree: Path) -> None:
    (tree / "sub").chmod(0)
    with pytest.raises(DataError, match="sub': Permission denied"):
        find_files([str(tree)])


def test_an_empty_device_is_an_empty_file() -> None:
    (path,) = find_files([os.devnull])
    assert read(path) == ({}, [Broken(path, "the file is empty")])


def test_the_standard_input_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "STDIN", str(write(tmp_path / "piped", "a\n1\n")))
    assert read(*find_files(["-"])) == ({0: ("1",)}, [])
    write(tmp_path / "-", "b\n2\n")
    assert find_files(["-"]) == [Path("-")]


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_csv_is_read_as_text_whatever_its_line_ends(
    tmp_path: Path, newline: str, bom: bytes, last: bool
) -> None:
    lines = newline.join(["id,b", "007,1.50", '"x ""y"", z",', '"é", '])
    path = write(tmp_path / "a.csv", bom + (lines + newline * last).encode())
    assert read(path) == ({0: ("007", "1.50"), 1: ('x "y", z', None), 2: ("é", None)}, [])
    assert next(iter(read_chunks([path]))).table.schema.names == ["id", "b"]  # type: ignore[union-attr]  # a Chunk


def test_rows_of_other_lengths_are_broken_and_the_others_keep_their_positions(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.csv", 'a,b\n1,"x\ny"\n3\n4,5\n12,50,7\n9,10\n')
    rows, broken = read(path)
    assert rows == {0: ("1", "x\ny"), 2: ("4", "5"), 4: ("9", "10")}
    assert broken == [
        Broken(path, "expected 2 fields, found 1", range(1, 2)),
        Broken(path, "expected 2 fields, found 3", range(3, 4)),
    ]


def test_a_row_that_is_not_utf8_is_broken_and_the_others_survive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"a,b\n1,caf\xc3\xa9\n2,caf\xe9\n3,x,y\n\xff,4\n5,\n")
    rows, broken = read(path)
    assert rows == {0: ("1", "café"), 4: ("5", None)}
    assert sorted((row_of(b), b.reason) for b in broken) == [
        (1, NOT_UTF8_CELL.format("b")),
        (2, "expected 2 fields, found 3"),
        (3, NOT_UTF8_CELL.format("a")),
    ]


def quoted(cell: str) -> bytes:
    return ('"' + cell.replace('"', '""') + '"').encode()


# text that ends with a line of delimiters and a quote cannot be told from an unclosed quote
# A line break beside a quote in one cell can look like a quote that is not closed.
csv_cells = st.text('ab,"é\n', max_size=5).filter(lambda c: "\n" not in c or '"' not in c)
good_rows = st.lists(csv_cells, min_size=2, max_size=2)
ragged_rows = st.lists(csv_cells, min_size=1, max_size=5).filter(lambda cells: len(cells) != 2)
NOT_UTF8 = b'"\xff",1'


@given(
    st.lists(good_rows | ragged_rows | st.just(NOT_UTF8), min_size=1, max_size=40),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(0, 40),
    st.booleans(),
)
def test_every_row_of_a_csv_file_is_read_or_broken_at_its_position(
    records: list[list[str] | bytes], newline: str, spare: int, last: bool
) -> None:
    """Through blocks far smaller than the file, with quotes and line breaks within cells."""
    lines = [r if isinstance(r, bytes) else b",".join(map(quoted, r)) for r in records]
    end = newline.encode()
    content = end.join([b"a,b", *lines]) + end * last
    read_, bad = {}, {}
    for position, record in enumerate(records):
        if isinstance(record, bytes):
            bad[position] = NOT_UTF8_CELL.format("a")
        elif len(record) == 2:
            read_[position] = tuple(cell if cell.strip() else None for cell in record)
        else:
            bad[position] = f"expected 2 fields, found {len(record)}"
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_files, "CSV_BLOCK", 5 + 2 * max(map(len, lines)) + spare)
        rows, broken = read(write(Path(folder) / "a.csv", content))
    assert rows == read_
    assert {row_of(b): b.reason for b in broken} == bad
    assert len(broken) == len(bad)


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n\n1,2\n\n\n3\n5,6\n\n")
    rows, broken = read(path)
    assert rows == {0: ("1", "2"), 2: ("5", "6")}
    assert [row_of(b) for b in broken] == [1]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_empty_line_in_a_file_of_one_column_is_a_row_without_a_value(
    tmp_path: Path, newline: str
) -> None:
    path = write(tmp_path / "a.csv", newline.join(["a", "1", "", "2", "", '""', ""]))
    assert read(path) == ({0: ("1",), 1: (None,), 2: ("2",), 3: (None,), 4: (None,)}, [])


UNCLOSED = "column '{}' holds lines of the file; a quote is not closed"


@pytest.mark.parametrize(
    ("content", "column", "rows"),
    [
        ('a,b\n0,0\n1,"x\n2,"y"\n3,4\n', "b", {0: ("0", "0"), 2: ("3", "4")}),
        ('a,b\n0,0\n1,"x\n2,x\n5,6\n2,"y"\n3,4\n', "b", {0: ("0", "0"), 2: ("3", "4")}),
        ('a,b\n0,0\n"x,1\n"y",2\n3,4\n', "a", {0: ("0", "0"), 2: ("3", "4")}),
        ('a,b,c\n0,0,0\n1,"x,1\n2,"y",2\n3,4,5\n', "b", {0: ("0",) * 3, 2: ("3", "4", "5")}),
        ('a,b\n0,0\n1,"x\n2,3\n4,5\n', "b", {0: ("0", "0")}),
        ('a,b\n0,0\n1,"x\n2,""\n4,5', "b", {0: ("0", "0")}),
        ('a,b\n0,0\n1,"x\n2,3\n4,5\n\n', "b", {0: ("0", "0")}),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_that_an_unclosed_quote_swallows_are_not_silently_lost(
    tmp_path: Path, content: str, column: str, rows: dict[int, Row], newline: str
) -> None:
    path = write(tmp_path / "a.csv", content.replace("\n", newline))
    assert read(path) == (rows, [Broken(path, UNCLOSED.format(column), range(1, 2))])


@pytest.mark.parametrize(
    "cell", ["x\ny", 'He said:\n"yes"', "x,\ny", "a,b\nc,d\n", '"x\n', "\n\ny", '"\n,""']
)
@pytest.mark.parametrize("end", ["", "\n", "\nx,1\n"])
def test_cells_of_several_lines_are_cells(tmp_path: Path, cell: str, end: str) -> None:
    content = b"a,b\n" + quoted("0") + b"," + quoted(cell) + end.encode()
    rows, broken = read(write(tmp_path / "a.csv", content))
    assert (rows[0], broken) == (("0", cell), [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\n\na\n1\n", "it begins with an empty line; remove it"),
        (b"\n\n", "it has no rows"),
        (b"a,b,a\n1,2,3\n", "column 'a' appears more than once; rename one of them"),
        (b"a,caf\xe9\n1,2\n", "its header is not UTF-8 text; " + ENCODING_REMEDY.format("it")),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_broken_once(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = write(tmp_path / "a.csv", content)
    assert read(path) == ({}, [Broken(path, reason)])


def test_a_header_alone_is_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "a,b\n")) == ({}, [])


@pytest.mark.parametrize("cell", ["", " ", "\n", "NA", " null "])
def test_blank_cells_and_markers_are_missing(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "a.csv", b"a,b\n0," + quoted(cell) + b"\n")
    assert read(path) == ({0: ("0", None)}, [])


def test_a_quote_that_is_never_closed_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "CSV_BLOCK", 32)
    path = write(tmp_path / "a.csv", 'a,b\n1,"2\n' + "3,4\n" * 50)
    reason = "a row is too long, perhaps for want of a closing quote"
    assert read(path)[1] == [Broken(path, reason)]


# ---------------------------------------------------------------- Parquet

COLUMNS = {"a": list(range(25)), "b": [str(i) for i in range(25)]}


@pytest.mark.parametrize(("group", "batch"), [(25, 25), (10, 4), (7, 100), (1, 3)])
def test_parquet_rows_keep_their_positions_across_row_groups(
    tmp_path: Path, group: int, batch: int
) -> None:
    path = write_parquet(tmp_path / "a.parquet", COLUMNS, row_group_size=group)
    rows, broken = read(path, batch_rows=batch)
    assert rows == {i: (i, str(i)) for i in range(25)}
    assert list(rows) == list(range(25))
    assert broken == []


def test_parquet_without_rows_is_no_rows(tmp_path: Path) -> None:
    assert read(write_parquet(tmp_path / "a.parquet", {"a": []})) == ({}, [])


def test_broken_files_among_many_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "1.parquet", COLUMNS).read_bytes()
    cut = write(tmp_path / "2.parquet", whole[: len(whole) // 2])
    junk = write(tmp_path / "3.parquet", b"PAR1" + bytes(100))
    twice = tmp_path / "4.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, ["a", "a"]), twice)
    gone = tmp_path / "5.parquet"
    empty = write(tmp_path / "6.parquet", b"")
    folder = tmp_path / "7.csv"
    folder.mkdir()
    last = write_parquet(tmp_path / "8.parquet", {"a": [1]})
    parts = list(read_chunks([tmp_path / "1.parquet", cut, junk, twice, gone, empty, folder, last]))
    assert [p.path.name[0] for p in parts if isinstance(p, Chunk)] == ["1", "8"]
    broken = {p.path.name[0]: p for p in parts if isinstance(p, Broken)}
    assert sorted(broken) == ["2", "3", "4", "5", "6", "7"]
    assert broken["2"].reason == "it is not Parquet, or was cut short"
    assert broken["4"].reason == "column 'a' appears more than once; rename one of them"
    assert all(b.rows is None and b.reason and "\n" not in b.reason for b in broken.values())


def damage(path: Path, group: int, column: int = 0) -> None:
    """Overwrite the last bytes of a column in a row group."""
    chunk = pq.read_metadata(path).row_group(group).column(column)
    place = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    content[place - 40 : place] = b"\xff" * 40
    path.write_bytes(content)


def test_a_damaged_row_group_is_broken_and_the_others_and_later_files_are_read(
    tmp_path: Path,
) -> None:
    texts = [f"{i}" * 50 for i in range(30)]
    path = tmp_path / "1.parquet"
    options = {"compression": "zstd", "use_dictionary": False}
    write_parquet(path, {"a": texts}, row_group_size=10, **options)
    damage(path, 1)
    later = write_parquet(tmp_path / "2.parquet", {"a": ["x"]})
    parts = list(read_chunks([path, later], batch_rows=3))
    (broken,) = [part for part in parts if isinstance(part, Broken)]
    assert (broken.path, broken.rows) == (path, range(10, 20))
    chunks = [part for part in parts if isinstance(part, Chunk)]
    assert [list(c.rows) for c in chunks[:4]] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [c.table["a"].to_pylist() for c in chunks if c.path == path] == [
        texts[i:j] for i, j in ((0, 3), (3, 6), (6, 9), (9, 10), (20, 23), (23, 26), (26, 29),
                                (29, 30))
    ]  # fmt: skip
    assert chunks[-1].path == later


def test_rows_before_the_damage_in_a_row_group_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [os.urandom(50).hex() for _ in range(1_000)]
    options = {"use_dictionary": False, "data_page_size": 1_000, "write_batch_size": 10}
    options |= {"compression": "zstd"}
    write_parquet(path, {"a": texts}, **options)
    damage(path, 0)
    chunks = list(read_chunks([path], batch_rows=100))
    *good, broken = chunks
    assert isinstance(broken, Broken)
    assert [c.rows[0] for c in good if isinstance(c, Chunk)] == list(range(0, 100 * len(good), 100))
    assert 0 < len(good) < 10
    assert broken.rows == range(100 * len(good), 1_000)


def test_text_that_is_not_utf8_in_a_parquet_file_is_read_as_bytes(tmp_path: Path) -> None:
    wrong = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
    )
    path = write_parquet(tmp_path / "a.parquet", {"a": wrong})
    assert read(path) == ({0: (b"a",), 1: (b"\xff",)}, [])


def test_only_the_selected_columns_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"a": [1], "b": [2], "c": [3]})
    damage(path, 0, column=1)
    asked = []

    def select(names: Sequence[str]) -> list[str]:
        asked.append(list(names))
        return ["c", "a"]

    (part,) = read_chunks([path], select=select)
    assert isinstance(part, Chunk)
    assert asked == [["a", "b", "c"]]
    assert part.table.to_pydict() == {"a": [1], "c": [3]}


def test_heads_tell_columns_and_rows_and_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    files = [
        write_parquet(tmp_path / "a.parquet", {"a": [1, 2]}),
        write(tmp_path / "b.parquet", b"junk"),
        write(tmp_path / "c.csv", "b,c\n1,2\n"),
        write(tmp_path / "d.csv", ""),
    ]
    assert list(heads_by_file(files).values()) == [
        Head(pa.schema([("a", pa.int64())]), 2),
        Head(pa.schema([("b", pa.string()), ("c", pa.string())]), None),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_broken(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", COLUMNS)
    path.chmod(0)
    assert "Permission denied" in read(path)[1][0].reason


def test_reasons_are_one_short_line() -> None:
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 1_000))) == 200


# ---------------------------------------------------------------- all rows for training


def test_files_whose_columns_differ_in_order_type_and_presence_become_one_table(
    tmp_path: Path,
) -> None:
    files = [
        write_parquet(tmp_path / "1.parquet", {"a": pa.array([1], pa.int32()), "b": ["x"]}),
        write_parquet(tmp_path / "2.parquet", {"b": pa.array(["y"], pa.large_utf8()), "a": [2.5]}),
        write_parquet(tmp_path / "3.parquet", {"a": pa.nulls(1), "c": [True]}),
        write_parquet(tmp_path / "4.parquet", {"a": pa.array([], pa.int64())}),
    ]
    assert read_table(files).to_pydict() == {
        "a": [1.0, 2.5, None],
        "b": ["x", "y", None],
        "c": [None, None, True],
    }


def test_several_csv_files_become_one_table(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.csv", "a,b\n1,x\n"), write(tmp_path / "2.csv", "b,a\ny,2\n")
    assert read_table([first, second]).to_pydict() == {"a": ["1", "2"], "b": ["x", "y"]}


def test_columns_that_contradict_each_other_are_refused_by_name(tmp_path: Path) -> None:
    files = [
        write_parquet(tmp_path / "1.parquet", {"amount": [1]}),
        write_parquet(tmp_path / "2.parquet", {"amount": ["x"]}),
    ]
    with pytest.raises(DataError, match=r"column 'amount' is int64 in .*string in"):
        read_table(files)


MIXED = {
    "csv": ("day=1/a.csv", "id,amount,at,c\n7,12.5,2018-07-01 10:00,NA\n"),
    "jsonl": (
        "day=2/b.jsonl",
        '{"id": "x8", "amount": 3, "at": "2018-07-02T00:00:00Z", "c": "NA"}\n',
    ),
}
MIXED_TYPED = {
    "id": [9], "amount": [0.5], "at": pa.array([1_530_403_200], pa.timestamp("s")), "c": ["NA"],
}  # fmt: skip


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of folders with one row in CSV, in JSON and in Parquet."""
    for name, content in MIXED.values():
        write(tmp_path / name, content)
    (tmp_path / "day=3").mkdir()
    write_parquet(tmp_path / "day=3" / "c.parquet", MIXED_TYPED)
    return tmp_path


def test_files_of_all_formats_and_their_folders_become_one_table(mixed: Path) -> None:
    table = read_table(find_files([str(mixed)]), used=lambda name: name != "id")
    columns = table.to_pydict()
    assert [at.isoformat() for at in columns.pop("at")] == [
        "2018-07-01T10:00:00", "2018-07-02T00:00:00", "2018-07-01T00:00:00"
    ]  # fmt: skip
    assert columns == {"amount": [12.5, 3, 0.5], "c": [None, "NA", "NA"], "day": [1, 2, 3]}


def test_one_cell_that_is_no_number_contradicts_the_numbers_of_other_files(mixed: Path) -> None:
    path = write(mixed / "day=4/d.csv", "amount\n1\nmuch\n")
    with pytest.raises(DataError, match="column 'amount' is ") as caught:
        read_table(find_files([str(mixed)]), used=lambda name: name == "amount")
    assert f"string in '{path}'; write it with one type" in str(caught.value)
    assert read_table([path, mixed / "day=1/a.csv"])["amount"].to_pylist() == ["1", "much", "12.5"]


def test_training_stops_at_a_broken_line_and_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n1,2\n3\n")
    with pytest.raises(DataError, match="line 3: expected 2 fields, found 1") as caught:
        read_table([path])
    assert caught.value.path == str(path)


def test_training_stops_at_a_broken_file_and_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", b"junk" * 10)
    with pytest.raises(DataError, match=f"'{path}': it is not Parquet, or was cut short"):
        read_table([path])


def test_training_stops_at_a_damaged_row_group_and_says_from_where(tmp_path: Path) -> None:
    texts = [os.urandom(50).hex() for _ in range(20)]
    path = tmp_path / "a.parquet"
    options = {"use_dictionary": False, "compression": "zstd"}
    write_parquet(path, {"a": texts}, row_group_size=10, **options)
    damage(path, 1)
    with pytest.raises(DataError, match=f"'{path}' from row 10 on: ") as caught:
        read_table([path])
    assert caught.value.path == str(path)


def test_no_rows_at_all_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.csv", "a,b\n"), write_parquet(tmp_path / "b.parquet", {"a": []})]
    with pytest.raises(DataError, match=r"^no rows in '.*a\.csv', '.*b\.parquet'$"):
        read_table(files)


def test_dictionaries_views_bytes_and_text_are_one_column(tmp_path: Path) -> None:
    text = pa.array(["x", "y"])
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()]
    columns = [text.cast(kind) for kind in kinds] + [text.dictionary_encode(), pa.nulls(2)]
    files = [write_parquet(tmp_path / f"{i}.parquet", {"a": c}) for i, c in enumerate(columns)]
    assert read_table(files)["a"].to_pylist() == ["x", "y"] * 6 + [None] * 2


@pytest.mark.parametrize("rows", [5, 100])
def test_bytes_that_are_mostly_text_stop_training_and_others_stay_bytes(
    tmp_path: Path, rows: int
) -> None:
    good = write_parquet(tmp_path / "1.parquet", {"a": [b"x"] * rows})
    bad = write_parquet(tmp_path / "2.parquet", {"a": [b"x", b"\xff"]})
    if rows == 5:
        assert read_table([good, bad])["a"].to_pylist() == [b"x"] * 6 + [b"\xff"]
        return
    with pytest.raises(DataError, match=f"'{bad}': column 'a', row 1: bytes that are not UTF-8"):
        read_table([good, bad])
    assert read_table([good, bad], used=lambda _: False)["a"].type == pa.binary()


def test_a_contradiction_in_a_column_that_is_not_used_leaves_it_out(tmp_path: Path) -> None:
    files = [
        write_parquet(tmp_path / "1.parquet", {"amount": [1], "b": [1]}),
        write_parquet(tmp_path / "2.parquet", {"amount": ["x"], "b": [2]}),
    ]
    assert read_table(files, used=lambda name: name == "b").to_pydict() == {"b": [1, 2]}


def test_integers_that_a_double_cannot_hold_are_no_union(tmp_path: Path) -> None:
    files = [
        write_parquet(tmp_path / "1.parquet", {"a": [2**60 + 1]}),
        write_parquet(tmp_path / "2.parquet", {"a": [0.5]}),
    ]
    with pytest.raises(DataError, match=r"column 'a' is int64 in .*1.parquet' but double in"):
        read_table(files)


def test_texts_of_markers_are_values_in_parquet_and_missing_in_csv(tmp_path: Path) -> None:
    typed = write_parquet(tmp_path / "1.parquet", {"a": ["NA", "", "null", None]})
    untyped = write(tmp_path / "2.csv", "a\nNA\nx\n null \n")
    assert read_table([typed, untyped])["a"].to_pylist() == [
        "NA", "", "null", None, None, "x", None
    ]  # fmt: skip


# ---------------------------------------------------------------- pandas' index


@pytest.mark.parametrize("rows", [3, 100])
def test_a_named_index_is_a_column(tmp_path: Path, rows: int) -> None:
    frame = pd.DataFrame({"a": range(rows)})
    indexes = {
        "range": pd.RangeIndex(10, 10 + 2 * rows, 2, name="id"),
        "integers": pd.Index([7 + i**2 for i in range(rows)], name="id"),
        "text": pd.Index([f"x{i}" for i in range(rows)], name="id"),
    }
    for name, index in indexes.items():
        path = tmp_path / f"{name}.parquet"
        frame.set_axis(index).to_parquet(path, row_group_size=2)
        assert read_table([path])["id"].to_pylist() == index.tolist()
        (head,) = heads_by_file([path]).values()
        assert sorted(head.schema.names) == ["a", "id"]
        chunks = read_chunks(
            [path], batch_rows=2, select=lambda names: [n for n in names if n == "id"]
        )
        cells = [c for chunk in chunks for c in chunk.table["id"].to_pylist()]  # type: ignore[union-attr]  # chunks
        assert cells == index.tolist()


def test_the_levels_of_an_index_are_columns(tmp_path: Path) -> None:
    index = pd.MultiIndex.from_tuples([(1, "x"), (2, "y")], names=["shop", "till"])
    pd.DataFrame({"a": [1, 2]}, index=index).to_parquet(tmp_path / "a.parquet")
    table = read_table([tmp_path / "a.parquet"])
    assert table.to_pydict() == {"a": [1, 2], "shop": [1, 2], "till": ["x", "y"]}


def test_a_counting_index_without_a_name_or_of_another_length_is_no_column(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    named = pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(2, name="id"))
    part = pa.Table.from_pandas(named).slice(0, 1)
    pq.write_table(part, tmp_path / "b.parquet")
    for name in "ab":
        assert read_table([tmp_path / f"{name}.parquet"]).column_names == ["a"]


# ---------------------------------------------------------------- files that are not what they seem


def encrypted(path: Path, plaintext_footer: bool) -> Path:
    """Write a Parquet file whose column is encrypted."""
    config = encryption.EncryptionConfiguration(
        footer_key="key", column_keys={"key": ["a"]}, plaintext_footer=plaintext_footer
    )
    factory = encryption.CryptoFactory(lambda _: Vault())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
    table = pa.table({"a": [1]})
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    return path


class Vault(encryption.KmsClient):  # type: ignore[misc]  # pyarrow has no types
    """Keep keys as they are."""

    def wrap_key(self, key_bytes: bytes, _: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, _: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plaintext_footer", [False, True])
def test_encrypted_files_are_named_as_such(tmp_path: Path, plaintext_footer: bool) -> None:
    path = encrypted(tmp_path / "a.parquet", plaintext_footer)
    rows, [broken] = read(path)
    assert (rows, broken.reason) == ({}, "it is encrypted; decrypt it first")


def feather(path: Path) -> None:
    pa.feather.write_feather(pa.table({"a": [1]}), path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.write_bytes(b"hello"), "it is not Parquet, or was cut short"),
        (lambda p: p.write_bytes(b"a,b\n" * 9), "it is not Parquet, or was cut short"),
        (lambda p: p.write_bytes(b"PAR1" * 9), "its footer is damaged; write the file again"),
        (feather, "it is an Arrow file; write it as Parquet"),
        (lambda p: orc.write_table(pa.table({"a": [1]}), p),
         "it is an ORC file; write it as Parquet"),
        (lambda p: p.write_bytes(b"PK\x03\x04" * 9),
         "it is a ZIP archive or an Excel workbook; unpack it, or export it as CSV"),
        (lambda p: pq.write_table(pa.table({"a": [1]}).select([]), p), "it has no columns"),
    ],
)  # fmt: skip
def test_other_files_are_named_with_a_remedy(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "a.parquet"
    make(path)
    assert read(path) == ({}, [Broken(path, reason)])


def test_a_file_that_unpacks_beyond_all_data_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "MAX_UNPACKED", 1 << 16)
    options = {"compression": "zstd", "use_dictionary": False}
    path = write_parquet(tmp_path / "a.parquet", {"a": ["0" * 1_000_000]}, **options)
    rows, [broken] = read(path)
    assert rows == {}
    assert "unpack to 1,0" in broken.reason


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary(), pa.string_view(), "dictionary"])
def test_long_texts_are_read_in_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """A dictionary of one long text is small in the file, and its copies in rows are not."""
    monkeypatch.setattr(parquet_files, "MAX_BATCH", 10_000)
    texts = pa.array([None, "x", *["y" * 3_000] * 5]).dictionary_encode()
    column = texts if kind == "dictionary" else texts.cast(pa.string()).cast(kind)
    path = write_parquet(tmp_path / "a.parquet", {"a": column, "b": range(7)})
    chunks = [part for part in read_chunks([path]) if isinstance(part, Chunk)]
    assert [len(chunk.rows) for chunk in chunks] == [3, 3, 1]
    (chunk,) = read_chunks([path], select=lambda _: ["b"])
    assert isinstance(chunk, Chunk)


def test_names_with_dots_spaces_and_other_letters_are_read_alone(tmp_path: Path) -> None:
    columns = {"a": [{"b": 1}], "a.b": [2], "ä ö": [3], "A": [4]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    for wanted, cells in columns.items():
        (chunk,) = read_chunks([path], select=lambda _, wanted=wanted: [wanted])  # type: ignore[misc]  # a default
        assert isinstance(chunk, Chunk)
        assert chunk.table.to_pydict() == {wanted: cells}


def test_columns_that_files_lack_are_told(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "1.parquet", {"a": [1], "B": [1]})
    other = write_parquet(tmp_path / "2.parquet", {"B": [1]})
    assert absent_columns(heads_by_file([first, other]), ["a", "b", "c"]) == [
        f"column 'a' is not in 1 of 2 files, such as '{other}'; its values there are missing",
        "columns that no file has, so that their values are missing: 'b', 'c'; 'B' differ only in "
        "upper and lower case",
    ]
    assert absent_columns(heads_by_file([first]), ["a", "B"]) == []
    assert absent_columns({}, ["a"]) == []


def test_parquet_without_a_suffix_is_read_and_other_files_are_not(tmp_path: Path) -> None:
    write_parquet(tmp_path / "000000_0", {"a": [1]})
    write(tmp_path / "README", "a\n")
    write(tmp_path / "_SUCCESS", "")
    write(tmp_path / ".000000_0.crc", "crc")
    assert find_files([str(tmp_path)]) == [tmp_path / "000000_0"]
    assert find_files([str(tmp_path / "*")]) == [tmp_path / "000000_0"]
    assert read_table([tmp_path / "000000_0"]).to_pydict() == {"a": [1]}
