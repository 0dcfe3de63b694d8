"""Inputs and results in an object store: a real S3 server on this machine."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import DataError
from pipelines.batch.common import HeatmapOptions
from pipelines.batch.images import score_images
from pipelines.batch.options import OutputOptions
from pipelines.batch.result import folder as results
from pipelines.batch.result import object_folder
from pipelines.batch.result.object_folder import LEASE
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.datasets.files import find_files
from pipelines.datasets.images.listing import images_and_others
from pipelines.datasets.reading.objects import OutageError, object_path, objects_in
from pipelines.registry.model_uri import LoadedModel
from tests.support.batch_results import content, without_measures
from tests.support.flows import Command
from tests.support.google_store import google_store
from tests.support.image_folders import N_REJECTED, png, write_formats
from tests.support.object_stores import (
    BUCKET,
    S3Server,
    download,
    running_s3_server,
    s3_server,
    upload,
    use_server,
)
from tests.support.paths import ROOT
from tests.support.scans import blobs

PART = 100
PROCESS = """
import sys
from anomaly_vae.artifacts.bundle import load_bundle
from pipelines.batch.result import folder as results
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
bundle, path, out = sys.argv[1:]
results.PART_ROWS = 100
score_files(LoadedModel(load_bundle(bundle)), [path], out)
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def source(calibrated: Bundle) -> LoadedModel:
    return LoadedModel(calibrated)


