"""Runs that are killed, continued, repeated and refused; the processes and signals are real."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.errors import DataError
from anomaly_vae.lifecycle.registry import Registry
from pipelines.batch import ExplainedRows
from pipelines.batch.common import HeatmapOptions
from pipelines.batch.engines import local
from pipelines.batch.images import score_images
from pipelines.batch.options import OutputOptions
from pipelines.batch.result import folder as results
from pipelines.batch.result.folder import INCOMPLETE, PLAN, REJECTS, RUN, SUMMARY
from pipelines.batch.run import RunOptions, open_recorded
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
from tests.support.batch_results import MEASURED, content
from tests.support.flows import Command, World
from tests.support.image_folders import write_formats
from tests.support.killed_runs import PART, PART_FILES, kill_after, kill_at_random, start
from tests.support.object_stores import BUCKET, download, s3_server, upload
from tests.support.scans import blobs, patched

LAID_OUT = OutputOptions(
    "csv", only_flagged=True, columns=("TX_AMOUNT",), partition_by="TX_DURING_NIGHT",
    limit=2_500, top=4, per_day=True, by="CUSTOMER_ID",
)  # fmt: skip
"""Options that change every file of a result."""


@pytest.fixture
def source(world: World) -> LoadedModel:
    return world.source


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores"


@pytest.fixture(scope="module")
def table(transactions: Path) -> pa.Table:
    return pq.read_table(transactions)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PART_ROWS", PART)


@pytest.fixture(scope="module")
def folder_of_bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.calibrated.bundle.save(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def mixed(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet in small row groups, CSV with bad cells, JSON, gzip, and a torn file."""
    folder = tmp_path_factory.mktemp("mixed")
    pq.write_table(table, folder / "a.parquet", row_group_size=PART)
    write_csv(folder / "b.csv", table.slice(0, 700))
    with gzip.open(folder / "c.csv.gz", "wb") as file:
        file.write((folder / "b.csv").read_bytes())
    rows = table.slice(0, 300).to_pylist()
    (folder / "d.jsonl").write_text("\n".join(json.dumps(row, default=str) for row in rows))
    (folder / "e.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-9])
    pq.write_table(table.slice(0, 450), folder / "f.parquet")
    return folder


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a CSV file in which every 50th amount is no number."""
    amounts = [f"x{i}" if i % 50 == 7 else str(a) for i, a in enumerate(table["TX_AMOUNT"])]
    index = table.schema.get_field_index("TX_AMOUNT")
    pyarrow.csv.write_csv(table.set_column(index, "TX_AMOUNT", pa.array(amounts)), path)


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each part that has a record."""
    records = [json.loads(p.read_bytes()) for p in (folder / RUN).glob("[0-9]*.json")]
    names = [name for record in records for name in (*record["parts"], record["held"]) if name]
    found = {name: (folder / name).stat() for name in names if (folder / name).exists()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != RUN}


# ---------------------------------------------------------------- killed and continued


@pytest.mark.parametrize("options", [{"explain": 2}, {"outputs": LAID_OUT}], ids=["", "laid out"])
def test_a_killed_run_is_continued_and_the_result_is_that_of_a_whole_one(
    source: LoadedModel,
    folder_of_bundle: Path,
    mixed: Path,
    out: Path,
    small_parts: None,
    options: dict[str, Any],
) -> None:
    source = LoadedModel(source.bundle)
    score_files(source, [str(mixed)], out.with_name("whole"), **options)
    kill_after(start("tabular", folder_of_bundle, out, [mixed], **options), out, records=4)
    assert SUMMARY not in visible(out)
    assert REJECTS not in visible(out)
    before = finished(out)
    assert len(before) >= 2
    for path in out.glob("**/part-*.parquet"):
        pq.read_table(path)  # none is half-written
    score_files(source, [str(mixed)], out, **options)
    assert {name: finished(out)[name] for name in before} == before
    assert content(out) == content(out.with_name("whole"))
    assert not list((out / RUN).glob("unfinished*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fdr": 0.2, "explain": 1},
        {"explain": 3, "explain_rows": ExplainedRows.ALL},
        {"outputs": LAID_OUT, "explain": 1},
        {"outputs": LAID_OUT, "fdr": 0.9},
    ],
)
def test_runs_killed_at_random_moments_lose_and_double_nothing(
    source: LoadedModel,
    folder_of_bundle: Path,
    mixed: Path,
    out: Path,
    small_parts: None,
    options: dict[str, Any],
) -> None:
    """Each is killed several times, and continued by another number of workers."""
    chance, whole = random.Random(0), out.with_name("whole")
    score_files(LoadedModel(source.bundle), [str(mixed)], whole, **options)
    plain = {k: str(v) if isinstance(v, ExplainedRows) else v for k, v in options.items()}
    for _ in range(4):
        shutil.rmtree(out, ignore_errors=True)
        begin = partial(start, "tabular", folder_of_bundle, out, [mixed], **plain)
        kill_at_random(begin, out, 3, chance)
        before = finished(out)
        workers = RunOptions(workers=chance.randrange(1, 4))
        score_files(LoadedModel(source.bundle), [str(mixed)], out, **options, run=workers)
        kept = {name: finished(out).get(name) for name in before if name.startswith("part")}
        assert kept == {name: before[name] for name in kept}
        assert content(out) == content(whole)


