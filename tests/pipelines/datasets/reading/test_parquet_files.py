"""Parquet of any writer is read; damaged, encrypted and other files are named."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from pyarrow import orc
from pyarrow.parquet import encryption

from pipelines.datasets.files import heads_by_file, read_chunks, read_table
from pipelines.datasets.reading import parquet_files
from pipelines.datasets.reading.parts import Broken, Chunk
from tests.support.table_files import COLUMNS, damage, read, write, write_parquet


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
