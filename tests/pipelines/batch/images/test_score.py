"""Batch scoring of images: every image scored or rejected by name, and the flagged ones drawn."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.estimators.image import ImageVAEDetector
from anomaly_vae.files import locked
from anomaly_vae.images.pixels import DecodedImage
from anomaly_vae.images.schema import ImageSchema
from pipelines.batch import ExplainedRows, Format, MapFormat
from pipelines.batch.common import NO_HEATMAPS, UNREADABLE, HeatmapOptions
from pipelines.batch.images import job, score, score_images
from pipelines.batch.images.heatmaps import REFUSED, file_stem
from pipelines.batch.options import OutputOptions
from pipelines.batch.result.folder import (
    DICOM,
    HEATMAPS,
    MAPS,
    REJECTS,
    RESULT_FILE,
    RUN,
    SUMMARY,
)
from pipelines.batch.run import RunOptions
from pipelines.datasets.images.batches import BATCH_SIZE, Batch, read_images
from pipelines.datasets.images.dataset import ImageDataset
from pipelines.datasets.images.files import ImageFile
from pipelines.datasets.images.listing import list_files
from pipelines.registry.model_uri import LoadedModel
from tests.support.dicom_files import shipped
from tests.support.scans import SIZE, blobs, coloured, patched

RESTART = RunOptions(restart=True)
HEAT = HeatmapOptions(png=True)
BOTH = HeatmapOptions(png=True, dicom=True)
PATIENTS = {"MR_small.dcm": "4MR1", "CT_small.dcm": "1CT1"}
NAME = "CompressedSamples"
"""Of the patients in pydicom's samples, to whom it adds what their scan is."""


@pytest.fixture(scope="session")
def half(image_calibrated: Bundle, image_dataset: ImageDataset) -> LoadedModel:
    """A model that flags about half of the images that it was made with."""
    scores = image_calibrated.scorer.score(image_dataset.batch)
    calibration = calibrate(scores, alpha=0.5)
    return LoadedModel(image_calibrated.calibrated(calibration, None), "scans", "7", "champion")


@pytest.fixture(scope="session")
def every(image_calibrated: Bundle) -> LoadedModel:
    """A model that flags every image."""
    calibration = calibrate(np.full(20, -1e6), alpha=0.1)
    return LoadedModel(image_calibrated.calibrated(calibration, None))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of six images."""
    return write(tmp_path / "scans", blobs(6))


def write(folder: Path, images: NDArray[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def tiff(path: Path, images: NDArray[Any]) -> Path:
    first, *others = map(Image.fromarray, images)
    first.save(path, "TIFF", save_all=True, append_images=others)
    return path


def sample(name: str, to: Path) -> Path:
    """One of the scans that come with pydicom."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shipped(name), to)
    return to


