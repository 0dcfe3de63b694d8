"""The layout, numbers and missing values of a CSV file follow from the file, and are said."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from anomaly_vae.config.data import CsvConfig
from pipelines.datasets.reading.csv_files import Layout, csv_head, layout_of, read_csv
from pipelines.datasets.reading.parts import Broken, Chunk, Reading


def read(
    content: str | bytes, folder: Path, reading: Reading | None = None, **csv: Any
) -> tuple[dict[str, list[str | None]], list[Broken], tuple[str, ...]]:
    """The columns of the file, what was broken, and the notes without the path."""
    path = folder / "x.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    reading = reading or Reading(CsvConfig(**csv))
    columns: dict[str, list[str | None]] = {}
    broken = []
    for part in read_csv(path, reading):
        if isinstance(part, Chunk):
            assert part.table.schema.names == csv_head(path, reading).schema.names
            for name, cells in part.table.to_pydict().items():
                columns.setdefault(name, []).extend(cells)
        else:
            broken.append(part)
    return columns, broken, tuple(note.removeprefix(f"{path}: ") for note in reading.notes)


@pytest.mark.parametrize(
    ("separator", "said"),
    [
        (",", ()),
        (";", ("fields are separated by semicolons",)),
        ("\t", ("fields are separated by tabs",)),
        ("|", ("fields are separated by vertical bars",)),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_the_separator_is_told_from_the_header_and_said(
    tmp_path: Path, separator: str, said: tuple[str, ...], newline: str
) -> None:
    lines = [["id", '"a,;\t|b"'], ["1", f'"x{separator}y"'], ["2", '"two\nlines"'], ["3", ""]]
    content = newline.join(separator.join(line) for line in lines)
    columns, broken, notes = read(content, tmp_path)
    assert columns == {"id": ["1", "2", "3"], "a,;\t|b": [f"x{separator}y", "two\nlines", None]}
    assert (broken, notes) == ([], said)


def test_a_configured_separator_is_used_as_it_is(tmp_path: Path) -> None:
    columns, _, notes = read("a;b:c;d\n1;2:3;4\n", tmp_path, separator=":")
    assert (columns, notes) == ({"a;b": ["1;2"], "c;d": ["3;4"]}, ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n1\n", Layout(("a",), ",", 1)),
        (" a , b \n1,2\n", Layout(("a", "b"), ",", 1)),
        ("a,b,\n1,2,\n", Layout(("a", "b"), ",", 1, unnamed=1)),
        ("a;b;;;\n1;2;;;\n", Layout(("a", "b"), ";", 1, unnamed=3)),
        ("a,b\n1,2,\n3,4,\n", Layout(("a", "b"), ",", 1, unnamed=1)),
        ("a,b\n1,2,3\n", Layout(("a", "b"), ",", 1)),
        (",a\n0,1\n", Layout(("", "a"), ",", 1)),
        ("sep=;\na;b\n1;2\n", Layout(("a", "b"), ";", 2)),
        ("# made by a tool\n# on a day, late\na,b\n1,2\n", Layout(("a", "b"), ",", 3)),
        ("#a,b\n1,2\n", Layout(("#a", "b"), ",", 1)),
        ("# a, b\n1,2\n", Layout(("# a", "b"), ",", 1)),
        ("a,b\n", Layout(("a", "b"), ",", 1, empty=True)),
        ("a,b", Layout(("a", "b"), ",", 1, empty=True)),
        ('"a\nb",c\n1,2\n', Layout(("a\nb", "c"), ",", 2)),
        ("\ufeffa,b\n1,2\n", Layout(("a", "b"), ",", 1)),
    ],
)
def test_the_layout_follows_from_the_first_lines(text: str, expected: Layout) -> None:
    assert layout_of(text, whole=True) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a, a\n1,2\n", "column 'a' appears more than once"),
        ("a,,,b\n1,2,3,4\n", "column '' appears more than once"),
        ("\na\n", "begins with an empty line"),
        ('"a,b\n' + "1,2\n" * 50_000, "its header cannot be parsed: field larger than"),
    ],
)
def test_headers_that_cannot_be_read_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        layout_of(text, whole=True)


def test_rows_keep_their_positions_and_lines_below_comments(tmp_path: Path) -> None:
    _, broken, _ = read("# by hand\na,b\n1,2\n3\n4,5\n", tmp_path)
    assert [(b.reason, b.rows, b.line) for b in broken] == [
        ("expected 2 fields, found 1", range(1, 2), 4)
    ]


def test_a_separator_at_the_end_makes_no_column_and_no_reject(tmp_path: Path) -> None:
    columns, broken, notes = read("a;b;\n1;2;\n3;4\n5;6;\n", tmp_path)
    assert columns == {"a": ["1", "5"], "b": ["2", "6"]}
    assert [(b.reason, b.line) for b in broken] == [("expected 2 fields, found 2", 3)]
    assert notes[-1] == "columns without a name at the end of the lines are left out"


@pytest.mark.parametrize(
    ("cells", "expected", "how"),
    [
        (["12,50", "7"], ["12.50", "7"], "a decimal comma, '12,50' as 12.50"),
        (["1.234,50", "7"], ["1234.50", "7"], "a decimal comma, '1.234,50' as 1234.50"),
        (["1'234.50", "7"], ["1234.50", "7"], None),
        (["1.234.567", "7"], ["1234567", "7"], None),
    ],
)
def test_numbers_are_read_in_the_form_that_the_file_shows(
    tmp_path: Path, cells: list[str], expected: list[str], how: str | None
) -> None:
    content = "k;v\n" + "".join(f"x;{cell}\n" for cell in cells)
    columns, _, notes = read(content, tmp_path)
    assert columns["v"] == expected
    said = how or f"separators of thousands, {cells[0]!r} as {expected[0]}"
    assert notes[-1] == f"column 'v': numbers are read with {said}"


def test_quoted_decimal_commas_are_found_in_later_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.datasets.reading.csv_files.CSV_BLOCK", 32)
    columns, _, _ = read("a,b\n" + "1,7\n" * 50 + '1,"2,5"\n', tmp_path)
    assert columns["b"] == ["7"] * 50 + ["2.5"]


def test_numbers_in_doubt_stay_as_they_are_unless_the_mark_is_configured(tmp_path: Path) -> None:
    content = 'a\n"1,234"\n"7"\n'
    assert read(content, tmp_path)[0] == {"a": ["1,234", "7"]}
    assert read(content, tmp_path, decimal=",")[0] == {"a": ["1.234", "7"]}
    assert read(content, tmp_path, decimal=".")[0] == {"a": ["1234", "7"]}


def test_columns_of_text_and_ids_are_never_rewritten(tmp_path: Path) -> None:
    reading = Reading(id="i", text=frozenset({"t", "i"}))
    columns, _, notes = read("i;t;v\n1,5;2,5;3,5\nNA;NA;NA\n", tmp_path, reading)
    assert columns == {"i": ["1,5", "NA"], "t": ["2,5", None], "v": ["3.5", None]}
    assert notes[-2:] == (
        "column 't': 1 cells read as missing: 'NA' (1)",
        "column 'v': 1 cells read as missing: 'NA' (1)",
    )


def test_further_markers_of_missing_values_are_read_and_counted(tmp_path: Path) -> None:
    content = "a,b\n\\N,x\n 3 ,unknown\nNA,\n"
    columns, _, notes = read(content, tmp_path, null_values=("\\N", "unknown"))
    assert columns == {"a": [None, " 3 ", None], "b": ["x", None, None]}
    assert notes == (
        "column 'a': 2 cells read as missing: '\\N' (1), 'NA' (1)",
        "column 'b': 1 cells read as missing: 'unknown' (1)",
    )


def test_encodings_and_compression_are_read_and_encodings_said(tmp_path: Path) -> None:
    text = "city;v\nKöln;1\n"
    packed = gzip.compress(text.encode("cp1252"))
    columns, _, notes = read(packed, tmp_path, encoding="cp1252")
    assert columns == {"city": ["Köln"], "v": ["1"]}
    assert notes == ("fields are separated by semicolons", "read as cp1252")
    assert read(text, tmp_path, encoding="cp1252")[0] == columns
    assert read(text.encode("utf-16"), tmp_path)[0] == columns


@pytest.mark.parametrize("content", ["a,caf\xe9\n1,2\n", "a,b\n1,\xe9\n"])
def test_an_unknown_encoding_names_the_keys(tmp_path: Path, content: str) -> None:
    try:
        reasons = [broken.reason for broken in read(content.encode("latin-1"), tmp_path)[1]]
    except ValueError as error:
        reasons = [str(error)]
    assert ["data.csv.encoding" in r and "--csv encoding=latin-1" in r for r in reasons] == [True]
