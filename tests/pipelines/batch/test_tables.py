"""Batch scoring: every row is scored or rejected, alike alone and among others, whole or not."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow.dataset import dataset
from scipy.stats import false_discovery_control

from anomaly_vae.errors import DataError
from anomaly_vae.files import locked
from pipelines.batch import ExplainedRows
from pipelines.batch.common import exclude_output
from pipelines.batch.result import folder as results
from pipelines.batch.result.folder import INCOMPLETE, PART_ROWS, REJECTS, RUN, SUMMARY
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
from tests.support.flows import Command, World
from tests.support.paths import ROOT
from tests.support.timed import rows as timed_rows
from tests.support.timed import timed_bundle

ID = "TRANSACTION_ID"
RECORD = r"plan\.json|\d{5}(_\d{5})?(\.json|\.(rejects|p_values)\.parquet)"
"""Pattern of the files that describe a finished run."""
RESTART, ALL = RunOptions(restart=True), ExplainedRows.ALL


@pytest.fixture
def source(world: World) -> LoadedModel:
    return world.source


@pytest.fixture
def table(transactions: Path) -> pa.Table:
    return pq.read_table(transactions)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores"


def parts(folder: Path) -> pa.Table:
    """The scored rows in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def rejects(folder: Path) -> list[dict[str, Any]]:
    """The rejected rows in order."""
    return list(pq.read_table(folder / REJECTS).to_pylist())


