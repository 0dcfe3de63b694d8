"""Batch scoring of images: every image scored or rejected by name, and the flagged ones drawn."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import SecondaryCaptureImageStorage

from anomaly_vae.bundle import Bundle
from anomaly_vae.calibration import calibrate
from anomaly_vae.errors import DataError
from anomaly_vae.files import locked
from anomaly_vae.images import ImageSchema
from pipelines import score_images as module
from pipelines.images import BATCH, Batch, ImageDataset, Item
from pipelines.models import Source
from pipelines.results import DICOM, HEATMAPS, INCOMPLETE, OURS, REJECTS, SUMMARY
from pipelines.score import UNREADABLE
from pipelines.score_images import NOTHING, REFUSED, Drawing, score_images, stem_of
from tests.scans import SIZE, blobs, patched

HEAT = Drawing(heatmaps=True)
BOTH = Drawing(heatmaps=True, dicom=True)
PATIENTS = {"MR_small.dcm": "4MR1", "CT_small.dcm": "1CT1"}
NAME = "CompressedSamples"
"""Of the patients in pydicom's samples, to whom it adds what their scan is."""


@pytest.fixture(scope="session")
def half(image_calibrated: Bundle, image_dataset: ImageDataset) -> Source:
    """A model that flags about half of the images that it was made with."""
    scores = image_calibrated.scorer.score(image_dataset.batch)
    calibration = calibrate(scores, alpha=0.5)
    return Source(image_calibrated.calibrated(calibration, None), "scans", "7", "champion")


@pytest.fixture(scope="session")
def every(image_calibrated: Bundle) -> Source:
    """A model that flags every image."""
    calibration = calibrate(np.full(20, -1e6), alpha=0.1)
    return Source(image_calibrated.calibrated(calibration, None))


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
    first.save(path, save_all=True, append_images=others)
    return path


def sample(name: str, to: Path) -> Path:
    """One of the scans that come with pydicom."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"pydicom does not ship {name} any more"
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)
    return to


def parts(folder: Path) -> pa.Table:
    """The scored images in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def rejects(folder: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / REJECTS).to_pylist())


def pictures(folder: Path, kind: str = HEATMAPS) -> list[str]:
    return sorted(path.name for path in (folder / kind).glob("*"))


def adds_up(folder: Path) -> dict[str, Any]:
    """The summary, after checking it against what lies in the folder."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    lies = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert all(map(OURS.fullmatch, lies))
    flagged = sum(pq.read_table(folder / part)["is_anomaly"].to_pylist().count(True)
                  for part in summary["parts"])  # fmt: skip
    assert summary["scored"] == sum(pq.read_metadata(folder / p).num_rows for p in summary["parts"])
    assert summary["flagged"] == flagged
    assert summary["rejected"] == len(rejects(folder)) == sum(summary["rejected_by_column"].values())
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
    "constant.png": "all pixels are alike",
    "gone.png": "cannot|no file",
    "text.png": "no PNG, JPEG, TIFF, DICOM or NIfTI",
    "torn.dcm": "truncated|cut short|damaged",
    "torn.png": "truncated|cut short|damaged",
    "zero.png": "empty|no PNG",
}
"""Files that give no picture, and a word of the reason."""


@pytest.fixture(scope="module")
def scored(half: Source, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Twelve sound images, a TIFF of three pages, one of them black, two DICOM files, the hostile."""
    place = tmp_path_factory.mktemp("hostile")
    folder = write(place / "in", np.concatenate([blobs(6), patched(blobs(6, seed=1))]))
    tiff(folder / "pages.tif", np.stack([*patched(blobs(2)), np.zeros((SIZE, SIZE), np.uint8)]))
    for name in PATIENTS:
        sample(name, folder / "dicom" / f"{name[:2]}.dcm")
    Image.fromarray(np.full((SIZE, SIZE), 90, np.uint8)).save(folder / "constant.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "text.png").write_text("To whom it may concern")
    (folder / "zero.png").touch()
    whole = (folder / "0.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    scan = (folder / "dicom" / "CT.dcm").read_bytes()
    (folder / "torn.dcm").write_bytes(scan[: len(scan) // 2])
    paths = [str(folder), str(folder / "gone.png"), str(folder / "gone*")]
    summary = score_images(half, [str(folder)], place / "out", 3, BOTH)
    del paths
    return Scored(folder, place / "out", summary)


def test_counts_add_up_whatever_lies_in_the_folder(scored: Scored) -> None:
    summary = adds_up(scored.out)
    assert summary == scored.summary
    assert summary["scored"] == 12 + 2 + 2
    assert summary["rejected_by_column"] == {UNREADABLE: summary["rejected"]}
    assert 0 < summary["flagged"] < summary["scored"]
