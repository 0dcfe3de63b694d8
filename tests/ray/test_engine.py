"""Score with Ray: the result of the local engine, also if a node is killed on the way."""

from __future__ import annotations

import json
import random
import shutil
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.errors import ConfigError, DataError
from pipelines.batch import Engine, Format
from pipelines.batch.common import HeatmapOptions
from pipelines.batch.images import score as images
from pipelines.batch.images import score_images
from pipelines.batch.options import OutputOptions
from pipelines.batch.result import folder as results
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
from tests.support.batch_results import content
from tests.support.image_folders import N_REJECTED, write_formats
from tests.support.killed_runs import PART as PART_ROWS
from tests.support.killed_runs import PART_FILES, kill_at_random, n_records, start
from tests.support.object_stores import BUCKET, download, s3_server, upload
from tests.support.paths import ROOT
from tests.support.scans import blobs, patched
from tests.support.window_streams import stream
from tests.support.windowed import write_training_table

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # Ray calls what it deprecates itself
]
pytest.importorskip("ray", reason="needs the extra 'ray': run make test-ray")

PART = 10
RAY = RunOptions(2, Engine.RAY)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def source(calibrated: Bundle) -> LoadedModel:
    return LoadedModel(calibrated)


@pytest.fixture(scope="module")
def rows(transactions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transactions in many row groups."""
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pq.read_table(transactions), path, row_group_size=PART)
    return path


@pytest.fixture(scope="module")
def mixed(transactions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet, CSV with cells that are no numbers, and a torn file."""
    folder, table = tmp_path_factory.mktemp("mixed"), pq.read_table(transactions)
    pq.write_table(table, folder / "a.parquet")
    amounts = [f"x{i}" if i % 50 == 7 else str(a) for i, a in enumerate(table["TX_AMOUNT"])]
    index = table.schema.get_field_index("TX_AMOUNT")
    text = table.set_column(index, "TX_AMOUNT", pa.array(amounts))
    pyarrow.csv.write_csv(text, folder / "b.csv")
    (folder / "c.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-9])
    return folder


@pytest.mark.parametrize("fdr", [None, 0.2])
def test_tables_are_scored_as_on_this_machine(
    environment: None, source: LoadedModel, mixed: Path, tmp_path: Path, fdr: float | None
) -> None:
    paths, options = [str(mixed)], {"explain": 2, "fdr": fdr}
    local = score_files(source, paths, tmp_path / "local", **options)
    summary = score_files(source, paths, tmp_path / "ray", run=RAY, **options)
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert summary["rows"] == summary["scored"] + summary["rejected"] == local["rows"] == 3_001
    assert summary["rejected"] == 31


@pytest.mark.parametrize("fdr", [None, 0.2])
def test_rows_and_files_are_chosen_as_on_this_machine(
    environment: None, source: LoadedModel, mixed: Path, tmp_path: Path, fdr: float | None
) -> None:
    outputs = OutputOptions(Format.CSV, only_flagged=True, top=3)
    for name, run in (("local", RunOptions()), ("ray", RAY)):
        score_files(source, [str(mixed)], tmp_path / name, fdr=fdr, outputs=outputs, run=run)
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert len(pq.read_table(tmp_path / "ray" / "top.parquet")) == 3


def test_images_and_heatmaps_too(
    environment: None,
    image_calibrated: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "PART_FILES", 4)
    folder = tmp_path / "images"
    folder.mkdir()
    for i, pixels in enumerate(patched(blobs(15))):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:60])
    source, heatmaps = LoadedModel(image_calibrated), HeatmapOptions(png=True)
    score_images(source, [str(folder)], tmp_path / "local", 2, heatmaps)
    summary = score_images(source, [str(folder)], tmp_path / "ray", 2, heatmaps, run=RAY)
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert (summary["files"], summary["files_rejected"]) == (16, 1)


