"""Score with Ray: the result of the local engine, also if a node is killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import ConfigError, DataError
from pipelines.batch import images
from pipelines.batch.common import HeatmapOptions
from pipelines.batch.engines import Engine
from pipelines.batch.images import score_images
from pipelines.batch.options import OutputOptions
from pipelines.batch.result import folder as results
from pipelines.batch.result.layout import Format
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
from tests.support.batch_results import content
from tests.support.object_stores import BUCKET, download, s3_server, upload
from tests.support.paths import ROOT
from tests.support.scans import blobs, patched

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray calls what it deprecates itself
]
pytest.importorskip("ray", reason="needs the extra 'ray': run make test-ray")

PART = 10
RAY = RunOptions(2, Engine.RAY)
PROCESS = """
import sys
from anomaly_vae.artifacts.bundle import load_bundle
from pipelines.batch.result import folder as results
from pipelines.batch.engines import Engine
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
bundle, path, out, address, part = sys.argv[1:]
results.PART_ROWS = int(part)
options = RunOptions(engine=Engine.RAY, ray_address=address)
score_files(LoadedModel(load_bundle(bundle)), [path], out, run=options)
"""
"""A run in a process of its own, with smaller units."""


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


def test_an_error_of_an_actor_is_one_line(
    environment: None, source: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "part-00000.parquet" / "in-the-way").mkdir(parents=True)
    (out / ".run").mkdir()
    (out / ".run" / "plan.json").touch()
    with pytest.raises(DataError, match="holds a result that another version began"):
        score_files(source, [str(rows)], out, run=RAY)


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


def n_records(out: Path) -> int:
    return len(list((out / ".run").glob("[0-9]*.json")))


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
    arguments = [bundle, rows, out, cluster.address, PART]
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, *map(str, arguments)], env=os.environ, cwd=ROOT
    )
    while n_records(out) < 40 and process.poll() is None:
        time.sleep(0.01)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    assert n_records(out) < 150
    assert process.wait() == 0
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
        upload(mixed, "in")
        paths, out = [f"s3://{BUCKET}/in"], f"s3://{BUCKET}/out"
        local = score_files(source, paths, tmp_path / "local")
        summary = score_files(source, paths, out, run=RAY)
        assert content(download("out", tmp_path / "s3")) == content(tmp_path / "local")
    assert summary["scored"] == local["scored"]