def parts(folder: Path) -> pa.Table:
    """The scored images in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def rejects(folder: Path) -> list[dict[str, Any]]:
    """The rejected images in order."""
    return list(pq.read_table(folder / REJECTS).to_pylist())


def pictures(folder: Path, kind: str = HEATMAPS) -> list[str]:
    return sorted(path.name for path in (folder / kind).glob("*"))


def adds_up(folder: Path) -> dict[str, Any]:
    """The summary, after checking it against what lies in the folder."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    lies = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert all(map(RESULT_FILE.fullmatch, {name for name in lies if not name.startswith(RUN)}))
    assert not any("unfinished" in name for name in lies)
    flagged = sum(pq.read_table(folder / part)["is_anomaly"].to_pylist().count(True)
                  for part in summary["parts"])  # fmt: skip
    assert summary["scored"] == sum(pq.read_metadata(folder / p).num_rows for p in summary["parts"])
    assert summary["flagged"] == flagged
    assert (
        summary["rejected"] == len(rejects(folder)) == sum(summary["rejected_by_column"].values())
    )
    assert summary["rows"] == summary["scored"] + summary["rejected"]
    assert all(row["reason"] for row in rejects(folder))
    return summary


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scored:
    """A folder of images as other people leave them, and what was made of it."""

    folder: Path
    out: Path
    summary: dict[str, Any]

    def names(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        return [Path(row["path"]).relative_to(self.folder).as_posix() for row in rows]


HOSTILE = {
    "constant.png": "all pixels are alike: the image shows nothing",
    "gone.png": "there is no such file; check its path",
    "pages.tif": "all pixels are alike: the image shows nothing",
    "text.png": "it is text and no image",
    "torn.dcm": "cut short; copy the file again|damaged; export it again",
    "torn.png": "cut short; copy the file again",
    "zero.png": "the file is empty; copy it again",
}
"""Files that give no picture, or a page that gives none, and the reason."""


@pytest.fixture(scope="module")
def scored(half: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Twelve sound images, a TIFF whose third page is black, two DICOM files, and the hostile."""
    place = tmp_path_factory.mktemp("hostile")
    folder = write(place / "in", np.concatenate([blobs(6), patched(blobs(6, seed=1))]))
    tiff(folder / "pages.tif", np.stack([*patched(blobs(2)), np.zeros((SIZE, SIZE), np.uint8)]))
    for name in PATIENTS:
        sample(name, folder / "dicom" / f"{name[:2]}.dcm")
    Image.fromarray(np.full((SIZE, SIZE), 90, np.uint8)).save(folder / "constant.png")
    (place / "list.csv").write_text(f"path\n{folder / 'gone.png'}\n")
    (folder / "text.png").write_text("To whom it may concern")
    (folder / "zero.png").touch()
    for whole, torn in (("0.png", "torn.png"), ("dicom/CT.dcm", "torn.dcm")):
        content = (folder / whole).read_bytes()
        (folder / torn).write_bytes(content[: len(content) // 2])
    paths = [str(folder), str(place / "list.csv")]
    return Scored(folder, place / "out", score_images(half, paths, place / "out", 3, BOTH))


def test_colour_that_the_model_does_not_see_is_told(
    half: LoadedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "in", blobs(3))
    Image.fromarray(coloured(blobs(1))[0]).save(folder / "colour.png")
    score_images(half, [str(folder)], tmp_path / "out")
    said = "1 of 4 scored images are in colour, of which the model sees only the brightness"
    assert said in " ".join(capfd.readouterr().err.split())
    (folder / "colour.png").unlink()
    score_images(half, [str(folder)], tmp_path / "out", run=RESTART)
    assert "colour" not in capfd.readouterr().err


def test_counts_add_up_whatever_lies_in_the_folder(scored: Scored) -> None:
    summary = adds_up(scored.out)
    assert summary == scored.summary
    assert (summary["scored"], summary["rejected"]) == (12 + 2 + 2, len(HOSTILE))
    assert summary["files"] == 12 + 2 + len(HOSTILE)
    assert summary["rejected_by_column"] == {UNREADABLE: len(HOSTILE)}
    assert 0 < summary["flagged"] < summary["scored"]


def test_what_cannot_be_read_is_rejected_by_name_and_reason(scored: Scored) -> None:
    found = rejects(scored.out)
    assert sorted(scored.names(found)) == sorted(HOSTILE)
    for name, row in zip(scored.names(found), found, strict=True):
        assert any(reason in row["reason"] for reason in HOSTILE[name].split("|")), name
        assert "\n" not in row["reason"]
    rows = dict(zip(scored.names(found), (row["row"] for row in found), strict=True))
    assert (rows["pages.tif"], rows["text.png"]) == (2, None)  # a page, and a file


def test_images_are_named_by_path_and_frame(scored: Scored) -> None:
    table = parts(scored.out)
    assert table.column_names[:5] == ["path", "frame", "score", "p_value", "is_anomaly"]
    named = list(zip(scored.names(table.to_pylist()), table["frame"].to_pylist(), strict=True))
    assert len(set(named)) == len(named)
    assert [frame for name, frame in named if name == "pages.tif"] == [0, 1]
    assert {frame for name, frame in named if name != "pages.tif"} == {0}


def test_the_summary_says_which_model_decided_and_in_which_unit(
    scored: Scored, half: LoadedModel
) -> None:
    summary = scored.summary
    assert summary["model"] == {
        "name": "scans", "version": "7", "alias": "champion", "digest": half.bundle.digest
    }  # fmt: skip
    calibration = half.bundle.detector.calibration
    assert (summary["alpha"], summary["threshold"]) == (0.5, calibration.threshold)
    assert summary["unit"] == half.bundle.detector.unit == "sd"


@pytest.mark.parametrize(
    ("explain", "options"), [(None, NO_HEATMAPS), (None, HEAT), (3, NO_HEATMAPS)]
)
def test_scores_are_those_of_the_detector(
    half: LoadedModel,
    image_dataset: ImageDataset,
    manifest: Path,
    out: Path,
    explain: int | None,
    options: HeatmapOptions,
) -> None:
    """More images than are read at a time, whatever else is asked for."""
    assert len(image_dataset.batch) > 2 * BATCH_SIZE
    score_images(half, [str(manifest)], out, explain, options)
    truth, table = half.bundle.detector.detect(image_dataset.batch), parts(out)
    assert table["path"].equals(image_dataset.table["path"])
    np.testing.assert_array_equal(table["score"], truth.score)
    np.testing.assert_array_equal(table["p_value"], truth.p_value)
    np.testing.assert_array_equal(table["is_anomaly"], truth.is_anomaly)
    assert adds_up(out)["flagged"] == truth.is_anomaly.sum()


def test_an_image_alone_has_the_score_it_has_among_others(
    half: LoadedModel, scored: Scored
) -> None:
    schema = half.bundle.scorer.schema
    assert isinstance(schema, ImageSchema)
    for row in parts(scored.out).to_pylist():
        if row["path"].endswith(".png"):
            alone = schema.from_images([schema.read(Path(row["path"]))])
            assert half.bundle.scorer.score(alone) == row["score"]


@pytest.mark.parametrize(("explain", "most"), [(1, 1), ("all", SIZE**2)])
def test_regions_add_up_to_the_score(
    half: LoadedModel, tmp_path: Path, out: Path, explain: int | str, most: int
) -> None:
    write(tmp_path / "in", patched(blobs(6)))
    score_images(half, [str(tmp_path / "in")], out, explain, explain_rows=ExplainedRows.ALL)
    table = parts(out)
    assert table.column_names[-3:] == ["regions", "rest", "kl"]
    assert "contributions" not in table.column_names
    rows = table.to_pylist()
    assert any(row["regions"] for row in rows)
    for row in rows:
        nats = [region["nats"] for region in row["regions"]]
        assert len(nats) <= most
        assert nats == sorted(nats, reverse=True)
        assert sum(nats) + row["rest"] + row["kl"] == pytest.approx(row["score"], abs=1e-4)
        for region in row["regions"]:
            x0, y0, x1, y1 = region["box"]
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
        assert 0 <= sum(region["share"] for region in row["regions"]) <= 1


def test_images_without_regions_have_empty_lists(
    every: LoadedModel, tmp_path: Path, out: Path
) -> None:
    scale = {**every.bundle.manifest["heat_scale"], "region": 1e9, "high": 1e9}
    manifest = {**every.bundle.manifest, "heat_scale": scale}
    bundle = replace(every.bundle, manifest=manifest, manifest_file=None)
    folder = write(tmp_path / "in", blobs(2))
    score_images(LoadedModel(bundle), [str(folder)], out, 3)
    assert parts(out)["regions"].to_pylist() == [[], []]
    assert parts(out)["regions"].type.value_type.field("box").type == pa.list_(pa.int32())


# ---------------------------------------------------------------- heatmaps


def test_every_flagged_image_has_a_heatmap_and_no_other_has(scored: Scored) -> None:
    flagged = [row for row in parts(scored.out).to_pylist() if row["is_anomaly"]]
    stems = {file_stem(ImageFile.from_path(Path(row["path"])), row["frame"]) for row in flagged}
    assert {Path(name).stem for name in pictures(scored.out)} == stems
    assert scored.summary[HEATMAPS] == len(stems) == len(flagged)


def test_heatmaps_are_pictures_that_can_be_seen(scored: Scored) -> None:
    for name in pictures(scored.out):
        with Image.open(scored.out / HEATMAPS / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
            assert not picture.info


def test_nothing_is_drawn_unless_it_is_asked_for(half: LoadedModel, scans: Path, out: Path) -> None:
    summary = score_images(half, [str(scans)], out)
    assert not {HEATMAPS, DICOM, REFUSED} & summary.keys()
    assert not (out / HEATMAPS).exists()
    assert not (out / DICOM).exists()


def test_images_that_two_manifests_call_the_same_have_a_heatmap_each(
    every: LoadedModel, tmp_path: Path, out: Path
) -> None:
    lists = []
    for i in range(2):
        write(tmp_path / str(i), blobs(1, seed=i))
        lists.append(tmp_path / str(i) / "list.csv")
        lists[i].write_text("path\n0.png\n")
    score_images(every, list(map(str, lists)), out, heatmaps=HEAT)
    assert parts(out)["path"].to_pylist() == ["0.png", "0.png"]
    first, second = ((out / HEATMAPS / name).read_bytes() for name in pictures(out))
    assert first != second


def test_frames_of_a_file_have_a_heatmap_each(
    every: LoadedModel, tmp_path: Path, out: Path
) -> None:
    path = tiff(tmp_path / "pages.tif", blobs(3))
    assert score_images(every, [str(path)], out, heatmaps=HEAT)[HEATMAPS] == 3
    assert [name.rpartition("-")[2] for name in pictures(out)] == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    "name",
    [
        "\N{GRINNING FACE}" * 60,  # 240 bytes: as long as a name can be
        "two\nlines",
        "-",
        "a b'c\"d;$(e)",
        "\N{LATIN SMALL LETTER U WITH DIAERESIS}ber" + "x" * 200,
        "CON",
    ],
)
def test_a_name_of_any_kind_can_be_scored_and_drawn(
    every: LoadedModel, tmp_path: Path, out: Path, name: str
) -> None:
    folder = write(tmp_path / "in", blobs(1))
    (folder / "0.png").rename(folder / f"{name}.png")
    assert score_images(every, [str(folder)], out, heatmaps=HEAT)["scored"] == 1
    assert parts(out)["path"].to_pylist() == [str(folder / f"{name}.png")]
    (drawn,) = pictures(out)
    assert drawn.isascii()
    assert len(drawn) < 120
    adds_up(out)


def test_eighty_emoji_in_a_name_leave_names_apart(
    every: LoadedModel, tmp_path: Path, out: Path
) -> None:
    """Spread over two folders of a path, since a file's own name has 255 bytes."""
    face = "\N{GRINNING FACE}"
    for i, last in enumerate("ab"):
        write(tmp_path / "in" / (face * 40), blobs(1, seed=i))
        place = tmp_path / "in" / (face * 40)
        (place / "0.png").rename(place / f"{face * 40}{last}.png")
    assert score_images(every, [str(tmp_path / "in")], out, heatmaps=HEAT)[HEATMAPS] == 2
    assert len(pictures(out)) == 2


def test_a_name_that_is_no_text_can_be_scored_and_drawn(
    every: LoadedModel, tmp_path: Path, out: Path
) -> None:
    folder = write(tmp_path / "in", blobs(1))
    (folder / "0.png").rename(str(folder) + "/odd-\udcff.png")
    assert score_images(every, [str(folder)], out, heatmaps=HEAT)[HEATMAPS] == 1
    assert parts(out)["path"].to_pylist() == [f"{folder}/odd-\\xff.png"]


# ---------------------------------------------------------------- DICOM


@pytest.fixture(scope="module")
def captured(every: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Two DICOM files, a torn one and a PNG, all of them that can be scored flagged."""
    place = tmp_path_factory.mktemp("dicom")
    folder = write(place / "in", blobs(1))
    for name in PATIENTS:
        sample(name, folder / f"{name[:2]}.dcm")
    (folder / "torn.dcm").write_bytes((folder / "MR.dcm").read_bytes()[:3000])
    return Scored(folder, place / "out", score_images(every, [str(folder)], place / "out", 3, BOTH))


def test_flagged_dicom_files_have_secondary_captures_and_others_none(captured: Scored) -> None:
    assert {name[:2] for name in pictures(captured.out, DICOM)} == {"MR", "CT"}
    assert (captured.summary[HEATMAPS], captured.summary[DICOM]) == (3, 2)
    assert captured.summary[REFUSED] == 0
    for name in pictures(captured.out, DICOM):
        twin = dcmread(captured.out / DICOM / name)
        origin = dcmread(captured.folder / f"{name[:2]}.dcm")
        assert twin.SOPClassUID == SecondaryCaptureImageStorage
        assert twin.StudyInstanceUID == origin.StudyInstanceUID
        assert twin.PatientID == origin.PatientID
        assert twin.SourceImageSequence[0].ReferencedSOPInstanceUID == origin.SOPInstanceUID
        assert twin.pixel_array.ndim == 3


def test_no_patient_is_named_outside_the_dicom_files(captured: Scored) -> None:
    """Nor a UID; the parts and rejects are looked at as they are read."""
    headers = [dcmread(captured.folder / f"{name[:2]}.dcm") for name in PATIENTS]
    secrets = [*PATIENTS.values(), NAME, *(h.SOPInstanceUID for h in headers)]
    drawn = [(captured.out / HEATMAPS / name).read_bytes() for name in pictures(captured.out)]
    told = [(captured.out / SUMMARY).read_bytes(), str(rejects(captured.out)).encode()]
    told.append(str(parts(captured.out).to_pylist()).encode())
    assert len(rejects(captured.out)) == 1
    for secret in secrets:
        assert not any(secret.encode() in content for content in (*drawn, *told)), secret


def test_a_scan_without_a_study_has_a_heatmap_but_no_twin_and_that_is_told(
    every: LoadedModel, tmp_path: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        scan = dcmread(sample("MR_small.dcm", tmp_path / "in" / f"{i}.dcm"))
        del scan.StudyInstanceUID
        scan.save_as(tmp_path / "in" / f"{i}.dcm")
    summary = score_images(every, [str(tmp_path / "in")], out, heatmaps=BOTH)
    assert (summary[HEATMAPS], summary[DICOM], summary[REFUSED]) == (2, 0, 2)
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("a heatmap cannot be written as DICOM") == 1
    assert "lacks StudyInstanceUID" in told
    assert NAME not in told


def test_twins_alone_can_be_asked_for(every: LoadedModel, tmp_path: Path, out: Path) -> None:
    sample("MR_small.dcm", tmp_path / "in" / "a.dcm")
    summary = score_images(every, [str(tmp_path / "in")], out, heatmaps=HeatmapOptions(dicom=True))
    assert HEATMAPS not in summary
    assert not (out / HEATMAPS).exists()
    assert len(pictures(out, DICOM)) == summary[DICOM] == 1


# ---------------------------------------------------------------- the folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_run_replaces_the_first_on_request(
    every: LoadedModel, scans: Path, out: Path
) -> None:
    sample("MR_small.dcm", scans / "a.dcm")
    score_images(every, [str(scans)], out, heatmaps=BOTH)
    assert {HEATMAPS, DICOM} < {path.name for path in out.iterdir()}
    (scans / "0.png").unlink()
    score_images(every, [str(scans)], out, heatmaps=HEAT, run=RESTART)
    assert len(pictures(out)) == adds_up(out)["rows"] == 6
    assert not (out / DICOM).exists()
    score_images(every, [str(scans)], out, run=RESTART)
    visible = sorted(path.name for path in out.iterdir() if path.name != RUN)
    assert visible == ["part-00000.parquet", REJECTS, SUMMARY]


def test_scoring_again_gives_the_same_bytes(every: LoadedModel, scans: Path, out: Path) -> None:
    sample("MR_small.dcm", scans / "a.dcm")
    score_images(every, [str(scans)], out, 3, BOTH)
    first = content(out)
    score_images(every, [str(scans)], out, 3, BOTH)
    assert content(out) == first


def test_heatmaps_of_a_result_are_no_input(every: LoadedModel, scans: Path) -> None:
    """Where the result lies in the folder that is scored."""
    for _ in range(2):
        summary = score_images(every, [str(scans)], scans / "scores", heatmaps=HEAT)
        assert summary["files"] == summary[HEATMAPS] == 6


@pytest.mark.parametrize("name", ["notes.txt", f"{HEATMAPS}/mine.png", f"{DICOM}/scan.dcm"])
def test_a_folder_with_other_files_is_refused_and_kept(
    every: LoadedModel, scans: Path, out: Path, name: str
) -> None:
    score_images(every, [str(scans)], out, heatmaps=HEAT)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = content(out)
    with pytest.raises(DataError, match=f"holds other files, such as '{name}'"):
        score_images(every, [str(scans)], out)
    assert content(out) == before


def test_a_folder_in_use_is_refused(every: LoadedModel, scans: Path, out: Path) -> None:
    out.mkdir()
    with locked(out), pytest.raises(DataError, match="is being written by another run"):
        score_images(every, [str(scans)], out)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_is_continued(
    every: LoadedModel,
    scans: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    score_images(every, [str(scans)], out.with_name("whole"), heatmaps=HEAT)
    read = read_images

    def breaks_off(items: Sequence[ImageFile], schema: ImageSchema) -> Iterator[Batch]:
        yield next(read(items, schema))
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(job, "read_images", breaks_off)
        with pytest.raises(error):
            score_images(every, [str(scans)], out, heatmaps=HEAT)
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert {name for name in names if not name.endswith(".png")} == {"plan.json"}
    score_images(every, [str(scans)], out, heatmaps=HEAT)
    adds_up(out)
    assert parts(out).equals(parts(out.with_name("whole")))
    assert pictures(out) == pictures(out.with_name("whole"))


def test_nothing_usable_is_a_result_too(every: LoadedModel, tmp_path: Path, out: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("nothing")
    summary = score_images(every, [str(tmp_path / "in")], out, "all", BOTH)
    assert (summary["scored"], summary["rejected"], summary["parts"]) == (0, 1, [])
    assert (summary[HEATMAPS], summary[DICOM], summary[REFUSED]) == (0, 0, 0)
    adds_up(out)


def test_the_paths_of_a_manifest_are_what_the_answer_calls_its_images(
    every: LoadedModel, scans: Path, out: Path
) -> None:
    with (scans / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), ("1.png", 0), ("gone.png", 1)])
    score_images(every, [str(scans / "list.csv")], out)
    assert parts(out)["path"].to_pylist() == ["1.png"]
    assert [row["path"] for row in rejects(out)] == ["gone.png"]


def test_links_in_a_circle_are_one_reject_and_others_score(
    every: LoadedModel, scans: Path, out: Path
) -> None:
    (scans / "odd.png").symlink_to("odd.png")
    summary = score_images(every, [str(scans), str(scans / "odd.png")], out)
    assert (summary["scored"], summary["rejected"]) == (6, 1)
    assert [Path(row["path"]).name for row in rejects(out)] == ["odd.png"]


def test_an_image_by_its_relative_and_its_absolute_path_is_scored_once(
    every: LoadedModel, scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scans.parent)
    assert score_images(every, [scans.name, str(scans)], out)["files"] == 6


def test_every_file_of_a_folder_is_scored_or_rejected_and_told(
    every: LoadedModel, scans: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiff(scans / "pages.0001", np.stack([*blobs(2), np.zeros((SIZE, SIZE), np.uint8)]))
    (scans / ".cache").mkdir()
    for name in (".DS_Store", "notes.txt", ".cache/x.png", "zero", "a.txt"):
        (scans / name).write_text("" if name == "zero" else "text")
    summary = score_images(every, [str(scans)], out)
    assert (summary["files"], summary["files_scored"], summary["files_rejected"]) == (12, 7, 5)
    assert (summary["rows"], summary["scored"], summary["rejected"]) == (14, 8, 6)
    names = {Path(row["path"]).relative_to(scans).as_posix(): row["row"] for row in rejects(out)}
    assert names == {
        **dict.fromkeys((".DS_Store", "notes.txt", ".cache/x.png", "zero", "a.txt")),
        "pages.0001": 2,
    }
    assert summary["rejected_by_reason"] == {
        "it is text and no image": 2,
        "it lies in the hidden folder '.cache'; move it or give that folder itself": 1,
        "it is a hidden file; rename it or give the file itself": 1,
        "all pixels are alike: the image shows nothing": 1,
        "the file is empty; copy it again": 1,
    }
    adds_up(out)
    told = capfd.readouterr().err
    assert "2 left out: it is text and no image ('a.txt', 'notes.txt')\n" in told


def test_a_bad_row_of_a_manifest_is_one_reject(every: LoadedModel, scans: Path, out: Path) -> None:
    lines = ["id,path,label", "7,0.png,0", "8,,1", "9,0.png,0", "10,gone.png", "11,gone.png,1"]
    (scans / "list.csv").write_text("\n".join([*lines, "12,1.png,0"]))
    summary = score_images(every, [str(scans / "list.csv")], out)
    assert (summary["rows"], summary["scored"], summary["files"]) == (6, 2, 6)
    assert parts(out).select(["path", "frame", "id"]).to_pylist() == [
        {"path": "0.png", "frame": 0, "id": "7"},
        {"path": "1.png", "frame": 0, "id": "12"},
    ]
    found = {row["row"]: (row["path"], row["id"], row["reason"]) for row in rejects(out)}
    assert found == {
        1: ("", "8", "line 3 of 'list.csv': the path is empty; fill it in"),
        2: (
            "0.png",
            "9",
            "line 4 of 'list.csv': it is listed a second time, after line 2 of 'list.csv'; "
            "keep one of its rows",
        ),
        3: ("", None, "line 5 of 'list.csv': expected 3 fields, found 2"),
        None: ("gone.png", "11", "line 6 of 'list.csv': there is no such file; check its path"),
    }
    adds_up(out)


def test_a_file_that_vanishes_after_it_was_listed_is_one_reject(
    every: LoadedModel, scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanishing(paths: Sequence[str]) -> list[ImageFile]:
        files = list_files(paths)
        (scans / "3.png").unlink()
        return files

    monkeypatch.setattr(score, "list_files", vanishing)
    summary = score_images(every, [str(scans)], out)
    assert (summary["scored"], summary["rejected"]) == (5, 1)
    adds_up(out)


# ---------------------------------------------------------------- other files


@pytest.fixture
def listed(tmp_path: Path, scans: Path) -> Path:
    """A manifest of the scans, two of each patient; the last patient has no name."""
    rows = [f"scans/{i}.png,{'' if i > 3 else f'P{i // 2}'},site {i % 2}" for i in range(6)]
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(["path,patient,site", *rows]))
    return path


def test_the_highest_image_of_each_patient_is_ranked_with_its_regions(
    every: LoadedModel, listed: Path, out: Path
) -> None:
    scale = {**every.bundle.manifest["heat_scale"], "region": 0.0, "high": 0.0}
    manifest = {**every.bundle.manifest, "heat_scale": scale}
    every = LoadedModel(replace(every.bundle, manifest=manifest, manifest_file=None))
    chosen = OutputOptions(Format.CSV, columns=("site",), top=4, by="patient")
    summary = score_images(every, [str(listed)], out, 2, outputs=chosen)
    top = pq.read_table(out / "top.parquet")
    with (out / summary["parts"][0]).open(newline="") as file:
        scores = {row["path"]: float(row["score"]) for row in csv.DictReader(file)}
    first = [max((f"scans/{i}.png", f"scans/{i + 1}.png"), key=scores.__getitem__) for i in (0, 2)]
    paths = sorted([*first, "scans/4.png", "scans/5.png"], key=scores.__getitem__, reverse=True)
    assert top["path"].to_pylist() == paths
    assert top.column_names[:5] == ["rank", "path", "frame", "patient", "site"]
    assert all("area from x" in text for text in top["reasons"].to_pylist())
    assert summary["top"]["files"] == ["top.parquet", "top.csv"]
    (listed.parent / paths[0]).unlink()
    (out / "top.parquet").unlink()
    with pytest.raises(DataError, match=f"'{paths[0]}' was changed since"):
        score_images(every, [str(listed)], out, 2, outputs=chosen)


def test_flagged_images_are_divided_into_folders_by_a_column_of_the_manifest(
    every: LoadedModel, listed: Path, out: Path
) -> None:
    divided = OutputOptions(only_flagged=True, partition_by="site", limit=5)
    summary = score_images(every, [str(listed)], out, outputs=divided)
    assert summary["parts"] == [f"site=site%20{i}/part-00000.parquet" for i in (0, 1)]
    assert [pq.read_metadata(out / name).num_rows for name in summary["parts"]] == [3, 2]
    assert (summary["scored"], summary["limit"], summary["limited"]) == (5, 5, True)
    assert (summary["files"], summary["files_rejected"]) == (5, 0)


def test_images_have_no_days_and_no_columns_without_a_manifest(
    every: LoadedModel, scans: Path, out: Path
) -> None:
    with pytest.raises(ConfigError, match="--per day is for tables, as images have no times"):
        score_images(every, [str(scans)], out, outputs=OutputOptions(top=2, per_day=True))
    with pytest.raises(DataError, match="--by: no column 'patient' in the input, found nothing"):
        score_images(every, [str(scans)], out, outputs=OutputOptions(top=2, by="patient"))


# ---------------------------------------------------------------- maps in the pixels of files


@pytest.mark.parametrize("kind", ["npy", "tiff", "nifti"])
def test_maps_have_the_size_of_their_images(
    every: LoadedModel, tmp_path: Path, out: Path, kind: str
) -> None:
    wide = np.concatenate([blobs(2), blobs(2, seed=1)], 2)
    folder = write(tmp_path / "in", wide)
    voxels = np.moveaxis(blobs(5), 0, -1).astype(np.int16)
    volume = nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0]))
    volume.to_filename(folder / "v.nii.gz")
    summary = score_images(every, [str(folder)], out, heatmaps=HeatmapOptions(maps=MapFormat(kind)))
    assert adds_up(out)["maps"] == summary["maps"] == (3 if kind == "nifti" else 7)
    names = pictures(out, MAPS)
    assert len(names) == summary["maps"]
    if kind == "nifti":
        found = [nibabel.load(out / MAPS / name) for name in names]
        assert sorted(one.shape for one in found) == [(24, 24, 5), (48, 24, 1), (48, 24, 1)]
        (of_volume,) = (one for one in found if one.shape[2] == 5)
        np.testing.assert_allclose(of_volume.affine, volume.affine)
        assert np.isfinite(of_volume.get_fdata()).all()
    else:
        load = np.load if kind == "npy" else tifffile.imread
        shapes = sorted(load(out / MAPS / name).shape for name in names)
        assert shapes == [(24, 24)] * 5 + [(24, 48)] * 2


def test_a_map_is_that_of_the_estimator(every: LoadedModel, scans: Path, out: Path) -> None:
    score_images(every, [str(scans)], out, heatmaps=HeatmapOptions(maps=MapFormat.NPY))
    batch = every.bundle.scorer.schema.from_images([DecodedImage(blobs(6)[3] * np.uint16(257), 0)])
    heat = every.bundle.scorer.explain(batch).nats.reshape(SIZE, SIZE)
    (name,) = (name for name in pictures(out, MAPS) if name.startswith("3-"))
    np.testing.assert_allclose(np.load(out / MAPS / name), heat, rtol=1e-5)


def test_regions_are_also_in_the_pixels_of_the_file(
    every: LoadedModel, tmp_path: Path, out: Path
) -> None:
    large = patched(blobs(4)).repeat(3, 1).repeat(3, 2)
    score_images(every, [str(write(tmp_path / "in", large))], out, explain="all")
    found = [region for row in parts(out)["regions"].to_pylist() for region in row]
    assert found
    assert all([3 * end for end in one["box"]] == one["source_box"] for one in found)


def test_maps_of_a_score_that_does_not_localise_come_with_a_warning(
    every: LoadedModel, scans: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"images": 20, "auroc": 0.5, "auroc_low": 0.4, "average_precision": 0.1}
    manifest = {**every.bundle.manifest, "localization": figures | {"base_rate": 0.1}}
    model = replace(every, bundle=replace(every.bundle, manifest=manifest))
    score_images(model, [str(scans)], out, heatmaps=HeatmapOptions(maps=MapFormat.NPY))
    assert "this score does not localise" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("kind", "suffix"), [("dicom", ".dcm"), ("dicom-seg", ".seg.dcm")])
def test_maps_of_dicom_images_refer_to_them_and_other_files_are_refused(
    every: LoadedModel, tmp_path: Path, out: Path, kind: str, suffix: str
) -> None:
    folder = write(tmp_path / "in", blobs(2))
    sample("CT_small.dcm", folder / "ct.dcm")
    summary = score_images(every, [str(folder)], out, heatmaps=HeatmapOptions(maps=MapFormat(kind)))
    assert (summary["maps"], summary["maps_refused"]) == (1, 2)
    (name,) = pictures(out, MAPS)
    assert name.endswith(suffix)
    read, image = dcmread(shipped("CT_small.dcm")), dcmread(out / MAPS / name)
    assert image.pixel_array.shape == (read.Rows, read.Columns)
    assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == read.SOPInstanceUID
    if kind == "dicom":
        npy = score_images(
            every, [str(folder)], tmp_path / "npy", heatmaps=HeatmapOptions(maps=MapFormat.NPY)
        )
        assert npy["maps_refused"] == 0
        (of_ct,) = (one for one in pictures(tmp_path / "npy", MAPS) if one.startswith("ct-"))
        assert np.array_equal(image.pixel_array, np.load(tmp_path / "npy" / MAPS / of_ct))


def test_regions_of_a_score_that_does_not_localise_are_no_segments(
    every: LoadedModel, scans: Path, out: Path
) -> None:
    figures = {"images": 20, "auroc": 0.5, "auroc_low": 0.4, "average_precision": 0.1}
    manifest = {**every.bundle.manifest, "localization": figures | {"base_rate": 0.1}}
    model = replace(every, bundle=replace(every.bundle, manifest=manifest))
    with pytest.raises(ConfigError, match="--maps dicom-seg: this score does not localise"):
        score_images(model, [str(scans)], out, heatmaps=HeatmapOptions(maps=MapFormat.DICOM_SEG))
    assert not out.exists()


# ---------------------------------------------------------------- masks of images


def test_a_model_with_masks_scores_what_counts_and_refuses_images_without(
    tmp_path: Path, out: Path
) -> None:
    images, mask = blobs(24), np.zeros((24, 24), np.uint8)
    mask[4:20, 4:20] = 255
    clear = write(tmp_path / "clear", [np.dstack([image, mask]) for image in images])
    marked = images.copy()
    marked[0, :3] = 255  # outside of the mask, where it must not count
    opaque = write(tmp_path / "opaque", marked)
    Image.fromarray(mask).save(opaque / "mask.png")
    rows = [f"{i}.png,mask.png" for i in range(4)] + ["5.png,"]
    (opaque / "m.csv").write_text("\n".join(["path,mask", *rows]))
    paths = [str(clear / f"{i}.png") for i in range(24)]
    detector = ImageVAEDetector(
        network="dense", size=24, hidden_dim=8, latent_dim=2, epochs=1, alpha=0.2, mask="own"
    ).fit(paths)
    summary = score_images(LoadedModel(detector.bundle_), [str(opaque / "m.csv")], out)
    assert (summary["scored"], summary["rejected"]) == (4, 1)
    assert rejects(out)[0]["reason"].startswith("it has no mask, which the model needs")
    np.testing.assert_allclose(
        parts(out)["score"].to_numpy(), -detector.score_samples(paths[:4]), rtol=1e-6
    )
    assert (detector.heatmap(paths[:1])[0][mask == 0] == 0).all()
