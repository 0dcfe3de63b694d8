"""Text of any compression and encoding becomes plain UTF-8; pipes are copied once."""

import bz2
import gzip
import lzma
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.datasets.reading import plain_text as module
from pipelines.datasets.reading.plain_text import (
    content_of,
    format_of,
    is_readable,
    open_unpacked,
    peek,
    plain_text,
)

TEXT = "a,b\n1,é\n"
PACK: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "two gzip members": lambda c: gzip.compress(c[:5]) + gzip.compress(c[5:]),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda c: pa.compress(c, "zstd", asbytes=True),
}


def write(folder: Path, content: bytes, name: str = "x") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def read(path: Path, encoding: str | None = None) -> tuple[bytes, str | None]:
    with plain_text(path, encoding) as (plain, used):
        return plain.read_bytes(), used


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_the_content_decides_how_a_file_is_unpacked(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path, pack(TEXT.encode()), "x.csv")
    assert read(path) == (TEXT.encode(), None)
    assert peek(path, None) == (TEXT, True)
    assert format_of(path) == "csv"


@pytest.mark.parametrize(
    ("encoding", "configured", "used"),
    [
        ("utf-8", None, None),
        ("utf-8", "latin-1", None),
        ("utf-8-sig", None, None),
        ("utf-16", None, "utf-16"),
        ("utf-32", "latin-1", "utf-32"),
        ("latin-1", "latin-1", "latin-1"),
        ("utf-16-le", "utf-16-le", "utf-16-le"),
        ("iso2022_jp", "iso2022_jp", "iso2022_jp"),
    ],
)
def test_text_is_read_in_its_encoding(
    tmp_path: Path, encoding: str, configured: str | None, used: str | None
) -> None:
    text = "a,b\n1,日本\n" if encoding.startswith("iso") else TEXT
    content, found = read(write(tmp_path, text.encode(encoding)), configured)
    assert (content.decode("utf-8-sig"), found) == (text, used)


def test_a_copy_is_deleted(tmp_path: Path) -> None:
    with plain_text(write(tmp_path, gzip.compress(b"a\n"))) as (plain, _):
        assert plain.exists()
    assert not plain.exists()


@pytest.mark.parametrize(
    ("content", "encoding", "reason"),
    [
        (b"a\n\x81", "cp1252", "not text in the encoding cp1252"),
        (TEXT.encode("utf-16-le"), None, r"data\.csv\.encoding: utf-16-le"),
        (gzip.compress(TEXT.encode() * 999, mtime=0)[:-9], None, "Truncated"),
        (lzma.compress(TEXT.encode() * 999)[:-9], None, "damaged"),
    ],
)
def test_damage_and_wrong_encodings_are_errors(
    tmp_path: Path, content: bytes, encoding: str | None, reason: str
) -> None:
    with pytest.raises((ValueError, OSError), match=reason):
        read(write(tmp_path, content), encoding)


def test_content_that_unpacks_to_far_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FREE_BYTES", 1_000)
    bomb = write(tmp_path, gzip.compress(bytes(100_000)))
    with pytest.raises(ValueError, match="more than 250 times as large"), open_unpacked(bomb) as f:
        f.read()
    plausible = write(tmp_path, gzip.compress(os.urandom(10_000)))
    with open_unpacked(plausible) as f:
        assert len(f.read()) == 10_000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.parquet", b"junk", "parquet"),
        ("a.csv", b"PAR1", "parquet"),
        ("a", b'{"a": 1}\n', "json"),
        ("a.csv", b'[{"a": 1}]', "json"),
        ("a.ndjson.gz", gzip.compress(b"x", mtime=0), "json"),
        ("a.json", b"", "json"),
        ("a.txt", b"[a],[b]\n1,2\n", "csv"),
        ("a", b"", "csv"),
    ],
)
def test_the_format_follows_from_the_content(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    assert format_of(write(tmp_path, content, name)) == expected


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04x", gzip.compress(b"ARROW1x", mtime=0), b"Obj\x01"]
)
def test_other_formats_are_named_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is an? .*; (unpack|write|export)"):
        format_of(write(tmp_path, content))
    with pytest.raises(ValueError, match="compressed Parquet file; unpack it"):
        format_of(write(tmp_path, gzip.compress(b"PAR1")))


def test_a_named_pipe_is_copied_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(TEXT.encode(),))
    writer.start()
    assert is_readable(path)
    writer.join()
    assert is_readable(path)
    assert read(path) == (TEXT.encode(), None)
    assert content_of(path) != path


def test_an_open_pipe_and_a_connection_are_read_by_number() -> None:
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    with os.fdopen(writer, "wb") as file:
        file.write(TEXT.encode())
    with ours:
        ours.sendall(TEXT.encode())
    for number in (reader, theirs.fileno()):
        path = Path(f"/dev/fd/{number}")
        assert is_readable(path)
        assert read(path) == (TEXT.encode(), None)
    os.close(reader)
    theirs.close()


def test_folders_are_no_files_and_devices_are_refused(tmp_path: Path) -> None:
    assert not is_readable(tmp_path)
    assert is_readable(Path(os.devnull))
    with pytest.raises(ValueError, match="it is a device, neither a file nor a pipe"):
        is_readable(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as place:
        place.bind(str(tmp_path / "s"))
        with pytest.raises(ValueError, match="it is a socket, neither a file nor a pipe"):
            is_readable(tmp_path / "s")


def test_a_name_that_is_not_utf8_is_read_through_a_link(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv"))
    path.write_bytes(TEXT.encode())
    str(content_of(path)).encode()
    assert content_of(path).read_bytes() == TEXT.encode()