def test_killed_runs_of_images_are_continued(
    image_calibrated: Bundle, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.batch.images.score.PART_FILES", PART_FILES)
    bundle = image_calibrated.calibrated(calibrate(np.full(20, -1e6), alpha=0.1), None)
    (tmp_path / "in").mkdir()
    for i, image in enumerate(patched(blobs(24))):
        Image.fromarray(image).save(tmp_path / "in" / f"{i:02d}.png")
    (tmp_path / "in" / "07.png").write_bytes((tmp_path / "in" / "06.png").read_bytes()[:200])
    paths, heat = [str(tmp_path / "in")], HeatmapOptions(png=True)
    score_images(LoadedModel(bundle), paths, out.with_name("whole"), heatmaps=heat)
    process = start("image", bundle.save(tmp_path / "b"), out, [tmp_path / "in"])
    kill_after(process, out, records=2)
    with pytest.raises(DataError, match="without --heatmaps, and not with --heatmaps"):
        score_images(LoadedModel(bundle), paths, out, heatmaps=heat)
    summary = score_images(LoadedModel(bundle), paths, out)
    assert (summary["scored"], summary["rejected"], summary["files_scored"]) == (23, 1, 23)
    whole = content(out.with_name("whole"))
    assert content(out)[REJECTS] == whole[REJECTS]
    assert [name for name in content(out) if name.startswith("part")] == [
        name for name in whole if name.startswith("part")
    ]
    assert all(content(out)[name] == whole[name] for name in whole if name.startswith("part"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "stored"), [("image", False), ("image", True), ("tabular", True)])
def test_runs_of_images_and_into_object_stores_may_be_killed_at_random_moments(
    source: LoadedModel,
    image_calibrated: Bundle,
    mixed: Path,
    tmp_path: Path,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    stored: bool,
) -> None:
    monkeypatch.setattr("pipelines.batch.images.score.PART_FILES", PART_FILES)
    chance, model, score = random.Random(0), LoadedModel(source.bundle), score_files
    options: dict[str, Any] = {"explain": 1}
    if kind == "image":
        model, score = LoadedModel(image_calibrated), score_images
        mixed, options = write_formats(tmp_path / "scans", 80), {"heatmaps": HeatmapOptions(True)}
    bundle = model.bundle.save(tmp_path / "bundle")
    with s3_server():
        upload(mixed, f"{tmp_path.name}/in")
        paths = [f"s3://{BUCKET}/{tmp_path.name}/in" if stored else str(mixed)]
        score(model, paths, tmp_path / "whole", **options)
        for i in range(4):
            out = f"s3://{BUCKET}/{tmp_path.name}/{i}" if stored else str(tmp_path / f"{i}")
            kill_at_random(partial(start, kind, bundle, out, paths, **options), out, 3, chance)
            score(model, paths, out, run=RunOptions(workers=chance.randrange(1, 4)), **options)
            if stored:
                out = str(download(f"{tmp_path.name}/{i}", tmp_path / f"{i}"))
            assert content(Path(out)) == content(tmp_path / "whole")


def test_the_result_does_not_depend_on_the_workers(
    source: LoadedModel, mixed: Path, tmp_path: Path, small_parts: None
) -> None:
    for workers in (1, 2, 5):
        options = RunOptions(workers=workers)
        score_files(source, [str(mixed)], tmp_path / str(workers), explain=1, run=options)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "5")


