"""Folders named NAME=VALUE are columns, in training and in scoring."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.errors import DataError
from pipelines.datasets.files import find_files, heads_by_file, read_chunks, read_table
from pipelines.datasets.reading.partitions import Partitions, folder_values
from pipelines.datasets.reading.parts import Broken, Chunk


def write(root: Path, folder: str, name: str = "part.parquet", **columns: Any) -> Path:
    path = root / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".jsonl":
        rows = zip(*columns.values(), strict=True)
        path.write_text(
            "".join(json.dumps(dict(zip(columns, r, strict=True))) + "\n" for r in rows)
        )
    else:
        pq.write_table(pa.table(columns), path)
    return path


def test_values_are_decoded_and_the_default_partition_is_missing() -> None:
    path = Path("in/day=2018-07-01/a%20b=x%2Fy=z/c=__HIVE_DEFAULT_PARTITION__/d=/plain/part.csv")
    expected = {"day": "2018-07-01", "a b": "x/y=z", "c": None, "d": None}
    assert folder_values(path) == expected
    assert folder_values(Path("in/day=1.parquet")) == {}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "20", "-3"], pa.int64()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
        (["01", "02"], pa.string()),
        (["1", "x"], pa.string()),
        (["2018-07-01"], pa.string()),
        (["1" * 19], pa.string()),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string()),
    ],
)
def test_the_type_is_that_of_all_values(values: list[str], kind: pa.DataType) -> None:
    files = [Path(f"in/k={value}/part.parquet") for value in values]
    assert Partitions.of(files).types == {"k": kind}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("paths", [[""], ["shop=*/part.*"], ["shop=1", "shop=2"], ["*/*"]])
def test_the_column_is_read_from_folders_globs_and_several_paths(
    tmp_path: Path, suffix: str, paths: list[str]
) -> None:
    for shop in (1, 2):
        write(tmp_path, f"shop={shop}", f"part.{suffix}", a=[shop, shop])
        (tmp_path / f"shop={shop}" / "_SUCCESS").touch()
        (tmp_path / f"shop={shop}" / f".part.{suffix}.crc").touch()
        (tmp_path / f"shop={shop}" / "_metadata").write_bytes(b"PAR1")
    files = find_files([str(tmp_path / path) for path in paths])
    assert read_table(files)["shop"].to_pylist() == [1, 1, 2, 2]
    assert [head.schema.field("shop").type for head in heads_by_file(files).values()] == [
        pa.int64()
    ] * 2
    chunks = list(read_chunks(files, select=lambda names: [n for n in names if n != "a"]))
    if suffix == "parquet":
        assert [c.table.schema.names for c in chunks if isinstance(c, Chunk)] == [["shop"]] * 2
    assert [list(chunk.rows) for chunk in chunks if isinstance(chunk, Chunk)] == [[0, 1], [0, 1]]


def test_a_folder_that_is_not_selected_is_not_added(tmp_path: Path) -> None:
    path = write(tmp_path, "shop=1", a=[1])
    (chunk,) = read_chunks([path], select=lambda _: ["a"])
    assert isinstance(chunk, Chunk)
    assert chunk.table.schema.names == ["a"]


@pytest.mark.parametrize(
    ("folder", "cells"),
    [
        ("k=7", [7, 7]),
        ("k=07", [7, 7]),
        ("k=7", [7.0, 7.0]),
        ("k=7", ["7", "7"]),
        ("k=x", ["x", "x"]),
        ("k=x", [b"x", b"x"]),
        ("k=2018-07-01", [dt.date(2018, 7, 1)] * 2),
        ("k=2018-07-01", [dt.datetime(2018, 7, 1)] * 2),  # noqa: DTZ001
        ("k=__HIVE_DEFAULT_PARTITION__", [None, None]),
    ],
)
def test_a_column_that_agrees_with_its_folder_stays(
    tmp_path: Path, folder: str, cells: list[Any]
) -> None:
    path = write(tmp_path, folder, k=cells, a=[1, 2])
    (chunk,) = read_chunks([path])
    assert isinstance(chunk, Chunk)
    assert chunk.table["k"].to_pylist() == cells


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_contradiction_in_a_column_that_is_not_selected_is_no_matter(
    tmp_path: Path, suffix: str
) -> None:
    path = write(tmp_path, "k=7", f"part.{suffix}", k=[7, 8], a=[1, 2])
    (chunk,) = read_chunks([path], select=lambda _: ["a"])
    assert isinstance(chunk, Chunk)
    assert len(chunk.rows) == 2


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_cells_that_contradict_their_folder_are_broken(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, "k=7", f"part.{suffix}", k=[7, 8, None], a=[1, 2, 3])
    parts = list(read_chunks([path]))
    assert [list(part.rows) for part in parts if isinstance(part, Chunk)] == [[0]]
    reason = "column 'k' is {}, which contradicts the folder 'k=7'"
    assert [part for part in parts if isinstance(part, Broken)] == [
        Broken(path, reason.format(8), range(1, 2)),
        Broken(path, reason.format(None), range(2, 3)),
    ]
    with pytest.raises(DataError, match="from row 1 on: column 'k' is 8, which contradicts"):
        read_table([path])
