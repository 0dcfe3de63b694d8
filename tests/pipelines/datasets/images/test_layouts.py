"""Folders whose names mean splits and labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomaly_vae.config import ImageConfig, validate_config
from anomaly_vae.config.data import Splits
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION, assign
from anomaly_vae.errors import DataError
from pipelines.datasets.images.dataset import ImageDataset, load_images, read_labelled
from pipelines.datasets.images.files import DEFECT, LABEL, SPLIT
from pipelines.datasets.images.listing import images_and_others
from tests.support.image_folders import png

MVTEC = {
    "train/good": 20,
    "test/good": 6,
    "test/crack": 4,
    "test/hole": 3,
    "ground_truth/crack": 4,
    "ground_truth/hole": 3,
}
LABELS = {"normal": 30, "tumour": 5}


def write(root: Path, folders: dict[str, int]) -> Path:
    """Write images of noise into folders; names count up within each."""
    rng = np.random.default_rng(0)
    for folder, count in folders.items():
        for number in range(count):
            png(root / folder / f"{number:03}.png", rng.integers(0, 255, (8, 8)).astype(np.uint8))
    return root


def load(*paths: Path | str, **data: object) -> ImageDataset:
    given = {"path": [str(path) for path in paths], "size": 16, **data}
    config = validate_config({"kind": "image", "name": "parts", "data": given})
    assert isinstance(config, ImageConfig)
    return load_images(config.data)


def folders_of(dataset: ImageDataset, *splits: int) -> set[str]:
    rows = np.concatenate([dataset.assignment.rows(split) for split in splits])
    return {dataset.files[row].parent.name for row in rows}


def test_images_to_train_on_and_to_test_on_stay_there(tmp_path: Path) -> None:
    dataset = load(write(tmp_path, MVTEC))
    assert folders_of(dataset, TRAIN, VALIDATION, CALIBRATION) == {"good"}
    assert folders_of(dataset, TEST) == {"good", "crack", "hole"}
    assert dataset.assignment.counts["test"] == 13
    assert dataset.assignment.counts["unused"] == 0
    assert dataset.rows.anomaly.sum() == 7


def test_what_was_found_is_said(tmp_path: Path) -> None:
    found, masks, *_ = load(write(tmp_path / "tile", MVTEC)).notes
    assert found.startswith("'tile' has folders of splits: found 'ground_truth (7)'")
    assert "'train/good (20)'; normal: 'good'; anomalies, only to test on: 'crack', 'hole'" in found
    assert masks.startswith("7 left out: it is a mask of the folder layout")


def test_all_normal_images_to_train_on_do(tmp_path: Path) -> None:
    """The share that is tested otherwise trains."""
    counts = load(write(tmp_path, MVTEC)).assignment.counts
    assert counts["train"] + counts["validation"] == 16
    assert counts["calibration"] == 4


def test_anomalies_among_images_to_train_on_are_left_out(tmp_path: Path) -> None:
    folders = {"train/NORMAL": 20, "train/PNEUMONIA": 5, "val/NORMAL": 4, "test/NORMAL": 3}
    dataset = load(write(tmp_path, folders | {"test/PNEUMONIA": 6}))
    assert dataset.assignment.unused == {"anomalies outside the test split": 5}
    assert folders_of(dataset, TRAIN, VALIDATION, CALIBRATION) == {"NORMAL"}


def test_a_patient_in_both_splits_does_not_train(tmp_path: Path) -> None:
    write(tmp_path, {"train/good": 20, "test/good": 5})
    dataset = load(tmp_path)
    group = np.arange(25, dtype=np.int32)
    group[-1] = group[0]  # the files are in order: test first
    assigned = assign(replace(dataset.rows, group=group), Splits())
    assert assigned.unused == {"their group belongs to another split": 1}


@pytest.mark.parametrize(
    "folders",
    [
        LABELS,
        {"good": 30, "scratch": 5},
        {"no_tumor": 30, "yes": 5},
        {"0": 30, "1": 5},
        {"NEGATIVE": 30, "covid": 5, "figures": 1},
    ],
)
def test_labels_of_folders_keep_anomalies_out_of_training(
    tmp_path: Path, folders: dict[str, int]
) -> None:
    dataset = load(write(tmp_path, folders))
    assert folders_of(dataset, TRAIN, VALIDATION, CALIBRATION) == {next(iter(folders))}
    assert dataset.rows.anomaly.sum() == sum(list(folders.values())[1:])


def ways_to_name(root: Path) -> Iterator[list[str]]:
    yield [str(root)]
    yield [f"{root}/*"]
    yield [f"{root}/*/*.png"]
    yield [f"{root}/**/*.png"]
    yield [str(root / "normal"), str(root / "tumour")]


@pytest.mark.parametrize("way", range(5))
def test_labels_are_seen_however_the_images_are_named(tmp_path: Path, way: int) -> None:
    paths = list(ways_to_name(write(tmp_path, LABELS)))[way]
    assert load(*paths).rows.anomaly.sum() == 5


@pytest.mark.parametrize(
    "folders",
    [{"batch1": 20, "batch2": 10}, {"0": 10, "1": 10, "2": 10}, {"good": 30}, {"": 30}],
)
def test_other_folders_mean_nothing(tmp_path: Path, folders: dict[str, int]) -> None:
    dataset = load(write(tmp_path, folders))
    assert dataset.label is None
    assert not dataset.rows.anomaly.any()


def test_folders_of_labels_without_a_normal_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(write(tmp_path, {"abnormal": 20, "scans": 20}))
    assert "found 'abnormal (20)', 'scans (20)'" in str(error.value)
    assert "set data.layout: folder" in str(error.value)


def test_names_can_be_ignored(tmp_path: Path) -> None:
    dataset = load(write(tmp_path, LABELS), layout="folder")
    assert dataset.label is None
    assert len(dataset.rows) == 35


def test_a_layout_that_is_required_but_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs train/good and test/<defect>; found 'normal'"):
        load(write(tmp_path, LABELS), layout="mvtec")


def test_rows_of_a_manifest_keep_their_labels(tmp_path: Path) -> None:
    write(tmp_path, {"good": 30, "bad": 2})
    manifest = tmp_path / "list.csv"
    rows = [f"good/{i:03}.png,{int(i < 3)}" for i in range(30)]
    manifest.write_text("\n".join(["path,label", *rows]))
    assert load(manifest).rows.anomaly.sum() == 3


def test_only_images_to_test_on_are_evaluated(tmp_path: Path) -> None:
    dataset = load(write(tmp_path, MVTEC))
    table, _, files = read_labelled([str(tmp_path)], dataset.schema, LABEL)
    assert len(files) == 13
    assert table.column(LABEL).to_pylist().count("1") == 7
    assert set(table.column(DEFECT).to_pylist()) == {"good", "crack", "hole"}


def test_attributes_name_what_folders_mean(tmp_path: Path) -> None:
    found = images_and_others([str(write(tmp_path, MVTEC))], "auto").images
    crack = next(file for file in found if file.path.parent.name == "crack")
    assert crack.attributes == {LABEL: "1", DEFECT: "crack", SPLIT: "test"}
