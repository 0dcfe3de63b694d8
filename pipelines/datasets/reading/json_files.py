"""Read JSON: one object per line, or an array of objects."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from anomaly_vae.messages import shown
from pipelines.datasets.reading.parts import ENCODING_REMEDY, Broken, Chunk, Head, Reading
from pipelines.datasets.reading.plain_text import plain_text

BLOCK_ROWS, BLOCK_BYTES = 8_192, 4 << 20
"""Number of rows, and of bytes, after which a block of rows is complete."""
MAX_BYTES = 16 << 20
"""Largest size of one object in bytes."""
MAX_KEYS = 10_000
"""Largest number of different keys in a file."""
BLOCK = 1 << 16
"""Size of the blocks in which an array is read, in bytes."""
INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class _Record:
    """An object of a file, or the reason why there is none, with its line, counted from 1."""

    line: int
    size: int
    content: dict[str, Any] | None
    reason: str = ""


@dataclass
class _Columns:
    """The types of the keys found so far."""

    kinds: dict[str, set[str]] = field(default_factory=dict)
    rows: int = 0

    def add(self, record: _Record) -> None:
        self.rows += 1
        for key, value in (record.content or {}).items():
            self.kinds.setdefault(key, set()).add(_kind(value))
        if len(self.kinds) > MAX_KEYS:
            raise ValueError(f"its objects have more than {MAX_KEYS:,} different keys")

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(key, _type(kinds)) for key, kinds in self.kinds.items()])


def _kind(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124 NaN
        return "null"
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if value in INT64 else "other"
    return type(value).__name__


def _type(kinds: set[str]) -> pa.DataType:
    """Return the type of a column whose values are of these kinds; text if they differ."""
    kinds = kinds - {"null"}
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64() if "float" in kinds else pa.int64()
    return pa.string() if kinds else pa.null()


def json_head(path: Path, reading: Reading) -> Head:
    """Return the columns of a JSON file, and the number of its rows.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is no JSON.
    """
    with plain_text(path, reading.csv.encoding) as (plain, _):
        columns = _columns(plain)
    return Head(columns.schema, columns.rows)


def _columns(plain: Path) -> _Columns:
    columns = _Columns()
    with suppress(_DamagedError):
        for record in _records(plain):
            columns.add(record)
    return columns


def read_json(path: Path, reading: Reading) -> Iterator[Chunk | Broken]:
    """Yield the rows of a JSON file, and as `Broken` the lines that hold no object.

    All chunks have the same columns: a value that is absent is null, and a column whose values are
    of different types is text.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is no JSON.
    """
    with plain_text(path, reading.csv.encoding) as (plain, encoding):
        if encoding is not None:
            reading.say(path, f"read as {encoding}")
        if not plain.stat().st_size:
            raise ValueError("the file is empty")
        schema = _columns(plain).schema
        for block in _blocks(plain):
            yield from _parts(path, block, schema)


Numbered = tuple[int, _Record]


def _blocks(plain: Path) -> Iterator[list[Numbered]]:
    """Yield the records with their positions, in blocks; raise errors after the last block."""
    block: list[Numbered] = []
    size = 0
    try:
        for row in enumerate(_records(plain)):
            block.append(row)
            size += row[1].size
            if len(block) >= BLOCK_ROWS or size >= BLOCK_BYTES:
                yield block
                block, size = [], 0
    except _DamagedError:
        yield block
        raise
    yield block


def _parts(path: Path, block: list[Numbered], schema: pa.Schema) -> Iterator[Chunk | Broken]:
    good = [(row, record.content) for row, record in block if record.content is not None]
    if good and schema.names:
        records = [content for _, content in good]
        cells = [_array(records, name, schema.field(name).type) for name in schema.names]
        table = pa.RecordBatch.from_arrays(cells, schema=schema)
        yield Chunk(path, np.array([row for row, _ in good]), table)
    for row, record in block:
        if record.content is None or not schema.names:
            reason = record.reason or "the object is empty"
            yield Broken(path, f"line {record.line}: {reason}", range(row, row + 1), record.line)


def _array(records: list[dict[str, Any]], name: str, kind: pa.DataType) -> pa.Array:
    convert: Callable[[Any], Any] = _text if pa.types.is_string(kind) else _plain
    return pa.array([convert(record.get(name)) for record in records], kind)


def _plain(value: Any) -> Any:
    return None if value != value else value  # noqa: PLR0124 NaN


def _text(value: Any) -> str | None:
    """Return a value of a column of text; other values than text as JSON writes them."""
    if value is None or isinstance(value, str):
        return None if value is None else value.encode("utf-8", "replace").decode()
    return None if _plain(value) is None else json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------- objects


class _DamagedError(ValueError):
    """The rest of an array cannot be read."""


def _records(plain: Path) -> Iterator[_Record]:
    with plain.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        begin = file.tell()
        characters = iter(lambda: file.read(1), b"")
        first = next((c for c in characters if not c.isspace()), b"")
        file.seek(begin)
        yield from _of_array(file) if first == b"[" else _of_lines(file)


def _of_lines(file: IO[bytes]) -> Iterator[_Record]:
    for number in itertools.count(1):
        line = file.readline(MAX_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_BYTES:
            raise _DamagedError(f"line {number} is longer than {MAX_BYTES >> 20} MiB")
        if line.strip():
            yield _parsed(number, line)


def _parsed(number: int, line: bytes) -> _Record:
    try:
        content = json.loads(line)
    except UnicodeDecodeError:
        return _Record(number, len(line), None, "not UTF-8 text; " + ENCODING_REMEDY.format("it"))
    except (ValueError, RecursionError) as error:
        return _Record(number, len(line), None, f"not a JSON object: {error}")
    return _checked(number, len(line), content)


def _checked(number: int, size: int, content: Any) -> _Record:
    if isinstance(content, dict):
        return _Record(number, size, content)
    reason = f"expected an object with one key per column, got {shown(content)}"
    return _Record(number, size, None, reason)


def _of_array(file: IO[bytes]) -> Iterator[_Record]:
    """Yield the elements of an array, which is read in blocks.

    Raises:
        _DamagedError: the array is not valid JSON from some place on.
    """
    text, line, separator = _Text(file), 1, "["
    while True:
        line += text.skip_space()
        mark = text.take()
        if mark == "]" and separator != "[":
            return
        if mark != separator:
            raise _DamagedError(f"line {line}: expected '{separator}' of an array, got {mark!r}")
        line += text.skip_space()
        if separator == "[" and text.peek() == "]":
            return
        start = line
        value, size, breaks = text.value(line)
        line += breaks
        yield _checked(start, size, value)
        separator = ","


class _Text:
    """A text that is read in blocks as far as it is needed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._blocks: Iterator[bytes] = iter(lambda: file.read(BLOCK), b"")
        self._text = ""
        self._place = 0
        self._scan = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        if self._place >= len(self._text):
            self._more()
        return self._text[self._place : self._place + 1]

    def take(self) -> str:
        character = self.peek()
        self._place += len(character)
        return character

    def skip_space(self) -> int:
        """Skip white space; return the number of line breaks in it."""
        breaks = 0
        while (character := self.peek()) and character.isspace():
            breaks += character == "\n"
            self._place += 1
        return breaks

    def value(self, line: int) -> tuple[Any, int, int]:
        """Return the next value, its length and the number of its line breaks."""
        wanted = BLOCK
        while True:
            try:
                value, end = self._scan(self._text, self._place)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._grow(wanted):
                    raise _DamagedError(f"from line {line} on, it is not JSON: {error}") from None
                wanted *= 2
                continue
            if end == len(self._text) and self._more():
                continue  # a number may go on in the next block
            breaks = self._text.count("\n", self._place, end)
            size, self._place = end - self._place, end
            return value, size, breaks

    def _grow(self, wanted: int) -> bool:
        """Read more text, of this size if there is as much; return whether there was any."""
        start = len(self._text) - self._place
        if start > MAX_BYTES:
            return False
        while len(self._text) - self._place - start < wanted and self._more():
            pass
        return len(self._text) - self._place > start

    def _more(self) -> bool:
        for block in self._blocks:
            if added := self._decoder.decode(block):
                self._text = self._text[self._place :] + added
                self._place = 0
                return True
        return False
