"""Images that are read in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anomaly_vae.data.schema import RowProblem
from anomaly_vae.images.encoding import IMAGE
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
