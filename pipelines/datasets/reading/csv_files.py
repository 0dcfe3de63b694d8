"""Read CSV files as text, so that a cell that does not fit the schema rejects only its row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from anomaly_vae.data.arrow import is_missing
from anomaly_vae.messages import shown
from pipelines.datasets.reading.numbers import Mark, Spelling, mark_of_file, rewritten
from pipelines.datasets.reading.parts import (
    ENCODING_REMEDY,
    Broken,
    Chunk,
    Head,
    Reading,
    refuse_duplicates,
)
from pipelines.datasets.reading.plain_text import BLOCK, ZEROS, peek, plain_text

CSV_BLOCK = 4 << 20
"""Size of the blocks in which CSV is read, in bytes."""
ENDING = 1 << 16
"""Size of the examined end of a CSV file, in bytes."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""Separators that are recognised, with their names."""
QUOTED = re.compile(r'"[^"]*"')


# ---------------------------------------------------------------- the header


@dataclass(frozen=True)
class Layout:
    """The columns of a CSV file, its separator, and where its rows begin."""

    names: tuple[str, ...]
    separator: str
    skip: int
    """Number of lines before the first row."""
    unnamed: int = 0
    """Number of columns without a name at the end of each row, which are left out."""
    empty: bool = False
    """Whether nothing follows the header."""

    @property
    def all_names(self) -> list[str]:
        """Names of all columns, with made-up names for those that are left out."""
        return [*self.names, *(f"\0{i}" for i in range(self.unnamed))]


def layout_of(text: str, whole: bool, separator: str | None = None) -> Layout:
    r"""Recognise the layout of a CSV file by its beginning.

    Args:
        text: the beginning of the file.
        whole: whether it is the whole file.
        separator: the separator, if it is known.

    Raises:
        ValueError: the header cannot be read.

    Example:
        >>> layout_of("id;amount;\n1;2,5;\n", whole=True)
        Layout(names=('id', 'amount'), separator=';', skip=1, unnamed=1, empty=False)
    """
    text = text.removeprefix("\ufeff")
    lines = io.StringIO(text, newline="").readlines()
    hint, skip = _preamble(lines)
    found = separator or hint or _most_frequent(lines[skip] if skip < len(lines) else "")
    reader = csv.reader(lines[skip:], delimiter=found)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"its header cannot be parsed: {error}") from None
    skip += reader.line_num
    if not header:
        empty = not text.strip("\r\n")
        raise ValueError("it has no rows" if empty else "it begins with an empty line; remove it")
    names, unnamed = _without_unnamed(header)
    if unnamed == 0 and _ends_with_separator(reader, len(header)):
        unnamed = 1
    _check_names(names)
    return Layout(tuple(names), found, skip, unnamed, whole and not "".join(lines[skip:]))


def _preamble(lines: Sequence[str]) -> tuple[str | None, int]:
    """Return the separator that a line such as sep=; gives, and the number of lines to skip."""
    if lines and (match := re.fullmatch(r'"?sep=(.)"?\s*', lines[0])):
        return match[1], 1
    skip = 0
    while skip + 1 < len(lines) and _is_comment(lines[skip], lines[skip + 1]):
        skip += 1
    return None, skip


def _is_comment(line: str, below: str) -> bool:
    """Return whether a line is a comment, and not a header that begins with #."""
    if not line.startswith("#"):
        return False
    if below.startswith("#") or _separators(line) != _separators(below):
        return True
    return line.startswith("# ") and not re.search(r"(^|[^\w.])\d", below)


def _separators(line: str) -> int:
    return QUOTED.sub("", line).count(_most_frequent(line))


def _most_frequent(line: str) -> str:
    bare = QUOTED.sub("", line)
    return max(SEPARATORS, key=bare.count)


def _without_unnamed(header: list[str]) -> tuple[list[str], int]:
    """Return the names without empty ones at the end, and the number of these."""
    count = len(header)
    while count > 1 and not header[count - 1]:
        count -= 1
    return header[:count], len(header) - count


def _ends_with_separator(rows: Iterator[list[str]], count: int) -> bool:
    """Return whether the first row has one more field than the header, which is empty."""
    with suppress(csv.Error):
        first = next((row for row in rows if row), [])
        return len(first) == count + 1 and first[-1] == ""
    return False


def _check_names(names: list[str]) -> None:
    if any("\udc80" <= character <= "\udcff" for name in names for character in name):
        raise ValueError("its header is not UTF-8 text; " + ENCODING_REMEDY.format("it"))
    if any("\0" in name for name in names):
        raise ValueError(ZEROS)
    refuse_duplicates(names)


def _layout(path: Path, reading: Reading) -> Layout:
    text, whole = peek(path, reading.csv.encoding)
    if not text:
        raise ValueError("the file is empty")
    return layout_of(text, whole, reading.csv.separator)


def csv_head(path: Path, reading: Reading) -> Head:
    """Return the columns of a CSV file.

    Raises:
        OSError: the file cannot be read.
        ValueError: its header cannot be read.
    """
    names = _layout(path, reading).names
    return Head(pa.schema([(name, pa.string()) for name in names]), None)


