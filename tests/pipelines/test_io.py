"""Files are streams of rows with their true positions; what cannot be read is said, not lost."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.errors import DataError
from pipelines import io
from pipelines.io import Broken, Chunk, find_files, first_line, read_chunks, read_table

Row = tuple[str | None, ...]


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


def reasons(*files: Path) -> list[tuple[int | None, str]]:
    return [(broken.row, broken.reason) for broken in read(*files)[1]]


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


@pytest.mark.parametrize("path", ["absent.csv", "absent/*.csv", "*.txt", "empty", "gone.csv"])
def test_a_path_to_no_table_is_refused_by_name(tree: Path, path: str) -> None:
    (tree / "empty").mkdir()
    (tree / "gone.csv").symlink_to(tree / "nowhere")
    with pytest.raises(DataError, match="no CSV or Parquet file is there") as caught:
        find_files([str(tree / "b.csv"), str(tree / path)])
    assert caught.value.path == str(tree / path)


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_csv_is_read_as_text_whatever_its_line_ends(
    tmp_path: Path, newline: str, bom: bytes, last: bool
) -> None:
    lines = newline.join(["id,b", "007,1.50", '"x ""y"", z",', '"é", '])
    path = write(tmp_path / "a.csv", bom + (lines + newline * last).encode())
    assert read(path) == ({0: ("007", "1.50"), 1: ('x "y", z', None), 2: ("é", " ")}, [])
    assert next(iter(read_chunks([path]))).table.schema.names == ["id", "b"]  # type: ignore[union-attr]  # a Chunk


def test_rows_of_other_lengths_are_broken_and_the_others_keep_their_positions(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.csv", 'a,b\n1,"x\ny"\n3\n4,5\n12,50,7\n9,10\n')
    rows, broken = read(path)
    assert rows == {0: ("1", "x\ny"), 2: ("4", "5"), 4: ("9", "10")}
    assert broken == [
        Broken(path, "expected 2 fields, found 1", 1),
        Broken(path, "expected 2 fields, found 3", 3),
    ]


def test_a_row_that_is_not_utf8_is_broken_and_the_others_survive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"a,b\n1,caf\xc3\xa9\n2,caf\xe9\n3,x,y\n\xff,4\n5,\n")
    rows, broken = read(path)
    assert rows == {0: ("1", "café"), 4: ("5", None)}
    assert sorted((b.row, b.reason) for b in broken) == [
        (1, "column 'b' is not UTF-8 text; save the file as UTF-8"),
        (2, "expected 2 fields, found 3"),
        (3, "column 'a' is not UTF-8 text; save the file as UTF-8"),
    ]


def quoted(cell: str) -> bytes:
    return ('"' + cell.replace('"', '""') + '"').encode()


csv_cells = st.text('ab,"é\n', max_size=5)
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
            bad[position] = "column 'a' is not UTF-8 text; save the file as UTF-8"
        elif len(record) == 2:
            read_[position] = tuple(cell or None for cell in record)
        else:
            bad[position] = f"expected 2 fields, found {len(record)}"
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "CSV_BLOCK", 5 + 2 * max(map(len, lines)) + spare)
        rows, broken = read(write(Path(folder) / "a.csv", content))
    assert rows == read_
    assert {b.row: b.reason for b in broken} == bad
    assert len(broken) == len(bad)


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n\n1,2\n\n\n3\n5,6\n\n")
    rows, broken = read(path)
    assert rows == {0: ("1", "2"), 2: ("5", "6")}
    assert [b.row for b in broken] == [1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "it has no rows"),
        (b"a,b,a\n1,2,3\n", "column 'a' appears more than once; rename one of them"),
        (b"a,caf\xe9\n1,2\n", "its header is not UTF-8 text; save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "its header is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_broken_once(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = write(tmp_path / "a.csv", content)
    assert read(path) == ({}, [Broken(path, reason)])


def test_a_header_alone_is_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "a,b\n")) == ({}, [])


def test_a_quote_that_is_never_closed_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "CSV_BLOCK", 32)
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
    assert all(b.row is None and b.reason and "\n" not in b.reason for b in broken.values())


def test_a_damaged_page_is_broken_and_later_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "1.parquet"
    write_parquet(path, {"a": ["abcdefgh" * 50] * 10}, compression="zstd", use_dictionary=False)
    damaged = bytearray(path.read_bytes())
    damaged[20:60] = bytes(40)
    path.write_bytes(damaged)
    rows, broken = read(path, write_parquet(tmp_path / "2.parquet", {"a": [1]}))
    assert rows == {0: (1,)}
    assert [b.path for b in broken] == [path]


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
    with pytest.raises(DataError, match=r"columns contradict each other: .*amount"):
        read_table(files)


def test_training_stops_at_a_broken_line_and_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n1,2\n3\n")
    with pytest.raises(DataError, match="line 3: expected 2 fields, found 1") as caught:
        read_table([path])
    assert caught.value.path == str(path)


def test_training_stops_at_a_broken_file_and_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", b"junk" * 10)
    with pytest.raises(DataError, match=f"'{path}': it is not Parquet, or was cut short"):
        read_table([path])


def test_no_rows_at_all_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.csv", "a,b\n"), write_parquet(tmp_path / "b.parquet", {"a": []})]
    with pytest.raises(DataError, match=r"^no rows in '.*a\.csv', '.*b\.parquet'$"):
        read_table(files)
