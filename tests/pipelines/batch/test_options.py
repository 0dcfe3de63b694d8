"""Results with other rows, columns, formats and folders, and with the highest rows of each day."""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pyarrow.dataset import dataset

from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.scoring.wording import Wording
from pipelines.batch import Format
from pipelines.batch.options import OutputOptions
from pipelines.batch.result import folder as results
from pipelines.batch.result import layout
from pipelines.batch.result.folder import REJECTS, RUN, SUMMARY
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
from tests.support.flows import Command, World

ID, CARD, TIME, AMOUNT = "TRANSACTION_ID", "CUSTOMER_ID", "TX_DATETIME", "TX_AMOUNT"
PART = 300
EVERYTHING = OutputOptions(
    Format.CSV, only_flagged=True, columns=(AMOUNT,), partition_by="CITY", top=3, per_day=True,
    by=CARD,
)  # fmt: skip


@pytest.fixture
def source(world: World) -> LoadedModel:
    return LoadedModel(world.source.bundle)


@pytest.fixture(scope="module")
def table(transactions: Path) -> pa.Table:
    """Rows of which every 50th has an amount that is far too large."""
    found = pq.read_table(transactions)
    amount = found[AMOUNT].to_numpy() * np.where(np.arange(len(found)) % 50, 1, 50)
    found = found.set_column(found.schema.get_field_index(AMOUNT), AMOUNT, pa.array(amount))
    city = [None if i % 11 == 0 else ("São Paulo/SP", "=Bonn")[i % 2] for i in range(len(found))]
    return found.append_column("CITY", pa.array(city))


