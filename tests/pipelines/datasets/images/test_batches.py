"""Images that are read in batches."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.schema import RowProblem
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.masking import OUTSIDE
from anomaly_vae.images.schema import ImageSchema, image_batch
from pipelines.datasets.images.batches import BATCH_SIZE, concatenate, read_all, read_images
from pipelines.datasets.images.files import ImageFile
from pipelines.datasets.images.listing import find_images
from tests.support.image_folders import png, tiff
from tests.support.scans import blobs

SCHEMA = ImageSchema(16, 1)


def test_images_are_streamed_in_order_with_file_and_frame(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", blobs(3))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    png(tmp_path / "c.png", blobs(1, seed=3)[0])
    items = find_images([str(tmp_path)])
    items.append(ImageFile.from_path(tmp_path / "gone.png"))
    (batch,) = read_images(items, SCHEMA)
    assert batch.files == (0, 0, 0, 1, 2, 3)
    assert batch.frames == (0, 1, 2, None, 0, None)
    assert batch.images.usable.tolist() == [True] * 3 + [False, True, False]
    assert all(problem.reason for problem in batch.images.problems)


def test_batches_are_bounded_and_join_to_the_whole(tmp_path: Path) -> None:
    pages = blobs(BATCH_SIZE + 5)
    pages[BATCH_SIZE + 2] = 7  # shows nothing
    tiff(tmp_path / "a.tif", pages)
    items = find_images([str(tmp_path)])
    parts = list(read_images(items, SCHEMA))
    assert [len(part.files) for part in parts] == [BATCH_SIZE, 5]
    whole = read_all(items, SCHEMA)
    assert len(whole.images) == BATCH_SIZE + 5
    assert [problem.row for problem in whole.images.problems] == [BATCH_SIZE + 2]
    np.testing.assert_array_equal(
        np.asarray(whole.images.values[IMAGE])[BATCH_SIZE:], parts[1].images.values[IMAGE]
    )


def test_joined_batches_keep_their_problems_at_their_rows() -> None:
    images = np.zeros((2, 1, 16, 16), np.float32)
    problem = RowProblem(1, IMAGE, "torn")
    whole = concatenate(
        [image_batch(images), image_batch(images, [problem]), image_batch(images, [problem])]
    )
    assert [p.row for p in whole.problems] == [3, 5]
    assert len(whole) == 6


# ---------------------------------------------------------------- masks of images

MASKED = ImageSchema(16, 1, mask="own")


def listed(folder: Path, *rows: str) -> list[ImageFile]:
    (folder / "m.csv").write_text("\n".join(["path,mask", *rows]))
    return find_images([str(folder / "m.csv")])


def outside(items: list[ImageFile]) -> NDArray[np.bool_]:
    """Which pixels (N, S, S) of the images do not count."""
    values = read_all(items, MASKED).images.values[IMAGE]
    return np.asarray(values)[:, 0] == OUTSIDE


def test_a_manifest_names_the_mask_of_each_image(tmp_path: Path) -> None:
    first, second = blobs(2, size=16)
    png(tmp_path / "a.png", first)
    png(tmp_path / "b.png", second)
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 1  # values above 0 count, however dark
    png(tmp_path / "half.png", half)
    png(tmp_path / "rest.png", 255 * (1 - half))
    items = listed(tmp_path, "a.png,half.png", "b.png, rest.png")
    expected = np.stack([half == 0, half == 1])
    np.testing.assert_array_equal(outside(items), expected)


def test_a_volume_has_a_mask_of_each_slice(tmp_path: Path) -> None:
    voxels = np.moveaxis(blobs(3, size=16), 0, -1).astype(np.int16)
    brain = np.zeros(voxels.shape, np.uint8)
    brain[2:14, 3:13] = 1
    brain[:, :, 1] = 1  # one value in the whole slice
    for name, values in (("v.nii.gz", voxels), ("brain.nii.gz", brain)):
        nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / name)
    counts = (~outside(listed(tmp_path, "v.nii.gz,brain.nii.gz"))).sum((1, 2))
    assert counts.tolist() == [120, 256, 120]


def test_one_mask_holds_for_all_frames(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", blobs(3, size=16))
    png(tmp_path / "m.png", np.pad(np.ones((8, 16), np.uint8), ((0, 8), (0, 0))))
    assert outside(listed(tmp_path, "a.tif,m.png"))[:, 8:].all()


def test_an_image_without_a_usable_mask_is_refused(tmp_path: Path) -> None:
    png(tmp_path / "a.png", blobs(1, size=16)[0])
    tiff(tmp_path / "t.tif", blobs(3, size=16))
    png(tmp_path / "small.png", np.ones((8, 8), np.uint8))
    tiff(tmp_path / "two.tif", np.ones((2, 16, 16), np.uint8))
    (tmp_path / "text.png").write_text("mask")
    for row, expected in (
        ("a.png,", "it has no mask, which the model needs"),
        ("a.png,gone.png", "its mask cannot be used: it cannot be opened"),
        ("a.png,http://x/y.png", "its mask cannot be used: it cannot be opened"),
        ("a.png,text.png", "its mask cannot be used"),
        ("a.png,small.png", "its mask has 8 × 8 pixels, and the image 16 × 16"),
        ("t.tif,two.tif", "its mask has no such frame"),
    ):
        problems = read_all(listed(tmp_path, row), MASKED).images.problems
        assert len(problems) == 1
        assert problems[0].reason.startswith(expected)


def test_a_model_without_masks_ignores_the_column(tmp_path: Path) -> None:
    png(tmp_path / "a.png", blobs(1)[0])
    assert not read_all(listed(tmp_path, "a.png,gone.png"), SCHEMA).images.problems