# ---------------------------------------------------------------- rows


class _BadLines:
    """Lines with a wrong number of fields, collected while a CSV file is read."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.skip, self.extra = path, layout.skip, layout.unnamed
        self.positions: set[int] = set()
        self.fresh: list[Broken] = []

    def __call__(self, line: Any) -> str:
        expected = line.expected_columns - self.extra
        reason = f"expected {expected} fields, found {line.actual_columns}"
        row = line.number - 1 - self.skip  # the reader counts lines from 1
        self.positions.add(row)
        self.fresh.append(Broken(self.path, reason, range(row, row + 1), line.number))
        return "skip"

    def good_rows(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the positions of the next ``count`` rows from ``start`` that were not skipped."""
        rows = np.arange(start, start + count + len(self.positions))
        return rows[~np.isin(rows, list(self.positions))][:count]

    def drain(self) -> list[Broken]:
        """Return the lines found since the last call."""
        fresh, self.fresh = self.fresh, []
        return fresh


def read_csv(path: Path, reading: Reading) -> Iterator[Chunk | Broken]:
    """Yield the rows of a CSV file as text, and as `Broken` those that cannot be read.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file cannot be read as CSV, or does not fit its encoding.
    """
    layout = _layout(path, reading)
    with plain_text(path, reading.csv.encoding) as (plain, encoding):
        _say_layout(path, layout, encoding, reading)
        if not layout.empty:
            marks = _decimal_marks(path, plain, layout, reading)
            for part in _read_plain(path, plain, layout):
                yield _converted(part, marks, reading) if isinstance(part, Chunk) else part


def _say_layout(path: Path, layout: Layout, encoding: str | None, reading: Reading) -> None:
    if layout.separator != "," and reading.csv.separator is None:
        name = SEPARATORS.get(layout.separator, repr(layout.separator))
        reading.say(path, f"fields are separated by {name}")
    if encoding is not None:
        reading.say(path, f"read as {encoding}")
    if layout.unnamed:
        reading.say(path, "columns without a name at the end of the lines are left out")


def _read_plain(path: Path, plain: Path, layout: Layout) -> Iterator[Chunk | Broken]:
    """Yield the rows of a plain file as text without conversions."""
    bad, ending, row = _BadLines(path, layout), _ending(plain), 0
    with _open_csv(plain, layout, bad) as reader:
        for batch in reader:
            rows = bad.good_rows(row, len(batch))
            if len(batch):
                row = int(rows[-1]) + 1
                kept = batch.select(list(layout.names))
                yield from _as_text(Chunk(path, rows, kept), ending, layout)
            yield from bad.drain()
    yield from bad.drain()


@contextmanager
def _open_csv(plain: Path, layout: Layout, bad_line: Callable[[Any], str]) -> Iterator[Any]:
    names = layout.all_names
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=True, null_values=[""]
    )
    parse = pa.csv.ParseOptions(
        delimiter=layout.separator,
        newlines_in_values=True,
        invalid_row_handler=bad_line,
        ignore_empty_lines=len(names) > 1,  # with one column, such a line is a missing value
    )
    read = pa.csv.ReadOptions(
        use_threads=False, block_size=CSV_BLOCK, column_names=names, skip_rows=layout.skip
    )
    with (
        plain.open("rb") as file,
        pa.csv.open_csv(
            file, read_options=read, parse_options=parse, convert_options=convert
        ) as reader,
    ):
        yield reader


# ---------------------------------------------------------------- numbers and missing values


def _decimal_marks(path: Path, plain: Path, layout: Layout, reading: Reading) -> dict[str, Mark]:
    """Return the decimal mark of the columns to rewrite, decided by all cells of the file."""
    names = list(filter(reading.may_be_number, layout.names))
    if not names or not _may_have_marks(plain, layout.separator):
        return {}
    spellings = {name: Spelling() for name in names}
    for part in _read_plain(path, plain, layout):
        if isinstance(part, Chunk):
            for name in names:
                spellings[name].count(part.table.column(name))
    of_file = reading.csv.decimal or mark_of_file(spellings)
    marks = {name: spelling.decide(of_file) for name, spelling in spellings.items()}
    for name, mark in marks.items():
        _say_mark(path, name, mark, spellings[name], reading)
    return {name: mark for name, mark in marks.items() if mark}


def _say_mark(
    path: Path, name: str, mark: Mark | None, spelling: Spelling, reading: Reading
) -> None:
    if mark is None:
        return
    comma = mark == "," and "," in spelling.example
    how = "with a decimal comma" if comma else "with separators of thousands"
    number = rewritten(pa.array([spelling.example]), mark)[0].as_py()
    example = f"{shown(spelling.example)} as {number}"
    reading.say(path, f"column '{name}': numbers are read {how}, {example}")


