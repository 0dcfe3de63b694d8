"""Open text of any compression and encoding as a plain file of UTF-8 text, and copy pipes."""

from __future__ import annotations

import atexit
import codecs
import io
import lzma
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa

from anomaly_vae.messages import printable
from pipelines.datasets.reading.objects import ObjectPath

BLOCK = 1 << 20
"""Size of the blocks in which text is copied, in bytes."""
PEEK = 1 << 20
"""Size of the beginning of a file from which its form is recognised, in bytes."""
FREE_BYTES, MAX_RATIO = 1 << 30, 250
"""Unpacked size in bytes above which content must not be more than so many times the packed size.
"""
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
"""Compression by the first bytes of a file."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encoding by byte-order mark; longer marks that begin like a shorter one come first."""
FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or export it as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; export it as CSV",
    b"ARROW1": "an Arrow file; write it as Parquet",
    b"FEA1": "a Feather file; write it as Parquet",
    b"ORC": "an ORC file; write it as Parquet",
    b"Obj\x01": "an Avro file; write it as Parquet",
    b"\x89HDF": "an HDF5 file; write it as Parquet",
    b"SQLite format 3": "a SQLite database; export the table as CSV",
    b"%PDF": "a PDF file; export the table as CSV",
}
"""Other formats and remedies, by the first bytes of a file."""
ZEROS = (
    "it holds zero bytes, as UTF-16 without a byte-order mark does; name its encoding, such as "
    "data.csv.encoding: utf-16-le"
)
"""Reason why text without an encoding cannot be read."""
PARQUET = (b"PAR1", b"PARE")
"""First bytes of a Parquet file, the second of one that is encrypted."""
JSON_BEGINNING = re.compile(r"\s*(\{\s*[\"}]|\[\s*[\[{\]])")
"""Pattern of the beginning of JSON objects, or of an array of them."""
PARQUET_SUFFIXES = (".parquet", ".pq")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
PACKED_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4")
Format = Literal["parquet", "csv", "json"]

_copies: dict[tuple[str, int, int], Path] = {}
"""Copy of each pipe that was read, by path, device and inode."""


# ---------------------------------------------------------------- pipes and odd names


def is_readable(path: Path) -> bool:
    """Return whether a path is a file, or a pipe, which is copied so that it can be read twice.

    Raises:
        OSError: the path cannot be examined or read.
        ValueError: the path is something else, such as a device.
    """
    status = path.stat()
    if stat.S_ISREG(status.st_mode) or _is_null(status):
        return True
    if stat.S_ISFIFO(status.st_mode) or (stat.S_ISSOCK(status.st_mode) and _descriptor(path)):
        _copy_pipe(path, status)
        return True
    if not stat.S_ISDIR(status.st_mode):
        kind = "a socket" if stat.S_ISSOCK(status.st_mode) else "a device"
        raise ValueError(f"it is {kind}, neither a file nor a pipe")
    return False


def _is_null(status: os.stat_result) -> bool:
    null = Path(os.devnull).stat().st_rdev
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == null


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path such as /dev/fd/63 names; None for others."""
    match = re.fullmatch(r"/dev/(?:fd/(\d+)|(stdin))|/proc/self/fd/(\d+)", str(path))
    return int(match[1] or match[3] or 0) if match else None


def _copy_pipe(path: Path, status: os.stat_result) -> None:
    key = (str(path), status.st_dev, status.st_ino)
    if key in _copies and _copies[key].exists():
        return
    handle, name = tempfile.mkstemp(prefix="anomaly-vae-pipe-")
    copy = Path(name)
    atexit.register(partial(copy.unlink, missing_ok=True))
    with os.fdopen(handle, "wb") as target, _open_pipe(path) as source:
        shutil.copyfileobj(source, target, BLOCK)
    _copies[key] = copy


def _open_pipe(path: Path) -> IO[bytes]:
    number = _descriptor(path)
    return path.open("rb") if number is None else os.fdopen(os.dup(number), "rb")


def content_of(path: Path) -> Path:
    """Return where the content of a path is: the copy of a pipe, else the path itself.

    A path whose name is not UTF-8, which Arrow refuses, is replaced by a link to it.
    """
    if isinstance(path, ObjectPath):
        return path
    status = path.stat()
    key = (str(path), status.st_dev, status.st_ino)
    if key not in _copies and printable(path) != str(path):
        link = Path(tempfile.mkdtemp(prefix="anomaly-vae-link-"), "link")
        link.symlink_to(path.absolute())
        atexit.register(partial(shutil.rmtree, link.parent, ignore_errors=True))
        _copies[key] = link
    return _copies.get(key, path)


def source_of(path: Path) -> Any:
    """Return what Arrow reads a path from: the path, or an object of a store, opened."""
    content = content_of(path)
    return content.open("rb") if isinstance(content, ObjectPath) else content


def is_pipe(path: Path) -> bool:
    """Return whether a path is a pipe that was read, and so cannot be read a second time."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


# ---------------------------------------------------------------- recognition


def format_of(path: Path) -> Format:
    """Recognise the format of a file by its content.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has a known format that is not read.
    """
    if path.suffix.lower() in PARQUET_SUFFIXES or is_parquet(path):
        return "parquet"
    _refuse_foreign(_first_bytes(path))
    with open_unpacked(path) as file:
        head = file.read(PEEK)
    if head.startswith(PARQUET):
        raise ValueError("it is a compressed Parquet file; unpack it")
    _refuse_foreign(head)
    text = _decoded(head, None)
    return "json" if _json_name(path) or JSON_BEGINNING.match(text) else "csv"


