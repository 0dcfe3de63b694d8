"""Data sets of images: named, split, frozen, told apart."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from anomaly_vae.config import ImageConfig
from anomaly_vae.config.data import ImageData
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, UNUSED, VALIDATION
from anomaly_vae.errors import DataError
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.schema import ImageSchema, image_batch
from anomaly_vae.types import Fit
from pipelines.datasets.images.dataset import ImageDataset, load_images, read_labelled
from pipelines.datasets.loading import load_dataset
from tests.support.image_folders import Write, png, tiff
from tests.support.image_uploads import dicom_file
from tests.support.scans import N_ANOMALIES, N_SCANS, SIZE, blobs, coloured

SCHEMA = ImageSchema(16, 1)


def test_the_test_table_keeps_the_masks_of_images(tmp_path: Path) -> None:
    for i, image in enumerate(blobs(40)):
        png(tmp_path / f"{i}.png", image)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, 4 : 8 + i % 3] = 1
        png(tmp_path / "masks" / f"{i}.png", mask)
    rows = [f"{i}.png,masks/{i}.png" for i in range(40)]
    (tmp_path / "m.csv").write_text("\n".join(["path,mask", *rows]))
    data = load_images(ImageData(path=str(tmp_path / "m.csv"), size=SIZE, mask="own"))
    again = data.schema.from_arrow(data.test_table)
    assert not again.problems
    np.testing.assert_array_equal(again.values[IMAGE], data.part(TEST).values[IMAGE])


def test_labelled_images_come_with_their_index(listing: Write) -> None:
    path = listing("path,verdict,group\na.png,ill,p1\nsub/c.tif,,p2\nmissing.png,well,p3\n")
    table, batch, files = read_labelled([str(path)], SCHEMA, "verdict")
    assert [file.name for file in files] == ["a.png", "c.tif", "missing.png"]
    assert table.to_pydict() == {
        "path": ["a.png", "sub/c.tif", "missing.png"],
        "frame": [0, 0, None],
        "verdict": ["ill", None, "well"],
        "group": ["p1", "p2", "p3"],
    }
    assert batch.usable.tolist() == [True, True, False]
    with pytest.raises(DataError, match="no manifest has the column 'diagnosis'; found 'group'"):
        read_labelled([str(path)], SCHEMA, "diagnosis")


# ---------------------------------------------------------------- data sets


def test_a_data_set_has_every_image_labelled_grouped_and_split(
    image_dataset: ImageDataset, image_config: ImageConfig
) -> None:
    data = image_dataset
    assert len(data.table) == len(data.batch) == len(data.rows) == N_SCANS
    assert int(data.rows.anomaly.sum()) == N_ANOMALIES
    assert (data.label, data.group) == ("label", "group")
    assert sum(data.assignment.counts.values()) == N_SCANS
    trained = np.concatenate([data.assignment.rows(s) for s in (TRAIN, VALIDATION, CALIBRATION)])
    assert not data.rows.anomaly[trained].any()
    assert data.table.column("path")[0].as_py() == "images/000.png"
    assert data.summary()["rows"] == N_SCANS
    assert load_dataset(image_config.data).digest == data.digest


def test_a_group_lies_in_one_split_and_calibrates_once(image_dataset: ImageDataset) -> None:
    groups = np.array(image_dataset.table.column("group").to_pylist())
    codes = image_dataset.assignment.codes
    for group in set(groups[:20]):
        assert len(set(codes[groups == group]) - {UNUSED}) <= 1
    calibrating = groups[image_dataset.calibration_rows]
    assert len(set(calibrating)) == len(calibrating)
    assert set(codes[image_dataset.calibration_rows]) == {CALIBRATION}


def stack(folder: Path, count: int, per: int) -> Path:
    """So many TIFFs of so many pages, no two alike."""
    pages = blobs(count * per).reshape(count, per, 24, 24)
    for number, images in enumerate(pages):
        tiff(folder / f"{number:02d}.tif", images)
    return folder


def test_the_frames_of_a_file_stay_together_where_nothing_else_is_said(tmp_path: Path) -> None:
    data = load_images(ImageData(path=str(stack(tmp_path, 12, 3)), size=16))
    assert data.group == "group"
    codes = data.assignment.codes.reshape(12, 3)
    assert (codes == codes[:, :1]).all()
    assert data.table.column("frame").to_pylist() == [0, 1, 2] * 12
    rows = data.calibration_rows
    assert len({row // 3 for row in rows}) == len(rows)


def test_files_of_one_image_need_no_groups(tmp_path: Path) -> None:
    for number, image in enumerate(blobs(20)):
        png(tmp_path / f"{number:02d}.png", image)
    data = load_images(ImageData(path=str(tmp_path), size=16))
    assert (data.label, data.group, data.rows.group) == (None, None, None)
    assert not data.rows.anomaly.any()


def test_an_image_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    for number, image in enumerate(blobs(30)):
        png(tmp_path / f"{number:02d}.png", image)
    (tmp_path / "07.png").write_bytes(b"torn")
    (tmp_path / "08.png").write_bytes((tmp_path / "08.png").read_bytes()[:60])
    data = load_images(ImageData(path=str(tmp_path), size=16))
    assert len(data.table) == 29
    assert data.assignment.codes[7] == UNUSED
    text = "1 left out: it is text and no image ('07.png')"
    torn = "1 left out: it is cut short; copy the file again ('08.png')"
    assert data.notes == (text, torn)
    assert data.left_out == {"it is text and no image": 1}


def test_images_without_a_label_are_told(tmp_path: Path) -> None:
    lines = []
    for number, image in enumerate(blobs(20)):
        png(tmp_path / f"{number:02d}.png", image)
        lines.append(f"{number:02d}.png,{'' if number < 3 else 0}")
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    data = load_images(ImageData(path=str(tmp_path / "list.csv"), size=16))
    assert int(data.rows.unlabelled.sum()) == 3
    assert data.label == "label"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "diagnosis"}, "no manifest has the column 'diagnosis'"),
        ({"group": "patient"}, "no manifest has the column 'patient'"),
        ({"positive": "ill"}, "never has the value 'ill'"),
    ],
)
def test_a_column_that_is_not_there_is_refused(
    image_config: ImageConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_images(image_config.data.model_copy(update=changes))


# ---------------------------------------------------------------- digests and twins


def test_the_digest_follows_pixels_labels_and_split(
    image_dataset: ImageDataset, image_config: ImageConfig
) -> None:
    images = np.asarray(image_dataset.batch.values[IMAGE]).copy()
    images[5, 0, 3, 3] += 0.01
    labels = image_dataset.rows.anomaly.copy()
    labels[0] = True
    rows = dataclasses.replace(image_dataset.rows, anomaly=labels)
    splits = image_config.data.splits.model_copy(update={"seed": 1})
    others = [
        dataclasses.replace(image_dataset, batch=image_batch(images)),
        dataclasses.replace(image_dataset, rows=rows),
        load_images(image_config.data.model_copy(update={"splits": splits})),
        load_images(image_config.data.model_copy(update={"size": 20})),
    ]
    assert len({image_dataset.digest, *(other.digest for other in others)}) == 5


def test_the_digest_knows_no_path(image_config: ImageConfig, tmp_path: Path) -> None:
    place = Path(image_config.data.paths[0]).parent
    shutil.copytree(place, tmp_path / "moved")
    data = image_config.data.model_copy(update={"path": str(tmp_path / "moved" / "manifest.csv")})
    assert load_images(data).digest == load_images(image_config.data).digest


def test_near_twins_are_counted_mirrored_and_brighter_ones_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 200, (40, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    for number, image in enumerate(images):
        png(tmp_path / f"{number:02d}.png", image)
    plain = load_images(ImageData(path=str(tmp_path), size=32))
    test, train = plain.assignment.rows(TEST), plain.assignment.rows(TRAIN)
    png(tmp_path / f"{test[0]:02d}.png", images[train[0]])
    png(tmp_path / f"{test[1]:02d}.png", images[train[1], :, ::-1])
    png(tmp_path / f"{test[2]:02d}.png", images[train[2]] + 40)
    encoding: Any = None  # pixels decide, not how they are encoded
    assert not plain.test_twins(encoding).any()
    twins = load_images(ImageData(path=str(tmp_path), size=32)).test_twins(encoding)
    assert np.flatnonzero(twins).tolist() == [0, 1, 2]


# ---------------------------------------------------------------- the frozen test split


def test_the_frozen_table_gives_the_same_images_again(
    image_dataset: ImageDataset, tmp_path: Path
) -> None:
    pq.write_table(image_dataset.test_table, tmp_path / "test.parquet")
    frozen = pq.read_table(tmp_path / "test.parquet")
    batch = image_dataset.schema.from_arrow(frozen)
    assert not batch.problems
    np.testing.assert_array_equal(batch.values[IMAGE], image_dataset.part(TEST).values[IMAGE])
    rows = image_dataset.assignment.rows(TEST)
    assert set(frozen.column_names) == {IMAGE, "label", "group"}  # no path: it may name a patient
    assert frozen["label"].equals(image_dataset.table["label"].take(pa.array(rows)))
    assert image_dataset.rows.group is not None
    np.testing.assert_array_equal(frozen["group"].to_numpy(), image_dataset.rows.group[rows])


def test_the_frozen_table_has_the_frames_that_test_and_no_others(tmp_path: Path) -> None:
    data = load_images(ImageData(path=str(stack(tmp_path, 12, 3)), size=16))
    table = data.test_table
    assert len(table) == len(data.assignment.rows(TEST))
    batch = data.schema.from_arrow(table)
    np.testing.assert_array_equal(batch.values[IMAGE], data.part(TEST).values[IMAGE])


def test_the_frozen_table_keeps_colour(tmp_path: Path) -> None:
    for number, image in enumerate(coloured(blobs(20))):
        png(tmp_path / f"{number:02d}.png", image)
    data = load_images(ImageData(path=str(tmp_path), size=16, channels=3))
    batch = data.schema.from_arrow(data.test_table)
    np.testing.assert_array_equal(batch.values[IMAGE], data.part(TEST).values[IMAGE])


def write_all(folder: Path, images: NDArray[np.uint8]) -> Path:
    for number, image in enumerate(images):
        png(folder / f"{number:02d}.png", image)
    return folder


def test_colour_that_the_model_does_not_see_is_told_at_training(tmp_path: Path) -> None:
    images = coloured(blobs(20))
    images[6:] = images[6:, ..., :1]  # grey, though stored as RGB
    path = str(write_all(tmp_path, images))
    data = load_images(ImageData(path=path, size=16))
    expected = "6 of 20 images are in colour, but the model sees grey; set data.channels: 3 if"
    assert any(note.startswith(expected) for note in data.notes)
    data = load_images(ImageData(path=path, size=16, channels=3))
    assert not any("colour" in note for note in data.notes)


def test_grey_images_for_a_model_of_colours_are_told_at_training(tmp_path: Path) -> None:
    path = str(write_all(tmp_path, blobs(20)))
    data = load_images(ImageData(path=path, size=16, channels=3))
    assert "none of the 20 images is in colour; data.channels: 1 suffices" in data.notes
    assert not any("colour" in note for note in load_images(ImageData(path=path, size=16)).notes)


def test_windows_that_hide_nearly_all_are_told_at_training(tmp_path: Path) -> None:
    for number, image in enumerate(blobs(20)):
        scan = dcmread(io.BytesIO(dicom_file(image[None])))
        scan.WindowCenter, scan.WindowWidth = int(np.median(image)), 1
        scan.save_as(tmp_path / f"{number:02d}.dcm")
    data = load_images(ImageData(path=str(tmp_path), size=16))
    assert data.notes[0] == (
        "the windows in the files make nearly all pixels of 20 images black or white; "
        "set data.intensity_window: percentile"
    )
    data = load_images(ImageData(path=str(tmp_path), size=16, intensity_window="percentile"))
    assert not data.notes


def test_what_is_frozen_neither_trains_nor_calibrates(image_dataset: ImageDataset) -> None:
    train = image_dataset.assignment.rows(TRAIN)[:3]
    table = image_dataset.table.take(pa.array(train))
    frozen = table.append_column(IMAGE, pa.array(image_dataset._encode(train), pa.binary()))
    without = image_dataset.without(frozen)
    assert set(without.assignment.codes[train]) == {UNUSED}
    assert without.assignment.unused["in the frozen test split"] >= 3
    assert without.origin == image_dataset.digest
    assert without.digest != image_dataset.digest


def test_its_own_test_split_frozen_changes_nothing(image_dataset: ImageDataset) -> None:
    without = image_dataset.without(image_dataset.test_table)
    np.testing.assert_array_equal(without.assignment.codes, image_dataset.assignment.codes)
    assert without.digest == image_dataset.digest


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        (
            "pad",
            "are padded, so that nothing is lost; cropping would leave out 50% of their pixels",
        ),
        ("crop", "lose 50% of their pixels, which no score sees; set data.fit: pad to keep them"),
        ("stretch", "are stretched; set data.fit: pad to keep their proportions"),
    ],
)
def test_images_that_are_not_square_are_told_at_training(
    tmp_path: Path, fit: Fit, expected: str
) -> None:
    images = blobs(40)
    wide = np.concatenate([images[:6], images[6:12]], 2)
    for number, image in enumerate([*wide, *images[12:26]]):
        png(tmp_path / f"{number:02}.png", image)
    notes = load_images(ImageData(path=str(tmp_path), size=16, fit=fit)).notes
    assert f"6 of 20 images are not square and {expected}" in notes