def test_rows_without_ids_have_the_positions_that_they_have_in_order(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path, small_parts: None
) -> None:
    """Also those in Parquet files behind a text file, whose rows nobody has counted."""
    bare = table.drop_columns(["TRANSACTION_ID"])
    pq.write_table(bare.slice(0, 250), tmp_path / "a.parquet", row_group_size=PART)
    write_csv(tmp_path / "b.csv", bare.slice(250, 250))
    pq.write_table(bare.slice(500, 400), tmp_path / "c.parquet", row_group_size=PART)
    paths = [str(tmp_path / f"{name}") for name in ("a.parquet", "b.csv", "c.parquet")]
    summary = score_files(source, paths, out)
    scored = [pq.read_table(out / name)["row"].to_pylist() for name in summary["parts"]]
    rows = [row for part in scored for row in part]
    rejected = pq.read_table(out / REJECTS)["row"].to_pylist()
    assert rejected == list(range(257, 500, 50))
    assert sorted([*rows, *rejected]) == list(range(900))
    assert rows == sorted(rows)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["changed", "removed", "record"])
def test_a_part_that_is_damaged_afterwards_is_scored_again_and_no_other(
    source: LoadedModel, mixed: Path, out: Path, small_parts: None, damage: str
) -> None:
    score_files(source, [str(mixed)], out)
    before, times = content(out), finished(out)
    part = out / "part-00002.parquet"
    if damage == "changed":
        part.write_bytes(part.read_bytes()[:-1] + b"x")
    elif damage == "removed":
        part.unlink()
    else:
        (out / RUN / "00002.json").write_text('{"unit": 2')
    score_files(source, [str(mixed)], out)
    assert content(out) == before
    again = {name for name, time in finished(out).items() if time != times[name]}
    assert again == {part.name}


def test_a_plan_that_cannot_be_read_is_not_continued(
    source: LoadedModel, transactions: Path, out: Path
) -> None:
    score_files(source, [str(transactions)], out)
    for text in ("{", "[]", '{"format": 0}', '{"format": 1}'):
        (out / PLAN).write_text(text)
        with pytest.raises(DataError, match="another version began"):
            score_files(source, [str(transactions)], out)
    assert score_files(source, [str(transactions)], out, run=RunOptions(restart=True))["scored"]


def test_a_full_disk_is_one_line_and_loses_nothing(
    source: LoadedModel, folder_of_bundle: Path, table: pa.Table, tmp_path: Path, out: Path,
    small_parts: None,
) -> None:  # fmt: skip
    """The limit on the size of a file stands for it: the last part is too large."""
    path = tmp_path / "t.parquet"
    with pq.ParquetWriter(path, table.schema) as writer:
        for count in (100, 1_400):
            writer.write_table(table.slice(0, count))
    process = start("tabular", folder_of_bundle, out, [path], limit=60_000, explain="all",
                    explain_rows="all")  # fmt: skip
    _, told = process.communicate()
    assert process.returncode == 1
    assert f"'{out}': File too large; what is finished is kept, and the same command" in told
    assert visible(out) == {"part-00000.parquet"}
    assert not list((out / RUN).glob("unfinished*"))
    options = {"explain": "all", "explain_rows": ExplainedRows.ALL}
    before = finished(out)
    assert score_files(LoadedModel(source.bundle), [str(path)], out, **options)["scored"] == 1_500
    assert before.items() <= finished(out).items()