@pytest.fixture(scope="module")
def files(s3: str, transactions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet, CSV with bad cells, and CSV in gzip; also in the bucket, in the folder `in`."""
    folder, table = tmp_path_factory.mktemp("in"), pq.read_table(transactions)
    pq.write_table(table, folder / "a.parquet", row_group_size=PART)
    amounts = [f"x{i}" if i % 50 == 7 else str(a) for i, a in enumerate(table["TX_AMOUNT"])]
    index = table.schema.get_field_index("TX_AMOUNT")
    text = table.set_column(index, "TX_AMOUNT", pa.array(amounts)).slice(0, 300)
    pyarrow.csv.write_csv(text, folder / "b.csv")
    with gzip.open(folder / "c.csv.gz", "wb") as file:
        file.write((folder / "b.csv").read_bytes())
    (folder / "_SUCCESS").touch()
    upload(folder, "in")
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PART_ROWS", PART)


@pytest.mark.parametrize("pattern", ["in", "in/", "in/*", "i?/**/*", "in/[abc].*", "**/*"])
def test_folders_and_globs_of_objects(files: Path, pattern: str) -> None:
    found = find_files([f"s3://{BUCKET}/{pattern}"])
    names = [str(path) for path in found if path.parent.name == "in"]
    assert names == [f"s3://{BUCKET}/in/{name}" for name in ("a.parquet", "b.csv", "c.csv.gz")]


def test_objects_are_scored_as_files_are(source: LoadedModel, files: Path, tmp_path: Path) -> None:
    score_files(source, [str(files)], tmp_path / "local", explain=2)
    out = f"s3://{BUCKET}/{tmp_path.name}"
    summary = score_files(source, [f"s3://{BUCKET}/in"], out, explain=2)
    found, local = content(download(tmp_path.name, tmp_path / "s3")), content(tmp_path / "local")
    paths = {str(files / name): f"s3://{BUCKET}/in/{name}" for name in ("b.csv", "c.csv.gz")}
    rejects = pq.read_table(pa.BufferReader(found.pop("rejects.parquet"))).to_pylist()
    expected = pq.read_table(pa.BufferReader(local.pop("rejects.parquet"))).to_pylist()
    assert rejects == [{**row, "path": paths[row["path"]]} for row in expected]
    assert found == local
    assert (summary["files"], summary["rows"], summary["rejected"]) == (3, 2_100, 12)


def test_one_object(source: LoadedModel, files: Path, tmp_path: Path) -> None:
    summary = score_files(source, [f"s3://{BUCKET}/in/b.csv"], tmp_path / "out")
    assert (summary["scored"], summary["rejected"]) == (294, 6)


def test_objects_of_others_in_folders_of_values_are_kept(
    source: LoadedModel, files: Path, tmp_path: Path
) -> None:
    out, paths = f"s3://{BUCKET}/{tmp_path.name}", [f"s3://{BUCKET}/in/b.csv"]
    theirs = object_path(f"{out}/day=1/theirs.txt")
    with theirs.store.open_output_stream(theirs.key) as stream:
        stream.write(b"theirs")
    with pytest.raises(DataError, match=r"holds other files, such as 'day=1/theirs\.txt'"):
        score_files(source, paths, out, run=RunOptions(restart=True))
    assert theirs.info().size == 6


def test_a_finished_result_stays_and_another_is_refused(
    source: LoadedModel, files: Path, tmp_path: Path
) -> None:
    out, paths = f"s3://{BUCKET}/{tmp_path.name}", [f"s3://{BUCKET}/in/b.csv"]
    first = score_files(source, paths, out)
    assert score_files(source, paths, out) == first
    with pytest.raises(DataError, match=f"--output '{out}' holds a result without --explain"):
        score_files(source, paths, out, explain=1)
    again = score_files(source, paths, out, explain=1, run=RunOptions(restart=True))
    assert again["scored"] == first["scored"]
    with pytest.raises(DataError, match=r"holds other files, such as '_SUCCESS'"):
        score_files(source, [str(files)], f"s3://{BUCKET}/in", run=RunOptions(restart=True))
    with pytest.raises(DataError, match="lies in --output"):
        score_files(source, [f"{out}/part-00000.parquet"], out)


# ---------------------------------------------------------------- images


@pytest.fixture(scope="module")
def scans(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several formats, and what is none; also in the bucket, in the folder `pictures`."""
    folder = write_formats(tmp_path_factory.mktemp("images") / "scans")
    upload(folder, "pictures")
    return folder


@pytest.mark.parametrize("pattern", ["parts", "parts/*", "parts/**/*.png"])
def test_folders_name_labels_in_a_store_too(s3: str, tmp_path: Path, pattern: str) -> None:
    for number, folder in enumerate(("good", "good", "crack")):
        png(tmp_path / folder / f"{number}.png", blobs(3)[number])
    upload(tmp_path, "parts")
    found = images_and_others([f"s3://{BUCKET}/{pattern}"], "auto").images
    assert {file.path.parent.name: file.attributes["label"] for file in found} == {
        "good": "0",
        "crack": "1",
    }


def in_bucket(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row of a result with the address in the bucket for the path of its file."""
    name = Path(row["path"]).relative_to(folder).as_posix()
    return {**row, "path": f"s3://{BUCKET}/pictures/{name}"}


def rows_in(content: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(content)).to_pylist()
    return sorted(rows, key=lambda row: (row["path"], str(row)))


def test_images_are_scored_as_files_are(
    image_calibrated: Bundle, scans: Path, tmp_path: Path
) -> None:
    images, heat = LoadedModel(image_calibrated), HeatmapOptions(png=True, dicom=True)
    options: dict[str, Any] = {"explain": 1, "heatmaps": heat, "outputs": OutputOptions(top=2)}
    local = score_images(images, [str(scans)], tmp_path / "local", **options)
    out = f"s3://{BUCKET}/{tmp_path.name}"
    summary = score_images(images, [f"s3://{BUCKET}/pictures"], out, **options)
    assert without_measures(summary) == without_measures(local)
    assert summary["rejected"] == N_REJECTED
    assert summary["heatmaps"] >= summary["dicom"] > 0
    found, expected = content(download(tmp_path.name, tmp_path / "s3")), content(tmp_path / "local")
    for name in ("part-00000.parquet", "rejects.parquet", "top.parquet"):
        rows = [in_bucket(row, scans) for row in rows_in(expected[name])]
        assert rows_in(found[name]) == sorted(rows, key=lambda row: (row["path"], str(row)))
    heatmaps = [name for name in found if name.startswith("heatmaps/")]
    assert len(heatmaps) == len({*heatmaps}) == summary["heatmaps"]
    assert all(found[name].startswith(b"\x89PNG") for name in heatmaps)
    before = {path: path.info().mtime_ns for path in objects_in(object_path(out))}
    assert score_images(images, [f"s3://{BUCKET}/pictures"], out, **options) == summary
    assert {path: path.info().mtime_ns for path in objects_in(object_path(out))} == before
    with pytest.raises(DataError, match="with --dicom-out, and not without --dicom-out"):
        score_images(images, [f"s3://{BUCKET}/pictures"], out, explain=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tables", "images"])
def test_a_store_that_stops_answering_is_no_fault_of_its_objects(
    source: LoadedModel,
    image_calibrated: Bundle,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_parts: None,
    kind: str,
) -> None:
    """The run ends with one line, and continues with what was not read."""
    monkeypatch.setattr("pipelines.batch.images.score.PART_FILES", 2)
    score, model = score_files, source
    if kind == "images":
        score, model = score_images, LoadedModel(image_calibrated)
        files = write_formats(tmp_path / "scans", 40)
    with running_s3_server() as server:
        upload(files, "in")
        paths, out = [f"s3://{BUCKET}/in"], tmp_path / "out"
        whole = score(model, paths, tmp_path / "whole")
        stopping = threading.Thread(target=stop_after_a_part, args=(server, out))
        stopping.start()
        with pytest.raises(OutageError, match="what is finished is kept") as told:
            score(model, paths, out, run=RunOptions(1))
        stopping.join()
        assert "\n" not in str(told.value)
        assert 0 < len(list(out.glob("part-*"))) < len(whole["parts"])
        server.start()
        score(model, paths, out)
    assert content(out) == content(tmp_path / "whole")


def stop_after_a_part(server: S3Server, out: Path) -> None:
    while not list(out.glob("part-*")):
        time.sleep(0.001)
    server.stop()


# ---------------------------------------------------------------- several runs


@pytest.mark.slow
def test_a_killed_run_continues(
    source: LoadedModel, files: Path, tmp_path: Path, small_parts: None
) -> None:
    path = f"s3://{BUCKET}/in/a.parquet"
    whole = score_files(source, [path], tmp_path / "local")
    bundle = source.bundle.save(tmp_path / "bundle")
    out = object_path(f"s3://{BUCKET}/{tmp_path.name}")
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(bundle), path, str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    folder = object_folder.ObjectFolder(out)
    while not folder.names(f"{results.RUN}/0*.json") and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    summary = score_files(source, [path], str(out))
    assert without_measures(summary) == without_measures(whole)
    assert content(download(tmp_path.name, tmp_path / "s3")) == content(tmp_path / "local")
    assert folder.read(LEASE) is None


def test_a_second_run_is_refused_while_the_first_lives(
    source: LoadedModel, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, paths = object_path(f"s3://{BUCKET}/{tmp_path.name}"), [f"s3://{BUCKET}/in/b.csv"]
    folder = object_folder.ObjectFolder(out)
    folder.write(LEASE, json.dumps({"host": "elsewhere", "pid": 1, "run": "x"}).encode())
    with pytest.raises(DataError, match="being written by another run on 'elsewhere'"):
        score_files(source, paths, str(out))
    monkeypatch.setattr(object_folder, "LEASE_SECONDS", 0.0)
    assert score_files(source, paths, str(out))["scored"] == 294


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("s3://nowhere/in", "'s3://nowhere/in': "),
        (f"s3://{BUCKET}/nothing/*.csv", "no CSV, JSON or Parquet file is there"),
        ("s3://", "error: 's3://' names no bucket"),
        ("s3a://bank/in", "error: 's3a://bank/in' is no address of s3:// or gs://"),
    ],
)
def test_an_input_that_is_not_there_is_one_line(
    command: Command, source: LoadedModel, s3: str, tmp_path: Path, path: str, reason: str
) -> None:
    bundle = source.bundle.save(tmp_path / "bundle")
    answer = command("score", "--model", bundle, "--input", path, "--output", tmp_path / "out")
    assert answer.code == 1
    assert reason in answer.err
    assert answer.err.count("\n") == 1


def test_an_output_that_cannot_be_written_is_one_line(
    command: Command, source: LoadedModel, files: Path, tmp_path: Path
) -> None:
    bundle = source.bundle.save(tmp_path / "bundle")
    options = ("--model", bundle, "--input", files / "b.csv", "--output")
    for out, reason in (
        ("s3://nowhere/out", "error: --output 's3://nowhere/out': "),
        ("azure://bank/out", "error: 'azure://bank/out' is no address of s3:// or gs://"),
    ):
        answer = command("score", *options, out)
        assert answer.code == 1
        assert reason in answer.err
        assert answer.err.count("\n") == 1


class _Refuse(BaseHTTPRequestHandler):
    """A store that refuses all requests, as stores do without credentials."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    do_GET = do_PUT = do_HEAD  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_missing_credentials_are_one_line(
    command: Command,
    source: LoadedModel,
    s3: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = source.bundle.save(tmp_path / "bundle")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuse) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        use_server(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        for path, out in (
            (f"s3://{BUCKET}/in", tmp_path / "out"),
            (files, f"s3://{BUCKET}/out"),
        ):
            answer = command("score", "--model", bundle, "--input", path, "--output", out)
            assert answer.code == 1
            assert "credentials" in answer.err
            assert answer.err.count("\n") == 1
        server.shutdown()
    use_server(s3, monkeypatch)


def test_a_store_that_does_not_answer_is_one_line(
    command: Command,
    source: LoadedModel,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_server("http://127.0.0.1:1", monkeypatch)
    bundle = source.bundle.save(tmp_path / "bundle")
    answer = command(
        "score", "--model", bundle, "--input", f"s3://{BUCKET}/in", "--output", tmp_path / "out"
    )
    assert answer.code == 1
    assert f"error: 's3://{BUCKET}/in': " in answer.err
    assert answer.err.count("\n") == 1
    use_server(s3, monkeypatch)


# ---------------------------------------------------------------- Google's store


@pytest.fixture(scope="module")
def google(files: Path, scans: Path) -> Iterator[subprocess.Popen[str]]:
    """An emulator with the files in the folders `in` and `pictures` of its bucket."""
    with google_store() as process:
        upload(files, "in", "gs")
        upload(scans, "pictures", "gs")
        yield process


@pytest.mark.parametrize("kind", ["tables", pytest.param("images", marks=pytest.mark.slow)])
def test_googles_store_holds_input_and_result(
    google: Any, source: LoadedModel, image_calibrated: Bundle, tmp_path: Path, small_parts: None,
    kind: str,
) -> None:  # fmt: skip
    score, model, name = score_files, source, "in"
    if kind == "images":
        score, model, name = score_images, LoadedModel(image_calibrated), "pictures"
    paths, out = [f"gs://{BUCKET}/{name}"], f"gs://{BUCKET}/{tmp_path.name}"
    whole = score(model, paths, tmp_path / "local", explain=1)
    assert without_measures(score(model, paths, out, explain=1)) == without_measures(whole)
    folder = object_folder.ObjectFolder(object_path(out))
    folder.remove("summary.json")
    folder.remove(whole["parts"][-1])
    score(model, [*paths], out, explain=1)
    assert content(download(tmp_path.name, tmp_path / "gs", "gs")) == content(tmp_path / "local")
    assert folder.read(LEASE) is None
    with pytest.raises(DataError, match="with --explain 1, and not with --explain 2"):
        score(model, paths, out, explain=2)


def test_what_googles_store_does_not_hold_is_one_line(
    google: Any, source: LoadedModel, files: Path, tmp_path: Path
) -> None:
    for path in ("gs://nowhere/in", f"gs://{BUCKET}/nothing/*.csv"):
        with pytest.raises(DataError, match="no CSV, JSON or Parquet file is there; check the"):
            score_files(source, [path], tmp_path / "out")
    with pytest.raises(DataError, match="--output 'gs://nowhere/out': "):
        score_files(source, [str(files)], "gs://nowhere/out")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_googles_store_that_does_not_answer_is_one_line(
    google: subprocess.Popen[str], source: LoadedModel, tmp_path: Path
) -> None:
    """Slow because requests are repeated for half a minute."""
    google.kill()
    with pytest.raises(DataError, match=r"gs://bank/in': .*check the name of the bucket") as told:
        score_files(source, [f"gs://{BUCKET}/in"], tmp_path / "out")
    assert "\n" not in str(told.value)
