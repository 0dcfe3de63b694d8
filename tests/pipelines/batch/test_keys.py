"""Ids keep their name and type, in the parts and in the rejects."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.errors import DataError
from pipelines.batch.keys import Keys, find_keys
from pipelines.batch.result.folder import REJECTS, reject_schema
from pipelines.batch.tables import score_files
from pipelines.datasets.files import heads_by_file
from pipelines.registry.model_uri import LoadedModel
from tests.support.flows import World

ID, RESERVED = "TRANSACTION_ID", ("score",)
TEXT = ["a", "b", "c"]
IDS: dict[str, tuple[pa.Array, list[Any], pa.DataType]] = {
    "int64": (pa.array([7, 8, 9]), [7, 8, 9], pa.int64()),
    "string": (pa.array(TEXT), TEXT, pa.string()),
    "large_string": (pa.array(TEXT, pa.large_string()), TEXT, pa.large_string()),
    "binary": (pa.array([b"a", b"b", b"c"]), TEXT, pa.string()),
    "binary_view": (pa.array([b"a", b"b", b"c"], pa.binary_view()), TEXT, pa.string()),
    "dictionary": (pa.array(TEXT).dictionary_encode(), TEXT, pa.string()),
    "timestamp": (
        pa.array([dt.datetime(2024, 1, i, tzinfo=dt.UTC) for i in (1, 2, 3)]),
        [dt.datetime(2024, 1, i, tzinfo=dt.UTC) for i in (1, 2, 3)],
        pa.timestamp("us", "UTC"),
    ),
    "date": (
        pa.array([dt.date(2024, 1, i) for i in (1, 2, 3)]),
        [dt.date(2024, 1, i) for i in (1, 2, 3)],
        pa.date32(),
    ),
    "decimal": (
        pa.array([Decimal("1.50"), Decimal("2.00"), Decimal("3.25")]),
        [Decimal("1.50"), Decimal("2.00"), Decimal("3.25")],
        pa.decimal128(3, 2),
    ),
    "uuid": (
        pa.array([uuid.UUID(int=i) for i in (1, 2, 3)], pa.uuid()),
        [str(uuid.UUID(int=i)) for i in (1, 2, 3)],
        pa.string(),
    ),
    "digest": (pa.array([b"\xff\xfe", b"\xfd", b"\xfc"]), [b"\xff\xfe", b"\xfd", b"\xfc"],
               pa.binary()),
}  # fmt: skip


@pytest.fixture
def source(world: World) -> LoadedModel:
    return world.source


@pytest.mark.parametrize("case", IDS)
@pytest.mark.parametrize("bad", [[], [1]])
def test_rejects_have_the_id_with_the_name_and_type_of_the_parts(
    case: str, bad: list[int], source: LoadedModel, tmp_path: Path
) -> None:
    ids, expected, kind = IDS[case]
    amounts = ["much" if row in bad else "1" for row in range(3)]
    pq.write_table(pa.table({ID: ids, "TX_AMOUNT": amounts}), tmp_path / "t.parquet")
    score_files(source, [str(tmp_path / "t.parquet")], tmp_path / "out")
    rejects = pq.read_table(tmp_path / "out" / REJECTS)
    part = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert rejects.column_names == ["path", "row", ID, "column", "reason"]
    assert rejects.schema.field(ID).type == part.schema.field(ID).type == kind
    assert rejects[ID].to_pylist() == [expected[row] for row in bad]
    assert part[ID].to_pylist() == [expected[row] for row in range(3) if row not in bad]


def test_rejects_of_rows_without_ids_have_their_position_alone(
    source: LoadedModel, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"TX_AMOUNT": ["much", "1"]}), tmp_path / "t.parquet")
    score_files(source, [str(tmp_path / "t.parquet")], tmp_path / "out")
    rejects = pq.read_table(tmp_path / "out" / REJECTS)
    assert rejects.column_names == ["path", "row", "column", "reason"]
    assert rejects["row"].to_pylist() == [0]


def test_an_id_that_is_not_text_rejects_its_row(source: LoadedModel, tmp_path: Path) -> None:
    ids = pa.array([b"a"] * 20 + [b"\xff"])
    pq.write_table(pa.table({ID: ids, "TX_AMOUNT": [1.0] * 21}), tmp_path / "t.parquet")
    summary = score_files(source, [str(tmp_path / "t.parquet")], tmp_path / "out")
    assert (summary["scored"], summary["rejected_by_column"]) == (20, {ID: 1})
    (reject,) = pq.read_table(tmp_path / "out" / REJECTS).to_pylist()
    assert (reject["row"], reject[ID], reject["column"]) == (20, None, ID)


def test_ids_of_text_files_and_typed_files_are_text_in_one_result(
    source: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "1.csv").write_text(f"{ID};TX_AMOUNT\nNA;1,5\nA;1,5\n007;much\n")
    (tmp_path / "2.jsonl").write_text(f'{{"{ID}": 8, "TX_AMOUNT": 1.5}}\n')
    pq.write_table(pa.table({ID: [9], "TX_AMOUNT": [1.5]}), tmp_path / "3.parquet")
    summary = score_files(source, [str(tmp_path / "[1-3].*")], tmp_path / "out")
    part = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert part[ID].to_pylist() == ["NA", "A", "8", "9"]
    assert len(set(part["score"].to_pylist())) == 1
    (reject,) = pq.read_table(tmp_path / "out" / REJECTS).to_pylist()
    assert (reject["row"], reject[ID], reject["column"]) == (2, "007", "TX_AMOUNT")
    assert "with a decimal comma" in "".join(summary["notes"])


def test_an_id_with_the_name_of_a_column_of_rejects_takes_the_name() -> None:
    names = reject_schema(pa.field("row", pa.string())).names
    assert names == ["path", "reject_row", "row", "column", "reason"]


def keys_of(folder: Path, *columns: pa.Array) -> Keys:
    paths = [folder / f"{number}.parquet" for number in range(len(columns))]
    for path, column in zip(paths, columns, strict=True):
        pq.write_table(pa.table({"id": column}), path)
    return find_keys("id", heads_by_file(paths), RESERVED)


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ([pa.array([1], pa.int32()), pa.array([2])], pa.int64()),
        ([pa.array([b"x"]), pa.array(["y"])], pa.string()),
        ([pa.array([b"x"]), pa.array([1])], pa.string()),
        ([pa.array([1], pa.timestamp("ms")), pa.array([1], pa.timestamp("us"))],
         pa.timestamp("us")),
        ([pa.array([uuid.UUID(int=1)], pa.uuid()), pa.array(["y"])], pa.string()),
    ],
)  # fmt: skip
def test_ids_of_several_files_have_one_type(
    columns: list[pa.Array], kind: pa.DataType, tmp_path: Path
) -> None:
    keys = keys_of(tmp_path, *columns)
    assert keys.type == kind
    for column in columns:
        ids, problems = keys.ids(pa.record_batch({"id": column}))
        assert (ids.type, len(ids), problems) == (kind, 1, [])


@pytest.mark.parametrize(
    "other", [pa.array([1]), pa.array([b"\xff"]), pa.array([[1]])], ids=lambda a: str(a.type)
)
def test_ids_that_contradict_each_other_are_refused_before_scoring(
    other: pa.Array, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"column 'id' is timestamp\[us\] in .*0.parquet' but .*one type$"
    ):
        keys_of(tmp_path, pa.array([1], pa.timestamp("us")), other)