def is_parquet(path: Path) -> bool:
    """Return whether a file begins as Parquet does; False if it cannot be read."""
    try:
        return _first_bytes(path).startswith(PARQUET)
    except OSError:
        return False


def has_types(path: Path) -> bool:
    """Return whether the format of a readable file tells text from numbers and times."""
    return format_of(path) == "parquet"


def refuse_foreign(path: Path) -> None:
    """Name the format of a file that is not Parquet, although its name says so.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty or has another known format.
    """
    head, compression = _first_bytes(path), _compression(path)
    if not head:
        raise ValueError("the file is empty")
    _refuse_foreign(head)
    if compression:
        raise ValueError(f"it is compressed by {compression}, not Parquet; unpack it")


def unpacked_name(name: str) -> str:
    """Return the name of a file in lower case, without the suffix of a compression.

    >>> unpacked_name("Rows.CSV.gz")
    'rows.csv'
    """
    name = name.lower()
    return name.removesuffix(next(filter(name.endswith, PACKED_SUFFIXES), ""))


def _json_name(path: Path) -> bool:
    return Path(unpacked_name(path.name)).suffix in JSON_SUFFIXES


def _refuse_foreign(head: bytes) -> None:
    for magic, remedy in FOREIGN.items():
        if head.startswith(magic):
            raise ValueError(f"it is {remedy}")


def _first_bytes(path: Path) -> bytes:
    with content_of(path).open("rb") as file:
        return file.read(64)


def _compression(path: Path) -> str | None:
    head = _first_bytes(path)
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacked if it is compressed; unpacking too much raises ValueError.

    Raises:
        OSError: the file cannot be read.
    """
    name = _compression(path)
    with content_of(path).open("rb") as raw:
        if name is None:
            yield raw
        else:
            unpack: Any = {"xz": lzma.LZMAFile}.get(name) or partial(
                pa.CompressedInputStream, compression=name
            )
            yield io.BufferedReader(_Limited(unpack(raw), content_of(path).stat().st_size))


class _Limited(io.RawIOBase):
    """An unpacked stream that refuses content that is implausibly larger than the packed one."""

    def __init__(self, stream: Any, packed: int) -> None:
        self._stream = stream
        self._left = max(FREE_BYTES, MAX_RATIO * packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._stream.read(len(buffer))
        except (lzma.LZMAError, EOFError) as error:
            raise ValueError(f"its compressed content is damaged: {error}") from None
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(
                f"its content is more than {MAX_RATIO} times as large unpacked; unpack it yourself "
                "if that is right"
            )
        buffer[: len(content)] = content
        return len(content)


# ---------------------------------------------------------------- encodings


def peek(path: Path, encoding: str | None) -> tuple[str, bool]:
    """Return the beginning of a text file, and whether it is the whole text.

    Bytes that do not fit the encoding become surrogates.

    Args:
        path: the file, compressed or not.
        encoding: the encoding of the file if it is not UTF-8; None for UTF-8.
    """
    with open_unpacked(path) as file:
        head = file.read(PEEK)
        whole = len(head) < PEEK or not file.read(1)
    return _decoded(head, encoding), whole


def _decoded(head: bytes, encoding: str | None) -> str:
    name = _marked(head)
    if name is None:
        name = encoding if encoding and not _is_utf8([head]) else "utf-8"
    errors = "surrogateescape" if name.startswith("utf-8") else "replace"
    return head.decode(name, errors)


def _marked(head: bytes) -> str | None:
    return next((name for bom, name in BYTE_ORDER_MARKS.items() if head.startswith(bom)), None)


def _is_utf8(blocks: Any) -> bool:
    """Return whether text is UTF-8; control characters of other encodings say that it is not."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        texts = (decoder.decode(block) for block in blocks)
        return not any("\0" in text or "\x1b" in text for text in texts)
    except UnicodeDecodeError:
        return False


@contextmanager
def plain_text(path: Path, encoding: str | None = None) -> Iterator[tuple[Path, str | None]]:
    """Yield a plain file with the text as UTF-8, and the encoding that it was read with, if other.

    The file is the file itself if it is plain already, and else a copy that is deleted at the end.

    Args:
        path: the file, compressed or not.
        encoding: its encoding if it is not UTF-8; None if such files are read as they are.

    Raises:
        OSError: the file cannot be read or copied.
        ValueError: the text does not fit its encoding.
    """
    name = _encoding(path, encoding)
    if name is None and _compression(path) is None:
        yield content_of(path), None
        return
    with tempfile.NamedTemporaryFile(prefix="anomaly-vae-text-") as copy:
        with open_unpacked(path) as source:
            _copy_text(source, copy, name)
        copy.flush()
        yield Path(copy.name), name


def _encoding(path: Path, encoding: str | None) -> str | None:
    """Return the encoding of a file that is not UTF-8; None if it is UTF-8 or unknown."""
    with open_unpacked(path) as file:
        head = file.read(64)
        if marked := _marked(head):
            return None if marked == "utf-8-sig" else marked
        if encoding is None:
            if b"\0" in head:
                raise ValueError(ZEROS)
            return None
        return None if _is_utf8(iter([head, *iter(lambda: file.read(BLOCK), b"")])) else encoding


def _copy_text(source: IO[bytes], target: Any, encoding: str | None) -> None:
    if encoding is None:
        shutil.copyfileobj(source, target, BLOCK)
        return
    text = io.TextIOWrapper(source, encoding, newline="")
    try:
        while block := text.read(BLOCK):
            target.write(block.encode())
    except UnicodeError:
        raise ValueError(f"it is not text in the encoding {encoding}") from None
    finally:
        text.detach()