def _may_have_marks(plain: Path, separator: str) -> bool:
    """Return whether a cell of the file may hold a comma, or another separator of thousands."""
    needed = (b'"',) if separator == "," else (b",", b'"')
    spaced = re.compile(rb"\d(?: |'|\xe2\x80\x99|\xc2\xa0|\xe2\x80\xaf)\d{3}|\d\.\d{3}\.\d{3}")
    with plain.open("rb") as file:
        blocks = iter(lambda: file.read(BLOCK), b"")
        return any(any(m in block for m in needed) or spaced.search(block) for block in blocks)


def _converted(chunk: Chunk, marks: dict[str, Mark], reading: Reading) -> Chunk:
    """Return a chunk with null for markers of missing values, and numbers with a decimal point."""
    columns = {}
    for name, column in zip(chunk.table.schema.names, chunk.table.columns, strict=True):
        cells = column if name == reading.id else _without_markers(name, column, reading)
        columns[name] = rewritten(cells, marks[name]) if name in marks else cells
    return Chunk(chunk.path, chunk.rows, pa.RecordBatch.from_pydict(columns))


def _without_markers(name: str, cells: pa.Array, reading: Reading) -> pa.Array:
    missing = is_missing(cells, reading.csv.null_values)
    if not pc.any(missing).as_py():
        return cells
    for entry in pc.value_counts(pc.utf8_trim_whitespace(cells.filter(missing))).to_pylist():
        if entry["values"]:
            reading.count_missing(name, entry["values"], entry["counts"])
    return pc.if_else(missing, None, cells)


# ---------------------------------------------------------------- damaged rows


def _as_text(chunk: Chunk, ending: bytes, layout: Layout) -> Iterator[Chunk | Broken]:
    """Yield the rows whose cells are UTF-8 and contain no other lines; the others as `Broken`."""
    table = chunk.table
    text = pa.schema([(name, pa.string()) for name in table.schema.names])
    wrong = _with_lines(table, ending, layout)
    try:
        cast = table.cast(text)
    except pa.ArrowInvalid:
        wrong |= _not_utf8(table)
    if not wrong:
        yield Chunk(chunk.path, chunk.rows, cast)
        return
    good = np.setdiff1d(np.arange(len(table)), list(wrong))
    if len(good):
        yield Chunk(chunk.path, chunk.rows[good], table.take(pa.array(good)).cast(text))
    for i, reason in sorted(wrong.items()):
        row = int(chunk.rows[i])
        yield Broken(chunk.path, reason, range(row, row + 1), row + 1 + layout.skip)


def _not_utf8(table: pa.RecordBatch) -> dict[int, str]:
    """Find rows with a cell that is not UTF-8; return the reason by row."""
    wrong = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        for i, cell in enumerate(column.to_pylist()):
            try:
                (cell or b"").decode()
            except UnicodeDecodeError:
                remedy = ENCODING_REMEDY.format("the file")
                wrong[i] = f"column '{name}' is not UTF-8 text; {remedy}"
    return wrong


def _with_lines(table: pa.RecordBatch, ending: bytes, layout: Layout) -> dict[int, str]:
    """Find rows in which an unclosed quote made a cell swallow lines; return the reason by row."""
    wrong = {}
    for index, (name, column) in enumerate(zip(table.schema.names, table.columns, strict=True)):
        for i in _several_lines(column):
            lines = column[i].as_py().rstrip(b"\r\n").splitlines()
            if _until_a_quote(lines, index, layout) or _until_the_end(lines, ending):
                wrong[i] = f"column '{name}' holds lines of the file; a quote is not closed"
    return wrong


def _several_lines(column: pa.BinaryArray) -> list[int]:
    """Return the positions of cells in which text follows a line end."""
    content = column.buffers()[2]
    text = content.to_pybytes() if content else b""
    if b"\n" not in text and b"\r" not in text:  # the usual case, which this test decides fastest
        return []
    several = pc.match_substring_regex(column, r"[\r\n].*[^\r\n]").fill_null(False)
    found: list[int] = np.flatnonzero(several.to_numpy(zero_copy_only=False)).tolist()
    return found


def _until_a_quote(lines: Sequence[bytes], index: int, layout: Layout) -> bool:
    """Return whether an unclosed quote made a cell swallow lines up to the next quoted cell.

    The CSV reader mistakes the opening quote of a cell in a later line for the closing quote. The
    cell then contains the rest of its own line, whole lines, and a line up to the same column,
    which ends with a quote. Other text of several lines hardly ever has exactly these delimiters.

    Args:
        lines: the lines of the cell.
        index: the position of the cell's column.
        layout: the layout of the file.
    """
    columns, separator = len(layout.all_names), layout.separator.encode()
    first, *whole, last = (line.count(separator) for line in lines)
    fields = (first, last) == (columns - 1 - index, index) and set(whole) <= {columns - 1}
    return fields and lines[-1].endswith(b'"') and lines[-1].count(b'"') % 2 == 1


def _until_the_end(lines: Sequence[bytes], ending: bytes) -> bool:
    """Return whether a cell ends where the file ends, which a closing quote would prevent."""
    return ending.endswith(b"\n" + lines[-1])


def _ending(path: Path) -> bytes:
    """Return the last bytes of a file, without trailing line breaks."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - ENDING))
        return b"\n".join(file.read().rstrip(b"\r\n").splitlines())