def test_each_engine_continues_what_the_other_began(
    environment: None,
    source: LoadedModel,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(results, "PART_ROWS", PART)
    score_files(source, [str(rows)], tmp_path / "local")
    for first, second in (("local", Engine.RAY), ("ray", Engine.LOCAL)):
        out = tmp_path / f"from-{first}"
        shutil.copytree(tmp_path / "local", out)
        (out / "summary.json").unlink()
        for number in range(30, 60):
            (out / f"part-{number:05d}.parquet").unlink()
        score_files(source, [str(rows)], out, run=RunOptions(2, second))
        assert content(out) == content(tmp_path / "local")


def test_a_folder_of_another_version_is_refused_before_ray_is_started(
    environment: None, source: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / ".run").mkdir(parents=True)
    (out / ".run" / "plan.json").touch()
    with pytest.raises(DataError, match="holds a result that another version began"):
        score_files(source, [str(rows)], out, run=RAY)


def test_an_error_of_an_actor_is_one_line_and_loses_nothing(
    environment: None,
    source: LoadedModel,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An actor cannot give a part its name, because a folder has it."""
    monkeypatch.setattr(results, "PART_ROWS", 200)
    score_files(source, [str(rows)], tmp_path / "local")
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "local", out)
    (out / "summary.json").unlink()
    (out / "part-00005.parquet").unlink()
    (out / "part-00005.parquet" / "in-the-way").mkdir(parents=True)
    reason = "Is a directory; what is finished is kept, and the same command continues"
    with pytest.raises(DataError, match=reason) as told:
        score_files(source, [str(rows)], out, run=RAY)
    assert "\n" not in str(told.value)
    shutil.rmtree(out / "part-00005.parquet")
    score_files(source, [str(rows)], out, run=RAY)
    assert content(out) == content(tmp_path / "local")
    assert not list((out / ".run").glob("unfinished-*"))


# ---------------------------------------------------------------- windows


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows to score, in several files, some of them wrong; and the rows before them."""
    folder = tmp_path_factory.mktemp("events")
    (folder / "in").mkdir()
    table = pq.read_table(write_training_table(folder / "all.parquet", stream(600, seed=21)))
    pq.write_table(table.slice(0, 200), folder / "history.parquet")
    pq.write_table(table.slice(200, 300), folder / "in" / "a.parquet", row_group_size=50)
    text = table.slice(500).set_column(
        table.schema.get_field_index("TX_AMOUNT"),
        "TX_AMOUNT",
        pa.array([f"x{i}" if i % 10 == 3 else str(i) for i in range(100)]),
    )
    pyarrow.csv.write_csv(text, folder / "in" / "b.csv")
    (folder / "in" / "c.parquet").write_bytes((folder / "in" / "a.parquet").read_bytes()[:-9])
    return {"in": folder / "in", "history": folder / "history.parquet"}


def test_windows_are_those_of_this_machine(
    environment: None,
    windowed_folder: Path,
    events: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also from and into an object store, and by an engine that continues the other's run."""
    monkeypatch.setattr(results, "PART_ROWS", 50)
    source, paths = LoadedModel(load_bundle(windowed_folder)), [str(events["in"])]
    history = [str(events["history"])]
    local = score_files(source, paths, tmp_path / "local", history=history, explain=2)
    assert local["rejected"] == 11
    summary = score_files(source, paths, tmp_path / "ray", history=history, explain=2, run=RAY)
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert summary["warnings"] == local["warnings"]
    assert not list((tmp_path / "ray" / ".run").glob("features-*"))
    assert (
        score_files(source, paths, tmp_path / "bare")["score_quantiles"]
        != summary["score_quantiles"]
    )
    for first, second in (("local", Engine.RAY), ("ray", Engine.LOCAL)):
        out = tmp_path / f"from-{first}"
        shutil.copytree(tmp_path / first, out)
        (out / "summary.json").unlink()
        (out / "part-00002.parquet").unlink()
        run = RunOptions(2, second)
        score_files(source, paths, out, history=history, explain=2, run=run)
        assert content(out) == content(tmp_path / "local")
    with s3_server():
        upload(events["in"], f"{tmp_path.name}/in")
        stored, out = [f"s3://{BUCKET}/{tmp_path.name}/in"], f"s3://{BUCKET}/{tmp_path.name}/out"
        score_files(source, stored, tmp_path / "stored", history=history)
        score_files(source, stored, out, history=history, run=RAY)
        assert content(download(f"{tmp_path.name}/out", tmp_path / "s3")) == content(
            tmp_path / "stored"
        )


# ---------------------------------------------------------------- a cluster


@pytest.fixture
def cluster(environment: None) -> Iterator[Any]:
    """Two node processes with a core each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": 1 << 27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, object_store_memory=1 << 27)
    yield cluster
    cluster.shutdown()


def test_nothing_is_lost_or_doubled_if_a_node_is_killed(
    cluster: Any,
    source: LoadedModel,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(results, "PART_ROWS", PART)
    score_files(source, [str(rows)], tmp_path / "local")
    bundle, out = source.bundle.save(tmp_path / "bundle"), tmp_path / "out"
    process = start("tabular", bundle, out, [rows], part=PART, engine="ray",
                    address=cluster.address)  # fmt: skip
    while n_records(out) < 40 and process.poll() is None:
        time.sleep(0.01)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    assert n_records(out) < 150
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert ".cc:" not in told, "Ray's core prints nothing"
    assert content(out) == content(tmp_path / "local")
    assert json.loads((out / "summary.json").read_bytes())["rows"] == 1_500
    assert not list((out / ".run").glob("unfinished-*"))


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nohost.invalid:6379", "head", "ray://a:1"])
def test_a_cluster_that_cannot_be_reached_is_one_line(
    source: LoadedModel, rows: Path, tmp_path: Path, address: str
) -> None:
    options = RunOptions(engine=Engine.RAY, ray_address=address)
    with pytest.raises(ConfigError, match=r"--ray-address '.*: .*give|is not HOST:PORT"):
        score_files(source, [str(rows)], tmp_path / "out", run=options)


def test_a_port_that_is_not_rays_is_one_line(
    source: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        options = RunOptions(engine=Engine.RAY, ray_address=f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ConfigError, match="no Ray of this version"):
            score_files(source, [str(rows)], tmp_path / "out", run=options)


# ---------------------------------------------------------------- object stores


def test_an_object_store_is_read_and_written(
    environment: None, source: LoadedModel, mixed: Path, tmp_path: Path
) -> None:
    with s3_server():
        upload(mixed, f"{tmp_path.name}/in")
        paths, out = [f"s3://{BUCKET}/{tmp_path.name}/in"], f"s3://{BUCKET}/{tmp_path.name}/out"
        local = score_files(source, paths, tmp_path / "local")
        summary = score_files(source, paths, out, run=RAY)
        assert content(download(f"{tmp_path.name}/out", tmp_path / "s3")) == content(
            tmp_path / "local"
        )
    assert summary["scored"] == local["scored"]


def test_images_of_an_object_store_are_scored_and_drawn_there(
    environment: None,
    image_calibrated: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "PART_FILES", 4)
    source, heatmaps = LoadedModel(image_calibrated), HeatmapOptions(png=True, dicom=True)
    with s3_server():
        upload(write_formats(tmp_path / "scans"), f"{tmp_path.name}/in")
        paths, out = [f"s3://{BUCKET}/{tmp_path.name}/in"], f"s3://{BUCKET}/{tmp_path.name}/out"
        local = score_images(source, paths, tmp_path / "local", 2, heatmaps)
        summary = score_images(source, paths, out, 2, heatmaps, run=RAY)
        assert content(download(f"{tmp_path.name}/out", tmp_path / "s3")) == content(
            tmp_path / "local"
        )
    assert summary["heatmaps"] == local["heatmaps"] > 0
    assert summary["rejected"] == N_REJECTED


# ---------------------------------------------------------------- killed and continued


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("kind", ["tabular", "windows", "image"])
@pytest.mark.parametrize("stored", [False, True], ids=["folder", "objects"])
def test_runs_killed_at_random_moments_lose_and_double_nothing(
    environment: None,
    source: LoadedModel,
    image_calibrated: Bundle,
    windowed_folder: Path,
    events: dict[str, Path],
    mixed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    stored: bool,
) -> None:
    """The command is killed, not its actors, which Ray ends; then either engine continues."""
    monkeypatch.setattr(results, "PART_ROWS", PART_ROWS)
    monkeypatch.setattr(images, "PART_FILES", PART_FILES)
    chance, options, score = random.Random(len(kind) + stored), dict[str, Any](), score_files
    if kind == "image":
        source, mixed = LoadedModel(image_calibrated), write_formats(tmp_path / "scans", 40)
        score, options = score_images, {"heatmaps": HeatmapOptions(png=True)}
    if kind == "windows":
        source, mixed = LoadedModel(load_bundle(windowed_folder)), events["in"]
        options = {"history": [str(events["history"])]}
    bundle = source.bundle.save(tmp_path / "bundle")
    with s3_server():
        upload(mixed, f"{tmp_path.name}/in")
        paths = [f"s3://{BUCKET}/{tmp_path.name}/in" if stored else str(mixed)]
        whole = score(source, paths, tmp_path / "whole", **options)
        for i, engine in enumerate(Engine):
            out = f"s3://{BUCKET}/{tmp_path.name}/{i}" if stored else str(tmp_path / f"{i}")
            begin = partial(start, "image" if kind == "image" else "tabular", bundle, out, paths,
                            engine="ray", **options)  # fmt: skip
            kill_at_random(begin, out, 2, chance)
            summary = score(source, paths, out, run=RunOptions(2, engine), **options)
            if stored:
                out = str(download(f"{tmp_path.name}/{i}", tmp_path / f"{i}"))
            assert content(Path(out)) == content(tmp_path / "whole")
            assert summary["rows"] == whole["rows"]
