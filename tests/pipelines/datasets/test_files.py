"""Files are streams of rows with their true positions; what cannot be read is said, not lost."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.errors import DataError
from pipelines.datasets import files
from pipelines.datasets.files import (
    absent_columns,
    find_files,
    heads_by_file,
    read_chunks,
    read_table,
)
from pipelines.datasets.reading import csv_files
from pipelines.datasets.reading.parts import ENCODING_REMEDY, Broken, Head, first_line
from tests.support.table_files import COLUMNS, Row, damage, read, write, write_parquet

NOT_UTF8_CELL = "column '{}' is not UTF-8 text; " + ENCODING_REMEDY.format("the file")


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


# ---------------------------------------------------------------- columns


def test_heads_tell_columns_and_rows_and_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    files = [
        write_parquet(tmp_path / "a.parquet", {"a": [1, 2]}),
        write(tmp_path / "b.parquet", b"junk"),
        write(tmp_path / "c.csv", "b,c\n1,2\n"),
        write(tmp_path / "d.csv", ""),
    ]
    assert list(heads_by_file(files).values()) == [
        Head(pa.schema([("a", pa.int64())]), 2, (2,)),
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


# ---------------------------------------------------------------- notes and names


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