@pytest.fixture(scope="module")
def data(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("options") / "t.parquet"
    pq.write_table(table, path, row_group_size=100)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PART_ROWS", PART)


def scores(source: LoadedModel, data: Path, out: Path, **options: Any) -> pa.Table:
    """The parts of a result without other options."""
    summary = score_files(source, [str(data)], out.with_name("plain"), **options)
    folder = out.with_name("plain")
    return pa.concat_tables(pq.read_table(folder / name) for name in summary["parts"])


def content(folder: Path) -> dict[str, Any]:
    """What a result says, apart from what was measured."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and RUN not in path.parts
    }
    summary = json.loads(found.pop(SUMMARY))
    measured = ("seconds", "rows_per_second", "peak_memory_bytes")
    return {**found, SUMMARY: {k: v for k, v in summary.items() if k not in measured}}


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- rows and columns


@pytest.mark.parametrize("fdr", [None, 0.5])
def test_flagged_rows_alone_are_written_and_all_are_counted(
    source: LoadedModel, data: Path, out: Path, fdr: float | None
) -> None:
    plain = scores(source, data, out, explain=2, fdr=fdr)
    only = OutputOptions(only_flagged=True)
    summary = score_files(source, [str(data)], out, 2, fdr=fdr, outputs=only)
    written = pa.concat_tables(pq.read_table(out / name) for name in summary["parts"])
    assert written.equals(plain.filter(plain["is_anomaly"]))
    assert (summary["scored"], summary["flagged"]) == (1_500, len(written))
    assert 0 < len(written) < 1_500
    assert len(summary["parts"]) == 5  # also those without any flag
    again = score_files(source, [str(data)], out, 2, fdr=fdr, outputs=only)
    assert again == summary
    (out / summary["parts"][1]).unlink()  # flagged by the p-values of all rows, not of those left
    before = content(out.with_name("plain"))[SUMMARY]
    score_files(source, [str(data)], out, 2, fdr=fdr, outputs=only)
    assert content(out)[SUMMARY] == before
    parts = [pq.read_table(out / name) for name in summary["parts"]]
    assert pa.concat_tables(parts).equals(written)


def test_columns_of_the_input_are_carried_with_their_types(
    source: LoadedModel, data: Path, table: pa.Table, out: Path
) -> None:
    columns = OutputOptions(columns=(AMOUNT, TIME, "CITY", ID))
    summary = score_files(source, [str(data)], out, outputs=columns)
    written = pa.concat_tables(pq.read_table(out / name) for name in summary["parts"])
    assert written.column_names[:5] == [ID, AMOUNT, TIME, "CITY", "score"]
    for name in (AMOUNT, TIME, "CITY", ID):
        assert written[name].equals(table[name])


def test_a_carried_column_has_one_type_in_files_that_differ(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    first, rest = table.slice(0, 20), table.slice(20, 20)
    pq.write_table(first, tmp_path / "a.parquet")
    pyarrow.csv.write_csv(rest, tmp_path / "b.csv")
    note = pa.array([b"fine"] * 19 + [b"caf\xe9"])
    pq.write_table(rest.append_column("note", note), tmp_path / "c.parquet")
    paths = [str(tmp_path / name) for name in ("a.parquet", "b.csv", "c.parquet")]
    columns = OutputOptions(columns=(AMOUNT, "note"))
    summary = score_files(source, paths, out, outputs=columns)
    assert summary["scored"] == 60
    written = pa.concat_tables(pq.read_table(out / name) for name in summary["parts"])
    amounts = [float(text) for text in written[AMOUNT].to_pylist()]
    assert amounts == pytest.approx([*first[AMOUNT].to_pylist(), *rest[AMOUNT].to_pylist() * 2])
    assert written["note"].to_pylist() == [None] * 40 + ["fine"] * 19 + ["caf\ufffd"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ("tx_amount",)}, "--columns-out: no column 'tx_amount'.*mean 'TX_AMOUNT'"),
        ({"partition_by": "CITI"}, "--partition-by: no column 'CITI' in the input.*mean 'CITY'"),
        ({"top": 1, "by": "CUSTOMER"}, "--by: no column 'CUSTOMER' in the input"),
        ({"columns": ("score",)}, "--columns-out: column 'score' has the name of a result column"),
        ({"top": 1, "columns": ("day",)}, "--columns-out: column 'day' has the name of a result"),
        ({"columns": ("lists",)}, "column 'lists' of .* holds lists or records"),
        ({"partition_by": "day"}, "--partition-by day: it has more than 3 values, such as"),
    ],
)
def test_columns_that_cannot_be_written_are_refused_in_one_line(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path,
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(layout, "MAX_FOLDERS", 3)
    rows = table.slice(0, 20)
    odd = {"score": [1.0] * 20, "day": list(range(20)), "lists": [[1]] * 20}
    for name, column in odd.items():
        rows = rows.append_column(name, pa.array(column))
    pq.write_table(rows, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message) as refused:
        score_files(source, [str(tmp_path / "t.parquet")], out, outputs=OutputOptions(**options))
    assert "\n" not in str(refused.value)
    assert not list(out.glob("[!.]*"))


# ---------------------------------------------------------------- folders and formats


def test_folders_are_read_as_a_column_by_others(
    source: LoadedModel, data: Path, table: pa.Table, out: Path
) -> None:
    plain = scores(source, data, out)
    summary = score_files(source, [str(data)], out, outputs=OutputOptions(partition_by="CITY"))
    folders = {"CITY=S%C3%A3o%20Paulo%2FSP", "CITY=%3DBonn", "CITY=__HIVE_DEFAULT_PARTITION__"}
    assert {Path(name).parent.name for name in summary["parts"]} == folders
    read = dataset([out / name for name in summary["parts"]], partitioning="hive",
                   partition_base_dir=str(out)).to_table().sort_by(ID)  # fmt: skip
    assert read["CITY"].to_pylist() == table.sort_by(ID)["CITY"].to_pylist()
    assert read.drop_columns(["CITY"]).equals(plain.sort_by(ID))
    assert score_files(source, [str(data)], out, outputs=OutputOptions(partition_by="CITY"))
    score_files(source, [str(data)], out, run=RunOptions(restart=True))
    assert not list(out.glob("CITY=*"))


def test_csv_has_the_rows_of_parquet(source: LoadedModel, data: Path, out: Path) -> None:
    plain = scores(source, data, out, explain=2).to_pylist()
    columns = OutputOptions(Format.CSV, columns=("CITY",))
    summary = score_files(source, [str(data)], out, 2, outputs=columns)
    assert [Path(name).suffix for name in summary["parts"]] == [".csv"] * 5
    rows = [row for name in summary["parts"] for row in cells(out / name)]
    assert [int(row[ID]) for row in rows] == [row[ID] for row in plain]
    for name in ("score", "p_value"):
        assert [float(row[name]) for row in rows] == [row[name] for row in plain]
    assert [row["is_anomaly"] == "true" for row in rows] == [row["is_anomaly"] for row in plain]
    told = [json.loads(row["contributions"]) if row["contributions"] else None for row in rows]
    assert told == [row["contributions"] for row in plain]
    assert {row["CITY"] for row in rows} == {"", "São Paulo/SP", "'=Bonn"}
    assert cells(out / "rejects.csv") == []


# ---------------------------------------------------------------- the first rows


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "mixed"])
@pytest.mark.parametrize("limit", [1, 250, 900, 5_000])
def test_the_first_rows_alone_are_scored(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path, form: str, limit: int
) -> None:
    kinds = ["parquet", "csv", "parquet"] if form == "mixed" else [form] * 3
    paths = [tmp_path / f"{i}.{kind}" for i, kind in enumerate(kinds)]
    for i, path in enumerate(paths):
        part = table.slice(i * 400, 400)
        if path.suffix == ".parquet":
            pq.write_table(part, path, row_group_size=90)
        elif path.suffix == ".csv":
            pyarrow.csv.write_csv(part, path)
        else:
            path.write_text("\n".join(json.dumps(row, default=str) for row in part.to_pylist()))
    first, names = OutputOptions(limit=limit), list(map(str, paths))
    summary = score_files(source, names, out, outputs=first)
    written = pa.concat_tables(pq.read_table(out / name) for name in summary["parts"])
    ids = list(map(int, written[ID].to_pylist()))
    assert ids == table[ID].to_pylist()[: min(limit, 1_200)]
    assert (summary["rows"], summary["limit"]) == (len(ids), limit)
    assert summary["limited"] is (limit < 1_200)
    other = out.with_name("other")
    score_files(source, names, other, outputs=first, run=RunOptions(workers=1))
    assert content(other) == content(out)


def test_rejected_rows_count_among_the_first(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    amounts = ["x" if i % 3 == 0 else str(a) for i, a in enumerate(table[AMOUNT].to_pylist())]
    index = table.schema.get_field_index(AMOUNT)
    pyarrow.csv.write_csv(table.set_column(index, AMOUNT, pa.array(amounts)), tmp_path / "t.csv")
    limited = OutputOptions(limit=100)
    summary = score_files(source, [str(tmp_path / "t.csv")], out, outputs=limited)
    assert (summary["rows"], summary["rejected"], summary["limited"]) == (100, 34, True)


# ---------------------------------------------------------------- the highest rows


def ranked(table: pa.Table, n: int, zone: dt.tzinfo | None, by: str | None) -> list[Any]:
    """The ids of the highest rows by day and rank, chosen one after the other."""
    order = sorted(table.to_pylist(), key=lambda row: (-row["score"], row[ID]))
    days: dict[Any, list[Any]] = {}
    seen = set()
    for row in order:
        day = row[TIME].replace(tzinfo=dt.UTC).astimezone(zone).date() if zone else None
        if (by and (day, row[by]) in seen) or len(days.setdefault(day, [])) == n:
            continue
        seen.add((day, by and row[by]))
        days[day].append(row[ID])
    return [(day, rank, id_) for day in sorted(days, key=str)
            for rank, id_ in enumerate(days[day], 1)]  # fmt: skip


def in_zone(source: LoadedModel, zone: str | None) -> LoadedModel:
    """The model as if trained with this data.timezone."""
    config = source.bundle.manifest["config"]
    data = {**config["data"], **({"timezone": zone} if zone else {})}
    manifest = {**source.bundle.manifest, "config": {**config, "data": data}}
    return replace(source, bundle=replace(source.bundle, manifest=manifest))


@pytest.mark.parametrize("zone", [None, "Asia/Kolkata"])
@pytest.mark.parametrize("by", [CARD, None])
def test_the_highest_rows_of_each_day_are_ranked(
    source: LoadedModel, data: Path, table: pa.Table, out: Path, zone: str | None, by: str | None
) -> None:
    plain = scores(source, data, out)
    full = plain.append_column(TIME, table[TIME]).append_column(CARD, table[CARD])
    chosen = OutputOptions(top=3, per_day=True, by=by, columns=(AMOUNT,))
    summary = score_files(in_zone(source, zone), [str(data)], out, outputs=chosen)
    top = pq.read_table(out / "top.parquet")
    carried = [name for name in (TIME, by, AMOUNT) if name]
    assert top.column_names == [
        "rank", "day", ID, *carried, "score", "p_value", "is_anomaly", "reasons"
    ]  # fmt: skip
    found = list(zip(*(top[name].to_pylist() for name in ("day", "rank", ID)), strict=True))
    assert found == ranked(full, 3, ZoneInfo(zone or "UTC"), by)
    assert summary["top"] == {
        "n": 3, "per": "day", "timezone": zone or "UTC", "days": len(set(top["day"].to_pylist())),
        "rows_without_time": 0, "by": by, "rows": len(top), "files": ["top.parquet"],
    }  # fmt: skip
    amounts = dict(zip(table[ID].to_pylist(), table[AMOUNT].to_pylist(), strict=True))
    assert top[AMOUNT].to_pylist() == [amounts[id_] for id_ in top[ID].to_pylist()]


def test_reasons_are_those_of_the_rows_themselves(
    source: LoadedModel, data: Path, table: pa.Table, out: Path
) -> None:
    """Whether they are flagged or not, and although the parts are not explained."""
    score_files(source, [str(data)], out, outputs=OutputOptions(top=40, only_flagged=True))
    top = pq.read_table(out / "top.parquet")
    assert len(set(top["is_anomaly"].to_pylist())) == 1 or len(top) == 40
    rows = [table[ID].to_pylist().index(id_) for id_ in top[ID].to_pylist()]
    batch = source.bundle.scorer.schema.from_arrow(table.take(rows))
    _, explanations = source.bundle.detector.detect_and_explain(batch, None)
    wording = Wording.of(source.bundle.scorer.encoding)
    assert top["reasons"].to_pylist() == ["; ".join(wording.reasons(e, 3)) for e in explanations]


def test_rows_without_a_time_are_a_day_of_their_own(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path,
    capfd: pytest.CaptureFixture[str], world: World,
) -> None:  # fmt: skip
    missing = pa.array(np.arange(200) % 4 == 0)
    times = pa.array(table[TIME].to_pylist()[:200], table.schema.field(TIME).type, mask=missing)
    rows = table.slice(0, 200)
    index = rows.schema.get_field_index(TIME)
    pq.write_table(rows.set_column(index, TIME, times), tmp_path / "t.parquet")
    chosen = OutputOptions(top=2, per_day=True)
    summary = score_files(source, [str(tmp_path / "t.parquet")], out, outputs=chosen)
    top = pq.read_table(out / "top.parquet").to_pylist()
    assert [row["rank"] for row in top if row["day"] is None] == [1, 2]
    assert top[-1]["day"] is None
    assert summary["top"]["rows_without_time"] == 2
    told = " ".join(capfd.readouterr().err.split())
    assert "2 of the highest rows have no time that can be read" in told


def test_a_model_without_times_has_no_days(
    source: LoadedModel, data: Path, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    config = source.bundle.manifest["config"]
    manifest = {
        **source.bundle.manifest,
        "config": {**config, "data": {**config["data"], "time": None}},
    }
    timeless = replace(source, bundle=replace(source.bundle, manifest=manifest))
    chosen = OutputOptions(top=2, per_day=True)
    with pytest.raises(ConfigError, match=r"the model was trained without data\.time"):
        score_files(timeless, [str(data)], out, outputs=chosen)
    score_files(timeless, [str(data)], out, outputs=replace(chosen, per_day=False))
    assert TIME not in pq.read_schema(out / "top.parquet").names
    pq.write_table(table.drop_columns([TIME]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=f"--per day: no column '{TIME}' in the input"):
        score_files(source, [str(tmp_path / "t.parquet")], out, outputs=chosen)


# ---------------------------------------------------------------- together


@pytest.mark.parametrize("fdr", [None, 0.5])
def test_everything_together_is_the_same_with_any_workers_and_when_continued(
    source: LoadedModel, data: Path, out: Path, fdr: float | None
) -> None:
    options: dict[str, Any] = {"explain": 1, "fdr": fdr, "outputs": EVERYTHING}
    whole = out.with_name("whole")
    summary = score_files(source, [str(data)], whole, **options, run=RunOptions(workers=3))
    plain = scores(source, data, out, fdr=fdr)
    assert summary["flagged"] == plain["is_anomaly"].to_numpy().sum()
    assert summary["flagged"] == sum(len(cells(whole / name)) for name in summary["parts"])
    top = cells(whole / "top.csv")
    assert {row[ID] for row in top if row["is_anomaly"] == "true"} <= {
        str(row[ID]) for row in plain.filter(plain["is_anomaly"]).to_pylist()
    }
    assert len(top) == summary["top"]["rows"]
    score_files(source, [str(data)], out, **options, run=RunOptions(workers=1))
    for name in (SUMMARY, "top.csv", REJECTS, summary["parts"][0], f"{RUN}/00002.top.parquet"):
        os.unlink(out / name)  # noqa: PTH108
    assert content_after(source, data, out, options) == content(whole)


def content_after(source: LoadedModel, data: Path, out: Path, options: dict[str, Any]) -> Any:
    """What the result says after the same command."""
    score_files(source, [str(data)], out, **options)
    return content(out)


def test_a_missing_ranking_is_written_again_and_nothing_is_scored(
    source: LoadedModel, data: Path, out: Path
) -> None:
    chosen = OutputOptions(top=5)
    score_files(source, [str(data)], out, outputs=chosen)
    before, part = content(out), (out / "part-00000.parquet").stat().st_mtime_ns
    (out / "top.parquet").unlink()
    score_files(source, [str(data)], out, outputs=chosen)
    assert content(out) == before
    assert (out / "part-00000.parquet").stat().st_mtime_ns == part


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"only_flagged": True}, "without --only-flagged, and not with --only-flagged"),
        ({"top": 5}, "without --top, and not with --top 5"),
        ({"columns": ("CITY",)}, r'without --columns-out, and not with --columns-out \["CITY"\]'),
        ({"partition_by": "CITY"}, "without --partition-by, and not with --partition-by CITY"),
        ({"limit": 7}, "without --limit, and not with --limit 7"),
        ({"format": Format.CSV}, "without --format, and not with --format csv"),
    ],
)
def test_other_options_are_another_result(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path,
    options: dict[str, Any], difference: str,
) -> None:  # fmt: skip
    pq.write_table(table.slice(0, 20), tmp_path / "t.parquet")
    paths = [str(tmp_path / "t.parquet")]
    score_files(source, paths, out)
    with pytest.raises(DataError, match=difference):
        score_files(source, paths, out, outputs=OutputOptions(**options))


def test_an_input_of_which_nothing_is_scored_has_no_highest_rows(
    source: LoadedModel, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "t.csv").write_text(f"{TIME},{AMOUNT}\n2024-01-01,x\n")
    summary = score_files(
        source, [str(tmp_path / "t.csv")], out,
        outputs=OutputOptions(Format.CSV, top=3, per_day=True, only_flagged=True),
    )  # fmt: skip
    assert (summary["scored"], summary["parts"], summary["top"]["rows"]) == (0, [], 0)
    assert cells(out / "top.csv") == []
    assert len(cells(out / "rejects.csv")) == 1


def test_the_command_takes_the_options(
    champion: World, data: Path, out: Path, command: Command
) -> None:
    base = ("score", "--model", "models:/fraud@champion", "--input", data, "--output", out)
    answer = command(
        *base, "--top", 2, "--per", "day", "--by", CARD, "--columns-out", f"{AMOUNT},CITY",
        "--format", "csv", "--only-flagged", "--limit", 500, "--partition-by", "CITY",
    )  # fmt: skip
    assert (answer.code, answer.json["rows"], answer.json["limited"]) == (0, 500, True)
    assert answer.json["top"]["files"] == ["top.parquet", "top.csv"]
    for wrong in (
        ["--per", "day"], ["--by", CARD], ["--top", 0], ["--columns-out", "a,,b"],
        ["--ray-address", "h:6379"], ["--engine", "ray", "--ray-address", ""],
    ):  # fmt: skip
        assert command(*base, *wrong).code == 2


def test_rows_that_are_all_to_be_explained_need_no_number(
    champion: World, data: Path, out: Path, command: Command
) -> None:
    base = ("score", "--model", "models:/fraud@champion", "--input", data, "--output", out)
    assert command(*base, "--explain-rows", "all", "--limit", 20).code == 0
    explained = pq.read_table(out / "part-00000.parquet")["contributions"]
    assert {len(row) for row in explained.to_pylist()} <= {1, 2, 3, 4, 5}
    assert command(*base, "--explain-rows", "all", "--explain", 5, "--limit", 20).code == 0