def adds_up(folder: Path, rows: int) -> dict[str, Any]:
    """The summary, after checking it against what lies in the folder."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    scored = sum(pq.read_metadata(folder / name).num_rows for name in summary["parts"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [RUN, SUMMARY, REJECTS, *summary["parts"]]
    )
    assert all(re.fullmatch(RECORD, path.name) for path in (folder / RUN).iterdir())
    assert summary["scored"] == scored
    assert summary["rejected"] == len(rejects(folder))
    assert summary["rejected"] == sum(summary["rejected_by_column"].values())
    assert summary["rows"] == summary["scored"] + summary["rejected"] == rows
    assert all(row["reason"] for row in rejects(folder))
    return summary


def write(path: Path, table: pa.Table) -> str:
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return str(path)


# ---------------------------------------------------------------- scores


def test_every_row_of_a_sound_file_is_scored_as_the_detector_does(
    source: LoadedModel, transactions: Path, world: World, out: Path
) -> None:
    returned = score_files(source, [str(transactions)], out)
    summary = adds_up(out, 1_500)
    assert returned == summary
    assert summary["rejected"] == 0
    truth = source.bundle.detector.detect(world.trained.data.batch)
    scored = parts(out)
    assert scored.column_names == [ID, "score", "p_value", "is_anomaly", "unusual_input"]
    assert scored[ID].equals(pq.read_table(transactions)[ID])
    assert np.array_equal(scored["score"], truth.score)
    assert np.array_equal(scored["p_value"], truth.p_value)
    assert np.array_equal(scored["is_anomaly"], truth.is_anomaly)
    assert summary["flagged"] == truth.is_anomaly.sum()


def test_the_summary_says_which_model_decided_and_how(
    source: LoadedModel, transactions: Path, out: Path
) -> None:
    summary = score_files(source, [str(transactions)], out)
    calibration = source.bundle.detector.calibration
    assert summary["model"] == {
        "name": "fraud", "version": "1", "alias": "champion", "digest": source.bundle.digest
    }  # fmt: skip
    assert (summary["alpha"], summary["threshold"]) == (0.05, calibration.threshold)
    assert summary["files"] == 1


def test_a_row_alone_has_the_score_it_has_among_others(
    source: LoadedModel, table: pa.Table, tmp_path: Path
) -> None:
    among = tmp_path / "among"
    score_files(source, [write(tmp_path / "all.parquet", table)], among)
    whole = parts(among)
    for row in (0, 7, 1_499):
        alone = tmp_path / f"alone-{row}"
        score_files(source, [write(tmp_path / f"{row}.parquet", table.slice(row, 1))], alone)
        one = parts(alone)
        assert one["score"][0].as_py() == pytest.approx(whole["score"][row].as_py(), rel=1e-6)
        assert one["p_value"][0] == whole["p_value"][row]
        assert one["is_anomaly"][0] == whole["is_anomaly"][row]


def test_csv_and_parquet_of_the_same_rows_give_the_same_scores(
    source: LoadedModel, table: pa.Table, tmp_path: Path
) -> None:
    few = table.slice(0, 200)
    for suffix in ("parquet", "csv"):
        score_files(source, [write(tmp_path / f"t.{suffix}", few)], tmp_path / suffix)
    columnar, text = parts(tmp_path / "parquet"), parts(tmp_path / "csv")
    assert np.allclose(columnar["score"], text["score"], rtol=1e-6)
    assert columnar[ID].cast(pa.string()).equals(text[ID])


def test_the_order_of_columns_does_not_matter(
    source: LoadedModel, table: pa.Table, tmp_path: Path
) -> None:
    turned = table.select(table.column_names[::-1])
    score_files(source, [write(tmp_path / "a.parquet", table)], tmp_path / "a")
    score_files(source, [write(tmp_path / "b.parquet", turned)], tmp_path / "b")
    assert parts(tmp_path / "a").equals(parts(tmp_path / "b"))


# ---------------------------------------------------------------- reasons


@pytest.mark.parametrize("most", [1, 3, "all"])
def test_contributions_rest_and_kl_add_up_to_the_score(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path, most: int | str
) -> None:
    path = write(tmp_path / "t.parquet", table.slice(0, 300))
    score_files(source, [path], out, most, explain_rows=ALL)
    labels = source.bundle.scorer.encoding.labels
    for row in parts(out).to_pylist():
        nats = [c["nats"] for c in row["contributions"]]
        assert nats == sorted(nats, reverse=True)
        assert len(nats) == (len(labels) if most == "all" else most)
        assert sum(nats) + row["rest"] + row["kl"] == pytest.approx(row["score"], abs=1e-6)
        if most == "all":
            assert row["rest"] == pytest.approx(0, abs=1e-9)
            assert {c["feature"] for c in row["contributions"]} == set(labels)


def test_explaining_changes_no_score(
    source: LoadedModel, transactions: Path, tmp_path: Path
) -> None:
    score_files(source, [str(transactions)], tmp_path / "plain")
    score_files(source, [str(transactions)], tmp_path / "explained", 2)
    plain, explained = parts(tmp_path / "plain"), parts(tmp_path / "explained")
    assert np.allclose(plain["score"], explained["score"], rtol=1e-6)
    assert plain.column_names == explained.column_names[:5]
    assert explained.column_names[5:] == ["contributions", "rest", "kl"]


def test_a_reason_shows_what_was_seen_and_what_was_expected(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    odd = table.slice(0, 1).set_column(
        table.column_names.index("TX_AMOUNT"), "TX_AMOUNT", pa.array([1_234.5])
    )
    score_files(source, [write(tmp_path / "t.parquet", odd)], out, 1)
    (row,) = parts(out).to_pylist()
    (reason,) = row["contributions"]
    assert reason["feature"] == "TX_AMOUNT"
    assert reason["observed"] == "1234.5"
    assert 0 < float(reason["expected"]) < 1_000
    assert row["is_anomaly"]


def test_no_expected_value_is_beyond_the_training_values(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    """Written as text, it may not leave the range by rounding."""
    limits = {c["name"]: c["limits"] for c in source.bundle.manifest["encoding"] if "limits" in c}
    assert len(limits) > 5
    wild = table.slice(0, 100).set_column(
        table.column_names.index("TX_AMOUNT"), "TX_AMOUNT", pa.array(np.linspace(-1e6, 1e6, 100))
    )
    score_files(source, [write(tmp_path / "t.parquet", wild)], out, "all")
    found = [c for row in parts(out).to_pylist() for c in row["contributions"]]
    for one in (c for c in found if c["feature"] in limits):
        low, high = limits[one["feature"]]
        assert low <= float(one["expected"]) <= high
    (time,) = {c["feature"] for c in found if "TX_DATETIME" in c["feature"]}
    assert time == "TX_DATETIME"


# ---------------------------------------------------------------- every row counts


GOOD = {"TX_AMOUNT": "12.5", "TX_CHANNEL": "online", "TX_DATETIME": "2024-02-01 10:00:00"}
AMOUNTS = {
    "12.5": True,
    "": True,
    "NaN": True,
    "1e3": True,
    "abc": False,
    "inf": False,
    "1;5": False,
}
TIMES = {"2024-02-01T10:00:00": True, "": True, "yesterday": False}
CHANNELS = {"online": True, "pigeon": True, "": True, 'with "quotes", and comma': True}
cells = st.fixed_dictionaries(
    {
        "TX_AMOUNT": st.sampled_from(list(AMOUNTS)),
        "TX_CHANNEL": st.sampled_from(list(CHANNELS)),
        "TX_DATETIME": st.sampled_from(list(TIMES)),
        "unknown": st.sampled_from(["", "x"]),
    }
)
ragged = st.lists(st.just("x"), min_size=1, max_size=9)
line = st.one_of(cells, cells, cells, ragged)
columns = st.lists(
    st.sampled_from([ID, "TX_AMOUNT", "TX_CHANNEL", "TX_DATETIME", "unknown"]), unique=True
).filter(lambda names: set(names) & set(GOOD))
file = st.tuples(columns, st.lists(line, max_size=8))


def write_lines(path: Path, names: Sequence[str], lines: Sequence[Any], start: int) -> list[bool]:
    """Write a CSV file; which of its lines can be scored."""
    fit = []
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for number, content in enumerate(lines, start):
            if isinstance(content, list):
                cut = content if len(content) != len(names) else [*content, "x"]
                writer.writerow(cut)
                fit.append(False)
                continue
            row = {**content, ID: str(number)}
            writer.writerow([row[name] for name in names])
            fit.append(
                ("TX_AMOUNT" not in names or AMOUNTS[row["TX_AMOUNT"]])
                and ("TX_DATETIME" not in names or TIMES[row["TX_DATETIME"]])
            )
    return fit


@settings(max_examples=40)
@given(st.lists(file, min_size=1, max_size=3))
@example([(["TX_AMOUNT"], []), (["TX_CHANNEL"], [dict(GOOD, unknown="")])])
@example([([ID, "TX_AMOUNT"], [["x"] * 9, dict(GOOD, unknown=""), ["x"]])])
def test_every_line_of_every_csv_file_is_scored_or_rejected_and_none_is_lost(
    source_of_world: LoadedModel, files: list[tuple[list[str], list[Any]]]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, fit, paths, empty = Path(place), list[bool](), [], 0
        for number, (names, drawn) in enumerate(files):
            paths.append(folder / f"{number}.csv")
            fit += write_lines(paths[-1], names, drawn, start=len(fit))
            empty += not drawn
        score_files(source_of_world, [str(path) for path in paths], folder / "out")
        refused = [row for row in rejects(folder / "out") if row["row"] is not None]
        whole_files = [row for row in rejects(folder / "out") if row["row"] is None]
        assert len(whole_files) <= empty
        adds_up(folder / "out", len(fit) + len(whole_files))
        assert sorted(row["row"] for row in refused) == [
            i for i, good in enumerate(fit) if not good
        ]
        scored = list(itertools.chain.from_iterable(
            (int(row.get(ID) or row.get("row", 0)) for row in pq.read_table(path).to_pylist())
            for path in sorted((folder / "out").glob("part-*"))
        ))  # fmt: skip
        assert scored == [i for i, good in enumerate(fit) if good]


@pytest.fixture(scope="module")
def source_of_world(world: World) -> LoadedModel:
    """For hypothesis, which takes no fixture of a single test."""
    return world.source


def test_a_bad_cell_is_told_with_its_place_and_reason(
    source: LoadedModel, tmp_path: Path, out: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{ID},TX_AMOUNT,TX_DATETIME\n7,1,2024-02-01\n8,abc,\n9,inf,\n10,2,soon\n")
    score_files(source, [str(path)], out)
    summary = adds_up(out, 4)
    assert summary["rejected_by_column"] == {"TX_AMOUNT": 2, "TX_DATETIME": 1}
    assert rejects(out) == [
        {"path": str(path), "row": 1, ID: "8", "column": "TX_AMOUNT",
         "reason": "expected a number, got 'abc'"},
        {"path": str(path), "row": 2, ID: "9", "column": "TX_AMOUNT",
         "reason": "infinity is not a value; leave it empty if it is missing"},
        {"path": str(path), "row": 3, ID: "10", "column": "TX_DATETIME",
         "reason": "expected an ISO 8601 date or time, got 'soon'"},
    ]  # fmt: skip


def test_a_row_with_two_bad_cells_is_rejected_once(
    source: LoadedModel, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "t.csv").write_text("TX_AMOUNT,TX_DATETIME\nabc,soon\n1,\n")
    score_files(source, [str(tmp_path / "t.csv")], out)
    assert adds_up(out, 2)["rejected"] == 1


def test_rows_after_rejects_are_not_confused(
    source: LoadedModel, tmp_path: Path, out: Path
) -> None:
    lines = [f"{i},{'abc' if i % 3 else i}" for i in range(2_000)]
    (tmp_path / "t.csv").write_text("\n".join([f"{ID},TX_AMOUNT", *lines]) + "\n")
    score_files(source, [str(tmp_path / "t.csv")], out)
    adds_up(out, 2_000)
    assert [int(i) for i in parts(out)[ID].to_pylist()] == list(range(0, 2_000, 3))
    clean = tmp_path / "clean.csv"
    clean.write_text("\n".join([f"{ID},TX_AMOUNT", *lines[::3]]) + "\n")
    score_files(source, [str(clean)], tmp_path / "clean")
    assert np.allclose(parts(out)["score"], parts(tmp_path / "clean")["score"], rtol=1e-6)


# ---------------------------------------------------------------- files of every kind


def test_unreadable_files_count_as_one_reject_each_and_stop_nobody(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    whole = Path(write(tmp_path / "b.parquet", table.slice(0, 100)))
    (tmp_path / "a.parquet").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "c.csv").write_bytes(b"")
    (tmp_path / "d.parquet").write_text("not Parquet at all")
    write(tmp_path / "e.parquet", table.slice(100, 50))
    score_files(source, [str(tmp_path)], out)
    summary = adds_up(out, 150 + 3)
    assert (summary["files"], summary["scored"]) == (5, 150)
    assert summary["rejected_by_column"] == {"(unreadable)": 3}
    assert [Path(row["path"]).name for row in rejects(out)] == ["a.parquet", "c.csv", "d.parquet"]
    assert all(row["row"] is None for row in rejects(out))


def damage(path: Path, group: int) -> None:
    place = pq.read_metadata(path).row_group(group).column(4).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)


def test_a_damaged_row_group_rejects_each_of_its_rows_and_no_other(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, row_group_size=400)
    damage(path, 2)
    write(tmp_path / "u.parquet", table.drop_columns([ID]).slice(0, 10))
    summary = score_files(source, [str(path), str(tmp_path / "u.parquet")], out)
    assert adds_up(out, 1_510) == summary
    assert (summary["scored"], summary["rejected"]) == (1_110, 400)
    assert summary["rejected_by_column"] == {"(unreadable)": 400}
    assert [row["row"] for row in rejects(out)] == list(range(800, 1_200))
    assert {row["path"] for row in rejects(out)} == {str(path)}
    assert parts(out)["row"].to_pylist() == [*range(800), *range(1_200, 1_510)]


def test_many_rejected_rows_are_written_in_pieces(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "REJECT_ROWS", 300)
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    damage(path, 0)
    score_files(source, [str(path)], out)
    assert adds_up(out, 1_500)["rejected"] == 1_500
    assert [row["row"] for row in rejects(out)] == list(range(1_500))
    assert pq.read_metadata(out / REJECTS).num_row_groups == 5


def test_columns_that_the_model_does_not_read_cannot_cost_a_row(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    wide = table.add_column(4, "comment", pa.array(["x"] * 1_500))
    path = tmp_path / "t.parquet"
    pq.write_table(wide, path)
    damage(path, 0)
    summary = score_files(source, [str(path)], out)
    assert (summary["scored"], summary["ignored_columns"]) == (1_500, ["comment"])


def test_an_empty_line_of_a_file_with_one_column_is_scored(
    source: LoadedModel, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "t.csv").write_text("TX_AMOUNT\n1\n\nabc\n2\n")
    assert score_files(source, [str(tmp_path / "t.csv")], out)["scored"] == 3
    adds_up(out, 4)
    assert [row["row"] for row in rejects(out)] == [2]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_file_with_a_header_alone_has_no_rows(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path, suffix: str
) -> None:
    write(tmp_path / f"a.{suffix}", table.slice(0, 0))
    write(tmp_path / "b.parquet", table.slice(0, 5))
    summary = score_files(source, [str(tmp_path)], out)
    assert summary["scored"] == 5
    adds_up(out, 5 + summary["rejected"])
    assert summary["rejected"] == 0


def test_a_file_without_any_column_of_the_model_is_rejected_row_by_row(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "a.csv").write_text("price,name\n1,a\n2,b\n")
    write(tmp_path / "b.parquet", table.slice(0, 5))
    score_files(source, [str(tmp_path)], out)
    assert adds_up(out, 7)["scored"] == 5
    assert all("none of the model's columns" in row["reason"] for row in rejects(out))


def test_a_column_of_an_impossible_type_rejects_its_rows_by_name(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    nested = pa.table({"TX_AMOUNT": [[1.0], [2.0]], ID: [1, 2]})
    score_files(source, [write(tmp_path / "t.parquet", nested)], out)
    adds_up(out, 2)
    assert {row["column"] for row in rejects(out)} == {"TX_AMOUNT"}


def test_unknown_columns_are_ignored_and_named(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    more = table.slice(0, 5).append_column("surprise", pa.array(["x"] * 5))
    summary = score_files(source, [write(tmp_path / "t.parquet", more)], out)
    assert summary["ignored_columns"] == ["surprise"]
    assert summary["scored"] == 5


def test_missing_columns_are_missing_values(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    few = table.select([ID, "TX_AMOUNT"]).slice(0, 5)
    score_files(source, [write(tmp_path / "t.parquet", few)], out, "all", explain_rows=ALL)
    for row in parts(out).to_pylist():
        unseen = [c for c in row["contributions"] if c["observed"] is None]
        assert len(unseen) == len(row["contributions"]) - 1
        assert all(c["nats"] == 0 for c in unseen)


# ---------------------------------------------------------------- ids


def test_without_the_id_column_rows_count_on_from_file_to_file(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    bare = table.drop_columns([ID])
    write(tmp_path / "a.parquet", bare.slice(0, 10))
    write(tmp_path / "b.csv", bare.slice(10, 10))
    score_files(source, [str(tmp_path)], out)
    adds_up(out, 20)
    assert parts(out)["row"].to_pylist() == list(range(20))


def one_table(folder: Path) -> pa.Table:
    """The parts as those read them who expect one schema."""
    paths = sorted(folder.glob("part-*.parquet"))
    assert len({pq.read_schema(path) for path in paths}) == 1
    return dataset(paths).to_table()


def with_ids(table: pa.Table, ids: pa.Array) -> pa.Table:
    return table.slice(0, len(ids)).set_column(table.column_names.index(ID), ID, ids)


def test_where_a_file_has_no_ids_all_rows_have_their_position_too(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PART_ROWS", 10)
    write(tmp_path / "a.parquet", table.slice(0, 10))
    write(tmp_path / "b.parquet", table.drop_columns([ID]).slice(10, 10))
    write(tmp_path / "c.parquet", table.slice(20, 10))
    score_files(source, [str(tmp_path)], out)
    assert len(adds_up(out, 30)["parts"]) == 3
    scored = one_table(out)
    assert scored.column_names[:2] == [ID, "row"]
    assert scored["row"].to_pylist() == list(range(30))
    assert scored[ID].to_pylist() == [*range(10), *[None] * 10, *range(20, 30)]


def test_duplicate_ids_are_all_scored(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    twice = pa.concat_tables([table.slice(0, 5), table.slice(0, 5)])
    score_files(source, [write(tmp_path / "t.parquet", twice)], out)
    adds_up(out, 10)
    assert parts(out)[ID].to_pylist() == [0, 1, 2, 3, 4] * 2


INT8, INT16, TEXT = pa.array([1, 2], pa.int8()), pa.array([300, 4], pa.int16()), pa.array(["a", ""])


@pytest.mark.parametrize(
    ("ids", "expected", "kind"),
    [
        ([INT8, INT8], [1, 2, 1, 2], pa.int8()),
        ([INT8, INT16], [1, 2, 300, 4], pa.int16()),
        ([INT16.cast(pa.uint64()), INT8.cast(pa.uint8())], [300, 4, 1, 2], pa.uint64()),
        ([INT8, pa.array([1, 2**64 - 1], pa.uint64())], [*"121", f"{2**64 - 1}"],
         pa.string()),
        ([INT8, TEXT], ["1", "2", "a", ""], pa.string()),
        ([TEXT, pa.nulls(2)], ["a", "", None, None], pa.string()),
        ([INT8, pa.nulls(2)], [1, 2, None, None], pa.int8()),
        ([pa.nulls(2)], [None, None], pa.string()),
        ([TEXT.dictionary_encode(), TEXT.cast(pa.large_string())], ["a", "", "a", ""], pa.string()),
        ([INT8, pa.array([1.5, 2.0])], ["1", "2", "1.5", "2"], pa.string()),
        ([pa.array([b"\xff", None])], [b"\xff", None], pa.binary()),
        ([pa.array([[1], None])], [[1], None], pa.list_(pa.int64())),
    ],
)  # fmt: skip
def test_ids_have_one_type_that_changes_none_of_them(
    source: LoadedModel,
    table: pa.Table,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids: list[pa.Array],
    expected: list[Any],
    kind: pa.DataType,
) -> None:
    monkeypatch.setattr(results, "PART_ROWS", 2)
    for number, column in enumerate(ids):
        write(tmp_path / f"{number}.parquet", with_ids(table, column))
    score_files(source, [str(tmp_path)], out)
    assert len(adds_up(out, len(expected))["parts"]) == len(ids)
    assert one_table(out)[ID].to_pylist() == expected
    assert one_table(out)[ID].type.equals(kind) or pa.types.is_list(kind)


def test_text_ids_that_look_like_numbers_stay_apart(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    write(tmp_path / "a.parquet", with_ids(table, pa.array([0, 1])))
    (tmp_path / "b.csv").write_text(f"{ID},TX_AMOUNT\n00000,1\n0,2\n 1,3\nx,4\n")
    score_files(source, [str(tmp_path)], out)
    adds_up(out, 6)
    assert one_table(out)[ID].to_pylist() == ["0", "1", "00000", "0", " 1", "x"]


def test_a_rejected_row_without_an_id_has_none(
    source: LoadedModel, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "t.csv").write_text(f"{ID},TX_AMOUNT\n,abc\n7,1\n")
    score_files(source, [str(tmp_path / "t.csv")], out)
    assert [row[ID] for row in rejects(out)] == [None]


# ---------------------------------------------------------------- the output folder


def test_another_result_is_only_replaced_if_that_is_asked_for(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("TX_AMOUNT\nabc\n1\n")
    score_files(source, [str(bad)], out)
    path = write(tmp_path / "t.parquet", table.slice(0, 5))
    with pytest.raises(DataError, match=r"holds a result of other files.*--restart"):
        score_files(source, [path], out)
    adds_up(out, 2)
    score_files(source, [path], out, run=RESTART)
    assert adds_up(out, 5)["rejected"] == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_run_left_is_no_obstacle(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    path = write(tmp_path / "t.parquet", table.slice(0, 5))
    (out / INCOMPLETE).mkdir(parents=True)
    (out / INCOMPLETE / "part-00000.parquet").write_text("half")
    score_files(source, [path], out)
    adds_up(out, 5)


def test_two_runs_do_not_write_one_folder_at_once(
    source: LoadedModel, transactions: Path, out: Path
) -> None:
    out.mkdir()
    with locked(out), pytest.raises(DataError, match="being written by another run"):
        score_files(source, [str(transactions)], out)
    assert list(out.iterdir()) == []


def test_nothing_beside_the_output_folder_is_written(
    source: LoadedModel, transactions: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a mount point, or in a folder that is not ours."""
    out.mkdir()
    move, touched = Path.replace, []

    def watch(source: Path, target: Path) -> Path:
        touched.extend([source, target])
        return move(source, target)

    monkeypatch.setattr(Path, "replace", watch)
    before = out.stat().st_ino
    score_files(source, [str(transactions)], out)
    assert out.stat().st_ino == before
    assert touched
    assert all(out in path.parents for path in touched)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_the_folder_around_the_output_need_not_be_writable(
    source: LoadedModel, transactions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "theirs" / "scores"
    out.mkdir(parents=True)
    out.parent.chmod(0o555)
    try:
        score_files(source, [str(transactions)], out)
    finally:
        out.parent.chmod(0o755)
    adds_up(out, 1_500)


@pytest.mark.parametrize("what", ["{out}", "{out}/data.parquet", "{out}/*.parquet", "{out}/deep"])
def test_input_in_the_output_folder_is_refused_by_name_and_untouched(
    source: LoadedModel, table: pa.Table, out: Path, what: str
) -> None:
    (out / "deep").mkdir(parents=True)
    for place in (out, out / "deep"):
        write(place / "data.parquet", table.slice(0, 5))
    (out / SUMMARY).write_text("{}")
    before = {path: path.is_dir() or path.read_bytes() for path in out.rglob("*")}
    given = what.format(out=out)
    with pytest.raises(DataError, match=re.escape(f"'{given}' lies in --output '{out}'")):
        score_files(source, [given], out)
    assert {path: path.is_dir() or path.read_bytes() for path in out.rglob("*")} == before


@pytest.mark.parametrize("name", ["data.parquet", "part-1.parquet", "part-00000.parquet.bak"])
def test_a_summary_among_other_files_makes_no_previous_result(
    source: LoadedModel, table: pa.Table, transactions: Path, out: Path, name: str
) -> None:
    out.mkdir()
    write(out / name, table.slice(0, 5))
    (out / SUMMARY).write_text("{}")
    with pytest.raises(DataError, match=f"holds other files, such as '{name}'"):
        score_files(source, [str(transactions)], out)
    with pytest.raises(DataError):  # found from the folder around it
        score_files(source, [str(out.parent)], out)
    assert pq.read_metadata(out / name).num_rows == 5
    assert (out / SUMMARY).read_text() == "{}"


def test_parts_without_a_summary_make_no_previous_result(
    source: LoadedModel, table: pa.Table, transactions: Path, out: Path
) -> None:
    out.mkdir()
    path = write(out / "part-00000.parquet", table.slice(0, 5))
    with pytest.raises(DataError, match=f"files without a {SUMMARY}"):
        score_files(source, [str(transactions)], out)
    assert pq.read_metadata(path).num_rows == 5


def test_a_previous_result_alone_is_no_input_and_stays(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    path = Path(write(tmp_path / "t.parquet", table.slice(0, 5)))
    score_files(source, [str(path)], out)
    path.unlink()
    with pytest.raises(DataError, match="no file to score lies outside --output"):
        score_files(source, [str(tmp_path)], out)
    adds_up(out, 5)


def test_a_folder_with_other_files_is_refused_and_untouched(
    source: LoadedModel, transactions: Path, out: Path
) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        score_files(source, [str(transactions)], out)
    assert (out / "thesis.tex").read_text() == "years of work"
    assert len(list(out.iterdir())) == 1


def test_an_empty_folder_is_used(source: LoadedModel, transactions: Path, out: Path) -> None:
    out.mkdir()
    assert score_files(source, [str(transactions)], out)["scored"] == 1_500


def test_scores_inside_the_input_folder_are_no_input_the_next_time(
    source: LoadedModel, table: pa.Table, tmp_path: Path
) -> None:
    write(tmp_path / "t.parquet", table.slice(0, 5))
    for _ in range(2):
        summary = score_files(source, [str(tmp_path)], tmp_path / "scores")
        assert (summary["files"], summary["rows"], summary["scored"]) == (1, 5, 5)


def test_large_results_are_written_in_several_parts(
    source: LoadedModel,
    table: pa.Table,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert PART_ROWS >= 1 << 18
    monkeypatch.setattr(results, "PART_ROWS", 400)
    paths = [write(tmp_path / f"{i}.parquet", table.slice(200 * i, 200)) for i in range(7)]
    summary = score_files(source, paths, out)
    assert summary["parts"] == [f"part-{i:05d}.parquet" for i in range(4)]
    adds_up(out, 1_400)
    assert parts(out)[ID].to_pylist() == list(range(1_400))


@pytest.mark.parametrize("name", ["score", "row"])
def test_an_id_named_like_an_answer_is_refused(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path, name: str
) -> None:
    manifest = deepcopy(dict(source.bundle.manifest))
    manifest["config"]["data"]["id"] = name
    bundle = replace(source.bundle, manifest=manifest)
    few = table.slice(0, 5)
    renamed = few.rename_columns([name if c == ID else c for c in few.column_names])
    paths = [write(tmp_path / "a.parquet", renamed), write(tmp_path / "b.parquet", few)]
    with pytest.raises(DataError, match=f"'{name}'"):
        score_files(LoadedModel(bundle), paths, out)
    assert not out.exists()


# ---------------------------------------------------------------- the command


def test_the_command_scores_with_the_champion(
    champion: World, transactions: Path, out: Path, command: Command
) -> None:
    answer = command("score", "--model", "models:/fraud@champion", "--input", transactions,
                     "--output", out)  # fmt: skip
    assert answer.code == 0
    assert answer.json == adds_up(out, 1_500)
    assert answer.json["model"]["version"] == "1"
    assert "1,500 rows: 1,500 scored" in answer.err


def test_several_inputs_may_follow_one_option_or_several(
    champion: World, table: pa.Table, tmp_path: Path, out: Path, command: Command
) -> None:
    a, b, c = (write(tmp_path / f"{n}.parquet", table.slice(0, 5)) for n in "abc")
    model = ["--model", champion.folder / champion.trained.folder]
    assert command("score", *model, "--input", a, "--output", out).code == 1, "not calibrated"
    model[1] = "models:/fraud/1"
    answer = command("score", *model, "--output", out, "--input", a, b, "--input", c)
    assert (answer.code, answer.json["files"], answer.json["rows"]) == (0, 3, 15)


def test_too_many_rejects_exit_1_after_all_is_written(
    champion: World, tmp_path: Path, out: Path, command: Command
) -> None:
    (tmp_path / "t.csv").write_text("TX_AMOUNT\nabc\nabd\n1\n")
    base = ("score", "--model", "models:/fraud/1", "--input", tmp_path / "t.csv", "--output", out)
    for most, code in ((0, 1), (1, 1), (2, 0)):
        answer = command(*base, "--max-rejects", most)
        assert answer.code == code
        assert answer.json == adds_up(out, 3)
        assert ("--max-rejects" in answer.err) == bool(code)
    assert command(*base).code == 0


def test_nothing_scored_exits_1_with_the_reasons_written(
    champion: World, tmp_path: Path, out: Path, command: Command
) -> None:
    (tmp_path / "t.csv").write_text("TX_AMOUNT\nabc\n")
    answer = command("score", "--model", "models:/fraud/1", "--input", tmp_path / "t.csv",
                     "--output", out)  # fmt: skip
    assert answer.code == 1
    assert answer.json == adds_up(out, 1)
    assert "nothing could be scored" in answer.err


@pytest.mark.parametrize("explain", ["0", "-1", "some", "1.5", "", "²"])
def test_explain_takes_a_number_or_all(
    champion: World, transactions: Path, out: Path, command: Command, explain: str
) -> None:
    answer = command("score", "--model", "models:/fraud/1", "--input", transactions,
                     "--output", out, "--explain", explain)  # fmt: skip
    assert answer.code == 2
    assert "--explain" in answer.err
    assert not out.exists()


def test_no_such_input_exits_1_and_writes_nothing(
    champion: World, out: Path, command: Command
) -> None:
    answer = command("score", "--model", "models:/fraud/1", "--input", "absent/*.csv",
                     "--output", out)  # fmt: skip
    assert (answer.code, answer.out) == (1, "")
    assert "absent/*.csv" in answer.err
    assert not out.exists()


# ---------------------------------------------------------------- memory


MEASURE = """
import resource, sys
from anomaly_vae.artifacts.bundle import load_bundle
from pipelines.registry.model_uri import LoadedModel
from pipelines.batch.tables import score_files
score_files(LoadedModel(load_bundle(sys.argv[1])), sys.argv[3:], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_ten_times_the_rows_take_no_more_memory(
    world: World, table: pa.Table, tmp_path: Path, suffix: str
) -> None:
    """Peak memory in MiB for 0.2 and for 2 million rows."""
    bundle = world.calibrated.bundle.save(tmp_path / "bundle")
    numbers = [name for name in table.column_names if "WINDOW" in name or "AMOUNT" in name]
    million = pa.concat_tables([table.select([ID, *numbers])] * 134).combine_chunks()
    peaks = []
    for count in (1, 10):
        path = tmp_path / f"{count}.{suffix}"
        if suffix == "parquet":
            with pq.ParquetWriter(path, million.schema) as writer:
                for _ in range(count):
                    writer.write_table(million)
        else:
            with pyarrow.csv.CSVWriter(path, million.schema) as writer:
                for _ in range(count):
                    writer.write_table(million)
        code = [
            sys.executable,
            "-c",
            MEASURE,
            str(bundle),
            str(tmp_path / f"out{count}"),
            str(path),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 60, peaks


def test_a_path_in_a_circle_of_links_is_refused_as_a_path(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to("circle")
    assert exclude_output([str(circle)], [circle], tmp_path / "out", Path) == [circle]


# ---------------------------------------------------------------- false discovery rate


def test_flags_by_false_discovery_rate_are_those_of_the_whole_input(
    source: LoadedModel, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all files, parts and row groups; nothing else changes."""
    monkeypatch.setattr(results, "PART_ROWS", 600)
    paths = [write(tmp_path / f"{i}.parquet", table.slice(i * 500, 500)) for i in range(3)]
    score_files(source, paths, tmp_path / "plain", explain=2, explain_rows=ALL)
    plain = parts(tmp_path / "plain")
    for q in (0.02, 0.3, 0.9):
        out = tmp_path / f"{q}"
        score_files(source, paths, out, explain=2, fdr=q, explain_rows=ALL)
        summary, found = adds_up(out, 1_500), parts(out)
        assert found.drop(["is_anomaly"]).equals(plain.drop(["is_anomaly"]))
        truth = false_discovery_control(plain["p_value"].to_numpy()) <= q
        assert np.array_equal(found["is_anomaly"], truth)
        assert (summary["fdr"], summary["flagged"]) == (q, truth.sum())
        threshold = math.inf if summary["threshold"] is None else summary["threshold"]
        assert np.array_equal(plain["score"].to_numpy() > threshold, truth)
        assert np.array_equal(plain["p_value"].to_numpy() <= summary["alpha"], truth)


def test_without_it_the_summary_says_so(source: LoadedModel, transactions: Path, out: Path) -> None:
    assert score_files(source, [str(transactions)], out)["fdr"] is None


def test_nothing_scored_is_nothing_flagged(source: LoadedModel, tmp_path: Path, out: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    summary = score_files(source, [str(tmp_path / "broken.parquet")], out, fdr=0.1)
    assert (summary["scored"], summary["flagged"], summary["threshold"]) == (0, 0, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--fdr", "1.5"], "must lie between 0 and 1"), (["--fdr", "0.1", "--heatmaps"], "too late")],
)
def test_a_rate_that_cannot_be_is_a_usage_error(
    command: Command, tmp_path: Path, options: list[str], message: str
) -> None:
    answer = command("score", "--model", "x", "--input", "y", "--output", tmp_path / "z", *options)
    assert answer.code == 2
    assert message in " ".join(answer.err.split())


# ---------------------------------------------------------------- whether the promise holds


def test_the_summary_says_how_the_promise_stands(
    source: LoadedModel,
    table: pa.Table,
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    far = table.set_column(
        table.schema.get_field_index("TX_AMOUNT"), "TX_AMOUNT", pa.array([1e6] * len(table))
    )
    summary = score_files(source, [write(tmp_path / "far.parquet", far)], out)
    found = summary["guarantee"]
    assert (found["status"], found["rows"], found["flagged"]) == ("broken", 1_500, 1_500)
    assert found["flagged_ratio"] == 1
    assert found["flagged_limit"] < 1_500
    assert found["martingale_log10"] > 100
    columns = {column["column"]: column for column in found["columns"]}
    assert columns["TX_AMOUNT"]["psi"] > 1
    assert columns["TX_CHANNEL"]["unseen"] == 0
    told = capsys.readouterr().err
    assert "guarantee broken: 1,500 of 1,500 rows are flagged" in told
    assert "TX_AMOUNT" in told


def test_the_calibration_rows_themselves_raise_no_doubt(
    world: World, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    rows = table.take(pa.array(world.trained.data.calibration_rows))
    summary = score_files(world.source, [write(tmp_path / "c.parquet", rows)], out)
    assert summary["guarantee"]["status"] == "holding"
    for column in summary["guarantee"]["columns"]:
        assert (column["psi"] or 0) == 0
        assert column["missing"] == column["reference_missing"]


def test_a_batch_of_one_night_is_compared_with_nights(out: Path, tmp_path: Path) -> None:
    source = LoadedModel(timed_bundle())

    def status(day: pd.DataFrame, name: str) -> str:
        files = [write(tmp_path / f"{name}.parquet", pa.Table.from_pandas(day))]
        found: str = score_files(source, files, out.with_name(name))["guarantee"]["status"]
        return found

    night = timed_rows(1, 600, 1, hours=(0, 8))
    assert status(night, "night") == "holding"
    assert status(night.assign(at=None), "untimed") != "holding"
    assert status(night.assign(amount=2 * night["amount"]), "shifted") == "broken"
    at = pd.to_datetime(night["at"])
    assert status(night.assign(at=at), "timestamps") == "holding"


def test_nothing_scored_is_nothing_said_against_it(
    source: LoadedModel, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    summary = score_files(source, [str(tmp_path / "bad.parquet")], out)
    assert (summary["guarantee"]["status"], summary["guarantee"]["rows"]) == ("unknown", 0)


# ---------------------------------------------------------------- forms of text, pipes and names


def as_text(table: pa.Table, separator: str, decimal: str, encoding: str) -> bytes:
    """The table as another program exports it."""
    rows = [table.column_names, *zip(*(c.to_pylist() for c in table.columns), strict=True)]
    lines = [separator.join(quoted(cell, decimal) for cell in row) for row in rows]
    return ("\r\n".join(lines) + "\r\n").encode(encoding)


def quoted(cell: Any, decimal: str) -> str:
    text = str(cell).replace(".", decimal) if isinstance(cell, float) else str(cell)
    return "" if cell is None else f'"{text}"'


@pytest.fixture
def few(table: pa.Table) -> pa.Table:
    return table.slice(0, 100).append_column("PLACE", pa.array(["Köln"] * 100))


@pytest.mark.parametrize(
    ("separator", "decimal", "encoding", "options"),
    [
        (",", ",", "utf-8", {}),
        (";", ",", "utf-16", {}),
        ("\t", ".", "cp1252", {"encoding": "cp1252"}),
        ("~", ",", "utf-8-sig", {"separator": "~", "decimal": ","}),
    ],
)
def test_exports_of_other_programs_get_the_scores_of_parquet(
    source: LoadedModel, few: pa.Table, tmp_path: Path, out: Path,
    separator: str, decimal: str, encoding: str, options: dict[str, str],
) -> None:  # fmt: skip
    score_files(source, [write(tmp_path / "t.parquet", few)], tmp_path / "expected")
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress(as_text(few, separator, decimal, encoding)))
    summary = score_files(source, [str(path)], out, csv=options)
    assert summary["scored"] == 100
    assert parts(out)["score"].equals(parts(tmp_path / "expected")["score"])
    said = [note for note in summary.get("notes", ()) if "TX_AMOUNT" in note]
    assert len(said) == (decimal == ",")


def test_json_lines_get_the_scores_of_parquet_and_bad_lines_are_rejected(
    source: LoadedModel, few: pa.Table, tmp_path: Path, out: Path
) -> None:
    score_files(source, [write(tmp_path / "t.parquet", few)], tmp_path / "expected")
    lines = [json.dumps(row, default=str) for row in few.to_pylist()]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([*lines[:50], "[1]", *lines[50:]]))
    score_files(source, [str(path)], out)
    assert parts(out)["score"].equals(parts(tmp_path / "expected")["score"])
    (reject,) = rejects(out)
    assert (reject["row"], reject["reason"][:8]) == (50, "line 51:")


def test_a_pipe_is_scored_and_named(
    source: LoadedModel, few: pa.Table, tmp_path: Path, out: Path
) -> None:
    content = as_text(few, ";", ",", "utf-8") + b"1;2\r\n"
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    summary = score_files(source, [str(tmp_path / "pipe")], out)
    writer.join()
    assert (summary["scored"], summary["rejected"]) == (100, 1)
    assert rejects(out)[0]["path"] == str(tmp_path / "pipe")


def test_a_file_whose_name_is_not_utf8_is_scored_and_its_rejects_name_it(
    source: LoadedModel, few: pa.Table, tmp_path: Path, out: Path
) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.csv"
    with open(path, "wb") as file:  # noqa: PTH123  # a name in bytes
        file.write(as_text(few, ",", ".", "utf-8") + b"1,2\r\n")
    summary = score_files(source, [os.fsdecode(path)], out)
    assert (summary["scored"], summary["rejected"]) == (100, 1)
    assert rejects(out)[0]["path"].endswith("caf\\xe9.csv")


def test_a_cell_that_may_be_of_either_kind_is_rejected(
    source: LoadedModel, few: pa.Table, tmp_path: Path, out: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text('TX_AMOUNT\n"1,234"\n12\n')
    assert score_files(source, [str(path)], out)["rejected"] == 1
    assert "expected a number, got '1,234'" in rejects(out)[0]["reason"]
    assert score_files(source, [str(path)], out, csv={"decimal": ","}, run=RESTART)["scored"] == 2