def test_a_disk_without_room_for_a_copy_is_no_fault_of_the_file(
    source: LoadedModel, folder_of_bundle: Path, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    """A compressed file is unpacked into a copy; its rows are not rejected."""
    write_csv(tmp_path / "t.csv", table)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    path = tmp_path / "t.csv.gz"
    process = start("tabular", folder_of_bundle, out, [path], limit=60_000)
    _, told = process.communicate()
    assert process.returncode == 1
    assert re.search(r"OutageError: '.*t\.csv\.gz': File too large; set TMPDIR to", told)
    assert not visible(out)
    assert score_files(LoadedModel(source.bundle), [str(path)], out)["rejected"] == 30


# ---------------------------------------------------------------- the same and other commands


def test_a_finished_result_is_left_alone(
    source: LoadedModel, mixed: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = score_files(source, [str(mixed)], out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert score_files(source, [str(mixed)], out, run=RunOptions(workers=1)) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    assert "nothing is scored again" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("add", {}, r"of other files: '.*/b\.parquet' was added since"),
        ("remove", {}, r"of other files: '.*/z\.parquet' was removed since"),
        ("touch", {}, r"of other files: '.*/a\.parquet' was changed since"),
        ("", {"explain": 3}, "without --explain, and not with --explain 3"),
        ("", {"fdr": 0.1}, "without --fdr, and not with --fdr 0.1"),
        ("", {"csv": {"decimal": ","}}, r'without --csv, and not with --csv \{"decimal": ","\}'),
        ("model", {}, r"by model 'fraud' version 1 \([0-9a-f]{12}\), and not by model"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_another_command_is_refused_by_its_difference(
    world: World, source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path,
    change: str, options: dict[str, Any], message: str, complete: bool,
) -> None:  # fmt: skip
    (tmp_path / "in").mkdir()
    for name in "az":
        pq.write_table(table.slice(0, 50), tmp_path / "in" / f"{name}.parquet")
    score_files(source, [str(tmp_path / "in")], out)
    if not complete:
        (out / SUMMARY).unlink()
        (out / "part-00000.parquet").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    match change:
        case "add":
            pq.write_table(table.slice(0, 1), tmp_path / "in" / "b.parquet")
        case "remove":
            (tmp_path / "in" / "z.parquet").unlink()
        case "touch":
            pq.write_table(table.slice(0, 51), tmp_path / "in" / "a.parquet")
        case "model":
            bundle = source.bundle.calibrated(calibrate(np.zeros(20), alpha=0.1), None)
            source = LoadedModel(bundle, "fraud", "2")
    with pytest.raises(DataError, match=message) as refused:
        score_files(source, [str(tmp_path / "in")], out, **options)
    assert "--restart" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    restart = RunOptions(restart=True)
    assert score_files(source, [str(tmp_path / "in")], out, **options, run=restart)["scored"]


def test_a_result_of_an_older_version_is_only_replaced_on_request(
    source: LoadedModel, transactions: Path, out: Path
) -> None:
    score_files(source, [str(transactions)], out)
    shutil.rmtree(out / RUN)
    (out / INCOMPLETE).mkdir()
    with pytest.raises(DataError, match=r"that another version wrote; .*--restart"):
        score_files(source, [str(transactions)], out)
    score_files(source, [str(transactions)], out, run=RunOptions(restart=True))
    assert (out / PLAN).exists()
    assert not (out / INCOMPLETE).exists()


def test_a_pipe_cannot_be_read_a_second_time(
    source: LoadedModel, table: pa.Table, tmp_path: Path, out: Path
) -> None:
    write_csv(tmp_path / "t.csv", table.slice(0, 100))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=(tmp_path / "pipe").write_bytes, args=((tmp_path / "t.csv").read_bytes(),)
    )
    writer.start()
    score_files(source, [str(tmp_path / "pipe")], out)
    writer.join()
    with pytest.raises(DataError, match="a pipe, which cannot be read a second time"):
        score_files(source, [str(tmp_path / "pipe")], out)


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_it_was_killed(
    source: LoadedModel, folder_of_bundle: Path, mixed: Path, out: Path, small_parts: None
) -> None:
    process = start("tabular", folder_of_bundle, out, [mixed], explain="all", explain_rows="all")
    while not (out / PLAN).exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    options = {"explain": "all", "explain_rows": ExplainedRows.ALL}
    with pytest.raises(DataError, match="is being written by another run"):
        score_files(LoadedModel(source.bundle), [str(mixed)], out, **options)
    kill_after(process, out, records=0)
    assert score_files(LoadedModel(source.bundle), [str(mixed)], out, **options)["scored"]


# ---------------------------------------------------------------- the command


def test_the_version_is_that_of_the_beginning_even_if_the_alias_has_moved(
    champion: World, transactions: Path, out: Path, command: Command
) -> None:
    client, alias = Registry()._client, "models:/fraud@night"
    client.set_registered_model_alias("fraud", "night", "1")
    arguments = ("score", "--model", alias, "--input", transactions, "--output", out)
    first = command(*arguments)
    assert (first.code, first.json["model"]["alias"]) == (0, "night")
    (out / SUMMARY).unlink()
    client.delete_registered_model_alias("fraud", "night")
    again = command(*arguments, "--workers", 1)
    assert again.code == 0
    assert "continuing with version 1, with which the run began" in again.err
    measured = dict.fromkeys(MEASURED)
    assert again.json | measured == first.json | measured
    gone = command(*arguments, "--restart")
    assert (gone.code, gone.out) == (1, "")


def test_a_folder_of_a_bundle_is_opened_as_it_is(folder_of_bundle: Path, out: Path) -> None:
    assert open_recorded(str(folder_of_bundle), out).uri == str(folder_of_bundle)


@pytest.mark.parametrize(
    ("below", "reason"),
    [
        ("", "is a file; give a folder"),
        ("below", "cannot be created: Not a directory; give another folder"),
    ],
)
def test_a_file_as_output_is_refused(
    source: LoadedModel, transactions: Path, folder_of_bundle: Path, out: Path,
    below: str, reason: str,
) -> None:  # fmt: skip
    out.write_text("mine")
    assert open_recorded(str(folder_of_bundle), out / below).uri == str(folder_of_bundle)
    with pytest.raises(DataError, match=f"--output '{out / below}' {reason}$"):
        score_files(source, [str(transactions)], out / below)
    assert out.read_text() == "mine"


def test_the_summary_has_quantiles_shares_and_throughput(
    source: LoadedModel, transactions: Path, out: Path
) -> None:
    summary = score_files(source, [str(transactions)], out)
    scores = pq.read_table(out / "part-00000.parquet")["score"].to_pylist()
    quantiles = summary["score_quantiles"]
    assert (quantiles["0"], quantiles["1"]) == (min(scores), max(scores))
    assert quantiles["0.5"] == pytest.approx(sorted(scores)[749], rel=0.004)
    assert summary["flagged_share"] == summary["flagged"] / 1_500
    assert summary["expected_share"] == summary["alpha"]
    assert summary["rows_per_second"] > 0
    assert summary["peak_memory_bytes"] > 1 << 20
    assert local.cores() >= 1
